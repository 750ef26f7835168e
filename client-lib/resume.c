/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Coming back. When the daemon has gone and left nothing, its workers serve on; the next one can
 * only know of them what they tell. So a registration outlives its connection: another one is tried
 * for at growing intervals, each worker is sent with its sockets (RESUME), and the GRANTs that
 * follow say that all is as before. All of it happens in reuseport_dispatch(), and nothing in it
 * waits.
 *
 * The sockets that were taken out of the context are not kept here: a copy would keep the kernel
 * from seeing that the server has closed its own. They are found again by their cookie.
 */
#include <dirent.h>
#include <endian.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/timerfd.h>

#include "client-lib/context.h"

#define FIRST_TRY_MSEC 50
#define LAST_TRY_MSEC 2000

int resume_prepare(struct reuseport *r)
{
	size_t n = MAX((size_t)r->n_workers * r->n_listeners, 1u);

	r->cookies = calloc(n, sizeof(*r->cookies));
	r->numbers = calloc(n, sizeof(*r->numbers));
	if (!r->cookies || !r->numbers)
		return context_error(r, -ENOMEM, "not enough memory");
	return 0;
}

void resume_clear(struct reuseport *r)
{
	free(take_pointer(r->cookies));
	free(take_pointer(r->numbers));
	close_fd(&r->server_pidfd);
	r->ready = r->draining = r->resumed = false;
	r->resume = RESUME_NONE;
}

/* Half of the interval at least, all of it at most: those that lost one daemon don't come at once.
 */
static void wait_for_next_try(struct reuseport *r)
{
	unsigned msec = FIRST_TRY_MSEC << MIN(r->resume_tries, 16u);
	struct itimerspec timer = {0};
	struct epoll_event event = {.events = EPOLLIN};
	uint16_t random = 0;

	msec = MIN(msec, LAST_TRY_MSEC);
	if (getrandom(&random, sizeof(random), GRND_NONBLOCK) == (ssize_t)sizeof(random))
		msec -= random % (msec / 2);
	r->resume_tries++;
	r->resume = RESUME_WAIT;
	if (r->timer_fd < 0) {
		r->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
		if (r->timer_fd < 0 ||
			epoll_ctl(r->epoll_fd, EPOLL_CTL_ADD, r->timer_fd, &event) < 0) {
			close_fd(&r->timer_fd);
			r->resume = RESUME_NONE;
			return;
		}
	}
	timer.it_value.tv_sec = msec / 1000;
	timer.it_value.tv_nsec = msec % 1000 * 1000000L;
	timerfd_settime(r->timer_fd, 0, &timer, NULL);
}

bool resume_begin(struct reuseport *r, int error)
{
	/* Not where the daemon has sent it away, and not where there is no socket of its own. */
	if (!r->registered || !r->n_workers || (error && error != -ECONNRESET && error != -EPIPE)) {
		r->resume = RESUME_NONE;
		return false;
	}
	if (r->resume == RESUME_NONE)
		r->resume_tries = 0;
	wait_for_next_try(r);
	return r->resume != RESUME_NONE;
}

static bool is_socket(int fd, uint64_t cookie)
{
	uint64_t found = 0;
	socklen_t length = sizeof(found);

	return fd >= 0 && getsockopt(fd, SOL_SOCKET, SO_COOKIE, &found, &length) == 0 &&
	       found == cookie;
}

static int search_process(uint64_t cookie)
{
	DIR *fds = opendir("/proc/self/fd");
	const struct dirent *entry;
	int fd = -1;

	while (fd < 0 && fds && (entry = readdir(fds)))
		if (entry->d_name[0] != '.' && is_socket(atoi(entry->d_name), cookie))
			fd = atoi(entry->d_name);
	if (fds)
		closedir(fds);
	return fd;
}

/* *ret_own: to be closed. -1: nobody has it any more. */
static int find_socket(struct reuseport *r, unsigned worker, unsigned listener, int *ret_own)
{
	size_t i = (size_t)worker * r->n_listeners + listener;
	int fd;

	if (r->sockets[i] >= 0)
		return r->sockets[i];
	if (is_socket(r->numbers[i], r->cookies[i]))
		return r->numbers[i];
	if (r->callbacks.find_socket) {
		fd = r->callbacks.find_socket(r, worker, listener, r->user_data);
		if (is_socket(fd, r->cookies[i]))
			return *ret_own = fd;
		if (fd >= 0)
			close_fd(&fd);
	}
	return search_process(r->cookies[i]);
}

/* 0: sent. -EAGAIN: the daemon does not read. Other negative errno: it can't be. */
static int send_worker(struct reuseport *r, unsigned worker)
{
	union {
		uint8_t octets[sizeof(struct protocol_resume) +
			       PROTOCOL_LISTENERS_MAX * sizeof(struct protocol_resume_listener)];
		struct protocol_resume resume;
	} body = {0};
	struct protocol_resume *resume = &body.resume;
	struct protocol_resume_listener *entry = (void *)(resume + 1);
	int fds[PROTOCOL_LISTENERS_MAX + 1], own[PROTOCOL_LISTENERS_MAX], result;
	uint32_t flags = (r->ready ? PROTOCOL_RESUME_READY : 0) |
			 (r->draining ? PROTOCOL_RESUME_DRAINING : 0);
	size_t n = 0;

	strcpy(resume->service, r->service);
	strcpy(resume->instance, r->instance);
	for (unsigned i = 0; i < r->n_listeners; i++) {
		int fd;

		own[i] = -1;
		fd = find_socket(r, worker, i, &own[i]);
		memcpy(entry[i].name, r->listeners[i].name, sizeof(entry[i].name));
		memcpy(entry[i].address, r->listeners[i].address, sizeof(entry[i].address));
		entry[i].transport = r->listeners[i].transport;
		entry[i].cid_mode = r->listeners[i].cid_mode;
		entry[i].descriptor = htole16(fd < 0 ? PROTOCOL_NO_DESCRIPTOR : (uint16_t)n);
		if (fd >= 0)
			fds[n++] = fd;
	}
	if (worker == 0 && r->server_pidfd >= 0) {
		flags |= PROTOCOL_RESUME_PROCESS;
		fds[n++] = r->server_pidfd;
	}
	resume->worker = htole32(worker);
	resume->n_workers = htole32(r->n_workers);
	resume->weight = htole32(r->weight);
	resume->flags = htole32(flags);
	resume->slot = htole16(r->slots[worker]);
	resume->n_listeners = htole16((uint16_t)r->n_listeners);
	if (++r->sequence == 0) /* 0 marks events */
		r->sequence = 1;
	result = message_send(r->socket, PROTOCOL_RESUME, r->sequence, resume,
		sizeof(*resume) + r->n_listeners * sizeof(*entry), fds, n);
	for (unsigned i = 0; i < r->n_listeners; i++)
		if (own[i] >= 0)
			close_fd(&own[i]);
	return result;
}

void resume_tick(struct reuseport *r)
{
	uint64_t expirations;

	if (r->resume != RESUME_WAIT ||
		read(r->timer_fd, &expirations, sizeof(expirations)) != sizeof(expirations))
		return;
	if (connection_try(r) < 0) {
		wait_for_next_try(r);
		return;
	}
	r->resume = RESUME_HELLO;
	if (connection_send_hello(r) < 0)
		connection_lost(r, -ECONNRESET, "the daemon does not read");
}

static void give_up(struct reuseport *r, int error, const char *text)
{
	close_fd(&r->socket);
	r->resume = RESUME_NONE;
	r->disconnected = true;
	r->disconnected_error = error;
	snprintf(r->disconnected_text, sizeof(r->disconnected_text), "%s", text);
}

static void send_next(struct reuseport *r)
{
	int result;

	if (r->resume_worker == r->n_workers) {
		r->resume = RESUME_GRANT;
		r->resume_worker = 0;
		return;
	}
	r->resume = RESUME_SENT;
	result = send_worker(r, r->resume_worker++);
	if (result < 0)
		connection_lost(r, -ECONNRESET, "the daemon does not read");
}

static void take_grant(struct reuseport *r)
{
	const struct message *m = &r->message;
	unsigned worker = r->resume_worker;

	if (le32toh(m->grant.worker) != worker || le32toh(m->grant.n_workers) != r->n_workers ||
		le16toh(m->grant.n_listeners) != r->n_listeners) {
		give_up(r, -EPROTO, "reuseportd granted something else than was brought");
		return;
	}
	r->registration = le32toh(m->grant.registration);
	r->slots[worker] = le16toh(m->grant.slot);
	for (unsigned i = 0; i < r->n_listeners; i++) {
		const struct protocol_grant_listener *l = grant_listener(m, i);

		if (l->cid_mode == r->listeners[i].cid_mode &&
			(l->cid_mode == PROTOCOL_CID_QUIC_LB ||
				l->cid_mode == PROTOCOL_CID_QUIC_LB_PLAIN))
			cid_configure(r, worker, i, l->config_rotation, l->server_id_length,
				l->nonce_length, l->server_id, l->key, l->nonce_prefix);
	}
	if (++r->resume_worker < r->n_workers)
		return;
	r->resume = RESUME_NONE;
	r->resumed = r->loads_stale = true;
	connection_wake(r);
}

void resume_message(struct reuseport *r)
{
	const struct message *m = &r->message;
	const uint16_t type = m->header.type;

	if (type == PROTOCOL_GOODBYE) {
		uint32_t error = le32toh(m->goodbye.error);

		if (error)
			give_up(r, error > 4095 ? -EPROTO : -(int)error, m->goodbye.text);
		else
			connection_lost(r, 0, "the daemon stops");
	} else if (type == PROTOCOL_GRANT && m->header.sequence == 0) {
		if (r->resume == RESUME_GRANT)
			take_grant(r);
	} else if (m->header.sequence != r->sequence || !m->header.sequence) {
		return;
	} else if (type == PROTOCOL_ERROR) {
		uint32_t error = le32toh(m->error.error);

		give_up(r, error < 1 || error > 4095 ? -EPROTO : -(int)error, m->error.text);
	} else if (type == PROTOCOL_WELCOME && r->resume == RESUME_HELLO) {
		r->resume_worker = 0;
		send_next(r);
	} else if (type == PROTOCOL_OK && r->resume == RESUME_SENT) {
		send_next(r);
	}
}
