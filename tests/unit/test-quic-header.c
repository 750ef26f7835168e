/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Every case of the header corpus is read as it says: kind, version, both connection IDs. Where the
 * corpus calls a packet invalid for its version but its destination connection ID is there, the
 * packet is steered, and its kind is what its type bits say.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "bpf/quic_header.h"
#include "tests/unit/vectors.h"

#define CASES 84
#define STEERED_THOUGH_INVALID 9
#define DATAGRAM_MAX 2048

static const char *expected_kind(const json_t *expect, uint8_t first)
{
	/* All of these cases are version 1. */
	static const char *const names[] = {"initial", "0rtt", "handshake", "retry"};

	if (!json_is_true(json_object_get(expect, "dcid_available")))
		return vector_string(expect, "kind");
	assert_string_equal(vector_string(expect, "kind"), "invalid");
	assert_string_equal(vector_string(expect, "version"), "0x00000001");
	return names[first >> 4 & 3];
}

static void check_octets(const char *expected, const uint8_t *octets, size_t length)
{
	uint8_t wanted[255];

	if (!expected) {
		assert_null(octets);
		return;
	}
	assert_non_null(octets);
	assert_int_equal(vector_hex(expected, wanted, sizeof(wanted)), length);
	assert_memory_equal(octets, wanted, length);
}

static void check_case(const json_t *vector)
{
	const json_t *expect = json_object_get(vector, "expect");
	json_t *short_length = json_object_get(vector, "short_dcid_len");
	uint8_t short_dcid_length = short_length ? json_integer_value(short_length) : 8;
	const char *version = vector_string(expect, "version");
	uint8_t buffer[DATAGRAM_MAX], *datagram;
	struct quic_packet packet;
	char text[16];
	size_t length;

	print_message("# %s\n", vector_string(vector, "name"));
	length = vector_hex(vector_string(vector, "hex"), buffer, sizeof(buffer));
	/* Of exactly its size, so that a sanitizer sees a look beyond the end. */
	datagram = malloc(length ? length : 1);
	assert_non_null(datagram);
	memcpy(datagram, buffer, length);

	packet = quic_read_packet(datagram, length, short_dcid_length);
	assert_string_equal(quic_kind_name(packet.header.kind),
		expected_kind(expect, length ? datagram[0] : 0));
	assert_int_equal(packet.has_version, !!version);
	if (version) {
		snprintf(text, sizeof(text), "0x%08x", packet.header.version);
		assert_string_equal(text, version);
	}
	check_octets(vector_string(expect, "dcid"), packet.dcid, packet.header.dcid_length);
	check_octets(vector_string(expect, "scid"), packet.scid, packet.scid_length);
	free(datagram);
}

static void test_every_corpus_case(void **state)
{
	json_t *root = vector_load(VECTORS "/quic-headers-corpus.json");
	json_t *cases = json_object_get(root, "cases"), *vector;
	unsigned n = 0, steered = 0;
	size_t i;

	json_array_foreach(cases, i, vector)
	{
		check_case(vector);
		n++;
		if (json_is_true(
			    json_object_get(json_object_get(vector, "expect"), "dcid_available")))
			steered++;
	}
	assert_int_equal(n, CASES);
	assert_int_equal(steered, STEERED_THOUGH_INVALID);
	json_decref(root);
}

static void test_type_bits_of_each_version(void **state)
{
	static const struct {
		uint32_t version;
		uint8_t kinds[4];
	} versions[] = {
		{QUIC_VERSION_1, {QUIC_INITIAL, QUIC_0RTT, QUIC_HANDSHAKE, QUIC_RETRY}},
		{QUIC_VERSION_DRAFT_29, {QUIC_INITIAL, QUIC_0RTT, QUIC_HANDSHAKE, QUIC_RETRY}},
		{QUIC_VERSION_2, {QUIC_RETRY, QUIC_INITIAL, QUIC_0RTT, QUIC_HANDSHAKE}},
		{0x1a2a3a4a, {QUIC_UNKNOWN_VERSION, QUIC_UNKNOWN_VERSION, QUIC_UNKNOWN_VERSION,
				     QUIC_UNKNOWN_VERSION}},
		{0, {QUIC_VERSION_NEGOTIATION, QUIC_VERSION_NEGOTIATION, QUIC_VERSION_NEGOTIATION,
			    QUIC_VERSION_NEGOTIATION}},
	};

	for (size_t i = 0; i < sizeof(versions) / sizeof(versions[0]); i++)
		for (unsigned first = 0x80; first <= 0xff; first++)
			assert_int_equal(quic_long_kind(first, versions[i].version),
				versions[i].kinds[first >> 4 & 3]);
}

/* A long header says how long its connection ID is: one octet less of it, and it is invalid. */
static void test_connection_ids_of_every_length_end_with_the_datagram(void **state)
{
	uint8_t datagram[6 + 255] = {0xc0, 0x1a, 0x2a, 0x3a, 0x4a};
	unsigned whole = 0, cut = 0;

	for (unsigned dcid_length = 0; dcid_length <= 255; dcid_length++) {
		datagram[5] = dcid_length;
		for (unsigned length = 0; length <= 6 + dcid_length; length++) {
			struct quic_packet packet = quic_read_packet(datagram, length, 8);

			if (length == 6 + dcid_length) {
				assert_int_equal(packet.header.kind, QUIC_UNKNOWN_VERSION);
				assert_int_equal(packet.header.dcid_length, dcid_length);
				assert_ptr_equal(packet.dcid, datagram + 6);
				assert_null(packet.scid);
				whole++;
			} else {
				assert_int_equal(packet.header.kind, QUIC_INVALID);
				assert_null(packet.dcid);
				cut++;
			}
		}
	}
	assert_int_equal(whole, 256);
	assert_int_equal(cut, 256 * 6 + 255 * 256 / 2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_every_corpus_case),
		cmocka_unit_test(test_type_bits_of_each_version),
		cmocka_unit_test(test_connection_ids_of_every_length_end_with_the_datagram),
	};

	return cmocka_run_group_tests_name("quic-header", tests, NULL, NULL);
}
