/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A datagram's way: what it is (read_beginning), whether its connection was chosen a moment ago
 * (come_again), what the connection's ClientHello has so far (take_initial), and where that is
 * enough, the choice and all that was held for it (choose), or the end of all that (drop).
 */
#include "classify/chooser.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "classify/word-set.h"
#include "common/util.h"

/* Connections chosen in the last second, in sets of eight: more than can come in one. */
#define RECENT_SETS 4096
#define RECENT_TICKS 4 /* of 0.268 s */
/* A recent connection: whom it was given to, and how many of its datagrams may come again. */
#define RECENT_SERVICE_SHIFT 8
#define RECENT_LEFT 0xff

#define DATAGRAM_WITH_INITIAL_MIN 1200 /* RFC 9000 section 14.1 */

/* What is known of a datagram before it is opened. */
struct beginning {
	struct held_key key;
	uint64_t hash, cid_hash;
	bool has_initial;
	bool readable; /* version 1 or 2 */
};

struct arrival {
	const struct path *path;
	uint8_t traffic_class;
	const uint8_t *datagram;
	size_t length;
	uint64_t now_nsec;
};

static uint32_t tick_of(uint64_t now_nsec)
{
	return (uint32_t)(now_nsec >> FLOW_TICK_SHIFT);
}

int chooser_init(struct chooser *chooser)
{
	chooser->hash_key = chooser->page->hash_key;
	chooser->choice_mask = chooser->page->choice_mask;
	chooser->held = held_table_new();
	chooser->recent = mmap(NULL, RECENT_SETS * sizeof(struct flow_set), PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (!chooser->held || chooser->recent == MAP_FAILED)
		return -ENOMEM;
	return initial_crypto_new(&chooser->crypto);
}

/* ---- What it is ---- */

/* Of connection ID, addresses and the client's port, under a key that nobody outside knows. */
static uint64_t hash_key_of(const struct chooser *chooser, const struct held_key *key)
{
	uint64_t word[4], hash = quic_cid_hash(&chooser->hash_key, key->dcid, key->dcid_length);

	memcpy(&word[0], &key->path.client, 16);
	memcpy(&word[2], &key->path.own, 16);
	hash ^= quic_hash(&chooser->hash_key, word[0], word[1] ^ hash, key->path.client_port);
	return quic_hash(&chooser->hash_key, word[2], word[3] ^ hash, QUIC_HASH_FLOW | hash >> 32);
}

/* False: nothing that could begin a connection. */
static bool read_beginning(
	const struct chooser *chooser, const struct arrival *arrival, struct beginning *ret)
{
	struct packet packet;
	size_t offset = 0;
	int r;

	r = packet_read(arrival->datagram, arrival->length, &packet);
	if (r == -EPROTONOSUPPORT)
		packet.quic = quic_read_packet(arrival->datagram, arrival->length, 0);
	else if (r < 0)
		return false;
	*ret = (struct beginning){
		.key.path = *arrival->path,
		.key.dcid_length = packet.quic.header.dcid_length,
		.readable = r == 0,
	};
	memcpy(ret->key.dcid, packet.quic.dcid, MIN(ret->key.dcid_length, QUIC_CID_OCTETS));
	ret->cid_hash =
		quic_cid_hash(&chooser->hash_key, packet.quic.dcid, packet.quic.header.dcid_length);
	ret->hash = hash_key_of(chooser, &ret->key);
	if (!ret->readable)
		return true;
	for (unsigned n = 0; n < FLOW_DATAGRAM_PACKETS && offset < arrival->length; n++) {
		if (packet_read(arrival->datagram + offset, arrival->length - offset, &packet) < 0)
			break;
		if (n == 0 && packet.quic.header.kind == QUIC_HANDSHAKE)
			return false;
		ret->has_initial = ret->has_initial || packet.quic.header.kind == QUIC_INITIAL;
		offset += packet.length;
	}
	return true;
}

/* ---- Giving back ---- */

static void give_back(struct chooser *chooser, const struct path *path, uint8_t traffic_class,
	const uint8_t *datagram, size_t length)
{
	int r = raw_datagram_send(
		chooser->raw_ipv4, chooser->raw_ipv6, path, traffic_class, datagram, length);

	chooser_count(chooser, r < 0 ? SHARE_LOST : SHARE_RESENT, 1);
}

static void write_choice(
	struct chooser *chooser, uint64_t cid_hash, uint32_t service, uint64_t now_nsec)
{
	struct flow_set *set = &chooser->choices[quic_flow_set(cid_hash) & chooser->choice_mask];

	word_set_put(
		set, quic_flow_tag(cid_hash), (uint16_t)service, tick_of(now_nsec), CHOICE_TICKS);
}

static struct flow_set *recent_set(const struct chooser *chooser, uint64_t hash)
{
	return &chooser->recent[quic_flow_set(hash) & (RECENT_SETS - 1)];
}

/* service: SHARE_NONE: what comes for it is dropped. */
static void remember(
	struct chooser *chooser, uint64_t hash, uint32_t service, unsigned n, uint64_t now_nsec)
{
	word_set_put(recent_set(chooser, hash), quic_flow_tag(hash),
		(uint16_t)(service << RECENT_SERVICE_SHIFT | MIN(n, RECENT_LEFT)),
		tick_of(now_nsec), RECENT_TICKS);
}

/* The choice, and that n datagrams are given back, each of which may come here once more. */
static void note_choice(struct chooser *chooser, uint64_t hash, uint64_t cid_hash, uint32_t service,
	unsigned n, uint64_t now_nsec)
{
	write_choice(chooser, cid_hash, service, now_nsec);
	remember(chooser, hash, service, n, now_nsec);
}

/* All that is held of a connection, and the caller's n_more, to its service; it is let go. */
static void release(struct chooser *chooser, struct held *held, uint32_t service, unsigned n_more,
	uint64_t now_nsec)
{
	size_t offset = 0;

	note_choice(
		chooser, held->hash, held->cid_hash, service, held->n_datagrams + n_more, now_nsec);
	for (unsigned i = 0; i < held->n_datagrams; i++) {
		give_back(chooser, &held->key.path, held->datagram[i].traffic_class,
			held->octets + offset, held->datagram[i].length);
		offset += held->datagram[i].length;
	}
	held_remove(chooser->held, held);
}

/*
 * One that can't be held any longer, to the default service. A 0-RTT packet alone says nothing that
 * could choose: what the client sends again finds its way when its Initial has come.
 */
static void give_up(
	struct chooser *chooser, struct held *held, enum share_counter why, uint64_t now_nsec)
{
	if (held->authentic) {
		chooser_count(chooser, why, 1);
		release(chooser, held, chooser->rules->default_service, 0, now_nsec);
	} else {
		chooser_count(chooser, SHARE_LOST, held->n_datagrams);
		held_remove(chooser->held, held);
	}
}

/* ---- Choosing ---- */

static uint32_t service_of(struct chooser *chooser, const struct flow *flow)
{
	static const enum share_counter counters[] = {
		[SHARE_REASON_NAME] = SHARE_BY_NAME,
		[SHARE_REASON_SUFFIX] = SHARE_BY_SUFFIX,
		[SHARE_REASON_PROTOCOL] = SHARE_BY_PROTOCOL,
		[SHARE_REASON_NO_NAME] = SHARE_NO_NAME,
		[SHARE_REASON_NO_MATCH] = SHARE_NO_MATCH,
	};
	struct share_answer answer;
	const char *name;
	size_t length;

	if (flow->state == FLOW_TOO_MUCH) {
		chooser_count(chooser, SHARE_TOO_MANY, 1);
		return chooser->rules->default_service;
	}
	name = flow_server_name(flow, &length);
	share_rules_match(chooser->rules, name, length, flow->stream.octets + flow->hello.protocols,
		flow->hello.protocols_length, &answer);
	chooser_count(chooser, counters[answer.reason], 1);
	return answer.service;
}

/* The connection's, and then this datagram, for which there may be no room among them. */
static void choose(
	struct chooser *chooser, struct held *held, uint32_t service, const struct arrival *arrival)
{
	release(chooser, held, service, 1, arrival->now_nsec);
	give_back(
		chooser, arrival->path, arrival->traffic_class, arrival->datagram, arrival->length);
}

/*
 * A malformed one: nobody gets it, what was held of it included. Nor is it answered, since its
 * server alone has the secrets for that, and which one that is it has not said.
 */
static void drop(struct chooser *chooser, struct held *held, uint64_t now_nsec)
{
	chooser_count(chooser, SHARE_MALFORMED, held->n_datagrams + 1);
	remember(chooser, held->hash, SHARE_NONE, 0, now_nsec);
	held_remove(chooser->held, held);
}

static struct held *place_for(struct chooser *chooser, const struct beginning *beginning)
{
	struct held *held = held_spare(chooser->held);

	held->key = beginning->key;
	held->hash = beginning->hash;
	held->cid_hash = beginning->cid_hash;
	flow_init(&held->flow);
	return held;
}

static void put(struct chooser *chooser, struct held *held, bool authentic, uint64_t now_nsec)
{
	struct held *oldest = held_in_the_way(chooser->held, authentic);

	held_put(chooser->held, held, authentic, now_nsec);
	if (oldest)
		give_up(chooser, oldest, SHARE_TOO_MANY, now_nsec);
}

/* A datagram that belongs to the connection, which stays undecided if it can. */
static void keep(struct chooser *chooser, struct held *held, const struct arrival *arrival)
{
	if (held_keep(held, arrival->traffic_class, arrival->datagram, arrival->length))
		return;
	if (!held->authentic) {
		chooser_count(chooser, SHARE_LOST, 1);
		return;
	}
	chooser_count(chooser, SHARE_TOO_MANY, 1);
	choose(chooser, held, chooser->rules->default_service, arrival);
}

/* 0-RTT alone: waits for its Initial, with those before it. */
static void take_early(struct chooser *chooser, struct held *held,
	const struct beginning *beginning, const struct arrival *arrival)
{
	if (!held) {
		held = place_for(chooser, beginning);
		put(chooser, held, false, arrival->now_nsec);
	}
	keep(chooser, held, arrival);
}

/* held: the connection, NULL: none yet. */
static void take_initial(struct chooser *chooser, struct held *held,
	const struct beginning *beginning, const struct arrival *arrival)
{
	struct held *known = held;
	unsigned packets, unopened;

	if (!held)
		held = place_for(chooser, beginning);
	packets = held->flow.packets;
	unopened = held->flow.unopened;
	flow_feed(&held->flow, chooser->crypto, arrival->datagram, arrival->length);
	chooser_count(chooser, SHARE_UNAUTHENTICATED, held->flow.unopened - unopened);
	/* Nothing that the client of this connection has made, nor would its server read it. */
	if (held->flow.packets == packets) {
		if (held->flow.unopened == unopened)
			chooser_count(chooser, SHARE_NO_INITIAL, 1);
		return;
	}
	/* What is decided at once takes nobody's place. */
	if (held->flow.state == FLOW_MALFORMED) {
		drop(chooser, held, arrival->now_nsec);
	} else if (held->flow.state != FLOW_INCOMPLETE) {
		choose(chooser, held, service_of(chooser, &held->flow), arrival);
	} else {
		if (!known)
			put(chooser, held, true, arrival->now_nsec);
		else if (!held->authentic)
			held_set_authentic(chooser->held, held, arrival->now_nsec);
		keep(chooser, held, arrival);
	}
}

/*
 * A datagram of a connection that was chosen a moment ago: the program did not find the choice. Or
 * that was malformed.
 */
static bool come_again(
	struct chooser *chooser, const struct beginning *beginning, const struct arrival *arrival)
{
	uint32_t tag = quic_flow_tag(beginning->hash), now = tick_of(arrival->now_nsec), service;
	uint64_t *word =
		word_set_find(recent_set(chooser, beginning->hash), tag, now, RECENT_TICKS);
	uint16_t value;

	if (!word)
		return false;
	value = (uint16_t)(*word >> 16);
	service = value >> RECENT_SERVICE_SHIFT;
	if (service == SHARE_NONE) {
		chooser_count(chooser, SHARE_MALFORMED, 1);
		return true;
	}
	if ((value & RECENT_LEFT) == 0) {
		chooser_count(chooser, SHARE_LOOPED, 1);
		return true;
	}
	word_set_store(word, tag, value - 1, now);
	write_choice(chooser, beginning->cid_hash, service, arrival->now_nsec);
	give_back(
		chooser, arrival->path, arrival->traffic_class, arrival->datagram, arrival->length);
	return true;
}

void chooser_take(struct chooser *chooser, const struct path *path, uint8_t traffic_class,
	const uint8_t *datagram, size_t length, uint64_t now_nsec)
{
	const struct arrival arrival = {path, traffic_class, datagram, length, now_nsec};
	struct beginning beginning;
	struct held *held;

	chooser_count(chooser, SHARE_DATAGRAMS, 1);
	if (!read_beginning(chooser, &arrival, &beginning)) {
		chooser_count(chooser, SHARE_NO_INITIAL, 1);
		return;
	}
	if (beginning.has_initial && length < DATAGRAM_WITH_INITIAL_MIN) {
		chooser_count(chooser, SHARE_TOO_SHORT, 1);
		return;
	}
	if (come_again(chooser, &beginning, &arrival))
		return;
	if (!beginning.readable) {
		chooser_count(chooser, SHARE_NO_NAME, 1);
		note_choice(chooser, beginning.hash, beginning.cid_hash,
			chooser->rules->default_service, 1, now_nsec);
		give_back(chooser, path, traffic_class, datagram, length);
		return;
	}
	held = held_find(chooser->held, &beginning.key, beginning.hash);
	if (beginning.has_initial)
		take_initial(chooser, held, &beginning, &arrival);
	else
		take_early(chooser, held, &beginning, &arrival);
}

uint64_t chooser_expire(struct chooser *chooser, uint64_t now_nsec)
{
	uint64_t next = 0;

	for (unsigned authentic = 0; authentic < 2; authentic++) {
		struct held *held;

		while ((held = held_oldest(chooser->held, authentic)) &&
			now_nsec - held->since_nsec >= CHOOSER_HELD_NSEC)
			give_up(chooser, held, SHARE_TOO_SLOW, now_nsec);
		if (held && (next == 0 || held->since_nsec + CHOOSER_HELD_NSEC < next))
			next = held->since_nsec + CHOOSER_HELD_NSEC;
	}
	return next;
}
