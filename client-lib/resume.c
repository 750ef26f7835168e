/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Coming back. When the daemon has gone and left nothing, its workers serve on; the next one can
 * only know of them what they tell. So a registration outlives its connection: another one is tried
 * for at growing intervals, each worker is sent with its sockets (RESUME), and the GRANTs that
 * follow say that all is as before. All of it happens in reuseport_dispatch(), and nothing in it
 * waits.
 *
 * The sockets that were taken out of the context are not kept here: a copy would keep the kernel
 * from seeing that the server has closed its own. They are found again by their cookie. The same
 * goes for those that were adopted. Which of them are workers together, by their slots, the daemon
 * has told.
 */
#include <dirent.h>
#include <endian.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
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
	free(take_pointer(r->adopted));
	r->n_adopted = r->max_workers = 0;
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
	if (!r->registered || (!r->n_workers && !r->max_workers) ||
		(error && error != -ECONNRESET && error != -EPIPE)) {
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

/* Sockets that were adopted */

static void forget(struct reuseport *r, unsigned i)
{
	memmove(&r->adopted[i], &r->adopted[i + 1], (--r->n_adopted - i) * sizeof(*r->adopted));
}

/* Room for one more: there may be as many bound ones that the server has closed again. */
static bool make_room(struct reuseport *r)
{
	const unsigned most = r->max_workers * r->n_listeners;
	struct adopted *adopted;

	for (unsigned i = 0, bound = 0; i < r->n_adopted; i++)
		if (r->adopted[i].slot == PROTOCOL_NO_SLOT && ++bound == most) {
			for (i = 0; r->adopted[i].slot != PROTOCOL_NO_SLOT; i++)
				;
			forget(r, i); /* the oldest */
			break;
		}
	adopted = reallocarray(r->adopted, r->n_adopted + 1, sizeof(*adopted));
	if (adopted)
		r->adopted = adopted;
	return adopted;
}

/* Where there is no memory, the socket does not come back. */
void resume_note_adopted(struct reuseport *r, unsigned listener, int fd)
{
	const bool udp = r->listeners[listener].transport != PROTOCOL_TCP;
	struct adopted adopted = {.listener = (uint16_t)listener, .slot = PROTOCOL_NO_SLOT};
	socklen_t length = sizeof(adopted.cookie);
	struct stat status;

	if (getsockopt(fd, SOL_SOCKET, SO_COOKIE, &adopted.cookie, &length) < 0 ||
		fstat(fd, &status) < 0)
		return;
	adopted.inode = status.st_ino;
	if (le64toh(r->last_adopted.cookie) == adopted.cookie)
		adopted.slot = le16toh(r->last_adopted.slot);
	r->last_adopted.cookie = 0;
	/* TCP: until it listens it is nobody's, and needs no slot of anybody. */
	if (adopted.slot == PROTOCOL_NO_SLOT && !udp)
		return;
	for (unsigned i = r->n_adopted; i-- > 0;)
		if (r->adopted[i].cookie == adopted.cookie ||
			(adopted.slot != PROTOCOL_NO_SLOT && r->adopted[i].slot == adopted.slot &&
				r->adopted[i].listener == listener))
			forget(r, i);
	if (make_room(r))
		r->adopted[r->n_adopted++] = adopted;
}

static int find_adopted(struct reuseport *r, const struct adopted *adopted, int *ret_own)
{
	int fd = r->callbacks.find_adopted
			 ? r->callbacks.find_adopted(r, adopted->inode, r->user_data)
			 : -1;

	if (is_socket(fd, adopted->cookie))
		return *ret_own = fd;
	if (fd >= 0)
		close_fd(&fd);
	return search_process(adopted->cookie);
}

static struct adopted *adopted_at(struct reuseport *r, unsigned row, unsigned listener)
{
	for (unsigned i = 0; i < r->n_adopted; i++)
		if (r->adopted[i].row == row && r->adopted[i].listener == listener)
			return &r->adopted[i];
	return NULL;
}

static uint16_t slot_of_row(const struct reuseport *r, unsigned row)
{
	for (unsigned i = 0; i < r->n_adopted; i++)
		if (r->adopted[i].row == row && r->adopted[i].slot != PROTOCOL_NO_SLOT)
			return r->adopted[i].slot;
	return PROTOCOL_NO_SLOT;
}

/* Those that are closed are forgotten; each of the others has its place in a worker: by its slot,
 * or, where it has none, where another one would come (protocol.h, PROTOCOL_REGISTER_ADOPT). */
static void arrange_adopted(struct reuseport *r)
{
	for (unsigned i = r->n_adopted; i-- > 0;) {
		int own = -1;

		if (find_adopted(r, &r->adopted[i], &own) < 0)
			forget(r, i);
		else if (own >= 0)
			close_fd(&own);
	}
	for (unsigned i = 0; i < r->n_adopted; i++)
		r->adopted[i].row = UINT16_MAX;
	r->n_rows = 0;
	for (unsigned i = 0; i < r->n_adopted; i++) {
		struct adopted *a = &r->adopted[i];
		unsigned row = 0;

		if (a->slot == PROTOCOL_NO_SLOT)
			continue;
		while (row < r->n_rows && slot_of_row(r, row) != a->slot)
			row++;
		a->row = (uint16_t)row;
		r->n_rows = MAX(r->n_rows, row + 1);
	}
	for (unsigned i = 0; i < r->n_adopted; i++) {
		struct adopted *a = &r->adopted[i];
		unsigned row = 0;

		if (a->slot != PROTOCOL_NO_SLOT)
			continue;
		while (row < r->n_rows && adopted_at(r, row, a->listener))
			row++;
		if (row == r->max_workers)
			continue;
		a->row = (uint16_t)row;
		r->n_rows = MAX(r->n_rows, row + 1);
	}
	r->n_rows = MAX(r->n_rows, 1u);
}

static unsigned rows(const struct reuseport *r)
{
	return r->max_workers ? r->n_rows : r->n_workers;
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

		const struct adopted *adopted = r->max_workers ? adopted_at(r, worker, i) : NULL;

		own[i] = -1;
		if (!r->max_workers)
			fd = find_socket(r, worker, i, &own[i]);
		else
			fd = adopted ? find_adopted(r, adopted, &own[i]) : -1;
		if (adopted && adopted->slot == PROTOCOL_NO_SLOT)
			entry[i].flags = htole32(PROTOCOL_RESUME_BOUND);
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
	resume->n_workers = htole32(rows(r));
	resume->max_workers = htole32(r->max_workers);
	resume->weight = htole32(r->weight);
	resume->flags = htole32(flags);
	resume->slot = htole16(r->max_workers ? slot_of_row(r, worker) : r->slots[worker]);
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

	if (r->resume_worker == rows(r)) {
		r->resume = RESUME_GRANT;
		r->resume_worker = 0;
		return;
	}
	r->resume = RESUME_SENT;
	result = send_worker(r, r->resume_worker++);
	if (result < 0)
		connection_lost(r, -ECONNRESET, "the daemon does not read");
}

/* Another one has the slot that it had. */
static void note_moved(struct reuseport *r)
{
	for (unsigned i = 0; i < r->n_adopted; i++)
		if (r->adopted[i].cookie == le64toh(r->message.adopted.cookie))
			r->adopted[i].slot = le16toh(r->message.adopted.slot);
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
	if (r->n_workers)
		r->slots[worker] = le16toh(m->grant.slot);
	for (unsigned i = 0; i < r->n_listeners && r->n_workers; i++) {
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
	} else if (type == PROTOCOL_ADOPTED) {
		note_moved(r);
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
		if (r->max_workers)
			arrange_adopted(r);
		send_next(r);
	} else if (type == PROTOCOL_OK && r->resume == RESUME_SENT) {
		send_next(r);
	}
}
