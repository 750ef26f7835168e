/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The lookup table: shares by weight, few changes, the same table for the same members.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/util.h"
#include "daemon/maglev.h"

#define SIZE 65521u
#define SLOTS 8192u

static struct maglev_member *members_new(size_t n, uint16_t weight)
{
	struct maglev_member *members = calloc(n, sizeof(*members));

	assert_non_null(members);
	for (size_t i = 0; i < n; i++)
		members[i] = (struct maglev_member){
			.slot = (uint16_t)i, .weight = weight, .seed = i * 7919 + 1};
	return members;
}

static uint16_t *filled(size_t size, const struct maglev_member *members, size_t n)
{
	uint16_t *entries = malloc(size * sizeof(*entries));

	assert_non_null(entries);
	memset(entries, 0xff, size * sizeof(*entries));
	assert_int_equal(maglev_fill(entries, size, members, n), 0);
	return entries;
}

static void count_slots(const uint16_t *entries, size_t size, unsigned counts[SLOTS])
{
	memset(counts, 0, SLOTS * sizeof(*counts));
	for (size_t i = 0; i < size; i++) {
		assert_true(entries[i] < SLOTS);
		counts[entries[i]]++;
	}
}

static unsigned differences(const uint16_t *a, const uint16_t *b, size_t size)
{
	unsigned n = 0;

	for (size_t i = 0; i < size; i++)
		n += a[i] != b[i];
	return n;
}

static void one_member_has_every_entry(void **state)
{
	_cleanup_free_ struct maglev_member *members = members_new(1, 7);
	_cleanup_free_ uint16_t *entries = filled(SIZE, members, 1);
	unsigned counts[SLOTS];

	count_slots(entries, SIZE, counts);
	assert_int_equal(counts[0], SIZE);
}

static void equal_weights_differ_by_one_entry_at_most(void **state)
{
	static const size_t sizes[] = {2, 3, 8, 100, 1000, 4000};

	for (size_t s = 0; s < ARRAY_SIZE(sizes); s++) {
		size_t n = sizes[s];
		_cleanup_free_ struct maglev_member *members = members_new(n, 100);
		_cleanup_free_ uint16_t *entries = filled(SIZE, members, n);
		unsigned counts[SLOTS];

		count_slots(entries, SIZE, counts);
		for (size_t i = 0; i < n; i++)
			assert_in_range(counts[i], SIZE / n, SIZE / n + 1);
	}
}

static void weights_1_to_3_hold_within_2_percent(void **state)
{
	_cleanup_free_ struct maglev_member *members = members_new(8, 100);
	_cleanup_free_ uint16_t *entries = NULL;
	unsigned counts[SLOTS];

	for (size_t i = 4; i < 8; i++)
		members[i].weight = 300;
	entries = filled(SIZE, members, 8);
	count_slots(entries, SIZE, counts);
	for (size_t i = 0; i < 4; i++)
		assert_in_range(counts[i], SIZE / 16 * 98 / 100, SIZE / 16 * 102 / 100);
	for (size_t i = 4; i < 8; i++)
		assert_in_range(counts[i], SIZE * 3 / 16 * 98 / 100, SIZE * 3 / 16 * 102 / 100);
}

static void extreme_weights_keep_their_share(void **state)
{
	_cleanup_free_ struct maglev_member *members = members_new(4000, 1);
	_cleanup_free_ uint16_t *entries = NULL;
	unsigned counts[SLOTS];

	members[0].weight = 1000;
	entries = filled(SIZE, members, 4000);
	count_slots(entries, SIZE, counts);
	/* 1000 of 4999; the bound of the contract is n_members entries */
	assert_in_range(counts[0], SIZE * 1000ULL / 4999 - 4000, SIZE * 1000ULL / 4999 + 4000);
	for (size_t i = 1; i < 4000; i++)
		assert_in_range(counts[i], 12, 15); /* 13.1 */
}

static void the_order_of_members_does_not_matter(void **state)
{
	_cleanup_free_ struct maglev_member *members = members_new(100, 100);
	_cleanup_free_ uint16_t *first = NULL, *second = NULL;

	for (size_t i = 0; i < 100; i++)
		members[i].weight = (uint16_t)(1 + i * 37 % 1000);
	first = filled(SIZE, members, 100);
	for (size_t i = 0; i < 50; i++) {
		struct maglev_member swapped = members[i];

		members[i] = members[99 - i];
		members[99 - i] = swapped;
	}
	second = filled(SIZE, members, 100);
	assert_int_equal(differences(first, second, SIZE), 0);
}

static void a_leaving_member_moves_little_more_than_its_share(void **state)
{
	static const size_t sizes[] = {2, 3, 4, 8, 16, 100, 1000};

	for (size_t s = 0; s < ARRAY_SIZE(sizes); s++) {
		size_t n = sizes[s];
		_cleanup_free_ struct maglev_member *members = members_new(n, 100);
		_cleanup_free_ uint16_t *before = filled(SIZE, members, n);
		_cleanup_free_ uint16_t *after = filled(SIZE, members, n - 1);
		unsigned counts[SLOTS];

		count_slots(after, SIZE, counts);
		assert_int_equal(counts[n - 1], 0);
		assert_in_range(
			differences(before, after, SIZE), SIZE / n, SIZE / n + SIZE * 2 / 100 + 1);
	}
}

static void a_changed_weight_moves_little(void **state)
{
	_cleanup_free_ struct maglev_member *members = members_new(10, 100);
	_cleanup_free_ uint16_t *before = filled(SIZE, members, 10);
	_cleanup_free_ uint16_t *after = NULL;

	members[3].weight = 200;
	after = filled(SIZE, members, 10);
	/* its share grows from 1/10 to 2/11, by 8.2 % */
	assert_in_range(differences(before, after, SIZE), SIZE * 8 / 100, SIZE * 12 / 100);
}

static void small_tables_are_filled(void **state)
{
	_cleanup_free_ struct maglev_member *members = members_new(6, 1000);
	_cleanup_free_ uint16_t *entries = NULL;
	unsigned counts[SLOTS];

	members[5].weight = 1;
	entries = filled(7, members, 6);
	count_slots(entries, 7, counts);
	for (size_t i = 0; i < 5; i++)
		assert_in_range(counts[i], 1, 2);
	assert_in_range(counts[5], 0, 1);
}

static void members_with_the_same_seed_share(void **state)
{
	_cleanup_free_ struct maglev_member *members = members_new(2, 100);
	_cleanup_free_ uint16_t *entries = NULL;
	unsigned counts[SLOTS];

	members[1].seed = members[0].seed;
	entries = filled(SIZE, members, 2);
	count_slots(entries, SIZE, counts);
	assert_in_range(counts[0], SIZE / 2, SIZE / 2 + 1);
}

static void impossible_arguments_are_refused(void **state)
{
	_cleanup_free_ struct maglev_member *members = members_new(7, 100);
	uint16_t entries[7] = {1, 2, 3, 4, 5, 6, 7};

	assert_int_equal(maglev_fill(entries, 7, members, 0), -EINVAL);
	assert_int_equal(maglev_fill(entries, 7, members, 7), -EINVAL);
	members[2].weight = 0;
	assert_int_equal(maglev_fill(entries, 7, members, 3), -EINVAL);
	members[2].weight = 1001;
	assert_int_equal(maglev_fill(entries, 7, members, 3), -EINVAL);
	for (uint16_t i = 0; i < 7; i++)
		assert_int_equal(entries[i], i + 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(one_member_has_every_entry),
		cmocka_unit_test(equal_weights_differ_by_one_entry_at_most),
		cmocka_unit_test(weights_1_to_3_hold_within_2_percent),
		cmocka_unit_test(extreme_weights_keep_their_share),
		cmocka_unit_test(the_order_of_members_does_not_matter),
		cmocka_unit_test(a_leaving_member_moves_little_more_than_its_share),
		cmocka_unit_test(a_changed_weight_moves_little),
		cmocka_unit_test(small_tables_are_filled),
		cmocka_unit_test(members_with_the_same_seed_share),
		cmocka_unit_test(impossible_arguments_are_refused),
	};

	return cmocka_run_group_tests_name("maglev", tests, NULL, NULL);
}
