/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Whose a socket is, as far as /proc and cgroupfs show it to the daemon: descriptors of processes
 * of another user only root sees, the cgroup everybody does.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct process {
	pid_t pid;        /* 0: not found */
	char command[64]; /* "": not known */
	char unit[256];   /* of systemd; "": none, or not known */
};

/*
 * Looks for processes that hold one of the n sockets, by inode, in ret[0 .. n). Walks /proc for
 * PROCESS_SEARCH_USEC of this thread's time at most: on a busy machine others' work is not to be
 * the reason for which nothing is found.
 */
#define PROCESS_SEARCH_USEC (50 * USEC_PER_MSEC)
void process_find_holders(const uint32_t *inodes, size_t n, struct process *ret);
/* The unit of a cgroup, by its inode; "" as above, and for the daemon's own. */
void process_unit_of_cgroup(uint64_t cgroup, char *ret, size_t size);
