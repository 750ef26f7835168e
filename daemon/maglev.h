/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Fills a Maglev lookup table (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load
 * Balancer", NSDI 2016, section 3.4): from a hash to a slot, each slot with its weight's share, and
 * few entries change hands when a slot comes or goes.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

struct maglev_member {
	uint16_t slot;
	uint16_t weight; /* 1 .. 1000 */
	uint64_t seed;   /* decides the member's permutation: the same for the same member always */
};

/*
 * How many entries a table for these members should have: a hundred for the lightest, as far as
 * max, a prime, goes. As many as needed and no more, since each packet of a new connection looks at
 * one of them, and a small table stays in the processor's cache.
 */
uint32_t maglev_size(const struct maglev_member *members, size_t n_members, uint32_t max);

/*
 * Fills entries[size] (size a prime above n_members). The result depends on the set of members
 * alone, not on their order. A member's share of entries is its weight over the sum within one
 * entry a round, so within n_members entries. n_members 0 is -EINVAL. Errors: -ENOMEM.
 */
int maglev_fill(
	uint16_t *entries, size_t size, const struct maglev_member *members, size_t n_members);
