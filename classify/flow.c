/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * From datagrams to a ClientHello: finds the Initials, opens them with the keys that fit, and gives
 * their frames to the stream.
 */
#include "classify/flow.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "classify/frames.h"
#include "common/util.h"

/* An Initial after its protection was removed; the payload is the crypto object's. */
struct opened {
	const uint8_t *payload;
	size_t length;
	int64_t number;
};

void flow_init(struct flow *flow)
{
	/* Not the buffers at the end: what is in use of them is always told by a count. */
	memset(flow, 0, offsetof(struct flow, held));
	flow->largest = -1;
	crypto_stream_init(&flow->stream);
}

const char *flow_server_name(const struct flow *flow, size_t *ret_length)
{
	*ret_length = flow->hello.server_name_length;
	return (const char *)flow->stream.octets + flow->hello.server_name;
}

static void ignore(struct flow *flow, const char *why)
{
	flow->ignored++;
	flow->last_ignored = why;
}

static const char *open_error(int error)
{
	switch (error) {
	case -EBADMSG:
		return "the tag of the Initial does not match";
	case -EPROTO:
		return "the Initial has reserved bits set";
	default:
		return "libcrypto failed";
	}
}

static bool is_key_of(const struct flow_key *key, const struct packet *packet)
{
	return key->version == packet->quic.header.version &&
	       key->dcid_length == packet->quic.header.dcid_length &&
	       memcmp(key->dcid, packet->quic.dcid, key->dcid_length) == 0;
}

static int open_with(struct flow *flow, struct initial_crypto *crypto, const struct flow_key *key,
	const struct packet *packet, struct opened *ret)
{
	return initial_open(crypto, &key->keys, packet, flow->largest, &ret->payload, &ret->length,
		&ret->number);
}

static void read_hello(struct flow *flow)
{
	int r = client_hello_read(flow->stream.octets, crypto_stream_contiguous(&flow->stream),
		&flow->hello, &flow->complaint);

	if (r == 0)
		flow->state = FLOW_COMPLETE;
	else if (r != -EAGAIN)
		flow->state = r == -EBADMSG ? FLOW_MALFORMED : FLOW_TOO_MUCH;
}

/* RFC 9000 section 7.2: it stays the same, and an Initial with another one is not looked at. */
static bool is_of_flow(const struct flow *flow, const struct packet *packet)
{
	return flow->packets == 0 ||
	       (flow->scid_length == packet->quic.scid_length &&
		       memcmp(flow->scid, packet->quic.scid, flow->scid_length) == 0);
}

/* An authentic Initial; returns whether it belongs to the flow. */
static bool accept_packet(
	struct flow *flow, const struct packet *packet, const struct opened *opened)
{
	int r;

	if (!is_of_flow(flow, packet)) {
		ignore(flow, "the Initial has another source connection ID than the first");
		return false;
	}
	if (flow->packets == 0) {
		flow->version = packet->quic.header.version;
		flow->scid_length = packet->quic.scid_length;
		memcpy(flow->scid, packet->quic.scid, flow->scid_length);
	}
	flow->packets++;
	flow->largest = MAX(flow->largest, opened->number);
	if (flow->state != FLOW_INCOMPLETE)
		return true;
	r = frames_read(&flow->stream, opened->payload, opened->length, &flow->complaint);
	if (r < 0)
		flow->state = r == -EBADMSG ? FLOW_MALFORMED : FLOW_TOO_MUCH;
	else
		read_hello(flow);
	if (flow->state == FLOW_INCOMPLETE && flow->packets == FLOW_PACKETS_MAX) {
		flow->state = FLOW_TOO_MUCH;
		flow->complaint =
			(struct complaint){"the ClientHello", "is not complete after 64 Initials",
				"the handshake", crypto_stream_contiguous(&flow->stream)};
	}
	return true;
}

static void hold(struct flow *flow, const struct packet *packet)
{
	size_t used = 0;

	flow->unopened++;
	flow->last_ignored = open_error(-EBADMSG);
	for (unsigned i = 0; i < flow->n_held; i++)
		used += flow->held_length[i];
	/* With all keys that there can be, none will come that opens it. */
	if (flow->n_keys == FLOW_KEYS || flow->n_held == FLOW_HELD_PACKETS ||
		packet->length > sizeof(flow->held) - used)
		return;
	memcpy(flow->held + used, packet->octets, packet->length);
	flow->held_length[flow->n_held++] = (uint16_t)packet->length;
}

/* Tries what was held with a new key; keeps what it does not open. */
static void open_held(struct flow *flow, struct initial_crypto *crypto, const struct flow_key *key)
{
	size_t from = 0, to = 0;
	unsigned kept = 0;

	for (unsigned i = 0; i < flow->n_held; i++) {
		size_t length = flow->held_length[i];
		struct packet packet;
		struct opened opened;

		if (packet_read(flow->held + from, length, &packet) == 0 &&
			open_with(flow, crypto, key, &packet, &opened) == 0) {
			flow->unopened--;
			accept_packet(flow, &packet, &opened);
		} else {
			memmove(flow->held + to, flow->held + from, length);
			flow->held_length[kept++] = (uint16_t)length;
			to += length;
		}
		from += length;
	}
	flow->n_held = kept;
}

/* -ENOENT: none of the flow's keys opens it, and there may be another. */
static int open_with_known(struct flow *flow, struct initial_crypto *crypto,
	const struct packet *packet, struct opened *ret)
{
	int r;

	for (unsigned i = 0; i < flow->n_keys; i++)
		if (is_key_of(&flow->keys[i], packet))
			return open_with(flow, crypto, &flow->keys[i], packet, ret);
	for (unsigned i = 0; i < flow->n_keys; i++) {
		if (flow->keys[i].version != packet->quic.header.version)
			continue;
		r = open_with(flow, crypto, &flow->keys[i], packet, ret);
		if (r != -EBADMSG)
			return r;
	}
	return flow->n_keys == FLOW_KEYS ? -EBADMSG : -ENOENT;
}

static int derive(struct initial_crypto *crypto, const struct packet *packet, struct flow_key *ret)
{
	ret->version = packet->quic.header.version;
	ret->dcid_length = packet->quic.header.dcid_length;
	memcpy(ret->dcid, packet->quic.dcid, ret->dcid_length);
	return initial_keys_derive(
		crypto, ret->version, ret->dcid, ret->dcid_length, INITIAL_FROM_CLIENT, &ret->keys);
}

/* candidate: keys derived earlier from the same datagram, dcid_length 255 where there are none. */
static void feed_initial(struct flow *flow, struct initial_crypto *crypto,
	const struct packet *packet, struct flow_key *candidate)
{
	struct opened opened;
	int r = open_with_known(flow, crypto, packet, &opened);

	if (r == 0) {
		accept_packet(flow, packet, &opened);
		return;
	}
	if (r == -ENOENT) {
		r = is_key_of(candidate, packet) ? 0 : derive(crypto, packet, candidate);
		if (r == 0)
			r = open_with(flow, crypto, candidate, packet, &opened);
		if (r == 0) {
			if (accept_packet(flow, packet, &opened)) {
				flow->keys[flow->n_keys] = *candidate;
				open_held(flow, crypto, &flow->keys[flow->n_keys++]);
			}
			return;
		}
	}
	if (r == -EBADMSG)
		hold(flow, packet);
	else
		ignore(flow, open_error(r));
}

static bool same_connection(const struct packet *a, const struct packet *b)
{
	return a->quic.header.version == b->quic.header.version &&
	       a->quic.header.dcid_length == b->quic.header.dcid_length &&
	       memcmp(a->quic.dcid, b->quic.dcid, a->quic.header.dcid_length) == 0;
}

static const char *read_error(int error)
{
	switch (error) {
	case -ENOMSG:
		return "the datagram has no Initial";
	case -EPROTONOSUPPORT:
		return "the version is neither 1 nor 2";
	default:
		return "the datagram ends within a header, or a length in it is wrong";
	}
}

enum flow_state flow_feed(
	struct flow *flow, struct initial_crypto *crypto, const uint8_t *datagram, size_t length)
{
	struct flow_key candidate = {.dcid_length = UINT8_MAX};
	struct packet packet, first;
	bool any = false;
	size_t offset = 0;
	int r = -ENOMSG;

	for (unsigned n = 0; n < FLOW_DATAGRAM_PACKETS && offset < length; n++) {
		r = packet_read(datagram + offset, length - offset, &packet);
		if (r < 0)
			break;
		if (n == 0)
			first = packet;
		/* RFC 9000 section 12.2: coalesced packets are of one connection. */
		if (!same_connection(&first, &packet))
			break;
		if (packet.quic.header.kind == QUIC_INITIAL) {
			any = true;
			feed_initial(flow, crypto, &packet, &candidate);
		}
		offset += packet.length;
	}
	if (!any)
		ignore(flow, read_error(r < 0 ? r : -ENOMSG));
	return flow->state;
}
