/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Sets of eight words of tag, value and tick, as in the flow map (bpf/layout.h), for the two tables
 * of the classifier: the choices, which the program in the kernel reads, and the flows that were
 * chosen a moment ago. What is put is there: a full set loses its oldest word.
 */
#pragma once

#include <stdint.h>

#include "bpf/layout.h"

/* The word of the tag that is not older than max_age ticks; NULL: none. */
static inline uint64_t *word_set_find(
	struct flow_set *set, uint32_t tag, uint32_t now, uint32_t max_age)
{
	for (unsigned i = 0; i < FLOW_WAYS; i++) {
		uint64_t word = set->word[i];

		if (word >> 32 == tag && flow_age(word, now) <= max_age)
			return (uint64_t *)&set->word[i];
	}
	return NULL;
}

/* One store, so that whoever reads at the same time sees the word before or this one. */
static inline void word_set_store(uint64_t *word, uint32_t tag, uint16_t value, uint32_t now)
{
	__atomic_store_n(word, flow_word(tag, value, now), __ATOMIC_RELAXED);
}

/* Puts a word: where its tag stands, else where a word is free or too old, else over the oldest. */
static inline void word_set_put(
	struct flow_set *set, uint32_t tag, uint16_t value, uint32_t now, uint32_t max_age)
{
	unsigned best = 0;
	uint32_t best_age = 0;

	for (unsigned i = 0; i < FLOW_WAYS; i++) {
		uint64_t word = set->word[i];
		uint32_t age = word ? flow_age(word, now) : UINT32_MAX;

		if (word >> 32 == tag) {
			best = i;
			break;
		}
		if (age > max_age)
			age = UINT32_MAX;
		if (age > best_age) {
			best = i;
			best_age = age;
		}
	}
	word_set_store((uint64_t *)&set->word[best], tag, value, now);
}
