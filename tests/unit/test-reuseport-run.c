/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * reuseport-run, the program, between a daemon that follows a script and small servers in shell:
 * how sockets reach the server, when the daemon is told that it is ready, which signals get where,
 * and with what status it all ends.
 */
#include <fcntl.h>
#include <linux/close_range.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

#include <cmocka.h>

#include "tests/unit/fake-daemon.h"

struct fixture {
	int n_descriptors;
	struct fake_daemon daemon;
	char output[8192]; /* of launcher and server, stdout and stderr */
	int status;        /* of the launcher */
	pid_t pid;
	int output_fd;
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	*state = f;
	if (!f)
		return -1;
	f->n_descriptors = count_descriptors();
	f->output_fd = f->daemon.listener = f->daemon.fake.sync[0] = f->daemon.fake.sync[1] = -1;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	int status = 0, n;

	if (f->pid > 0) {
		kill(-f->pid, SIGKILL); /* with the server */
		waitpid(f->pid, NULL, 0);
	}
	close_fd(&f->output_fd);
	if (f->daemon.pid > 0)
		status = fake_end(&f->daemon);
	if (status)
		print_error("the fake daemon ended with status %#x; output:\n%s\n",
			(unsigned)status, f->output);
	n = count_descriptors() - f->n_descriptors;
	free(f);
	return status || n ? -1 : 0;
}

/* Starts the launcher; arguments end with NULL. */
static void launch(struct fixture *f, void (*script)(struct fake *d), ...)
{
	const char *arguments[32] = {REUSEPORT_RUN};
	va_list list;
	int out[2];
	size_t n = 1;

	if (script) {
		assert_int_equal(fake_start(&f->daemon, script), 0);
		arguments[n++] = "--socket";
		arguments[n++] = f->daemon.path;
	}
	va_start(list, script);
	while (n < ARRAY_SIZE(arguments) - 1 && (arguments[n] = va_arg(list, const char *)))
		n++;
	va_end(list);
	arguments[n] = NULL;
	assert_int_equal(pipe2(out, O_CLOEXEC), 0);
	fflush(NULL);
	f->pid = fork();
	assert_true(f->pid >= 0);
	if (f->pid == 0) {
		dup2(out[1], STDOUT_FILENO);
		dup2(out[1], STDERR_FILENO);
		/* As from a shell, whatever the tests were started from: ignored signals can't be
		 * caught by a shell, and foreign descriptors would be counted. */
		for (int i = 1; i < 32; i++)
			signal(i, SIG_DFL);
		close_range(3, ~0u, CLOSE_RANGE_CLOEXEC);
		setpgid(0, 0);
		alarm(120);
		execv(REUSEPORT_RUN, (char **)arguments);
		_exit(99);
	}
	setpgid(f->pid, f->pid);
	close(out[1]);
	f->output_fd = out[0];
}

/* Reads what it prints until `text` has come, or to the end for NULL. */
static void read_output(struct fixture *f, const char *text)
{
	size_t used = strlen(f->output);

	while (!text || !strstr(f->output, text)) {
		struct pollfd p = {.fd = f->output_fd, .events = POLLIN};
		ssize_t size;

		if (poll(&p, 1, FAKE_WAIT_MSEC) != 1)
			fail_msg("no end of the output; so far:\n%s", f->output);
		size = read(f->output_fd, f->output + used, sizeof(f->output) - 1 - used);
		assert_true(size >= 0);
		if (size == 0 && text)
			fail_msg("\"%s\" never came; all that came:\n%s", text, f->output);
		if (size == 0)
			return;
		used += (size_t)size;
		f->output[used] = '\0';
	}
}

/* To the end of its output and life; returns its exit status, 1000 + N for signal N. */
static int finish(struct fixture *f)
{
	int status;

	read_output(f, NULL);
	assert_int_equal(waitpid(f->pid, &status, 0), f->pid);
	f->pid = 0;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

#define CHECK_OUTPUT(text)                                                             \
	do {                                                                           \
		if (!strstr(f->output, text))                                          \
			fail_msg("\"%s\" is not in the output:\n%s", text, f->output); \
	} while (0)

/* Scripts of the daemon */

/* The pidfd in the last ACK is the server's and that of a child of the launcher's. */
static void expect_process(struct fake *d)
{
	EXPECT(le32toh(d->message.ack.flags) == PROTOCOL_ACK_PROCESS);
	EXPECT(d->message.n_fds == 1 && fake_pid_of(d->message.fds[0]) > 0);
}

static void serve_one(struct fake *d)
{
	fake_welcome(d);
	fake_register(d, 1);
	expect_process(d);
	fake_receive(d, PROTOCOL_READY);
	fake_ok(d);
	fake_receive_end(d);
}

static void serve_two(struct fake *d)
{
	fake_welcome(d);
	fake_register(d, 2);
	expect_process(d);
	fake_receive(d, PROTOCOL_READY);
	fake_ok(d);
	fake_receive_end(d);
}

/* The server may be over before it is ready. */
static void serve_a_failure(struct fake *d)
{
	fake_welcome(d);
	fake_register(d, 1);
	fake_receive_end(d);
}

/* What each descriptor is, seen from the server */
#define SHOW_SOCKETS                                                                            \
	"for fd in 3 4 5 6; do [ -e /proc/self/fd/$fd ] && readlink /proc/self/fd/$fd; done | " \
	"grep -c '^socket:'; "

static void sockets_come_as_listen_fds_with_names(void **state)
{
	struct fixture *f = *state;

	launch(f, serve_one, "--service", "web", "--", "/bin/sh", "-c",
		"echo fds=$LISTEN_FDS names=$LISTEN_FDNAMES nginx=$NGINX notify=$NOTIFY_SOCKET.; "
		"[ $LISTEN_PID = $$ ] && echo pid=own; " SHOW_SOCKETS "ls /proc/$$/fd; exit 7",
		NULL);
	assert_int_equal(finish(f), 7);
	CHECK_OUTPUT("fds=2 names=http:admin nginx= notify=.\n");
	CHECK_OUTPUT("pid=own\n2\n");
	/* Nothing of the launcher's own. */
	CHECK_OUTPUT("pid=own\n2\n0\n1\n2\n3\n4\n");
}

static void sockets_come_as_nginx_wants_them(void **state)
{
	struct fixture *f = *state;

	launch(f, serve_two, "--service", "web", "--workers", "2", "--pass", "nginx", "--",
		"/bin/sh", "-c", "echo nginx=$NGINX fds=$LISTEN_FDS.; " SHOW_SOCKETS, NULL);
	assert_int_equal(finish(f), 0);
	CHECK_OUTPUT("nginx=3;4;5;6; fds=.\n4\n");
}

static void sockets_come_as_numbers_in_arguments(void **state)
{
	struct fixture *f = *state;

	launch(f, serve_two, "--service", "web", "--workers", "2", "--pass", "args", "--",
		"/bin/sh", "-c", "echo $0 $1 $2 fds=$LISTEN_FDS.; " SHOW_SOCKETS,
		"a{fd:http:0},{fd:http:1}b", "{fd:admin:1}", "{fd:admin:0}{fd:", NULL);
	assert_int_equal(finish(f), 0);
	CHECK_OUTPUT("a3,5b 6 4{fd: fds=.\n4\n");
}

/* What each descriptor from 3 on is, as a server finds it: its kind, and whether it blocks. */
#define DESCRIBE_SOCKETS                                                              \
	"import os, socket, sys\n"                                                    \
	"for fd in map(int, sys.argv[1:]):\n"                                         \
	"    s = socket.socket(fileno=fd)\n"                                          \
	"    blocks = os.get_blocking(fd)\n"                                          \
	"    print(fd, s.type.name, 'blocks' if blocks else 'returns', flush=True)\n" \
	"print(os.environ.get('NGINX'), os.environ.get('LISTEN_FDS'))\n"

/* QUIC listeners are datagram sockets, and go the ways that TCP ones go. */
static void sockets_of_quic_listeners_come_as_listen_fds(void **state)
{
	struct fixture *f = *state;

	f->daemon.fake.transport = PROTOCOL_QUIC;
	f->daemon.fake.cid_mode = PROTOCOL_CID_NGINX;
	launch(f, serve_one, "--service", "web", "--", "/usr/bin/python3", "-Ic", DESCRIBE_SOCKETS,
		"3", "4", NULL);
	assert_int_equal(finish(f), 0);
	CHECK_OUTPUT("3 SOCK_DGRAM blocks\n4 SOCK_DGRAM blocks\nNone 2\n");
}

static void nginx_gets_the_sockets_of_quic_listeners(void **state)
{
	struct fixture *f = *state;

	f->daemon.fake.transport = PROTOCOL_QUIC;
	f->daemon.fake.cid_mode = PROTOCOL_CID_NGINX;
	launch(f, serve_two, "--service", "web", "--workers", "2", "--pass", "nginx", "--",
		"/usr/bin/python3", "-Ic", DESCRIBE_SOCKETS, "3", "4", "5", "6", NULL);
	assert_int_equal(finish(f), 0);
	CHECK_OUTPUT("3 SOCK_DGRAM returns\n4 SOCK_DGRAM returns\n5 SOCK_DGRAM returns\n"
		     "6 SOCK_DGRAM returns\n3;4;5;6; None\n");
}

static void sockets_of_quic_listeners_are_named_in_arguments(void **state)
{
	struct fixture *f = *state;

	f->daemon.fake.transport = PROTOCOL_QUIC;
	f->daemon.fake.cid_mode = PROTOCOL_CID_OPAQUE;
	launch(f, serve_one, "--service", "web", "--pass", "args", "--", "/usr/bin/python3", "-Ic",
		DESCRIBE_SOCKETS, "{fd:admin}", "{fd:http}", NULL);
	assert_int_equal(finish(f), 0);
	CHECK_OUTPUT("4 SOCK_DGRAM blocks\n3 SOCK_DGRAM blocks\nNone None\n");
}

static void refuse_the_arguments(struct fake *d)
{
	fake_welcome(d);
	fake_receive(d, PROTOCOL_REGISTER);
	fake_grant(d, d->message.header.sequence, 0, 1);
	fake_receive(d, PROTOCOL_UNREGISTER);
}

/* IDs that the server would have to make with the library, which it doesn't know. */
static void refuse_connection_ids(struct fixture *f, uint8_t mode, const char *text)
{
	f->daemon.fake.transport = PROTOCOL_QUIC;
	f->daemon.fake.cid_mode = mode;
	launch(f, refuse_the_arguments, "--service", "web", "--", "/bin/echo", "started", NULL);
	assert_int_equal(finish(f), 125);
	CHECK_OUTPUT(text);
	CHECK_OUTPUT("set it to nginx for nginx, else to opaque");
	assert_null(strstr(f->output, "started"));
}

static void quic_lb_ids_are_not_for_launched_servers(void **state)
{
	refuse_connection_ids(*state, PROTOCOL_CID_QUIC_LB, ") has ConnectionID=quic-lb,");
}

static void quic_lb_plain_ids_are_not_for_launched_servers(void **state)
{
	refuse_connection_ids(
		*state, PROTOCOL_CID_QUIC_LB_PLAIN, ") has ConnectionID=quic-lb-plain,");
}

static void registered_ids_are_not_for_launched_servers(void **state)
{
	refuse_connection_ids(*state, PROTOCOL_CID_REGISTERED, ") has ConnectionID=registered,");
}

static void a_listener_that_does_not_exist_is_an_error(void **state)
{
	struct fixture *f = *state;

	launch(f, refuse_the_arguments, "--service", "web", "--", "/bin/echo", "{fd:htp}", NULL);
	assert_int_equal(finish(f), 125);
	CHECK_OUTPUT("{fd:htp}: the service has no listener of that name");
}

static void a_socket_that_no_argument_names_is_an_error(void **state)
{
	struct fixture *f = *state;

	launch(f, refuse_the_arguments, "--service", "web", "--pass", "args", "--", "/bin/echo",
		"{fd:http}", NULL);
	assert_int_equal(finish(f), 125);
	CHECK_OUTPUT("--pass args: no argument has {fd:admin}");
}

static void a_server_that_cannot_be_executed_is_told_apart(void **state)
{
	struct fixture *f = *state;

	launch(f, serve_a_failure, "--service", "web", "--", "/nonexistent/server", NULL);
	assert_int_equal(finish(f), 127);
	CHECK_OUTPUT("cannot execute /nonexistent/server: No such file or directory");
}

static void a_server_that_is_no_program_is_told_apart(void **state)
{
	struct fixture *f = *state;

	launch(f, serve_a_failure, "--service", "web", "--", "/dev/null", NULL);
	assert_int_equal(finish(f), 126);
	CHECK_OUTPUT("cannot execute /dev/null: Permission denied");
}

static void refuse(struct fake *d)
{
	fake_welcome(d);
	fake_receive(d, PROTOCOL_REGISTER);
	fake_error(d, EACCES, "user 1000 may not use service web");
	fake_receive_end(d);
}

static void a_refusal_ends_the_launcher_in_words(void **state)
{
	struct fixture *f = *state;

	launch(f, refuse, "--service", "web", "--", "/bin/echo", "started", NULL);
	assert_int_equal(finish(f), 125);
	CHECK_OUTPUT("user 1000 may not use service web");
	assert_null(strstr(f->output, "started"));
}

static void refuse_the_last_acknowledgement(struct fake *d)
{
	fake_welcome(d);
	fake_receive(d, PROTOCOL_REGISTER);
	fake_grant(d, d->message.header.sequence, 0, 1);
	fake_receive(d, PROTOCOL_ACK);
	expect_process(d);
	fake_error(d, EPERM, "the process is another user's");
	fake_receive(d, PROTOCOL_UNREGISTER);
}

static void a_refusal_at_the_last_moment_starts_nothing(void **state)
{
	struct fixture *f = *state;

	launch(f, refuse_the_last_acknowledgement, "--service", "web", "--", "/bin/echo", "started",
		NULL);
	assert_int_equal(finish(f), 125);
	CHECK_OUTPUT("the process is another user's");
	assert_null(strstr(f->output, "started"));
}

/* The server looks for its own sockets, by inode, among the launcher's descriptors. */
static void the_launcher_keeps_no_copy_of_a_socket(void **state)
{
	struct fixture *f = *state;

	launch(f, serve_one, "--service", "web", "--", "/bin/sh", "-c",
		"launcher=$(ls -l /proc/$PPID/fd); "
		"for inode in $(readlink /proc/self/fd/3 /proc/self/fd/4 | tr -dc '0-9\\n'); do "
		"echo \"$launcher\" | grep -c \"socket:.$inode.\"; done; echo end",
		NULL);
	assert_int_equal(finish(f), 0);
	CHECK_OUTPUT("0\n0\nend\n");
}

/* Readiness */

static void ready_by_notification(struct fake *d)
{
	struct pollfd p = {.events = POLLIN};

	fake_welcome(d);
	fake_register(d, 1);
	p.fd = d->connection;
	fake_wait(d); /* the server runs, and has not said that it is ready */
	EXPECT(poll(&p, 1, 0) == 0);
	fake_request_drain(d, PROTOCOL_DRAIN_OPERATOR, 0); /* lets the server of the test go on */
	fake_receive(d, PROTOCOL_READY);
	fake_ok(d);
	fake_receive(d, PROTOCOL_DRAIN); /* STOPPING=1 */
	fake_ok(d);
	fake_receive_end(d);
}

static void notifications_are_translated_and_passed_on(void **state)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct fixture *f = *state;
	char name[64], text[512];
	struct pollfd p = {.events = POLLIN};
	ssize_t size;
	int manager;

	/* The service manager's own socket. */
	snprintf(name, sizeof(name), "@reuseport-run-test/%d", getpid());
	memcpy(address.sun_path + 1, name + 1, strlen(name) - 1);
	manager = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	assert_int_equal(
		bind(manager, (struct sockaddr *)&address,
			(socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(name))),
		0);
	assert_int_equal(setenv("NOTIFY_SOCKET", name, 1), 0);
	launch(f, ready_by_notification, "--service", "web", "--ready", "notify", "--drain-signal",
		"USR1", "--", "/usr/bin/python3", "-Ic",
		"import os, signal, socket\n"
		"signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\n"
		"s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
		"a = os.environ['NOTIFY_SOCKET']\n"
		"s.connect('\\0' + a[1:])\n"
		"print('running', flush=True)\n"
		"signal.sigwait([signal.SIGUSR1])\n"
		"s.send(b'STATUS=warm\\nMAINPID=1\\nREADY=1')\n"
		"s.send(b'STOPPING=1\\nSTATUS=done')\n",
		NULL);
	unsetenv("NOTIFY_SOCKET");
	read_output(f, "running");
	fake_continue(&f->daemon.fake);
	assert_int_equal(finish(f), 0);
	p.fd = manager;
	/* READY of the launcher itself, after the daemon's OK; then what is the server's to say. */
	assert_int_equal(poll(&p, 1, FAKE_WAIT_MSEC), 1);
	size = recv(manager, text, sizeof(text) - 1, 0);
	assert_true(size >= 0);
	text[size] = '\0';
	assert_string_equal(text, "READY=1");
	assert_int_equal(poll(&p, 1, FAKE_WAIT_MSEC), 1);
	size = recv(manager, text, sizeof(text) - 1, 0);
	assert_true(size >= 0);
	text[size] = '\0';
	assert_string_equal(text, "STATUS=warm\n");
	assert_int_equal(poll(&p, 1, FAKE_WAIT_MSEC), 1);
	size = recv(manager, text, sizeof(text) - 1, 0);
	assert_true(size >= 0);
	text[size] = '\0';
	assert_string_equal(text, "STOPPING=1\nSTATUS=done\n");
	assert_int_equal(poll(&p, 1, 0), 0);
	close(manager);
}

static void drain_when_ready(struct fake *d)
{
	fake_welcome(d);
	fake_register(d, 1);
	fake_receive(d, PROTOCOL_READY);
	fake_ok(d);
	fake_request_drain(d, PROTOCOL_DRAIN_OPERATOR, 0);
	fake_receive_end(d);
}

static void readiness_may_come_by_time(void **state)
{
	struct fixture *f = *state;

	launch(f, drain_when_ready, "--service", "web", "--ready", "0.05", "--drain-signal", "KILL",
		"--", "/bin/sleep", "1000", NULL);
	assert_int_equal(finish(f), 128 + SIGKILL);
}

/* Signals */

#define CATCH(signal) "trap 'echo got " #signal "' " #signal "; "
/* clang-format off */
#define SERVER                                                                                     \
	CATCH(HUP) CATCH(QUIT) CATCH(USR1) CATCH(USR2) CATCH(WINCH) CATCH(INT)                     \
	"trap 'echo got TERM; exit 9' TERM; echo up; while :; do sleep 0.05; done"
/* clang-format on */

static void serve_until_terminated(struct fake *d)
{
	fake_welcome(d);
	fake_register(d, 1);
	fake_receive(d, PROTOCOL_READY);
	fake_ok(d);
	fake_receive(d, PROTOCOL_DRAIN); /* of all the signals, TERM alone ends a server */
	fake_ok(d);
	fake_receive_end(d);
}

static void signals_are_the_servers(void **state)
{
	static const struct {
		int signal;
		const char *text;
	} signals[] = {{SIGHUP, "got HUP\n"}, {SIGQUIT, "got QUIT\n"}, {SIGUSR1, "got USR1\n"},
		{SIGUSR2, "got USR2\n"}, {SIGWINCH, "got WINCH\n"}, {SIGINT, "got INT\n"},
		{SIGTERM, "got TERM\n"}};
	struct fixture *f = *state;

	launch(f, serve_until_terminated, "--service", "web", "--", "/bin/bash", "-c", SERVER,
		NULL);
	read_output(f, "up\n");
	for (size_t i = 0; i < ARRAY_SIZE(signals); i++) {
		assert_int_equal(kill(f->pid, signals[i].signal), 0);
		read_output(f, signals[i].text);
	}
	assert_int_equal(finish(f), 9);
}

static void a_server_killed_by_a_signal_is_128_and_more(void **state)
{
	struct fixture *f = *state;

	launch(f, serve_one, "--service", "web", "--", "/bin/sh", "-c", "kill -KILL $$", NULL);
	assert_int_equal(finish(f), 128 + SIGKILL);
}

static void drain_when_told(struct fake *d)
{
	fake_welcome(d);
	fake_register(d, 1);
	fake_receive(d, PROTOCOL_READY);
	fake_ok(d);
	fake_wait(d);
	fake_request_drain(d, PROTOCOL_DRAIN_REPLACED, 0);
	fake_receive_end(d);
}

static void a_drain_request_becomes_the_servers_signal(void **state)
{
	struct fixture *f = *state;

	launch(f, drain_when_told, "--service", "web", "--drain-signal", "SIGUSR1", "--",
		"/bin/bash", "-c",
		"trap 'echo drained; exit 4' USR1; echo up; while :; do sleep 0.05; done", NULL);
	read_output(f, "up\n");
	fake_continue(&f->daemon.fake);
	assert_int_equal(finish(f), 4);
	CHECK_OUTPUT("drained\n");
}

static void nginx_is_drained_by_quit(void **state)
{
	struct fixture *f = *state;

	launch(f, drain_when_told, "--service", "web", "--pass", "nginx", "--", "/bin/bash", "-c",
		"trap 'echo drained; exit 5' QUIT; echo up; while :; do sleep 0.05; done", NULL);
	read_output(f, "up\n");
	fake_continue(&f->daemon.fake);
	assert_int_equal(finish(f), 5);
}

static uint64_t now_msec(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static void the_servers_signal_may_come_later(void **state)
{
	struct fixture *f = *state;
	uint64_t asked;

	launch(f, drain_when_told, "--service", "web", "--drain-delay", "0.3", "--", "/bin/bash",
		"-c", "trap 'echo drained; exit 6' TERM; echo up; while :; do sleep 0.05; done",
		NULL);
	read_output(f, "up\n");
	asked = now_msec();
	fake_continue(&f->daemon.fake);
	assert_int_equal(finish(f), 6);
	assert_true(now_msec() - asked >= 300);
	CHECK_OUTPUT("drained\n");
}

static void die(struct fake *d)
{
	fake_welcome(d);
	fake_register(d, 1);
	fake_receive(d, PROTOCOL_READY);
	fake_ok(d);
	fake_wait(d);
}

static void the_server_outlives_the_daemon(void **state)
{
	struct fixture *f = *state;

	launch(f, die, "--service", "web", "--", "/bin/bash", "-c", SERVER, NULL);
	read_output(f, "up\n");
	fake_continue(&f->daemon.fake);
	read_output(f, "the server goes on");
	assert_int_equal(kill(f->pid, SIGHUP), 0);
	read_output(f, "got HUP\n");
	assert_int_equal(kill(f->pid, SIGTERM), 0);
	assert_int_equal(finish(f), 9);
}

/* The command line */

static void a_wrong_command_line_is_2(void **state)
{
	static const char *const lines[][6] = {
		{"--", "/bin/true"},
		{"--service", "web"},
		{"--service", "web", "--workers", "0", "/bin/true"},
		{"--service", "web", "--workers", "1x", "/bin/true"},
		{"--service", "web", "--weight", "1001", "/bin/true"},
		{"--service", "web", "--pass", "fds", "/bin/true"},
		{"--service", "web", "--ready", "soon", "/bin/true"},
		{"--service", "web", "--drain-signal", "NONE", "/bin/true"},
		{"--service", "web", "--drain-signal", "65", "/bin/true"},
		{"--service", "web", "--drain-delay", "-1", "/bin/true"},
		{"--service", "web", "--drain-delay", "1s", "/bin/true"},
		{"--service", "web", "--unknown", "/bin/true"},
	};
	struct fixture *f = *state;

	for (size_t i = 0; i < ARRAY_SIZE(lines); i++) {
		f->output[0] = '\0';
		launch(f, NULL, lines[i][0], lines[i][1], lines[i][2], lines[i][3], lines[i][4],
			NULL);
		assert_int_equal(finish(f), 2);
		assert_true(strlen(f->output) > 0);
		close_fd(&f->output_fd);
	}
}

static void what_binds_for_itself_is_passed_nothing(void **state)
{
	struct fixture *f = *state;

	launch(f, NULL, "--service", "web", "--adopt", "--pass", "args", "--", "true", NULL);
	assert_int_equal(finish(f), 2);
	CHECK_OUTPUT("--adopt: the server has its own sockets");
}

static void without_a_daemon_it_says_so(void **state)
{
	struct fixture *f = *state;

	launch(f, NULL, "--service", "web", "--socket", "/nonexistent/worker.sock", "/bin/true",
		NULL);
	assert_int_equal(finish(f), 125);
	CHECK_OUTPUT("cannot connect to reuseportd at /nonexistent/worker.sock");
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(sockets_come_as_listen_fds_with_names),
		TEST(sockets_come_as_nginx_wants_them),
		TEST(sockets_come_as_numbers_in_arguments),
		TEST(sockets_of_quic_listeners_come_as_listen_fds),
		TEST(nginx_gets_the_sockets_of_quic_listeners),
		TEST(sockets_of_quic_listeners_are_named_in_arguments),
		TEST(quic_lb_ids_are_not_for_launched_servers),
		TEST(quic_lb_plain_ids_are_not_for_launched_servers),
		TEST(registered_ids_are_not_for_launched_servers),
		TEST(a_listener_that_does_not_exist_is_an_error),
		TEST(a_socket_that_no_argument_names_is_an_error),
		TEST(a_server_that_cannot_be_executed_is_told_apart),
		TEST(a_server_that_is_no_program_is_told_apart),
		TEST(a_refusal_ends_the_launcher_in_words),
		TEST(a_refusal_at_the_last_moment_starts_nothing),
		TEST(the_launcher_keeps_no_copy_of_a_socket),
		TEST(notifications_are_translated_and_passed_on),
		TEST(readiness_may_come_by_time),
		TEST(signals_are_the_servers),
		TEST(a_server_killed_by_a_signal_is_128_and_more),
		TEST(a_drain_request_becomes_the_servers_signal),
		TEST(nginx_is_drained_by_quit),
		TEST(the_servers_signal_may_come_later),
		TEST(the_server_outlives_the_daemon),
		TEST(a_wrong_command_line_is_2),
		TEST(what_binds_for_itself_is_passed_nothing),
		TEST(without_a_daemon_it_says_so),
	};

	unsetenv("REUSEPORT_SOCKET");
	unsetenv("NOTIFY_SOCKET");
	unsetenv("LISTEN_FDS");
	alarm(300);
	return cmocka_run_group_tests_name("reuseport-run", tests, NULL, NULL);
}
