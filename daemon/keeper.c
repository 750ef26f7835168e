/* SPDX-License-Identifier: BSD-2-Clause */
#include "daemon/keeper.h"

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>

#include "common/util.h"

#define PROGRAM "reuseport-keep"
#define ANSWER_MSEC 2000
#define BUSY_MSEC 2000 /* how long a daemon that was killed may take to be gone */
#define STEP_MSEC 5

struct keeper {
	int socket;
	pid_t pid; /* 0: not known */
	int pidfd; /* -1: not known */
	struct keeper_message message;
};

static void sleep_a_step(void)
{
	const struct timespec step = {.tv_nsec = STEP_MSEC * 1000000};

	nanosleep(&step, NULL);
}

static int path_of(const char *directory, struct sockaddr_un *ret)
{
	int length;

	*ret = (struct sockaddr_un){.sun_family = AF_UNIX};
	length = snprintf(ret->sun_path, sizeof(ret->sun_path), "%s/" KEEPER_FILE, directory);
	return length < 0 || (size_t)length >= sizeof(ret->sun_path) ? -ENAMETOOLONG : 0;
}

int keeper_inherit(struct keeper **ret, int fd)
{
	struct keeper *keeper = calloc(1, sizeof(*keeper));
	struct ucred peer = {0};
	socklen_t length = sizeof(peer);

	if (!keeper) {
		close_fd(&fd);
		return -ENOMEM;
	}
	keeper->pidfd = -1;
	/* The process that answers afterwards is the one that had this number before, so it is this
	 * one's pidfd. */
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 && peer.pid > 0) {
		keeper->pid = peer.pid;
		keeper->pidfd = (int)syscall(SYS_pidfd_open, peer.pid, 0);
	}
	keeper->socket = fd;
	*ret = keeper;
	return 0;
}

/* -ENOENT: nobody listens there. */
static int connect_to(struct keeper **ret, const char *directory, uid_t uid)
{
	_cleanup_close_ int fd = -1;
	struct sockaddr_un address;
	struct ucred peer;
	socklen_t length = sizeof(peer);

	if (path_of(directory, &address) < 0)
		return -ENOENT;
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		return errno == ECONNREFUSED || errno == ENOTDIR ? -ENOENT : -errno;
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) < 0)
		return -errno;
	if (peer.uid != uid)
		return -EPERM;
	return keeper_inherit(ret, take_fd(&fd));
}

struct keeper *keeper_free(struct keeper *keeper)
{
	if (keeper) {
		close_fd(&keeper->socket);
		close_fd(&keeper->pidfd);
	}
	free(keeper);
	return NULL;
}

struct keeper *keeper_end(struct keeper *keeper)
{
	if (keeper && keeper->pidfd >= 0)
		syscall(SYS_pidfd_send_signal, keeper->pidfd, SIGKILL, NULL, 0);
	return keeper_free(keeper);
}

int keeper_fd(const struct keeper *keeper)
{
	return keeper->socket;
}

pid_t keeper_pid(const struct keeper *keeper)
{
	return keeper->pid;
}

static uint64_t now_msec(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* Signals come all the time while the daemon handles an event (linger.h). */
static int wait_for(int fd, short events)
{
	struct pollfd poll_fd = {.fd = fd, .events = events};
	uint64_t end = now_msec() + ANSWER_MSEC, now;
	int n = -1;

	while (n < 0 && (now = now_msec()) < end) {
		n = poll(&poll_fd, 1, (int)(end - now));
		if (n < 0 && errno != EINTR)
			return -errno;
	}
	return n > 0 ? 0 : -ETIMEDOUT;
}

/* It reads at once, so a full buffer is a matter of moments, or of a keeper that was stopped. */
static int send_message(struct keeper *keeper, enum keeper_type type, uint32_t n, uint32_t n_fds)
{
	int result;

	keeper->message.header.type = (uint16_t)type;
	keeper->message.header.n = n;
	keeper->message.n_fds = n_fds;
	while ((result = keeper_send(keeper->socket, &keeper->message)) == -EAGAIN) {
		result = wait_for(keeper->socket, POLLOUT);
		if (result < 0)
			return result;
	}
	return result;
}

static int receive_message(struct keeper *keeper, enum keeper_type type, struct keeper_message *ret)
{
	int result;

	while ((result = keeper_receive(keeper->socket, ret)) == -EAGAIN) {
		result = wait_for(keeper->socket, POLLIN);
		if (result < 0)
			return result;
	}
	if (result <= 0)
		return result < 0 ? result : -EPIPE;
	if (ret->header.type == type && ret->n_fds == ret->header.n)
		return 0;
	while (ret->n_fds)
		close_fd(&ret->fds[--ret->n_fds]);
	return ret->header.type == KEEPER_BUSY ? -EBUSY : -EPROTO;
}

int keeper_put(struct keeper *keeper, const struct keeper_entry *entry, int fd)
{
	keeper->message.entries[0] = *entry;
	keeper->message.fds[0] = fd;
	return send_message(keeper, KEEPER_PUT, 1, 1);
}

int keeper_remove(struct keeper *keeper, uint32_t number)
{
	keeper->message.entries[0] = (struct keeper_entry){.number = number};
	return send_message(keeper, KEEPER_REMOVE, 1, 0);
}

int keeper_take(struct keeper *keeper, uint32_t after, struct keeper_message *ret)
{
	int result;

	keeper->message.entries[0] = (struct keeper_entry){.number = after};
	result = send_message(keeper, KEEPER_GIVE, 1, 0);
	return result < 0 ? result : receive_message(keeper, KEEPER_ENTRIES, ret);
}

int keeper_sync(struct keeper *keeper)
{
	int result = send_message(keeper, KEEPER_SYNC, 0, 0);

	/* It may have said BUSY and gone: that is still to be read. */
	return result < 0 && result != -EPIPE
		       ? result
		       : receive_message(keeper, KEEPER_DONE, &keeper->message);
}

void keeper_leave(struct keeper *keeper, bool ends)
{
	if (send_message(keeper, KEEPER_LEAVE, 0, 0) < 0 || !ends || keeper->pidfd < 0)
		return;
	shutdown(keeper->socket, SHUT_WR);
	wait_for(keeper->pidfd, POLLIN);
}

void keeper_forget(struct keeper *keeper)
{
	send_message(keeper, KEEPER_FORGET, 0, 0);
}

int keeper_find(struct keeper **ret, const char *directory, uid_t uid)
{
	uint64_t end = now_msec() + BUSY_MSEC;
	int result = -EBUSY;

	for (bool again = false; result == -EBUSY && now_msec() < end; again = true) {
		struct keeper *keeper = NULL;

		if (again)
			sleep_a_step();
		result = connect_to(&keeper, directory, uid);
		if (result == -EAGAIN) { /* others wait at its door */
			result = -EBUSY;
			continue;
		}
		if (result < 0)
			return result;
		result = keeper_sync(keeper);
		if (result >= 0) {
			*ret = keeper;
			return 0;
		}
		keeper_free(keeper);
		if (result == -EPIPE || result == -ECONNRESET) /* it has ended in this moment */
			result = -ENOENT;
	}
	return result;
}

/* Bound with mode 0600, not listening yet: the keeper does that. */
static int bind_door(const char *directory, const char **ret_step)
{
	_cleanup_close_ int fd = -1;
	struct sockaddr_un address;
	mode_t before;
	int result;

	*ret_step = "make its socket";
	result = path_of(directory, &address);
	if (result < 0)
		return result;
	unlink(address.sun_path);
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	before = umask(0177);
	result = bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 ? -errno : 0;
	umask(before);
	return result < 0 ? result : take_fd(&fd);
}

/* Beside the daemon, as in a build directory, or where it is installed. */
static const char *find_program(const char *daemon, char path[PATH_MAX])
{
	const char *slash = strrchr(daemon, '/');
	int length = slash ? (int)(slash - daemon) : 0;

	if (slash && snprintf(path, PATH_MAX, "%.*s/" PROGRAM, length, daemon) < PATH_MAX &&
		access(path, X_OK) == 0)
		return path;
	return LIBEXEC_DIRECTORY "/" PROGRAM;
}

static int spawn(pid_t *ret, int door, const char *path)
{
	char *const arguments[] = {(char *)PROGRAM, NULL}, *const environment[] = {NULL};
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attributes;
	sigset_t none, all;
	int error;

	sigemptyset(&none);
	sigfillset(&all);
	if (posix_spawn_file_actions_init(&actions) != 0)
		return -ENOMEM;
	if (posix_spawnattr_init(&attributes) != 0) {
		posix_spawn_file_actions_destroy(&actions);
		return -ENOMEM;
	}
	/* Nobody's pipe or terminal: whoever waits for their end waits for the daemon alone. */
	for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
		posix_spawn_file_actions_addopen(&actions, fd, "/dev/null", O_RDWR, 0);
	posix_spawn_file_actions_addchdir_np(&actions, "/");
	posix_spawn_file_actions_adddup2(&actions, door, KEEPER_SOCKET);
	posix_spawnattr_setsigmask(&attributes, &none);
	posix_spawnattr_setsigdefault(&attributes, &all);
	posix_spawnattr_setflags(
		&attributes, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
	error = posix_spawn(ret, path, &actions, &attributes, arguments, environment);
	posix_spawnattr_destroy(&attributes);
	posix_spawn_file_actions_destroy(&actions);
	return -error;
}

/* Until it listens. A child that has ended is reaped. */
static int wait_until_it_listens(struct keeper **ret, const char *directory, pid_t pid)
{
	uint64_t end = now_msec() + ANSWER_MSEC;

	while (now_msec() < end) {
		int result = connect_to(ret, directory, geteuid());

		if (result != -ENOENT)
			return result;
		if (waitpid(pid, NULL, WNOHANG) == pid)
			return -ECHILD;
		sleep_a_step();
	}
	return -ETIMEDOUT;
}

int keeper_start(
	struct keeper **ret, const char *directory, const char *program, const char **ret_step)
{
	_cleanup_close_ int door = -1, above = -1;
	struct keeper *keeper = NULL;
	char path[PATH_MAX];
	pid_t pid;
	int result;

	door = bind_door(directory, ret_step);
	if (door < 0)
		return door;
	/* dup2() onto its own number would leave it close-on-exec. */
	above = fcntl(door, F_DUPFD_CLOEXEC, KEEPER_SOCKET + 1);
	if (above < 0)
		return -errno;
	*ret_step = "run it";
	result = spawn(&pid, above, find_program(program, path));
	if (result < 0)
		return result;
	*ret_step = "reach it";
	result = wait_until_it_listens(&keeper, directory, pid);
	if (result >= 0)
		result = keeper_sync(keeper);
	if (result >= 0) {
		*ret = keeper;
		return 0;
	}
	keeper_free(keeper);
	if (result != -ECHILD) {
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
	}
	return result;
}
