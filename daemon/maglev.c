/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Fills the lookup table that maps a hash to a slot.
 *
 * WHY: the table must spread new connections by weight and yet change as little as possible when a
 * worker comes or goes, for every changed entry sends the flows that rely on it elsewhere. Maglev
 * hashing gives both: each member walks its own permutation of the table and takes the first entry
 * that is free; how often it may do so is its weight.
 *
 * A round is the time in which the heaviest member takes one entry; a member of weight w takes its
 * k-th in round ceil(k * heaviest / w). Members wait in one list for each round, so that a light
 * member costs nothing in the rounds that it sits out: the whole takes O(size log size) steps,
 * whatever the weights are. Storage: one allocation for the time of the call.
 */
#include "daemon/maglev.h"

#include <stdbool.h>
#include <string.h>

#include "common/util.h"

#define WEIGHT_MAX 1000
#define NONE UINT32_MAX

struct candidate {
	uint64_t seed;
	uint32_t position; /* next entry of its permutation */
	uint32_t skip;
	uint32_t taken;
	uint32_t next; /* in the list of its round */
	uint16_t slot;
	uint16_t weight;
};

struct round {
	uint32_t first;
	uint32_t last;
};

/* The finalizer of MurmurHash3's 64-bit variant with other constants (Stafford's "Mix13"). */
static uint64_t mix(uint64_t value)
{
	value ^= value >> 30;
	value *= 0xbf58476d1ce4e5b9ULL;
	value ^= value >> 27;
	value *= 0x94d049bb133111ebULL;
	return value ^ (value >> 31);
}

static int compare_candidates(const void *a, const void *b)
{
	const struct candidate *left = a, *right = b;

	if (left->seed != right->seed)
		return left->seed < right->seed ? -1 : 1;
	if (left->slot != right->slot)
		return left->slot < right->slot ? -1 : 1;
	return (int)left->weight - (int)right->weight;
}

static void append(struct round *round, struct candidate *candidates, uint32_t i)
{
	candidates[i].next = NONE;
	if (round->first == NONE)
		round->first = i;
	else
		candidates[round->last].next = i;
	round->last = i;
}

/* The next free entry of the candidate's permutation. There is one. */
static uint32_t take_entry(struct candidate *candidate, uint64_t *used, uint32_t size)
{
	uint32_t entry;

	do {
		entry = candidate->position;
		candidate->position += candidate->skip;
		if (candidate->position >= size)
			candidate->position -= size;
	} while (used[entry / 64] >> entry % 64 & 1);
	used[entry / 64] |= 1ULL << entry % 64;
	candidate->taken++;
	return entry;
}

static void fill(uint16_t *entries, uint32_t size, struct candidate *candidates, uint32_t heaviest,
	struct round *rounds, uint32_t n_rounds, uint64_t *used)
{
	uint32_t filled = 0;

	for (uint32_t r = 0; r < n_rounds; r++) {
		uint32_t next;

		for (uint32_t i = rounds[r].first; i != NONE; i = next) {
			struct candidate *candidate = &candidates[i];
			uint64_t turn;

			next = candidate->next;
			entries[take_entry(candidate, used, size)] = candidate->slot;
			if (++filled == size)
				return;
			turn = (((uint64_t)candidate->taken + 1) * heaviest + candidate->weight -
				       1) /
			       candidate->weight;
			if (turn <= n_rounds)
				append(&rounds[turn - 1], candidates, i);
		}
	}
}

uint32_t maglev_size(const struct maglev_member *members, size_t n_members, uint32_t max)
{
	static const uint32_t primes[] = {4093, 16381};
	uint64_t sum = 0;
	uint32_t lightest = WEIGHT_MAX;

	for (size_t i = 0; i < n_members; i++) {
		sum += members[i].weight;
		lightest = MIN(lightest, MAX(members[i].weight, 1));
	}
	for (size_t i = 0; i < ARRAY_SIZE(primes); i++)
		if (primes[i] < max && sum * 100 <= (uint64_t)primes[i] * lightest)
			return primes[i];
	return max;
}

int maglev_fill(
	uint16_t *entries, size_t size, const struct maglev_member *members, size_t n_members)
{
	_cleanup_free_ void *memory = NULL;
	struct candidate *candidates;
	struct round *rounds;
	uint64_t *used;
	size_t n_words = size / 64 + 1;
	uint32_t heaviest = 0;
	uint64_t sum = 0, n_rounds;

	if (!n_members || size <= n_members || size > INT32_MAX)
		return -EINVAL;
	for (size_t i = 0; i < n_members; i++) {
		if (!members[i].weight || members[i].weight > WEIGHT_MAX)
			return -EINVAL;
		heaviest = MAX(heaviest, members[i].weight);
		sum += members[i].weight;
	}
	/* After r rounds at least r * sum / heaviest - n_members entries are taken. */
	n_rounds = ((uint64_t)size + n_members) * heaviest / sum + 1;

	memory = malloc(n_words * sizeof(*used) + n_members * sizeof(*candidates) +
			n_rounds * sizeof(*rounds));
	if (!memory)
		return -ENOMEM;
	/* A bit for each entry: nearly all looks at a table that fills are in vain, and these 8 KiB
	 * stay near. */
	used = memory;
	candidates = (struct candidate *)(used + n_words);
	rounds = (struct round *)(candidates + n_members);
	memset(used, 0, n_words * sizeof(*used));
	for (uint64_t r = 0; r < n_rounds; r++)
		rounds[r].first = NONE;

	for (size_t i = 0; i < n_members; i++) {
		uint64_t seed = members[i].seed;

		candidates[i] = (struct candidate){
			.seed = seed,
			.slot = members[i].slot,
			.weight = members[i].weight,
			.position = (uint32_t)(mix(seed + 0x9e3779b97f4a7c15ULL) % size),
			.skip = (uint32_t)(mix(seed ^ 0xd1b54a32d192ed03ULL) % (size - 1)) + 1,
		};
	}
	qsort(candidates, n_members, sizeof(*candidates), compare_candidates);
	for (uint32_t i = 0; i < n_members; i++) {
		uint32_t first_turn = (heaviest + candidates[i].weight - 1) / candidates[i].weight;

		if (first_turn <= n_rounds)
			append(&rounds[first_turn - 1], candidates, i);
	}
	fill(entries, (uint32_t)size, candidates, heaviest, rounds, (uint32_t)n_rounds, used);
	return 0;
}
