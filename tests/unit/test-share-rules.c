/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Which service a name and protocols are for: each sentence of the description, a second matcher
 * that reads the rules one after the other, and rules that can't be followed.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "bpf/share_layout.h"
#include "common/util.h"
#include "tests/unit/rules-builder.h"

static struct share_rules *rules;
static size_t size;

static void use_rules(const struct rule *given, unsigned n, uint32_t default_service)
{
	free(rules);
	rules = build_rules(given, n, default_service, SHARE_MAX, &size);
	assert_int_equal(share_rules_check(rules, size), 0);
}

/* The protocols separated by spaces, as the extension has them. */
static size_t wire(const char *protocols, uint8_t out[static 64])
{
	size_t n = 0;

	while (*protocols) {
		size_t length = strcspn(protocols, " ");

		out[n++] = (uint8_t)length;
		memcpy(out + n, protocols, length);
		n += length;
		protocols += length + (protocols[length] == ' ');
	}
	return n;
}

static struct share_answer match(const char *name, const char *protocols)
{
	struct share_answer answer;
	uint8_t octets[64];
	size_t length = wire(protocols, octets);

	share_rules_match(rules, name, strlen(name), octets, length, &answer);
	return answer;
}

static void check(
	const char *name, const char *protocols, uint32_t service, enum share_reason reason)
{
	struct share_answer answer = match(name, protocols);
	bool by_rule = reason <= SHARE_REASON_PROTOCOL;

	assert_int_equal(answer.service, service);
	assert_int_equal(answer.reason, reason);
	assert_int_equal(answer.name != NULL, by_rule);
	assert_int_equal(answer.choice != NULL, by_rule);
}

static void test_names(void **state)
{
	static const struct rule given[] = {
		{"shop.example", NULL, 1},
		{"*.shop.example", NULL, 2},
		{"*.example", NULL, 3},
		{"eu.shop.example", NULL, 4},
	};

	use_rules(given, ARRAY_SIZE(given), 5);
	check("shop.example", "h3", 1, SHARE_REASON_NAME);
	check("shop.example", "", 1, SHARE_REASON_NAME);
	check("eu.shop.example", "h3", 4, SHARE_REASON_NAME);
	check("us.shop.example", "h3", 2, SHARE_REASON_SUFFIX);
	check("a.b.shop.example", "h3", 2, SHARE_REASON_SUFFIX);
	check("x.eu.shop.example", "h3", 2, SHARE_REASON_SUFFIX);
	check("api.example", "h3", 3, SHARE_REASON_SUFFIX);
	check("workshop.example", "h3", 3, SHARE_REASON_SUFFIX);
	check("example", "h3", 5, SHARE_REASON_NO_MATCH);
	check(".example", "h3", 5, SHARE_REASON_NO_MATCH);
	check("shop.example.org", "h3", 5, SHARE_REASON_NO_MATCH);
	check("", "h3", 5, SHARE_REASON_NO_NAME);
	/* Case and the dot at the end do not count. */
	check("Shop.EXAMPLE", "h3", 1, SHARE_REASON_NAME);
	check("shop.example.", "h3", 1, SHARE_REASON_NAME);
	check("US.shop.Example.", "h3", 2, SHARE_REASON_SUFFIX);
	check("shop.example..", "h3", 5, SHARE_REASON_NO_MATCH);
	check(".", "h3", 5, SHARE_REASON_NO_NAME);
	/* Octets next to the letters stay what they are. */
	check("[hop.example", "h3", 3, SHARE_REASON_SUFFIX);
	check("shop@example", "h3", 5, SHARE_REASON_NO_MATCH);
}

static void test_protocols(void **state)
{
	static const struct rule given[] = {
		{"shop.example", "h3", 0},
		{"shop.example", "doq", 1},
		{"shop.example", NULL, 2},
		{"api.example", "h3", 3},
		{"*.example", "hq-interop", 4},
		{NULL, "doq", 5},
	};

	use_rules(given, ARRAY_SIZE(given), 2);
	check("shop.example", "h3", 0, SHARE_REASON_NAME);
	check("shop.example", "doq", 1, SHARE_REASON_NAME);
	/* The client's order, not that of the rules. */
	check("shop.example", "doq h3", 1, SHARE_REASON_NAME);
	check("shop.example", "h3 doq", 0, SHARE_REASON_NAME);
	check("shop.example", "smb doq h3", 1, SHARE_REASON_NAME);
	/* What nobody has named is for whoever takes any. */
	check("shop.example", "smb", 2, SHARE_REASON_NAME);
	check("shop.example", "", 2, SHARE_REASON_NAME);
	/* The case of a protocol counts, and all of it. */
	check("shop.example", "H3", 2, SHARE_REASON_NAME);
	check("shop.example", "h", 2, SHARE_REASON_NAME);
	check("shop.example", "h33", 2, SHARE_REASON_NAME);
	/* A name without the protocol: the next less specific one. */
	check("api.example", "h3", 3, SHARE_REASON_NAME);
	check("api.example", "hq-interop", 4, SHARE_REASON_SUFFIX);
	check("api.example", "doq", 5, SHARE_REASON_PROTOCOL);
	check("api.example", "smb", 2, SHARE_REASON_NO_MATCH);
	check("other.test", "h3", 2, SHARE_REASON_NO_MATCH);
	check("other.test", "doq", 5, SHARE_REASON_PROTOCOL);
	check("", "doq", 5, SHARE_REASON_PROTOCOL);
	check("", "h3", 2, SHARE_REASON_NO_NAME);
}

static void test_the_answer_names_its_rule(void **state)
{
	static const struct rule given[] = {
		{"*.example", "doq", 0}, {"*.example", "h3", 1}, {"shop.example", NULL, 2}};
	struct share_answer answer;

	use_rules(given, ARRAY_SIZE(given), 0);
	answer = match("a.b.example", "smb h3");
	assert_int_equal(answer.service, 1);
	assert_int_equal(answer.name->kind, SHARE_NAME_SUFFIX);
	assert_int_equal(answer.name->length, 8);
	assert_memory_equal((char *)rules + answer.name->text, ".example", 8);
	assert_int_equal(answer.choice->protocol_length, 2);
	assert_memory_equal((char *)rules + answer.choice->protocol, "h3", 2);
}

static void test_lists_that_are_cut_off(void **state)
{
	static const struct rule given[] = {{NULL, "h3", 1}};
	static const uint8_t cut[] = {2, 'h', '3'};
	struct share_answer answer;

	use_rules(given, 1, 0);
	share_rules_match(rules, "", 0, cut, 3, &answer);
	assert_int_equal(answer.service, 1);
	for (size_t n = 0; n < 3; n++) {
		share_rules_match(rules, "", 0, cut, n, &answer);
		assert_int_equal(answer.service, 0);
	}
	/* An empty protocol is none. */
	share_rules_match(rules, "", 0, (const uint8_t[]){0, 2, 'h', '3'}, 4, &answer);
	assert_int_equal(answer.service, 1);
	share_rules_match(rules, "", 0, (const uint8_t[]){0}, 1, &answer);
	assert_int_equal(answer.service, 0);
}

static void test_names_that_are_too_long(void **state)
{
	static const struct rule given[] = {{"*.example", NULL, 1}};
	char name[400];
	struct share_answer answer;

	use_rules(given, 1, 0);
	memset(name, 'a', sizeof(name));
	for (size_t length = 9; length <= sizeof(name); length++) {
		memcpy(name + length - 8, ".example", 8);
		share_rules_match(rules, name, length, NULL, 0, &answer);
		assert_int_equal(answer.service, length <= 255 ? 1 : 0);
	}
}

/* The same by reading all rules, for a name in lower case without a dot at the end. */
static uint32_t slow_match(const struct rule *given, unsigned n, const char *name,
	const char *const *protocols, unsigned n_protocols, uint32_t default_service)
{
	static const char *const any[] = {NULL};
	size_t length = strlen(name);

	/* Lengths from that of an exact name, 1000 more, down to that of any name, 0. */
	for (size_t specific = 1000 + length + 1; specific-- > 0;) {
		for (unsigned p = 0; p <= n_protocols; p++) {
			const char *protocol = p < n_protocols ? protocols[p] : any[0];

			for (unsigned i = 0; i < n; i++) {
				const char *text = rule_text(&given[i]);
				size_t own = strlen(text);
				bool fits = false;

				switch (rule_kind(&given[i])) {
				case SHARE_NAME_EXACT:
					fits = specific == 1000 + own && length &&
					       !strcmp(text, name);
					break;
				case SHARE_NAME_SUFFIX:
					fits = specific == own && own < length &&
					       !strcmp(name + length - own, text);
					break;
				case SHARE_NAME_ANY:
					fits = specific == 0;
					break;
				}
				if (fits && (given[i].protocol == NULL) == (protocol == NULL) &&
					(!protocol || !strcmp(given[i].protocol, protocol)))
					return given[i].service;
			}
		}
	}
	return default_service;
}

static void random_name(char *name, bool may_be_suffix)
{
	static const char *const labels[] = {"a", "b", "ab"};
	unsigned n = 1 + (unsigned)rand() % 4;

	*name = '\0';
	if (may_be_suffix && rand() % 2)
		strcpy(name, "*.");
	for (unsigned i = 0; i < n; i++) {
		strcat(name, labels[rand() % 3]);
		if (i + 1 < n)
			strcat(name, ".");
	}
}

static void test_against_a_second_matcher(void **state)
{
	static const char *const protocols[] = {"h3", "doq", "smb"};
	unsigned asked = 0, by_default = 0;

	srand(1);
	for (unsigned round = 0; round < 400; round++) {
		static char names[40][32];
		struct rule given[40];
		unsigned n = 0;

		for (unsigned i = 0; i < 40; i++) {
			bool twice = false;

			random_name(names[n], true);
			given[n] = (struct rule){rand() % 20 ? names[n] : NULL,
				rand() % 2 ? protocols[rand() % 3] : NULL, (uint32_t)rand() % 6};
			/* Two for the same name and protocol are a mistake that is refused. */
			for (unsigned j = 0; j < n; j++)
				twice = twice || (rule_name_order(&given[j], &given[n]) == 0 &&
							 given[j].protocol == given[n].protocol);
			n += !twice;
		}
		use_rules(given, n, 5);
		for (unsigned i = 0; i < 50; i++) {
			const char *own[2] = {protocols[rand() % 3], protocols[rand() % 3]};
			unsigned n_own = (unsigned)rand() % 3;
			char name[32], list[32] = "";
			struct share_answer answer;

			random_name(name, false);
			if (rand() % 10 == 0)
				*name = '\0';
			for (unsigned p = 0; p < n_own; p++)
				strcat(strcat(list, p ? " " : ""), own[p]);
			answer = match(name, list);
			assert_int_equal(answer.service, slow_match(given, n, name, own, n_own, 5));
			by_default += answer.reason >= SHARE_REASON_NO_NAME;
			asked++;
		}
	}
	assert_int_equal(asked, 20000);
	/* Both happen often. */
	assert_in_range(by_default, 1000, 19000);
}

static const struct rule some[] = {{"shop.example", "h3", 0}, {"shop.example", NULL, 1},
	{"*.example", "h3", 2}, {NULL, "doq", 3}};

/* What stands where in these rules. */
struct view {
	struct share_rules *rules;
	struct share_name *names;
	struct share_choice *choices;
};

static struct view fresh(void)
{
	struct view view;

	use_rules(some, ARRAY_SIZE(some), 4);
	view.rules = rules;
	view.names = (void *)(rules + 1);
	view.choices = (void *)(view.names + rules->n_names);
	return view;
}

static void test_rules_that_cannot_be_followed(void **state)
{
	unsigned refused = 0;

#define REFUSED(change)                                                       \
	do {                                                                  \
		struct view v = fresh();                                      \
		assert_int_equal(v.rules->n_names, 3);                        \
		change;                                                       \
		assert_int_equal(share_rules_check(v.rules, size), -EBADMSG); \
		refused++;                                                    \
	} while (0)

	REFUSED(v.rules->magic ^= 1);
	REFUSED(v.rules->size++);
	REFUSED(v.rules->size--);
	REFUSED(v.rules->n_services = 0);
	REFUSED(v.rules->n_services = SHARE_MAX + 1);
	REFUSED(v.rules->default_service = SHARE_MAX);
	REFUSED(v.rules->n_names = 0xffffffff);
	REFUSED(v.rules->n_choices = 0xffffffff);
	REFUSED(v.rules->n_names = 0x0ccccccd); /* times 20 is 4 in 32 bits */
	REFUSED(v.rules->n_names++);
	REFUSED(v.names[0].kind = SHARE_NAME_ANY + 1);
	REFUSED(v.names[0].kind = SHARE_NAME_ANY);
	REFUSED(v.names[0].length = 0);
	REFUSED(v.names[0].length = 256);
	REFUSED(v.names[0].text = 0);
	REFUSED(v.names[0].text = (uint32_t)size);
	REFUSED(v.names[0].text = 0xfffffff0);
	REFUSED(v.names[0].n_choices = 0);
	REFUSED(v.names[0].choice = 3);
	REFUSED(v.names[0].choice = 0xffffffff);
	REFUSED(v.names[0].n_choices = 0xffffffff);
	REFUSED(v.names[1].kind = SHARE_NAME_EXACT; v.names[1].length = 4);
	REFUSED(v.names[1] = v.names[0]); /* twice */
	REFUSED(v.names[2].length = 1);
	REFUSED(v.choices[0].service = SHARE_MAX);
	REFUSED(v.choices[0].protocol = (uint32_t)size - 1);
	REFUSED(v.choices[0].protocol = 0xffffffff);
	REFUSED(v.choices[0].protocol_length = 256);
	REFUSED(v.choices[0].protocol_length = 0xffffffff);
#undef REFUSED
	assert_int_equal(refused, 29);
}

static void test_cut_at_every_octet(void **state)
{
	struct view v = fresh();

	for (size_t n = 0; n < size; n++) {
		void *copy = malloc(n ? n : 1);

		assert_non_null(copy);
		memcpy(copy, v.rules, n);
		assert_int_equal(share_rules_check(copy, n), -EBADMSG);
		free(copy);
	}
}

static void test_no_rule_at_all(void **state)
{
	use_rules(NULL, 0, 3);
	check("shop.example", "h3", 3, SHARE_REASON_NO_MATCH);
	check("", "", 3, SHARE_REASON_NO_NAME);
}

static int tear_down(void **state)
{
	free(rules);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_names),
		cmocka_unit_test(test_protocols),
		cmocka_unit_test(test_the_answer_names_its_rule),
		cmocka_unit_test(test_lists_that_are_cut_off),
		cmocka_unit_test(test_names_that_are_too_long),
		cmocka_unit_test(test_against_a_second_matcher),
		cmocka_unit_test(test_rules_that_cannot_be_followed),
		cmocka_unit_test(test_cut_at_every_octet),
		cmocka_unit_test(test_no_rule_at_all),
	};

	return cmocka_run_group_tests(tests, NULL, tear_down);
}
