/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The connection to the daemon: requests with deadlines, their answers, and the events that may
 * come at any time between them.
 *
 * Every call has a deadline and an answer belongs to its request by sequence number alone, so a
 * call that ran out of time does harm to nothing: its answer is dropped when it comes. The one
 * answer that can't just be dropped is a GRANT, because the daemon keeps slots for it; it is given
 * back.
 */
#include <endian.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>

#include "client-lib/context.h"

uint64_t now_usec(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * USEC_PER_SEC + (uint64_t)now.tv_nsec / NSEC_PER_USEC;
}

uint64_t deadline_after(int timeout_msec)
{
	return timeout_msec < 0 ? UINT64_MAX : now_usec() + (uint64_t)timeout_msec * USEC_PER_MSEC;
}

/* What is left for poll(2), rounded up so that no call returns a moment early and spins. */
static int remaining_msec(uint64_t deadline)
{
	uint64_t now = now_usec(), left;

	if (deadline == UINT64_MAX)
		return -1;
	if (now >= deadline)
		return 0;
	left = (deadline - now + USEC_PER_MSEC - 1) / USEC_PER_MSEC;
	return left > INT_MAX ? INT_MAX : (int)left;
}

/* 1 when ready, 0 when the deadline passed. */
static int wait_for(int fd, short events, uint64_t deadline)
{
	struct pollfd p = {.fd = fd, .events = events};

	for (;;) {
		int timeout = remaining_msec(deadline);
		int n = poll(&p, 1, timeout);

		if (n > 0)
			return 1;
		if (n < 0 && errno != EINTR)
			return -errno;
		if (n == 0 && timeout >= 0 && remaining_msec(deadline) == 0)
			return 0;
	}
}

void connection_wake(struct reuseport *r)
{
	if (r->wake_fd >= 0)
		eventfd_write(r->wake_fd, 1);
}

/* The application hears of it at the next dispatch. */
void connection_lost(struct reuseport *r, int error, const char *text)
{
	bool before = r->resume != RESUME_NONE;

	if (r->socket < 0)
		return;
	close_fd(&r->socket);
	if (resume_begin(r, error) && before)
		return; /* it knows */
	r->disconnected = true;
	r->disconnected_error = error;
	snprintf(r->disconnected_text, sizeof(r->disconnected_text), "%s", text);
	connection_wake(r);
}

static int not_connected(struct reuseport *r)
{
	if (r->fallback)
		return context_error(
			r, -ENOTCONN, "there is no daemon, the sockets are LISTEN_FDS");
	if (r->disconnected_text[0])
		return context_error(r, -ENOTCONN, "the connection to reuseportd ended: %s",
			r->disconnected_text);
	return context_error(r, -ENOTCONN, "the connection to reuseportd ended");
}

static void note_keys(struct reuseport *r, const struct protocol_keys_rotated *k)
{
	uint32_t worker = le32toh(k->worker);
	uint16_t listener = le16toh(k->listener);

	if (!r->registered || le32toh(k->registration) != r->registration)
		return;
	if (worker >= r->n_workers || listener >= r->n_listeners)
		return;
	/* In effect at once, also in the middle of a call: only the callback waits. */
	if (cid_configure(r, worker, listener, k->config_rotation, k->server_id_length,
		    k->nonce_length, k->server_id, k->key, k->nonce_prefix) < 0)
		return;
	r->listeners[listener].keys_rotated = true;
	connection_wake(r);
}

static void note_stalled(struct reuseport *r, const struct protocol_stalled *s)
{
	uint32_t worker = le32toh(s->worker);

	if (!r->registered || le32toh(s->registration) != r->registration || worker >= r->n_workers)
		return;
	r->stalled[worker] &= (uint8_t)~STALLED_NOW;
	if (le32toh(s->stalled))
		r->stalled[worker] |= STALLED_NOW;
	connection_wake(r);
}

static void note_event(struct reuseport *r)
{
	struct message *m = &r->message;
	uint64_t left;

	switch (m->header.type) {
	case PROTOCOL_DRAIN_REQUESTED:
		if (!r->registered || le32toh(m->drain_requested.registration) != r->registration)
			return;
		left = le64toh(m->drain_requested.deadline_usec);
		r->drain_requested = r->draining = true;
		r->drain_reason = le32toh(m->drain_requested.reason);
		r->drain_deadline_usec = left ? now_usec() + left : 0;
		connection_wake(r);
		return;
	case PROTOCOL_KEYS_ROTATED:
		note_keys(r, &m->keys_rotated);
		return;
	case PROTOCOL_GRANT:
		registration_add_listeners(r);
		return;
	case PROTOCOL_ADOPTED:
		r->last_adopted = m->adopted;
		return;
	case PROTOCOL_STALLED:
		note_stalled(r, &m->stalled);
		return;
	case PROTOCOL_GOODBYE: {
		uint32_t error = le32toh(m->goodbye.error);

		connection_lost(r, error > 4095 ? -EPROTO : -(int)error,
			m->goodbye.text[0] ? m->goodbye.text : "the daemon said goodbye");
		return;
	}
	default:
		return; /* an event of a later version */
	}
}

/* Slots that were granted too late for anyone to use them. */
static void give_back(struct reuseport *r)
{
	struct protocol_registration body = {.registration = r->message.grant.registration};

	connection_send_forget(r, PROTOCOL_UNREGISTER, &body, sizeof(body));
}

/*
 * Reads one message. 1: the answer to r->sequence is in r->message. 0: something else was read and
 * dealt with. -EAGAIN: nothing there. -EMFILE: the answer lost its descriptors. -ENOTCONN, -EPROTO:
 * the connection is over.
 */
static int read_one(struct reuseport *r)
{
	struct message *m = &r->message;
	const char *reason = "";
	bool answer, grant;
	int result;

	if (r->socket < 0)
		return not_connected(r);
	result = message_receive(r->socket, m, &reason);
	if (result == -EAGAIN)
		return -EAGAIN;
	if (result == -EBADMSG) {
		connection_lost(r, -EPROTO, reason);
		return context_error(r, -EPROTO, "reuseportd sent a malformed message: %s", reason);
	}
	if (result == 0 || (result < 0 && result != -EMFILE)) {
		connection_lost(r, result ? result : -ECONNRESET,
			result ? strerror(-result) : "the daemon closed the connection");
		return not_connected(r);
	}
	answer = m->header.sequence && m->header.sequence == r->sequence;
	grant = m->header.type == PROTOCOL_GRANT && m->header.length >= sizeof(m->grant);
	if (result == -EMFILE) {
		if (grant)
			give_back(r);
		return answer ? context_error(r, -EMFILE, "cannot receive the sockets: %s", reason)
			      : 0;
	}
	if (r->resume != RESUME_NONE) {
		resume_message(r);
		message_done(m);
		return 0;
	}
	if (answer)
		return 1;
	if (m->header.sequence == 0)
		note_event(r);
	else if (grant && !(r->registered && m->grant.registration == htole32(r->registration)))
		give_back(r);
	message_done(m);
	return 0;
}

static void next_sequence(struct reuseport *r)
{
	if (++r->sequence == 0) /* 0 marks events */
		r->sequence = 1;
}

int connection_wait(struct reuseport *r, uint16_t expected, uint16_t also_expected,
	const char *what, uint64_t deadline)
{
	struct message *m = &r->message;
	int result;

	for (;;) {
		result = read_one(r);
		if (result == 1)
			break;
		if (result == 0)
			continue;
		if (result != -EAGAIN)
			return result;
		result = wait_for(r->socket, POLLIN, deadline);
		if (result == 0) {
			next_sequence(r); /* from now on its answer is a late one */
			return context_error(
				r, -ETIMEDOUT, "reuseportd did not answer in time (%s)", what);
		}
		if (result < 0)
			return context_error(
				r, result, "cannot wait for reuseportd: %s", strerror(-result));
	}
	if (m->header.type == PROTOCOL_ERROR) {
		uint32_t error = le32toh(m->error.error);

		result = error < 1 || error > 4095 ? -EPROTO : -(int)error;
		return context_error(r, result, "%s: %s", what,
			m->error.text[0] ? m->error.text : strerror(-result));
	}
	if (m->header.type == expected || m->header.type == also_expected)
		return 0;
	message_done(m);
	return context_error(r, -EPROTO, "%s: reuseportd answered with %s", what,
		message_type_name(m->header.type));
}

int connection_send(struct reuseport *r, uint16_t type, const void *body, size_t length, int fd,
	uint64_t deadline)
{
	int result;

	if (r->socket < 0 || r->resume != RESUME_NONE)
		return not_connected(r);
	next_sequence(r);
	for (;;) {
		result = message_send(
			r->socket, type, r->sequence, body, length, &fd, fd >= 0 ? 1 : 0);
		if (result != -EAGAIN)
			break;
		result = wait_for(r->socket, POLLOUT, deadline);
		if (result == 0)
			return context_error(r, -ETIMEDOUT, "reuseportd does not read (%s)",
				message_type_name(type));
		if (result < 0)
			break;
	}
	if (result == -EPIPE || result == -ECONNRESET) {
		/* Why it ended may still be there to read: GOODBYE has the sentence. */
		while (r->socket >= 0 && read_one(r) == 0)
			;
		message_done(&r->message);
		connection_lost(r, -ECONNRESET, "the daemon closed the connection");
		return not_connected(r);
	}
	if (result < 0)
		return context_error(r, result, "cannot send %s to reuseportd: %s",
			message_type_name(type), strerror(-result));
	return 0;
}

void connection_send_forget(struct reuseport *r, uint16_t type, const void *body, size_t length)
{
	uint32_t sequence = r->sequence - 1;

	/* Any number but 0 and that of the request under way. */
	if (r->socket >= 0 && r->resume == RESUME_NONE)
		message_send(
			r->socket, type, sequence ? sequence : UINT32_MAX, body, length, NULL, 0);
}

/* r->path, of which it is known that it fits. */
static socklen_t make_address(const struct reuseport *r, struct sockaddr_un *ret)
{
	size_t length = strlen(r->path);

	*ret = (struct sockaddr_un){.sun_family = AF_UNIX};
	memcpy(ret->sun_path, r->path, length);
	if (r->path[0] == '@') /* abstract name, as systemd writes it */
		ret->sun_path[0] = '\0';
	return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length +
			   (r->path[0] == '@' ? 0 : 1));
}

int connection_try(struct reuseport *r)
{
	_cleanup_close_ int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct epoll_event event = {.events = EPOLLIN};
	struct sockaddr_un address;
	socklen_t length = make_address(r, &address);

	if (fd < 0 || connect(fd, (struct sockaddr *)&address, length) < 0 ||
		epoll_ctl(r->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0)
		return -errno;
	r->socket = take_fd(&fd);
	return 0;
}

static int connect_to(struct reuseport *r, const char *path, uint64_t deadline)
{
	struct sockaddr_un address;
	_cleanup_close_ int fd = -1;
	socklen_t length;
	int result;

	if (!*path || strlen(path) >= sizeof(r->path))
		return context_error(r, -EINVAL, "%s: not a path for a socket", path);
	strcpy(r->path, path);
	length = make_address(r, &address);
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return context_error(r, -errno, "cannot make a socket: %s", strerror(errno));
	do {
		int left = remaining_msec(deadline);
		struct timeval timeout = {};

		/* A full backlog blocks connect(2) on Unix sockets, and only SO_SNDTIMEO bounds
		 * that: poll(2) can't wait for it. Zero would mean for ever. */
		if (left >= 0) {
			timeout.tv_sec = left / 1000;
			timeout.tv_usec = left ? left % 1000 * 1000 : 1;
		}
		setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout));
		result = connect(fd, (struct sockaddr *)&address, length);
	} while (result < 0 && errno == EINTR);
	if (result < 0) {
		result = errno == EAGAIN ? -ETIMEDOUT : -errno;
		return context_error(r, result, "cannot connect to reuseportd at %s: %s", path,
			strerror(-result));
	}
	return take_fd(&fd);
}

static int hello(struct reuseport *r, uint64_t deadline)
{
	struct protocol_hello body = {
		.version_min = htole16(PROTOCOL_VERSION),
		.version_max = htole16(PROTOCOL_VERSION),
	};
	_cleanup_close_ int pidfd = -1;
	int result;

	pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);
	if (pidfd < 0)
		return context_error(
			r, -errno, "cannot open a pidfd of this process: %s", strerror(errno));
	result = connection_send(r, PROTOCOL_HELLO, &body, sizeof(body), pidfd, deadline);
	if (result < 0)
		return result;
	result = connection_wait(r, PROTOCOL_WELCOME, PROTOCOL_WELCOME, "cannot connect", deadline);
	if (result < 0)
		return result;
	if (le16toh(r->message.welcome.version) != PROTOCOL_VERSION)
		return context_error(r, -EPROTONOSUPPORT,
			"reuseportd speaks version %u of the protocol, this library %u",
			le16toh(r->message.welcome.version), PROTOCOL_VERSION);
	r->workers_max = le32toh(r->message.welcome.workers_max);
	return 0;
}

int connection_send_hello(struct reuseport *r)
{
	const struct protocol_hello body = {
		.version_min = htole16(PROTOCOL_VERSION),
		.version_max = htole16(PROTOCOL_VERSION),
	};
	_cleanup_close_ int pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);

	if (pidfd < 0)
		return -errno;
	next_sequence(r);
	return message_send(r->socket, PROTOCOL_HELLO, r->sequence, &body, sizeof(body), &pidfd, 1);
}

int connection_open(struct reuseport *r, const char *path, uint64_t deadline)
{
	struct epoll_event event = {.events = EPOLLIN};
	int result;

	result = connect_to(r, path, deadline);
	if (result < 0)
		return result;
	r->socket = result;
	r->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	r->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (r->epoll_fd < 0 || r->wake_fd < 0)
		return -errno;
	if (epoll_ctl(r->epoll_fd, EPOLL_CTL_ADD, r->socket, &event) < 0 ||
		epoll_ctl(r->epoll_fd, EPOLL_CTL_ADD, r->wake_fd, &event) < 0)
		return -errno;
	return hello(r, deadline);
}

/* Calls the callbacks for what was noted; returns how many events that were. */
static int deliver(struct reuseport *r)
{
	struct reuseport_callbacks *c = &r->callbacks;
	int n = 0;

	if (r->drain_requested) {
		uint64_t deadline = r->drain_deadline_usec, now = now_usec();

		r->drain_requested = false;
		if (deadline) /* 0 would mean never */
			deadline = deadline > now ? deadline - now : 1;
		n++;
		if (c->drain)
			c->drain(r, r->drain_reason, deadline, r->user_data);
	}
	for (unsigned i = 0; i < r->n_listeners; i++) {
		if (!r->listeners[i].keys_rotated)
			continue;
		r->listeners[i].keys_rotated = false;
		n++;
		if (c->keys_rotated)
			c->keys_rotated(r, i, r->user_data);
	}
	for (unsigned i = 0; r->stalled && i < r->n_workers; i++) {
		bool now = r->stalled[i] & STALLED_NOW;

		if (now == !!(r->stalled[i] & STALLED_TOLD))
			continue;
		r->stalled[i] ^= STALLED_TOLD;
		n++;
		if (c->stalled)
			c->stalled(r, i, now, r->user_data);
	}
	if (r->disconnected) {
		r->disconnected = false;
		n++;
		if (c->disconnected)
			c->disconnected(
				r, r->disconnected_error, r->disconnected_text, r->user_data);
	}
	if (r->resumed) {
		r->resumed = false;
		n++;
		if (c->resumed)
			c->resumed(r, r->user_data);
	}
	return n;
}

_public_ int reuseport_dispatch(struct reuseport *r, int timeout_msec)
{
	uint64_t deadline = deadline_after(timeout_msec);

	if (r->fallback || (r->socket < 0 && !r->disconnected && r->resume == RESUME_NONE))
		return not_connected(r);
	for (;;) {
		eventfd_t ignored;
		int n, result = 0;

		resume_tick(r);

		/* A bounded number: a daemon that never stops sending must not keep the
		 * application here. */
		for (unsigned i = 0; i < 1024 && r->socket >= 0; i++) {
			result = read_one(r);
			if (result < 0)
				break;
			message_done(&r->message); /* an answer nobody waits for any more */
		}
		eventfd_read(r->wake_fd, &ignored);
		n = deliver(r);
		if (result == -EPROTO)
			return -EPROTO;
		if (n > 0)
			return n;
		result = wait_for(r->epoll_fd, POLLIN, deadline);
		if (result <= 0)
			return result;
	}
}
