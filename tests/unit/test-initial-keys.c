/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Initial protection against appendix A of RFC 9001 and RFC 9369: keys of both sides, a client's
 * and a server's Initial, and packet numbers. What test code seals is first shown to be what the
 * RFC has, so that the other tests may rely on it.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "tests/unit/initial-seal.h"
#include "tests/unit/vectors.h"

#define DATAGRAM_MAX 2048

static json_t *root;
static struct initial_crypto *crypto;

static int set_up(void **state)
{
	root = vector_load(VECTORS "/quic-initial-vectors.json");
	return initial_crypto_new(&crypto);
}

static int tear_down(void **state)
{
	json_decref(root);
	initial_crypto_free(crypto);
	return 0;
}

static uint32_t vector_version(const json_t *vector)
{
	return (uint32_t)strtoul(vector_string(vector, "version"), NULL, 16);
}

static void check_octets(
	const json_t *vector, const char *key, const uint8_t *octets, size_t length)
{
	uint8_t wanted[DATAGRAM_MAX];

	assert_int_equal(vector_hex(vector_string(vector, key), wanted, sizeof(wanted)), length);
	assert_memory_equal(octets, wanted, length);
}

static struct initial_keys derive(const json_t *vector, enum initial_sender sender)
{
	struct initial_keys keys;
	uint8_t dcid[PACKET_CID_MAX];
	size_t n = vector_hex(vector_string(vector, "original_dcid"), dcid, sizeof(dcid));

	assert_int_equal(
		initial_keys_derive(crypto, vector_version(vector), dcid, n, sender, &keys), 0);
	return keys;
}

static void test_keys_of_both_sides(void **state)
{
	static const char *const sides[] = {"client", "server"};
	json_t *vector;
	unsigned n = 0;
	size_t i;

	json_array_foreach(json_object_get(root, "rfc_vectors"), i, vector)
	{
		for (unsigned side = INITIAL_FROM_CLIENT; side <= INITIAL_FROM_SERVER; side++) {
			const json_t *wanted = json_object_get(vector, sides[side]);
			struct initial_keys keys = derive(vector, side);

			check_octets(wanted, "key", keys.key, sizeof(keys.key));
			check_octets(wanted, "iv", keys.iv, sizeof(keys.iv));
			check_octets(wanted, "hp", keys.header_key, sizeof(keys.header_key));
			n++;
		}
	}
	assert_int_equal(n, 4);
}

static void test_other_versions_have_no_keys(void **state)
{
	static const uint32_t versions[] = {0, 2, QUIC_VERSION_DRAFT_29, 0x1a2a3a4a, 0xffffffff};
	struct initial_keys keys;

	for (size_t i = 0; i < sizeof(versions) / sizeof(versions[0]); i++)
		assert_int_equal(initial_keys_derive(crypto, versions[i], (uint8_t[8]){}, 8,
					 INITIAL_FROM_CLIENT, &keys),
			-EPROTONOSUPPORT);
}

/* The payload that the RFC has, padded as it says. */
static size_t wanted_payload(const json_t *initial, uint8_t *ret)
{
	const char *frames = vector_string(initial, "crypto_frame");
	const json_t *padding = json_object_get(initial, "padding_octets");
	size_t n;

	n = vector_hex(frames ? frames : vector_string(initial, "payload"), ret, DATAGRAM_MAX);
	if (!padding)
		return n;
	memset(ret + n, 0, json_integer_value(padding));
	return n + json_integer_value(padding);
}

static void check_initial(const json_t *vector, const char *name, enum initial_sender sender)
{
	const json_t *initial = json_object_get(vector, name);
	struct initial_keys keys = derive(vector, sender);
	uint8_t octets[DATAGRAM_MAX], wanted[DATAGRAM_MAX];
	const uint8_t *payload;
	struct packet packet;
	size_t n, length;
	int64_t number;

	n = vector_hex(vector_string(initial, "protected_packet"), octets, sizeof(octets));
	assert_int_equal(n, vector_number(initial, "length"));
	assert_int_equal(packet_read(octets, n, &packet), 0);
	assert_int_equal(packet.quic.header.kind, QUIC_INITIAL);
	assert_int_equal(packet.length, n);
	assert_int_equal(packet.token_length, 0);
	assert_int_equal(initial_open(crypto, &keys, &packet, -1, &payload, &length, &number), 0);
	assert_int_equal(number, vector_number(initial, "packet_number"));
	assert_int_equal(length, wanted_payload(initial, wanted));
	assert_memory_equal(payload, wanted, length);

	/* The keys of the other side open nothing. */
	keys = derive(vector, !sender);
	assert_int_equal(
		initial_open(crypto, &keys, &packet, -1, &payload, &length, &number), -EBADMSG);
}

static void test_initials_of_both_sides_are_opened(void **state)
{
	json_t *vector;
	size_t i;

	assert_int_equal(json_array_size(json_object_get(root, "rfc_vectors")), 2);
	json_array_foreach(json_object_get(root, "rfc_vectors"), i, vector)
	{
		check_initial(vector, "client_initial", INITIAL_FROM_CLIENT);
		check_initial(vector, "server_initial", INITIAL_FROM_SERVER);
	}
}

static void test_retry_and_short_headers_are_no_initials(void **state)
{
	json_t *vector;
	size_t i;

	json_array_foreach(json_object_get(root, "rfc_vectors"), i, vector)
	{
		const json_t *retry = json_object_get(vector, "retry");
		const json_t *short_header = json_object_get(vector, "short_header_example");
		uint8_t octets[DATAGRAM_MAX];
		struct packet packet;
		size_t n;

		n = vector_hex(vector_string(retry, "packet"), octets, sizeof(octets));
		assert_int_equal(packet_read(octets, n, &packet), -ENOMSG);
		n = vector_hex(vector_string(short_header, "packet"), octets, sizeof(octets));
		assert_int_equal(packet_read(octets, n, &packet), -ENOMSG);
	}
}

/* What this seals is what the RFC has, but for the length, which is written with four octets. */
static void test_sealed_packets_are_opened(void **state)
{
	struct seal seal = {.dcid_length = 8, .scid_length = 5, .number_length = 1};
	uint8_t payload[64] = {1}, out[sizeof(payload) + SEAL_OVERHEAD];
	static const uint32_t versions[] = {QUIC_VERSION_1, QUIC_VERSION_2};
	unsigned n = 0;

	for (size_t v = 0; v < 2; v++) {
		for (seal.number_length = 1; seal.number_length <= 4; seal.number_length++) {
			struct initial_keys keys;
			const uint8_t *opened;
			struct packet packet;
			size_t length, opened_length;
			int64_t number;

			seal.version = versions[v];
			seal.number = 0x12345678u >> (8 * (4 - seal.number_length));
			assert_int_equal(initial_keys_derive(crypto, seal.version, seal.dcid, 8,
						 INITIAL_FROM_CLIENT, &keys),
				0);
			length = seal_initial(&seal, &keys, payload, sizeof(payload), out);
			assert_true(length > 0);
			assert_int_equal(packet_read(out, length, &packet), 0);
			assert_int_equal(initial_open(crypto, &keys, &packet, seal.number - 1,
						 &opened, &opened_length, &number),
				0);
			assert_int_equal(number, seal.number);
			assert_int_equal(opened_length, sizeof(payload));
			assert_memory_equal(opened, payload, sizeof(payload));
			n++;
		}
	}
	assert_int_equal(n, 8);
}

static void test_reserved_bits_are_told(void **state)
{
	struct seal seal = {QUIC_VERSION_1, .dcid_length = 8, .number_length = 2};
	uint8_t payload[64] = {1}, out[sizeof(payload) + SEAL_OVERHEAD];
	struct initial_keys keys;
	const uint8_t *opened;
	struct packet packet;
	int64_t number;
	size_t length;

	assert_int_equal(
		initial_keys_derive(crypto, seal.version, seal.dcid, 8, INITIAL_FROM_CLIENT, &keys),
		0);
	for (seal.reserved = 0; seal.reserved < 4; seal.reserved++) {
		length = seal_initial(&seal, &keys, payload, sizeof(payload), out);
		assert_int_equal(packet_read(out, length, &packet), 0);
		assert_int_equal(
			initial_open(crypto, &keys, &packet, -1, &opened, &length, &number),
			seal.reserved ? -EPROTO : 0);
	}
}

/* Fewer octets than a sample needs, at every length. */
static void test_packets_too_short_for_a_sample(void **state)
{
	uint8_t octets[64] = {0xc0, 0, 0, 0, 1, 0, 0, 0};
	struct initial_keys keys = {};
	const uint8_t *opened;
	struct packet packet;
	int64_t number;
	size_t length;

	for (uint8_t rest = 0; rest < 40; rest++) {
		octets[8] = rest;
		assert_int_equal(packet_read(octets, 9 + (size_t)rest, &packet), 0);
		assert_int_equal(packet.length, 9 + rest);
		assert_int_equal(
			initial_open(crypto, &keys, &packet, -1, &opened, &length, &number),
			-EBADMSG);
		assert_int_equal(packet_read(octets, 8 + (size_t)rest, &packet), -EBADMSG);
	}
}

/* Token and rest, each with a length of one, two, four and eight octets, in 60 octets of datagram.
 */
static void test_lengths_that_end_with_the_datagram(void **state)
{
	unsigned read = 0, refused = 0;

	for (unsigned power = 0; power < 4; power++) {
		const size_t varint = (size_t)1 << power, room = 60 - 7 - varint - 1;

		for (size_t token = 0; token < 64; token++) {
			uint8_t *octets = calloc(1, 60);
			struct packet packet;
			size_t at = 7;

			assert_non_null(octets);
			memcpy(octets, "\xc0\0\0\0\1\0", 7);
			octets[at] = (uint8_t)(power << 6);
			octets[at + varint - 1] |= (uint8_t)token;
			at += varint + token;
			if (at < 60)
				octets[at] = (uint8_t)(60 - 1 - at);
			if (token <= room) {
				assert_int_equal(packet_read(octets, 60, &packet), 0);
				assert_int_equal(packet.token_length, token);
				assert_int_equal(packet.number_offset, at + 1);
				assert_int_equal(packet.length, 60);
				read++;
				octets[at]++;
			}
			/* One more than there is, of the token or of the rest. */
			assert_int_equal(packet_read(octets, 60, &packet), -EBADMSG);
			refused++;
			free(octets);
		}
	}
	assert_int_equal(read, 4 * 53 - (1 + 2 + 4 + 8));
	assert_int_equal(refused, 4 * 64);
}

/* A length that no datagram has room for, at the largest that there can be written. */
static void test_lengths_beyond_any_datagram(void **state)
{
	static const uint8_t token[] = {
		0xc0, 0, 0, 0, 1, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0};
	static const uint8_t rest[] = {
		0xc0, 0, 0, 0, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0};
	struct packet packet;

	assert_int_equal(packet_read(token, sizeof(token), &packet), -EBADMSG);
	assert_int_equal(packet_read(rest, sizeof(rest), &packet), -EBADMSG);
	for (size_t n = 0; n < sizeof(token); n++) {
		assert_int_equal(packet_read(token, n, &packet), -EBADMSG);
		assert_int_equal(packet_read(rest, n, &packet), -EBADMSG);
	}
}

/* RFC 9000 appendix A.3, and the edges of windows. */
static void test_packet_numbers(void **state)
{
	assert_int_equal(initial_packet_number(0xa82f30ea, 0x9b32, 2), 0xa82f9b32);
	assert_int_equal(initial_packet_number(-1, 0, 1), 0);
	assert_int_equal(initial_packet_number(-1, 255, 1), 255);
	assert_int_equal(initial_packet_number(-1, 0xffffffff, 4), 0xffffffff);
	assert_int_equal(initial_packet_number(255, 0, 1), 256);
	assert_int_equal(initial_packet_number(127, 0, 1), 256);
	assert_int_equal(initial_packet_number(126, 0, 1), 0);
	assert_int_equal(initial_packet_number(255, 128, 1), 384);
	assert_int_equal(initial_packet_number(254, 128, 1), 128);
	assert_int_equal(initial_packet_number(255, 254, 1), 254);
	assert_int_equal(initial_packet_number(256, 255, 1), 255);
	assert_int_equal(initial_packet_number(126, 255, 1), 255);
	assert_int_equal(initial_packet_number(300, 43, 1), 299);
	assert_int_equal(initial_packet_number((1LL << 62) - 2, 0, 1), (1LL << 62) - 256);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_keys_of_both_sides),
		cmocka_unit_test(test_other_versions_have_no_keys),
		cmocka_unit_test(test_initials_of_both_sides_are_opened),
		cmocka_unit_test(test_retry_and_short_headers_are_no_initials),
		cmocka_unit_test(test_sealed_packets_are_opened),
		cmocka_unit_test(test_reserved_bits_are_told),
		cmocka_unit_test(test_packets_too_short_for_a_sample),
		cmocka_unit_test(test_lengths_that_end_with_the_datagram),
		cmocka_unit_test(test_lengths_beyond_any_datagram),
		cmocka_unit_test(test_packet_numbers),
	};

	return cmocka_run_group_tests_name("initial-keys", tests, set_up, tear_down);
}
