/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Workers that hang: alive, their sockets open, and what comes to them waits for nothing. Such a
 * worker is taken from the listener map until its queue moves again; connections that it has stay
 * with it, since nobody else could go on with them.
 *
 * The sign is the queue of its socket (sock_diag: accept queue, receive buffer), looked at once a
 * second: it is not empty, and in StallTimeoutSec= no look found it shorter than the one before. A
 * worker that does its work is seen with a shorter queue, be it as busy as it may, unless it is
 * slower than what comes all the time; then new connections are better off elsewhere as well.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

struct listener;

/* A queue that no look has found shorter. */
struct suspect {
	uint64_t cookie;
	uint64_t since_usec; /* CLOCK_MONOTONIC */
	uint32_t queue;      /* at the last look */
	uint16_t slot;
};

/* Of a listener. */
struct health {
	struct suspect *suspects; /* by slot */
	size_t n_suspects;
	uint64_t packets; /* that the program had seen at the last look */
};

/*
 * Once a second. Asks the kernel for the queues only when packets have come since the last look or
 * a queue stood still then, and only where there is another worker. Marks and unmarks workers,
 * tells of it, and has the tables made anew.
 */
void health_tick(struct listener *listener);
/* The listener is closed. */
void health_done(struct health *health);
