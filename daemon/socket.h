/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Makes one member of a reuseport group: the socket of a listener with all its options, bound and
 * (TCP) listening. Worker sockets, standby and sink all come from here, so they always match.
 */
#pragma once

#include "daemon/config.h"

/*
 * Returns a descriptor (close-on-exec, non-blocking) or a negative errno with *ret_step a static
 * name of what failed ("bind", "setsockopt SO_MARK").
 */
int socket_new(const struct listener_config *config, const char **ret_step);

/*
 * Gives a socket that somebody else made, of the listener's family and protocol and unbound, the
 * same options, and binds it. 0 or a negative errno with *ret_step as above.
 */
int socket_adopt(int fd, const struct listener_config *config, const char **ret_step);

/* An int of SOL_SOCKET, or a negative errno. */
int socket_option(int fd, int option);
/* SO_NETNS_COOKIE and SO_COOKIE; 0: it can't be told, or is no socket. */
uint64_t socket_network(int fd);
uint64_t socket_cookie(int fd);
/* Whether it is bound to the listener's address and port. */
bool socket_has_address(int fd, const struct listener_config *config);
