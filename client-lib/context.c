/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Life of a context and the functions that only look at it. What talks to the daemon is in
 * connection.c and register.c.
 */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "client-lib/context.h"

int context_error(struct reuseport *r, int error, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(r->error, sizeof(r->error), format, arguments);
	va_end(arguments);
	return error;
}

_public_ int reuseport_open(struct reuseport **ret, const char *path, int timeout_msec)
{
	struct reuseport *r;
	int result;

	r = calloc(1, sizeof(*r));
	if (!r)
		return -ENOMEM;
	r->socket = r->epoll_fd = r->wake_fd = r->server_pidfd = r->timer_fd = -1;

	if (!path)
		path = secure_getenv("REUSEPORT_SOCKET");
	if (!path || !*path)
		path = REUSEPORT_SOCKET_PATH;
	result = connection_open(r, path, deadline_after(timeout_msec));
	if ((result == -ENOENT || result == -ECONNREFUSED) && r->socket < 0 &&
		fallback_n_sockets() > 0) {
		r->fallback = true;
		result = 1;
	}
	if (result < 0) {
		reuseport_close(r);
		return result;
	}
	*ret = r;
	return result;
}

_public_ void reuseport_close(struct reuseport *r)
{
	if (!r)
		return;
	registration_clear(r);
	close_fd(&r->socket);
	close_fd(&r->wake_fd);
	close_fd(&r->timer_fd);
	close_fd(&r->epoll_fd);
	explicit_bzero(&r->message, sizeof(r->message)); /* keys passed through it */
	free(r);
}

_public_ const char *reuseport_error(const struct reuseport *r)
{
	return r ? r->error : "no connection to reuseportd";
}

_public_ void reuseport_set_callbacks(
	struct reuseport *r, const struct reuseport_callbacks *callbacks, void *user_data)
{
	r->callbacks = callbacks ? *callbacks : (struct reuseport_callbacks){};
	r->user_data = user_data;
}

_public_ unsigned reuseport_n_workers(const struct reuseport *r)
{
	return r->registered ? r->n_workers : 0;
}

_public_ unsigned reuseport_n_listeners(const struct reuseport *r)
{
	return r->registered ? r->n_listeners : 0;
}

_public_ const char *reuseport_instance(const struct reuseport *r)
{
	return r->instance;
}

_public_ int reuseport_slot(const struct reuseport *r, unsigned worker)
{
	return worker < r->n_workers ? r->slots[worker] : -ERANGE;
}

_public_ const char *reuseport_listener_name(const struct reuseport *r, unsigned listener)
{
	return listener < r->n_listeners ? r->listeners[listener].name : NULL;
}

_public_ const char *reuseport_listener_address(const struct reuseport *r, unsigned listener)
{
	return listener < r->n_listeners ? r->listeners[listener].address : NULL;
}

_public_ int reuseport_listener_transport(const struct reuseport *r, unsigned listener)
{
	return listener < r->n_listeners ? r->listeners[listener].transport : -ERANGE;
}

_public_ int reuseport_listener_cid_mode(const struct reuseport *r, unsigned listener)
{
	return listener < r->n_listeners ? r->listeners[listener].cid_mode : -ERANGE;
}

_public_ int reuseport_socket(const struct reuseport *r, unsigned worker, unsigned listener)
{
	int fd;

	if (worker >= r->n_workers || listener >= r->n_listeners)
		return -ERANGE;
	fd = r->sockets[worker * r->n_listeners + listener];
	return fd < 0 ? -EBADF : fd;
}

_public_ int reuseport_take_socket(struct reuseport *r, unsigned worker, unsigned listener)
{
	int fd = reuseport_socket(r, worker, listener);

	if (fd >= 0) {
		r->sockets[worker * r->n_listeners + listener] = -1;
		if (r->numbers)
			r->numbers[worker * r->n_listeners + listener] = fd;
	}
	return fd;
}

_public_ int reuseport_get_fd(const struct reuseport *r)
{
	/* After the end of the connection there is something to wait for only while the
	 * disconnected callback is still to be called, or another connection is tried for. */
	if (r->fallback || (r->socket < 0 && !r->disconnected && r->resume == RESUME_NONE))
		return -ENOTCONN;
	return r->epoll_fd;
}

_public_ int reuseport_get_events(const struct reuseport *r)
{
	return 0x001; /* POLLIN: an epoll descriptor knows nothing else */
}
