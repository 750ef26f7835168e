/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * How a server that knows nothing of reuseportd gets its sockets: as descriptors from 3 on, told by
 * one of the conventions that servers have already. LISTEN_FDS with names (sd_listen_fds(3)), NGINX
 * (the variable that nginx leaves for its own successor), or numbers in the arguments. None of them
 * says of what kind a socket is, so TCP, UDP and QUIC listeners go the same way.
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "tools/run.h"

#define FIRST_FD 3

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
			run_complain("{fd:%.*s}: workers are numbered 0 to %u", (int)length, text,
				run->n_workers - 1);
			return -EINVAL;
		}
	} else if (run->n_workers > 1) {
		run_complain(
			"{fd:%.*s}: with --workers %u say which one: {fd:%.*s:0} to {fd:%.*s:%u}",
			(int)length, text, run->n_workers, (int)length, text, (int)length, text,
			run->n_workers - 1);
		return -EINVAL;
	}
	listener = find_listener(run, text, name_length);
	if (listener < 0) {
		run_complain("{fd:%.*s}: the service has no listener of that name; it has:",
			(int)length, text);
		for (unsigned i = 0; i < reuseport_n_listeners(run->context); i++)
			run_complain("  %s (%s)", reuseport_listener_name(run->context, i),
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

void pass_free_arguments(char ***arguments)
{
	if (*arguments)
		for (char **a = *arguments; *a; a++)
			free(*a);
	free(*arguments);
}

/*
 * A server that knows nothing of the daemon makes connection IDs of its own. Where others are
 * expected its packets would go astray, which shows only when a second worker comes: said at once.
 */
static int check_connection_ids(const struct run *run)
{
	for (unsigned i = 0; i < reuseport_n_listeners(run->context); i++) {
		int mode = reuseport_listener_cid_mode(run->context, i);
		const char *name = mode == REUSEPORT_CID_QUIC_LB         ? "quic-lb"
				   : mode == REUSEPORT_CID_QUIC_LB_PLAIN ? "quic-lb-plain"
				   : mode == REUSEPORT_CID_REGISTERED    ? "registered"
									 : NULL;

		if (!name)
			continue;
		run_complain("listener %s (%s) has ConnectionID=%s, for servers that use "
			     "libreuseport; set it to nginx for nginx, else to opaque",
			reuseport_listener_name(run->context, i),
			reuseport_listener_address(run->context, i), name);
		return -EINVAL;
	}
	return 0;
}

int pass_expand_arguments(const struct run *run, char ***ret)
{
	unsigned n_listeners = reuseport_n_listeners(run->context);
	size_t n = 0, n_sockets = run->adopt ? 0 : (size_t)n_listeners * run->n_workers;
	_cleanup_(pass_free_arguments) char **arguments = NULL;
	_cleanup_free_ bool *named = NULL;

	if (check_connection_ids(run) < 0)
		return -EINVAL;
	while (run->server[n])
		n++;
	arguments = calloc(n + 1, sizeof(*arguments));
	named = calloc(n_sockets + 1, sizeof(*named));
	if (!arguments || !named)
		return -ENOMEM;
	for (size_t i = 0; i < n; i++) {
		int result;

		if (run->adopt) { /* there is no descriptor to be named */
			arguments[i] = strdup(run->server[i]);
			if (!arguments[i])
				return -ENOMEM;
			continue;
		}
		result = expand_argument(run, run->server[i], named, &arguments[i]);

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
			run_complain(
				"--pass args: no argument has {fd:%s:%zu}", name, i / n_listeners);
		else
			run_complain("--pass args: no argument has {fd:%s}", name);
		return -EINVAL;
	}
	*ret = take_pointer(arguments);
	return 0;
}

/* Puts the sockets where the server expects them. Everything is moved out of the way first, since
 * any of them may sit at a number that another one is to get. */
int pass_place_sockets(struct run *run, int *start_fd)
{
	unsigned n_listeners = reuseport_n_listeners(run->context);
	int n = run->adopt ? 0 : (int)(n_listeners * run->n_workers);
	_cleanup_free_ int *moved = calloc((size_t)n + 1, sizeof(*moved));
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

int pass_set_environment(struct run *run)
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
	if (run->pass == PASS_ARGS || run->adopt)
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
