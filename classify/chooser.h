/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The classifier without its process: takes datagrams of connections that nobody knows, finds out
 * which service each is for, writes that where the program in the kernel reads it, and gives the
 * datagrams back. docs/sni-routing.md, "The classifier".
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "bpf/share_layout.h"
#include "classify/held.h"
#include "classify/share-rules.h"

/*
 * A connection is held so long at most: a client that knows nothing of its path sends again after
 * 0.999 s (RFC 9002 section 6.2), and what comes then must find what is held of it.
 */
#define CHOOSER_HELD_NSEC 2000000000ULL

struct chooser {
	/* The caller's, set before chooser_init(). */
	struct share_page *page;
	struct flow_set *choices;        /* page->choice_mask + 1 of them */
	const struct share_rules *rules; /* checked; may be replaced between two calls */
	int raw_ipv4, raw_ipv6;
	/* Its own. */
	struct quic_hash_key hash_key;
	uint32_t choice_mask;
	struct initial_crypto *crypto;
	struct held_table *held;
	struct flow_set *recent; /* that were chosen less than a second ago */
};

/* Returns 0, -ENOMEM, or what initial_crypto_new() says. Nothing is freed: it lives as long as the
 * process. */
int chooser_init(struct chooser *chooser);

/*
 * A datagram from the group's socket. traffic_class: the octet of DSCP and ECN. now_nsec, here and
 * below: CLOCK_MONOTONIC_COARSE, the clock of the program, or a choice could seem to be of the
 * future there.
 */
void chooser_take(struct chooser *chooser, const struct path *path, uint8_t traffic_class,
	const uint8_t *datagram, size_t length, uint64_t now_nsec);

/* Gives up what was held too long. Returns when there will be the next, 0: nothing is held. */
uint64_t chooser_expire(struct chooser *chooser, uint64_t now_nsec);

/* More of what the page counts. One that is replaced and the next one may both write there. */
static inline void chooser_count(struct chooser *chooser, enum share_counter counter, unsigned n)
{
	uint64_t *place = (uint64_t *)&chooser->page->counter[counter];

	__atomic_fetch_add(place, n, __ATOMIC_RELAXED);
}
