/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Registration of workers: the exchange of GRANT and ACK that brings the sockets here, and the
 * requests that concern all workers of the registration.
 *
 * A registration is complete or it is nothing: when any step fails, every socket that came is
 * closed and the daemon is told, so that no slot waits for a worker that will never be.
 */
#include <endian.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "client-lib/context.h"

void registration_clear(struct reuseport *r)
{
	cid_clear(r);
	load_clear(r);
	resume_clear(r);
	if (r->sockets)
		for (size_t i = 0; i < (size_t)r->n_workers * r->n_listeners; i++)
			close_fd(&r->sockets[i]);
	if (r->listeners)
		explicit_bzero(r->listeners, r->n_listeners * sizeof(*r->listeners));
	free(take_pointer(r->listeners));
	free(take_pointer(r->slots));
	free(take_pointer(r->stalled));
	free(take_pointer(r->sockets));
	r->n_workers = r->n_listeners = 0;
	r->registered = false;
	r->drain_requested = false;
}

const struct protocol_grant_listener *grant_listener(const struct message *m, unsigned i)
{
	return (const void *)(m->body + sizeof(m->grant) +
			      i * sizeof(struct protocol_grant_listener));
}

static int take_listener(
	struct reuseport *r, struct listener *to, const struct protocol_grant_listener *from)
{
	if (from->transport < PROTOCOL_TCP || from->transport > PROTOCOL_QUIC)
		return context_error(r, -EPROTO,
			"listener %s has a transport that this library does not know (%u)",
			from->name, from->transport);
	memcpy(to->name, from->name, sizeof(to->name));
	memcpy(to->address, from->address, sizeof(to->address));
	memcpy(to->token_secret, from->token_secret, sizeof(to->token_secret));
	to->transport = from->transport;
	to->cid_mode = from->cid_mode;
	return 0;
}

/* Only where there is no worker whose sockets are numbered by listeners. What can't be taken is
 * not known then, as before. */
void registration_add_listeners(struct reuseport *r)
{
	const struct message *m = &r->message;
	unsigned n = le16toh(m->grant.n_listeners), before = r->n_listeners;
	struct listener *listeners;

	if (!r->registered || r->n_workers || m->grant.n_workers || n <= before ||
		le32toh(m->grant.registration) != r->registration)
		return;
	listeners = reallocarray(r->listeners, n, sizeof(*listeners));
	if (!listeners)
		return;
	r->listeners = listeners;
	memset(listeners + before, 0, (n - before) * sizeof(*listeners));
	while (r->n_listeners < n && take_listener(r, &listeners[r->n_listeners],
					     grant_listener(m, r->n_listeners)) == 0)
		r->n_listeners++;
}

/* Makes room when the first GRANT tells how much there will be. */
static int take_shape(struct reuseport *r, unsigned n_workers)
{
	const struct message *m = &r->message;
	const struct protocol_grant *grant = &m->grant;
	unsigned n_listeners = le16toh(grant->n_listeners);
	size_t n = (size_t)n_workers * n_listeners;
	int result;

	r->registration = le32toh(grant->registration);
	r->slots = calloc(MAX(n_workers, 1u), sizeof(*r->slots));
	r->stalled = calloc(MAX(n_workers, 1u), sizeof(*r->stalled));
	r->sockets = calloc(MAX(n, 1u), sizeof(*r->sockets));
	r->listeners = calloc(n_listeners, sizeof(*r->listeners));
	if (!r->slots || !r->stalled || !r->sockets || !r->listeners)
		return context_error(r, -ENOMEM, "not enough memory");
	for (size_t i = 0; i < n; i++)
		r->sockets[i] = -1;
	r->n_workers = n_workers;
	r->n_listeners = n_listeners;
	for (unsigned i = 0; i < n_listeners; i++) {
		result = take_listener(r, &r->listeners[i], grant_listener(m, i));

		if (result < 0)
			return result;
	}
	memcpy(r->instance, grant->instance, sizeof(r->instance));
	result = resume_prepare(r);
	return result < 0 ? result : cid_prepare(r);
}

static int set_nonblocking(int fd)
{
	int flags = fcntl(fd, F_GETFL);

	if (flags < 0 || (!(flags & O_NONBLOCK) && fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0))
		return -errno;
	return 0;
}

static uint64_t socket_cookie(int fd)
{
	uint64_t cookie = 0;
	socklen_t length = sizeof(cookie);

	getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &length);
	return cookie;
}

/* Takes one worker's sockets and connection-ID configuration out of the GRANT in r->message. */
static int take_grant(struct reuseport *r, unsigned worker, unsigned n_workers)
{
	struct message *m = &r->message;
	const struct protocol_grant *grant = &m->grant;
	int result;

	if (worker == 0) {
		result = take_shape(r, n_workers);
		if (result < 0)
			return result;
	}
	if (le32toh(grant->worker) != worker || le32toh(grant->n_workers) != n_workers ||
		le32toh(grant->registration) != r->registration ||
		le16toh(grant->n_listeners) != r->n_listeners)
		return context_error(
			r, -EPROTO, "reuseportd granted something else than asked for");
	if (!n_workers)
		return 0;
	r->slots[worker] = le16toh(grant->slot);
	for (unsigned i = 0; i < r->n_listeners; i++) {
		const struct protocol_grant_listener *l = grant_listener(m, i);
		int *fd = &r->sockets[worker * r->n_listeners + i];

		if (strcmp(l->name, r->listeners[i].name) ||
			l->cid_mode != r->listeners[i].cid_mode)
			return context_error(
				r, -EPROTO, "reuseportd granted workers with different listeners");
		*fd = take_fd(&m->fds[le16toh(l->descriptor)]);
		result = set_nonblocking(*fd);
		if (result < 0)
			return context_error(r, result, "cannot use the socket of listener %s: %s",
				l->name, strerror(-result));
		r->cookies[worker * r->n_listeners + i] = socket_cookie(*fd);
		if (l->cid_mode != PROTOCOL_CID_QUIC_LB &&
			l->cid_mode != PROTOCOL_CID_QUIC_LB_PLAIN)
			continue;
		result = cid_configure(r, worker, i, l->config_rotation, l->server_id_length,
			l->nonce_length, l->server_id, l->key, l->nonce_prefix);
		if (result < 0)
			return result;
	}
	return 0;
}

static int send_ack(struct reuseport *r, unsigned worker, int pidfd, uint64_t deadline)
{
	struct protocol_ack body = {
		.registration = htole32(r->registration),
		.worker = htole32(worker),
		.flags = htole32(pidfd >= 0 ? PROTOCOL_ACK_PROCESS : 0),
	};

	return connection_send(r, PROTOCOL_ACK, &body, sizeof(body), pidfd, deadline);
}

/* n_workers 0: one GRANT that tells of the listeners, and the ACK of it. */
static int exchange(struct reuseport *r, unsigned n_workers,
	int (*start)(struct reuseport *r, void *user_data), void *user_data, const char *what,
	uint64_t deadline)
{
	_cleanup_close_ int pidfd = -1;
	int result;

	for (unsigned worker = 0; worker < MAX(n_workers, 1u); worker++) {
		result = connection_wait(r, PROTOCOL_GRANT, PROTOCOL_GRANT, what, deadline);
		if (result < 0)
			return result;
		result = take_grant(r, worker, n_workers);
		message_done(&r->message);
		if (result < 0)
			return result;
		if (start && worker + 1 >= n_workers) {
			r->registered = true; /* start() is to see what was granted */
			result = start(r, user_data);
			r->registered = false;
			if (result < 0)
				return context_error(r, result, "cannot start the server: %s",
					strerror(-result));
			pidfd = result;
			r->server_pidfd = fcntl(pidfd, F_DUPFD_CLOEXEC, 3);
		}
		result = send_ack(r, worker, pidfd, deadline);
		if (result < 0)
			return result;
	}
	return connection_wait(r, PROTOCOL_OK, PROTOCOL_OK, what, deadline);
}

static int without_daemon(struct reuseport *r, unsigned n_workers,
	int (*start)(struct reuseport *r, void *user_data), void *user_data)
{
	int result;

	if (n_workers != 1)
		return context_error(r, -EINVAL, "LISTEN_FDS are one worker, not %u", n_workers);
	result = fallback_register(r);
	if (result < 0) {
		registration_clear(r);
		return result;
	}
	r->registered = true;
	if (start) {
		result = start(r, user_data);
		if (result < 0) {
			registration_clear(r);
			return context_error(
				r, result, "cannot start the server: %s", strerror(-result));
		}
		close_fd(&result);
	}
	return 0;
}

static int register_with(struct reuseport *r, const char *service, const char *instance,
	unsigned n_workers, unsigned weight, uint32_t flags, int timeout_msec,
	int (*start)(struct reuseport *r, void *user_data), void *user_data)
{
	struct protocol_register body = {
		.n_workers = htole32(n_workers),
		.weight = htole32(weight),
		.flags = htole32(flags),
	};
	bool adopt = flags & PROTOCOL_REGISTER_ADOPT;
	uint64_t deadline = deadline_after(timeout_msec);
	char what[PROTOCOL_NAME_MAX + 64];
	int result;

	if (r->registered)
		return context_error(r, -EALREADY, "this context has a registration already");
	if (r->fallback && adopt)
		return context_error(r, -EOPNOTSUPP,
			"without reuseportd there is no group to take a socket into");
	if (r->fallback)
		return without_daemon(r, n_workers, start, user_data);
	if (!service || !*service || strlen(service) >= sizeof(body.service))
		return context_error(r, -EINVAL, "a service is named by 1 to %zu octets",
			sizeof(body.service) - 1);
	if (instance && strlen(instance) >= sizeof(body.instance))
		return context_error(r, -EINVAL, "an instance is named by at most %zu octets",
			sizeof(body.instance) - 1);
	if (n_workers < 1 || n_workers > MIN(r->workers_max, PROTOCOL_WORKERS_MAX))
		return context_error(r, -EINVAL, "%u workers: one registration has 1 to %u",
			n_workers, MIN(r->workers_max, PROTOCOL_WORKERS_MAX));
	if (weight > 1000)
		return context_error(
			r, -EINVAL, "weight %u: it is 1 to 1000, or 0 for the default", weight);
	strcpy(body.service, service);
	strcpy(r->service, service);
	r->weight = weight;
	r->max_workers = adopt ? n_workers : 0;
	r->ready = r->draining = false;
	strcpy(body.instance, instance ? instance : "");
	snprintf(what, sizeof(what), "cannot register with service %s", service);

	result = connection_send(r, PROTOCOL_REGISTER, &body, sizeof(body), -1, deadline);
	if (result < 0)
		return result;
	result = exchange(r, adopt ? 0 : n_workers, start, user_data, what, deadline);
	if (result < 0) {
		struct protocol_registration give_back = {
			.registration = htole32(r->registration),
		};

		if (r->listeners)
			connection_send_forget(
				r, PROTOCOL_UNREGISTER, &give_back, sizeof(give_back));
		registration_clear(r);
		return result;
	}
	r->registered = true;
	return 0;
}

_public_ int reuseport_register_for(struct reuseport *r, const char *service, const char *instance,
	unsigned n_workers, unsigned weight, int timeout_msec,
	int (*start)(struct reuseport *r, void *user_data), void *user_data)
{
	return register_with(
		r, service, instance, n_workers, weight, 0, timeout_msec, start, user_data);
}

_public_ int reuseport_register_adopting(struct reuseport *r, const char *service,
	const char *instance, unsigned max_workers, unsigned weight, int timeout_msec,
	int (*start)(struct reuseport *r, void *user_data), void *user_data)
{
	return register_with(r, service, instance, max_workers, weight, PROTOCOL_REGISTER_ADOPT,
		timeout_msec, start, user_data);
}

_public_ int reuseport_adopt(
	struct reuseport *r, unsigned listener, int fd, int backlog, int timeout_msec)
{
	struct protocol_adopt body = {
		.registration = htole32(r->registration),
		.listener = htole16((uint16_t)listener),
		.step = htole16(backlog < 0 ? PROTOCOL_ADOPT_BIND : PROTOCOL_ADOPT_LISTEN),
		.backlog = htole32(backlog < 0 ? 0 : (uint32_t)backlog),
	};
	uint64_t deadline = deadline_after(timeout_msec);
	int result;

	if (!r->registered || listener >= r->n_listeners)
		return context_error(r, -EINVAL, "cannot adopt: there is no listener %u", listener);
	result = connection_send(r, PROTOCOL_ADOPT, &body, sizeof(body), fd, deadline);
	if (result < 0)
		return result;
	result = connection_wait(r, PROTOCOL_OK, PROTOCOL_OK, "cannot adopt the socket", deadline);
	if (result >= 0)
		resume_note_adopted(r, listener, fd);
	return result;
}

_public_ int reuseport_register(struct reuseport *r, const char *service, const char *instance,
	unsigned n_workers, unsigned weight, int timeout_msec)
{
	return reuseport_register_for(
		r, service, instance, n_workers, weight, timeout_msec, NULL, NULL);
}

/* READY, DRAIN and UNREGISTER differ in their type alone. */
static int request(struct reuseport *r, uint16_t type, const char *what, int timeout_msec)
{
	struct protocol_registration body = {.registration = htole32(r->registration)};
	uint64_t deadline = deadline_after(timeout_msec);
	int result;

	if (!r->registered)
		return context_error(r, -EINVAL, "%s: nothing is registered", what);
	if (r->fallback)
		return 0;
	result = connection_send(r, type, &body, sizeof(body), -1, deadline);
	if (result < 0)
		return result;
	return connection_wait(r, PROTOCOL_OK, PROTOCOL_OK, what, deadline);
}

_public_ int reuseport_ready(struct reuseport *r, int timeout_msec)
{
	int result = request(r, PROTOCOL_READY, "cannot become ready", timeout_msec);

	r->ready |= result == 0;
	return result;
}

_public_ int reuseport_drain(struct reuseport *r, int timeout_msec)
{
	int result = request(r, PROTOCOL_DRAIN, "cannot drain", timeout_msec);

	r->draining |= result == 0;
	return result;
}

_public_ int reuseport_unregister(struct reuseport *r, int timeout_msec)
{
	int result = request(r, PROTOCOL_UNREGISTER, "cannot unregister", timeout_msec);

	if (result == 0)
		registration_clear(r);
	return result;
}
