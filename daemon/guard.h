/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Keeps the holder of a worker's socket from harming the others of its group: bpf/guard.bpf.c, on
 * the daemon's own cgroup.
 *
 * WHY: one socket of a group is enough to detach its program or to leave the group for the kernel's
 * own choice among all members. Workers of one service may do that to each other, and it heals
 * within a second (group_heal()); services of different users that share a listener may not.
 * Loading such programs takes CAP_NET_ADMIN.
 */
#pragma once

#include <stdint.h>

#include <jansson.h>

struct guard;
struct store;

/*
 * Loads and attaches. A negative errno with *ret_error, a sentence (free()): what was tried, and
 * what it needs. -EPERM: no CAP_NET_ADMIN; -ENOENT: there is no cgroup of version 2.
 */
int guard_new(struct guard **ret, struct store *store, char **ret_error);
/* Those of an earlier process, with the marks; NULL: there were none, or they are not all there. */
struct guard *guard_resume(struct store *store, const json_t *json);
/* NULL is allowed, and gives null. */
json_t *guard_to_json(const struct guard *guard);
/* Sockets are no longer guarded, unless the store outlives this process. NULL is allowed. */
struct guard *guard_free(struct guard *guard);
/* The map of marks, for guard_socket(); guard NULL: -1. */
int guard_map(const struct guard *guard);
/* Guards a socket of this process; map -1: nothing is done. Negative errno. */
int guard_socket(int map, int fd);
