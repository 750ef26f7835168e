/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The connections whose ClientHello is not complete yet, with their datagrams: as many as HELD_MAX,
 * all in memory that is taken once, so that nothing grows. Found by the addresses and the first
 * connection ID, and known in the order in which they came, the longest held first.
 *
 * There are two orders. One that has shown an Initial with a tag that matches was made by somebody
 * who has it, and is worth its place. A 0-RTT packet can be made by everybody; the few that wait
 * for their Initial have places of their own, and can't push out others.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "bpf/quic_layout.h"
#include "classify/flow.h"
#include "common/raw-datagram.h"

#define HELD_MAX 1024  /* connections */
#define HELD_EARLY 128 /* of these: without an Initial */
#define HELD_DATAGRAMS 8
#define HELD_OCTETS 12288

struct held_key {
	struct path path;
	uint8_t dcid_length;
	uint8_t dcid[QUIC_CID_OCTETS]; /* zeros behind its end */
};

/* One beginning of a connection. */
struct held {
	struct held_key key;
	uint64_t hash;     /* of the key */
	uint64_t cid_hash; /* of the connection ID alone, for the choice */
	uint64_t since_nsec;
	bool authentic; /* written by held_put(), held_set_authentic() */
	uint16_t next;  /* of the bucket, or of the free ones */
	uint16_t older, newer;
	uint16_t n_datagrams, n_octets;
	struct {
		uint16_t length;
		uint8_t traffic_class;
	} datagram[HELD_DATAGRAMS];
	uint8_t octets[HELD_OCTETS]; /* one behind the other */
	struct flow flow;
};

/* All of them. */
struct held_table;

/* NULL: no memory. Pages that were never used cost none. */
struct held_table *held_table_new(void);
/* NULL where there is none. */
struct held *held_find(struct held_table *table, const struct held_key *key, uint64_t hash);
/*
 * A place that is not in the table yet: for looking at a datagram before anything is given up for
 * it. The next call returns the same one, unless held_put() or held_remove() was called between.
 * Its key, hashes and flow are the caller's to set.
 */
struct held *held_spare(struct held_table *table);
/* Which one has to be given up for another like it to be put; NULL: none, there is room. */
struct held *held_in_the_way(const struct held_table *table, bool authentic);
/*
 * Puts what held_spare() gave into the table, as the youngest. What was in the way is to be removed
 * before anything else is done.
 */
void held_put(struct held_table *table, struct held *held, bool authentic, uint64_t now_nsec);
/* Its first Initial has come: it is the youngest of those that have one. */
void held_set_authentic(struct held_table *table, struct held *held, uint64_t now_nsec);
/* The oldest; NULL: none. */
struct held *held_oldest(const struct held_table *table, bool authentic);
/* Lets it go: its memory is that of the next held_spare(). Of the spare one: nothing is to be done.
 */
void held_remove(struct held_table *table, struct held *held);
unsigned held_count(const struct held_table *table, bool authentic);

/* Keeps a datagram; false: it is too much for one connection. */
bool held_keep(struct held *held, uint8_t traffic_class, const uint8_t *datagram, size_t length);
