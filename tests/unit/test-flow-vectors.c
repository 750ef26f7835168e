/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * From datagrams to what the client asks for: every flow of the vectors in every order, with
 * packets that are damaged in every bit and cut at every octet.
 */
#include "tests/unit/flow-fixture.h"

static json_t *vector_flows(void)
{
	return json_object_get(json_object_get(root, "synthetic"), "flows");
}

static json_t *find_flow(const char *id)
{
	json_t *vector;
	size_t i;

	json_array_foreach(vector_flows(), i, vector)
	{
		if (strcmp(vector_string(vector, "id"), id) == 0)
			return vector;
	}
	fail_msg("no flow %s", id);
	return NULL;
}

static unsigned load(const json_t *vector)
{
	json_t *datagram;
	size_t i;

	json_array_foreach(json_object_get(vector, "datagrams"), i, datagram)
	{
		assert_true(i < DATAGRAMS_MAX);
		datagrams[i].length = vector_hex(vector_string(datagram, "hex"),
			datagrams[i].octets, sizeof(datagrams[i].octets));
	}
	return (unsigned)i;
}

static void check_answer(const json_t *vector)
{
	const char *name = vector_string(vector, "sni");
	const json_t *protocols = json_object_get(vector, "alpn");
	size_t position = 0, length, n = 0;
	const char *own = flow_server_name(&flow, &length);
	const uint8_t *protocol;

	assert_int_equal(length, strlen(name));
	assert_memory_equal(own, name, length);
	while (client_hello_next_protocol(
		flow.stream.octets, &flow.hello, &position, &protocol, &length)) {
		const char *wanted = json_string_value(json_array_get(protocols, n++));

		assert_int_equal(length, strlen(wanted));
		assert_memory_equal(protocol, wanted, length);
	}
	assert_int_equal(n, json_array_size(protocols));
	assert_int_equal(flow.version, strtoul(vector_string(vector, "version"), NULL, 16));
	assert_int_equal(flow.hello.length, vector_number(vector, "client_hello_length"));
}

/* The next permutation in lexical order; false behind the last. */
static bool permute(unsigned *order, unsigned n)
{
	unsigned i = n, j = n;

	while (i > 1 && order[i - 2] > order[i - 1])
		i--;
	if (i <= 1)
		return false;
	while (order[j - 1] < order[i - 2])
		j--;
	swap(&order[i - 2], &order[j - 1]);
	for (unsigned a = i - 1, b = n - 1; a < b; a++, b--)
		swap(&order[a], &order[b]);
	return true;
}

static void test_every_flow_in_every_order(void **state)
{
	unsigned flows = 0, orders = 0;
	json_t *vector;
	size_t v;

	json_array_foreach(vector_flows(), v, vector)
	{
		unsigned n = load(vector), order[DATAGRAMS_MAX];

		if (!vector_string(vector, "sni"))
			continue;
		for (unsigned i = 0; i < n; i++)
			order[i] = i;
		do {
			begin_flow();
			for (unsigned i = 0; i < n; i++)
				feed(datagrams[order[i]].octets, datagrams[order[i]].length);
			assert_int_equal(flow.state, FLOW_COMPLETE);
			assert_int_equal(flow.packets, n);
			assert_int_equal(flow.unopened, 0);
			assert_int_equal(flow.ignored, 0);
			check_answer(vector);
			orders++;
		} while (permute(order, n));
		flows++;
	}
	assert_int_equal(flows, 10);
	assert_int_equal(orders, 3 * 1 + 6 * 2 + 1 * 6);
}

/* The state after each datagram is that of the vector: no answer before all octets are there. */
static void test_the_answer_comes_with_the_last_octet(void **state)
{
	unsigned n_datagrams = 0;
	json_t *vector;
	size_t v;

	json_array_foreach(vector_flows(), v, vector)
	{
		unsigned n = load(vector), complete;
		const json_t *list = json_object_get(vector, "datagrams");

		if (!vector_string(vector, "sni"))
			continue;
		complete = vector_number(vector, "client_hello_complete_after_datagram");
		begin_flow();
		for (unsigned i = 0; i < n; i++) {
			feed(datagrams[i].octets, datagrams[i].length);
			assert_int_equal(
				flow.state, i < complete ? FLOW_INCOMPLETE : FLOW_COMPLETE);
			if (i <= complete)
				assert_int_equal(crypto_stream_contiguous(&flow.stream),
					vector_number(json_array_get(list, i),
						"contiguous_crypto_octets_after"));
			n_datagrams++;
		}
	}
	assert_int_equal(n_datagrams, 3 + 6 * 2 + 3);
}

static void test_a_forged_tag_is_not_opened(void **state)
{
	assert_int_equal(load(find_flow("syn-forged-tag")), 1);
	begin_flow();
	feed(datagrams[0].octets, datagrams[0].length);
	assert_int_equal(flow.state, FLOW_INCOMPLETE);
	assert_int_equal(flow.packets, 0);
	assert_int_equal(flow.unopened, 1);
	/* It spoils nothing. */
	load(find_flow("syn-2dg-inorder"));
	feed(datagrams[0].octets, datagrams[0].length);
	assert_int_equal(feed(datagrams[1].octets, datagrams[1].length), FLOW_COMPLETE);
	assert_int_equal(flow.packets, 2);
	assert_int_equal(flow.unopened, 1);
}

static unsigned flip_every_bit(const char *id)
{
	const json_t *vector = find_flow(id);
	unsigned n = load(vector), flips = 0;

	for (unsigned i = 0; i < n; i++) {
		size_t end = vector_number(
			json_array_get(json_object_get(vector, "datagrams"), i), "packet_end");

		for (size_t bit = 0; bit < 8 * end; bit++) {
			flow_init(&flow);
			datagrams[i].octets[bit / 8] ^= (uint8_t)(1 << bit % 8);
			flow_feed(&flow, crypto, datagrams[i].octets, datagrams[i].length);
			datagrams[i].octets[bit / 8] ^= (uint8_t)(1 << bit % 8);
			assert_int_equal(flow.state, FLOW_INCOMPLETE);
			assert_int_equal(flow.packets, 0);
			assert_true(flow.unopened + flow.ignored >= 1);
			flips++;
		}
	}
	return flips;
}

static void test_no_flipped_bit_is_authenticated(void **state)
{
	assert_int_equal(flip_every_bit("syn-1dg-v1"), 8 * 1200);
	assert_int_equal(flip_every_bit("syn-1dg-v2"), 8 * 1200);
	assert_int_equal(flip_every_bit("syn-after-retry"), 8 * 2400);
	assert_int_equal(flip_every_bit("syn-coalesced-0rtt"), 8 * 776);
}

static void test_cut_at_every_octet(void **state)
{
	unsigned cuts = 0, opened = 0;
	json_t *vector;
	size_t v;

	json_array_foreach(vector_flows(), v, vector)
	{
		unsigned n = load(vector);

		for (unsigned i = 0; i < n; i++) {
			for (size_t length = 0; length < datagrams[i].length; length++) {
				flow_init(&flow);
				feed(datagrams[i].octets, length);
				opened += flow.packets;
				cuts++;
			}
		}
	}
	assert_int_equal(cuts, 2 * 1200 * 5 + 2 * 1250 + 3 * 1200 + 2 * 1200 + 1201 + 1200);
	/* Only where no more than the 0-RTT packet behind the Initial is cut. */
	assert_int_equal(opened, 1201 - 776);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_every_flow_in_every_order),
		cmocka_unit_test(test_the_answer_comes_with_the_last_octet),
		cmocka_unit_test(test_a_forged_tag_is_not_opened),
		cmocka_unit_test(test_no_flipped_bit_is_authenticated),
		cmocka_unit_test(test_cut_at_every_octet),
	};

	return cmocka_run_group_tests_name("flow", tests, set_up, tear_down);
}
