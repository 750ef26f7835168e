/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Varlink's framing: messages come out whole and in order however the stream was cut, what is no
 * JSON object is refused, and a message without an end does not grow beyond the limit.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/util.h"
#include "proto/varlink.h"

#define LIMIT (1024 * 1024)

struct fixture {
	int pair[2];
	struct varlink_buffer buffer;
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	*state = f;
	return f ? socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, f->pair) : -1;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	varlink_done(&f->buffer);
	close_fd(&f->pair[0]);
	close_fd(&f->pair[1]);
	free(f);
	return 0;
}

static void put(struct fixture *f, const void *octets, size_t length)
{
	assert_int_equal(send(f->pair[0], octets, length, MSG_NOSIGNAL), length);
}

static void expect_number(struct fixture *f, json_int_t number)
{
	json_t *message = NULL;

	assert_int_equal(varlink_next(&f->buffer, &message, NULL), 1);
	assert_int_equal(json_integer_value(json_object_get(message, "n")), number);
	json_decref(message);
}

static void nothing_is_whole_at_first(void **state)
{
	struct fixture *f = *state;
	json_t *message = NULL;

	assert_int_equal(varlink_next(&f->buffer, &message, NULL), 0);
	assert_int_equal(varlink_fill(&f->buffer, f->pair[1], LIMIT), -EAGAIN);
	assert_int_equal(varlink_next(&f->buffer, &message, NULL), 0);
	assert_null(message);
}

static void messages_of_one_read_come_in_order(void **state)
{
	static const char three[] = "{\"n\":1}\0{\"n\":2}\0{\"n\":3}"; /* and its own NUL */
	struct fixture *f = *state;
	json_t *message = NULL;

	put(f, three, sizeof(three));
	assert_int_equal(varlink_fill(&f->buffer, f->pair[1], LIMIT), 1);
	for (int i = 1; i <= 3; i++)
		expect_number(f, i);
	assert_int_equal(varlink_next(&f->buffer, &message, NULL), 0);
}

static void stream_cut_after_every_octet(void **state)
{
	static const char two[] = "{\"n\":1}\0{\"n\":22}";
	struct fixture *f = *state;
	json_t *message = NULL;
	int found = 0;

	for (size_t i = 0; i < sizeof(two); i++) {
		put(f, two + i, 1);
		assert_int_equal(varlink_fill(&f->buffer, f->pair[1], LIMIT), 1);
		if (two[i]) {
			assert_int_equal(varlink_next(&f->buffer, &message, NULL), 0);
			continue;
		}
		expect_number(f, found++ ? 22 : 1);
	}
	assert_int_equal(found, 2);
}

static void half_a_message_then_the_end(void **state)
{
	struct fixture *f = *state;
	json_t *message = NULL;

	put(f, "{\"n\":", 5);
	close_fd(&f->pair[0]);
	assert_int_equal(varlink_fill(&f->buffer, f->pair[1], LIMIT), 1);
	assert_int_equal(varlink_next(&f->buffer, &message, NULL), 0);
	assert_int_equal(varlink_fill(&f->buffer, f->pair[1], LIMIT), 0);
}

static void what_is_no_object_is_refused_and_the_next_is_read(void **state)
{
	static const char *const bad[] = {"", " ", "1", "[]", "null", "\"x\"", "{", "}", "{}x",
		"{\"n\":1,\"n\":2}", "{\"n\":\"\xff\xfe\"}", "{\"n\":\"\\ud800\"}", "{n:1}",
		"GET / HTTP/1.1\r\n\r\n"};
	struct fixture *f = *state;

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		json_t *message = NULL;
		char *reason = NULL;

		put(f, bad[i], strlen(bad[i]) + 1);
		put(f, "{\"n\":7}", 8);
		while (varlink_fill(&f->buffer, f->pair[1], LIMIT) == 1)
			continue;
		assert_int_equal(varlink_next(&f->buffer, &message, &reason), -EBADMSG);
		assert_null(message);
		assert_non_null(reason);
		free(reason);
		expect_number(f, 7);
	}
}

static void nesting_without_end_is_refused(void **state)
{
	enum { DEPTH = 20000 };
	struct fixture *f = *state;
	char *octets = malloc(DEPTH + 1);
	json_t *message = NULL;

	assert_non_null(octets);
	memset(octets, '[', DEPTH);
	octets[DEPTH] = '\0';
	put(f, octets, DEPTH + 1);
	free(octets);
	while (varlink_fill(&f->buffer, f->pair[1], LIMIT) == 1)
		continue;
	assert_int_equal(varlink_next(&f->buffer, &message, NULL), -EBADMSG);
}

static void message_without_end_stops_at_the_limit(void **state)
{
	static char octets[16384];
	struct fixture *f = *state;
	json_t *message = NULL;
	size_t sent = 0;
	int result = 0;

	memset(octets, ' ', sizeof(octets));
	while (result >= 0 && sent < 4 * LIMIT) {
		put(f, octets, sizeof(octets));
		sent += sizeof(octets);
		result = varlink_fill(&f->buffer, f->pair[1], LIMIT);
		if (result > 0)
			assert_int_equal(varlink_next(&f->buffer, &message, NULL), 0);
	}
	assert_int_equal(result, -ENOBUFS);
	assert_in_range(f->buffer.length, LIMIT, LIMIT + 65536);
	assert_in_range(f->buffer.allocated, LIMIT, LIMIT + 3 * 65536);
}

static void many_messages_do_not_count_together(void **state)
{
	static char octets[16384];
	struct fixture *f = *state;

	memset(octets, ' ', sizeof(octets));
	memcpy(octets, "{\"n\":5}", 7);
	octets[sizeof(octets) - 1] = '\0';
	for (int i = 0; i < 256; i++) { /* 4 MiB in all */
		put(f, octets, sizeof(octets));
		assert_int_equal(varlink_fill(&f->buffer, f->pair[1], LIMIT), 1);
		expect_number(f, 5);
		assert_int_equal(f->buffer.allocated, 0);
	}
}

static void whoever_has_said_all_costs_no_memory(void **state)
{
	struct fixture *f = *state;

	put(f, "{\"n\":6}\0{", 9);
	assert_int_equal(varlink_fill(&f->buffer, f->pair[1], LIMIT), 1);
	expect_number(f, 6);
	assert_true(f->buffer.allocated > 0);
	put(f, "\"n\":7}", 7);
	assert_int_equal(varlink_fill(&f->buffer, f->pair[1], LIMIT), 1);
	expect_number(f, 7);
	assert_int_equal(f->buffer.allocated, 0);
	assert_int_equal(varlink_fill(&f->buffer, f->pair[1], LIMIT), -EAGAIN);
	assert_int_equal(f->buffer.allocated, 0);
}

static void encoded_ends_with_its_only_nul(void **state)
{
	struct fixture *f = *state;
	json_t *message = json_pack("{s:i, s:s}", "n", 9, "text", "a\xc3\xa9\n"), *back = NULL;
	size_t length = 0;
	char *text = NULL;

	assert_int_equal(varlink_encode(message, &text, &length), 0);
	assert_int_equal(strlen(text) + 1, length);
	put(f, text, length);
	free(text);
	assert_int_equal(varlink_fill(&f->buffer, f->pair[1], LIMIT), 1);
	assert_int_equal(varlink_next(&f->buffer, &back, NULL), 1);
	assert_true(json_equal(message, back));
	json_decref(message);
	json_decref(back);
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, setup, teardown)

int main(void)
{
	static const struct CMUnitTest tests[] = {
		TEST(nothing_is_whole_at_first),
		TEST(messages_of_one_read_come_in_order),
		TEST(stream_cut_after_every_octet),
		TEST(half_a_message_then_the_end),
		TEST(what_is_no_object_is_refused_and_the_next_is_read),
		TEST(nesting_without_end_is_refused),
		TEST(message_without_end_stops_at_the_limit),
		TEST(many_messages_do_not_count_together),
		TEST(whoever_has_said_all_costs_no_memory),
		TEST(encoded_ends_with_its_only_nul),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
