/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * reuseport-keep: holds the descriptors of a daemon that no service manager holds for, so that the
 * next one goes on after it was killed.
 *
 * WHY a process: a socket can stand in one socket map at a time, and a map can't be had from the
 * program that uses it. Were all descriptors of it gone, no daemon could add a worker before every
 * old one had ended. It is a program of its own, not a fork of the daemon: it has none of the
 * daemon's memory (keys), and is not hit by what is aimed at the daemon by name. It knows nothing
 * of what it holds, has no capability, and can call what a loop over sockets needs, and nothing
 * else.
 *
 * It ends by itself when no daemon is connected and the last process of a worker has ended. After a
 * daemon that did not end in order it waits for the next one for some seconds even so: connections
 * may wait in a standby.
 */
#include <linux/capability.h>
#include <seccomp.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>

#include "common/util.h"
#include "daemon/keeper-protocol.h"

#define GRACE_USEC (10 * USEC_PER_SEC)
#define EVENTS 64

struct kept {
	struct keeper_entry entry;
	int fd;
};

struct keeper {
	int epoll;
	int daemon;        /* -1: none is connected */
	struct kept *kept; /* by number, upwards */
	size_t n, room;
	size_t n_processes;       /* of those, pidfds */
	uint64_t wait_until_usec; /* CLOCK_MONOTONIC */
	bool left, forgotten;
	struct keeper_message message;
};

static uint64_t now_usec(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * USEC_PER_SEC + (uint64_t)now.tv_nsec / NSEC_PER_USEC;
}

/* The first whose number is not below. */
static size_t position(const struct keeper *keeper, uint32_t number)
{
	size_t low = 0, high = keeper->n;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (keeper->kept[middle].entry.number < number)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static void remove_at(struct keeper *keeper, size_t i)
{
	if (keeper->kept[i].entry.watch == KEEPER_PROCESS)
		keeper->n_processes--;
	/* Duplicates live elsewhere, so that closing alone would leave it in the set (epoll(7)). */
	if (keeper->kept[i].entry.watch != KEEPER_NEVER)
		epoll_ctl(keeper->epoll, EPOLL_CTL_DEL, keeper->kept[i].fd, NULL);
	close_fd(&keeper->kept[i].fd);
	keeper->n--;
	memmove(&keeper->kept[i], &keeper->kept[i + 1], (keeper->n - i) * sizeof(*keeper->kept));
}

static void remove_number(struct keeper *keeper, uint32_t number)
{
	size_t i = position(keeper, number);

	if (i < keeper->n && keeper->kept[i].entry.number == number)
		remove_at(keeper, i);
}

static bool make_room(struct keeper *keeper)
{
	size_t room = keeper->room ? 2 * keeper->room : 64;
	struct kept *more;

	if (keeper->n < keeper->room)
		return true;
	more = room <= KEEPER_ENTRIES_MAX ? reallocarray(keeper->kept, room, sizeof(*more)) : NULL;
	if (!more)
		return false;
	keeper->kept = more;
	keeper->room = room;
	return true;
}

/* fd is taken over. What can't be kept ends with the daemon, as without a keeper. */
static void put(struct keeper *keeper, const struct keeper_entry *entry, int fd)
{
	struct epoll_event event = {
		.events = entry->watch == KEEPER_PROCESS ? EPOLLIN : 0, /* HUP comes anyway */
		.data.u64 = entry->number,
	};
	size_t i;

	remove_number(keeper, entry->number);
	if (!entry->number || entry->watch > KEEPER_PROCESS || !make_room(keeper) ||
		(entry->watch != KEEPER_NEVER &&
			epoll_ctl(keeper->epoll, EPOLL_CTL_ADD, fd, &event) < 0)) {
		close_fd(&fd);
		return;
	}
	i = position(keeper, entry->number);
	memmove(&keeper->kept[i + 1], &keeper->kept[i], (keeper->n - i) * sizeof(*keeper->kept));
	keeper->kept[i] = (struct kept){.entry = *entry, .fd = fd};
	keeper->n++;
	if (entry->watch == KEEPER_PROCESS)
		keeper->n_processes++;
}

static void drop_daemon(struct keeper *keeper)
{
	close_fd(&keeper->daemon); /* the only descriptor of it, so it leaves the set as well */
	keeper->wait_until_usec = keeper->left ? 0 : now_usec() + GRACE_USEC;
}

static void answer(struct keeper *keeper, enum keeper_type type, uint32_t n)
{
	struct keeper_message *message = &keeper->message;

	message->header.type = (uint16_t)type;
	message->header.n = message->n_fds = n;
	if (keeper_send(keeper->daemon, message) < 0)
		drop_daemon(keeper); /* it asks and does not read: none of ours */
}

static void give(struct keeper *keeper, uint32_t after)
{
	size_t first = position(keeper, after + 1);
	uint32_t n = (uint32_t)MIN(keeper->n - first, (size_t)KEEPER_BATCH);

	for (uint32_t i = 0; i < n; i++) {
		keeper->message.entries[i] = keeper->kept[first + i].entry;
		keeper->message.fds[i] = keeper->kept[first + i].fd;
	}
	answer(keeper, KEEPER_ENTRIES, n);
}

/* Whether it was a message. The daemon may be gone afterwards. */
static bool read_daemon(struct keeper *keeper)
{
	struct keeper_message *message = &keeper->message;
	int result = keeper_receive(keeper->daemon, message);

	if (result == -EAGAIN)
		return false;
	if (result <= 0) {
		drop_daemon(keeper);
		return false;
	}
	keeper->left = false;
	if (message->header.type == KEEPER_PUT) {
		for (uint32_t i = 0; i < message->n_fds; i++)
			put(keeper, &message->entries[i], message->fds[i]);
		return true;
	}
	while (message->n_fds)
		close_fd(&message->fds[--message->n_fds]);
	switch (message->header.type) {
	case KEEPER_REMOVE:
		for (uint32_t i = 0; i < message->header.n; i++)
			remove_number(keeper, message->entries[i].number);
		break;
	case KEEPER_GIVE:
		give(keeper, message->header.n ? message->entries[0].number : 0);
		break;
	case KEEPER_SYNC:
		answer(keeper, KEEPER_DONE, 0);
		break;
	case KEEPER_LEAVE:
		keeper->left = true;
		break;
	case KEEPER_FORGET:
		keeper->forgotten = true;
		break;
	default:
		break; /* of a later version */
	}
	return keeper->daemon >= 0;
}

/* Only the user whose descriptors they are, and root, who could take them by other means. */
static bool is_allowed(int socket)
{
	struct ucred peer;
	socklen_t length = sizeof(peer);

	return getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 &&
	       (peer.uid == getuid() || peer.uid == 0);
}

static void take_connection(struct keeper *keeper)
{
	struct epoll_event event = {.events = EPOLLIN, .data.u64 = 0};
	int fd = accept4(KEEPER_SOCKET, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0)
		return;
	/* The one before may have ended: its last words first. */
	while (keeper->daemon >= 0 && read_daemon(keeper))
		;
	if (!is_allowed(fd)) {
		close_fd(&fd);
	} else if (keeper->daemon >= 0) {
		keeper->message.header.type = KEEPER_BUSY;
		keeper->message.header.n = keeper->message.n_fds = 0;
		keeper_send(fd, &keeper->message);
		close_fd(&fd);
	} else if (epoll_ctl(keeper->epoll, EPOLL_CTL_ADD, fd, &event) < 0) {
		close_fd(&fd);
	} else {
		keeper->daemon = fd;
	}
}

/* Milliseconds for epoll_wait(2); 0: it is over. */
static int time_left(const struct keeper *keeper)
{
	uint64_t now;

	if (keeper->forgotten)
		return 0;
	if (keeper->daemon >= 0 || keeper->n_processes)
		return -1;
	now = now_usec();
	if (now >= keeper->wait_until_usec)
		return 0;
	return (int)((keeper->wait_until_usec - now) / USEC_PER_MSEC + 1);
}

static int run(struct keeper *keeper)
{
	/* Numbers of entries are 1 and above, and fit 32 bits. */
	struct epoll_event events[EVENTS], door = {.events = EPOLLIN, .data.u64 = UINT64_MAX};
	int timeout;

	keeper->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (keeper->epoll < 0 || epoll_ctl(keeper->epoll, EPOLL_CTL_ADD, KEEPER_SOCKET, &door) < 0)
		return -errno;
	while ((timeout = time_left(keeper)) != 0) {
		int n = epoll_wait(keeper->epoll, events, EVENTS, timeout);

		for (int i = 0; i < n; i++) {
			if (events[i].data.u64 == UINT64_MAX)
				take_connection(keeper);
			else if (events[i].data.u64)
				remove_number(keeper, (uint32_t)events[i].data.u64);
			else if (keeper->daemon >= 0)
				read_daemon(keeper);
		}
	}
	return 0;
}

static int drop_capabilities(void)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	const struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {0};

	prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
	if (syscall(SYS_capset, &header, none) < 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
		prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
		return -errno;
	return 0;
}

/* The sanitizers' own calls are not known here, and such a build guards nothing. */
#ifdef __SANITIZE_ADDRESS__
#define FILTER_ACTION SCMP_ACT_LOG
#else
#define FILTER_ACTION SCMP_ACT_KILL_PROCESS
#endif

static int filter_calls(void)
{
	static const int calls[] = {
		SCMP_SYS(accept4),
		SCMP_SYS(brk), /* malloc(3) */
		SCMP_SYS(clock_gettime),
		SCMP_SYS(close),
		SCMP_SYS(epoll_create1),
		SCMP_SYS(epoll_ctl),
		SCMP_SYS(epoll_pwait),
		SCMP_SYS(epoll_wait),
		SCMP_SYS(exit_group),
		SCMP_SYS(getsockopt),
		SCMP_SYS(getuid),
		SCMP_SYS(mmap),
		SCMP_SYS(mremap),
		SCMP_SYS(munmap),
		SCMP_SYS(recvmsg),
		SCMP_SYS(restart_syscall),
		SCMP_SYS(rt_sigreturn),
		SCMP_SYS(sendmsg),
	};
	scmp_filter_ctx filter = seccomp_init(FILTER_ACTION);
	int result = filter ? 0 : -ENOMEM;

	for (size_t i = 0; i < ARRAY_SIZE(calls) && result >= 0; i++)
		result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, calls[i], 0);
	if (result >= 0)
		result = seccomp_load(filter);
	if (filter)
		seccomp_release(filter);
	return result;
}

static int is_socket(int fd)
{
	int type = 0;
	socklen_t length = sizeof(type);

	return getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) == 0 && type == SOCK_SEQPACKET;
}

int main(int argc, char **argv)
{
	struct keeper keeper = {.daemon = -1, .wait_until_usec = now_usec() + GRACE_USEC};

	if (!is_socket(KEEPER_SOCKET)) {
		fprintf(stderr, "reuseport-keep: reuseportd starts it, see reuseportd(8)\n");
		return 2;
	}
	/* Here, so that the credentials that a daemon sees are this process's (unix_listen(),
	 * Linux). */
	if (drop_capabilities() < 0 || listen(KEEPER_SOCKET, 8) < 0 || filter_calls() < 0)
		return 1;
	return run(&keeper) < 0 ? 1 : 0;
}
