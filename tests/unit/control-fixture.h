/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The Varlink server with methods made up here. Server and clients share one thread: the event
 * loop runs where a client waits. Includes the file under test to be somebody else.
 */
#pragma once

#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

/* The user that the server takes itself for: the tests run as one user, and need two. */
static uid_t tested_euid;
#define geteuid() tested_euid
#include "daemon/control.c"
#undef geteuid

#define DEADLINE_SEC 60
#define BIG_OCTETS (3 * 1024 * 1024)

struct counter {
	struct control_stream stream;
	int left, n, ended; /* replies to come, that were made; ends */
	bool big, fails;
};

struct fixture {
	struct counter counter;
	sd_event *event;
	struct control *control;
	struct accounts *accounts; /* NULL, unless the test makes them */
	struct sockaddr_un address;
	socklen_t address_length;
	unsigned calls; /* of Change */
	int client;
	struct varlink_buffer input; /* of client */
};

static inline int method_echo(
	void *user_data, const json_t *parameters, json_t **ret, const char **ret_error)
{
	*ret = json_pack("{s:O}", "echo", parameters);
	return 0;
}

static inline int method_change(
	void *user_data, const json_t *parameters, json_t **ret, const char **ret_error)
{
	struct fixture *f = user_data;

	*ret = json_pack("{s:i}", "calls", (int)++f->calls);
	return 0;
}

static inline int method_fail(
	void *user_data, const json_t *parameters, json_t **ret, const char **ret_error)
{
	return -ENOSPC;
}

static inline int method_no_worker(
	void *user_data, const json_t *parameters, json_t **ret, const char **ret_error)
{
	*ret_error = "io.reuseport.Control.NoSuchWorker";
	*ret = json_pack("{s:s}", "worker", "7");
	return -ENOENT;
}

/* size octets, BIG_OCTETS by default. */
static inline int method_big(
	void *user_data, const json_t *parameters, json_t **ret, const char **ret_error)
{
	json_int_t size = json_integer_value(json_object_get(parameters, "size"));
	char *text = malloc((size_t)(size ? size : BIG_OCTETS) + 1);

	if (!text)
		return -ENOMEM;
	memset(text, 'x', (size_t)(size ? size : BIG_OCTETS));
	text[size ? size : BIG_OCTETS] = '\0';
	*ret = json_pack("{s:s}", "big", text);
	free(text);
	return 0;
}

static inline int next_count(struct control_stream *stream, json_t **ret)
{
	struct counter *counter = (struct counter *)stream;
	static char text[BIG_OCTETS + 1];

	if (counter->fails)
		return -EIO;
	if (!counter->left)
		return 0;
	counter->left--;
	counter->n++;
	memset(text, 'x', BIG_OCTETS);
	*ret = counter->big ? json_pack("{s:s}", "big", text) : json_pack("{s:i}", "n", counter->n);
	return 1;
}

static inline void end_count(struct control_stream *stream)
{
	((struct counter *)stream)->ended++;
}

static inline int open_count(void *user_data, const json_t *parameters, struct control_stream **ret,
	json_t **ret_parameters, const char **ret_error)
{
	struct fixture *f = user_data;

	f->counter.stream = (struct control_stream){.next = next_count, .end = end_count};
	*ret = &f->counter.stream;
	return 0;
}

static const struct control_method methods[] = {
	{.name = "Count", .opener = open_count},
	{.name = "Echo", .handler = method_echo},
	{.name = "Change", .changes = true, .handler = method_change},
	{.name = "Fail", .handler = method_fail},
	{.name = "NoWorker", .handler = method_no_worker},
	{.name = "Big", .handler = method_big},
	{0},
};

static inline int64_t now_sec(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec;
}

/* One turn of the server, if there is anything for it to do within 100 ms. */
static inline void turn(struct fixture *f)
{
	assert_true(sd_event_run(f->event, 100 * USEC_PER_MSEC) >= 0);
}

static inline int connect_client(struct fixture *f)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	assert_true(fd >= 0);
	assert_int_equal(connect(fd, (const struct sockaddr *)&f->address, f->address_length), 0);
	return fd;
}

static inline int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	*state = f;
	tested_euid = getuid();
	if (!f || listener < 0)
		return -1;
	/* Autobind, unix(7): a free abstract name, no file to remove. */
	f->address.sun_family = AF_UNIX;
	f->address_length = sizeof(f->address);
	if (bind(listener, (struct sockaddr *)&f->address, sizeof(sa_family_t)) < 0 ||
		listen(listener, 64) < 0 ||
		getsockname(listener, (struct sockaddr *)&f->address, &f->address_length) < 0 ||
		sd_event_new(&f->event) < 0 ||
		control_new(&f->control, f->event, listener, methods, f) < 0)
		return -1;
	f->client = connect_client(f);
	return 0;
}

static inline int teardown(void **state)
{
	struct fixture *f = *state;

	control_free(f->control);
	accounts_free(f->accounts);
	sd_event_unref(f->event);
	close_fd(&f->client);
	varlink_done(&f->input);
	free(f);
	return 0;
}

static inline void put(struct fixture *f, int fd, const void *octets, size_t length)
{
	int64_t end = now_sec() + DEADLINE_SEC;
	const char *next = octets;

	while (length) {
		ssize_t n = send(fd, next, length, MSG_NOSIGNAL | MSG_DONTWAIT);

		assert_true(now_sec() < end);
		if (n < 0) {
			assert_int_equal(errno, EAGAIN);
			turn(f);
			continue;
		}
		next += n;
		length -= (size_t)n;
	}
}

static inline void put_text(struct fixture *f, const char *text)
{
	put(f, f->client, text, strlen(text) + 1);
}

/* The next message that comes to the client; NULL when the server closed the connection. */
static inline json_t *take(struct fixture *f)
{
	int64_t end = now_sec() + DEADLINE_SEC;
	json_t *message = NULL;

	for (;;) {
		int result = varlink_next(&f->input, &message, NULL);

		if (result)
			return result > 0 ? message : NULL;
		result = varlink_fill(&f->input, f->client, 64 * 1024 * 1024);
		if (result == 0 || result == -ECONNRESET)
			return NULL;
		assert_true(result == 1 || result == -EAGAIN);
		assert_true(now_sec() < end);
		if (result == -EAGAIN)
			turn(f);
	}
}

/* Sends call and compares the whole reply with what is expected, both as JSON. */
static inline void expect(struct fixture *f, const char *call, const char *expected)
{
	json_t *wanted = json_loads(expected, 0, NULL), *reply;

	put_text(f, call);
	reply = take(f);
	assert_non_null(wanted);
	assert_non_null(reply);
	if (!json_equal(reply, wanted)) {
		char *text = json_dumps(reply, 0);

		print_error("%s was answered %s\n", call, text);
		free(text);
		fail();
	}
	json_decref(wanted);
	json_decref(reply);
}

#define METHOD(name) "{\"method\":\"io.reuseport.Control." name "\"}"
#define DONE(n) "{\"parameters\":{\"calls\":" #n "}}"

static inline unsigned count(const struct fixture *f)
{
	unsigned n = 0;

	for (const struct connection *c = f->control->connections; c; c = c->next)
		n++;
	return n;
}

static inline void expect_count(struct fixture *f, unsigned n)
{
	int64_t end = now_sec() + DEADLINE_SEC;

	while (count(f) != n) {
		assert_true(now_sec() < end);
		turn(f);
	}
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, setup, teardown)
