/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * One Varlink call, from connect() to the exit status. The daemon answers at once, so whoever waits
 * longer than the deadline waits for a daemon that hangs, and is told so.
 */
#include "tools/ctl.h"

#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>

#include "common/util.h"
#include "proto/varlink.h"

#define INTERFACE "io.reuseport.Control"
#define VARLINK "org.varlink.service"
#define DEADLINE_SEC 90
#define REPLY_OCTETS (64 * 1024 * 1024)

void ctl_error(const char *format, ...)
{
	va_list arguments;

	fflush(stdout);
	fputs("reuseportctl: ", stderr);
	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fputc('\n', stderr);
}

static int64_t now_msec(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static const char *advice(int error)
{
	switch (error) {
	case ENOENT:
	case ECONNREFUSED:
		return " (is reuseportd running? --socket or $REUSEPORT_CONTROL_SOCKET names "
		       "another place)";
	case EACCES:
	case EPERM:
		return " (the socket's permissions keep this user out; try as root)";
	case EAGAIN:
		return " (reuseportd does not accept connections; is it stopped?)";
	default:
		return "";
	}
}

static int connect_to(const char *path, const char *what, int *ret)
{
	const struct timeval deadline = {.tv_sec = DEADLINE_SEC};
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	_cleanup_close_ int fd = -1;

	if (!*path || strlen(path) >= sizeof(address.sun_path)) {
		ctl_error("cannot %s: \"%s\" cannot be a Unix socket (1 to %zu octets)", what, path,
			sizeof(address.sun_path) - 1);
		return CTL_USAGE;
	}
	memcpy(address.sun_path, path, strlen(path) + 1);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0) {
		ctl_error("cannot %s: cannot make a socket: %s", what, strerror(errno));
		return CTL_FAILED;
	}
	/* Bounds connect(2) and send(2), unix(7). */
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &deadline, sizeof(deadline));
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
		int error = errno;

		ctl_error("cannot %s: cannot connect to reuseportd at %s: %s%s", what, path,
			strerror(error), advice(error));
		return error == EACCES || error == EPERM ? CTL_DENIED : CTL_UNREACHABLE;
	}
	*ret = take_fd(&fd);
	return CTL_OK;
}

static int send_call(int fd, const json_t *call)
{
	_cleanup_free_ char *text = NULL;
	size_t length = 0, sent = 0;
	int result = varlink_encode(call, &text, &length);

	if (result < 0)
		return result;
	while (sent < length) {
		ssize_t n = send(fd, text + sent, length - sent, MSG_NOSIGNAL);

		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0)
			sent += (size_t)n;
	}
	return 0;
}

/* Negative errno: -ETIMEDOUT, -ECONNRESET when the daemon hung up, -EBADMSG, of recv(2). */
static int receive_reply(int fd, json_t **ret)
{
	_cleanup_(varlink_done) struct varlink_buffer buffer = {0};
	int64_t end = now_msec() + DEADLINE_SEC * 1000;

	for (;;) {
		struct pollfd wait = {.fd = fd, .events = POLLIN};
		int64_t left = end - now_msec();
		int result = varlink_next(&buffer, ret, NULL);

		if (result)
			return result < 0 ? result : 0;
		if (left <= 0)
			return -ETIMEDOUT;
		if (poll(&wait, 1, (int)left) < 0 && errno != EINTR)
			return -errno;
		result = varlink_fill(&buffer, fd, REPLY_OCTETS);
		if (result == 0)
			return -ECONNRESET;
		if (result < 0 && result != -EAGAIN)
			return result;
	}
}

static int tell_lost(const char *path, const char *what, int error)
{
	if (error == -ETIMEDOUT || error == -EAGAIN)
		ctl_error("cannot %s: reuseportd at %s did not answer within %d seconds (it hangs "
			  "or is stopped)",
			what, path, DEADLINE_SEC);
	else if (error == -ECONNRESET || error == -EPIPE)
		ctl_error("cannot %s: reuseportd at %s closed the connection without an answer "
			  "(too many connections of this user, or it ended; see its log)",
			what, path);
	else if (error == -EBADMSG)
		ctl_error("cannot %s: what answers at %s does not speak Varlink", what, path);
	else
		ctl_error(
			"cannot %s: talking to reuseportd at %s: %s", what, path, strerror(-error));
	return CTL_UNREACHABLE;
}

static const char *text_of(const json_t *parameters, const char *key)
{
	const char *text = json_string_value(json_object_get(parameters, key));

	return text ? text : "no reason given";
}

static int tell_error(
	const char *path, const char *what, const char *error, const json_t *parameters)
{
	if (strcmp(error, INTERFACE ".PermissionDenied") == 0) {
		ctl_error("cannot %s: reuseportd at %s denies it: %s", what, path,
			text_of(parameters, "message"));
		return CTL_DENIED;
	}
	if (strcmp(error, INTERFACE ".Failed") == 0)
		ctl_error("cannot %s: %s", what, text_of(parameters, "message"));
	else if (strcmp(error, INTERFACE ".NoSuchWorker") == 0)
		ctl_error(
			"cannot %s: reuseportd has no such worker (reuseportctl status lists them)",
			what);
	else if (strcmp(error, INTERFACE ".NoSuchService") == 0)
		ctl_error(
			"cannot %s: reuseportd has no service \"%s\" (reuseportctl status lists them)",
			what, text_of(parameters, "name"));
	else if (strcmp(error, VARLINK ".InvalidParameter") == 0)
		ctl_error("cannot %s: reuseportd at %s does not take this value for \"%s\"", what,
			path, text_of(parameters, "parameter"));
	else if (strncmp(error, VARLINK ".", strlen(VARLINK) + 1) == 0)
		ctl_error("cannot %s: the daemon at %s does not know how (%s): is it older than "
			  "reuseportctl " VERSION "?",
			what, path, error);
	else
		ctl_error("cannot %s: reuseportd at %s answered %s", what, path, error);
	return CTL_FAILED;
}

int ctl_call(
	const char *path, const char *method, json_t *parameters, const char *what, json_t **ret)
{
	_cleanup_close_ int fd = -1;
	json_t *call, *reply = NULL;
	const char *error;
	int result;

	call = json_pack("{s:s+, s:o}", "method", INTERFACE ".", method, "parameters", parameters);
	if (!call) {
		ctl_error("cannot %s: not text in UTF-8, or out of memory", what);
		return CTL_FAILED;
	}
	result = connect_to(path, what, &fd);
	if (result != CTL_OK) {
		json_decref(call);
		return result;
	}
	result = send_call(fd, call);
	json_decref(call);
	if (result >= 0)
		result = receive_reply(fd, &reply);
	if (result < 0)
		return tell_lost(path, what, result);

	error = json_string_value(json_object_get(reply, "error"));
	parameters = json_object_get(reply, "parameters");
	result = CTL_OK;
	if (error)
		result = tell_error(path, what, error, parameters);
	else
		*ret = json_is_object(parameters) ? json_incref(parameters) : json_object();
	json_decref(reply);
	return result;
}
