/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Calls with more than one answer: as many as there is something to say, and as far as the client
 * reads.
 */
#include "tests/unit/control-fixture.h"

#define MORE(name) "{\"method\":\"io.reuseport.Control." name "\",\"more\":true}"
#define COUNTED(n) "{\"continues\":true,\"parameters\":{\"n\":" n "}}"

static void expect_next(struct fixture *f, const char *expected)
{
	json_t *wanted = json_loads(expected, 0, NULL), *reply = take(f);

	assert_non_null(reply);
	assert_true(json_equal(wanted, reply));
	json_decref(wanted);
	json_decref(reply);
}

static void a_stream_answers_as_long_as_there_is_something(void **state)
{
	struct fixture *f = *state;

	f->counter.left = 2;
	expect(f, MORE("Count"), COUNTED("1"));
	expect_next(f, COUNTED("2"));
	turn(f);
	assert_int_equal(f->counter.n, 2);
	f->counter.left = 1;
	control_stream_wake(&f->counter.stream);
	expect_next(f, COUNTED("3"));
}

static void a_stream_takes_no_other_call(void **state)
{
	struct fixture *f = *state;

	f->counter.left = 1;
	expect(f, MORE("Count"), COUNTED("1"));
	put_text(f, METHOD("Echo"));
	turn(f);
	f->counter.left = 1;
	control_stream_wake(&f->counter.stream);
	expect_next(f, COUNTED("2"));
	assert_true(f->control->connections->output_length == 0);
}

static void a_stream_is_asked_only_as_far_as_its_client_reads(void **state)
{
	struct fixture *f = *state;

	f->counter.left = 1000000;
	f->counter.big = true;
	put_text(f, MORE("Count"));
	for (int i = 0; i < 100; i++)
		turn(f);
	assert_true(f->control->connections->output_length <= STREAM_OCTETS + BIG_OCTETS + 128);
	assert_in_range(f->counter.n, 1, 10);
	/* However long that takes it, while other answers that nobody reads are an end. */
	control_tick(f->control, 0);
	expect_count(f, 1);
}

static void a_stream_ends_with_its_connection(void **state)
{
	struct fixture *f = *state;
	json_t *reply;

	f->counter.left = 1;
	put_text(f, MORE("Count"));
	reply = take(f);
	assert_non_null(reply);
	json_decref(reply);
	turn(f);
	close_fd(&f->client);
	turn(f);
	expect_count(f, 0);
	assert_int_equal(f->counter.ended, 1);
}

static void a_stream_that_fails_ends_its_connection(void **state)
{
	struct fixture *f = *state;

	f->counter.fails = true;
	put_text(f, MORE("Count"));
	assert_null(take(f));
	assert_int_equal(f->counter.ended, 1);
}

static void a_stream_needs_more_and_an_answer(void **state)
{
	struct fixture *f = *state;

	expect(f, METHOD("Count"),
		"{\"error\":\"org.varlink.service.ExpectedMore\",\"parameters\":{}}");
	put_text(f, "{\"method\":\"io.reuseport.Control.Count\",\"more\":true,\"oneway\":true}");
	expect(f, METHOD("Echo"), "{\"parameters\":{\"echo\":{}}}");
	assert_int_equal(f->counter.n, 0);
}

/* Other methods have one reply, whatever was allowed. */
static void more_changes_nothing_for_others(void **state)
{
	expect(*state, MORE("Echo"), "{\"parameters\":{\"echo\":{}}}");
	expect(*state, METHOD("Echo"), "{\"parameters\":{\"echo\":{}}}");
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		TEST(a_stream_answers_as_long_as_there_is_something),
		TEST(a_stream_takes_no_other_call),
		TEST(a_stream_is_asked_only_as_far_as_its_client_reads),
		TEST(a_stream_ends_with_its_connection),
		TEST(a_stream_that_fails_ends_its_connection),
		TEST(a_stream_needs_more_and_an_answer),
		TEST(more_changes_nothing_for_others),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
