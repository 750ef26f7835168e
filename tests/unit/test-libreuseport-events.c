/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What the daemon tells a server that it did not ask for: events during calls, workers that hang,
 * listeners that are added, the memory for loads, and the daemon's death.
 */
#include <fcntl.h>
#include <sys/mman.h>

#include "tests/unit/libreuseport-fixture.h"

static int poll_now(struct fixture *f)
{
	struct pollfd p = {
		.fd = reuseport_get_fd(f->r),
		.events = (short)reuseport_get_events(f->r),
	};

	return poll(&p, 1, 0);
}

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
	/* Another connection is tried for, and nobody is there. */
	CHECK(reuseport_dispatch(f->r, 0), 0);
	CHECK(reuseport_dispatch(f->r, 300), 0);
	assert_true(reuseport_get_fd(f->r) >= 0);
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

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(events_during_a_call_are_delivered_at_the_next_dispatch),
		TEST(each_stalled_worker_is_told_and_when_it_is_over),
		TEST(loads_are_written_into_the_daemons_memory),
		TEST(the_daemons_death_is_told_once_and_the_sockets_stay),
		TEST(death_during_a_call_is_its_error_and_an_event),
		TEST(garbage_from_the_daemon_ends_the_connection),
		TEST(listeners_that_are_added_get_the_next_numbers),
	};

	unsetenv("REUSEPORT_SOCKET");
	unsetenv("LISTEN_FDS");
	alarm(300);
	return cmocka_run_group_tests_name("libreuseport", tests, NULL, NULL);
}
