/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What is left after confine(): each forbidden thing is tried in a process of its own, which the
 * filter must end, and what the loop needs must go on.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/capability.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "classify/confine.h"

#ifdef __SANITIZE_ADDRESS__
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SANITIZED 1
#endif
#endif

/* Stand-ins for the raw sockets need no privilege: UDP, connected as they are. */
static int datagram, control[2], raw[2];
static struct sockaddr_in target;

static int set_up(void **state)
{
	socklen_t length = sizeof(target);

	datagram = socket(AF_INET, SOCK_DGRAM, 0);
	target = (struct sockaddr_in){
		.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	if (bind(datagram, (struct sockaddr *)&target, sizeof(target)) < 0 ||
		getsockname(datagram, (struct sockaddr *)&target, &length) < 0 ||
		socketpair(AF_UNIX, SOCK_SEQPACKET, 0, control) < 0)
		return -1;
	for (unsigned i = 0; i < 2; i++) {
		raw[i] = socket(AF_INET, SOCK_DGRAM, 0);
		if (connect(raw[i], (struct sockaddr *)&target, length) < 0)
			return -1;
	}
	return 0;
}

/* The wait status of a process that is confined and then does it. */
static int status_of(void (*act)(void))
{
	const char *step;
	int status;
	pid_t child = fork();

	if (child == 0) {
		if (confine(datagram, control[0], raw, &step) < 0)
			_exit(99);
		act();
		_exit(0);
	}
	assert_true(child > 0);
	assert_int_equal(waitpid(child, &status, 0), child);
	return status;
}

static void check_killed(const char *what, void (*act)(void))
{
	int status = status_of(act);

	if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGSYS)
		fail_msg("%s: status %#x, not ended by SIGSYS", what, (unsigned)status);
}

static void check_done(const char *what, void (*act)(void))
{
	int status = status_of(act);

	if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
		fail_msg("%s: status %#x", what, (unsigned)status);
}

static void require(bool good)
{
	if (!good)
		_exit(1);
}

static void open_file(void)
{
	syscall(SYS_openat, AT_FDCWD, "/etc/passwd", O_RDONLY);
}

static void make_socket(void)
{
	syscall(SYS_socket, AF_INET, SOCK_DGRAM, 0);
}

static void connect_raw(void)
{
	connect(raw[0], (struct sockaddr *)&target, sizeof(target));
}

static void send_to_an_address(void)
{
	sendto(raw[0], "", 1, 0, (struct sockaddr *)&target, sizeof(target));
}

static void send_with_a_length_alone(void)
{
	sendto(raw[0], "", 1, 0, NULL, sizeof(target));
}

static void send_by_the_socket(void)
{
	sendto(datagram, "", 1, 0, NULL, 0);
}

static void send_to_the_daemon(void)
{
	sendto(control[0], "", 1, 0, NULL, 0);
}

static void send_message(void)
{
	struct msghdr header = {};

	sendmsg(raw[0], &header, 0);
}

static void write_raw(void)
{
	require(write(raw[0], "", 1) == 1);
}

static void receive_from_raw(void)
{
	struct mmsghdr message = {};

	recvmmsg(raw[0], &message, 1, MSG_DONTWAIT, NULL);
}

static void set_option(void)
{
	const int on = 1;

	setsockopt(datagram, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
}

static void map_executable(void)
{
	mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static void make_executable(void)
{
	static uint8_t page[8192] __attribute__((aligned(4096)));

	mprotect(page, 4096, PROT_READ | PROT_EXEC);
}

static void start_process(void)
{
	syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL);
}

static void execute(void)
{
	syscall(SYS_execve, "/bin/true", NULL, NULL);
}

static void signal_another(void)
{
	syscall(SYS_kill, 1, 0);
}

static void use_bpf(void)
{
	syscall(SYS_bpf, 0, NULL, 0);
}

static void trace(void)
{
	syscall(SYS_ptrace, 0, 0, NULL, NULL);
}

static void lock_file(void)
{
	fcntl(datagram, F_SETFL, O_NONBLOCK);
}

static void be_dumpable(void)
{
	prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
}

static void test_what_ends_it(void **state)
{
	check_killed("openat", open_file);
	check_killed("socket", make_socket);
	check_killed("connect", connect_raw);
	check_killed("sendto with an address", send_to_an_address);
	check_killed("sendto with the length of one", send_with_a_length_alone);
	check_killed("sendto on the group's socket", send_by_the_socket);
	check_killed("sendto on the control socket", send_to_the_daemon);
	check_killed("sendmsg", send_message);
	check_killed("write on a raw socket", write_raw);
	check_killed("recvmmsg on a raw socket", receive_from_raw);
	check_killed("setsockopt", set_option);
	check_killed("mmap with PROT_EXEC", map_executable);
	check_killed("mprotect", make_executable);
	check_killed("clone", start_process);
	check_killed("execve", execute);
	check_killed("kill", signal_another);
	check_killed("bpf", use_bpf);
	check_killed("ptrace", trace);
	check_killed("fcntl other than for seals", lock_file);
	check_killed("prctl", be_dumpable);
}

static void work(void)
{
	struct mmsghdr message = {};
	struct msghdr header = {};
	struct timespec wait = {};
	struct pollfd fd = {.fd = datagram, .events = POLLIN};
	struct timespec now;

	require(sendto(raw[0], "a", 1, MSG_DONTWAIT, NULL, 0) == 1);
	require(sendto(raw[1], "b", 1, MSG_DONTWAIT, NULL, 0) == 1);
	require(ppoll(&fd, 1, &wait, NULL) == 1);
	require(recvmmsg(datagram, &message, 1, MSG_DONTWAIT, NULL) == 1);
	require(recvmmsg(datagram, &message, 1, MSG_DONTWAIT, NULL) == 1);
	require(recvmsg(control[0], &header, MSG_DONTWAIT) < 0 && errno == EAGAIN);
	require(syscall(SYS_clock_gettime, CLOCK_PROCESS_CPUTIME_ID, &now) == 0);
	require(mmap(NULL, 4096, PROT_READ, MAP_SHARED | MAP_ANONYMOUS, -1, 0) != MAP_FAILED);
	require(write(STDERR_FILENO, "", 0) == 0);
	free(malloc(1 << 20));
}

static void test_what_its_loop_needs(void **state)
{
	check_done("the loop's calls", work);
}

/* In a process without the filter's limits there is no way to ask from inside. */
static void test_what_is_given_up(void **state)
{
	char path[64], line[256];
	unsigned capabilities = 0, found = 0;
	const char *step;
	int ready[2];
	FILE *file;
	pid_t child;

	assert_int_equal(pipe(ready), 0);
	child = fork();
	if (child == 0) {
		dup2(ready[1], STDERR_FILENO);
		if (confine(datagram, control[0], raw, &step) < 0)
			_exit(99);
		require(write(STDERR_FILENO, "", 1) == 1);
		ppoll(NULL, 0, NULL, NULL);
	}
	assert_int_equal(read(ready[0], line, 1), 1);
	snprintf(path, sizeof(path), "/proc/%d/status", child);
	file = fopen(path, "r");
	assert_non_null(file);
	while (fgets(line, sizeof(line), file)) {
		if (!strncmp(line, "CapPrm:", 7) || !strncmp(line, "CapEff:", 7) ||
			!strncmp(line, "CapInh:", 7) || !strncmp(line, "CapAmb:", 7)) {
			assert_string_equal(line + 7, "\t0000000000000000\n");
			capabilities++;
		}
		found += !strcmp(line, "NoNewPrivs:\t1\n") || !strcmp(line, "Seccomp:\t2\n");
	}
	fclose(file);
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	assert_int_equal(capabilities, 4);
	assert_int_equal(found, 2);
	close(ready[0]);
	close(ready[1]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_what_ends_it),
		cmocka_unit_test(test_what_its_loop_needs),
		cmocka_unit_test(test_what_is_given_up),
	};

#ifdef SANITIZED
	/* The sanitizers make system calls of their own. */
	printf("1..1\nok 1 - confine # SKIP not under a sanitizer\n");
	return 0;
#endif
	return cmocka_run_group_tests(tests, set_up, NULL);
}
