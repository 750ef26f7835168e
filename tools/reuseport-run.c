/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * reuseport-run: puts a server that has never heard of reuseportd behind it. The sockets go to the
 * server by a convention that servers know already; readiness, drain requests and signals are
 * translated both ways.
 *
 * Order is everything here. The server's process must exist before the last ACK, since its pidfd
 * goes with it, but must not run before the daemon has agreed, or it would serve on sockets that
 * belong to nobody. So the child is forked inside reuseport_register_for() and waits at a socket
 * pair for one octet before it executes the server. The launcher closes its own copies of the
 * sockets right after the fork: a copy left here would keep the kernel from emptying the slot, and
 * from moving the accept queue to another worker, when the server closes its own or dies.
 */
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <systemd/sd-daemon.h>
#include <time.h>

#include "tools/run.h"

#define REGISTER_MSEC 30000
#define DRAIN_MSEC 500

void run_complain(const char *format, ...)
{
	va_list arguments;
	char text[1024];

	/* One write: launchers often share a terminal or a log. */
	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	dprintf(STDERR_FILENO, "reuseport-run: %s\n", text);
}

uint64_t now_usec(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * USEC_PER_SEC + (uint64_t)now.tv_nsec / NSEC_PER_USEC;
}

/* Readiness and drain */

void run_become_ready(struct run *run)
{
	run->ready_at_usec = 0;
	if (run->ready_done) { /* once more: the end of a RELOADING=1 */
		sd_notify(0, "READY=1");
		return;
	}
	if (reuseport_ready(run->context, RUN_REQUEST_MSEC) < 0) {
		run_complain("%s", reuseport_error(run->context));
		return;
	}
	run->ready_done = true;
	sd_notify(0, "READY=1");
}

/*
 * The daemon sends no new connection from now on. The server may still have some in its queues, or
 * between handshake and first request, and may refuse them once it is told: --drain-delay.
 */
static void begin_drain(struct run *run)
{
	if (run->drain_delay_usec)
		run->drain_at_usec = now_usec() + run->drain_delay_usec;
	else
		server_signal(run, run->drain_signal);
}

static void on_drain(struct reuseport *context, enum reuseport_drain_reason reason,
	uint64_t deadline_usec, void *user_data)
{
	struct run *run = user_data;

	if (!run->executed) {
		run->drain_pending = true;
		return;
	}
	begin_drain(run);
}

static void on_disconnected(struct reuseport *context, int error, const char *text, void *user_data)
{
	struct run *run = user_data;

	run_complain("reuseportd is gone (%s); the server goes on", text);
	run->away = true;
}

static void on_resumed(struct reuseport *context, void *user_data)
{
	struct run *run = user_data;

	run_complain("reuseportd is back");
	run->away = false;
	wait_again(run);
}

/* The server has them, wherever it has put them, and perhaps its children alone. */
static int on_find_socket(
	struct reuseport *context, unsigned worker, unsigned listener, void *user_data)
{
	struct run *run = user_data;

	if (!run->inodes)
		return -ENOENT;
	return wait_find_socket(
		run, run->inodes[worker * reuseport_n_listeners(context) + listener]);
}

static int on_find_adopted(struct reuseport *context, uint64_t inode, void *user_data)
{
	return wait_find_socket(user_data, inode);
}

static void on_executed(struct run *run)
{
	run->executed = true;
	if (run->drain_pending) {
		run->drain_pending = false;
		begin_drain(run);
	}
	if (run->ready == READY_EXEC && !run->adopt) /* else with its first socket */
		run_become_ready(run);
	else if (run->ready == READY_DELAY)
		run->ready_at_usec = now_usec() + run->ready_usec;
}

static void start_after(struct run *run)
{
	int result = after_start(run);

	if (result < 0)
		run_complain("cannot start the process that keeps the server's bind() working when "
			     "the launcher has gone: %s",
			strerror(-result));
}

/* The child either closed its end by executing the server, or sent the errno of the attempt. */
static void on_start_event(struct run *run)
{
	int error;
	ssize_t size;

	if (run->adopt && run->adopt_fd < 0) {
		error = adopt_take(run);
		if (!error)
			start_after(run);
		if (!error || error == -EAGAIN)
			return;
		close_fd(&run->start_fd);
		run_complain("cannot execute %s with --adopt: %s%s", run->server[0],
			strerror(-error),
			error == -EBUSY ? " (another seccomp filter here is listened to already)"
					: "");
		return;
	}
	size = recv(run->start_fd, &error, sizeof(error), MSG_DONTWAIT);

	if (size < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	close_fd(&run->start_fd);
	if (size == (ssize_t)sizeof(error))
		run_complain("cannot execute %s: %s", run->server[0], strerror(-error));
	else if (size == 0)
		on_executed(run);
}

/* The loop */

/*
 * Before a signal that ends the server: new connections go elsewhere, or wait. A handshake
 * that ends in the moment in which the listening socket closes is the one thing that the kernel
 * does not move (inet_csk_reqsk_queue_add(), Linux 6.18: reset), so none should be under way then.
 */
static void stop_newcomers(struct run *run, int signal)
{
	if (run->ready_done && (signal == SIGTERM || signal == run->drain_signal))
		reuseport_drain(run->context, DRAIN_MSEC); /* failed: it is no worse than without */
}

static void forward_signals(struct run *run)
{
	struct signalfd_siginfo info;

	while (read(run->signal_fd, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
		/* From the terminal (Ctrl-C, a new window size): the whole foreground process group
		 * has got it, the server with it. A second one would be taken for impatience. */
		if (info.ssi_code == SI_KERNEL && getpgid(run->server_pid) == getpgrp())
			continue;
		stop_newcomers(run, (int)info.ssi_signo);
		server_signal(run, (int)info.ssi_signo);
	}
}

static int next_timeout(const struct run *run)
{
	uint64_t now = now_usec(), at = run->ready_at_usec;

	if (run->drain_at_usec && (!at || run->drain_at_usec < at))
		at = run->drain_at_usec;
	if (run->look_at_usec && (!at || run->look_at_usec < at))
		at = run->look_at_usec;
	if (!at)
		return -1;
	return at <= now ? 0 : (int)((at - now + USEC_PER_MSEC - 1) / USEC_PER_MSEC);
}

static int serve(struct run *run)
{
	for (;;) {
		enum { SIGNALS, SERVER, START, NOTIFY, ADOPT, DAEMON, N };
		struct pollfd fds[N] = {
			[SIGNALS] = {.fd = run->signal_fd, .events = POLLIN},
			[SERVER] = {.fd = run->server_pidfd, .events = POLLIN},
			[START] = {.fd = run->start_fd, .events = POLLIN},
			[NOTIFY] = {.fd = run->notify_fd, .events = POLLIN},
			[ADOPT] = {.fd = run->adopt_fd, .events = POLLIN},
			[DAEMON] = {.fd = reuseport_get_fd(run->context),
				.events = (short)reuseport_get_events(run->context)},
		};
		int result;

		if (poll(fds, N, next_timeout(run)) < 0 && errno != EINTR) {
			run_complain("cannot wait for events: %s", strerror(errno));
			return EXIT_LAUNCHER;
		}
		/* What the daemon says of its listeners comes before what the server binds. */
		if (fds[DAEMON].revents)
			reuseport_dispatch(run->context, 0);
		/* Why the server could not be executed comes before its exit, and what it said
		 * before it went is still to be said. */
		if (fds[START].revents)
			on_start_event(run);
		if (fds[ADOPT].revents & POLLIN)
			adopt_read(run);
		else if (fds[ADOPT].revents)
			close_fd(&run->adopt_fd); /* nobody is left who could ask */
		if (fds[NOTIFY].revents)
			for (int i = 0; i < 64 && notify_read(run) > 0; i++)
				; /* the rest is for the next round: signals wait, too */
		if (fds[SERVER].revents) {
			result = server_reap(run);
			if (result >= 0)
				return result;
		}
		if (fds[SIGNALS].revents)
			forward_signals(run);
		if (run->look_at_usec && now_usec() >= run->look_at_usec)
			wait_look(run);
		if (run->ready_at_usec && now_usec() >= run->ready_at_usec) {
			wait_join_all(run);
			run_become_ready(run);
		}
		if (run->drain_at_usec && now_usec() >= run->drain_at_usec) {
			run->drain_at_usec = 0;
			server_signal(run, run->drain_signal);
		}
	}
}

static int launch(struct run *run)
{
	static const struct reuseport_callbacks callbacks = {
		.drain = on_drain,
		.disconnected = on_disconnected,
		.resumed = on_resumed,
		.find_socket = on_find_socket,
		.find_adopted = on_find_adopted,
	};
	const char *path = run->socket_path;
	int result;

	if (run->adopt && adopt_check() < 0)
		return EXIT_LAUNCHER;
	result = reuseport_open(&run->context, path, RUN_REQUEST_MSEC);
	if (result < 0) {
		if (!path)
			path = getenv("REUSEPORT_SOCKET");
		run_complain("cannot connect to reuseportd at %s: %s%s",
			path ? path : REUSEPORT_SOCKET_PATH, strerror(-result),
			result == -ENOENT || result == -ECONNREFUSED ? " (is reuseportd running?)"
								     : "");
		return EXIT_LAUNCHER;
	}
	if (result == 1)
		run_complain("no reuseportd; passing on the sockets of LISTEN_FDS");
	reuseport_set_callbacks(run->context, &callbacks, run);
	if (run->ready == READY_NOTIFY) {
		result = notify_open(run);
		if (result < 0) {
			run_complain(
				"cannot make a socket for notifications: %s", strerror(-result));
			return EXIT_LAUNCHER;
		}
	}
	result = (run->adopt ? reuseport_register_adopting : reuseport_register_for)(run->context,
		run->service, run->instance, run->n_workers, run->weight, REGISTER_MSEC,
		server_start, run);
	if (result < 0) {
		if (!run->arguments_wrong)
			run_complain("%s", reuseport_error(run->context));
		server_abandon(run);
		return EXIT_LAUNCHER;
	}
	if (send(run->start_fd, "", 1, MSG_NOSIGNAL) != 1)
		run_complain("cannot start the server: %s", strerror(errno));
	return serve(run);
}

/* Descriptors 0 to 2 closed would put sockets there, for the server to print on. */
static void fill_standard_descriptors(void)
{
	int fd;

	do
		fd = open("/dev/null", O_RDWR);
	while (fd >= 0 && fd <= STDERR_FILENO);
	close_fd(&fd);
}

int main(int argc, char **argv)
{
	struct run run = {
		.n_workers = 1,
		.signal_fd = -1,
		.notify_fd = -1,
		.start_fd = -1,
		.adopt_fd = -1,
		.after_fd = -1,
		.server_pidfd = -1,
	};
	int result;

	fill_standard_descriptors();
	result = options_parse(&run, argc, argv);
	if (result <= 0)
		return result < 0 ? EXIT_USAGE : EXIT_SUCCESS;
	signal(SIGCHLD, SIG_DFL); /* ignored, it would take the exit status away */
	result = launch(&run);
	wait_done(&run);
	free(run.inodes);
	reuseport_close(run.context);
	close_fd(&run.signal_fd);
	close_fd(&run.notify_fd);
	close_fd(&run.start_fd);
	close_fd(&run.adopt_fd);
	close_fd(&run.after_fd);
	close_fd(&run.server_pidfd);
	return result;
}
