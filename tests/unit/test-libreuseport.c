/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Opening and registration, errors in words, descriptors that get lost, and deadlines.
 */
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "tests/unit/libreuseport-fixture.h"

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
	/* The sockets, and the pidfd, which the next daemon is to be told as well. */
	assert_int_equal(count_descriptors(), f->n_descriptors + 4 + 4 + 1);
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
		TEST(a_late_answer_is_not_taken_for_the_next_ones),
		TEST(a_late_grant_is_given_back),
		TEST(a_daemon_that_does_not_answer_is_a_timeout),
		TEST(another_version_of_the_protocol_is_refused),
		TEST(without_anyone_the_errors_say_so),
		TEST(listen_fds_stand_in_for_the_daemon),
		TEST(sockets_are_brought_and_stay_the_callers),
	};

	unsetenv("REUSEPORT_SOCKET");
	unsetenv("LISTEN_FDS");
	alarm(300);
	return cmocka_run_group_tests_name("libreuseport", tests, NULL, NULL);
}
