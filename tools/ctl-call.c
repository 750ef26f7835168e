/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A Varlink call, from connect() to the exit status: whole, or in parts for those who must not
 * stand still meanwhile. The daemon answers at once, so whoever waits longer than the deadline
 * waits for a daemon that hangs, and is told so.
 */
#include "tools/ctl.h"

#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

#include "tools/ctl-field.h"

#define INTERFACE "io.reuseport.Control"
#define VARLINK "org.varlink.service"
#define DEADLINE_SEC 90
#define REPLY_OCTETS (64 * 1024 * 1024)

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

static int connect_to(const char *path, int wait_msec, const char *what, int *ret, char **ret_error)
{
	const struct timeval deadline = {
		.tv_sec = wait_msec / 1000, .tv_usec = wait_msec % 1000 * 1000};
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	_cleanup_close_ int fd = -1;

	if (!*path || strlen(path) >= sizeof(address.sun_path)) {
		*ret_error =
			ctl_format("cannot %s: \"%s\" cannot be a Unix socket (1 to %zu octets)",
				what, path, sizeof(address.sun_path) - 1);
		return CTL_USAGE;
	}
	memcpy(address.sun_path, path, strlen(path) + 1);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0) {
		*ret_error =
			ctl_format("cannot %s: cannot make a socket: %s", what, strerror(errno));
		return CTL_FAILED;
	}
	/* Bounds connect(2) and send(2), unix(7). */
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &deadline, sizeof(deadline));
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
		int error = errno;

		*ret_error = ctl_format("cannot %s: cannot connect to reuseportd at %s: %s%s", what,
			path, strerror(error), advice(error));
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

void ctl_end(struct ctl_connection *connection)
{
	close_fd(&connection->fd);
	varlink_done(&connection->received);
	connection->received = (struct varlink_buffer){0};
}

int ctl_next(struct ctl_connection *connection, json_t **ret)
{
	for (;;) {
		int result = varlink_next(&connection->received, ret, NULL);

		if (result)
			return result;
		result = varlink_fill(&connection->received, connection->fd, REPLY_OCTETS);
		if (result == 0)
			return -ECONNRESET;
		if (result == -EAGAIN)
			return 0;
		if (result < 0)
			return result;
	}
}

int ctl_lost(const char *path, const char *what, int error, char **ret_error)
{
	if (error == -ETIMEDOUT || error == -EAGAIN)
		*ret_error = ctl_format(
			"cannot %s: reuseportd at %s did not answer in time (it hangs or is "
			"stopped)",
			what, path);
	else if (error == -ECONNRESET || error == -EPIPE)
		*ret_error = ctl_format(
			"cannot %s: reuseportd at %s closed the connection without an answer "
			"(too many connections of this user, or it ended; see its log)",
			what, path);
	else if (error == -EBADMSG)
		*ret_error = ctl_format(
			"cannot %s: what answers at %s does not speak Varlink", what, path);
	else
		*ret_error = ctl_format(
			"cannot %s: talking to reuseportd at %s: %s", what, path, strerror(-error));
	return CTL_UNREACHABLE;
}

static const char *text_of(const json_t *parameters, const char *key)
{
	const char *text = json_string_value(json_object_get(parameters, key));

	return text ? text : "no reason given";
}

static int judge_error(const char *path, const char *what, const char *error,
	const json_t *parameters, char **ret_error)
{
	if (strcmp(error, INTERFACE ".PermissionDenied") == 0) {
		*ret_error = ctl_format("cannot %s: reuseportd at %s denies it: %s", what, path,
			text_of(parameters, "message"));
		return CTL_DENIED;
	}
	if (strcmp(error, INTERFACE ".Failed") == 0)
		*ret_error = ctl_format("cannot %s: %s", what, text_of(parameters, "message"));
	else if (strcmp(error, INTERFACE ".NoSuchWorker") == 0)
		*ret_error = ctl_format(
			"cannot %s: reuseportd has no such worker (reuseportctl status lists them)",
			what);
	else if (strcmp(error, INTERFACE ".NoSuchService") == 0)
		*ret_error = ctl_format(
			"cannot %s: reuseportd has no service \"%s\" (reuseportctl status lists them)",
			what, text_of(parameters, "name"));
	else if (strcmp(error, VARLINK ".InvalidParameter") == 0)
		*ret_error = ctl_format(
			"cannot %s: reuseportd at %s does not take this value for \"%s\"", what,
			path, text_of(parameters, "parameter"));
	else if (strncmp(error, VARLINK ".", strlen(VARLINK) + 1) == 0)
		*ret_error = ctl_format(
			"cannot %s: the daemon at %s does not know how (%s): is it older than "
			"reuseportctl " VERSION "?",
			what, path, error);
	else
		*ret_error =
			ctl_format("cannot %s: reuseportd at %s answered %s", what, path, error);
	return CTL_FAILED;
}

int ctl_judge(
	const char *path, const char *what, const json_t *message, json_t **ret, char **ret_error)
{
	const char *error = json_string_value(json_object_get(message, "error"));
	json_t *parameters = json_object_get(message, "parameters");

	if (error)
		return judge_error(path, what, error, parameters, ret_error);
	*ret = json_is_object(parameters) ? json_incref(parameters) : json_object();
	return CTL_OK;
}

int ctl_begin(const char *path, const char *method, json_t *parameters, bool more, int wait_msec,
	const char *what, struct ctl_connection *ret, char **ret_error)
{
	json_t *call =
		json_pack("{s:s+, s:o}", "method", INTERFACE ".", method, "parameters", parameters);
	int result;

	*ret = (struct ctl_connection)CTL_CONNECTION_INIT;
	if (!call || (more && json_object_set_new(call, "more", json_true()) < 0)) {
		json_decref(call);
		*ret_error = ctl_format("cannot %s: not text in UTF-8, or out of memory", what);
		return CTL_FAILED;
	}
	result = connect_to(path, wait_msec, what, &ret->fd, ret_error);
	if (result == CTL_OK) {
		int error = send_call(ret->fd, call);

		if (error < 0) {
			result = ctl_lost(path, what, error, ret_error);
			ctl_end(ret);
		}
	}
	json_decref(call);
	return result;
}

/* 1, -ETIMEDOUT, or as ctl_next(). */
static int wait_reply(struct ctl_connection *connection, int wait_msec, json_t **ret)
{
	int64_t end = ctl_now_msec() + wait_msec;

	for (;;) {
		struct pollfd wait = {.fd = connection->fd, .events = POLLIN};
		int64_t left = end - ctl_now_msec();
		int result = ctl_next(connection, ret);

		if (result)
			return result;
		if (left <= 0)
			return -ETIMEDOUT;
		if (poll(&wait, 1, (int)left) < 0 && errno != EINTR)
			return -errno;
	}
}

int ctl_try(const char *path, const char *method, json_t *parameters, const char *what,
	int wait_msec, json_t **ret, char **ret_error)
{
	_cleanup_(ctl_end) struct ctl_connection connection;
	json_t *reply = NULL;
	int result =
		ctl_begin(path, method, parameters, false, wait_msec, what, &connection, ret_error);

	if (result == CTL_OK) {
		int received = wait_reply(&connection, wait_msec, &reply);

		result = received < 0 ? ctl_lost(path, what, received, ret_error)
				      : ctl_judge(path, what, reply, ret, ret_error);
		json_decref(reply);
	}
	return result;
}

int ctl_call(
	const char *path, const char *method, json_t *parameters, const char *what, json_t **ret)
{
	_cleanup_free_ char *error = NULL;
	int result = ctl_try(path, method, parameters, what, DEADLINE_SEC * 1000, ret, &error);

	if (result != CTL_OK)
		ctl_error("%s", error ? error : "out of memory");
	return result;
}

int ctl_call_status(const struct ctl *ctl, const char *service, json_t **ret)
{
	json_t *parameters = json_object();

	if (service && json_object_set_new(parameters, "service", json_string(service)) < 0) {
		json_decref(parameters);
		return ctl_usage("a service's name is text in UTF-8", NULL);
	}
	return ctl_call(ctl->socket, "Status", parameters, "show the status", ret);
}
