/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What the kernel knows of sockets that are not ours to hold, by sock_diag(7). Reading needs no
 * capability.
 *
 * The kernel walks its table of all listening TCP, or all UDP sockets of the network namespace, and
 * sends those of the listener's port. docs/architecture.md has what that costs.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "daemon/config.h"

/* A socket that gets, or could get, what comes to a listener's address. */
struct sockdiag_socket {
	uint64_t cookie; /* SO_COOKIE */
	uint64_t cgroup; /* of the process that made it, its inode in cgroupfs; 0: not told */
	uint32_t inode;
	uid_t uid;
	bool exact; /* bound to exactly the listener's address, port and device */
	/* TCP: connections in the accept queue, and the backlog. UDP: octets in the receive buffer,
	 * and its size. */
	uint32_t queue, queue_limit;
	uint32_t drops; /* of what found the queue full, since it was made */
};

struct sockdiag_list {
	struct sockdiag_socket *sockets; /* sorted by cookie */
	size_t n, n_allocated;
};

/* More sockets than this are not read: a group has 32,768 at most. */
#define SOCKDIAG_SOCKETS_MAX 65536

/*
 * Sockets that are bound to the listener's port and to its address and device, or to a part of
 * these (a specific address, where it has the wildcard). Negative errno when the kernel doesn't
 * tell (no inet_diag, tcp_diag or udp_diag), -E2BIG: too many. ret: sockdiag_done().
 */
int sockdiag_read(const struct listener_config *config, struct sockdiag_list *ret);
void sockdiag_done(struct sockdiag_list *list);
/* NULL: not in it. */
const struct sockdiag_socket *sockdiag_find(const struct sockdiag_list *list, uint64_t cookie);

/*
 * Whether any socket is bound to exactly the listener's address, port and device: 1 or 0. Others
 * that merely overlap (a wildcard, a specific address) don't count. Negative errno as above.
 */
int sockdiag_is_bound(const struct listener_config *config);

/*
 * Ends a listening TCP socket of the listener's, for all who hold it (SOCK_DESTROY): its accept
 * queue moves to other members of the group. n_members: of the group, about. Negative errno: -EPERM
 * without CAP_NET_ADMIN, -EOPNOTSUPP without CONFIG_INET_DIAG_DESTROY, -ENOENT: there is no such
 * socket.
 */
int sockdiag_destroy(const struct listener_config *config, uint64_t cookie, size_t n_members);
