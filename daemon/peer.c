/* SPDX-License-Identifier: BSD-2-Clause */
#include "daemon/peer.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/util.h"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77 /* Linux 6.5 */
#endif
#ifndef PIDFD_THREAD
#define PIDFD_THREAD O_EXCL /* Linux 6.9 */
#endif

static int peer_groups(struct peer *peer, int socket, gid_t primary)
{
	socklen_t length = 0;
	gid_t *gids;

	if (getsockopt(socket, SOL_SOCKET, SO_PEERGROUPS, NULL, &length) < 0 && errno != ERANGE)
		return -errno;
	gids = malloc(length + sizeof(gid_t));
	if (!gids)
		return -ENOMEM;
	if (length && getsockopt(socket, SOL_SOCKET, SO_PEERGROUPS, gids, &length) < 0) {
		free(gids);
		return -errno;
	}
	peer->n_gids = length / sizeof(gid_t);
	gids[peer->n_gids++] = primary;
	peer->gids = gids;
	return 0;
}

int peer_of_socket(struct peer *ret, int socket)
{
	struct peer peer = {.pidfd = -1};
	struct ucred credentials;
	socklen_t length = sizeof(credentials);
	int result;

	if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &length) < 0)
		return -errno;
	peer.pid = credentials.pid;
	peer.uid = credentials.uid;
	result = peer_groups(&peer, socket, credentials.gid);
	if (result < 0)
		return result;
	length = sizeof(peer.pidfd);
	if (getsockopt(socket, SOL_SOCKET, SO_PEERPIDFD, &peer.pidfd, &length) < 0)
		peer.pidfd = -1;
	*ret = peer;
	return 0;
}

void peer_done(struct peer *peer)
{
	free(peer->gids);
	peer->gids = NULL;
	close_fd(&peer->pidfd);
}

bool peer_has_pidfd(void)
{
	_cleanup_close_ int pidfd = -1;
	socklen_t length = sizeof(pidfd);
	int ends[2];
	bool has;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
		return true; /* not known, so nothing to complain about */
	has = getsockopt(ends[0], SOL_SOCKET, SO_PEERPIDFD, &pidfd, &length) == 0;
	close(ends[0]);
	close(ends[1]);
	return has;
}

bool thread_has_pidfd(void)
{
	_cleanup_close_ int pidfd = (int)syscall(SYS_pidfd_open, getpid(), PIDFD_THREAD);

	return pidfd >= 0 || errno != EINVAL;
}

int pidfd_to_pid(int pidfd, pid_t *ret)
{
	char path[64], line[128];
	FILE *file;
	long pid = 0;
	bool found = false;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", pidfd);
	file = fopen(path, "re");
	if (!file)
		return -errno;
	while (!found && fgets(line, sizeof(line), file))
		found = sscanf(line, "Pid: %ld", &pid) == 1;
	fclose(file);
	if (!found)
		return -EBADF;
	if (pid <= 0)
		return -ESRCH;
	*ret = (pid_t)pid;
	return 0;
}

int pid_to_uid(pid_t pid, uid_t *ret)
{
	char path[64], line[128];
	unsigned uid = 0;
	bool found = false;
	FILE *file;

	/* Not the owner of /proc/PID: that is root for a process that isn't dumpable (proc(5)). */
	snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
	file = fopen(path, "re");
	if (!file)
		return -errno;
	while (!found && fgets(line, sizeof(line), file))
		found = sscanf(line, "Uid: %u", &uid) == 1;
	fclose(file);
	if (!found)
		return -ESRCH;
	*ret = uid;
	return 0;
}
