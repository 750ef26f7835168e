/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Who has to wait, for how long, and in which order. The clock is the test's: time passes only when
 * a test says so.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <time.h>

static uint64_t fake_usec;

static int fake_clock(clockid_t clock, struct timespec *time)
{
	time->tv_sec = (time_t)(fake_usec / 1000000);
	time->tv_nsec = (long)(fake_usec % 1000000) * 1000;
	return 0;
}

#define clock_gettime fake_clock
#include "daemon/account.c"
#undef clock_gettime

#define RATE 1000

struct fixture {
	sd_event *event;
	struct accounts *accounts;
	struct account *account;
};

struct waiter {
	struct turn turn;
	struct account *account;
	unsigned n_resumed, order;
};

static unsigned n_resumed;

static void on_resume(struct turn *turn)
{
	struct waiter *waiter = (struct waiter *)turn;

	assert_null(turn->account);
	waiter->n_resumed++;
	waiter->order = ++n_resumed;
	account_charge(waiter->account, fake_usec, 1);
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	fake_usec = 1000 * USEC_PER_SEC;
	n_resumed = 0;
	assert_int_equal(sd_event_new(&f->event), 0);
	assert_int_equal(accounts_new(&f->accounts, f->event), 0);
	accounts_set_rate(f->accounts, RATE);
	f->account = accounts_get(f->accounts, 1234);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	accounts_free(f->accounts);
	sd_event_unref(f->event);
	free(f);
	return 0;
}

/* How many messages go through at once. */
static unsigned count_burst(struct account *account, unsigned n_messages)
{
	struct turn turn = {.resume = on_resume};
	unsigned n = 0;

	while (n < 10 * RATE && account_may(account, &turn)) {
		account_charge(account, fake_usec, n_messages);
		n++;
	}
	turn_cancel(&turn);
	return n;
}

static void a_users_account_is_one(void **state)
{
	struct fixture *f = *state;

	assert_ptr_equal(accounts_get(f->accounts, 1234), f->account);
	assert_ptr_not_equal(accounts_get(f->accounts, 1235), f->account);
}

static void a_seconds_worth_goes_at_once_then_the_rate(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(count_burst(f->account, 1), RATE + 1);
	assert_int_equal(count_burst(f->account, 1), 0);
	fake_usec += USEC_PER_SEC / 10;
	assert_int_equal(count_burst(f->account, 1), RATE / 10);
	fake_usec += 3600 * USEC_PER_SEC;
	assert_int_equal(count_burst(f->account, 1), RATE + 1);
}

static void what_costs_more_counts_as_more(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(count_burst(f->account, 20), RATE / 20 + 1);
}

static void half_of_the_time_is_for_others(void **state)
{
	struct fixture *f = *state;
	struct turn turn = {.resume = on_resume};
	unsigned n = 0;

	while (n < RATE && account_may(f->account, &turn)) {
		fake_usec += 50 * USEC_PER_MSEC;
		account_charge(f->account, fake_usec - 50 * USEC_PER_MSEC, 1);
		n++;
	}
	/* Each takes 50 ms and is paid with 100, half of which passed meanwhile. */
	assert_int_equal(n, 20);
	turn_cancel(&turn);
}

static void one_user_does_not_wait_for_another(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(count_burst(f->account, 1), RATE + 1);
	assert_int_equal(count_burst(accounts_get(f->accounts, 1235), 1), RATE + 1);
}

static void root_does_not_wait(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(count_burst(accounts_get(f->accounts, 0), 1), 10 * RATE);
}

static void without_a_rate_nobody_waits(void **state)
{
	struct fixture *f = *state;

	accounts_set_rate(f->accounts, 0);
	assert_int_equal(count_burst(f->account, 1), 10 * RATE);
}

static void those_who_wait_are_served_in_order_and_at_the_rate(void **state)
{
	struct fixture *f = *state;
	struct waiter waiters[100] = {};

	count_burst(f->account, 1);
	for (size_t i = 0; i < ARRAY_SIZE(waiters); i++) {
		waiters[i].turn.resume = on_resume;
		waiters[i].account = f->account;
		assert_false(account_may(f->account, &waiters[i].turn));
	}
	turn_cancel(&waiters[0].turn);
	turn_cancel(&waiters[50].turn);
	turn_cancel(&waiters[99].turn);
	turn_cancel(&waiters[99].turn);
	assert_int_equal(n_resumed, 0);
	for (unsigned msec = 0; msec < 97; msec++) {
		on_timer(f->account->timer, fake_usec, f->account);
		assert_int_equal(n_resumed, msec);
		fake_usec += USEC_PER_MSEC;
	}
	on_timer(f->account->timer, fake_usec, f->account);
	assert_int_equal(n_resumed, 97);
	for (size_t i = 1, order = 1; i < 99; i++)
		if (i != 50) {
			assert_int_equal(waiters[i].n_resumed, 1);
			assert_int_equal(waiters[i].order, order++);
		}
	assert_int_equal(waiters[0].n_resumed + waiters[50].n_resumed + waiters[99].n_resumed, 0);
	assert_null(f->account->first);
	assert_null(f->account->last);
}

/* Nobody comes before those who wait already, even when there is time again. */
static void a_newcomer_stands_behind(void **state)
{
	struct fixture *f = *state;
	struct waiter first = {.turn.resume = on_resume, .account = f->account};
	struct waiter second = first;

	count_burst(f->account, 1);
	assert_false(account_may(f->account, &first.turn));
	fake_usec += USEC_PER_SEC;
	assert_false(account_may(f->account, &second.turn));
	on_timer(f->account->timer, fake_usec, f->account);
	assert_int_equal(first.order, 1);
	assert_int_equal(second.order, 2);
}

static void so_many_are_resumed_at_once(void **state)
{
	struct fixture *f = *state;
	struct waiter waiters[RESUMED_AT_ONCE + 1] = {};

	count_burst(f->account, 1);
	for (size_t i = 0; i < ARRAY_SIZE(waiters); i++) {
		waiters[i].turn.resume = on_resume;
		waiters[i].account = f->account;
		assert_false(account_may(f->account, &waiters[i].turn));
	}
	fake_usec += USEC_PER_SEC;
	on_timer(f->account->timer, fake_usec, f->account);
	assert_int_equal(n_resumed, RESUMED_AT_ONCE);
	on_timer(f->account->timer, fake_usec, f->account);
	assert_int_equal(n_resumed, RESUMED_AT_ONCE + 1);
}

/* One user may have the IDs of very many. */
static void those_that_say_nothing_are_forgotten(void **state)
{
	struct fixture *f = *state;
	struct account *held = accounts_get(f->accounts, 1), *spent = accounts_get(f->accounts, 2);
	struct account *banned = accounts_get(f->accounts, 3);
	json_t *json;

	account_hold(held);
	account_charge(spent, fake_usec, 1000000);
	banned->may_not_adopt = true;
	for (uid_t uid = 1000; uid < 1000 + 100000; uid++) {
		accounts_get(f->accounts, uid);
		assert_true(f->accounts->n <= ACCOUNTS_MANY);
	}
	assert_ptr_equal(accounts_get(f->accounts, 1), held);
	assert_ptr_equal(accounts_get(f->accounts, 2), spent);
	assert_ptr_equal(accounts_get(f->accounts, 3), banned);
	account_release(held);

	json = accounts_to_json(f->accounts);
	assert_int_equal(json_array_size(json), 1);
	assert_int_equal(json_integer_value(json_array_get(json, 0)), 3);
	banned->may_not_adopt = false;
	accounts_resume(f->accounts, json);
	assert_true(banned->may_not_adopt);
	json_decref(json);
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, setup, teardown)

int main(void)
{
	static const struct CMUnitTest tests[] = {
		TEST(a_users_account_is_one),
		TEST(a_seconds_worth_goes_at_once_then_the_rate),
		TEST(what_costs_more_counts_as_more),
		TEST(half_of_the_time_is_for_others),
		TEST(one_user_does_not_wait_for_another),
		TEST(root_does_not_wait),
		TEST(without_a_rate_nobody_waits),
		TEST(those_who_wait_are_served_in_order_and_at_the_rate),
		TEST(a_newcomer_stands_behind),
		TEST(so_many_are_resumed_at_once),
		TEST(those_that_say_nothing_are_forgotten),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
