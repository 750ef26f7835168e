/* SPDX-License-Identifier: BSD-2-Clause */
#include "daemon/foreign.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#include "common/util.h"
#include "daemon/log.h"

#define LOOK_USEC (3 * USEC_PER_SEC) /* a child that is there for longer stands still */
#define DESCRIPTORS_MAX 253          /* of one message: SCM_MAX_FD, Linux */

struct foreign_child {
	struct foreign_child *next;
	struct foreign *foreign;
	struct foreign_look *look; /* NULL: it has said what it had to, or closes connections */
	uid_t uid;
	pid_t pid;
	int pidfd, pipe;
	sd_event_source *exit_source, *pipe_source;
	uint64_t started_usec; /* CLOCK_MONOTONIC */
	bool stands;           /* still: it was there for too long */
};

/* A connection that is shut down, and can't be closed here. */
struct ended {
	int socket;
	uid_t uid;
};

struct foreign {
	sd_event *event;
	struct foreign_child *children;
	struct foreign_look *first; /* those that wait for a child */
	struct ended *ended;
	size_t n_ended;
};

static uint64_t monotonic_usec(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * USEC_PER_SEC + (uint64_t)time.tv_nsec / NSEC_PER_USEC;
}

/* That the client has left something unread is said once, before what it had sent. */
static ssize_t receive(int socket, struct msghdr *header, int flags)
{
	ssize_t size;

	do
		size = recvmsg(socket, header, flags | MSG_DONTWAIT);
	while (size < 0 && (errno == EINTR || errno == ECONNRESET));
	return size;
}

/* ---- In the child ---- */

static int compare(const void *a, const void *b)
{
	return *(const int *)a < *(const int *)b ? -1 : *(const int *)a > *(const int *)b;
}

/* Nothing else of the daemon's is to live on with a child that stands still. */
static void keep_only(int *fds, size_t n)
{
	unsigned first = 0;

	qsort(fds, n, sizeof(*fds), compare);
	for (size_t i = 0; i < n; i++) {
		if ((unsigned)fds[i] > first)
			syscall(SYS_close_range, first, (unsigned)fds[i] - 1, 0);
		first = (unsigned)fds[i] + 1;
	}
	syscall(SYS_close_range, first, UINT_MAX, 0);
}

/*
 * A message, or a part of it, whose descriptors are open here then, those in fds. The number of
 * octets, or negative; *ret_lost: not all could be had.
 */
static ssize_t take(int socket, int flags, int fds[DESCRIPTORS_MAX], size_t *ret_n, bool *ret_lost)
{
	union {
		struct cmsghdr align;
		uint8_t octets[CMSG_SPACE(DESCRIPTORS_MAX * sizeof(int)) +
			       CMSG_SPACE(sizeof(struct ucred))];
	} control;
	char octets[4096];
	struct iovec part = {.iov_base = octets, .iov_len = sizeof(octets)};
	struct msghdr header = {
		.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	ssize_t size = receive(socket, &header, flags);

	*ret_n = 0;
	*ret_lost = header.msg_flags & MSG_CTRUNC;
	if (size < 0)
		return size;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&header); c; c = CMSG_NXTHDR(&header, c)) {
		size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		memcpy(fds, CMSG_DATA(c), n * sizeof(int));
		*ret_n = n;
	}
	/* An empty packet is no end of the connection; what comes with it tells. */
	return size || header.msg_controllen || *ret_lost ? size : -1;
}

/* Neither fstat(2) nor anything else that asks the file system. */
static bool is_wanted(int fd)
{
	static const char *const pidfds[] = {"anon_inode:[pidfd]", "pidfd:" /* Linux 6.9 */};
	char path[64], target[64] = "";
	int domain = AF_UNSPEC;
	socklen_t length = sizeof(domain);

	if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &length) == 0)
		return domain == AF_INET || domain == AF_INET6;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	if (readlink(path, target, sizeof(target) - 1) < 0)
		return false;
	for (size_t i = 0; i < ARRAY_SIZE(pidfds); i++)
		if (strncmp(target, pidfds[i], strlen(pidfds[i])) == 0)
			return true;
	return false;
}

static void say(int pipe, enum foreign_verdict verdict)
{
	const char octet = (char)verdict;

	while (write(pipe, &octet, 1) < 0 && errno == EINTR)
		;
}

static void look_at(int socket, int pipe)
{
	int fds[DESCRIPTORS_MAX];
	bool lost, wanted;
	size_t n;

	take(socket, MSG_PEEK, fds, &n, &lost);
	wanted = !lost;
	for (size_t i = 0; i < n && wanted; i++)
		wanted = is_wanted(fds[i]);
	if (wanted) {
		/* No copy is to be left when the daemon goes on; and none is the last one. */
		for (size_t i = 0; i < n; i++)
			close(fds[i]);
		say(pipe, FOREIGN_WANTED);
		return;
	}
	take(socket, 0, fds, &n, &lost);
	/* The connection is not to stay with it. */
	close(socket);
	say(pipe, FOREIGN_TAKEN);
}

/* Whether the daemon's copies are closed; or it goes on with them. */
static bool has_left(int pipe)
{
	char octet;
	ssize_t n;

	do
		n = read(pipe, &octet, 1);
	while (n < 0 && errno == EINTR);
	return n == 0;
}

/* What is in the connections is here then, and they can be closed by anybody else who has them. */
static void empty(const int *sockets, size_t n)
{
	int fds[DESCRIPTORS_MAX];
	size_t n_fds;
	bool lost;

	for (size_t i = 0; i < n; i++)
		while (take(sockets[i], 0, fds, &n_fds, &lost) >= 0)
			;
}

/* ---- Children ---- */

static void forget_child(struct foreign_child *child)
{
	struct foreign_child **link = &child->foreign->children;

	while (*link != child)
		link = &(*link)->next;
	*link = child->next;
	sd_event_source_disable_unref(child->exit_source);
	sd_event_source_disable_unref(child->pipe_source);
	close_fd(&child->pidfd);
	close_fd(&child->pipe);
	free(child);
}

static void finish(struct foreign_look *look, enum foreign_verdict verdict)
{
	if (look->child)
		look->child->look = NULL;
	look->child = NULL;
	look->foreign = NULL;
	look->done(look, verdict);
}

static int on_verdict(sd_event_source *source, int fd, uint32_t events, void *user_data)
{
	struct foreign_child *child = user_data;
	struct foreign_look *look = child->look;
	char verdict = FOREIGN_FAILED;

	if (read(fd, &verdict, 1) < 0 && (errno == EINTR || errno == EAGAIN))
		return 0;
	child->pipe_source = sd_event_source_disable_unref(child->pipe_source);
	if (look)
		finish(look, (enum foreign_verdict)verdict);
	return 0;
}

static void go_on(struct foreign *foreign);

/* Reaps it, unless somebody else has (classifier_reap_others). */
static bool has_ended(const struct foreign_child *child)
{
	siginfo_t info = {};
	idtype_t type = child->pidfd < 0 ? P_PID : P_PIDFD;
	int id = child->pidfd < 0 ? child->pid : child->pidfd;

	return waitid(type, (id_t)id, &info, WEXITED | WNOHANG) < 0 || info.si_pid;
}

static int on_exit_of_child(sd_event_source *source, int fd, uint32_t events, void *user_data)
{
	struct foreign_child *child = user_data;
	struct foreign *foreign = child->foreign;

	if (!has_ended(child))
		return 0;
	/* What it has said comes first. */
	if (child->pipe_source)
		on_verdict(child->pipe_source, child->pipe, EPOLLIN, child);
	forget_child(child);
	go_on(foreign);
	return 0;
}

static int watch(struct foreign_child *child)
{
	sd_event *event = child->foreign->event;
	int result;

	child->pidfd = (int)syscall(SYS_pidfd_open, child->pid, 0);
	if (child->pidfd < 0)
		return -errno;
	result = sd_event_add_io(
		event, &child->pipe_source, child->pipe, EPOLLIN, on_verdict, child);
	if (result >= 0)
		result = sd_event_add_io(
			event, &child->exit_source, child->pidfd, EPOLLIN, on_exit_of_child, child);
	return result;
}

/* With copies of the sockets; look: of the one. */
static int start(struct foreign *foreign, uid_t uid, const int *sockets, size_t n, bool look,
	struct foreign_child **ret)
{
	struct foreign_child *child = calloc(1, sizeof(*child));
	int *kept = calloc(n + 1, sizeof(*kept)), pipe[2], result = -ENOMEM;

	if (!child || !kept || pipe2(pipe, O_CLOEXEC | O_NONBLOCK) < 0) {
		result = child && kept ? -errno : -ENOMEM;
		free(child);
		free(kept);
		return result;
	}
	memcpy(kept, sockets, n * sizeof(*kept));
	kept[n] = pipe[1];
	*child = (struct foreign_child){
		.next = foreign->children,
		.foreign = foreign,
		.uid = uid,
		.pidfd = -1,
		.pipe = pipe[0],
		.started_usec = monotonic_usec(),
	};
	foreign->children = child;
	child->pid = fork();
	if (child->pid == 0) {
		keep_only(kept, n + 1);
		if (look)
			look_at(*sockets, pipe[1]);
		else
			empty(sockets, n);
		/* Without exit handlers, and no close(2): at the end of a process no SO_LINGER
		 * counts (inet_release). */
		_exit(0);
	}
	result = child->pid < 0 ? -errno : 0;
	close_fd(&pipe[1]);
	free(kept);
	if (result < 0) {
		forget_child(child);
		return result;
	}
	result = watch(child);
	if (result < 0) {
		kill(child->pid, SIGKILL); /* the tick sees it end */
		return result;
	}
	if (ret)
		*ret = child;
	return 0;
}

/* 0: there may be one more of this user; -EAGAIN: soon; -EBUSY: those that there are stand still.
 */
static int room_for(const struct foreign *foreign, uid_t uid)
{
	unsigned n = 0, n_user = 0, moving = 0, moving_user = 0;

	for (const struct foreign_child *c = foreign->children; c; c = c->next) {
		n++;
		moving += !c->stands;
		n_user += c->uid == uid;
		moving_user += !c->stands && c->uid == uid;
	}
	if (n < FOREIGN_MAX && n_user < FOREIGN_PER_USER)
		return 0;
	if (n_user >= FOREIGN_PER_USER)
		return moving_user ? -EAGAIN : -EBUSY;
	return moving ? -EAGAIN : -EBUSY;
}

/* ---- Connections that have ended ---- */

/* All of this user's, by one child. */
static int hand_over(struct foreign *foreign, uid_t uid)
{
	int *sockets = calloc(foreign->n_ended, sizeof(*sockets)), result;
	size_t n = 0, left = 0;

	if (!sockets)
		return -ENOMEM;
	for (size_t i = 0; i < foreign->n_ended; i++)
		if (foreign->ended[i].uid == uid)
			sockets[n++] = foreign->ended[i].socket;
	result = start(foreign, uid, sockets, n, false, NULL);
	free(sockets);
	if (result < 0)
		return result;
	for (size_t i = 0; i < foreign->n_ended; i++)
		if (foreign->ended[i].uid == uid)
			close(foreign->ended[i].socket); /* the child's is the last one */
		else
			foreign->ended[left++] = foreign->ended[i];
	foreign->n_ended = left;
	return 0;
}

static void close_ended(struct foreign *foreign)
{
	for (size_t i = 0; i < foreign->n_ended;) {
		uid_t uid = foreign->ended[i].uid;

		if (room_for(foreign, uid) < 0 || hand_over(foreign, uid) < 0)
			i++;
		else
			i = 0;
	}
}

/* Takes the messages before the first one that brings descriptors. Nobody can send any more. */
static bool brings_descriptors(int socket)
{
	char octets[4096];
	bool descriptors = false;
	ssize_t n;

	while ((n = foreign_peek(socket, octets, sizeof(octets), &descriptors)) >= 0 &&
		!descriptors) {
		struct iovec part = {.iov_base = octets, .iov_len = (size_t)n};
		struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1};

		receive(socket, &header, 0);
	}
	return descriptors;
}

void foreign_close(struct foreign *foreign, int *socket)
{
	struct ucred peer = {.uid = (uid_t)-1};
	int type = 0;
	const int one = 1;
	socklen_t length = sizeof(peer), size = sizeof(type);
	struct ended *ended;

	if (*socket < 0 || !foreign) {
		close_fd(socket);
		return;
	}
	shutdown(*socket, SHUT_RDWR);
	/* So that the end can be told from an empty packet. */
	if (getsockopt(*socket, SOL_SOCKET, SO_TYPE, &type, &size) == 0 && type == SOCK_SEQPACKET)
		setsockopt(*socket, SOL_SOCKET, SO_PASSCRED, &one, sizeof(one));
	if (!brings_descriptors(*socket)) {
		close_fd(socket);
		return;
	}
	getsockopt(*socket, SOL_SOCKET, SO_PEERCRED, &peer, &length);
	ended = realloc(foreign->ended, (foreign->n_ended + 1) * sizeof(*ended));
	if (!ended) {
		*socket = -1; /* better open for ever than closed here */
		return;
	}
	foreign->ended = ended;
	ended[foreign->n_ended++] = (struct ended){.socket = take_fd(socket), .uid = peer.uid};
	close_ended(foreign);
}

int foreign_leave(struct foreign *foreign, const int *sockets, size_t n)
{
	int *kept = calloc(n + 1, sizeof(*kept)), pipe[2] = {-1, -1};
	pid_t pid = -1;

	while (foreign->n_ended && hand_over(foreign, foreign->ended[0].uid) >= 0)
		;
	if (kept && n && pipe2(pipe, O_CLOEXEC) == 0)
		pid = fork();
	if (pid == 0) {
		memcpy(kept, sockets, n * sizeof(*kept));
		kept[n] = pipe[0];
		keep_only(kept, n + 1);
		if (has_left(pipe[0]))
			empty(sockets, n);
		_exit(0);
	}
	free(kept);
	close_fd(&pipe[0]);
	return pipe[1];
}

void foreign_stay(int fd)
{
	if (fd >= 0 && write(fd, "", 1) == 1) /* whoever reads it ends, and is reaped with others */
		close_fd(&fd);
}

/* ---- Looks ---- */

ssize_t foreign_peek(int socket, void *octets, size_t length, bool *ret_descriptors)
{
	union {
		struct cmsghdr align;
		uint8_t octets[CMSG_SPACE(sizeof(struct ucred))];
	} control;
	int credentials = 0;
	socklen_t size = sizeof(credentials);
	struct iovec part = {.iov_base = octets, .iov_len = length};
	struct msghdr header = {
		.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = &control,
	};
	ssize_t n;

	/* What SO_PASSCRED adds has room, and nothing else: that it has none is told. */
	getsockopt(socket, SOL_SOCKET, SO_PASSCRED, &credentials, &size);
	header.msg_controllen = credentials ? sizeof(control) : 0;
	n = receive(socket, &header, MSG_PEEK);
	*ret_descriptors = n >= 0 && header.msg_flags & MSG_CTRUNC;
	if (n != 0 || *ret_descriptors || header.msg_controllen)
		return n;
	errno = EPIPE;
	return -1;
}

static int start_look(struct foreign_look *look)
{
	int result = start(look->foreign, look->uid, &look->socket, 1, true, &look->child);

	if (result >= 0)
		look->child->look = look;
	return result;
}

int foreign_look(struct foreign *foreign, struct foreign_look *look, int socket, uid_t uid,
	void (*done)(struct foreign_look *look, enum foreign_verdict verdict))
{
	struct foreign_look **link = &foreign->first;
	int result = room_for(foreign, uid);

	if (result == -EBUSY)
		return result;
	*look = (struct foreign_look){
		.foreign = foreign, .socket = socket, .uid = uid, .done = done};
	if (result >= 0) {
		result = start_look(look);
		if (result < 0)
			look->foreign = NULL;
		return result;
	}
	while (*link)
		link = &(*link)->next;
	*link = look;
	return 0;
}

bool foreign_is_looking(const struct foreign_look *look)
{
	return look->foreign;
}

static void unlink_look(struct foreign_look *look)
{
	struct foreign_look **link = &look->foreign->first;

	while (*link && *link != look)
		link = &(*link)->next;
	if (*link)
		*link = look->next;
	look->next = NULL;
}

void foreign_cancel(struct foreign_look *look)
{
	if (!look->foreign)
		return;
	unlink_look(look);
	if (look->child)
		look->child->look = NULL;
	look->child = NULL;
	look->foreign = NULL;
}

/* Those that waited for a child; the first whose turn it is, since it may end others. */
static bool go_on_once(struct foreign *foreign)
{
	for (struct foreign_look *look = foreign->first; look; look = look->next) {
		int result = room_for(foreign, look->uid);

		if (result == -EAGAIN)
			continue;
		unlink_look(look);
		if (result >= 0)
			result = start_look(look);
		if (result < 0)
			finish(look, result == -EBUSY ? FOREIGN_BUSY : FOREIGN_FAILED);
		return true;
	}
	return false;
}

static void go_on(struct foreign *foreign)
{
	close_ended(foreign);
	while (go_on_once(foreign))
		;
}

void foreign_tick(struct foreign *foreign)
{
	const uint64_t now = monotonic_usec();

	for (struct foreign_child *c = foreign->children, *next; c; c = next) {
		next = c->next;
		if (now - c->started_usec < LOOK_USEC)
			continue;
		/* It may be the daemon that was not there. */
		if (c->pipe_source)
			on_verdict(NULL, c->pipe, EPOLLIN, c);
		if (has_ended(c)) {
			forget_child(c);
			continue;
		}
		if (c->stands)
			continue;
		c->stands = true;
		log_warning("process %d stands still, which has what user %u sent beside a message "
			    "and nobody has a use for: its file system does not answer; there can "
			    "be %d of a user",
			(int)c->pid, (unsigned)c->uid, FOREIGN_PER_USER);
		/* For what it may wait for otherwise. */
		syscall(SYS_pidfd_send_signal, c->pidfd, SIGKILL, NULL, 0);
		if (c->look)
			finish(c->look, FOREIGN_FAILED);
	}
	go_on(foreign);
}

int foreign_new(struct foreign **ret, sd_event *event)
{
	struct foreign *foreign = calloc(1, sizeof(*foreign));

	if (!foreign)
		return -ENOMEM;
	foreign->event = sd_event_ref(event);
	*ret = foreign;
	return 0;
}

struct foreign *foreign_free(struct foreign *foreign)
{
	if (!foreign)
		return NULL;
	/* More than there may be, but none comes after them. */
	while (foreign->n_ended && hand_over(foreign, foreign->ended[0].uid) >= 0)
		;
	while (foreign->children)
		forget_child(foreign->children);
	free(foreign->ended);
	sd_event_unref(foreign->event);
	free(foreign);
	return NULL;
}
