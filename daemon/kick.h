/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The accept queue is taken away from a worker that hangs: the worker drains, its listening sockets
 * are ended (SOCK_DESTROY), and what waited in their queues moves to other members of the group.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct worker;

struct kick {
	unsigned sockets; /* listening sockets that are closed now */
	int error;        /* negative errno of the first that could not be closed */
};

/*
 * First the worker is in no table any more, then what waits is let go, so that none of it comes
 * back. reason: enum protocol_drain_reason. A worker that is joining has nothing to take: false, as
 * nothing was done. Without CAP_NET_ADMIN the worker drains, and kick->error is -EPERM.
 */
bool kick(struct worker *worker, uint32_t reason, struct kick *kick);
