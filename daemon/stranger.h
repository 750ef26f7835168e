/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Strangers: sockets at a listener's address that are neither a worker's nor the daemon's own. They
 * get what the daemon never sees: one that is bound more closely, a worker's that left the group by
 * connect(2) and came back, one that a process put there under the daemon's uid, or what a worker
 * that is gone still holds. One that stays for some seconds is shown, and warned about once.
 */
#pragma once

#include <jansson.h>

struct listener;
struct manager;
struct sockdiag_list;
struct strangers;

/* Of each listener, this many are told apart. */
#define STRANGERS_MAX 64

/* NULL is allowed. */
struct strangers *strangers_free(struct strangers *strangers);
/* Once a second: looks at the listener that was not looked at for the longest time, if that is
 * STRANGERS_LOOK_USEC; the log and Monitor are told of what is new. */
void strangers_tick(struct manager *manager);
#define STRANGERS_LOOK_USEC (10 * USEC_PER_SEC)
/* Those of the list, which was read just now: of type []Stranger, a new reference. As a look. */
json_t *strangers_status(struct listener *listener, const struct sockdiag_list *list);
