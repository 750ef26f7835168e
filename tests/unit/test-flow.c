/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What a client or a stranger may send that no vector has: packets sealed here, many, late,
 * coalesced, contradictory or never finished.
 */
#include <errno.h>

#include "tests/unit/flow-fixture.h"
#include "tests/unit/hello-builder.h"

static struct builder hello;

/* A ClientHello with a big key share in front, for shop.example. */
static void build_hello(size_t share)
{
	static const uint8_t octets[BUILDER_MAX];
	size_t list = begin_hello(&hello);

	put_extension(&hello, 0x33, octets, share);
	put_server_name(&hello, "shop.example", 12);
	put_extension(&hello, 16, "\0\3\2h3", 5);
	end_hello(&hello, list);
}

static void check_shop(void)
{
	size_t length;
	const char *name = flow_server_name(&flow, &length);

	assert_int_equal(flow.state, FLOW_COMPLETE);
	assert_int_equal(length, 12);
	assert_memory_equal(name, "shop.example", 12);
}

static const struct seal client = {
	.version = QUIC_VERSION_1,
	.dcid = {1, 2, 3, 4, 5, 6, 7, 8},
	.dcid_length = 8,
	.scid = {9, 9, 9},
	.scid_length = 3,
	.number_length = 2,
};

/* Under the keys of the connection ID key_dcid. */
static size_t seal_with(const struct seal *seal, const uint8_t *key_dcid, size_t key_dcid_length,
	const uint8_t *payload, size_t length, uint8_t *out)
{
	struct initial_keys keys;
	size_t n;

	assert_int_equal(initial_keys_derive(crypto, seal->version, key_dcid, key_dcid_length,
				 INITIAL_FROM_CLIENT, &keys),
		0);
	n = seal_initial(seal, &keys, payload, length, out);
	assert_true(n > 0);
	return n;
}

static size_t seal(const struct seal *s, const uint8_t *payload, size_t length, uint8_t *out)
{
	return seal_with(s, s->dcid, s->dcid_length, payload, length, out);
}

/* A CRYPTO frame with octets of the built ClientHello, padded to 20 octets at least. */
static size_t crypto_frame(size_t offset, size_t length, uint8_t *payload)
{
	size_t n = 0;

	payload[n++] = 6;
	seal_varint(payload, &n, offset, 2);
	seal_varint(payload, &n, length, 2);
	memcpy(payload + n, hello.octets + offset, length);
	n += length;
	while (n < 20)
		payload[n++] = 0;
	return n;
}

static size_t seal_crypto(const struct seal *s, size_t offset, size_t length, uint8_t *out)
{
	uint8_t payload[DATAGRAM_MAX];
	size_t n = crypto_frame(offset, length, payload);

	return seal(s, payload, n, out);
}

/* A payload of its own as the client's next packet in a datagram of its own. */
static enum flow_state feed_payload(struct seal *s, const void *payload, size_t length)
{
	uint8_t padded[DATAGRAM_MAX] = {0}, out[DATAGRAM_MAX];

	memcpy(padded, payload, length);
	s->number++;
	return feed(out, seal(s, padded, length < 4 ? 4 : length, out));
}

static enum flow_state feed_crypto(struct seal *s, size_t offset, size_t length)
{
	uint8_t out[DATAGRAM_MAX];

	s->number++;
	return feed(out, seal_crypto(s, offset, length, out));
}

/* A long ClientHello in 20 datagrams, each sent twice, in a thousand orders. */
static void test_many_datagrams_in_random_order(void **state)
{
	const unsigned n = 20;
	unsigned order[2 * 20];
	struct seal s = client;
	size_t piece;

	build_hello(8000);
	piece = (hello.length + n - 1) / n;
	for (unsigned i = 0; i < n; i++) {
		size_t offset = i * piece, left = hello.length - offset;

		s.number++;
		datagrams[i].length =
			seal_crypto(&s, offset, left < piece ? left : piece, datagrams[i].octets);
	}
	srand(2);
	for (unsigned round = 0; round < 1000; round++) {
		bool seen[20] = {};
		unsigned distinct = 0;

		for (unsigned i = 0; i < 2 * n; i++)
			order[i] = i % n;
		for (unsigned i = 2 * n - 1; i > 0; i--)
			swap(&order[i], &order[(unsigned)rand() % (i + 1)]);
		begin_flow();
		for (unsigned i = 0; i < 2 * n; i++) {
			distinct += !seen[order[i]];
			seen[order[i]] = true;
			assert_int_equal(
				feed(datagrams[order[i]].octets, datagrams[order[i]].length),
				distinct == n ? FLOW_COMPLETE : FLOW_INCOMPLETE);
		}
		check_shop();
		assert_int_equal(flow.packets, 2 * n);
	}
}

static void test_connection_ids_and_tokens_of_every_length(void **state)
{
	uint8_t token[300] = {7}, out[DATAGRAM_MAX];
	struct seal s = client;
	unsigned complete = 0;

	build_hello(10);
	s.token = token;
	for (s.dcid_length = 0; s.dcid_length <= PACKET_CID_MAX; s.dcid_length++) {
		for (s.scid_length = 0; s.scid_length <= PACKET_CID_MAX; s.scid_length++) {
			s.token_length = (s.dcid_length + 20u * s.scid_length) % sizeof(token);
			s.number_length = 1 + s.scid_length % 4;
			begin_flow();
			feed(out, seal_crypto(&s, 0, hello.length, out));
			check_shop();
			complete++;
		}
	}
	assert_int_equal(complete, 21 * 21);
}

/* RFC 9000 section 17.2: in versions 1 and 2 no connection ID has more than 20 octets. */
static void test_longer_connection_ids_are_no_initials(void **state)
{
	uint8_t out[DATAGRAM_MAX] = {0xc0, 0, 0, 0, 1};

	for (unsigned length = 21; length <= 255; length++) {
		begin_flow();
		out[5] = (uint8_t)length;
		feed(out, sizeof(out));
		assert_int_equal(flow.ignored, 1);
		begin_flow();
		out[5] = 0;
		out[6] = (uint8_t)length;
		feed(out, sizeof(out));
		assert_int_equal(flow.ignored, 1);
		out[6] = 0;
	}
}

static void test_coalesced_initials(void **state)
{
	uint8_t out[DATAGRAM_MAX];
	struct seal s = client;
	size_t n = 0;

	build_hello(300);
	for (size_t offset = 0; offset < hello.length; offset += 100) {
		size_t left = hello.length - offset;

		s.number++;
		n += seal_crypto(&s, offset, left < 100 ? left : 100, out + n);
	}
	assert_int_equal(s.number, 4);
	begin_flow();
	feed(out, n);
	check_shop();
	assert_int_equal(flow.packets, 4);

	/* One that is damaged does not hide those behind it. */
	out[60] ^= 1;
	begin_flow();
	assert_int_equal(feed(out, n), FLOW_INCOMPLETE);
	assert_int_equal(flow.packets, 3);
	assert_int_equal(flow.unopened, 1);
}

static void test_0rtt_in_front_and_padding_behind(void **state)
{
	static const uint8_t early[] = {
		0xd0, 0, 0, 0, 1, 8, 1, 2, 3, 4, 5, 6, 7, 8, 3, 9, 9, 9, 4, 1, 2, 3, 4};
	uint8_t out[DATAGRAM_MAX] = {0};
	size_t n = sizeof(early);

	build_hello(10);
	memcpy(out, early, sizeof(early));
	n += seal_crypto(&client, 0, hello.length, out + n);
	begin_flow();
	feed(out, 1200);
	check_shop();
	assert_int_equal(flow.packets, 1);
	assert_int_equal(flow.ignored, 0);
	assert_true(n < 1200);

	begin_flow();
	feed(out, sizeof(early));
	assert_int_equal(flow.ignored, 1);
	assert_string_equal(flow.last_ignored, "the datagram has no Initial");
}

/* RFC 9000 section 12.2: what follows with another connection ID is not looked at. */
static void test_coalesced_packets_of_another_connection(void **state)
{
	uint8_t out[DATAGRAM_MAX];
	struct seal other = client;
	size_t n;

	build_hello(10);
	other.dcid[0]++;
	n = seal_crypto(&client, 0, 10, out);
	n += seal_crypto(&other, 10, hello.length - 10, out + n);
	begin_flow();
	assert_int_equal(feed(out, n), FLOW_INCOMPLETE);
	assert_int_equal(flow.packets, 1);
	assert_int_equal(flow.unopened, 0);
}

static void test_no_more_than_some_packets_of_a_datagram(void **state)
{
	uint8_t out[DATAGRAM_MAX];
	struct seal s = client;
	size_t n = 0;

	build_hello(10);
	for (unsigned i = 0; i < FLOW_DATAGRAM_PACKETS + 3; i++) {
		s.number++;
		n += seal_crypto(&s, 5 * i, 5, out + n);
	}
	begin_flow();
	assert_int_equal(feed(out, n), FLOW_INCOMPLETE);
	assert_int_equal(flow.packets, FLOW_DATAGRAM_PACKETS);
	assert_int_equal(crypto_stream_contiguous(&flow.stream), 5 * FLOW_DATAGRAM_PACKETS);
}

/* The same ClientHello again under keys of the Retry's connection ID, in both orders. */
static void test_before_and_after_a_retry(void **state)
{
	struct seal before = client, after = client;
	uint8_t out[2][DATAGRAM_MAX];
	size_t n[2];

	build_hello(1500);
	after.dcid_length = 17;
	after.dcid[3] = 0x77;
	after.number = 2;
	n[0] = seal_crypto(&before, 0, 900, out[0]);
	n[1] = seal_crypto(&after, 800, hello.length - 800, out[1]);
	for (unsigned first = 0; first < 2; first++) {
		begin_flow();
		assert_int_equal(feed(out[first], n[first]), FLOW_INCOMPLETE);
		feed(out[!first], n[!first]);
		check_shop();
		assert_int_equal(flow.n_keys, 2);
		assert_int_equal(flow.unopened, 0);
	}
}

/* RFC 9368: a client may go on in another version, under keys of the same connection ID. */
static void test_a_version_that_changes(void **state)
{
	struct seal s = client;

	build_hello(100);
	begin_flow();
	feed_crypto(&s, 0, 50);
	s.version = QUIC_VERSION_2;
	feed_crypto(&s, 50, hello.length - 50);
	check_shop();
	assert_int_equal(flow.n_keys, 2);
	assert_int_equal(flow.version, QUIC_VERSION_1);
	assert_int_equal(flow.unopened, 0);
}

/* There are no third keys: whoever makes them is not the client. */
static void test_keys_are_bounded(void **state)
{
	struct seal s = client;

	build_hello(1500);
	begin_flow();
	feed_crypto(&s, 0, 100);
	s.dcid[0]++;
	feed_crypto(&s, 100, 100);
	s.dcid[0]++;
	assert_int_equal(feed_crypto(&s, 200, 100), FLOW_INCOMPLETE);
	assert_int_equal(flow.packets, 2);
	assert_int_equal(flow.unopened, 1);
	assert_int_equal(flow.n_held, 0);
	assert_int_equal(crypto_stream_contiguous(&flow.stream), 200);
	/* Nor of another version. */
	s.version = QUIC_VERSION_2;
	assert_int_equal(feed_crypto(&s, 200, 100), FLOW_INCOMPLETE);
	assert_int_equal(flow.packets, 2);
	assert_int_equal(flow.unopened, 2);
	assert_int_equal(flow.n_keys, FLOW_KEYS);
}

/* Packets to the server's connection ID wait for the keys, in the order of arrival; some of them.
 */
static void test_held_packets_are_bounded(void **state)
{
	uint8_t payload[DATAGRAM_MAX], out[DATAGRAM_MAX];
	struct seal s = client, switched = client;
	size_t n;

	build_hello(700);
	switched.dcid[7] = 0xff;
	begin_flow();
	for (unsigned i = 1; i <= FLOW_HELD_PACKETS + 2; i++) {
		switched.number = i;
		n = crypto_frame(100 * i, 100, payload);
		feed(out, seal_with(&switched, s.dcid, s.dcid_length, payload, n, out));
	}
	assert_int_equal(flow.n_held, FLOW_HELD_PACKETS);
	assert_int_equal(flow.unopened, FLOW_HELD_PACKETS + 2);
	feed(out, seal_crypto(&s, 0, 100, out));
	assert_int_equal(flow.n_held, 0);
	assert_int_equal(flow.unopened, 2);
	assert_int_equal(flow.packets, 1 + FLOW_HELD_PACKETS);
	assert_int_equal(crypto_stream_contiguous(&flow.stream), 100 * (1 + FLOW_HELD_PACKETS));

	/* Octets: three of 1300 fit, and what comes back from the middle is what went in. */
	build_hello(4000);
	begin_flow();
	for (unsigned i = 1; i <= 4; i++) {
		if (i == 2) {
			feed(memset(out, 0xc1, sizeof(out)), 1200); /* no version that there is */
			assert_int_equal(flow.ignored, 1);
		}
		switched.number = i;
		n = crypto_frame(1000 * (i - 1) + 500, 1250, payload);
		feed(out, seal_with(&switched, s.dcid, s.dcid_length, payload, n, out));
	}
	assert_int_equal(flow.n_held, 3);
	feed(out, seal_crypto(&s, 0, 500, out));
	assert_int_equal(flow.packets, 4);
	assert_int_equal(crypto_stream_contiguous(&flow.stream), 2500 + 1250);
}

/* Of two that wait, the first key opens the first, and the second key the second. */
static void test_what_still_waits_is_kept(void **state)
{
	struct seal first = client, second = client, switched = client;
	uint8_t payload[DATAGRAM_MAX], out[DATAGRAM_MAX];
	size_t n;

	build_hello(700);
	second.dcid[0] = 0x22;
	switched.dcid[0] = 0x33;
	begin_flow();
	switched.number = 1;
	n = crypto_frame(100, 130, payload);
	feed(out, seal_with(&switched, first.dcid, first.dcid_length, payload, n, out));
	switched.number = 2;
	n = crypto_frame(230, 110, payload);
	feed(out, seal_with(&switched, second.dcid, second.dcid_length, payload, n, out));
	assert_int_equal(flow.n_held, 2);
	feed(out, seal_crypto(&first, 0, 100, out));
	assert_int_equal(flow.n_held, 1);
	assert_int_equal(crypto_stream_contiguous(&flow.stream), 230);
	second.number = 3;
	feed(out, seal_crypto(&second, 340, 100, out));
	assert_int_equal(flow.n_held, 0);
	assert_int_equal(flow.unopened, 0);
	assert_int_equal(flow.packets, 4);
	assert_int_equal(crypto_stream_contiguous(&flow.stream), 440);
}

static void test_another_source_connection_id_is_ignored(void **state)
{
	struct seal s = client, other = client;

	build_hello(100);
	begin_flow();
	feed_crypto(&s, 0, 20);
	other.scid_length = 2;
	other.number = s.number;
	feed_crypto(&other, 20, hello.length - 20);
	assert_int_equal(flow.ignored, 1);
	assert_int_equal(flow.packets, 1);
	other.scid_length = 3;
	other.scid[2]++;
	feed_crypto(&other, 20, hello.length - 20);
	assert_int_equal(flow.ignored, 2);
	/* Nor does one under keys of its own leave them behind. */
	other.dcid[0]++;
	feed_crypto(&other, 20, hello.length - 20);
	assert_int_equal(flow.ignored, 3);
	assert_int_equal(flow.n_keys, 1);
	assert_int_equal(feed_crypto(&s, 20, hello.length - 20), FLOW_COMPLETE);
}

static void check_over(enum flow_state state, const char *subject, const char *problem)
{
	assert_int_equal(flow.state, state);
	assert_string_equal(flow.complaint.subject, subject);
	assert_string_equal(flow.complaint.problem, problem);
}

static void check_malformed(const char *subject, const char *problem)
{
	check_over(FLOW_MALFORMED, subject, problem);
}

static void test_overlaps_and_contradictions(void **state)
{
	struct seal s = client;

	build_hello(300);
	begin_flow();
	feed_crypto(&s, 200, hello.length - 200);
	feed_crypto(&s, 50, 200);
	assert_int_equal(feed_crypto(&s, 0, 60), FLOW_COMPLETE);
	check_shop();
	/* An answer stays, whatever comes. */
	hello.octets[20]++;
	assert_int_equal(feed_crypto(&s, 0, 60), FLOW_COMPLETE);
	check_shop();
	assert_int_equal(flow.packets, 4);

	begin_flow();
	feed_crypto(&s, 0, 60);
	hello.octets[59]++;
	feed_crypto(&s, 59, 60);
	check_malformed("a CRYPTO frame", "contradicts what another one has at the offset");
	hello.octets[59]--;
	assert_int_equal(feed_crypto(&s, 0, hello.length), FLOW_MALFORMED);
}

static void test_authentic_and_malformed(void **state)
{
	struct seal s = client;

	begin_flow();
	feed_payload(&s, "\6\0\4\2\0\0\0", 7);
	check_malformed("the first message", "is no ClientHello");
	begin_flow();
	feed_payload(&s, "\1\1\1\x08", 4);
	check_malformed("a frame", "has a type that no Initial may have");
	assert_int_equal(flow.complaint.octet, 3);
	begin_flow();
	feed_payload(&s, "\x1c\0\0\0", 4);
	check_malformed("the client", "has closed the connection");
	begin_flow();
	feed_payload(&s, "\6\x80\1\0\0\1a\x08", 8);
	check_malformed("a frame", "has a type that no Initial may have");
}

/* Nothing that a client may not do, but no answer can be had. */
static void test_more_than_is_kept_of_one(void **state)
{
	struct seal s = client;

	begin_flow();
	feed_payload(&s, "\6\x80\1\0\0\1a", 7);
	check_over(FLOW_TOO_MUCH, "a CRYPTO frame", "goes beyond octet 16384 of the handshake");
	begin_flow();
	feed_payload(&s, "\6\0\4\1\0\x3f\xfd", 7);
	check_over(FLOW_TOO_MUCH, "the message", "is longer than 16384 octets");
	/* That stays, whatever comes. */
	feed_payload(&s, "\1\x08\0\0", 4);
	check_over(FLOW_TOO_MUCH, "the message", "is longer than 16384 octets");
}

/* Of reserved bits a server says that the packet is authentic and wrong; here it does not count. */
static void test_reserved_bits_are_ignored(void **state)
{
	struct seal s = client;

	build_hello(10);
	s.reserved = 1;
	begin_flow();
	feed_crypto(&s, 0, hello.length);
	assert_int_equal(flow.packets, 0);
	assert_int_equal(flow.ignored, 1);
	assert_string_equal(flow.last_ignored, "the Initial has reserved bits set");
}

static void test_clients_that_never_finish(void **state)
{
	struct seal s = client;

	build_hello(100);
	begin_flow();
	for (unsigned i = 1; i < FLOW_PACKETS_MAX; i++)
		assert_int_equal(feed_crypto(&s, 0, 20), FLOW_INCOMPLETE);
	feed_crypto(&s, 0, 20);
	check_over(FLOW_TOO_MUCH, "the ClientHello", "is not complete after 64 Initials");
	assert_int_equal(flow.complaint.octet, 20);
}

static void test_datagrams_without_an_initial(void **state)
{
	static const struct {
		const char *octets;
		size_t length;
		const char *why;
	} others[] = {
		{"", 0, "the datagram has no Initial"},
		{"\x40\1\2\3\4\5\6\7\x8", 9, "the datagram has no Initial"},
		{"\x80\0\0\0\0\0\0\0\0\0\1", 11, "the datagram has no Initial"},
		{"\xf0\0\0\0\1\0\0\0\0\0\1", 11, "the datagram has no Initial"},
		{"\xe0\0\0\0\1\0\0\1\0\0\1", 11, "the datagram has no Initial"},
		{"\xc0\xff\0\0\x1d\0\0\0\1\0", 10, "the version is neither 1 nor 2"},
		{"\xc0\x1a\x2a\x3a\x4a\0\0\0\1\0", 10, "the version is neither 1 nor 2"},
		{"\xc0\0\0\0", 4, "the datagram ends within a header, or a length in it is wrong"},
		{"\xc0\0\0\0\1\0\0\0\2\0", 10,
			"the datagram ends within a header, or a length in it is wrong"},
	};

	begin_flow();
	for (unsigned i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
		assert_int_equal(
			feed((const uint8_t *)others[i].octets, others[i].length), FLOW_INCOMPLETE);
		assert_int_equal(flow.ignored, i + 1);
		assert_string_equal(flow.last_ignored, others[i].why);
	}
	assert_int_equal(flow.packets + flow.unopened, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_many_datagrams_in_random_order),
		cmocka_unit_test(test_connection_ids_and_tokens_of_every_length),
		cmocka_unit_test(test_longer_connection_ids_are_no_initials),
		cmocka_unit_test(test_coalesced_initials),
		cmocka_unit_test(test_0rtt_in_front_and_padding_behind),
		cmocka_unit_test(test_coalesced_packets_of_another_connection),
		cmocka_unit_test(test_no_more_than_some_packets_of_a_datagram),
		cmocka_unit_test(test_before_and_after_a_retry),
		cmocka_unit_test(test_a_version_that_changes),
		cmocka_unit_test(test_keys_are_bounded),
		cmocka_unit_test(test_held_packets_are_bounded),
		cmocka_unit_test(test_what_still_waits_is_kept),
		cmocka_unit_test(test_another_source_connection_id_is_ignored),
		cmocka_unit_test(test_overlaps_and_contradictions),
		cmocka_unit_test(test_authentic_and_malformed),
		cmocka_unit_test(test_more_than_is_kept_of_one),
		cmocka_unit_test(test_reserved_bits_are_ignored),
		cmocka_unit_test(test_clients_that_never_finish),
		cmocka_unit_test(test_datagrams_without_an_initial),
	};

	return cmocka_run_group_tests_name("flow", tests, set_up, tear_down);
}
