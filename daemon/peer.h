/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Who is at the other end of a Unix socket: user, groups, and the process itself by pidfd, which,
 * unlike a pid, never comes to mean another process.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct peer {
	pid_t pid;
	uid_t uid;
	gid_t *gids; /* primary and supplementary */
	size_t n_gids;
	int pidfd; /* -1: the kernel has no SO_PEERPIDFD (before Linux 6.5) */
};

/* Of a connected Unix socket. Negative errno of getsockopt(2). */
int peer_of_socket(struct peer *ret, int socket);
void peer_done(struct peer *peer);

/* Whether the kernel names the process at the other end by a pidfd (Linux 6.5). */
bool peer_has_pidfd(void);
/* Whether it gives pidfds of threads (Linux 6.9), as reuseport-run asks for them. */
bool thread_has_pidfd(void);

/* pid of the process behind a pidfd, by its fdinfo (Linux 5.2). -ESRCH: it has ended. -EBADF: the
 * descriptor is no pidfd. */
int pidfd_to_pid(int pidfd, pid_t *ret);
/* User of a live process. */
int pid_to_uid(pid_t pid, uid_t *ret);
