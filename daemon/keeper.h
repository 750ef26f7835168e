/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The daemon's side of its keeper (keeper-main.c), the process that holds descriptors for the next
 * daemon where no service manager does.
 *
 * Whatever fails here, the keeper is of no use any more: the caller frees it, and starts another
 * one that gets everything again.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "daemon/keeper-protocol.h"

struct keeper;

/*
 * The one that an earlier daemon left in the runtime directory; it is uid's. -ENOENT: there is
 * none. -EBUSY: another daemon has it, and lives. -EPERM: what listens there is somebody else's.
 */
int keeper_find(struct keeper **ret, const char *directory, uid_t uid);
/* Starts one; program: the daemon's own path, beside which it is looked for first. *ret_step: what
 * failed. */
int keeper_start(
	struct keeper **ret, const char *directory, const char *program, const char **ret_step);
/* Of the process that this one was before exec. fd is taken over. */
int keeper_inherit(struct keeper **ret, int fd);
/* It goes on with what it has. NULL is fine. */
struct keeper *keeper_free(struct keeper *keeper);
/* It is of no use: another one would be started beside it, so it is killed. */
struct keeper *keeper_end(struct keeper *keeper);

/* To poll: readable when it has ended, and at no other time. */
int keeper_fd(const struct keeper *keeper);
pid_t keeper_pid(const struct keeper *keeper);

int keeper_put(struct keeper *keeper, const struct keeper_entry *entry, int fd);
int keeper_remove(struct keeper *keeper, uint32_t number);
/* Next batch of what has a number above `after`; the descriptors are the caller's. */
int keeper_take(struct keeper *keeper, uint32_t after, struct keeper_message *ret);
/* Returns when all that came before is done. */
int keeper_sync(struct keeper *keeper);
/* This daemon ends in order. ends: so does the keeper, it has no process of a worker: waits until
 * its sockets are closed, so that their addresses are free when the daemon is gone. */
void keeper_leave(struct keeper *keeper, bool ends);
/* This daemon has all that the keeper has in another place, and it may end. */
void keeper_forget(struct keeper *keeper);
