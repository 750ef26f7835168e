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
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <systemd/sd-daemon.h>
#include <time.h>

#include "client-lib/reuseport.h"
#include "common/util.h"

#define FIRST_FD 3
#define REGISTER_MSEC 30000
#define REQUEST_MSEC 10000

enum { EXIT_USAGE = 2, EXIT_LAUNCHER = 125, EXIT_NOT_EXECUTABLE = 126, EXIT_NOT_FOUND = 127 };

enum pass { PASS_LISTEN_FDS, PASS_NGINX, PASS_ARGS };
enum ready { READY_EXEC, READY_NOTIFY, READY_DELAY };

struct run {
	/* from the command line */
	const char *service;
	const char *instance;
	const char *socket_path;
	unsigned n_workers;
	unsigned weight;
	enum pass pass;
	enum ready ready;
	uint64_t ready_usec; /* READY_DELAY */
	int drain_signal;    /* 0: the default of the way to pass sockets */
	char **server;       /* argv of the server */

	/* while it runs */
	struct reuseport *context;
	int signal_fd;
	int notify_fd;
	char notify_name[64]; /* as in NOTIFY_SOCKET */
	int start_fd;         /* our end of the pair at which the child waits */
	int server_pidfd;
	pid_t server_pid;
	sigset_t original_mask;
	bool arguments_wrong; /* and already said so */
	bool executed;
	bool ready_done;
	bool stopping;
	bool drain_pending;     /* came before the server was executed */
	uint64_t ready_at_usec; /* CLOCK_MONOTONIC; 0: no timer */
};

static void complain(const char *format, ...) _printf_(1, 2);
static void complain(const char *format, ...)
{
	va_list arguments;
	char text[1024];

	/* One write: launchers often share a terminal or a log. */
	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	dprintf(STDERR_FILENO, "reuseport-run: %s\n", text);
}

static uint64_t now_usec(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * USEC_PER_SEC + (uint64_t)now.tv_nsec / NSEC_PER_USEC;
}

static int pidfd_open_pid(pid_t pid)
{
	return (int)syscall(SYS_pidfd_open, pid, 0);
}

static void signal_server(struct run *run, int signal)
{
	if (run->server_pidfd >= 0 &&
		syscall(SYS_pidfd_send_signal, run->server_pidfd, signal, NULL, 0) < 0 &&
		errno != ESRCH)
		complain("cannot send %s to the server: %s", strsignal(signal), strerror(errno));
}

/* The server's arguments */

/* Number that the server will see for a socket: worker by worker, in the order of the listeners. */
static int passed_fd(const struct run *run, unsigned worker, unsigned listener)
{
	return FIRST_FD + (int)(worker * reuseport_n_listeners(run->context) + listener);
}

static int find_listener(const struct run *run, const char *name, size_t length)
{
	for (unsigned i = 0; i < reuseport_n_listeners(run->context); i++) {
		const char *candidate = reuseport_listener_name(run->context, i);

		if (strlen(candidate) == length && !memcmp(candidate, name, length))
			return (int)i;
	}
	return -ENOENT;
}

/* What stands between "{fd:" and "}": NAME, or NAME:K for worker K. */
static int resolve(const struct run *run, const char *text, size_t length)
{
	const char *colon = memrchr(text, ':', length);
	unsigned long worker = 0;
	size_t name_length = length;
	int listener;

	if (colon) {
		char *end;

		name_length = (size_t)(colon - text);
		worker = strtoul(colon + 1, &end, 10);
		if (colon[1] < '0' || colon[1] > '9' || end != text + length ||
			worker >= run->n_workers) {
			complain("{fd:%.*s}: workers are numbered 0 to %u", (int)length, text,
				run->n_workers - 1);
			return -EINVAL;
		}
	} else if (run->n_workers > 1) {
		complain("{fd:%.*s}: with --workers %u say which one: {fd:%.*s:0} to {fd:%.*s:%u}",
			(int)length, text, run->n_workers, (int)length, text, (int)length, text,
			run->n_workers - 1);
		return -EINVAL;
	}
	listener = find_listener(run, text, name_length);
	if (listener < 0) {
		complain("{fd:%.*s}: the service has no listener of that name; it has:",
			(int)length, text);
		for (unsigned i = 0; i < reuseport_n_listeners(run->context); i++)
			complain("  %s (%s)", reuseport_listener_name(run->context, i),
				reuseport_listener_address(run->context, i));
		return -EINVAL;
	}
	return passed_fd(run, (unsigned)worker, (unsigned)listener);
}

/* Replaces each {fd:...} in one argument; notes in `named` which descriptors were asked for. */
static int expand_argument(const struct run *run, const char *argument, bool *named, char **ret)
{
	_cleanup_free_ char *text = NULL;
	size_t size = 0;
	FILE *out = open_memstream(&text, &size);
	int result = 0;

	if (!out)
		return -ENOMEM;
	while (*argument) {
		const char *open = strstr(argument, "{fd:");
		const char *close = open ? strchr(open, '}') : NULL;

		if (!close) {
			fputs(argument, out);
			break;
		}
		fwrite(argument, 1, (size_t)(open - argument), out);
		result = resolve(run, open + 4, (size_t)(close - open - 4));
		if (result < 0)
			break;
		named[result - FIRST_FD] = true;
		fprintf(out, "%d", result);
		argument = close + 1;
	}
	if (fclose(out) != 0 && result >= 0)
		result = -ENOMEM;
	if (result < 0)
		return result;
	*ret = take_pointer(text);
	return 0;
}

static void free_arguments(char ***arguments)
{
	if (*arguments)
		for (char **a = *arguments; *a; a++)
			free(*a);
	free(*arguments);
}

static int expand_arguments(const struct run *run, char ***ret)
{
	unsigned n_listeners = reuseport_n_listeners(run->context);
	size_t n = 0, n_sockets = (size_t)n_listeners * run->n_workers;
	_cleanup_(free_arguments) char **arguments = NULL;
	_cleanup_free_ bool *named = NULL;

	while (run->server[n])
		n++;
	arguments = calloc(n + 1, sizeof(*arguments));
	named = calloc(n_sockets, sizeof(*named));
	if (!arguments || !named)
		return -ENOMEM;
	for (size_t i = 0; i < n; i++) {
		int result = expand_argument(run, run->server[i], named, &arguments[i]);

		if (result < 0)
			return result;
	}
	/* A socket that the server doesn't know of would still get its share of connections. */
	for (size_t i = 0; run->pass == PASS_ARGS && i < n_sockets; i++) {
		const char *name =
			reuseport_listener_name(run->context, (unsigned)(i % n_listeners));

		if (named[i])
			continue;
		if (run->n_workers > 1)
			complain("--pass args: no argument has {fd:%s:%zu}", name, i / n_listeners);
		else
			complain("--pass args: no argument has {fd:%s}", name);
		return -EINVAL;
	}
	*ret = take_pointer(arguments);
	return 0;
}

/* The child */

/* Puts the sockets where the server expects them. Everything is moved out of the way first, since
 * any of them may sit at a number that another one is to get. */
static int place_sockets(struct run *run, int *start_fd)
{
	unsigned n_listeners = reuseport_n_listeners(run->context);
	int n = (int)(n_listeners * run->n_workers);
	_cleanup_free_ int *moved = calloc((size_t)n, sizeof(*moved));
	int fd;

	if (!moved)
		return -ENOMEM;
	fd = fcntl(*start_fd, F_DUPFD_CLOEXEC, FIRST_FD + n);
	if (fd < 0)
		return -errno;
	*start_fd = fd;
	for (int i = 0; i < n; i++) {
		int socket = reuseport_socket(
			run->context, (unsigned)i / n_listeners, (unsigned)i % n_listeners);
		int flags;

		/* nginx takes inherited sockets for non-blocking; everybody else expects what
		 * systemd passes, which is blocking (NonBlocking= in systemd.service(5)). */
		flags = fcntl(socket, F_GETFL);
		if (flags < 0 || fcntl(socket, F_SETFL,
					 run->pass == PASS_NGINX ? flags | O_NONBLOCK
								 : flags & ~O_NONBLOCK) < 0)
			return -errno;
		moved[i] = fcntl(socket, F_DUPFD_CLOEXEC, FIRST_FD + n);
		if (moved[i] < 0)
			return -errno;
	}
	for (int i = 0; i < n; i++)
		if (dup2(moved[i], FIRST_FD + i) < 0)
			return -errno;
	return 0;
}

static int set_number(const char *name, long value)
{
	char text[32];

	snprintf(text, sizeof(text), "%ld", value);
	return setenv(name, text, 1) < 0 ? -errno : 0;
}

static int set_environment(struct run *run)
{
	unsigned n_listeners = reuseport_n_listeners(run->context);
	unsigned n = n_listeners * run->n_workers;
	_cleanup_free_ char *names = NULL;
	size_t size = 0;
	FILE *out;

	/* Ours, if we have any, are not the server's. */
	unsetenv("LISTEN_FDS");
	unsetenv("LISTEN_PID");
	unsetenv("LISTEN_FDNAMES");
	unsetenv("NGINX");
	if (run->ready == READY_NOTIFY) {
		if (setenv("NOTIFY_SOCKET", run->notify_name, 1) < 0)
			return -errno;
		if (getenv("WATCHDOG_PID") && set_number("WATCHDOG_PID", getpid()) < 0)
			return -ENOMEM;
	} else {
		unsetenv("NOTIFY_SOCKET");
		unsetenv("WATCHDOG_USEC");
		unsetenv("WATCHDOG_PID");
	}
	if (run->pass == PASS_ARGS)
		return 0;

	out = open_memstream(&names, &size);
	if (!out)
		return -ENOMEM;
	for (unsigned i = 0; i < n; i++) {
		if (run->pass == PASS_NGINX)
			fprintf(out, "%d;", FIRST_FD + (int)i);
		else
			fprintf(out, "%s%s", i ? ":" : "",
				reuseport_listener_name(run->context, i % n_listeners));
	}
	if (fclose(out) != 0)
		return -ENOMEM;
	if (run->pass == PASS_NGINX)
		return setenv("NGINX", names, 1) < 0 ? -errno : 0;
	if (setenv("LISTEN_FDNAMES", names, 1) < 0 || set_number("LISTEN_FDS", (long)n) < 0 ||
		set_number("LISTEN_PID", getpid()) < 0)
		return -ENOMEM;
	return 0;
}

/* Never returns: becomes the server, or tells the launcher by start_fd why not. */
static void become_server(struct run *run, char **arguments, int start_fd)
{
	char go;
	int result;

	/* The end of the pair without an octet: the launcher gave up, or died. */
	if (recv(start_fd, &go, 1, 0) != 1)
		_exit(EXIT_LAUNCHER);
	result = place_sockets(run, &start_fd);
	if (result == 0)
		result = set_environment(run);
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
static int start_server(struct reuseport *context, void *user_data)
{
	struct run *run = user_data;
	_cleanup_(free_arguments) char **arguments = NULL;
	_cleanup_close_ int child_fd = -1, pidfd = -1;
	sigset_t signals;
	int pair[2], result;
	pid_t pid;

	result = expand_arguments(run, &arguments);
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
	for (unsigned w = 0; w < reuseport_n_workers(context); w++)
		for (unsigned l = 0; l < reuseport_n_listeners(context); l++) {
			int fd = reuseport_take_socket(context, w, l);

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
static void abandon_server(struct run *run)
{
	close_fd(&run->start_fd);
	if (run->server_pid > 0)
		while (waitpid(run->server_pid, NULL, 0) < 0 && errno == EINTR)
			;
}

/* Readiness and drain */

static void become_ready(struct run *run)
{
	run->ready_at_usec = 0;
	if (run->ready_done) { /* once more: the end of a RELOADING=1 */
		sd_notify(0, "READY=1");
		return;
	}
	if (reuseport_ready(run->context, REQUEST_MSEC) < 0) {
		complain("%s", reuseport_error(run->context));
		return;
	}
	run->ready_done = true;
	sd_notify(0, "READY=1");
}

static void on_drain(struct reuseport *context, enum reuseport_drain_reason reason,
	uint64_t deadline_usec, void *user_data)
{
	struct run *run = user_data;

	if (!run->executed) {
		run->drain_pending = true;
		return;
	}
	signal_server(run, run->drain_signal);
}

static void on_disconnected(struct reuseport *context, int error, const char *text, void *user_data)
{
	complain("reuseportd is gone (%s); the server goes on", text);
}

static void on_executed(struct run *run)
{
	run->executed = true;
	if (run->drain_pending) {
		run->drain_pending = false;
		signal_server(run, run->drain_signal);
	}
	if (run->ready == READY_EXEC)
		become_ready(run);
	else if (run->ready == READY_DELAY)
		run->ready_at_usec = now_usec() + run->ready_usec;
}

/* The child either closed its end by executing the server, or sent the errno of the attempt. */
static void on_start_event(struct run *run)
{
	int error;
	ssize_t size = recv(run->start_fd, &error, sizeof(error), MSG_DONTWAIT);

	if (size < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	close_fd(&run->start_fd);
	if (size == (ssize_t)sizeof(error))
		complain("cannot execute %s: %s", run->server[0], strerror(-error));
	else if (size == 0)
		on_executed(run);
}

/* The server's NOTIFY_SOCKET */

static int open_notify(struct run *run)
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
	if (ready)
		become_ready(run);
	if (stopping && !run->stopping) {
		run->stopping = true;
		reuseport_drain(run->context, REQUEST_MSEC); /* new connections go elsewhere now */
	}
	if (used)
		sd_notify(0, forward);
}

/* 1: a message was read (and perhaps ignored), 0: there is none. */
static int read_notification(struct run *run)
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

/* The loop */

static void forward_signals(struct run *run)
{
	struct signalfd_siginfo info;

	while (read(run->signal_fd, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
		/* From the terminal (Ctrl-C, a new window size): the whole foreground process group
		 * has got it, the server with it. A second one would be taken for impatience. */
		if (info.ssi_code == SI_KERNEL && getpgid(run->server_pid) == getpgrp())
			continue;
		signal_server(run, (int)info.ssi_signo);
	}
}

/* The server's exit status; -EAGAIN while it runs. */
static int reap(struct run *run)
{
	siginfo_t info = {};

	if (waitid(P_PID, (id_t)run->server_pid, &info, WEXITED | WNOHANG) < 0)
		return errno == EINTR ? -EAGAIN : EXIT_LAUNCHER;
	if (info.si_pid == 0)
		return -EAGAIN;
	return info.si_code == CLD_EXITED ? info.si_status : 128 + info.si_status;
}

static int next_timeout(const struct run *run)
{
	uint64_t now = now_usec();

	if (!run->ready_at_usec)
		return -1;
	return run->ready_at_usec <= now
		       ? 0
		       : (int)((run->ready_at_usec - now + USEC_PER_MSEC - 1) / USEC_PER_MSEC);
}

static int serve(struct run *run)
{
	for (;;) {
		enum { SIGNALS, SERVER, START, NOTIFY, DAEMON, N };
		struct pollfd fds[N] = {
			[SIGNALS] = {.fd = run->signal_fd, .events = POLLIN},
			[SERVER] = {.fd = run->server_pidfd, .events = POLLIN},
			[START] = {.fd = run->start_fd, .events = POLLIN},
			[NOTIFY] = {.fd = run->notify_fd, .events = POLLIN},
			[DAEMON] = {.fd = reuseport_get_fd(run->context),
				.events = (short)reuseport_get_events(run->context)},
		};
		int result;

		if (poll(fds, N, next_timeout(run)) < 0 && errno != EINTR) {
			complain("cannot wait for events: %s", strerror(errno));
			return EXIT_LAUNCHER;
		}
		/* Why the server could not be executed comes before its exit, and what it said
		 * before it went is still to be said. */
		if (fds[START].revents)
			on_start_event(run);
		if (fds[NOTIFY].revents)
			for (int i = 0; i < 64 && read_notification(run) > 0; i++)
				; /* the rest is for the next round: signals wait, too */
		if (fds[SERVER].revents) {
			result = reap(run);
			if (result >= 0)
				return result;
		}
		if (fds[SIGNALS].revents)
			forward_signals(run);
		if (fds[DAEMON].revents)
			reuseport_dispatch(run->context, 0);
		if (run->ready_at_usec && now_usec() >= run->ready_at_usec)
			become_ready(run);
	}
}

static int launch(struct run *run)
{
	static const struct reuseport_callbacks callbacks = {
		.drain = on_drain,
		.disconnected = on_disconnected,
	};
	const char *path = run->socket_path;
	int result;

	result = reuseport_open(&run->context, path, REQUEST_MSEC);
	if (result < 0) {
		if (!path)
			path = getenv("REUSEPORT_SOCKET");
		complain("cannot connect to reuseportd at %s: %s%s",
			path ? path : REUSEPORT_SOCKET_PATH, strerror(-result),
			result == -ENOENT || result == -ECONNREFUSED ? " (is reuseportd running?)"
								     : "");
		return EXIT_LAUNCHER;
	}
	if (result == 1)
		complain("no reuseportd; passing on the sockets of LISTEN_FDS");
	reuseport_set_callbacks(run->context, &callbacks, run);
	if (run->ready == READY_NOTIFY) {
		result = open_notify(run);
		if (result < 0) {
			complain("cannot make a socket for notifications: %s", strerror(-result));
			return EXIT_LAUNCHER;
		}
	}
	result = reuseport_register_for(run->context, run->service, run->instance, run->n_workers,
		run->weight, REGISTER_MSEC, start_server, run);
	if (result < 0) {
		if (!run->arguments_wrong)
			complain("%s", reuseport_error(run->context));
		abandon_server(run);
		return EXIT_LAUNCHER;
	}
	if (send(run->start_fd, "", 1, MSG_NOSIGNAL) != 1)
		complain("cannot start the server: %s", strerror(errno));
	return serve(run);
}

/* The command line */

static void print_help(void)
{
	fputs("usage: reuseport-run --service NAME [OPTION...] -- SERVER [ARGUMENT...]\n"
	      "Run a server on sockets of reuseportd.\n\n"
	      "      --service NAME        service whose listeners the server gets\n"
	      "      --instance NAME       stable name of this server; once ready, it replaces\n"
	      "                            the one that had the name before\n"
	      "      --workers N           sockets for each listener (1)\n"
	      "      --weight N            share of new connections, 1 to 1000 (100)\n"
	      "      --pass HOW            listen-fds (default): LISTEN_FDS and LISTEN_FDNAMES,\n"
	      "                            nginx: NGINX=\"3;4;\", args: {fd:NAME} in the arguments\n"
	      "      --ready WHEN          exec (default): as soon as the server is executed,\n"
	      "                            notify: when it sends READY=1, or so many seconds later\n"
	      "      --drain-signal SIGNAL what the server gets when it is to finish (TERM;\n"
	      "                            with --pass nginx: QUIT)\n"
	      "      --socket PATH         socket of reuseportd (" REUSEPORT_SOCKET_PATH ")\n"
	      "      --help, --version\n\n"
	      "{fd:NAME} in any argument becomes the number of the listener's descriptor; with\n"
	      "--workers N write {fd:NAME:K}, K from 0. Exits with the status of the server (128 + N\n"
	      "when signal N ended it), 127 or 126 when it can't be executed, 125 when\n"
	      "reuseport-run itself fails, 2 for a wrong command line.\n",
		stdout);
}

static int parse_number(
	const char *option, const char *text, unsigned min, unsigned max, unsigned *ret)
{
	unsigned long value;
	char *end;

	errno = 0;
	value = strtoul(text, &end, 10);
	if (errno || *text < '0' || *text > '9' || *end || value < min || value > max) {
		complain("%s %s: must be a number from %u to %u", option, text, min, max);
		return -EINVAL;
	}
	*ret = (unsigned)value;
	return 0;
}

static int parse_signal(const char *text, int *ret)
{
	const char *name = strncmp(text, "SIG", 3) ? text : text + 3;
	unsigned number;

	for (int i = 1; i < NSIG; i++) {
		const char *known = sigabbrev_np(i);

		if (known && !strcmp(known, name)) {
			*ret = i;
			return 0;
		}
	}
	if (*text < '0' || *text > '9') {
		complain("--drain-signal %s: no such signal", text);
		return -EINVAL;
	}
	if (parse_number("--drain-signal", text, 1, NSIG - 1, &number) < 0)
		return -EINVAL;
	*ret = (int)number;
	return 0;
}

static int parse_pass(const char *text, enum pass *ret)
{
	static const char *const names[] = {
		[PASS_LISTEN_FDS] = "listen-fds", [PASS_NGINX] = "nginx", [PASS_ARGS] = "args"};

	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		if (!strcmp(text, names[i])) {
			*ret = (enum pass)i;
			return 0;
		}
	complain("--pass %s: must be listen-fds, nginx or args", text);
	return -EINVAL;
}

static int parse_ready(struct run *run, const char *text)
{
	double seconds;
	char *end;

	if (!strcmp(text, "exec")) {
		run->ready = READY_EXEC;
		return 0;
	}
	if (!strcmp(text, "notify")) {
		run->ready = READY_NOTIFY;
		return 0;
	}
	seconds = strtod(text, &end);
	if (*text < '0' || *text > '9' || *end || !(seconds >= 0 && seconds <= 86400)) {
		complain("--ready %s: must be notify, exec or a number of seconds", text);
		return -EINVAL;
	}
	run->ready = READY_DELAY;
	run->ready_usec = (uint64_t)(seconds * (double)USEC_PER_SEC);
	return 0;
}

/* 1: go on, 0: done, negative: wrong. */
static int parse_arguments(struct run *run, int argc, char **argv)
{
	static const struct option options[] = {
		{"service", required_argument, NULL, 's'},
		{"instance", required_argument, NULL, 'i'},
		{"workers", required_argument, NULL, 'n'},
		{"weight", required_argument, NULL, 'w'},
		{"pass", required_argument, NULL, 'p'},
		{"ready", required_argument, NULL, 'r'},
		{"drain-signal", required_argument, NULL, 'd'},
		{"socket", required_argument, NULL, 'S'},
		{"help", no_argument, NULL, 'h'},
		{"version", no_argument, NULL, 'V'},
		{},
	};
	int option, result = 0;

	while (result == 0 && (option = getopt_long(argc, argv, "+h", options, NULL)) >= 0) {
		switch (option) {
		case 's':
			run->service = optarg;
			break;
		case 'i':
			run->instance = optarg;
			break;
		case 'n':
			result = parse_number("--workers", optarg, 1, 1024, &run->n_workers);
			break;
		case 'w':
			result = parse_number("--weight", optarg, 1, 1000, &run->weight);
			break;
		case 'p':
			result = parse_pass(optarg, &run->pass);
			break;
		case 'r':
			result = parse_ready(run, optarg);
			break;
		case 'd':
			result = parse_signal(optarg, &run->drain_signal);
			break;
		case 'S':
			run->socket_path = optarg;
			break;
		case 'h':
			print_help();
			return 0;
		case 'V':
			puts("reuseport-run " VERSION);
			return 0;
		default:
			return -EINVAL; /* getopt_long() has said it */
		}
	}
	if (result < 0)
		return result;
	if (!run->service) {
		complain("--service is missing; see --help");
		return -EINVAL;
	}
	run->server = argv + optind;
	if (!*run->server) {
		complain("the server to run is missing; see --help");
		return -EINVAL;
	}
	if (!run->drain_signal)
		run->drain_signal = run->pass == PASS_NGINX ? SIGQUIT : SIGTERM;
	return 1;
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
		.server_pidfd = -1,
	};
	int result;

	fill_standard_descriptors();
	result = parse_arguments(&run, argc, argv);
	if (result <= 0)
		return result < 0 ? EXIT_USAGE : EXIT_SUCCESS;
	signal(SIGCHLD, SIG_DFL); /* ignored, it would take the exit status away */
	result = launch(&run);
	reuseport_close(run.context);
	close_fd(&run.signal_fd);
	close_fd(&run.notify_fd);
	close_fd(&run.start_fd);
	close_fd(&run.server_pidfd);
	return result;
}
