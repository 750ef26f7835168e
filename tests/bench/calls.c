/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What system calls cost a process, in picoseconds of its own processor time, on one line:
 * getppid() (the cheapest there is), epoll_wait() that finds something, a datagram sent, and one
 * received; then bind() and listen() at the address 127.0.0.1:PORT, in elapsed time, median of some
 * hundreds.
 *
 *     bench-calls [--filter] PORT
 *
 * --filter: under a seccomp filter of one instruction that allows everything, the least there can
 * be.
 */
#include <arpa/inet.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { CHEAP = 1000000, OTHERS = 100000, BINDS = 301 };

static long nanoseconds(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return now.tv_sec * 1000000000L + now.tv_nsec;
}

static int add_filter(void)
{
	struct sock_filter code = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	const struct sock_fprog program = {.len = 1, .filter = &code};

	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0
		       ? -1
		       : (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program);
}

static int compare(const void *a, const void *b)
{
	const long *left = a, *right = b;

	return (*left > *right) - (*left < *right);
}

/* The median of a bind() and listen(), in nanoseconds; -1: it can't be bound. */
static long measure_bind(in_port_t port)
{
	const struct sockaddr_in address = {
		.sin_family = AF_INET, .sin_port = port, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	long took[BINDS];

	for (int i = 0; i < BINDS; i++) {
		int fd = socket(AF_INET, SOCK_STREAM, 0);
		long start = nanoseconds(CLOCK_MONOTONIC);

		if (bind(fd, (const struct sockaddr *)&address, sizeof(address)) < 0 ||
			listen(fd, 16) < 0)
			return -1;
		took[i] = nanoseconds(CLOCK_MONOTONIC) - start;
		close(fd);
	}
	qsort(took, BINDS, sizeof(*took), compare);
	return took[BINDS / 2];
}

/* Sending and receiving, and asking whether there is something, in turn. -1: failed. */
static int measure_datagrams(long *ret_epoll, long *ret_send, long *ret_receive)
{
	struct sockaddr_in address = {
		.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	struct epoll_event event = {.events = EPOLLIN};
	socklen_t length = sizeof(address);
	int fd = socket(AF_INET, SOCK_DGRAM, 0), poll = epoll_create1(0);
	char octets[100] = "";
	long start;

	if (bind(fd, (struct sockaddr *)&address, length) < 0 ||
		getsockname(fd, (struct sockaddr *)&address, &length) < 0 ||
		connect(fd, (struct sockaddr *)&address, length) < 0 ||
		epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event) < 0)
		return -1;
	*ret_epoll = *ret_send = *ret_receive = 0;
	for (int i = 0; i < OTHERS / 100; i++) {
		start = nanoseconds(CLOCK_PROCESS_CPUTIME_ID);
		for (int k = 0; k < 100; k++)
			if (send(fd, octets, sizeof(octets), 0) != sizeof(octets))
				return -1;
		*ret_send += nanoseconds(CLOCK_PROCESS_CPUTIME_ID) - start;
		start = nanoseconds(CLOCK_PROCESS_CPUTIME_ID);
		for (int k = 0; k < 100; k++)
			if (epoll_wait(poll, &event, 1, 0) != 1)
				return -1;
		*ret_epoll += nanoseconds(CLOCK_PROCESS_CPUTIME_ID) - start;
		start = nanoseconds(CLOCK_PROCESS_CPUTIME_ID);
		for (int k = 0; k < 100; k++)
			if (recv(fd, octets, sizeof(octets), 0) != sizeof(octets))
				return -1;
		*ret_receive += nanoseconds(CLOCK_PROCESS_CPUTIME_ID) - start;
	}
	return 0;
}

int main(int argc, char **argv)
{
	bool filter = argc == 3 && !strcmp(argv[1], "--filter");
	long start, cheap, epoll, sent, received, bound;

	if (argc != 2 + filter || (filter && add_filter() < 0))
		return EXIT_FAILURE;
	start = nanoseconds(CLOCK_PROCESS_CPUTIME_ID);
	for (int i = 0; i < CHEAP; i++)
		syscall(SYS_getppid);
	cheap = nanoseconds(CLOCK_PROCESS_CPUTIME_ID) - start;
	if (measure_datagrams(&epoll, &sent, &received) < 0)
		return EXIT_FAILURE;
	bound = measure_bind(htons((in_port_t)atoi(argv[1 + filter])));
	if (bound < 0)
		return EXIT_FAILURE;
	printf("%ld %ld %ld %ld %ld\n", cheap * 1000 / CHEAP, epoll * 1000 / OTHERS,
		sent * 1000 / OTHERS, received * 1000 / OTHERS, bound);
	return EXIT_SUCCESS;
}
