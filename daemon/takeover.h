/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A daemon that knows nothing takes over from one that died and left nothing: no state, no maps,
 * only workers with their sockets, and a program in the kernel that goes on giving them their
 * traffic.
 *
 * The workers come back by RESUME. What they bring is a claim: a socket, which is to stand at a
 * slot of ours. Nothing can be done with it yet: a socket stands in one map at a time, and the
 * earlier map lives as long as the earlier program. So claims are collected until every socket at
 * the address is among them, or ResumeGraceSec= is over. Then all at once: a standby joins each
 * group, this build's program takes it, new traffic waits in the standby, the kernel lets go of the
 * earlier map within milliseconds, the sockets come to their slots, and what waited goes to them.
 * Until the switch nothing has changed: whoever is killed, or gives up, leaves all as it was.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include <systemd/sd-event.h>

struct listener;
struct manager;
struct registration;

/* A listener is dormant (group_wake()), so there is something to take over. -ENOMEM. */
int takeover_new(struct manager *manager);
void takeover_free(struct manager *manager);
/* Whether it is under way; and whether the switch is still to come. */
bool takeover_runs(const struct manager *manager);
bool takeover_waits(const struct manager *manager);
/*
 * Runs the loop until it is done. 0: done, or there was nothing to take over; 1: the loop was asked
 * to end. -EADDRINUSE, and what sockets and maps say: nothing was taken over; *ret_error, a
 * sentence that the caller frees.
 */
int takeover_run(struct manager *manager, char **ret_error);

/*
 * fd is to come to the slot of worker number `worker` of the registration, which was `slot`, for
 * the listener that it names by `granted`. PROTOCOL_NO_SLOT: it has none, and nothing is done but
 * that nobody else is waited for. fd is taken over, also on failure. -EEXIST: somebody has claimed
 * it already, or it stands at a slot. -EBADF with *ret_reason, static: it is not what it should be.
 */
int claim_socket(struct registration *registration, uint32_t worker, uint16_t slot,
	uint32_t granted, struct listener *listener, int fd, const char **ret_reason);
/* Its workers are all there: to be done as soon as that can be. */
int claims_complete(struct registration *registration);
void claims_free(struct registration *registration);
