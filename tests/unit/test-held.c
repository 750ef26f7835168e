/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The classifier's tables: connections that are held, against a list of what should be there; sets
 * of words; and the bucket of CPU time, with clocks of the test's own.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "bpf/share_layout.h"
#include "classify/held.h"
#include "classify/meter.h"
#include "classify/word-set.h"

static struct held_table *table;

static int set_up(void **state)
{
	table = held_table_new();
	return table ? 0 : -1;
}

/* Number n's key, and a hash that many have in common. */
static struct held_key key_of(unsigned n)
{
	struct held_key key = {.dcid_length = 8};

	memcpy(key.dcid, &n, sizeof(n));
	return key;
}

static uint64_t hash_of(unsigned n)
{
	return (uint64_t)(n % 7) << 32;
}

static struct held *find(unsigned n)
{
	struct held_key key = key_of(n);

	return held_find(table, &key, hash_of(n));
}

/* As the chooser puts one; returns the number of the one that is given up, -1: none. */
static int put(unsigned n, bool authentic)
{
	struct held *spare = held_spare(table), *oldest;
	int given_up = -1;

	spare->key = key_of(n);
	spare->hash = hash_of(n);
	assert_ptr_equal(held_spare(table), spare);
	assert_null(find(n));
	oldest = held_in_the_way(table, authentic);
	held_put(table, spare, authentic, n);
	if (oldest) {
		memcpy(&given_up, oldest->key.dcid, sizeof(given_up));
		held_remove(table, oldest);
	}
	assert_ptr_equal(find(n), spare);
	assert_int_equal(spare->since_nsec, n);
	return given_up;
}

static void empty_table(void)
{
	for (unsigned authentic = 0; authentic < 2; authentic++) {
		uint64_t before = 0;
		struct held *oldest;

		while ((oldest = held_oldest(table, authentic))) {
			assert_true(oldest->since_nsec >= before);
			before = oldest->since_nsec;
			held_remove(table, oldest);
		}
		assert_int_equal(held_count(table, authentic), 0);
	}
}

static void test_the_oldest_is_given_up(void **state)
{
	for (unsigned n = 0; n < HELD_MAX; n++)
		assert_int_equal(put(n, true), -1);
	for (unsigned n = HELD_MAX; n < 5 * HELD_MAX; n++) {
		assert_int_equal(put(n, true), n - HELD_MAX);
		assert_null(find(n - HELD_MAX));
		assert_int_equal(held_count(table, true), HELD_MAX);
	}
	empty_table();
}

static void test_those_without_an_initial_have_few_places(void **state)
{
	for (unsigned n = 0; n < 3 * HELD_EARLY; n++)
		assert_int_equal(put(n, false), n < HELD_EARLY ? -1 : (int)n - HELD_EARLY);
	assert_int_equal(held_count(table, false), HELD_EARLY);
	/* The others need the room: first those go. */
	for (unsigned n = 1000; n < 1000 + HELD_MAX; n++) {
		int given_up = put(n, true);

		if (n < 1000 + HELD_MAX - HELD_EARLY)
			assert_int_equal(given_up, -1);
		else
			assert_in_range(given_up, 2 * HELD_EARLY, 3 * HELD_EARLY - 1);
	}
	assert_int_equal(held_count(table, false), 0);
	assert_int_equal(held_count(table, true), HELD_MAX);
	empty_table();
}

static void test_an_initial_makes_it_one_of_the_others(void **state)
{
	put(1, true);
	put(2, false);
	put(3, false);
	held_set_authentic(table, find(2), 4);
	assert_int_equal(held_count(table, false), 1);
	assert_int_equal(held_count(table, true), 2);
	assert_ptr_equal(held_oldest(table, true), find(1));
	assert_ptr_equal(held_oldest(table, false), find(3));
	held_remove(table, find(1));
	assert_ptr_equal(held_oldest(table, true), find(2));
	assert_int_equal(find(2)->since_nsec, 4);
	empty_table();
}

static void test_any_order_of_coming_and_going(void **state)
{
	static bool there[4096];
	unsigned count = 0, puts = 0, removes = 0;

	srand(1);
	for (unsigned i = 0; i < 200000; i++) {
		unsigned n = (unsigned)rand() % 4096;

		assert_int_equal(find(n) != NULL, there[n]);
		if (there[n] && rand() % 2) {
			held_remove(table, find(n));
			there[n] = false;
			count--;
			removes++;
		} else if (!there[n]) {
			int given_up = put(n, rand() % 4 > 0);

			if (given_up >= 0)
				there[given_up] = false;
			there[n] = true;
			count += given_up < 0;
			puts++;
		}
		assert_int_equal(held_count(table, false) + held_count(table, true), count);
	}
	assert_in_range(puts, 50000, 200000);
	assert_in_range(removes, 10000, 100000);
	while (held_oldest(table, true))
		held_remove(table, held_oldest(table, true));
	while (held_oldest(table, false))
		held_remove(table, held_oldest(table, false));
}

static void test_what_is_kept_of_one(void **state)
{
	static const uint8_t octets[4096] = {1};
	struct held *held;

	put(1, true);
	held = find(1);
	for (unsigned i = 0; i < HELD_DATAGRAMS; i++)
		assert_true(held_keep(held, (uint8_t)i, octets, 10 + i));
	assert_false(held_keep(held, 0, octets, 10));
	assert_int_equal(held->n_datagrams, HELD_DATAGRAMS);
	assert_int_equal(held->datagram[7].length, 17);
	assert_int_equal(held->datagram[7].traffic_class, 7);
	held_remove(table, held);
	put(2, true);
	held = find(2);
	for (unsigned i = 0; i < 3; i++)
		assert_true(held_keep(held, 0, octets, 4096));
	assert_int_equal(held->n_octets, HELD_OCTETS);
	assert_false(held_keep(held, 0, octets, 1));
	assert_true(held_keep(held, 0, octets, 0));
	held_remove(table, held);
}

static void test_word_sets(void **state)
{
	struct flow_set set = {};

	assert_null(word_set_find(&set, 1, 100, 10));
	for (uint32_t n = 0; n < FLOW_WAYS; n++)
		word_set_put(&set, 2 * n + 1, (uint16_t)n, 100 + n, 10);
	for (uint32_t n = 0; n < FLOW_WAYS; n++) {
		uint64_t *word = word_set_find(&set, 2 * n + 1, 108, 10);

		assert_non_null(word);
		assert_int_equal(*word >> 16 & 0xffff, n);
	}
	/* The same tag again: its own place. */
	word_set_put(&set, 1, 42, 109, 10);
	assert_int_equal(*word_set_find(&set, 1, 109, 10) >> 16 & 0xffff, 42);
	/* Full: the oldest goes, which is now the second. */
	word_set_put(&set, 101, 7, 109, 10);
	assert_null(word_set_find(&set, 3, 109, 10));
	assert_non_null(word_set_find(&set, 5, 109, 10));
	/* What is too old is not found, whatever the tick has wrapped to. */
	assert_non_null(word_set_find(&set, 101, 119, 10));
	assert_null(word_set_find(&set, 101, 120, 10));
	word_set_put(&set, 201, 1, 0xffff, 10);
	assert_non_null(word_set_find(&set, 201, 0x10000 + 9, 10));
	assert_null(word_set_find(&set, 201, 0x10000 + 10, 10));
}

#define MSEC 1000000ULL

static void test_meter(void **state)
{
	struct meter meter;
	uint64_t cpu = 7, wall = 1000 * MSEC;

	meter_init(&meter, 50, wall, cpu);
	/* 50 ms at once are those of the window; one more is too much. */
	assert_false(meter_update(&meter, wall, cpu += 50 * MSEC));
	assert_true(meter_update(&meter, wall, cpu += 1 * MSEC));
	/* Five eighths full after (1 + 31.25) / 50 %; half full, it is not over any more. */
	assert_int_equal(meter_wait_nsec(&meter), 64 * MSEC + MSEC / 2);
	assert_true(meter_update(&meter, wall += 51 * MSEC, cpu));
	assert_int_equal(meter_wait_nsec(&meter), 13 * MSEC + MSEC / 2);
	assert_false(meter_update(&meter, wall += 1 * MSEC, cpu));
	assert_int_equal(meter_wait_nsec(&meter), 0);
	/* A long rest fills it, and no more. */
	assert_false(meter_update(&meter, wall += 100000 * MSEC, cpu));
	assert_int_equal(meter.left, 50 * MSEC);
	/* The share in the long run: whoever uses 50 of 100 is never over. */
	for (unsigned i = 0; i < 1000; i++)
		assert_false(meter_update(&meter, wall += 10 * MSEC, cpu += 5 * MSEC));
	meter_init(&meter, 0, wall, cpu);
	assert_false(meter_update(&meter, wall, cpu += 100000 * MSEC));
}

/* Waiting ends by itself, though every look at the clock uses some of what has come meanwhile. */
static void test_meter_when_waking_costs(void **state)
{
	for (unsigned percent = 1; percent <= 100; percent++) {
		struct meter meter;
		uint64_t cpu = 0, wall = 1000 * MSEC;

		meter_init(&meter, percent, wall, cpu);
		assert_true(meter_update(&meter, wall, cpu += 100 * MSEC + 1));
		wall += meter_wait_nsec(&meter) + 1;
		assert_false(meter_update(&meter, wall, cpu += MSEC / 10));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_the_oldest_is_given_up),
		cmocka_unit_test(test_those_without_an_initial_have_few_places),
		cmocka_unit_test(test_an_initial_makes_it_one_of_the_others),
		cmocka_unit_test(test_any_order_of_coming_and_going),
		cmocka_unit_test(test_what_is_kept_of_one),
		cmocka_unit_test(test_word_sets),
		cmocka_unit_test(test_meter),
		cmocka_unit_test(test_meter_when_waking_costs),
	};

	return cmocka_run_group_tests(tests, set_up, NULL);
}
