/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What workers that come and go do to traffic. One worker stays; datagrams, each of a new flow,
 * come every 20 microseconds, and each has a number, so that one that nobody received is known, and
 * when it was sent. Says "ready", and then for each line on its input:
 *   "join"   a second worker registers, and says READY: "READY FIRST SENT LOST", nanoseconds from
 *            the call of reuseport_ready() to its return, and to the first datagram received
 *   "drain"  it drains, reads what has come, and unregisters: "DRAIN LAST SENT LOST AFTER",
 *            nanoseconds from the call of reuseport_drain() to its return, and to the sending of
 *            the last datagram that came to it; how many sent after the return did
 *   "kill"   another process registers, and is killed: "DYING LAST SENT LOST AFTER", nanoseconds
 *            from kill() until the process was gone, and to the sending of the last datagram that
 *            was lost; how many were lost in all (they were in its queue), and of those that were
 *            sent when it was gone
 *   "exit"   the same, and it calls _exit() without a word
 */
#include "bench.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "client-lib/reuseport.h"

#define NUMBERS (1 << 20)
#define PERIOD_NSEC 20000
#define SETTLE_NSEC 30000000 /* traffic goes on for so long before and after what is measured */
#define WAIT_NSEC 20000000000ULL
#define MEMORY_FD_NAME "BENCH_HANDOVER_FD"

/* Shared with the process that dies. */
struct record {
	_Atomic uint32_t n_sent;
	_Atomic uint32_t n_received[2]; /* by the one that stays, by the other */
	_Atomic uint64_t first_at;      /* when the other received for the first time */
	_Atomic uint64_t exit_at;       /* when it called _exit() */
	_Atomic bool exit_now;
	uint64_t sent_at[NUMBERS];
	_Atomic uint8_t receiver[NUMBERS]; /* 0: nobody, 1: the one that stays, 2: the other */
};

struct handover {
	const char *daemon, *service;
	struct record *record;
	int record_fd;
	struct reuseport *stays, *other;
	struct sockaddr_in address;
	int epoll;
	pthread_t sender, receiver;
	_Atomic bool stop_sender, stop_receiver;
	uint32_t next_source;
};

static struct reuseport *register_worker(const char *daemon, const char *service)
{
	const int octets = 32 << 20;
	struct reuseport *r = open_client(daemon);

	check(r, reuseport_register(r, service, NULL, 1, 0, TIMEOUT_MSEC), "register");
	if (setsockopt(reuseport_socket(r, 0, 0), SOL_SOCKET, SO_RCVBUFFORCE, &octets,
		    sizeof(octets)) < 0)
		fail(errno, "cannot enlarge a receive buffer (needs CAP_NET_ADMIN)");
	return r;
}

static void sleep_until(uint64_t when)
{
	const struct timespec t = {
		.tv_sec = (time_t)(when / 1000000000), .tv_nsec = (long)(when % 1000000000)};

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
		;
}

static void *send_all(void *argument)
{
	struct handover *handover = argument;
	struct record *record = handover->record;
	struct {
		_Alignas(struct cmsghdr) char octets[CMSG_SPACE(sizeof(struct in_pktinfo))];
	} control = {{0}};
	uint32_t number = 0;
	struct iovec part = {&number, sizeof(number)};
	struct msghdr message = {.msg_name = &handover->address,
		.msg_namelen = sizeof(handover->address),
		.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control)};
	struct cmsghdr *header = (struct cmsghdr *)control.octets;
	struct in_pktinfo *source = (void *)CMSG_DATA(header);
	const struct sockaddr_in any = {.sin_family = AF_INET};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	uint64_t due = now();

	prctl(PR_SET_TIMERSLACK, 1UL);
	if (fd < 0 || bind(fd, (const struct sockaddr *)&any, sizeof(any)) < 0)
		fail(errno, "cannot open the sending socket");
	header->cmsg_level = IPPROTO_IP;
	header->cmsg_type = IP_PKTINFO;
	header->cmsg_len = CMSG_LEN(sizeof(*source));
	for (; number < NUMBERS && !atomic_load(&handover->stop_sender); number++) {
		source->ipi_spec_dst.s_addr = source_address(handover->next_source++);
		record->sent_at[number] = now();
		if (sendmsg(fd, &message, 0) != sizeof(number))
			fail(errno, "cannot send");
		atomic_store(&record->n_sent, number + 1);
		due += PERIOD_NSEC;
		sleep_until(due);
	}
	close(fd);
	return NULL;
}

/* Reads a socket empty; who: 1 or 2, as in record.receiver. Returns how many there were. */
static unsigned receive_all(struct record *record, int fd, uint8_t who)
{
	uint32_t number;
	unsigned n = 0;

	while (recv(fd, &number, sizeof(number), MSG_DONTWAIT) == sizeof(number)) {
		uint64_t none = 0;

		if (number >= NUMBERS)
			continue;
		if (who == 2)
			atomic_compare_exchange_strong(&record->first_at, &none, now());
		atomic_store(&record->receiver[number], who);
		atomic_fetch_add(&record->n_received[who - 1], 1);
		n++;
	}
	return n;
}

static void *receive(void *argument)
{
	struct handover *handover = argument;
	struct epoll_event events[2];
	bool stop;
	int n;

	do {
		stop = atomic_load(&handover->stop_receiver);
		n = epoll_wait(handover->epoll, events, 2, stop ? 0 : 10);
		for (int i = 0; i < n; i++) {
			bool other = events[i].data.u32 == 2;
			struct reuseport *r = other ? handover->other : handover->stays;

			receive_all(handover->record, reuseport_socket(r, 0, 0),
				(uint8_t)events[i].data.u32);
		}
	} while (!stop || n > 0);
	return NULL;
}

static void watch(struct handover *handover, struct reuseport *r, uint32_t who)
{
	struct epoll_event event = {.events = EPOLLIN, .data.u32 = who};

	if (epoll_ctl(handover->epoll, EPOLL_CTL_ADD, reuseport_socket(r, 0, 0), &event) < 0)
		fail(errno, "cannot wait for a socket");
}

static void start_traffic(struct handover *handover)
{
	memset(handover->record, 0, sizeof(*handover->record));
	atomic_store(&handover->stop_sender, false);
	atomic_store(&handover->stop_receiver, false);
	errno = pthread_create(&handover->receiver, NULL, receive, handover);
	if (!errno)
		errno = pthread_create(&handover->sender, NULL, send_all, handover);
	if (errno)
		fail(errno, "cannot start a thread");
}

/* On loopback what was sent has arrived, so that afterwards all is read. */
static void stop_traffic(struct handover *handover)
{
	sleep_until(now() + SETTLE_NSEC);
	atomic_store(&handover->stop_sender, true);
	pthread_join(handover->sender, NULL);
	atomic_store(&handover->stop_receiver, true);
	pthread_join(handover->receiver, NULL);
}

static void wait_received(struct handover *handover, unsigned who, uint32_t n)
{
	uint64_t begin = now();

	while (atomic_load(&handover->record->n_received[who - 1]) < n) {
		if (now() - begin > WAIT_NSEC)
			fail(ETIMEDOUT, "worker %u did not receive %u datagrams", who, n);
		sleep_until(now() + 1000000);
	}
}

static uint32_t count_lost(const struct record *record, uint64_t after, uint64_t *ret_last)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < record->n_sent; i++) {
		if (record->receiver[i] || record->sent_at[i] < after)
			continue;
		if (ret_last)
			*ret_last = record->sent_at[i];
		n++;
	}
	return n;
}

static void run_join(struct handover *handover)
{
	struct record *record = handover->record;
	uint64_t begin, answered;

	if (handover->other)
		fail(EALREADY, "two workers are there");
	handover->other = register_worker(handover->daemon, handover->service);
	watch(handover, handover->other, 2);
	start_traffic(handover);
	wait_received(handover, 1, 100);
	begin = now();
	check(handover->other, reuseport_ready(handover->other, TIMEOUT_MSEC), "become active");
	answered = now();
	wait_received(handover, 2, 1);
	stop_traffic(handover);
	printf("%lld %lld %u %u\n", (long long)(answered - begin),
		(long long)(record->first_at - begin), record->n_sent, count_lost(record, 0, NULL));
}

static void run_drain(struct handover *handover)
{
	struct record *record = handover->record;
	uint64_t begin, answered, last = 0;
	uint32_t after = 0;

	if (!handover->other)
		fail(ENOENT, "nobody to drain");
	start_traffic(handover);
	wait_received(handover, 2, 100);
	begin = now();
	check(handover->other, reuseport_drain(handover->other, TIMEOUT_MSEC), "drain");
	answered = now();
	stop_traffic(handover);
	for (uint32_t i = 0; i < record->n_sent; i++) {
		if (record->receiver[i] != 2)
			continue;
		last = record->sent_at[i];
		after += last > answered;
	}
	printf("%lld %lld %u %u %u\n", (long long)(answered - begin), (long long)(last - begin),
		record->n_sent, count_lost(record, 0, NULL), after);
	check(handover->other, reuseport_unregister(handover->other, TIMEOUT_MSEC), "unregister");
	reuseport_close(handover->other);
	handover->other = NULL;
}

/* The process that dies: has the shared memory as a descriptor. */
static void be_victim(const char *daemon, const char *service, int fd)
{
	struct record *record =
		mmap(NULL, sizeof(*record), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	struct epoll_event event = {.events = EPOLLIN};
	int epoll = epoll_create1(EPOLL_CLOEXEC);
	struct reuseport *r;

	if (record == MAP_FAILED || epoll < 0)
		fail(errno, "cannot share memory");
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	r = register_worker(daemon, service);
	if (epoll_ctl(epoll, EPOLL_CTL_ADD, reuseport_socket(r, 0, 0), &event) < 0)
		fail(errno, "cannot wait for a socket");
	check(r, reuseport_ready(r, TIMEOUT_MSEC), "become active");
	while (!atomic_load(&record->exit_now)) {
		epoll_wait(epoll, &event, 1, 10);
		receive_all(record, reuseport_socket(r, 0, 0), 2);
	}
	atomic_store(&record->exit_at, now());
	_exit(0);
}

static pid_t start_victim(struct handover *handover)
{
	pid_t pid = fork();

	if (pid < 0)
		fail(errno, "cannot fork");
	if (pid == 0) {
		char number[16];

		snprintf(number, sizeof(number), "%d", handover->record_fd);
		fcntl(handover->record_fd, F_SETFD, 0);
		setenv(MEMORY_FD_NAME, number, 1);
		execl("/proc/self/exe", "bench-handover", "--daemon", handover->daemon, "--service",
			handover->service, (char *)NULL);
		fail(errno, "cannot start a process");
	}
	return pid;
}

static void run_death(struct handover *handover, bool kill_it)
{
	struct record *record = handover->record;
	uint64_t begin, gone, last = 0;
	pid_t pid;

	start_traffic(handover);
	pid = start_victim(handover);
	wait_received(handover, 2, 100);
	begin = now();
	if (kill_it)
		kill(pid, SIGKILL);
	else
		atomic_store(&record->exit_now, true);
	waitpid(pid, NULL, 0);
	gone = now();
	if (!kill_it)
		begin = record->exit_at;
	stop_traffic(handover);
	count_lost(record, 0, &last);
	printf("%lld %lld %u %u %u\n", (long long)(gone - begin),
		last > begin ? (long long)(last - begin) : 0, record->n_sent,
		count_lost(record, 0, NULL), count_lost(record, gone, NULL));
}

static void start(struct handover *handover)
{
	socklen_t length = sizeof(handover->address);

	handover->record_fd = memfd_create("bench-handover", MFD_CLOEXEC);
	if (handover->record_fd < 0 || ftruncate(handover->record_fd, sizeof(struct record)) < 0)
		fail(errno, "cannot share memory");
	handover->record = mmap(NULL, sizeof(struct record), PROT_READ | PROT_WRITE, MAP_SHARED,
		handover->record_fd, 0);
	handover->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (handover->record == MAP_FAILED || handover->epoll < 0)
		fail(errno, "cannot share memory");
	handover->stays = register_worker(handover->daemon, handover->service);
	watch(handover, handover->stays, 1);
	check(handover->stays, reuseport_ready(handover->stays, TIMEOUT_MSEC), "become active");
	if (getsockname(reuseport_socket(handover->stays, 0, 0),
		    (struct sockaddr *)&handover->address, &length) < 0 ||
		handover->address.sin_family != AF_INET)
		fail(errno, "the listener is not at an IPv4 address");
}

int main(int argc, char **argv)
{
	static struct handover handover;
	const char *memory = getenv(MEMORY_FD_NAME);
	char line[64];

	if (argc != 5 || strcmp(argv[1], "--daemon") != 0 || strcmp(argv[3], "--service") != 0) {
		fputs("bench-handover --daemon PATH --service NAME\n", stderr);
		return 2;
	}
	handover.daemon = argv[2];
	handover.service = argv[4];
	if (memory)
		be_victim(handover.daemon, handover.service, atoi(memory));
	start(&handover);
	puts("ready");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		if (strcmp(line, "join\n") == 0)
			run_join(&handover);
		else if (strcmp(line, "drain\n") == 0)
			run_drain(&handover);
		else if (strcmp(line, "kill\n") == 0 || strcmp(line, "exit\n") == 0)
			run_death(&handover, line[0] == 'k');
		else
			fail(EINVAL, "not a command: %s", line);
		fflush(stdout);
	}
	return 0;
}
