/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The server's NOTIFY_SOCKET: what it says of itself decides when the daemon makes it active, and
 * goes on to the launcher's own service manager where that may hear it from the launcher.
 */
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <systemd/sd-daemon.h>

#include "tools/run.h"

int notify_open(struct run *run)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	_cleanup_close_ int fd = -1;
	const int one = 1;
	uint64_t random;
	size_t length;

	/* An abstract name needs no directory and leaves nothing behind; who may write to it is
	 * decided by credentials. */
	if (getrandom(&random, sizeof(random), 0) != sizeof(random))
		return -errno;
	snprintf(run->notify_name, sizeof(run->notify_name), "@reuseport-run/%d/%016llx", getpid(),
		(unsigned long long)random);
	length = strlen(run->notify_name);
	memcpy(address.sun_path + 1, run->notify_name + 1, length - 1);
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &one, sizeof(one)) < 0 ||
		bind(fd, (struct sockaddr *)&address,
			(socklen_t)(offsetof(struct sockaddr_un, sun_path) + length)) < 0)
		return -errno;
	run->notify_fd = take_fd(&fd);
	return 0;
}

/* What the service manager must not take for the launcher's own: READY comes when reuseportd
 * agreed, the main process is the launcher, and descriptors stay here. */
static bool is_forwarded(const char *line)
{
	static const char *const own[] = {"READY=", "MAINPID=", "MAINPIDFDID=", "FDSTORE=",
		"FDSTOREREMOVE=", "FDNAME=", "FDPOLL=", "BARRIER="};

	for (size_t i = 0; i < ARRAY_SIZE(own); i++)
		if (!strncmp(line, own[i], strlen(own[i])))
			return false;
	return *line != '\0';
}

static void handle_notification(struct run *run, char *text)
{
	char forward[4096] = "", *save = NULL;
	bool ready = false, stopping = false;
	size_t used = 0;

	for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		ready |= !strcmp(line, "READY=1");
		stopping |= !strcmp(line, "STOPPING=1");
		if (is_forwarded(line) && used + strlen(line) + 2 <= sizeof(forward))
			used += (size_t)snprintf(
				forward + used, sizeof(forward) - used, "%s\n", line);
	}
	if (ready) {
		wait_join_all(run);
		run_become_ready(run);
	}
	if (stopping && !run->stopping) {
		run->stopping = true;
		reuseport_drain(
			run->context, RUN_REQUEST_MSEC); /* new connections go elsewhere now */
	}
	if (used)
		sd_notify(0, forward);
}

int notify_read(struct run *run)
{
	union {
		struct cmsghdr align;
		char octets[CMSG_SPACE(253 * sizeof(int)) + CMSG_SPACE(sizeof(struct ucred))];
	} control;
	char text[4096];
	struct iovec part = {.iov_base = text, .iov_len = sizeof(text) - 1};
	struct msghdr header = {
		.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	struct ucred sender = {.pid = 0, .uid = (uid_t)-1};
	ssize_t size;

	size = recvmsg(run->notify_fd, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	if (size < 0)
		return errno == EINTR;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&header); c; c = CMSG_NXTHDR(&header, c)) {
		if (c->cmsg_level != SOL_SOCKET)
			continue;
		if (c->cmsg_type == SCM_CREDENTIALS)
			memcpy(&sender, CMSG_DATA(c), sizeof(sender));
		/* Closing is also how BARRIER=1 is answered. */
		for (size_t i = 0;
			c->cmsg_type == SCM_RIGHTS && i < (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
			i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
			close_fd(&fd);
		}
	}
	if (sender.pid != run->server_pid && sender.uid != geteuid() && sender.uid != 0)
		return 1;
	text[size] = '\0';
	handle_notification(run, text);
	return 1;
}
