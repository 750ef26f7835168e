/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * No client of the Varlink server costs another one anything: one that sends garbage, half a call
 * or more than allowed, that comes too often, or that never reads.
 */
#include "tests/unit/control-fixture.h"

static void garbage_ends_its_own_connection_only(void **state)
{
	static const char *const garbage[] = {"GET / HTTP/1.1\r\n\r\n", "", "[]", "{}", "1",
		"{\"method\":7}", "{\"method\":\"a.b\",\"parameters\":[]}", "{\"method\":\"a.b\"",
		"\xff\xfe"};
	struct fixture *f = *state;
	int good = f->client;

	expect(f, METHOD("Echo"), "{\"parameters\":{\"echo\":{}}}");
	for (size_t i = 0; i < ARRAY_SIZE(garbage); i++) {
		f->client = connect_client(f);
		put_text(f, garbage[i]);
		assert_null(take(f));
		close_fd(&f->client);
	}
	f->client = good;
	expect_count(f, 1);
	expect(f, METHOD("Echo"), "{\"parameters\":{\"echo\":{}}}");
}

static void half_a_call_is_forgotten_with_its_connection(void **state)
{
	struct fixture *f = *state;
	int fd = connect_client(f);

	put(f, fd, "{\"method\":\"io.reuse", 20);
	expect_count(f, 2);
	expect(f, METHOD("Echo"), "{\"parameters\":{\"echo\":{}}}");
	close_fd(&fd);
	expect_count(f, 1);
	expect(f, METHOD("Echo"), "{\"parameters\":{\"echo\":{}}}");
}

static void a_call_beyond_a_mebibyte_ends_its_connection(void **state)
{
	static char spaces[65536];
	struct fixture *f = *state;
	int64_t end = now_sec() + DEADLINE_SEC;
	size_t sent = 0;

	memset(spaces, ' ', sizeof(spaces));
	while (sent < 4 * CALL_OCTETS) {
		ssize_t n = send(f->client, spaces, sizeof(spaces), MSG_NOSIGNAL | MSG_DONTWAIT);

		assert_true(now_sec() < end);
		if (n < 0 && errno == EAGAIN)
			turn(f);
		else if (n < 0)
			break;
		else
			sent += (size_t)n;
	}
	assert_true(sent > CALL_OCTETS);
	assert_true(sent < 4 * CALL_OCTETS);
	expect_count(f, 0);
}

static void a_long_answer_comes_whole(void **state)
{
	struct fixture *f = *state;

	for (int i = 0; i < 2; i++) {
		json_t *reply, *parameters;

		put_text(f, METHOD("Big"));
		reply = take(f);
		assert_non_null(reply);
		parameters = json_object_get(reply, "parameters");
		assert_int_equal(
			json_string_length(json_object_get(parameters, "big")), BIG_OCTETS);
		json_decref(reply);
	}
	expect(f, METHOD("Change"), DONE(1));
}

static void a_client_that_never_reads_holds_one_answer_and_nobody_up(void **state)
{
	struct fixture *f = *state;
	int good = f->client, fd;

	f->client = fd = connect_client(f);
	for (int i = 0; i < 100; i++)
		put_text(f, METHOD("Big"));
	f->client = good;
	for (int i = 0; i < 20; i++)
		expect(f, METHOD("Echo"), "{\"parameters\":{\"echo\":{}}}");
	expect_count(f, 2);
	for (const struct connection *c = f->control->connections; c; c = c->next)
		assert_true(c->output_length <= BIG_OCTETS + 64);
	close_fd(&fd);
	expect_count(f, 1);
	expect(f, METHOD("Echo"), "{\"parameters\":{\"echo\":{}}}");
}

static void an_answer_beyond_the_bound_is_an_error(void **state)
{
	struct fixture *f = *state;

	expect(f, "{\"method\":\"io.reuseport.Control.Big\",\"parameters\":{\"size\":9000000}}",
		"{\"error\":\"io.reuseport.Control.Failed\",\"parameters\":{\"errno\":90,\"message\":"
		"\"the answer is larger than 8 MiB; ask for one service\"}}");
	expect_count(f, 1);
}

/* What was sent is not kept: an idle connection costs no buffer. */
static void nothing_is_kept_of_an_answer_that_was_read(void **state)
{
	struct fixture *f = *state;
	json_t *reply;

	put_text(f, METHOD("Big"));
	reply = take(f);
	assert_non_null(reply);
	json_decref(reply);
	assert_null(f->control->connections->output);
}

/* Whatever one connection has sent in advance, between two of its calls others are answered. */
static void calls_sent_in_advance_wait_for_others(void **state)
{
	struct fixture *f = *state;
	int fd;
	static const char call[] = "{\"method\":\"io.reuseport.Control.Change\",\"oneway\":true}";
	static char calls[1000 * sizeof(call)];

	for (int i = 0; i < 1000; i++)
		memcpy(calls + (size_t)i * sizeof(call), call, sizeof(call));
	fd = connect_client(f);
	assert_int_equal(send(fd, calls, sizeof(calls), 0), sizeof(calls));
	expect(f, METHOD("Echo"), "{\"parameters\":{\"echo\":{}}}");
	assert_in_range(f->calls, 0, 20);
	for (int i = 0; i < 2000 && f->calls < 1000; i++)
		turn(f);
	assert_int_equal(f->calls, 1000);
	close_fd(&fd);
}

static void accounts_setup(struct fixture *f, unsigned rate, uid_t uid)
{
	assert_int_equal(accounts_new(&f->accounts, f->event), 0);
	accounts_set_rate(f->accounts, rate);
	control_set_accounts(f->control, f->accounts);
	turn(f); /* the fixture's client comes; then as the user that the test wants */
	f->control->connections->account = accounts_get(f->accounts, uid);
}

static void a_user_with_too_many_calls_waits_and_loses_none(void **state)
{
	struct fixture *f = *state;
	struct account *account;

	accounts_setup(f, 10, 1234);
	account = f->control->connections->account;
	account_charge(account, now_usec(), 12); /* 1.2 s: for 0.2 s it may nothing */
	put_text(f, METHOD("Echo"));
	turn(f);
	assert_ptr_equal(account->first, &f->control->connections->turn);
	control_tick(f->control, 0);
	expect_count(f, 1);
	expect(f, METHOD("Echo"), "{\"parameters\":{\"echo\":{}}}");
	assert_null(account->first);
	/* One that leaves while it waits leaves nothing behind. */
	account_charge(account, now_usec(), 100);
	put_text(f, METHOD("Echo"));
	turn(f);
	assert_non_null(account->first);
	connection_free(f->control->connections);
	assert_null(account->first);
	assert_int_equal(account->n_octets, 0);
}

static void a_users_connections_hold_so_many_octets(void **state)
{
	static char spaces[CALL_OCTETS - 65536];
	struct fixture *f = *state;
	int fds[40];
	unsigned n = 0;

	memset(spaces, ' ', sizeof(spaces));
	accounts_setup(f, 0, 0);
	for (size_t i = 0; i < ARRAY_SIZE(fds); i++) {
		fds[i] = connect_client(f);
		turn(f);
		f->control->connections->account->n_octets -= f->control->connections->n_octets;
		f->control->connections->account = accounts_get(f->accounts, 1234);
		for (size_t sent = 0; sent < sizeof(spaces);) {
			ssize_t octets = send(fds[i], spaces, 65536, MSG_NOSIGNAL | MSG_DONTWAIT);

			if (octets < 0 && errno != EAGAIN)
				break;
			sent += octets > 0 ? (size_t)octets : 0;
			turn(f);
		}
	}
	for (struct connection *c = f->control->connections; c; c = c->next)
		n++;
	/* Each holds almost a MiB: so many fit, and the fixture's own. */
	assert_in_range(n, 32, 36);
	assert_in_range(accounts_get(f->accounts, 1234)->n_octets, USER_OCTETS / 2, USER_OCTETS);
	for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
		close_fd(&fds[i]);
	expect_count(f, 1);
	assert_int_equal(accounts_get(f->accounts, 1234)->n_octets, 0);
}

static void half_a_call_and_an_unread_answer_have_their_time(void **state)
{
	struct fixture *f = *state;
	int half = connect_client(f), unread = connect_client(f), idle = connect_client(f);

	put(f, half, "{\"method\":\"io.reuse", 19); /* without the NUL that ends a call */
	put(f, unread, METHOD("Big"), sizeof(METHOD("Big")));
	expect_count(f, 4);
	for (int i = 0; i < 20; i++)
		expect(f, METHOD("Echo"), "{\"parameters\":{\"echo\":{}}}");
	control_tick(f->control, 3600 * USEC_PER_SEC);
	expect_count(f, 4);
	turn(f);
	control_tick(f->control, 0);
	expect_count(f, 2);
	expect(f, METHOD("Echo"), "{\"parameters\":{\"echo\":{}}}");
	close_fd(&half);
	close_fd(&unread);
	close_fd(&idle);
}

static void one_user_has_so_many_connections(void **state)
{
	struct fixture *f = *state;
	int fds[20], open = 0;

	control_set_max_connections(f->control, 8);
	expect(f, METHOD("Echo"), "{\"parameters\":{\"echo\":{}}}");
	for (size_t i = 0; i < ARRAY_SIZE(fds); i++) {
		fds[i] = connect_client(f);
		turn(f);
	}
	expect_count(f, 8);
	for (size_t i = 0; i < ARRAY_SIZE(fds); i++) {
		char octet;

		/* Refused: the end of the stream is there. */
		open += recv(fds[i], &octet, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN;
	}
	assert_int_equal(open, 7);
	expect(f, METHOD("Echo"), "{\"parameters\":{\"echo\":{}}}");
	for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
		close_fd(&fds[i]);
	expect_count(f, 1);
	fds[0] = connect_client(f);
	expect_count(f, 2);
	close_fd(&fds[0]);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		TEST(garbage_ends_its_own_connection_only),
		TEST(half_a_call_is_forgotten_with_its_connection),
		TEST(a_call_beyond_a_mebibyte_ends_its_connection),
		TEST(a_long_answer_comes_whole),
		TEST(a_client_that_never_reads_holds_one_answer_and_nobody_up),
		TEST(an_answer_beyond_the_bound_is_an_error),
		TEST(nothing_is_kept_of_an_answer_that_was_read),
		TEST(one_user_has_so_many_connections),
		TEST(calls_sent_in_advance_wait_for_others),
		TEST(a_user_with_too_many_calls_waits_and_loses_none),
		TEST(a_users_connections_hold_so_many_octets),
		TEST(half_a_call_and_an_unread_answer_have_their_time),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
