/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What becomes of the server's bind() and listen() when the launcher ends before the server, or
 * before children of it: with the last descriptor of a seccomp listener closed, they fail with
 * ENOSYS for ever. So a process beside the launcher, forked from it, keeps one, does nothing while
 * there is a launcher, and then lets the kernel carry out whatever comes, until nobody is left who
 * could ask. Nothing is adopted by then.
 *
 * The launcher may die between reading a question and answering it. It leaves the number of the
 * question in memory that both have, so that its asker does not wait for ever. Numbers are
 * consecutive (seccomp_next_notify_id(), Linux): the next one is tried as well, in case the
 * launcher died before it could write it down.
 */
#include <fcntl.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "tools/run.h"

enum { LISTENER = 0, LAUNCHER = 1, N_KEPT }; /* descriptors of that process */

/* The answer to a question that nobody has asked, or not yet been read, does nothing. */
static void let_go_on(uint64_t id)
{
	struct seccomp_notif_resp response = {.id = id, .flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE};

	ioctl(LISTENER, SECCOMP_IOCTL_NOTIF_SEND, &response);
}

static void let_everything_pass(const uint64_t *last_id)
{
	struct pollfd fds = {.fd = LISTENER, .events = POLLIN};
	char octet;

	/* The end of the pipe is that of the launcher, however it came about. */
	while (read(LAUNCHER, &octet, 1) < 0 && errno == EINTR)
		;
	if (*last_id) {
		let_go_on(*last_id);
		let_go_on(*last_id + 1);
	}
	for (;;) {
		union {
			struct seccomp_notif request;
			char octets[1024]; /* the kernel's may be larger */
		} buffer = {};

		if (poll(&fds, 1, -1) < 0)
			continue; /* EINTR */
		if (!(fds.revents & POLLIN))
			return; /* POLLHUP: no process has the filter */
		if (ioctl(LISTENER, SECCOMP_IOCTL_NOTIF_RECV, &buffer.request) == 0)
			let_go_on(buffer.request.id);
	}
}

/* Nothing of the launcher's: not its connection to the daemon, whose end means something, nor what
 * it prints to. */
static int leave_descriptors(int listener, int launcher)
{
	int kept[N_KEPT] = {listener, launcher};

	for (int i = 0; i < N_KEPT; i++) /* out of the way first */
		if (kept[i] < N_KEPT) {
			kept[i] = dup(kept[i]);
			if (kept[i] < N_KEPT)
				return -errno;
		}
	for (int i = 0; i < N_KEPT; i++)
		if (dup2(kept[i], i) < 0)
			return -errno;
	return syscall(SYS_close_range, N_KEPT, ~0U, 0) < 0 ? -errno : 0;
}

int after_start(struct run *run)
{
	uint64_t *last_id = mmap(
		NULL, sizeof(*last_id), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	_cleanup_close_ int reader = -1, writer = -1;
	int pair[2];
	pid_t pid;

	if (last_id == MAP_FAILED || pipe2(pair, O_CLOEXEC) < 0)
		return -errno;
	reader = pair[0];
	writer = pair[1];
	pid = fork();
	if (pid < 0)
		return -errno;
	if (pid == 0) {
		/* Signals are blocked, as in the launcher. */
		prctl(PR_SET_NAME, "reuseport-after");
		if (leave_descriptors(run->adopt_fd, reader) == 0)
			let_everything_pass(last_id);
		_exit(0);
	}
	run->adopt_id = last_id;
	run->after_fd = take_fd(&writer);
	return 0;
}
