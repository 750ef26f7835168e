/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The server's process: it must exist before the daemon is told of it, and must not run before the
 * daemon has agreed. So it is forked, waits, and becomes the server at a word of the launcher's.
 */
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "tools/run.h"

static int pidfd_open_pid(pid_t pid)
{
	return (int)syscall(SYS_pidfd_open, pid, 0);
}

void server_signal(struct run *run, int signal)
{
	if (run->server_pidfd >= 0 &&
		syscall(SYS_pidfd_send_signal, run->server_pidfd, signal, NULL, 0) < 0 &&
		errno != ESRCH)
		run_complain(
			"cannot send %s to the server: %s", strsignal(signal), strerror(errno));
}

/* Never returns: becomes the server, or tells the launcher by start_fd why not. */
static void become_server(struct run *run, char **arguments, int start_fd)
{
	char go;
	int result;

	/* The end of the pair without an octet: the launcher gave up, or died. */
	if (recv(start_fd, &go, 1, 0) != 1)
		_exit(EXIT_LAUNCHER);
	result = pass_place_sockets(run, &start_fd);
	if (result == 0)
		result = pass_set_environment(run);
	if (result == 0 && run->adopt)
		result = adopt_install(start_fd);
	if (result == 0) {
		sigprocmask(SIG_SETMASK, &run->original_mask, NULL);
		execvp(arguments[0], arguments);
		result = -errno;
	}
	send(start_fd, &result, sizeof(result), MSG_NOSIGNAL);
	_exit(result == -ENOENT ? EXIT_NOT_FOUND : EXIT_NOT_EXECUTABLE);
}

static void forwarded_signals(sigset_t *ret)
{
	static const int signals[] = {SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGWINCH};

	sigemptyset(ret);
	for (size_t i = 0; i < ARRAY_SIZE(signals); i++)
		sigaddset(ret, signals[i]);
}

/* Called by the library when the sockets are here. Until now signals had their usual effect on the
 * launcher; from the fork on they are the server's. */
int server_start(struct reuseport *context, void *user_data)
{
	struct run *run = user_data;
	_cleanup_(pass_free_arguments) char **arguments = NULL;
	_cleanup_close_ int child_fd = -1, pidfd = -1;
	sigset_t signals;
	int pair[2], result;
	pid_t pid;

	result = pass_expand_arguments(run, &arguments);
	if (result < 0) {
		run->arguments_wrong = result == -EINVAL;
		return result;
	}
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return -errno;
	run->start_fd = pair[0];
	child_fd = pair[1];

	forwarded_signals(&signals);
	sigprocmask(SIG_BLOCK, &signals, &run->original_mask);
	run->signal_fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
	if (run->signal_fd < 0)
		return -errno;
	fflush(NULL);
	pid = fork();
	if (pid < 0)
		return -errno;
	if (pid == 0) {
		close_fd(&run->start_fd);
		become_server(run, arguments, child_fd);
	}
	run->server_pid = pid;
	run->inodes =
		calloc((size_t)reuseport_n_workers(context) * reuseport_n_listeners(context) + 1,
			sizeof(*run->inodes));
	for (unsigned w = 0; w < reuseport_n_workers(context); w++)
		for (unsigned l = 0; l < reuseport_n_listeners(context); l++) {
			int fd = reuseport_take_socket(context, w, l);
			struct stat status;

			if (run->inodes && fstat(fd, &status) == 0)
				run->inodes[w * reuseport_n_listeners(context) + l] = status.st_ino;
			close_fd(&fd);
		}
	/* The child can't be reaped by anybody else: the pid is still its own. */
	run->server_pidfd = pidfd_open_pid(pid);
	pidfd = pidfd_open_pid(pid);
	if (run->server_pidfd < 0 || pidfd < 0)
		return -errno;
	return take_fd(&pidfd);
}

/* The daemon refused at the last moment: the child is told by the end of the pair. */
void server_abandon(struct run *run)
{
	close_fd(&run->start_fd);
	if (run->server_pid > 0)
		while (waitpid(run->server_pid, NULL, 0) < 0 && errno == EINTR)
			;
}

int server_reap(struct run *run)
{
	siginfo_t info = {};

	if (waitid(P_PID, (id_t)run->server_pid, &info, WEXITED | WNOHANG) < 0)
		return errno == EINTR ? -EAGAIN : EXIT_LAUNCHER;
	if (info.si_pid == 0)
		return -EAGAIN;
	return info.si_code == CLD_EXITED ? info.si_status : 128 + info.si_status;
}
