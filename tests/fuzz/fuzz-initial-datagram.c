/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Any octets as the datagrams of one flow. Hardly any of them would get past the tag, so each
 * record says whether it is a datagram as it is or a payload to be sealed first, and under which
 * keys: so the fuzzer plays client, server and stranger alike.
 */
#include <stdlib.h>
#include <string.h>

#include "classify/client-hello.c"
#include "classify/frames.c"
#include "classify/crypto-stream.c"
#include "classify/flow.c"
#include "classify/initial-keys.c"
#include "classify/packet.c"
#include "tests/unit/initial-seal.h"

#define PAYLOAD_OCTETS 1400

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct initial_crypto *crypto;

static void check(bool condition)
{
	if (!condition)
		abort();
}

/* A datagram of up to three Initials, as the bits of how say. */
static size_t make_datagram(
	uint8_t how, uint8_t number, const uint8_t *payload, size_t length, uint8_t *out)
{
	struct seal seal = {
		.version = how & 1 ? QUIC_VERSION_2 : QUIC_VERSION_1,
		.dcid = {1, 2, 3, 4, 5, 6, 7, how >> 1 & 3},
		.dcid_length = 8,
		.scid_length = how & 8 ? 4 : 0,
		.number = number,
		.number_length = 1 + (number & 3),
		.reserved = number == 0xff,
	};
	static const uint8_t first[8] = {1, 2, 3, 4, 5, 6, 7, 0};
	uint8_t padded[PAYLOAD_OCTETS + 4] = {0};
	struct initial_keys keys;
	size_t n = 0;

	memcpy(padded, payload, length);
	/* Under its own connection ID, or that of the first. */
	check(initial_keys_derive(crypto, seal.version, how & 0x10 ? first : seal.dcid, 8,
		      INITIAL_FROM_CLIENT, &keys) == 0);
	for (unsigned i = 0; i <= (how >> 5 & 1) + (how >> 6 & 1u); i++) {
		size_t made = seal_initial(&seal, &keys, padded, length < 4 ? 4 : length, out + n);

		check(made > 0);
		n += made;
		seal.number++;
	}
	return n;
}

static void check_flow(const struct flow *flow)
{
	size_t held = 0, length;

	check(flow->n_keys <= FLOW_KEYS && flow->n_held <= FLOW_HELD_PACKETS);
	for (unsigned i = 0; i < flow->n_held; i++)
		held += flow->held_length[i];
	check(held <= FLOW_HELD_OCTETS);
	check(flow->unopened >= flow->n_held);
	check((flow->packets == 0) == (flow->n_keys == 0));
	check(flow->packets > 0 || flow->state == FLOW_INCOMPLETE);
	check((flow->state == FLOW_MALFORMED || flow->state == FLOW_TOO_MUCH) ==
		(flow->complaint.subject != NULL));
	if (flow->state != FLOW_COMPLETE)
		return;
	check(flow->hello.length <= crypto_stream_contiguous(&flow->stream));
	flow_server_name(flow, &length);
	check(flow->hello.server_name + length <= flow->hello.length);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static uint8_t made[3 * (PAYLOAD_OCTETS + SEAL_OVERHEAD)];
	static struct flow flow;
	enum flow_state before = FLOW_INCOMPLETE;

	if (!crypto)
		check(initial_crypto_new(&crypto) == 0);
	flow_init(&flow);
	while (size >= 4) {
		size_t length = (size_t)data[2] << 8 | data[3];
		uint8_t how = data[0], number = data[1], *datagram;
		const uint8_t *octets = data + 4;
		size_t n;

		size -= 4;
		length = length < size ? length : size;
		length = length < PAYLOAD_OCTETS ? length : PAYLOAD_OCTETS;
		data += 4 + length;
		size -= length;
		n = length;
		if (!(how & 0x80)) {
			n = make_datagram(how, number, octets, length, made);
			octets = made;
		}
		datagram = malloc(n ? n : 1);
		check(datagram != NULL);
		memcpy(datagram, octets, n);
		flow_feed(&flow, crypto, datagram, n);
		free(datagram);
		check_flow(&flow);
		check(before == FLOW_INCOMPLETE || before == flow.state);
		before = flow.state;
	}
	return 0;
}
