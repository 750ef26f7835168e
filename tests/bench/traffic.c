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

#include <errno.h>
#include <linux/perf_event.h>
#include <netinet/udp.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define BATCH 64
#define TRAIN_MAX 64
#define BUFFER_OCTETS 65536 /* a whole train */
#define STALLED_SECONDS 20  /* no progress for so long: lost */

struct control {
	_Alignas(struct cmsghdr) char octets[CMSG_SPACE(sizeof(struct in_pktinfo)) +
					     CMSG_SPACE(sizeof(uint16_t))];
};

struct traffic {
	const struct group *group;
	unsigned window, train;
	int fd;
	int receive_cpu;
	int instructions; /* counter, or -1 */

	struct mmsghdr messages[BATCH];
	struct iovec parts[BATCH][2 * TRAIN_MAX];
	struct control controls[BATCH];

	struct mmsghdr received_messages[BATCH];
	struct iovec received_parts[BATCH];
	struct control received_controls[BATCH];
	uint8_t (*buffers)[BUFFER_OCTETS];

	enum traffic_mode mode; /* of this run */
	pthread_t receiver;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	bool running, idle; /* a run is on; the receiver waits: both under the lock */

	struct datagrams *datagrams; /* of the run */
	uint64_t misdelivered;

	_Alignas(64) _Atomic uint64_t received;
	_Atomic uint64_t received_at;
	_Alignas(64) _Atomic bool stop;
};

/* Where the datagrams of a first run arrived is where those of all later ones have to. */
static void check_owner(
	struct traffic *traffic, const uint8_t *octets, size_t length, uint16_t socket)
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

/* Of a message that may be a train: how long each datagram in it is. */
static size_t segment_octets(struct msghdr *header, size_t length)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(header); c; c = CMSG_NXTHDR(header, c)) {
		int octets;

		if (c->cmsg_level != SOL_UDP || c->cmsg_type != UDP_GRO)
			continue;
		memcpy(&octets, CMSG_DATA(c), sizeof(octets));
		if (octets > 0)
			return (size_t)octets;
	}
	return length;
}

/* Returns how many datagrams there were. */
static unsigned receive_some(struct traffic *traffic, unsigned socket)
{
	unsigned datagrams = 0;
	int n;

	for (unsigned i = 0; traffic->train > 1 && i < BATCH; i++)
		traffic->received_messages[i].msg_hdr.msg_controllen = sizeof(struct control);
	n = recvmmsg(traffic->group->sockets[socket], traffic->received_messages, BATCH,
		MSG_DONTWAIT, NULL);
	if (n < 0) {
		if (errno != EAGAIN && errno != EINTR)
			fail(errno, "cannot receive");
		return 0;
	}
	for (int i = 0; i < n; i++) {
		size_t length = traffic->received_messages[i].msg_len;
		size_t each = segment_octets(&traffic->received_messages[i].msg_hdr, length);

		for (size_t offset = 0; offset < length; offset += each, datagrams++)
			check_owner(traffic, traffic->buffers[i] + offset,
				length - offset < each ? length - offset : each, (uint16_t)socket);
	}
	if (traffic->mode == TRAFFIC_LATENCY)
		atomic_store_explicit(&traffic->received_at, now(), memory_order_relaxed);
	atomic_fetch_add_explicit(&traffic->received, datagrams, memory_order_release);
	return datagrams;
}

/* From the sockets that have something; waits so many milliseconds for the first. */
static unsigned receive_ready(struct traffic *traffic, int milliseconds)
{
	struct epoll_event events[BATCH];
	int n = epoll_wait(traffic->group->epoll, events, BATCH, milliseconds);
	unsigned datagrams = 0;

	if (n < 0 && errno != EINTR)
		fail(errno, "cannot wait for datagrams");
	for (int i = 0; i < n; i++)
		datagrams += receive_some(traffic, events[i].data.u32);
	return datagrams;
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
			bool sleep = traffic->mode == TRAFFIC_LATENCY;

			if (!receive_ready(traffic, sleep ? 10 : 0) && !sleep)
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
		header->msg_controllen = CMSG_SPACE(sizeof(struct in_pktinfo));
		control->cmsg_level = IPPROTO_IP;
		control->cmsg_type = IP_PKTINFO;
		control->cmsg_len = CMSG_LEN(sizeof(struct in_pktinfo));
		if (traffic->train > 1) {
			header->msg_controllen = sizeof(traffic->controls[i].octets);
			control = (struct cmsghdr *)(traffic->controls[i].octets +
						     header->msg_controllen -
						     CMSG_SPACE(sizeof(uint16_t)));
			control->cmsg_level = SOL_UDP;
			control->cmsg_type = UDP_SEGMENT;
			control->cmsg_len = CMSG_LEN(sizeof(uint16_t));
		}

		traffic->received_parts[i].iov_base = traffic->buffers[i];
		traffic->received_parts[i].iov_len = BUFFER_OCTETS;
		traffic->received_messages[i].msg_hdr.msg_iov = &traffic->received_parts[i];
		traffic->received_messages[i].msg_hdr.msg_iovlen = 1;
		if (traffic->train > 1)
			traffic->received_messages[i].msg_hdr.msg_control =
				traffic->received_controls[i].octets;
	}
}

/* Of the kernel alone, on whatever processor this thread runs; -1 where there is no counter, as in
 * most virtual machines. */
static int open_instructions(void)
{
	struct perf_event_attr attributes = {
		.type = PERF_TYPE_HARDWARE,
		.size = sizeof(attributes),
		.config = PERF_COUNT_HW_INSTRUCTIONS,
		.exclude_user = 1,
		.exclude_hv = 1,
	};

	return (int)syscall(SYS_perf_event_open, &attributes, 0, -1, -1, PERF_FLAG_FD_CLOEXEC);
}

static int64_t read_instructions(const struct traffic *traffic)
{
	uint64_t count;

	if (traffic->instructions < 0 ||
		read(traffic->instructions, &count, sizeof(count)) != sizeof(count))
		return -1;
	return (int64_t)count;
}

struct traffic *traffic_new(const struct group *group, const struct traffic_options *options)
{
	struct traffic *traffic = aligned_alloc(_Alignof(struct traffic), sizeof(*traffic));
	const struct sockaddr_in any = {.sin_family = AF_INET};

	if (!traffic)
		fail(ENOMEM, "no room");
	memset(traffic, 0, sizeof(*traffic));
	traffic->group = group;
	traffic->train = options->train;
	traffic->window = options->window < BATCH ? BATCH : options->window;
	traffic->receive_cpu = options->receive_cpu;
	traffic->buffers = calloc(BATCH, sizeof(*traffic->buffers));
	if (!traffic->buffers)
		fail(ENOMEM, "no room");
	prepare_messages(traffic);
	traffic->fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (traffic->fd < 0 || bind(traffic->fd, (const struct sockaddr *)&any, sizeof(any)) < 0)
		fail(errno, "cannot open the sending socket");
	pin(options->send_cpu);
	traffic->instructions = open_instructions();
	pthread_mutex_init(&traffic->lock, NULL);
	pthread_cond_init(&traffic->changed, NULL);
	errno = pthread_create(&traffic->receiver, NULL, receive, traffic);
	if (errno)
		fail(errno, "cannot start the receiving thread");
	return traffic;
}

static void set_message(
	struct traffic *traffic, unsigned message, const struct datagrams *datagrams, size_t i)
{
	struct cmsghdr *control = (struct cmsghdr *)traffic->controls[message].octets;
	struct in_pktinfo *source = (void *)CMSG_DATA(control);
	struct iovec *parts = traffic->parts[message];
	uint16_t length = datagrams->lengths[i];
	size_t n = 0;

	for (unsigned segment = 0; segment < traffic->train; segment++) {
		parts[n].iov_base = datagrams->heads[i];
		parts[n].iov_len = length < HEAD_OCTETS ? length : HEAD_OCTETS;
		if (parts[n++].iov_len == length)
			continue;
		parts[n].iov_base = (void *)datagrams->tail;
		parts[n++].iov_len = length - HEAD_OCTETS;
	}
	traffic->messages[message].msg_hdr.msg_iovlen = n;
	source->ipi_spec_dst.s_addr = source_address(datagrams->first_source + (uint32_t)i);
	if (traffic->train > 1) {
		control = (struct cmsghdr *)(traffic->controls[message].octets +
					     CMSG_SPACE(sizeof(struct in_pktinfo)));
		memcpy(CMSG_DATA(control), &length, sizeof(length));
	}
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
		if (traffic->mode == TRAFFIC_ALONE)
			receive_ready(traffic, 0);
		else if (traffic->mode == TRAFFIC_PAIR)
			sched_yield();
	}
}

static void send_messages(struct traffic *traffic, unsigned n)
{
	for (unsigned done = 0; done < n;) {
		int result = sendmmsg(traffic->fd, traffic->messages + done, n - done, 0);

		if (result < 0 && errno != EINTR)
			fail(errno, "cannot send to port %u",
				ntohs(traffic->group->address.sin_port));
		done += result < 0 ? 0 : (unsigned)result;
	}
}

static uint64_t send_all(struct traffic *traffic, const struct datagrams *datagrams, uint64_t count)
{
	unsigned batch = traffic->mode == TRAFFIC_LATENCY ? 1 : BATCH / traffic->train;
	uint64_t sent = 0, left;
	size_t next = 0;

	while (sent < count) {
		unsigned n = 0;

		left = (count - sent + traffic->train - 1) / traffic->train;
		wait_received(traffic, sent,
			traffic->mode == TRAFFIC_ALONE ? 0
						       : traffic->window - batch * traffic->train);
		for (; n < batch && n < left; n++) {
			set_message(traffic, n, datagrams, next);
			next = next + 1 == datagrams->n ? 0 : next + 1;
		}
		send_messages(traffic, n);
		sent += (uint64_t)n * traffic->train;
	}
	return sent;
}

/* One after the other, each when the one before has been received. */
static uint64_t send_singly(struct traffic *traffic, const struct datagrams *datagrams,
	uint64_t count, uint64_t *latencies)
{
	for (uint64_t sent = 0; sent < count; sent++) {
		uint64_t begin;

		set_message(traffic, 0, datagrams, sent % datagrams->n);
		begin = now();
		send_messages(traffic, 1);
		wait_received(traffic, sent + 1, 0);
		latencies[sent] = atomic_load(&traffic->received_at) - begin;
	}
	return count;
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

struct run traffic_run(struct traffic *traffic, struct datagrams *datagrams, uint64_t count,
	enum traffic_mode mode, uint64_t *latencies)
{
	struct run run = {.instructions = -1};
	int64_t instructions;
	uint64_t begin;

	atomic_store(&traffic->received, 0);
	traffic->misdelivered = 0;
	traffic->datagrams = datagrams;
	traffic->mode = mode;
	if (mode != TRAFFIC_ALONE)
		start_receiver(traffic);

	instructions = read_instructions(traffic);
	begin = now();
	run.sent = mode == TRAFFIC_LATENCY ? send_singly(traffic, datagrams, count, latencies)
					   : send_all(traffic, datagrams, count);
	wait_received(traffic, run.sent, 0);
	run.nanoseconds = now() - begin;
	if (instructions >= 0)
		run.instructions = read_instructions(traffic) - instructions;
	if (mode != TRAFFIC_ALONE) {
		atomic_store_explicit(&traffic->stop, true, memory_order_release);
		wait_idle(traffic);
	}
	run.received = atomic_load(&traffic->received);
	run.misdelivered = traffic->misdelivered;
	return run;
}
