/* SPDX-License-Identifier: BSD-2-Clause */
#include "daemon/socket.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>

#include "common/util.h"

#ifndef SO_NETNS_COOKIE
#define SO_NETNS_COOKIE 71 /* Linux 5.14 */
#endif

static int set_flag(int fd, int level, int option)
{
	const int one = 1;

	return setsockopt(fd, level, option, &one, sizeof(one)) < 0 ? -errno : 0;
}

static int set_number(int fd, int level, int option, int value)
{
	return setsockopt(fd, level, option, &value, sizeof(value)) < 0 ? -errno : 0;
}

#define TRY(name, call)                     \
	do {                                \
		int _result = (call);       \
		if (_result < 0) {          \
			*ret_step = (name); \
			return _result;     \
		}                           \
	} while (0)

static int set_options(int fd, const struct listener_config *config, const char **ret_step)
{
	bool ipv6 = config->address.ss_family == AF_INET6;

	TRY("setsockopt SO_REUSEPORT", set_flag(fd, SOL_SOCKET, SO_REUSEPORT));
	/* A TCP restart must not wait for TIME_WAIT of the old connections, as in systemd. */
	if (config->transport == TRANSPORT_TCP)
		TRY("setsockopt SO_REUSEADDR", set_flag(fd, SOL_SOCKET, SO_REUSEADDR));
	if (ipv6)
		TRY("setsockopt IPV6_V6ONLY",
			set_number(fd, IPPROTO_IPV6, IPV6_V6ONLY, config->ipv6_only));
	if (config->free_bind)
		TRY("setsockopt IP_FREEBIND", ipv6 ? set_flag(fd, IPPROTO_IPV6, IPV6_FREEBIND)
						   : set_flag(fd, IPPROTO_IP, IP_FREEBIND));
	if (config->transparent)
		TRY("setsockopt IP_TRANSPARENT", ipv6 ? set_flag(fd, IPPROTO_IPV6, IPV6_TRANSPARENT)
						      : set_flag(fd, IPPROTO_IP, IP_TRANSPARENT));
	if (config->mark >= 0)
		TRY("setsockopt SO_MARK", set_number(fd, SOL_SOCKET, SO_MARK, (int)config->mark));
	if (config->receive_buffer)
		TRY("setsockopt SO_RCVBUF",
			set_number(fd, SOL_SOCKET, SO_RCVBUF, (int)config->receive_buffer));
	if (config->send_buffer)
		TRY("setsockopt SO_SNDBUF",
			set_number(fd, SOL_SOCKET, SO_SNDBUF, (int)config->send_buffer));
	if (config->bind_to_device)
		TRY("setsockopt SO_BINDTODEVICE",
			setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, config->bind_to_device,
				strlen(config->bind_to_device)) < 0
				? -errno
				: 0);
	return 0;
}

int socket_adopt(int fd, const struct listener_config *config, const char **ret_step)
{
	int result = set_options(fd, config, ret_step);

	if (result < 0)
		return result;
	*ret_step = "bind";
	return bind(fd, (const struct sockaddr *)&config->address, config->address_length) < 0
		       ? -errno
		       : 0;
}

int socket_new(const struct listener_config *config, const char **ret_step)
{
	bool tcp = config->transport == TRANSPORT_TCP;
	_cleanup_close_ int fd = -1;
	int result;

	fd = socket(config->address.ss_family,
		(tcp ? SOCK_STREAM : SOCK_DGRAM) | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0) {
		*ret_step = "socket";
		return -errno;
	}
	result = set_options(fd, config, ret_step);
	if (result < 0)
		return result;
	if (bind(fd, (const struct sockaddr *)&config->address, config->address_length) < 0) {
		*ret_step = "bind";
		return -errno;
	}
	if (tcp && listen(fd, config->backlog) < 0) {
		*ret_step = "listen";
		return -errno;
	}
	return take_fd(&fd);
}

int socket_option(int fd, int option)
{
	int value = -1;
	socklen_t length = sizeof(value);

	return getsockopt(fd, SOL_SOCKET, option, &value, &length) < 0 ? -errno : value;
}

uint64_t socket_network(int fd)
{
	uint64_t cookie = 0;
	socklen_t length = sizeof(cookie);

	getsockopt(fd, SOL_SOCKET, SO_NETNS_COOKIE, &cookie, &length);
	return cookie;
}

uint64_t socket_cookie(int fd)
{
	uint64_t cookie = 0;
	socklen_t length = sizeof(cookie);

	getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &length);
	return cookie;
}

bool socket_has_address(int fd, const struct listener_config *config)
{
	struct sockaddr_storage address = {0};
	socklen_t length = sizeof(address);

	if (getsockname(fd, (struct sockaddr *)&address, &length) < 0 ||
		address.ss_family != config->address.ss_family)
		return false;
	if (address.ss_family == AF_INET) {
		const struct sockaddr_in *a = (const void *)&address,
					 *b = (const void *)&config->address;

		return a->sin_port == b->sin_port && a->sin_addr.s_addr == b->sin_addr.s_addr;
	}
	const struct sockaddr_in6 *a = (const void *)&address, *b = (const void *)&config->address;

	return a->sin6_port == b->sin6_port &&
	       memcmp(&a->sin6_addr, &b->sin6_addr, sizeof(a->sin6_addr)) == 0;
}
