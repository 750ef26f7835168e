/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * libreuseport against a daemon that follows a script: registration, errors in words, events during
 * calls, descriptors that get lost, deadlines, and the daemon's death. After each test the process
 * has exactly the descriptors it had before.
 */
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include <cmocka.h>

#include "bpf/quic_lb.h"
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

static void on_drain(struct reuseport *r, enum reuseport_drain_reason reason,
	uint64_t deadline_usec, void *user_data)
{
	struct fixture *f = user_data;

	f->n_drains++;
	f->reason = reason;
	f->deadline_usec = deadline_usec;
}

static void on_keys_rotated(struct reuseport *r, unsigned listener, void *user_data)
{
	struct fixture *f = user_data;

	f->n_rotations++;
	f->rotated_listeners |= 1u << listener;
}

static void on_disconnected(struct reuseport *r, int error, const char *text, void *user_data)
{
	struct fixture *f = user_data;

	f->n_disconnects++;
	f->error = error;
	snprintf(f->text, sizeof(f->text), "%s", text);
}

static void on_stalled(struct reuseport *r, unsigned worker, int stalled, void *user_data)
{
	struct fixture *f = user_data;

	f->n_stalls++;
	assert_true(stalled == 0 || stalled == 1);
	assert_int_equal(f->stalled_workers >> worker & 1, !stalled);
	f->stalled_workers ^= 1u << worker;
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	*state = f;
	if (!f)
		return -1;
	f->daemon.listener = f->daemon.fake.sync[0] = f->daemon.fake.sync[1] = -1;
	f->n_descriptors = count_descriptors();
	return 0;
}

static int teardown(void **state)
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

static void start(struct fixture *f, void (*script)(struct fake *d))
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

static int poll_now(struct fixture *f)
{
	struct pollfd p = {
		.fd = reuseport_get_fd(f->r),
		.events = (short)reuseport_get_events(f->r),
	};

	return poll(&p, 1, 0);
}

/* Registration */

static void serve_three_workers(struct fake *d)
{
	fake_welcome(d);
	EXPECT(fake_pid_of(d->message.fds[0]) == getppid());
	fake_register(d, 3);
	EXPECT(d->message.n_fds == 0);
	fake_receive(d, PROTOCOL_READY);
	EXPECT(le32toh(d->message.registration.registration) == d->registration);
	fake_ok(d);
	fake_receive(d, PROTOCOL_DRAIN);
	fake_ok(d);
	fake_receive(d, PROTOCOL_UNREGISTER);
	fake_ok(d);
	fake_receive_end(d);
}

static void three_workers_get_a_socket_for_each_of_two_listeners(void **state)
{
	struct fixture *f = *state;

	start(f, serve_three_workers);
	assert_int_equal(reuseport_n_workers(f->r), 0);
	assert_int_equal(reuseport_n_listeners(f->r), 0);
	CHECK(reuseport_register(f->r, "web", NULL, 3, 0, WAIT_MSEC), 0);
	assert_int_equal(reuseport_n_workers(f->r), 3);
	assert_int_equal(reuseport_n_listeners(f->r), 2);
	assert_string_equal(reuseport_instance(f->r), "made-up");
	assert_string_equal(reuseport_listener_name(f->r, 0), "http");
	assert_string_equal(reuseport_listener_name(f->r, 1), "admin");
	assert_null(reuseport_listener_name(f->r, 2));
	assert_null(reuseport_listener_address(f->r, 2));
	assert_int_equal(reuseport_listener_transport(f->r, 1), REUSEPORT_TCP);
	assert_int_equal(reuseport_listener_transport(f->r, 2), -ERANGE);
	assert_int_equal(reuseport_listener_cid_mode(f->r, 0), REUSEPORT_CID_NONE);
	assert_int_equal(reuseport_slot(f->r, 3), -ERANGE);
	for (unsigned w = 0; w < 3; w++) {
		assert_int_equal(reuseport_slot(f->r, w), 100 + w);
		for (unsigned l = 0; l < 2; l++) {
			int fd = reuseport_socket(f->r, w, l), accepts = 0;
			struct sockaddr_in address;
			socklen_t size = sizeof(accepts);
			char text[64];

			assert_true(fd >= 0);
			assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
			assert_true(fcntl(fd, F_GETFL) & O_NONBLOCK);
			assert_int_equal(
				getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &accepts, &size), 0);
			assert_int_equal(accepts, 1);
			size = sizeof(address);
			assert_int_equal(getsockname(fd, (struct sockaddr *)&address, &size), 0);
			snprintf(text, sizeof(text), "127.0.0.1:%u", ntohs(address.sin_port));
			if (w == 0) /* descriptors go by the listener's index, not by order */
				assert_string_equal(reuseport_listener_address(f->r, l), text);
		}
	}
	assert_int_equal(reuseport_socket(f->r, 3, 0), -ERANGE);
	assert_int_equal(reuseport_socket(f->r, 0, 2), -ERANGE);
	assert_int_equal(count_descriptors(), f->n_descriptors + 4 + 6);
	CHECK(reuseport_register(f->r, "web", NULL, 1, 0, WAIT_MSEC), -EALREADY);
	CHECK(reuseport_ready(f->r, WAIT_MSEC), 0);
	CHECK(reuseport_drain(f->r, WAIT_MSEC), 0);
	CHECK(reuseport_unregister(f->r, WAIT_MSEC), 0);
	assert_int_equal(reuseport_n_workers(f->r), 0);
	assert_int_equal(count_descriptors(), f->n_descriptors + 4);
	CHECK(reuseport_ready(f->r, WAIT_MSEC), -EINVAL);
}

static void serve_one_worker(struct fake *d)
{
	fake_welcome(d);
	fake_register(d, 1);
	fake_receive_end(d);
}

static void a_taken_socket_is_the_callers(void **state)
{
	struct fixture *f = *state;
	int fd;

	start(f, serve_one_worker);
	CHECK(reuseport_register(f->r, "web", "web@1", 1, 250, WAIT_MSEC), 0);
	fd = reuseport_take_socket(f->r, 0, 1);
	assert_true(fd >= 0);
	assert_int_equal(reuseport_take_socket(f->r, 0, 1), -EBADF);
	assert_int_equal(reuseport_socket(f->r, 0, 1), -EBADF);
	reuseport_close(f->r);
	f->r = NULL;
	assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
	assert_int_equal(close(fd), 0);
}

static void refuse_and_then_grant(struct fake *d)
{
	fake_welcome(d);
	fake_receive(d, PROTOCOL_REGISTER);
	EXPECT(!strcmp(d->message.reg.service, "web"));
	EXPECT(!strcmp(d->message.reg.instance, "web@1"));
	EXPECT(le32toh(d->message.reg.weight) == 250);
	fake_error(d, EACCES, "user 1000 may not use service web (AllowUser=)");
	fake_receive(d, PROTOCOL_REGISTER);
	fake_error(d, EDQUOT, "");
	fake_receive(d, PROTOCOL_REGISTER);
	fake_grant(d, d->message.header.sequence, 0, 2);
	fake_receive(d, PROTOCOL_ACK);
	fake_error(d, EMFILE, "no slot left"); /* in the middle of a registration */
	fake_receive(d, PROTOCOL_UNREGISTER);
	fake_ok(d);
	fake_register(d, 1);
	fake_receive_end(d);
}

static void a_refusal_is_told_in_words_and_the_context_goes_on(void **state)
{
	struct fixture *f = *state;

	start(f, refuse_and_then_grant);
	CHECK(reuseport_register(f->r, "web", "web@1", 1, 250, WAIT_MSEC), -EACCES);
	assert_string_equal(reuseport_error(f->r),
		"cannot register with service web: user 1000 may not use service web (AllowUser=)");
	CHECK(reuseport_register(f->r, "web", "web@1", 1, 250, WAIT_MSEC), -EDQUOT);
	assert_string_equal(
		reuseport_error(f->r), "cannot register with service web: Disk quota exceeded");
	CHECK(reuseport_register(f->r, "web", NULL, 2, 0, WAIT_MSEC), -EMFILE);
	CHECK_ERROR("no slot left");
	assert_int_equal(reuseport_n_workers(f->r), 0);
	assert_int_equal(count_descriptors(), f->n_descriptors + 4);
	CHECK(reuseport_register(f->r, "web", NULL, 1, 0, WAIT_MSEC), 0);
}

static void serve_nothing(struct fake *d)
{
	fake_welcome(d);
	fake_receive_end(d);
}

static void arguments_are_checked_before_anything_is_sent(void **state)
{
	struct fixture *f = *state;
	char name[PROTOCOL_NAME_MAX + 1];

	memset(name, 'a', sizeof(name));
	name[PROTOCOL_NAME_MAX] = '\0';
	start(f, serve_nothing);
	CHECK(reuseport_register(f->r, NULL, NULL, 1, 0, WAIT_MSEC), -EINVAL);
	CHECK(reuseport_register(f->r, "", NULL, 1, 0, WAIT_MSEC), -EINVAL);
	CHECK(reuseport_register(f->r, name, NULL, 1, 0, WAIT_MSEC), -EINVAL);
	CHECK(reuseport_register(f->r, "web", name, 1, 0, WAIT_MSEC), -EINVAL);
	CHECK(reuseport_register(f->r, "web", NULL, 0, 0, WAIT_MSEC), -EINVAL);
	CHECK(reuseport_register(f->r, "web", NULL, 65, 0, WAIT_MSEC), -EINVAL);
	CHECK_ERROR("65 workers: one registration has 1 to 64");
	CHECK(reuseport_register(f->r, "web", NULL, 1, 1001, WAIT_MSEC), -EINVAL);
	CHECK(reuseport_ready(f->r, WAIT_MSEC), -EINVAL);
	CHECK(reuseport_drain(f->r, WAIT_MSEC), -EINVAL);
	CHECK(reuseport_unregister(f->r, WAIT_MSEC), -EINVAL);
}

/* Another process behind the workers */

struct starting {
	struct fixture *f;
	unsigned n_calls;
	int result;
};

static int start_parent(struct reuseport *r, void *user_data)
{
	struct starting *s = user_data;

	s->n_calls++;
	assert_int_equal(reuseport_n_workers(r), 2);
	assert_true(reuseport_socket(r, 1, 1) >= 0); /* all are here */
	return s->result < 0 ? s->result : (int)syscall(SYS_pidfd_open, getppid(), 0);
}

static void serve_for_another_process(struct fake *d)
{
	struct message *m = &d->message;

	fake_welcome(d);
	fake_receive(d, PROTOCOL_REGISTER);
	fake_grant(d, m->header.sequence, 0, 2);
	fake_receive(d, PROTOCOL_ACK);
	EXPECT(m->ack.flags == 0);
	fake_grant(d, m->header.sequence, 1, 2);
	fake_receive(d, PROTOCOL_ACK);
	EXPECT(le32toh(m->ack.flags) == PROTOCOL_ACK_PROCESS);
	EXPECT(m->n_fds == 1);
	EXPECT(fake_pid_of(m->fds[0]) > 0 && fake_pid_of(m->fds[0]) != getppid());
	fake_ok(d);
	fake_receive_end(d);
}

static void the_last_acknowledgement_names_the_servers_process(void **state)
{
	struct fixture *f = *state;
	struct starting s = {.f = f};

	start(f, serve_for_another_process);
	CHECK(reuseport_register_for(f->r, "web", NULL, 2, 0, WAIT_MSEC, start_parent, &s), 0);
	assert_int_equal(s.n_calls, 1);
	assert_int_equal(count_descriptors(), f->n_descriptors + 4 + 4);
}

static void serve_a_start_that_fails(struct fake *d)
{
	fake_welcome(d);
	fake_receive(d, PROTOCOL_REGISTER);
	fake_grant(d, d->message.header.sequence, 0, 2);
	fake_receive(d, PROTOCOL_ACK);
	fake_grant(d, d->message.header.sequence, 1, 2);
	fake_receive(d, PROTOCOL_UNREGISTER);
	EXPECT(le32toh(d->message.registration.registration) == d->registration);
	fake_ok(d);
	fake_register(d, 1);
	fake_receive_end(d);
}

static void a_start_that_fails_gives_the_slots_back(void **state)
{
	struct fixture *f = *state;
	struct starting s = {.f = f, .result = -ECHILD};

	start(f, serve_a_start_that_fails);
	CHECK(reuseport_register_for(f->r, "web", NULL, 2, 0, WAIT_MSEC, start_parent, &s),
		-ECHILD);
	assert_int_equal(s.n_calls, 1);
	assert_int_equal(reuseport_n_workers(f->r), 0);
	assert_int_equal(count_descriptors(), f->n_descriptors + 4);
	CHECK(reuseport_register(f->r, "web", NULL, 1, 0, WAIT_MSEC), 0);
}

/* Descriptors that get lost */

static void serve_twice_in_vain(struct fake *d)
{
	fake_welcome(d);
	for (int i = 0; i < 2; i++) {
		fake_receive(d, PROTOCOL_REGISTER);
		fake_grant(d, d->message.header.sequence, 0, 1);
		fake_receive(d, PROTOCOL_UNREGISTER);
		EXPECT(le32toh(d->message.registration.registration) == d->registration);
		fake_ok(d);
	}
	fake_register(d, 1);
	fake_receive_end(d);
}

static void no_room_for_descriptors_is_emfile_and_none_stays(void **state)
{
	struct fixture *f = *state;
	struct rlimit limit, low;
	int filled[64], n = 0, none, one, before;
	char text[1024];

	start(f, serve_twice_in_vain);
	before = count_descriptors();
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
	low = limit, low.rlim_cur = 64;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &low), 0);
	while (n < 64 && (filled[n] = dup(STDIN_FILENO)) >= 0)
		n++;
	none = reuseport_register(f->r, "web", NULL, 1, 0, WAIT_MSEC);
	snprintf(text, sizeof(text), "%s", reuseport_error(f->r));
	if (n)
		close_fd(&filled[--n]);
	one = reuseport_register(f->r, "web", NULL, 1, 0, WAIT_MSEC); /* room for one of two */
	while (n)
		close_fd(&filled[--n]);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
	assert_int_equal(none, -EMFILE);
	assert_int_equal(one, -EMFILE);
	assert_string_equal(text,
		"cannot receive the sockets: descriptors were lost: the receiving process has no room for them (RLIMIT_NOFILE)");
	assert_int_equal(count_descriptors(), before);
	CHECK(reuseport_register(f->r, "web", NULL, 1, 0, WAIT_MSEC), 0);
}

/* Events */

static void serve_events_within_calls(struct fake *d)
{
	fake_welcome(d);
	fake_receive(d, PROTOCOL_REGISTER);
	fake_grant(d, d->message.header.sequence, 0, 1);
	fake_receive(d, PROTOCOL_ACK);
	fake_ok(d);
	fake_receive(d, PROTOCOL_READY);
	fake_request_drain(d, PROTOCOL_DRAIN_RELOAD, 0);
	fake_request_drain(d, PROTOCOL_DRAIN_REPLACED, 30 * USEC_PER_SEC);
	fake_event(d, 200, "", 0); /* of a later version */
	fake_ok(d);
	fake_wait(d);
	fake_request_drain(d, PROTOCOL_DRAIN_OPERATOR, 0);
	fake_receive_end(d);
}

static void events_during_a_call_are_delivered_at_the_next_dispatch(void **state)
{
	struct fixture *f = *state;

	start(f, serve_events_within_calls);
	CHECK(reuseport_register(f->r, "web", NULL, 1, 0, WAIT_MSEC), 0);
	assert_int_equal(poll_now(f), 0);
	CHECK(reuseport_dispatch(f->r, 0), 0);
	CHECK(reuseport_ready(f->r, WAIT_MSEC), 0);
	assert_int_equal(f->n_drains, 0);
	assert_int_equal(poll_now(f), 1); /* although the connection has nothing to read */
	CHECK(reuseport_dispatch(f->r, 0), 1);
	assert_int_equal(f->n_drains, 1); /* the latest counts */
	assert_int_equal(f->reason, REUSEPORT_DRAIN_REPLACED);
	assert_true(f->deadline_usec >= 1 && f->deadline_usec <= 30 * USEC_PER_SEC);
	assert_int_equal(poll_now(f), 0);
	CHECK(reuseport_dispatch(f->r, 0), 0);
	fake_continue(&f->daemon.fake);
	CHECK(reuseport_dispatch(f->r, WAIT_MSEC), 1);
	assert_int_equal(f->n_drains, 2);
	assert_int_equal(f->reason, REUSEPORT_DRAIN_OPERATOR);
	assert_int_equal(f->deadline_usec, 0);
}

static void stall(struct fake *d, uint32_t registration, uint32_t worker, uint32_t stalled)
{
	const struct protocol_stalled body = {
		.registration = htole32(registration),
		.worker = htole32(worker),
		.stalled = htole32(stalled),
	};

	fake_event(d, PROTOCOL_STALLED, &body, sizeof(body));
}

static void serve_stalls(struct fake *d)
{
	fake_welcome(d);
	fake_register(d, 3);
	fake_receive(d, PROTOCOL_READY);
	stall(d, d->registration, 0, 1);
	stall(d, d->registration, 2, 1);
	stall(d, d->registration, 1, 1);
	stall(d, d->registration, 1, 0); /* over before it was told */
	stall(d, d->registration, 3, 1); /* no such worker */
	stall(d, d->registration + 1, 1, 1);
	fake_ok(d);
	fake_wait(d);
	stall(d, d->registration, 2, 1); /* again */
	stall(d, d->registration, 0, 0);
	fake_receive_end(d);
}

static void each_stalled_worker_is_told_and_when_it_is_over(void **state)
{
	struct fixture *f = *state;

	start(f, serve_stalls);
	CHECK(reuseport_register(f->r, "web", NULL, 3, 0, WAIT_MSEC), 0);
	CHECK(reuseport_ready(f->r, WAIT_MSEC), 0);
	assert_int_equal(f->n_stalls, 0);
	assert_int_equal(poll_now(f), 1);
	CHECK(reuseport_dispatch(f->r, 0), 2);
	assert_int_equal(f->n_stalls, 2);
	assert_int_equal(f->stalled_workers, 1u << 0 | 1u << 2);
	assert_int_equal(poll_now(f), 0);
	fake_continue(&f->daemon.fake);
	CHECK(reuseport_dispatch(f->r, WAIT_MSEC), 1);
	assert_int_equal(f->n_stalls, 3);
	assert_int_equal(f->stalled_workers, 1u << 2);
}

/* Answers LOAD with memory of this size. */
static void give_loads(struct fake *d, uint32_t n_workers, off_t size, int *ret_fd)
{
	const struct protocol_loads body = {
		.registration = htole32(d->registration),
		.n_workers = htole32(n_workers),
	};

	fake_receive(d, PROTOCOL_LOAD);
	EXPECT(le32toh(d->message.registration.registration) == d->registration);
	*ret_fd = memfd_create("loads", MFD_CLOEXEC);
	EXPECT(*ret_fd >= 0 && ftruncate(*ret_fd, size) == 0);
	EXPECT(message_send(d->connection, PROTOCOL_LOADS, d->message.header.sequence, &body,
		       sizeof(body), ret_fd, 1) == 0);
}

static void serve_loads(struct fake *d)
{
	uint32_t word[2 * PROTOCOL_LOAD_OCTETS / 4] = {0};
	int fd;

	fake_welcome(d);
	fake_register(d, 2);
	fake_receive(d, PROTOCOL_LOAD);
	fake_error(d, EOPNOTSUPP, "unknown message type 11"); /* an older daemon */
	give_loads(d, 2, PROTOCOL_LOAD_OCTETS, &fd);
	close(fd);
	give_loads(d, 2, sizeof(word), &fd);
	fake_receive(d, PROTOCOL_READY);
	EXPECT(pread(fd, word, sizeof(word), 0) == sizeof(word));
	EXPECT(le32toh(word[0]) == 1001 && le32toh(word[PROTOCOL_LOAD_OCTETS / 4]) == 1);
	fake_ok(d);
	fake_receive(d, PROTOCOL_READY);
	EXPECT(pread(fd, word, sizeof(word), 0) == sizeof(word));
	EXPECT(le32toh(word[0]) == 0 && le32toh(word[PROTOCOL_LOAD_OCTETS / 4]) == 8);
	fake_ok(d);
	fake_receive_end(d);
}

static void loads_are_written_into_the_daemons_memory(void **state)
{
	struct fixture *f = *state;

	start(f, serve_loads);
	CHECK(reuseport_share_load(f->r, WAIT_MSEC), -EINVAL);
	CHECK(reuseport_register(f->r, "web", NULL, 2, 0, WAIT_MSEC), 0);
	assert_int_equal(reuseport_set_load(f->r, 0, 1), -EOPNOTSUPP);
	CHECK(reuseport_share_load(f->r, WAIT_MSEC), -EOPNOTSUPP);
	CHECK_ERROR("unknown message type 11");
	CHECK(reuseport_share_load(f->r, WAIT_MSEC), -EPROTO);
	CHECK_ERROR("memory of another size");
	CHECK(reuseport_share_load(f->r, WAIT_MSEC), 0);
	CHECK(reuseport_share_load(f->r, WAIT_MSEC), 0); /* has it */
	assert_int_equal(reuseport_set_load(f->r, 2, 1), -ERANGE);
	assert_int_equal(reuseport_set_load(f->r, 0, REUSEPORT_LOAD_MAX + 1), -ERANGE);
	assert_int_equal(reuseport_set_load(f->r, 0, -2), -ERANGE);
	assert_int_equal(reuseport_set_load(f->r, 0, REUSEPORT_LOAD_MAX), 0);
	assert_int_equal(reuseport_set_load(f->r, 1, 0), 0);
	CHECK(reuseport_ready(f->r, WAIT_MSEC), 0);
	assert_int_equal(reuseport_set_load(f->r, 0, REUSEPORT_LOAD_NONE), 0);
	assert_int_equal(reuseport_set_load(f->r, 1, 7), 0);
	CHECK(reuseport_ready(f->r, WAIT_MSEC), 0);
}

static void die_after_registration(struct fake *d)
{
	fake_welcome(d);
	fake_register(d, 1);
	fake_wait(d);
}

static void the_daemons_death_is_told_once_and_the_sockets_stay(void **state)
{
	struct fixture *f = *state;

	start(f, die_after_registration);
	CHECK(reuseport_register(f->r, "web", NULL, 1, 0, WAIT_MSEC), 0);
	fake_continue(&f->daemon.fake);
	CHECK(reuseport_dispatch(f->r, WAIT_MSEC), 1);
	assert_int_equal(f->n_disconnects, 1);
	assert_int_equal(f->error, -ECONNRESET);
	CHECK(reuseport_dispatch(f->r, 0), -ENOTCONN);
	CHECK(reuseport_dispatch(f->r, WAIT_MSEC), -ENOTCONN);
	assert_int_equal(reuseport_get_fd(f->r), -ENOTCONN);
	CHECK(reuseport_ready(f->r, WAIT_MSEC), -ENOTCONN);
	CHECK_ERROR("the connection to reuseportd ended");
	assert_int_equal(f->n_disconnects, 1);
	assert_int_equal(reuseport_n_workers(f->r), 1);
	assert_true(fcntl(reuseport_socket(f->r, 0, 0), F_GETFD) >= 0);
}

static void die_instead_of_an_answer(struct fake *d)
{
	fake_welcome(d);
	fake_register(d, 1);
	fake_receive(d, PROTOCOL_READY);
	fake_request_drain(d, PROTOCOL_DRAIN_SHUTDOWN, 0);
	fake_goodbye(d, 0, "the daemon stops");
}

static void death_during_a_call_is_its_error_and_an_event(void **state)
{
	struct fixture *f = *state;

	start(f, die_instead_of_an_answer);
	CHECK(reuseport_register(f->r, "web", NULL, 1, 0, WAIT_MSEC), 0);
	CHECK(reuseport_ready(f->r, WAIT_MSEC), -ENOTCONN);
	CHECK_ERROR("the daemon stops");
	assert_int_equal(f->n_disconnects, 0);
	assert_int_equal(poll_now(f), 1);
	CHECK(reuseport_dispatch(f->r, 0), 2);
	assert_int_equal(f->n_drains, 1);
	assert_int_equal(f->reason, REUSEPORT_DRAIN_SHUTDOWN);
	assert_int_equal(f->n_disconnects, 1);
	assert_int_equal(f->error, 0);
	assert_string_equal(f->text, "the daemon stops");
}

static void send_garbage(struct fake *d)
{
	fake_welcome(d);
	fake_register(d, 1);
	fake_wait(d);
	EXPECT(send(d->connection, "garbage", 7, MSG_NOSIGNAL) == 7);
	fake_receive_end(d);
}

static void garbage_from_the_daemon_ends_the_connection(void **state)
{
	struct fixture *f = *state;

	start(f, send_garbage);
	CHECK(reuseport_register(f->r, "web", NULL, 1, 0, WAIT_MSEC), 0);
	fake_continue(&f->daemon.fake);
	CHECK(reuseport_dispatch(f->r, WAIT_MSEC), -EPROTO);
	assert_int_equal(f->n_disconnects, 1);
	assert_int_equal(f->error, -EPROTO);
	CHECK(reuseport_dispatch(f->r, 0), -ENOTCONN);
}

/* Deadlines */

static void answer_late(struct fake *d)
{
	uint32_t sequence;

	fake_welcome(d);
	fake_register(d, 1);
	fake_receive(d, PROTOCOL_READY);
	sequence = d->message.header.sequence;
	fake_receive(d, PROTOCOL_DRAIN); /* READY has run out of time */
	EXPECT(message_send_error(d->connection, sequence, EIO, "too late") == 0);
	fake_error(d, EBUSY, "of DRAIN");
	fake_receive_end(d);
}

static void a_late_answer_is_not_taken_for_the_next_ones(void **state)
{
	struct fixture *f = *state;

	start(f, answer_late);
	CHECK(reuseport_register(f->r, "web", NULL, 1, 0, WAIT_MSEC), 0);
	CHECK(reuseport_ready(f->r, 20), -ETIMEDOUT);
	CHECK_ERROR("reuseportd did not answer in time");
	CHECK(reuseport_drain(f->r, WAIT_MSEC), -EBUSY);
	CHECK_ERROR("of DRAIN");
}

static void grant_late(struct fake *d)
{
	fake_welcome(d);
	fake_receive(d, PROTOCOL_REGISTER);
	fake_wait(d);
	fake_grant(d, d->message.header.sequence, 0, 1);
	fake_receive(d, PROTOCOL_UNREGISTER);
	EXPECT(le32toh(d->message.registration.registration) == d->registration);
	fake_ok(d);
	fake_goodbye(d, 0, "end of the script");
}

static void a_late_grant_is_given_back(void **state)
{
	struct fixture *f = *state;

	start(f, grant_late);
	CHECK(reuseport_register(f->r, "web", NULL, 1, 0, 20), -ETIMEDOUT);
	fake_continue(&f->daemon.fake);
	CHECK(reuseport_dispatch(f->r, WAIT_MSEC), 1);
	assert_int_equal(f->n_disconnects, 1);
	assert_string_equal(f->text, "end of the script");
	assert_int_equal(count_descriptors(), f->n_descriptors + 3);
}

/* Opening */

static void serve_no_one(struct fake *d)
{
	fake_receive(d, PROTOCOL_HELLO);
	fake_receive_end(d);
}

static void a_daemon_that_does_not_answer_is_a_timeout(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(fake_start(&f->daemon, serve_no_one), 0);
	assert_int_equal(reuseport_open(&f->r, f->daemon.path, 50), -ETIMEDOUT);
	assert_null(f->r);
}

static void serve_version_two(struct fake *d)
{
	struct protocol_welcome body = {.version = htole16(2)};

	fake_receive(d, PROTOCOL_HELLO);
	EXPECT(message_send(d->connection, PROTOCOL_WELCOME, d->message.header.sequence, &body,
		       sizeof(body), NULL, 0) == 0);
	fake_receive_end(d);
}

static void another_version_of_the_protocol_is_refused(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(fake_start(&f->daemon, serve_version_two), 0);
	assert_int_equal(reuseport_open(&f->r, f->daemon.path, WAIT_MSEC), -EPROTONOSUPPORT);
	assert_null(f->r);
}

static void without_anyone_the_errors_say_so(void **state)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	char path[108] = "/tmp/libreuseport-test-XXXXXX", directory[64];
	struct fixture *f = *state;
	int fd;

	assert_non_null(mkdtemp(path));
	strcpy(directory, path);
	strcat(path, "/worker.sock");
	assert_int_equal(reuseport_open(&f->r, path, WAIT_MSEC), -ENOENT);
	assert_int_equal(setenv("REUSEPORT_SOCKET", path, 1), 0);
	assert_int_equal(reuseport_open(&f->r, NULL, WAIT_MSEC), -ENOENT);
	strcpy(address.sun_path, path);
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	assert_int_equal(reuseport_open(&f->r, NULL, WAIT_MSEC), -ECONNREFUSED);
	/* Accepting nothing, with a backlog that is full, blocks connect(2) itself. */
	assert_int_equal(listen(fd, 0), 0);
	assert_int_equal(reuseport_open(&f->r, NULL, 20), -ETIMEDOUT);
	assert_int_equal(reuseport_open(&f->r, NULL, 20), -ETIMEDOUT);
	assert_int_equal(reuseport_open(&f->r, NULL, 0), -ETIMEDOUT);
	assert_int_equal(close(fd), 0);
	assert_int_equal(unsetenv("REUSEPORT_SOCKET"), 0);
	assert_int_equal(unlink(path), 0);
	assert_int_equal(rmdir(directory), 0);
	memset(path, 'a', sizeof(path));
	path[107] = '\0';
	assert_null(f->r);
	assert_string_equal(reuseport_error(NULL), "no connection to reuseportd");
}

/* In a child, since the descriptors must be 3 and 4. */
static int use_listen_fds(void)
{
	int stream = fake_make_socket(PROTOCOL_TCP), datagram = fake_make_socket(PROTOCOL_UDP);
	int high_stream = fcntl(stream, F_DUPFD, 10), high_datagram = fcntl(datagram, F_DUPFD, 10);
	struct reuseport *r = NULL;
	char pid[16];

	EXPECT(dup2(high_stream, 3) == 3 && dup2(high_datagram, 4) == 4);
	close(high_stream);
	close(high_datagram);
	snprintf(pid, sizeof(pid), "%d", getpid());
	setenv("LISTEN_FDS", "2", 1);
	setenv("LISTEN_FDNAMES", "http:dns", 1);
	setenv("LISTEN_PID", "1", 1);
	EXPECT(reuseport_open(&r, "/nonexistent/worker.sock", 1000) == -ENOENT);
	setenv("LISTEN_PID", pid, 1);
	EXPECT(reuseport_open(&r, "/nonexistent/worker.sock", 1000) == 1);
	EXPECT(reuseport_register(r, "ignored", NULL, 2, 0, 1000) == -EINVAL);
	EXPECT(reuseport_register(r, "ignored", NULL, 1, 0, 1000) == 0);
	EXPECT(reuseport_n_workers(r) == 1 && reuseport_n_listeners(r) == 2);
	EXPECT(!strcmp(reuseport_listener_name(r, 0), "http"));
	EXPECT(!strcmp(reuseport_listener_name(r, 1), "dns"));
	EXPECT(reuseport_listener_transport(r, 0) == REUSEPORT_TCP);
	EXPECT(reuseport_listener_transport(r, 1) == REUSEPORT_UDP);
	EXPECT(!strncmp(reuseport_listener_address(r, 1), "127.0.0.1:", 10));
	EXPECT(reuseport_socket(r, 0, 0) == 3 && reuseport_socket(r, 0, 1) == 4);
	EXPECT(fcntl(3, F_GETFD) == FD_CLOEXEC && (fcntl(4, F_GETFL) & O_NONBLOCK));
	EXPECT(reuseport_ready(r, 1000) == 0 && reuseport_drain(r, 1000) == 0);
	EXPECT(reuseport_get_fd(r) == -ENOTCONN && reuseport_dispatch(r, 0) == -ENOTCONN);
	EXPECT(reuseport_cid_length(r, 0) == -EOPNOTSUPP);
	EXPECT(reuseport_token_secret(r, 0, (uint8_t[REUSEPORT_SECRET_OCTETS]){}) == -EOPNOTSUPP);
	reuseport_close(r);
	EXPECT(fcntl(3, F_GETFD) == -1 && fcntl(4, F_GETFD) == -1);
	return 0;
}

static void listen_fds_stand_in_for_the_daemon(void **state)
{
	int status = -1;
	pid_t pid;

	fflush(NULL);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0)
		_exit(use_listen_fds());
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

/* Connection IDs */

static void receive_cids(struct fake *d, uint16_t type, unsigned n, uint8_t first)
{
	const struct protocol_cid *cid;

	fake_receive(d, type);
	EXPECT(le32toh(d->message.cids.registration) == d->registration);
	EXPECT(le32toh(d->message.cids.worker) == 1);
	EXPECT(le16toh(d->message.cids.listener) == 1);
	EXPECT(le16toh(d->message.cids.count) == n);
	cid = (const void *)(d->message.body + sizeof(d->message.cids));
	EXPECT(cid->length == 8 && cid->id[0] == first);
}

static void serve_registered_ids(struct fake *d)
{
	fake_welcome(d);
	fake_register(d, 2);
	receive_cids(d, PROTOCOL_CID_ADD, 512, 0);
	fake_ok(d);
	receive_cids(d, PROTOCOL_CID_ADD, 512, 2); /* 512 / 256 */
	fake_ok(d);
	receive_cids(d, PROTOCOL_CID_ADD, 76, 4);
	fake_ok(d);
	receive_cids(d, PROTOCOL_CID_RETIRE, 2, 0);
	fake_ok(d);
	receive_cids(d, PROTOCOL_CID_ADD, 1, 0);
	fake_error(d, EEXIST, "connection ID 00 is worker 0's");
	fake_receive_end(d);
}

static void registered_ids_are_sent_in_batches(void **state)
{
	static struct reuseport_cid cids[1100];
	struct fixture *f = *state;
	uint8_t id[20];

	for (size_t i = 0; i < ARRAY_SIZE(cids); i++) {
		cids[i].length = 8;
		cids[i].id[0] = (uint8_t)(i >> 8);
		cids[i].id[1] = (uint8_t)i;
	}
	f->daemon.fake.transport = PROTOCOL_QUIC;
	f->daemon.fake.cid_mode = PROTOCOL_CID_REGISTERED;
	start(f, serve_registered_ids);
	CHECK(reuseport_cid_add(f->r, 0, 0, cids, 1, WAIT_MSEC), -ERANGE);
	CHECK(reuseport_register(f->r, "quic", NULL, 2, 0, WAIT_MSEC), 0);
	CHECK(reuseport_cid_add(f->r, 1, 1, cids, ARRAY_SIZE(cids), WAIT_MSEC), 0);
	CHECK(reuseport_cid_add(f->r, 1, 1, cids, 0, WAIT_MSEC), 0);
	CHECK(reuseport_cid_retire(f->r, 1, 1, cids, 2, WAIT_MSEC), 0);
	CHECK(reuseport_cid_add(f->r, 1, 1, cids, 1, WAIT_MSEC), -EEXIST);
	CHECK_ERROR("connection ID 00 is worker 0's");
	cids[1].length = 21;
	CHECK(reuseport_cid_add(f->r, 1, 1, cids, 2, WAIT_MSEC), -EINVAL);
	cids[1].length = 0;
	CHECK(reuseport_cid_add(f->r, 1, 1, cids, 2, WAIT_MSEC), -EINVAL);
	CHECK(reuseport_cid_add(f->r, 2, 1, cids, 1, WAIT_MSEC), -ERANGE);
	CHECK(reuseport_cid_add(f->r, 1, 2, cids, 1, WAIT_MSEC), -ERANGE);
	assert_int_equal(reuseport_cid_length(f->r, 0), -EOPNOTSUPP);
	assert_int_equal(reuseport_cid_generate(f->r, 0, 0, id, sizeof(id)), -EOPNOTSUPP);
}

static void the_reset_token_is_the_documented_hmac(void **state)
{
	/* HMAC-SHA256 with 32 octets 02 as the key, worked out with another implementation. */
	static const uint8_t reset[REUSEPORT_TOKEN_OCTETS] = {0x79, 0x2c, 0x64, 0xc1, 0x12, 0xcb,
		0x53, 0x20, 0x03, 0x8a, 0xcb, 0xb3, 0x17, 0xe5, 0x51, 0xd6};
	static const uint8_t secret[REUSEPORT_SECRET_OCTETS] = {0x8c, 0xd5, 0x4d, 0x6d, 0xcf, 0x0d,
		0x8f, 0x9e, 0xfc, 0xdb, 0x6f, 0x8c, 0x97, 0x10, 0x29, 0x40, 0x2f, 0xf1, 0x9a, 0xa3,
		0x10, 0x8f, 0xca, 0x9b, 0x9f, 0x76, 0x31, 0x1e, 0x7a, 0xaf, 0xa6, 0xa3};
	static const uint8_t cid[] = {1, 2, 3, 4, 5, 6, 7, 8};
	struct fixture *f = *state;
	uint8_t token[REUSEPORT_TOKEN_OCTETS], shared[REUSEPORT_SECRET_OCTETS];

	f->daemon.fake.transport = PROTOCOL_QUIC;
	f->daemon.fake.cid_mode = PROTOCOL_CID_OPAQUE;
	start(f, serve_one_worker);
	CHECK(reuseport_register(f->r, "quic", NULL, 1, 0, WAIT_MSEC), 0);
	CHECK(reuseport_reset_token(f->r, 1, cid, sizeof(cid), token), 0);
	assert_memory_equal(token, reset, sizeof(reset));
	CHECK(reuseport_token_secret(f->r, 1, shared), 0);
	assert_memory_equal(shared, secret, sizeof(secret));
	assert_int_equal(reuseport_reset_token(f->r, 1, cid, 0, token), -EINVAL);
	assert_int_equal(reuseport_reset_token(f->r, 1, cid, 21, token), -EINVAL);
	assert_int_equal(reuseport_reset_token(f->r, 2, cid, 8, token), -ERANGE);
	assert_int_equal(reuseport_token_secret(f->r, 2, shared), -ERANGE);
}

static void a_tcp_listener_has_no_tokens(void **state)
{
	struct fixture *f = *state;
	uint8_t octets[REUSEPORT_SECRET_OCTETS];

	start(f, serve_one_worker);
	CHECK(reuseport_register(f->r, "web", NULL, 1, 0, WAIT_MSEC), 0);
	assert_int_equal(reuseport_token_secret(f->r, 0, octets), -EOPNOTSUPP);
	assert_int_equal(reuseport_reset_token(f->r, 0, octets, 8, octets), -EOPNOTSUPP);
	assert_int_equal(reuseport_cid_length(f->r, 0), -EOPNOTSUPP);
	assert_int_equal(reuseport_cid_length(f->r, 2), -ERANGE);
}

static int compare_ids(const void *a, const void *b)
{
	return memcmp(a, b, sizeof(struct reuseport_cid));
}

#define N_IDS 1000

/* Every ID names its worker, and no nonce comes twice. */
static void check_generated_ids(struct fixture *f, bool encrypted)
{
	static struct reuseport_cid cids[3 * N_IDS];
	static const uint8_t key[16] = {0x2b, 0x2b, 0x2b, 0x2b, 0x2b, 0x2b, 0x2b, 0x2b, 0x2b, 0x2b,
		0x2b, 0x2b, 0x2b, 0x2b, 0x2b, 0x2b};
	struct quic_lb_config config;
	unsigned n_steps_of_one = 0;

	assert_int_equal(quic_lb_configure(&config, 1, 6, 10, encrypted ? key : NULL), 0);
	for (unsigned w = 0; w < 3; w++) {
		uint64_t last = 0;

		for (unsigned i = 0; i < N_IDS; i++) {
			uint8_t server_id[6], nonce[10];
			uint64_t counter = 0;
			struct reuseport_cid *cid = &cids[w * N_IDS + i];

			cid->length = 17;
			assert_int_equal(reuseport_cid_generate(f->r, w, 1, cid->id, 20), 17);
			assert_int_equal(cid->id[0], 1 << 5 | 16);
			assert_int_equal(quic_lb_decode(&config, cid->id, 17, server_id, nonce), 0);
			assert_memory_equal(server_id, "\0\0\0\0\0", 5);
			assert_int_equal(server_id[5], 100 + w);
			assert_int_equal(nonce[3], w * 2 + 1); /* the grant's prefix */
			for (unsigned o = 4; o < 10; o++)
				counter = counter << 8 | nonce[o];
			n_steps_of_one += i > 0 && counter == last + 1;
			last = counter;
		}
	}
	/* In the clear the order must not show; one step by chance is possible, all aren't. */
	if (encrypted)
		assert_int_equal(n_steps_of_one, 3 * (N_IDS - 1));
	else
		assert_in_range(n_steps_of_one, 0, 3);
	qsort(cids, 3 * N_IDS, sizeof(cids[0]), compare_ids);
	for (unsigned i = 1; i < 3 * N_IDS; i++)
		assert_int_not_equal(compare_ids(&cids[i - 1], &cids[i]), 0);
}

static void serve_quic(struct fake *d)
{
	fake_welcome(d);
	fake_register(d, 3);
	fake_receive_end(d);
}

static void encrypted_ids_name_their_worker_and_never_repeat(void **state)
{
	struct fixture *f = *state;
	uint8_t id[20];

	f->daemon.fake.transport = PROTOCOL_QUIC;
	f->daemon.fake.cid_mode = PROTOCOL_CID_QUIC_LB;
	start(f, serve_quic);
	CHECK(reuseport_register(f->r, "quic", NULL, 3, 0, WAIT_MSEC), 0);
	assert_int_equal(reuseport_cid_length(f->r, 0), 17);
	assert_int_equal(reuseport_cid_length(f->r, 2), -ERANGE);
	assert_int_equal(reuseport_cid_generate(f->r, 0, 0, id, 16), -ENOBUFS);
	assert_int_equal(reuseport_cid_generate(f->r, 3, 0, id, 20), -ERANGE);
	assert_int_equal(reuseport_cid_generate(f->r, 0, 2, id, 20), -ERANGE);
	check_generated_ids(f, true);
}

static void plain_ids_name_their_worker_and_show_no_order(void **state)
{
	struct fixture *f = *state;

	f->daemon.fake.transport = PROTOCOL_QUIC;
	f->daemon.fake.cid_mode = PROTOCOL_CID_QUIC_LB_PLAIN;
	start(f, serve_quic);
	CHECK(reuseport_register(f->r, "quic", NULL, 3, 0, WAIT_MSEC), 0);
	check_generated_ids(f, false);
}

struct generator {
	struct reuseport *r;
	struct reuseport_cid *cids;
};

static void *generate_ids(void *argument)
{
	struct generator *g = argument;

	for (unsigned i = 0; i < N_IDS; i++) {
		g->cids[i].length = 17;
		if (reuseport_cid_generate(g->r, 0, 0, g->cids[i].id, 20) != 17)
			return NULL;
	}
	return g;
}

static void threads_and_forked_children_never_make_the_same_id(void **state)
{
	struct fixture *f = *state;
	struct reuseport_cid *cids;
	const size_t size = 5 * N_IDS * sizeof(*cids);
	struct generator generators[5];
	pthread_t threads[4];
	int status = -1;
	pid_t pid;

	f->daemon.fake.transport = PROTOCOL_QUIC;
	f->daemon.fake.cid_mode = PROTOCOL_CID_QUIC_LB;
	start(f, serve_quic);
	CHECK(reuseport_register(f->r, "quic", NULL, 3, 0, WAIT_MSEC), 0);
	cids = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(cids, MAP_FAILED);
	for (unsigned i = 0; i < 5; i++)
		generators[i] = (struct generator){.r = f->r, .cids = cids + i * N_IDS};
	fflush(NULL);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0)
		_exit(generate_ids(&generators[4]) ? 0 : 1);
	for (unsigned i = 0; i < 4; i++)
		assert_int_equal(
			pthread_create(&threads[i], NULL, generate_ids, &generators[i]), 0);
	for (unsigned i = 0; i < 4; i++) {
		void *result = NULL;

		assert_int_equal(pthread_join(threads[i], &result), 0);
		assert_non_null(result);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	qsort(cids, 5 * N_IDS, sizeof(*cids), compare_ids);
	for (unsigned i = 1; i < 5 * N_IDS; i++)
		assert_int_not_equal(compare_ids(&cids[i - 1], &cids[i]), 0);
	munmap(cids, size);
}

static void rotate(struct fake *d, uint32_t worker, uint16_t listener, uint8_t nonce_length)
{
	struct protocol_keys_rotated body = {
		.registration = htole32(d->registration),
		.worker = htole32(worker),
		.listener = htole16(listener),
		.config_rotation = 2,
		.server_id_length = 2,
		.nonce_length = nonce_length,
		.server_id = {0xaa, (uint8_t)worker},
		.nonce_prefix = {9, 9, 9, 9},
	};

	fake_event(d, PROTOCOL_KEYS_ROTATED, &body, sizeof(body));
}

static void serve_rotation(struct fake *d)
{
	fake_welcome(d);
	fake_register(d, 2);
	fake_receive(d, PROTOCOL_READY);
	for (uint32_t worker = 0; worker < 2; worker++)
		rotate(d, worker, 1, 5);
	rotate(d, 0, 7, 5); /* no such listener */
	rotate(d, 0, 0, 3); /* no such nonce */
	fake_ok(d);
	fake_receive_end(d);
}

static void rotated_keys_are_in_effect_at_once_and_told_once(void **state)
{
	struct fixture *f = *state;
	uint8_t id[20];

	f->daemon.fake.transport = PROTOCOL_QUIC;
	f->daemon.fake.cid_mode = PROTOCOL_CID_QUIC_LB;
	start(f, serve_rotation);
	CHECK(reuseport_register(f->r, "quic", NULL, 2, 0, WAIT_MSEC), 0);
	for (unsigned i = 0; i < 300; i++)
		assert_int_equal(reuseport_cid_generate(f->r, 1, 1, id, sizeof(id)), 17);
	CHECK(reuseport_ready(f->r, WAIT_MSEC), 0);
	assert_int_equal(reuseport_cid_length(f->r, 1), 8);
	assert_int_equal(reuseport_cid_length(f->r, 0), 17);
	/* One octet of counter, from its beginning: 256 IDs and no more. */
	for (unsigned i = 0; i < 256; i++)
		assert_int_equal(reuseport_cid_generate(f->r, 1, 1, id, sizeof(id)), 8);
	assert_int_equal(id[0], 2 << 5 | 7);
	assert_int_equal(reuseport_cid_generate(f->r, 1, 1, id, sizeof(id)), -EOVERFLOW);
	assert_int_equal(reuseport_cid_generate(f->r, 1, 1, id, sizeof(id)), -EOVERFLOW);
	assert_int_equal(reuseport_cid_generate(f->r, 0, 1, id, sizeof(id)), 8);
	assert_int_equal(f->n_rotations, 0);
	CHECK(reuseport_dispatch(f->r, 0), 1);
	assert_int_equal(f->n_rotations, 1); /* for both workers */
	assert_int_equal(f->rotated_listeners, 1u << 1);
}

static void grant_an_impossible_configuration(struct fake *d)
{
	fake_welcome(d);
	fake_receive(d, PROTOCOL_REGISTER);
	d->config_rotation = 7; /* means: names no server */
	fake_grant(d, d->message.header.sequence, 0, 1);
	fake_receive(d, PROTOCOL_UNREGISTER);
	fake_receive_end(d);
}

static void an_impossible_configuration_is_refused(void **state)
{
	struct fixture *f = *state;

	f->daemon.fake.transport = PROTOCOL_QUIC;
	f->daemon.fake.cid_mode = PROTOCOL_CID_QUIC_LB;
	start(f, grant_an_impossible_configuration);
	CHECK(reuseport_register(f->r, "quic", NULL, 1, 0, WAIT_MSEC), -EPROTO);
	CHECK_ERROR("impossible connection-ID configuration for listener http");
	assert_int_equal(count_descriptors(), f->n_descriptors + 4);
}

static uint64_t cookie_of(int fd)
{
	uint64_t cookie = 0;
	socklen_t length = sizeof(cookie);

	EXPECT(getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &length) == 0);
	return cookie;
}

static void expect_adopt(struct fake *d, uint16_t step, uint32_t backlog)
{
	static uint64_t cookie;

	fake_receive(d, PROTOCOL_ADOPT);
	EXPECT(le32toh(d->message.adopt.registration) == d->registration);
	EXPECT(le16toh(d->message.adopt.listener) == 1);
	EXPECT(le16toh(d->message.adopt.step) == step);
	EXPECT(le32toh(d->message.adopt.backlog) == backlog);
	EXPECT(d->message.n_fds == 1);
	EXPECT(!cookie || cookie == cookie_of(d->message.fds[0]));
	cookie = cookie_of(d->message.fds[0]);
}

static void adopt(struct fake *d)
{
	fake_welcome(d);
	fake_receive(d, PROTOCOL_REGISTER);
	EXPECT(le32toh(d->message.reg.flags) == PROTOCOL_REGISTER_ADOPT);
	EXPECT(le32toh(d->message.reg.n_workers) == 8);
	fake_grant(d, d->message.header.sequence, 0, 0);
	fake_receive(d, PROTOCOL_ACK);
	EXPECT(le32toh(d->message.ack.worker) == 0);
	fake_ok(d);
	expect_adopt(d, PROTOCOL_ADOPT_BIND, 0);
	fake_ok(d);
	expect_adopt(d, PROTOCOL_ADOPT_LISTEN, 5);
	fake_ok(d);
	expect_adopt(d, PROTOCOL_ADOPT_LISTEN, 0);
	fake_error(d, ENOENT, "it was never adopted");
	fake_receive(d, PROTOCOL_READY);
	fake_ok(d);
	fake_receive_end(d);
}

static void sockets_are_brought_and_stay_the_callers(void **state)
{
	struct fixture *f = *state;
	int fd;

	start(f, adopt);
	fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	CHECK(reuseport_adopt(f->r, 0, fd, REUSEPORT_ADOPT_BIND, WAIT_MSEC), -EINVAL);
	CHECK(reuseport_register_adopting(f->r, "web", NULL, 0, 0, WAIT_MSEC, NULL, NULL), -EINVAL);
	CHECK(reuseport_register_adopting(f->r, "web", NULL, 8, 0, WAIT_MSEC, NULL, NULL), 0);
	assert_int_equal(reuseport_n_workers(f->r), 0);
	assert_int_equal(reuseport_n_listeners(f->r), 2);
	assert_string_equal(reuseport_listener_name(f->r, 1), "admin");
	assert_int_equal(reuseport_socket(f->r, 0, 0), -ERANGE);
	CHECK(reuseport_adopt(f->r, 2, fd, REUSEPORT_ADOPT_BIND, WAIT_MSEC), -EINVAL);
	CHECK(reuseport_adopt(f->r, 1, fd, REUSEPORT_ADOPT_BIND, WAIT_MSEC), 0);
	CHECK(reuseport_adopt(f->r, 1, fd, 5, WAIT_MSEC), 0);
	CHECK(reuseport_adopt(f->r, 1, fd, 0, WAIT_MSEC), -ENOENT);
	CHECK_ERROR("cannot adopt the socket: it was never adopted");
	CHECK(reuseport_ready(f->r, WAIT_MSEC), 0);
	assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
	close(fd);
}

/* Of three listeners one was closed, and the last is new. */
static void send_added(struct fake *d, uint32_t registration)
{
	struct {
		struct protocol_grant fixed;
		struct protocol_grant_listener listeners[3];
	} __attribute__((packed)) body = {
		.fixed.registration = htole32(registration),
		.fixed.n_listeners = htole16(3),
	};

	for (int i = 0; i < 3; i++)
		body.listeners[i].descriptor = htole16(PROTOCOL_NO_DESCRIPTOR);
	strcpy(body.listeners[1].name, "admin");
	body.listeners[1].transport = PROTOCOL_TCP;
	strcpy(body.listeners[2].name, "late");
	strcpy(body.listeners[2].address, "[::1]:53");
	body.listeners[2].transport = PROTOCOL_UDP;
	fake_event(d, PROTOCOL_GRANT, &body, sizeof(body));
}

static void add_listeners(struct fake *d)
{
	fake_welcome(d);
	fake_receive(d, PROTOCOL_REGISTER);
	fake_grant(d, d->message.header.sequence, 0, 0);
	fake_receive(d, PROTOCOL_ACK);
	fake_ok(d);
	send_added(d, d->registration + 1);
	fake_receive(d, PROTOCOL_READY);
	fake_ok(d);
	send_added(d, d->registration);
	fake_receive(d, PROTOCOL_READY);
	fake_ok(d);
	fake_receive_end(d);
}

static void listeners_that_are_added_get_the_next_numbers(void **state)
{
	struct fixture *f = *state;

	start(f, add_listeners);
	CHECK(reuseport_register_adopting(f->r, "web", NULL, 8, 0, WAIT_MSEC, NULL, NULL), 0);
	CHECK(reuseport_ready(f->r, WAIT_MSEC), 0);
	assert_int_equal(reuseport_n_listeners(f->r), 2); /* those were another registration's */
	CHECK(reuseport_ready(f->r, WAIT_MSEC), 0);
	assert_int_equal(reuseport_n_listeners(f->r), 3);
	assert_string_equal(reuseport_listener_name(f->r, 0), "http");
	assert_string_equal(reuseport_listener_name(f->r, 2), "late");
	assert_string_equal(reuseport_listener_address(f->r, 2), "[::1]:53");
	assert_int_equal(reuseport_listener_transport(f->r, 2), REUSEPORT_UDP);
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(three_workers_get_a_socket_for_each_of_two_listeners),
		TEST(a_taken_socket_is_the_callers),
		TEST(a_refusal_is_told_in_words_and_the_context_goes_on),
		TEST(arguments_are_checked_before_anything_is_sent),
		TEST(the_last_acknowledgement_names_the_servers_process),
		TEST(a_start_that_fails_gives_the_slots_back),
		TEST(no_room_for_descriptors_is_emfile_and_none_stays),
		TEST(events_during_a_call_are_delivered_at_the_next_dispatch),
		TEST(each_stalled_worker_is_told_and_when_it_is_over),
		TEST(loads_are_written_into_the_daemons_memory),
		TEST(the_daemons_death_is_told_once_and_the_sockets_stay),
		TEST(death_during_a_call_is_its_error_and_an_event),
		TEST(garbage_from_the_daemon_ends_the_connection),
		TEST(a_late_answer_is_not_taken_for_the_next_ones),
		TEST(a_late_grant_is_given_back),
		TEST(a_daemon_that_does_not_answer_is_a_timeout),
		TEST(another_version_of_the_protocol_is_refused),
		TEST(without_anyone_the_errors_say_so),
		TEST(listen_fds_stand_in_for_the_daemon),
		TEST(registered_ids_are_sent_in_batches),
		TEST(the_reset_token_is_the_documented_hmac),
		TEST(a_tcp_listener_has_no_tokens),
		TEST(encrypted_ids_name_their_worker_and_never_repeat),
		TEST(plain_ids_name_their_worker_and_show_no_order),
		TEST(threads_and_forked_children_never_make_the_same_id),
		TEST(rotated_keys_are_in_effect_at_once_and_told_once),
		TEST(an_impossible_configuration_is_refused),
		TEST(sockets_are_brought_and_stay_the_callers),
		TEST(listeners_that_are_added_get_the_next_numbers),
	};

	unsetenv("REUSEPORT_SOCKET");
	unsetenv("LISTEN_FDS");
	alarm(300);
	return cmocka_run_group_tests_name("libreuseport", tests, NULL, NULL);
}
