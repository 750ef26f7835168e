/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * die_at PID N: kills a process at the N-th stop from now on, each system call having two: before
 * it is done, when it never will be, and after. N 0: never.
 * die_at run N PROGRAM [ARGUMENT]...: the same from the program's first one on. This process
 * becomes the program, so that what it was given by its number stays right; a child of it traces,
 * says nothing, and is killed by whoever has seen enough.
 *
 * WHY: a state must be fit to go on from wherever its writer ended, and system calls are where it
 * touches the world. Says "attached" when counting begins, and at the end how many stops there
 * were: "killed N" or, when its input ends first, "passed N", and the process goes on.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

static int die(const char *what)
{
	fprintf(stderr, "die_at: %s: %s\n", what, strerror(errno));
	return 1;
}

/* The next stop. 1: one of a system call; 0: another one, passed on; -1: there is no process. */
static int next_stop(pid_t pid, int status)
{
	int number = 0;

	if (WIFEXITED(status) || WIFSIGNALED(status))
		return -1;
	if (WSTOPSIG(status) == (SIGTRAP | 0x80))
		return 1;
	/* PTRACE_EVENT_STOP is our own interruption; everything else is a signal of the process. */
	if (status >> 16 == 0)
		number = WSTOPSIG(status);
	return ptrace(PTRACE_SYSCALL, pid, NULL, number) < 0 ? -1 : 0;
}

/* Whether the input has ended; waits for that, or for a stop. */
static int wait_for_either(int signals)
{
	struct pollfd fds[2] = {{.fd = 0, .events = POLLIN}, {.fd = signals, .events = POLLIN}};
	struct signalfd_siginfo info;

	if (poll(fds, 2, -1) < 0)
		return 1;
	if (fds[1].revents && read(signals, &info, sizeof(info)) < 0)
		return 1;
	return fds[0].revents != 0;
}

/* Kills its parent at the n-th stop after it has executed the program. */
static int trace_parent(long n, int go)
{
	pid_t pid = getppid();
	int status, executed = 0;

	if (ptrace(PTRACE_SEIZE, pid, NULL, PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACEEXEC) < 0)
		return die("seize");
	/* What it was given is not this one's to hold. */
	close_range(3, (unsigned)go - 1, 0);
	close_range((unsigned)go + 1, ~0u, 0);
	if (ptrace(PTRACE_INTERRUPT, pid, NULL, NULL) < 0 || close(go) < 0)
		return die("interrupt");
	while (n > 0 && waitpid(pid, &status, __WALL) == pid) {
		int stop = next_stop(pid, status);

		if (stop < 0)
			return 0;
		executed |= status >> 8 == (SIGTRAP | PTRACE_EVENT_EXEC << 8);
		if (!stop)
			continue;
		if (executed && --n == 0)
			kill(pid, SIGKILL);
		ptrace(PTRACE_SYSCALL, pid, NULL, NULL);
	}
	return 0;
}

static int run(long n, char **argv)
{
	int go[2];
	char octet;
	pid_t pid;

	if (pipe(go) < 0 || (pid = fork()) < 0)
		return die("fork");
	if (pid == 0)
		_exit(trace_parent(n, go[1]));
	close(go[1]);
	if (read(go[0], &octet, 1) < 0)
		return die("wait");
	close(go[0]);
	execv(argv[0], argv);
	return die(argv[0]);
}

int main(int argc, char **argv)
{
	pid_t pid = argc == 3 ? atoi(argv[1]) : 0;
	long n = argc == 3 ? atol(argv[2]) : 0, seen = 0;
	int status, ended = 0, signals;
	sigset_t set;

	if (argc > 3 && strcmp(argv[1], "run") == 0)
		return run(atol(argv[2]), argv + 3);

	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signals = signalfd(-1, &set, SFD_CLOEXEC);
	if (pid <= 0 || signals < 0)
		return die("usage: die_at PID N");
	if (ptrace(PTRACE_SEIZE, pid, NULL, PTRACE_O_TRACESYSGOOD) < 0 ||
		ptrace(PTRACE_INTERRUPT, pid, NULL, NULL) < 0)
		return die("seize");
	if (waitpid(pid, &status, __WALL) != pid || next_stop(pid, status) < 0)
		return die("interrupt");
	puts("attached");
	fflush(stdout);
	while (!ended) {
		ended = wait_for_either(signals);
		while (waitpid(pid, &status, __WALL | WNOHANG) == pid) {
			int stop = next_stop(pid, status);

			if (stop < 0) {
				printf("killed %ld\n", seen);
				return 0;
			}
			if (!stop)
				continue;
			if (++seen == n) {
				kill(pid, SIGKILL);
				printf("killed %ld\n", seen);
				return 0;
			}
			ptrace(PTRACE_SYSCALL, pid, NULL, NULL);
		}
	}
	printf("passed %ld\n", seen);
	return 0; /* which detaches */
}
