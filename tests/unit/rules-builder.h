/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Rules of a shared listener for tests, written from the description of the format alone: as the
 * daemon would compile them, or with whatever a test wants to be wrong.
 */
#pragma once

#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "classify/share-rules.h"

#define RULES_MAX 128

/* name NULL: any; "*.example": a suffix. protocol NULL: any. */
struct rule {
	const char *name;
	const char *protocol;
	uint32_t service;
};

static inline enum share_name_kind rule_kind(const struct rule *rule)
{
	if (!rule->name)
		return SHARE_NAME_ANY;
	return rule->name[0] == '*' ? SHARE_NAME_SUFFIX : SHARE_NAME_EXACT;
}

static inline const char *rule_text(const struct rule *rule)
{
	if (!rule->name)
		return "";
	return rule->name[0] == '*' ? rule->name + 1 : rule->name;
}

static inline int rule_name_order(const struct rule *a, const struct rule *b)
{
	size_t a_length = strlen(rule_text(a)), b_length = strlen(rule_text(b));

	if (rule_kind(a) != rule_kind(b))
		return rule_kind(a) < rule_kind(b) ? -1 : 1;
	if (a_length != b_length)
		return a_length < b_length ? -1 : 1;
	return memcmp(rule_text(a), rule_text(b), a_length);
}

/* Those for any protocol behind the others of the name. */
static inline int rule_order(const void *a, const void *b)
{
	const struct rule *first = a, *second = b;
	int order = rule_name_order(first, second);

	return order ? order : (first->protocol == NULL) - (second->protocol == NULL);
}

static inline uint32_t rule_put_text(uint8_t *memory, uint32_t *size, const char *text)
{
	uint32_t offset = *size;

	memcpy(memory + offset, text, strlen(text));
	*size += (uint32_t)strlen(text);
	return offset;
}

/* In memory of exactly *ret_size octets, the caller's to free(). */
static inline struct share_rules *build_rules(const struct rule *given, unsigned n,
	uint32_t default_service, uint32_t n_services, size_t *ret_size)
{
	static uint8_t memory[1 << 16] __attribute__((aligned(8)));
	struct share_rules *rules = (void *)memory;
	struct share_name *names = (void *)(rules + 1);
	struct share_choice *choices;
	struct rule sorted[RULES_MAX];
	uint32_t n_names = 0, size, at = 0;
	void *copy;

	assert(n <= RULES_MAX);
	if (n)
		memcpy(sorted, given, n * sizeof(*given));
	qsort(sorted, n, sizeof(*sorted), rule_order);
	for (unsigned i = 0; i < n; i++)
		n_names += i == 0 || rule_name_order(&sorted[i - 1], &sorted[i]) != 0;
	choices = (void *)(names + n_names);
	size = (uint32_t)((uint8_t *)(choices + n) - memory);
	for (unsigned i = 0; i < n; i++) {
		if (i == 0 || rule_name_order(&sorted[i - 1], &sorted[i]) != 0) {
			const char *text = rule_text(&sorted[i]);

			names[at++] = (struct share_name){
				.kind = rule_kind(&sorted[i]),
				.length = (uint32_t)strlen(text),
				.text = rule_put_text(memory, &size, text),
				.choice = i,
			};
		}
		names[at - 1].n_choices++;
		choices[i] = (struct share_choice){.service = sorted[i].service, .protocol = size};
		if (sorted[i].protocol) {
			choices[i].protocol_length = (uint32_t)strlen(sorted[i].protocol);
			rule_put_text(memory, &size, sorted[i].protocol);
		}
	}
	*rules = (struct share_rules){
		.magic = SHARE_RULES_MAGIC,
		.size = size,
		.n_names = n_names,
		.n_choices = n,
		.default_service = default_service,
		.n_services = n_services,
	};
	copy = malloc(size);
	assert(copy);
	memcpy(copy, memory, size);
	*ret_size = size;
	return copy;
}
