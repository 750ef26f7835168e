/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Traffic through real sockets. On loopback the program runs in the sender's system call. Either
 * one thread sends a window of datagrams and receives it, in turn, or one sends and one receives,
 * each on a processor of its own. Both spin: wake-ups would add microseconds that come and go, and
 * hide what is to be seen.
 *
 * Nothing is lost for lack of room: the sender keeps at most a window of datagrams that have not
 * been received.
 */
#include "bench.h"

#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#define BATCH 64
#define BUFFER_OCTETS 2048
#define STALLED_SECONDS 20 /* no progress for so long: lost */

struct control {
	_Alignas(struct cmsghdr) char octets[CMSG_SPACE(sizeof(struct in_pktinfo))];
};

struct traffic {
	const struct group *group;
	unsigned window;
	int fd;
	int receive_cpu;

	struct mmsghdr messages[BATCH];
	struct iovec parts[BATCH][2];
	struct control controls[BATCH];

	struct mmsghdr received_messages[BATCH];
	struct iovec received_parts[BATCH];
	uint8_t (*buffers)[BUFFER_OCTETS];

	bool alone; /* this run: the sender receives too */
	pthread_t receiver;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	bool running, idle; /* a run is on; the receiver waits: both under the lock */

	struct datagrams *datagrams; /* of the run */
	uint64_t misdelivered;

	_Alignas(64) _Atomic uint64_t received;
	_Alignas(64) _Atomic bool stop;
};

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static void pin(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set) < 0)
		fail(errno, "cannot run on processor %d", cpu);
}

/* Where the datagrams of a first run arrived is where those of all later ones have to. */
static void check_owner(
	struct traffic *traffic, const uint8_t *octets, size_t length, uint8_t socket)
{
	struct datagrams *datagrams = traffic->datagrams;
	uint32_t number = datagram_number(octets, length);

	if (datagrams->kind == DATAGRAM_FILE)
		return;
	if (number >= datagrams->n)
		traffic->misdelivered++;
	else if (datagrams->owners[number] == OWNER_UNKNOWN)
		datagrams->owners[number] = socket;
	else if (datagrams->owners[number] != socket)
		traffic->misdelivered++;
}

/* Returns how many there were. */
static unsigned receive_some(struct traffic *traffic, unsigned socket)
{
	int n = recvmmsg(traffic->group->sockets[socket], traffic->received_messages, BATCH,
		MSG_DONTWAIT, NULL);

	if (n < 0) {
		if (errno != EAGAIN && errno != EINTR)
			fail(errno, "cannot receive");
		return 0;
	}
	for (int i = 0; i < n; i++)
		check_owner(traffic, traffic->buffers[i], traffic->received_messages[i].msg_len,
			(uint8_t)socket);
	atomic_fetch_add_explicit(&traffic->received, (uint64_t)n, memory_order_release);
	return (unsigned)n;
}

static unsigned receive_from_all(struct traffic *traffic)
{
	unsigned n = 0;

	for (unsigned i = 0; i < traffic->group->n_sockets; i++)
		n += receive_some(traffic, i);
	return n;
}

static void *receive(void *argument)
{
	struct traffic *traffic = argument;

	pin(traffic->receive_cpu);
	for (;;) {
		pthread_mutex_lock(&traffic->lock);
		traffic->idle = true;
		pthread_cond_broadcast(&traffic->changed);
		while (!traffic->running)
			pthread_cond_wait(&traffic->changed, &traffic->lock);
		traffic->idle = false;
		pthread_mutex_unlock(&traffic->lock);
		while (!atomic_load_explicit(&traffic->stop, memory_order_acquire)) {
			if (!receive_from_all(traffic))
				sched_yield();
		}
		pthread_mutex_lock(&traffic->lock);
		traffic->running = false;
		pthread_mutex_unlock(&traffic->lock);
	}
	return NULL;
}

static void prepare_messages(struct traffic *traffic)
{
	for (unsigned i = 0; i < BATCH; i++) {
		struct msghdr *header = &traffic->messages[i].msg_hdr;
		struct cmsghdr *control = (struct cmsghdr *)traffic->controls[i].octets;

		header->msg_name = (void *)&traffic->group->address;
		header->msg_namelen = sizeof(traffic->group->address);
		header->msg_iov = traffic->parts[i];
		header->msg_control = control;
		header->msg_controllen = sizeof(traffic->controls[i].octets);
		control->cmsg_level = IPPROTO_IP;
		control->cmsg_type = IP_PKTINFO;
		control->cmsg_len = CMSG_LEN(sizeof(struct in_pktinfo));

		traffic->received_parts[i].iov_base = traffic->buffers[i];
		traffic->received_parts[i].iov_len = BUFFER_OCTETS;
		traffic->received_messages[i].msg_hdr.msg_iov = &traffic->received_parts[i];
		traffic->received_messages[i].msg_hdr.msg_iovlen = 1;
	}
}

struct traffic *traffic_new(
	const struct group *group, unsigned window, int send_cpu, int receive_cpu)
{
	struct traffic *traffic = aligned_alloc(_Alignof(struct traffic), sizeof(*traffic));
	const struct sockaddr_in any = {.sin_family = AF_INET};

	if (!traffic)
		fail(ENOMEM, "no room");
	memset(traffic, 0, sizeof(*traffic));
	traffic->group = group;
	traffic->window = window < BATCH ? BATCH : window;
	traffic->receive_cpu = receive_cpu;
	traffic->buffers = calloc(BATCH, sizeof(*traffic->buffers));
	if (!traffic->buffers)
		fail(ENOMEM, "no room");
	prepare_messages(traffic);
	traffic->fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (traffic->fd < 0 || bind(traffic->fd, (const struct sockaddr *)&any, sizeof(any)) < 0)
		fail(errno, "cannot open the sending socket");
	pin(send_cpu);
	pthread_mutex_init(&traffic->lock, NULL);
	pthread_cond_init(&traffic->changed, NULL);
	errno = pthread_create(&traffic->receiver, NULL, receive, traffic);
	if (errno)
		fail(errno, "cannot start the receiving thread");
	return traffic;
}

/* Any address of 127.0.0.0/8 is ours: each flow has one of its own, from 127.1.0.0 up. */
static uint32_t source_address(uint32_t number)
{
	return htonl(INADDR_LOOPBACK - 1 + (1 << 16) + number % (253 << 16));
}

static void set_message(
	struct traffic *traffic, unsigned message, const struct datagrams *datagrams, size_t i)
{
	struct in_pktinfo *source =
		(void *)CMSG_DATA((struct cmsghdr *)traffic->controls[message].octets);
	struct iovec *parts = traffic->parts[message];
	size_t length = datagrams->lengths[i];

	parts[0].iov_base = datagrams->heads[i];
	parts[0].iov_len = length < HEAD_OCTETS ? length : HEAD_OCTETS;
	parts[1].iov_base = (void *)datagrams->tail;
	parts[1].iov_len = length - parts[0].iov_len;
	traffic->messages[message].msg_hdr.msg_iovlen = parts[1].iov_len ? 2 : 1;
	source->ipi_spec_dst.s_addr = source_address(datagrams->first_source + (uint32_t)i);
}

/* Until at most `allowed` datagrams have not been received. */
static void wait_received(struct traffic *traffic, uint64_t sent, uint64_t allowed)
{
	uint64_t before = 0, received, since = 0;

	for (;;) {
		received = atomic_load_explicit(&traffic->received, memory_order_acquire);
		if (sent - received <= allowed)
			return;
		if (received != before || !since) {
			before = received;
			since = now();
		} else if (now() - since > STALLED_SECONDS * 1000000000ULL) {
			fail(ETIMEDOUT,
				"%llu of %llu datagrams were received, and no more for %d s",
				(unsigned long long)received, (unsigned long long)sent,
				STALLED_SECONDS);
		}
		if (traffic->alone)
			receive_from_all(traffic);
		else
			sched_yield();
	}
}

static uint64_t send_all(struct traffic *traffic, const struct datagrams *datagrams, uint64_t count)
{
	uint64_t sent = 0;
	size_t next = 0;

	while (sent < count) {
		unsigned n = count - sent < BATCH ? (unsigned)(count - sent) : BATCH;
		size_t i = next;

		wait_received(traffic, sent, traffic->window - n);
		for (unsigned message = 0; message < n; message++) {
			set_message(traffic, message, datagrams, i);
			i = i + 1 == datagrams->n ? 0 : i + 1;
		}
		for (unsigned done = 0; done < n;) {
			int result = sendmmsg(traffic->fd, traffic->messages + done, n - done, 0);

			if (result < 0 && errno != EINTR)
				fail(errno, "cannot send to port %u",
					ntohs(traffic->group->address.sin_port));
			done += result < 0 ? 0 : (unsigned)result;
		}
		next = i;
		sent += n;
	}
	return sent;
}

/* Until the receiving thread sleeps. */
static void wait_idle(struct traffic *traffic)
{
	pthread_mutex_lock(&traffic->lock);
	while (!traffic->idle || traffic->running)
		pthread_cond_wait(&traffic->changed, &traffic->lock);
	pthread_mutex_unlock(&traffic->lock);
}

static void start_receiver(struct traffic *traffic)
{
	wait_idle(traffic);
	atomic_store(&traffic->stop, false);
	pthread_mutex_lock(&traffic->lock);
	traffic->running = true;
	traffic->idle = false;
	pthread_cond_broadcast(&traffic->changed);
	pthread_mutex_unlock(&traffic->lock);
}

struct run traffic_run(
	struct traffic *traffic, struct datagrams *datagrams, uint64_t count, bool alone)
{
	struct run run = {0};
	uint64_t begin;

	atomic_store(&traffic->received, 0);
	traffic->misdelivered = 0;
	traffic->datagrams = datagrams;
	traffic->alone = alone;
	if (!alone)
		start_receiver(traffic);

	begin = now();
	run.sent = send_all(traffic, datagrams, count);
	wait_received(traffic, run.sent, 0);
	run.nanoseconds = now() - begin;
	if (!alone) {
		atomic_store_explicit(&traffic->stop, true, memory_order_release);
		wait_idle(traffic);
	}
	run.received = atomic_load(&traffic->received);
	run.misdelivered = traffic->misdelivered;
	return run;
}
