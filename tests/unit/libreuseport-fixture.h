/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * libreuseport against a daemon that follows a script, for tests of the library. After each test
 * the process has exactly the descriptors it had before.
 */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "client-lib/reuseport.h"
#include "tests/unit/fake-daemon.h"

#define WAIT_MSEC 60000

struct fixture {
	int n_descriptors;
	struct fake_daemon daemon;
	struct reuseport *r;

	/* what the callbacks saw */
	unsigned n_drains, n_rotations, n_disconnects, n_stalls;
	unsigned stalled_workers; /* bits */
	enum reuseport_drain_reason reason;
	uint64_t deadline_usec;
	unsigned rotated_listeners; /* bits */
	int error;
	char text[PROTOCOL_TEXT_MAX];
};

static inline void on_drain(struct reuseport *r, enum reuseport_drain_reason reason,
	uint64_t deadline_usec, void *user_data)
{
	struct fixture *f = user_data;

	f->n_drains++;
	f->reason = reason;
	f->deadline_usec = deadline_usec;
}

static inline void on_keys_rotated(struct reuseport *r, unsigned listener, void *user_data)
{
	struct fixture *f = user_data;

	f->n_rotations++;
	f->rotated_listeners |= 1u << listener;
}

static inline void on_disconnected(
	struct reuseport *r, int error, const char *text, void *user_data)
{
	struct fixture *f = user_data;

	f->n_disconnects++;
	f->error = error;
	snprintf(f->text, sizeof(f->text), "%s", text);
}

static inline void on_stalled(struct reuseport *r, unsigned worker, int stalled, void *user_data)
{
	struct fixture *f = user_data;

	f->n_stalls++;
	assert_true(stalled == 0 || stalled == 1);
	assert_int_equal(f->stalled_workers >> worker & 1, !stalled);
	f->stalled_workers ^= 1u << worker;
}

static inline int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	*state = f;
	if (!f)
		return -1;
	f->daemon.listener = f->daemon.fake.sync[0] = f->daemon.fake.sync[1] = -1;
	f->n_descriptors = count_descriptors();
	return 0;
}

static inline int teardown(void **state)
{
	struct fixture *f = *state;
	int status = 0, n;

	reuseport_close(f->r);
	if (f->daemon.pid > 0)
		status = fake_end(&f->daemon);
	n = count_descriptors();
	if (status)
		print_error("the fake daemon ended with status %#x\n", (unsigned)status);
	if (n != f->n_descriptors)
		print_error("descriptors before: %d, after: %d\n", f->n_descriptors, n);
	n -= f->n_descriptors;
	free(f);
	return status || n ? -1 : 0;
}

static inline void start(struct fixture *f, void (*script)(struct fake *d))
{
	static const struct reuseport_callbacks callbacks = {
		.drain = on_drain,
		.keys_rotated = on_keys_rotated,
		.disconnected = on_disconnected,
		.stalled = on_stalled,
	};

	assert_int_equal(fake_start(&f->daemon, script), 0);
	assert_int_equal(reuseport_open(&f->r, f->daemon.path, WAIT_MSEC), 0);
	assert_int_equal(count_descriptors(),
		f->n_descriptors + 4); /* socket, epoll, eventfd; the test's end of the pipe */
	reuseport_set_callbacks(f->r, &callbacks, f);
}

#define CHECK(call, expected)                                       \
	do {                                                        \
		int check_result = (call);                          \
		if (check_result != (expected))                     \
			print_error("%s\n", reuseport_error(f->r)); \
		assert_int_equal(check_result, expected);           \
	} while (0)

#define CHECK_ERROR(sentence) assert_non_null(strstr(reuseport_error(f->r), sentence))

static inline void serve_one_worker(struct fake *d)
{
	fake_welcome(d);
	fake_register(d, 1);
	fake_receive_end(d);
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, setup, teardown)
