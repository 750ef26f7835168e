/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Rules of a shared listener: whether they can be followed, and what they say. Used by the
 * classifier and by Explain, so that both give the same answer.
 */
#include "classify/share-rules.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "bpf/share_layout.h"
#include "classify/client-hello.h"

static const struct share_name *names_of(const struct share_rules *rules)
{
	return (const struct share_name *)(rules + 1);
}

static const struct share_choice *choices_of(const struct share_rules *rules)
{
	return (const struct share_choice *)(names_of(rules) + rules->n_names);
}

static const char *text_of(const struct share_rules *rules, uint32_t offset)
{
	return (const char *)rules + offset;
}

/* The order of names: kind, then length, then octets. */
static int compare(const struct share_rules *rules, const struct share_name *name, uint32_t kind,
	const char *text, uint32_t length)
{
	if (name->kind != kind)
		return name->kind < kind ? -1 : 1;
	if (name->length != length)
		return name->length < length ? -1 : 1;
	return memcmp(text_of(rules, name->text), text, length);
}

/* Does the text lie behind the tables, and within? Sums of two 32-bit numbers in 64 bits. */
static bool text_is_inside(
	const struct share_rules *rules, uint64_t begin, uint32_t offset, uint32_t length)
{
	return offset >= begin && (uint64_t)offset + length <= rules->size;
}

static bool name_is_good(
	const struct share_rules *rules, uint64_t text, const struct share_name *name)
{
	if (name->kind > SHARE_NAME_ANY || name->n_choices == 0 ||
		(uint64_t)name->choice + name->n_choices > rules->n_choices)
		return false;
	if ((name->kind == SHARE_NAME_ANY) != (name->length == 0) || name->length > SERVER_NAME_MAX)
		return false;
	return text_is_inside(rules, text, name->text, name->length);
}

static bool choice_is_good(
	const struct share_rules *rules, uint64_t text, const struct share_choice *choice)
{
	return choice->service < rules->n_services && choice->protocol_length <= UINT8_MAX &&
	       text_is_inside(rules, text, choice->protocol, choice->protocol_length);
}

static bool header_is_good(const struct share_rules *rules, size_t size, uint64_t *ret_text)
{
	if (rules->magic != SHARE_RULES_MAGIC || rules->size != size || rules->n_services == 0 ||
		rules->n_services > SHARE_MAX || rules->default_service >= rules->n_services)
		return false;
	*ret_text = sizeof(*rules) + (uint64_t)rules->n_names * sizeof(struct share_name) +
		    (uint64_t)rules->n_choices * sizeof(struct share_choice);
	return *ret_text <= size;
}

int share_rules_check(const void *memory, size_t size)
{
	const struct share_rules *rules = memory;
	const struct share_name *names;
	uint64_t text;

	if (size < sizeof(*rules) || size > SHARE_RULES_OCTETS_MAX ||
		!header_is_good(rules, size, &text))
		return -EBADMSG;
	names = names_of(rules);
	for (uint32_t i = 0; i < rules->n_names; i++) {
		if (!name_is_good(rules, text, &names[i]))
			return -EBADMSG;
		/* In order, no two alike: or a search would find the one or the other. */
		if (i > 0 && compare(rules, &names[i - 1], names[i].kind,
				     text_of(rules, names[i].text), names[i].length) >= 0)
			return -EBADMSG;
	}
	for (uint32_t i = 0; i < rules->n_choices; i++)
		if (!choice_is_good(rules, text, &choices_of(rules)[i]))
			return -EBADMSG;
	return 0;
}

static const struct share_name *find(
	const struct share_rules *rules, uint32_t kind, const char *text, uint32_t length)
{
	const struct share_name *names = names_of(rules);
	uint32_t low = 0, high = rules->n_names;

	while (low < high) {
		uint32_t middle = low + (high - low) / 2;
		int order = compare(rules, &names[middle], kind, text, length);

		if (order == 0)
			return &names[middle];
		if (order < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return NULL;
}

static bool is_protocol(const struct share_rules *rules, const struct share_choice *choice,
	const uint8_t *protocol, uint32_t length)
{
	return length > 0 && choice->protocol_length == length &&
	       memcmp(text_of(rules, choice->protocol), protocol, length) == 0;
}

/* Whom the client's protocols choose among those that have the name. NULL: nobody. */
static const struct share_choice *choose(const struct share_rules *rules,
	const struct share_name *name, const uint8_t *protocols, size_t protocols_length)
{
	const struct share_choice *choices = choices_of(rules) + name->choice;
	size_t at = 0;

	while (at < protocols_length && protocols[at] < protocols_length - at) {
		for (uint32_t i = 0; i < name->n_choices; i++)
			if (is_protocol(rules, &choices[i], protocols + at + 1, protocols[at]))
				return &choices[i];
		at += 1 + (size_t)protocols[at];
	}
	for (uint32_t i = 0; i < name->n_choices; i++)
		if (choices[i].protocol_length == 0)
			return &choices[i];
	return NULL;
}

/* What is asked for: the kinds of a name, one after the other, until one chooses. */
struct question {
	const struct share_rules *rules;
	const uint8_t *protocols;
	size_t protocols_length;
};

static bool ask(const struct question *question, enum share_name_kind kind, const char *text,
	size_t length, struct share_answer *ret)
{
	static const enum share_reason reasons[] = {
		[SHARE_NAME_EXACT] = SHARE_REASON_NAME,
		[SHARE_NAME_SUFFIX] = SHARE_REASON_SUFFIX,
		[SHARE_NAME_ANY] = SHARE_REASON_PROTOCOL,
	};
	const struct share_name *name = find(question->rules, kind, text, (uint32_t)length);
	const struct share_choice *choice =
		name ? choose(question->rules, name, question->protocols,
			       question->protocols_length)
		     : NULL;

	if (!choice)
		return false;
	*ret = (struct share_answer){
		.service = choice->service,
		.reason = reasons[kind],
		.name = name,
		.choice = choice,
	};
	return true;
}

/* In lower case and without a dot at the end; returns its length, 0 where it is too long. */
static size_t fold(const char *name, size_t length, char folded[static SERVER_NAME_MAX])
{
	if (length > 0 && name[length - 1] == '.')
		length--;
	if (length > SERVER_NAME_MAX)
		return 0;
	for (size_t i = 0; i < length; i++)
		folded[i] = name[i] >= 'A' && name[i] <= 'Z' ? (char)(name[i] + 32) : name[i];
	return length;
}

void share_rules_match(const struct share_rules *rules, const char *name, size_t name_length,
	const uint8_t *protocols, size_t protocols_length, struct share_answer *ret)
{
	const struct question question = {rules, protocols, protocols_length};
	char folded[SERVER_NAME_MAX];
	size_t length = fold(name, name_length, folded);

	if (length > 0 && ask(&question, SHARE_NAME_EXACT, folded, length, ret))
		return;
	/* At least one octet stands before a suffix, which begins with its dot. */
	for (size_t i = 1; i < length; i++)
		if (folded[i] == '.' &&
			ask(&question, SHARE_NAME_SUFFIX, folded + i, length - i, ret))
			return;
	if (ask(&question, SHARE_NAME_ANY, "", 0, ret))
		return;
	*ret = (struct share_answer){
		.service = rules->default_service,
		.reason = length > 0 ? SHARE_REASON_NO_MATCH : SHARE_REASON_NO_NAME,
	};
}
