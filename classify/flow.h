/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The beginning of one QUIC connection, as its client sends it: takes datagrams in any order until
 * the ClientHello is complete, and says what it asks for.
 *
 * Storage: all of it is in struct flow, some 21 KiB, the caller's to place; nothing is allocated,
 * and there is nothing to free. Whatever a client sends, a flow neither grows nor fails otherwise
 * than by its state.
 *
 * Trust: only packets whose tag matches change a flow. What can't be opened is counted and
 * otherwise forgotten, so nobody who did not see the client's first Initial can spoil a flow of
 * somebody else. (Who did see it can make packets as good as the client's: RFC 9001 section 5.)
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "classify/client-hello.h"
#include "classify/complaint.h"
#include "classify/crypto-stream.h"
#include "classify/initial-keys.h"

/* Initials of one flow that may come without a complete ClientHello. */
#define FLOW_PACKETS_MAX 64
/* Packets looked at in one datagram: a client coalesces at most Initial, 0-RTT and Handshake. */
#define FLOW_DATAGRAM_PACKETS 8
/* Keys: those of the client's first Initial, and after a Retry (there is at most one) new ones. */
#define FLOW_KEYS 2
/*
 * Packets kept that no key opens yet. A client that has an answer sends to the server's connection
 * ID under the keys of its first Initial (RFC 9001 section 5.2): if that one comes later, they
 * wait.
 */
#define FLOW_HELD_PACKETS 4
#define FLOW_HELD_OCTETS 4096

enum flow_state {
	FLOW_INCOMPLETE,
	FLOW_COMPLETE,
	FLOW_MALFORMED, /* authentic, but nothing that a server may go on with: see complaint */
	FLOW_TOO_MUCH,  /* more than is kept of one here: see complaint */
};

struct flow_key {
	struct initial_keys keys;
	uint32_t version;
	uint8_t dcid_length;
	uint8_t dcid[PACKET_CID_MAX];
};

/* To be read by everyone, written by flow.c only. */
struct flow {
	enum flow_state state;      /* stays, once it is not INCOMPLETE any more */
	struct client_hello hello;  /* what is known of it; all of it in FLOW_COMPLETE */
	struct complaint complaint; /* in FLOW_MALFORMED and FLOW_TOO_MUCH */
	uint32_t version;           /* of the first Initial that was opened */
	unsigned packets;           /* Initials that were opened: all that counts comes from them */
	unsigned unopened;          /* Initials that no key opens, those held included */
	unsigned ignored;           /* datagrams and Initials that are nothing for this flow */
	const char *last_ignored;   /* why, or why the last one is unopened; NULL: never */

	int64_t largest; /* packet number, -1: none */
	uint8_t scid_length;
	uint8_t scid[PACKET_CID_MAX];
	unsigned n_keys;
	struct flow_key keys[FLOW_KEYS];
	unsigned n_held;
	uint16_t held_length[FLOW_HELD_PACKETS];
	uint8_t held[FLOW_HELD_OCTETS]; /* one behind the other */
	struct crypto_stream stream;    /* offsets in hello are into its octets */
};

/* A flow that has seen nothing. */
void flow_init(struct flow *flow);

/*
 * Takes one datagram, which is not kept, and returns the state that the flow has now. In
 * FLOW_COMPLETE Initials are still opened and counted, but no longer read.
 *
 * Costs at most one derivation of keys and two openings of each Initial, and once or twice in
 * a flow's life FLOW_HELD_PACKETS more. Who calls it bounds how many datagrams a flow may bring,
 * and drops those with an Initial that have less than 1200 octets (RFC 9000 section 14.1) before.
 */
enum flow_state flow_feed(
	struct flow *flow, struct initial_crypto *crypto, const uint8_t *datagram, size_t length);

/* The server name of a complete flow, as the client wrote it; *ret_length 0 where it has none. */
const char *flow_server_name(const struct flow *flow, size_t *ret_length);
