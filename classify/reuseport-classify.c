/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The process that reads what strangers send first. It has the descriptors of classifier.h and
 * nothing else: whoever takes it over by what it reads can write choices and send packets to this
 * host, and no more.
 *
 * One thread, one loop: datagrams of the group's socket, new rules by the control socket, and what
 * has been held too long. It never waits for anything but these.
 */
#include <fcntl.h>
#include <linux/udp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>

#include "classify/chooser.h"
#include "classify/classifier.h"
#include "classify/confine.h"
#include "classify/meter.h"
#include "common/util.h"

#define BATCH 32             /* datagrams taken by one system call */
#define DATAGRAM_OCTETS 9216 /* the largest that is taken; Ethernet's jumbo frames have less */
#define ALIVE_NSEC 1000000000ULL
#define ORPHAN_NSEC (600 * 1000000000ULL)
#define CONTROL_OCTETS                                                                    \
	(CMSG_SPACE(sizeof(struct in6_pktinfo)) + CMSG_SPACE(sizeof(struct in_pktinfo)) + \
		2 * CMSG_SPACE(sizeof(int)) + 64)

/* Room for a batch. */
struct batch {
	struct mmsghdr message[BATCH];
	struct iovec part[BATCH];
	struct sockaddr_in6 from[BATCH]; /* IPv4 ones are shorter */
	union {
		struct cmsghdr align;
		uint8_t octets[CONTROL_OCTETS];
	} control[BATCH];
	uint8_t octets[BATCH][DATAGRAM_OCTETS];
};

struct process {
	const char *name; /* of the share */
	struct chooser chooser;
	struct meter meter;
	struct batch batch;
	size_t rules_size;
	uint16_t port;   /* the socket's own, network byte order */
	uint32_t number; /* of this process, in the share's life */
	bool orphan;     /* the daemon has ended */
	uint64_t alive_nsec, arrived_nsec;
};

static int _printf_(2, 3) complain(const struct process *process, const char *format, ...)
{
	char text[300];
	va_list arguments;
	int n;

	n = snprintf(text, sizeof(text), "reuseport-classify %.63s: ", process->name);
	va_start(arguments, format);
	vsnprintf(text + n, sizeof(text) - (size_t)n - 1, format, arguments);
	va_end(arguments);
	strcat(text, "\n");
	return write(STDERR_FILENO, text, strlen(text)) < 0 ? -errno : 0;
}

static uint64_t clock_nsec(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return (uint64_t)now.tv_sec * 1000000000ULL + (uint64_t)now.tv_nsec;
}

/* ---- Descriptors ---- */

/* Rules in place of those that there are, if they can be followed. fd stays open. */
static int map_rules(struct process *process, int fd)
{
	const int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;
	off_t size = lseek(fd, 0, SEEK_END);
	int present = fcntl(fd, F_GET_SEALS);
	void *memory;

	if (size <= 0 || size > SHARE_RULES_OCTETS_MAX)
		return -EFBIG;
	/* Or they could change, or go, after they were checked. */
	if (present < 0 || (present & seals) != seals)
		return -EPERM;
	memory = mmap(NULL, (size_t)size, PROT_READ, MAP_SHARED, fd, 0);
	if (memory == MAP_FAILED)
		return -errno;
	if (share_rules_check(memory, (size_t)size) < 0) {
		munmap(memory, (size_t)size);
		return -EBADMSG;
	}
	if (process->chooser.rules)
		munmap((void *)process->chooser.rules, process->rules_size);
	process->chooser.rules = memory;
	process->rules_size = (size_t)size;
	return 0;
}

static int map_shared(int fd, size_t size, void **ret)
{
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (memory == MAP_FAILED)
		return -errno;
	*ret = memory;
	return 0;
}

/* Asks the socket for both addresses and the traffic class of each datagram. */
static int set_up_socket(struct process *process)
{
	struct sockaddr_in6 own = {};
	socklen_t length = sizeof(own);
	const int on = 1;

	if (getsockname(CLASSIFIER_SOCKET, (struct sockaddr *)&own, &length) < 0)
		return -errno;
	process->port = own.sin6_port; /* at the same place in both families */
	if (setsockopt(CLASSIFIER_SOCKET, IPPROTO_IP, IP_PKTINFO, &on, sizeof(on)) < 0 ||
		setsockopt(CLASSIFIER_SOCKET, IPPROTO_IP, IP_RECVTOS, &on, sizeof(on)) < 0)
		return -errno;
	if (own.sin6_family != AF_INET6)
		return 0;
	if (setsockopt(CLASSIFIER_SOCKET, IPPROTO_IPV6, IPV6_RECVPKTINFO, &on, sizeof(on)) < 0 ||
		setsockopt(CLASSIFIER_SOCKET, IPPROTO_IPV6, IPV6_RECVTCLASS, &on, sizeof(on)) < 0)
		return -errno;
	return 0;
}

static int map_all(struct process *process, const char **ret_step)
{
	struct chooser *chooser = &process->chooser;
	void *memory;
	int r;

	*ret_step = "map the page";
	r = map_shared(CLASSIFIER_PAGE, sizeof(struct share_page), &memory);
	if (r < 0)
		return r;
	chooser->page = memory;
	*ret_step = "map the choices";
	if (chooser->page->choice_mask & (chooser->page->choice_mask + 1))
		return -EINVAL;
	r = map_shared(CLASSIFIER_CHOICES,
		((size_t)chooser->page->choice_mask + 1) * sizeof(struct flow_set), &memory);
	if (r < 0)
		return r;
	chooser->choices = memory;
	*ret_step = "map the rules";
	r = map_rules(process, CLASSIFIER_RULES);
	if (r < 0)
		return r;
	close(CLASSIFIER_PAGE);
	close(CLASSIFIER_CHOICES);
	close(CLASSIFIER_RULES);
	return 0;
}

/* libcrypto finds its algorithms at their first use: before files are out of reach. */
static int warm_up(struct process *process)
{
	static const uint8_t octets[1200] = {
		0xc0, 0, 0, 0, 1, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0x44, 0x9e};
	struct held *spare = held_spare(process->chooser.held);

	flow_init(&spare->flow);
	flow_feed(&spare->flow, process->chooser.crypto, octets, sizeof(octets));
	return spare->flow.unopened == 1 ? 0 : -EIO;
}

static void end(int number)
{
	_exit(0);
}

static int start(struct process *process, const char **ret_step)
{
	const int raw[] = {CLASSIFIER_RAW_IPV4, CLASSIFIER_RAW_IPV6};
	const struct sigaction action = {.sa_handler = end};
	int r;

	/* Whatever else it was given by mistake: it would be a stranger's. */
	*ret_step = "close other descriptors";
	if (close_range(CLASSIFIER_RULES + 1, ~0U, 0) < 0)
		return -errno;
	r = map_all(process, ret_step);
	if (r < 0)
		return r;
	process->chooser.raw_ipv4 = raw[0];
	process->chooser.raw_ipv6 = raw[1];
	*ret_step = "set up the socket";
	r = set_up_socket(process);
	if (r < 0)
		return r;
	*ret_step = "set up libcrypto";
	r = chooser_init(&process->chooser);
	if (r >= 0)
		r = warm_up(process);
	if (r < 0)
		return r;
	*ret_step = "handle SIGTERM";
	if (sigaction(SIGTERM, &action, NULL) < 0)
		return -errno;
	return confine(CLASSIFIER_SOCKET, CLASSIFIER_CONTROL, raw, ret_step);
}

/* ---- Datagrams ---- */

static void prepare(struct batch *batch)
{
	for (unsigned i = 0; i < BATCH; i++) {
		batch->part[i] = (struct iovec){batch->octets[i], sizeof(batch->octets[i])};
		batch->message[i].msg_hdr = (struct msghdr){
			.msg_name = &batch->from[i],
			.msg_namelen = sizeof(batch->from[i]),
			.msg_iov = &batch->part[i],
			.msg_iovlen = 1,
			.msg_control = batch->control[i].octets,
			.msg_controllen = sizeof(batch->control[i].octets),
		};
	}
}

static bool is(const struct cmsghdr *item, int level, int type, size_t length)
{
	return item->cmsg_level == level && item->cmsg_type == type &&
	       item->cmsg_len >= CMSG_LEN(length);
}

/* Where the datagram went to, and its traffic class; false: the kernel did not say. */
static bool read_ancillary(struct msghdr *header, struct path *path, uint8_t *ret_traffic_class)
{
	bool found = false;

	*ret_traffic_class = 0;
	for (struct cmsghdr *item = CMSG_FIRSTHDR(header); item; item = CMSG_NXTHDR(header, item)) {
		if (is(item, IPPROTO_IPV6, IPV6_PKTINFO, sizeof(struct in6_pktinfo))) {
			memcpy(&path->own,
				CMSG_DATA(item) + offsetof(struct in6_pktinfo, ipi6_addr),
				sizeof(path->own));
			found = true;
		} else if (is(item, IPPROTO_IP, IP_PKTINFO, sizeof(struct in_pktinfo))) {
			struct in_pktinfo info;

			memcpy(&info, CMSG_DATA(item), sizeof(info));
			path->own = path_map_ipv4(info.ipi_addr);
			found = true;
		} else if (is(item, IPPROTO_IP, IP_TOS, 1)) {
			*ret_traffic_class = *CMSG_DATA(item);
		} else if (is(item, IPPROTO_IPV6, IPV6_TCLASS, sizeof(int))) {
			int value;

			memcpy(&value, CMSG_DATA(item), sizeof(value));
			*ret_traffic_class = (uint8_t)value;
		}
	}
	return found;
}

static void take(struct process *process, unsigned i, uint64_t now_nsec)
{
	struct batch *batch = &process->batch;
	struct msghdr *header = &batch->message[i].msg_hdr;
	const struct sockaddr_in6 *from = &batch->from[i];
	struct path path = {.own_port = process->port, .client_port = from->sin6_port};
	uint8_t traffic_class;

	if (from->sin6_family == AF_INET)
		path.client = path_map_ipv4(((const struct sockaddr_in *)from)->sin_addr);
	else
		path.client = from->sin6_addr;
	/* A part of a datagram is of no use to its server. */
	if (header->msg_flags & MSG_TRUNC || !read_ancillary(header, &path, &traffic_class)) {
		chooser_count(&process->chooser, SHARE_DATAGRAMS, 1);
		chooser_count(&process->chooser, SHARE_LOST, 1);
		return;
	}
	chooser_take(&process->chooser, &path, traffic_class, batch->octets[i],
		batch->message[i].msg_len, now_nsec);
}

/* Returns how many there were, -1: none. */
static int receive(struct process *process, uint64_t now_nsec)
{
	int n;

	prepare(&process->batch);
	n = recvmmsg(CLASSIFIER_SOCKET, process->batch.message, BATCH, MSG_DONTWAIT, NULL);
	for (int i = 0; i < n; i++)
		take(process, (unsigned)i, now_nsec);
	if (n > 0)
		process->arrived_nsec = now_nsec;
	return n;
}

/* ---- Control ---- */

/* New rules; false: the daemon's end is closed. */
static bool receive_rules(struct process *process)
{
	uint8_t octet;
	struct iovec part = {&octet, sizeof(octet)};
	union {
		struct cmsghdr align;
		uint8_t octets[CMSG_SPACE(sizeof(int))];
	} control;
	struct msghdr header = {
		.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	_cleanup_close_ int fd = -1;
	struct cmsghdr *item;
	ssize_t n = recvmsg(CLASSIFIER_CONTROL, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	int r;

	if (n < 0)
		return errno == EAGAIN || errno == EINTR;
	if (n == 0)
		return false;
	item = CMSG_FIRSTHDR(&header);
	if (item && is(item, SOL_SOCKET, SCM_RIGHTS, sizeof(fd)))
		memcpy(&fd, CMSG_DATA(item), sizeof(fd));
	r = fd < 0 ? -EBADF : map_rules(process, fd);
	if (r < 0)
		complain(process, "cannot use the new rules: %s; those before stay",
			strerrordesc_np(-r));
	return true;
}

/* Whether there is still something to live for, once a second. */
static bool show_alive(struct process *process, uint64_t now_nsec)
{
	struct share_page *page = process->chooser.page;

	if (now_nsec - process->alive_nsec < ALIVE_NSEC)
		return true;
	process->alive_nsec = now_nsec;
	__atomic_fetch_add(&page->alive, 1, __ATOMIC_RELAXED);
	return !process->orphan || now_nsec - process->arrived_nsec < ORPHAN_NSEC;
}

/*
 * Another daemon has put the socket of its own into the place of this one's. (One that was killed
 * before it could say so has left a number that is lower.)
 */
static bool is_replaced(const struct process *process)
{
	uint32_t owner = __atomic_load_n(&process->chooser.page->owner, __ATOMIC_ACQUIRE);

	return process->orphan && (int32_t)(owner - process->number) > 0;
}

/* Says whether it can follow, and how. */
static void set_follow(struct process *process, bool over)
{
	struct share_page *page = process->chooser.page;
	uint32_t follow = over ? page->overflow : SHARE_FOLLOW;

	if (page->follow == follow)
		return;
	if (over)
		chooser_count(&process->chooser, SHARE_OVERLOADS, 1);
	__atomic_store_n(&page->follow, follow, __ATOMIC_RELAXED);
}

static bool update_meter(struct process *process)
{
	bool over = meter_update(
		&process->meter, clock_nsec(CLOCK_MONOTONIC), clock_nsec(CLOCK_PROCESS_CPUTIME_ID));

	set_follow(process, over);
	return over;
}

static struct timespec time_to_wait(
	const struct process *process, bool over, uint64_t next_nsec, uint64_t now_nsec)
{
	uint64_t wait = process->alive_nsec + ALIVE_NSEC - now_nsec;

	if (over)
		wait = MIN(wait, meter_wait_nsec(&process->meter) + 1);
	else if (next_nsec)
		wait = MIN(wait, next_nsec > now_nsec ? next_nsec - now_nsec : 0);
	return (struct timespec){
		.tv_sec = (time_t)(wait / 1000000000), .tv_nsec = (long)(wait % 1000000000)};
}

static void run(struct process *process)
{
	uint64_t now = clock_nsec(CLOCK_MONOTONIC_COARSE), next = 0;

	process->alive_nsec = process->arrived_nsec = now;
	meter_init(&process->meter, process->chooser.page->cpu_percent, clock_nsec(CLOCK_MONOTONIC),
		clock_nsec(CLOCK_PROCESS_CPUTIME_ID));
	while (show_alive(process, now)) {
		bool over = update_meter(process);
		/* Who can't follow looks at nothing: what waits is lost in the kernel at last. */
		struct pollfd fds[] = {
			{.fd = process->orphan ? -1 : CLASSIFIER_CONTROL, .events = POLLIN},
			{.fd = over ? -1 : CLASSIFIER_SOCKET, .events = POLLIN},
		};
		struct timespec wait = time_to_wait(process, over, next, now);

		ppoll(fds, ARRAY_SIZE(fds), &wait, NULL);
		now = clock_nsec(CLOCK_MONOTONIC_COARSE);
		if (fds[0].revents && !receive_rules(process))
			process->orphan = true;
		/*
		 * What waits is read; nothing comes any more. What is held is let go, not given to
		 * the default service: the rest of it is with the next one, who will choose.
		 */
		if (is_replaced(process)) {
			while (receive(process, now) > 0)
				continue;
			return;
		}
		if (fds[1].revents)
			receive(process, now);
		if (!over)
			next = chooser_expire(&process->chooser, now);
	}
}

int main(int argc, char **argv)
{
	static struct process process;
	const char *step = NULL;
	int r;

	process.name = argc == 3 ? argv[1] : "";
	process.number = argc == 3 ? (uint32_t)strtoul(argv[2], NULL, 10) : 0;
	r = start(&process, &step);
	if (r < 0) {
		complain(&process, "cannot %s: %s (it is started by reuseportd alone)", step,
			strerror(-r));
		return 1;
	}
	run(&process);
	return 0;
}
