/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Without a daemon: the sockets that a service manager passed (sd_listen_fds(3)) stand in for a
 * registration, so that one server binary runs with reuseportd, under plain socket activation and
 * in a developer's shell. Read here and not through libsystemd, which no server should have to link
 * for two environment variables.
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "client-lib/context.h"

#define FIRST_FD 3 /* SD_LISTEN_FDS_START */

static int read_number(const char *text, long *ret)
{
	char *end;
	long value;

	if (!text || *text < '0' || *text > '9')
		return -EINVAL;
	errno = 0;
	value = strtol(text, &end, 10);
	if (errno || *end)
		return -EINVAL;
	*ret = value;
	return 0;
}

unsigned fallback_n_sockets(void)
{
	long pid, n;

	if (read_number(secure_getenv("LISTEN_PID"), &pid) < 0 || pid != getpid())
		return 0;
	if (read_number(secure_getenv("LISTEN_FDS"), &n) < 0 || n < 1 || n > INT_MAX - FIRST_FD)
		return 0;
	return (unsigned)n;
}

static void format_address(int fd, char *text, size_t size)
{
	union {
		struct sockaddr any;
		struct sockaddr_in in;
		struct sockaddr_in6 in6;
		struct sockaddr_storage storage;
	} address = {};
	socklen_t length = sizeof(address);
	char host[INET6_ADDRSTRLEN];

	text[0] = '\0';
	if (getsockname(fd, &address.any, &length) < 0)
		return;
	if (address.any.sa_family == AF_INET &&
		inet_ntop(AF_INET, &address.in.sin_addr, host, sizeof(host)))
		snprintf(text, size, "%s:%u", host, ntohs(address.in.sin_port));
	else if (address.any.sa_family == AF_INET6 &&
		 inet_ntop(AF_INET6, &address.in6.sin6_addr, host, sizeof(host)))
		snprintf(text, size, "[%s]:%u", host, ntohs(address.in6.sin6_port));
}

static int take_socket(struct reuseport *r, unsigned i)
{
	struct listener *l = &r->listeners[i];
	int fd = FIRST_FD + (int)i, flags, type;
	socklen_t size = sizeof(type);

	if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) < 0)
		return context_error(r, -EINVAL, "descriptor %d of LISTEN_FDS is not a socket", fd);
	if (type != SOCK_STREAM && type != SOCK_DGRAM)
		return context_error(r, -EINVAL,
			"descriptor %d of LISTEN_FDS is neither a stream nor a datagram socket",
			fd);
	flags = fcntl(fd, F_GETFL);
	if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 ||
		fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
		return context_error(r, -errno, "cannot use descriptor %d of LISTEN_FDS: %s", fd,
			strerror(errno));
	l->transport = type == SOCK_STREAM ? PROTOCOL_TCP : PROTOCOL_UDP;
	format_address(fd, l->address, sizeof(l->address));
	r->sockets[i] = fd;
	return 0;
}

static void take_names(struct reuseport *r)
{
	const char *names = secure_getenv("LISTEN_FDNAMES");

	for (unsigned i = 0; i < r->n_listeners; i++) {
		size_t length = names ? strcspn(names, ":") : 0;

		if (length)
			snprintf(r->listeners[i].name, sizeof(r->listeners[i].name), "%.*s",
				(int)MIN(length, PROTOCOL_NAME_MAX - 1), names);
		else
			snprintf(r->listeners[i].name, sizeof(r->listeners[i].name), "unknown");
		if (names)
			names = names[length] ? names + length + 1 : NULL;
	}
}

int fallback_register(struct reuseport *r)
{
	unsigned n = fallback_n_sockets();

	if (n < 1 || n > PROTOCOL_LISTENERS_MAX)
		return context_error(r, -EINVAL, "LISTEN_FDS: 1 to %u sockets can be used, not %u",
			PROTOCOL_LISTENERS_MAX, n);
	r->slots = calloc(1, sizeof(*r->slots));
	r->sockets = calloc(n, sizeof(*r->sockets));
	r->listeners = calloc(n, sizeof(*r->listeners));
	if (!r->slots || !r->sockets || !r->listeners)
		return context_error(r, -ENOMEM, "not enough memory");
	for (unsigned i = 0; i < n; i++)
		r->sockets[i] = -1;
	r->n_workers = 1;
	r->n_listeners = n;
	for (unsigned i = 0; i < n; i++) {
		int result = take_socket(r, i);

		if (result < 0)
			return result;
	}
	take_names(r);
	return 0;
}
