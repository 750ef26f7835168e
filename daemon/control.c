/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The Varlink server. A connection costs what it has sent and not yet finished (CALL_OCTETS at
 * most) and what it was answered and has not yet read (REPLY_OCTETS at most; beyond that it is
 * closed), all those of a user USER_OCTETS at most, and neither half a call nor an unread answer
 * stays for long. One that sends what is no Varlink call is closed as well: there is nothing to
 * answer to. A connection has one call answered, then the others have their turn.
 *
 * A stream (control.h) is asked for its next replies when those before are out, STREAM_OCTETS or so
 * at a time; it may be read as slowly as the client likes, and no other call is taken meanwhile.
 */
#include "daemon/control.h"

#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>

#include "common/util.h"
#include "control-interface.h"
#include "daemon/account.h"
#include "daemon/foreign.h"
#include "daemon/parameters.h"
#include "daemon/peer.h"
#include "proto/varlink.h"

#define CALL_OCTETS (1024 * 1024)
#define REPLY_OCTETS (8 * 1024 * 1024)
#define USER_OCTETS (32 * 1024 * 1024) /* of all connections of one user */

#define STREAM_OCTETS (64 * 1024)

#define ACCEPT_TURNS 500 /* in 100 ms, of 16 connections each */

#define INTERFACE "io.reuseport.Control"

static const char varlink_service_interface[] =
	"# What every Varlink service offers.\n"
	"interface org.varlink.service\n\n"
	"method GetInfo() -> (\n"
	"  vendor: string,\n  product: string,\n  version: string,\n  url: string,\n"
	"  interfaces: []string\n)\n\n"
	"method GetInterfaceDescription(interface: string) -> (description: string)\n\n"
	"error InterfaceNotFound (interface: string)\n"
	"error MethodNotFound (method: string)\n"
	"error MethodNotImplemented (method: string)\n"
	"error InvalidParameter (parameter: string)\n"
	"error ExpectedMore ()\n";

struct connection {
	struct connection *next;
	struct control *control;
	int socket;
	sd_event_source *source;
	struct peer peer;
	struct varlink_buffer input;
	char *output;
	size_t output_start, output_length; /* what is left of it */
	struct control_stream *stream;      /* whose replies the client gets; NULL: none */
	uint64_t waits_since_usec; /* for the client: half a call, or an answer unread; 0: not */
	struct account *account;   /* NULL: nobody counts */
	size_t n_octets;           /* that are in the account */
	struct turn turn;
};

struct control {
	sd_event *event;
	sd_event_source *source;
	int socket;
	const struct control_method *methods;
	void *user_data;
	gid_t status_group, admin_group;
	unsigned max_connections;
	struct accounts *accounts; /* NULL: nobody counts */
	struct foreign *foreign;   /* NULL: descriptors are as good as any octet */
	struct connection *connections;
	int caller;
};

static void connection_free(struct connection *connection)
{
	struct connection **link = &connection->control->connections;

	while (*link != connection)
		link = &(*link)->next;
	*link = connection->next;
	turn_cancel(&connection->turn);
	if (connection->stream)
		connection->stream->end(connection->stream);
	if (connection->account) {
		connection->account->n_octets -= connection->n_octets;
		account_release(connection->account);
	}
	sd_event_source_disable_unref(connection->source);
	foreign_close(connection->control->foreign, &connection->socket);
	peer_done(&connection->peer);
	varlink_done(&connection->input);
	free(connection->output);
	free(connection);
}

/* What it holds goes to its user's account; one that holds too much is not worth keeping. */
static int count_octets(struct connection *connection)
{
	struct account *account = connection->account;
	size_t n = connection->input.allocated + connection->output_length;

	if (!account)
		return 0;
	account->n_octets += n - connection->n_octets;
	connection->n_octets = n;
	return account->uid != 0 && account->n_octets > USER_OCTETS ? -ENOBUFS : 0;
}

static uint64_t now_usec(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * USEC_PER_SEC + (uint64_t)time.tv_nsec / NSEC_PER_USEC;
}

/* Sends what is left to send, as far as the client reads. */
static int flush(struct connection *connection)
{
	while (connection->output_length) {
		ssize_t n = send(connection->socket, connection->output + connection->output_start,
			connection->output_length, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n < 0 && errno == EAGAIN)
			return 0;
		if (n < 0)
			return -errno;
		connection->output_start += (size_t)n;
		connection->output_length -= (size_t)n;
	}
	free(connection->output);
	connection->output = NULL;
	return 0;
}

static int append(struct connection *connection, const char *text, size_t length)
{
	char *output;

	if (connection->output_length + length > REPLY_OCTETS)
		return -ENOBUFS;
	if (connection->output_length)
		memmove(connection->output, connection->output + connection->output_start,
			connection->output_length);
	connection->output_start = 0;
	output = realloc(connection->output, connection->output_length + length);
	if (!output)
		return -ENOMEM;
	memcpy(output + connection->output_length, text, length);
	connection->output = output;
	connection->output_length += length;
	return 0;
}

static int send_reply(
	struct connection *connection, const char *error, json_t *parameters, bool continues)
{
	_cleanup_free_ char *text = NULL;
	json_t *message = json_object();
	size_t length = 0;
	int result;

	if (error)
		json_object_set_new(message, "error", json_string(error));
	if (continues)
		json_object_set_new(message, "continues", json_true());
	json_object_set_new(message, "parameters", parameters ? parameters : json_object());
	result = varlink_encode(message, &text, &length);
	json_decref(message);
	return result < 0 ? result : append(connection, text, length);
}

static int reply(struct connection *connection, const char *error, json_t *parameters)
{
	int result = send_reply(connection, error, parameters, false);

	if (result != -ENOBUFS || connection->output_length)
		return result;
	return send_reply(connection, CONTROL_FAILED,
		json_pack("{s:s, s:i}", "message",
			"the answer is larger than 8 MiB; ask for one service", "errno", EMSGSIZE),
		false);
}

static bool in_group(const struct peer *peer, gid_t group)
{
	for (size_t i = 0; i < peer->n_gids; i++)
		if (peer->gids[i] == group)
			return true;
	return false;
}

static bool may_call(const struct connection *connection, const struct control_method *method)
{
	const struct control *control = connection->control;
	const struct peer *peer = &connection->peer;

	if (peer->uid == 0 || peer->uid == geteuid())
		return true;
	if (control->admin_group != (gid_t)-1 && in_group(peer, control->admin_group))
		return true;
	if (method->changes)
		return false;
	return control->status_group == (gid_t)-1 || in_group(peer, control->status_group);
}

static int call_own(struct connection *connection, const char *method, const json_t *parameters)
{
	const char *name;

	if (strcmp(method, "org.varlink.service.GetInfo") == 0)
		return reply(connection, NULL,
			json_pack("{s:s, s:s, s:s, s:s, s:[s, s]}", "vendor", "reuseportd",
				"product", "reuseportd", "version", VERSION, "url", "",
				"interfaces", "org.varlink.service", INTERFACE));
	if (strcmp(method, "org.varlink.service.GetInterfaceDescription") != 0)
		return reply(connection, "org.varlink.service.MethodNotFound",
			json_pack("{s:s}", "method", method));
	name = json_string_value(json_object_get(parameters, "interface"));
	if (!name)
		return reply(connection, CONTROL_INVALID_PARAMETER,
			json_pack("{s:s}", "parameter", "interface"));
	if (strcmp(name, INTERFACE) == 0)
		return reply(
			connection, NULL, json_pack("{s:s}", "description", control_interface));
	if (strcmp(name, "org.varlink.service") == 0)
		return reply(connection, NULL,
			json_pack("{s:s}", "description", varlink_service_interface));
	return reply(connection, "org.varlink.service.InterfaceNotFound",
		json_pack("{s:s}", "interface", name));
}

static int refuse_caller(struct connection *connection, const struct control_method *method)
{
	return reply(connection, INTERFACE ".PermissionDenied",
		json_pack("{s:s}", "message",
			method->changes ? "only root and the group AdminGroup= may change things"
					: "only root and the groups StatusGroup= and AdminGroup= "
					  "may read the status"));
}

/* What a method that failed says. error and parameters: as of control_handler. */
static int reply_failure(
	struct connection *connection, int status, const char *error, json_t *parameters)
{
	if (error)
		return reply(connection, error, parameters);
	json_decref(parameters);
	return reply(connection, CONTROL_FAILED,
		json_pack("{s:s, s:i}", "message", strerror(-status), "errno", -status));
}

static int call_method(struct connection *connection, const struct control_method *method,
	const json_t *parameters, bool more)
{
	struct control *control = connection->control;
	_cleanup_free_ char *name = NULL;
	const char *error = NULL;
	json_t *result = NULL;
	int status;

	if (!may_call(connection, method))
		return refuse_caller(connection, method);
	if (parameters_check(control_interface, method->name, parameters, &name) == -EINVAL)
		return reply(connection, CONTROL_INVALID_PARAMETER,
			json_pack("{s:s}", "parameter", name ? name : ""));
	if (!method->handler && !method->opener)
		return reply(connection, "org.varlink.service.MethodNotImplemented",
			json_pack("{s:s}", "method", method->name));
	if (method->opener && !more)
		return reply(connection, "org.varlink.service.ExpectedMore", NULL);
	control->caller = connection->socket;
	if (method->opener) {
		status = method->opener(
			control->user_data, parameters, &connection->stream, &result, &error);
		if (status < 0)
			return reply_failure(connection, status, error, result);
		connection->stream->connection = connection;
		return 0;
	}
	status = method->handler(control->user_data, parameters, &result, &error);
	if (status < 0)
		return reply_failure(connection, status, error, result);
	return reply(connection, NULL, result);
}

static int call(
	struct connection *connection, const char *method, const json_t *parameters, bool more)
{
	const char *dot = strrchr(method, '.');

	if (strncmp(method, "org.varlink.service.", 20) == 0)
		return call_own(connection, method, parameters);
	if (!dot || (size_t)(dot - method) != strlen(INTERFACE) ||
		strncmp(method, INTERFACE, strlen(INTERFACE)) != 0) {
		_cleanup_free_ char *interface = strndup(method, dot ? (size_t)(dot - method) : 0);

		return reply(connection, "org.varlink.service.InterfaceNotFound",
			json_pack("{s:s}", "interface", interface ? interface : ""));
	}
	for (const struct control_method *m = connection->control->methods; m->name; m++)
		if (strcmp(m->name, dot + 1) == 0)
			return call_method(connection, m, parameters, more);
	return reply(connection, "org.varlink.service.MethodNotFound",
		json_pack("{s:s}", "method", method));
}

/* Negative: no Varlink call, the connection is not worth keeping. */
static int handle(struct connection *connection, const json_t *message)
{
	const char *method = json_string_value(json_object_get(message, "method"));
	json_t *parameters = json_object_get(message, "parameters");
	size_t before = connection->output_length;
	json_t *none = NULL;
	bool oneway;
	int result;

	if (!method)
		return -EBADMSG;
	if (json_is_true(json_object_get(message, "upgrade")))
		return reply(connection, "org.varlink.service.MethodNotImplemented",
			json_pack("{s:s}", "method", method));
	if (parameters && !json_is_object(parameters) && !json_is_null(parameters))
		return -EBADMSG;
	if (!json_is_object(parameters))
		parameters = none = json_object();
	/* Nobody reads the many replies of a call that wants none. */
	oneway = json_is_true(json_object_get(message, "oneway"));
	result = call(connection, method, parameters,
		!oneway && json_is_true(json_object_get(message, "more")));
	json_decref(none);
	if (oneway)
		connection->output_length = before;
	return result;
}

/*
 * Answers one call, of what has come already or comes now. 1: there may be more, which has its turn
 * when others had theirs; 0: the client has to read or to send.
 */
static int take_call(struct connection *connection)
{
	json_t *message;
	int result = varlink_next(&connection->input, &message, NULL);

	if (result == 0) {
		result = varlink_fill(&connection->input, connection->socket, CALL_OCTETS);
		if (result <= 0)
			return result == -EAGAIN ? 0 : result < 0 ? result : -ECONNRESET;
		result = varlink_next(&connection->input, &message, NULL);
	}
	if (result <= 0)
		return result;
	result = handle(connection, message);
	json_decref(message);
	return result < 0 ? result : 1;
}

/* 1: there may be more, when these are out; 0: the stream has nothing more to say for now. */
static int take_replies(struct connection *connection)
{
	while (connection->output_length < STREAM_OCTETS) {
		json_t *parameters = NULL;
		int result = connection->stream->next(connection->stream, &parameters);

		if (result > 0)
			result = send_reply(connection, NULL, parameters, true);
		else
			return result;
		if (result < 0)
			return result;
	}
	return 1;
}

/* Waits for what comes next: room to write, more to read, or, with both, no time at all. */
static int await(struct connection *connection, bool more)
{
	bool half = connection->input.length > connection->input.consumed;
	uint32_t events = more ? EPOLLIN | EPOLLOUT : EPOLLIN;

	if (connection->stream) {
		connection->waits_since_usec = 0; /* it may take its time */
		return sd_event_source_set_io_events(
			connection->source, more || connection->output_length ? EPOLLOUT : 0);
	}
	if (!connection->output_length && (more || !half))
		connection->waits_since_usec = 0;
	else if (!connection->waits_since_usec)
		connection->waits_since_usec = now_usec();
	/* Calls are taken only when the answers before them are out: that bounds the output. */
	return sd_event_source_set_io_events(
		connection->source, connection->output_length ? EPOLLOUT : events);
}

/* Does one thing for the connection, which may end it. */
static void serve(struct connection *connection)
{
	struct account *account = connection->account;
	const uint64_t started = now_usec();
	bool more = connection->output_length > 0;
	int result = 0;

	if (account) /* the connection may go meanwhile */
		account_hold(account);
	if (!more) {
		result = connection->stream ? take_replies(connection) : take_call(connection);
		more = result > 0;
	}
	if (result >= 0)
		result = flush(connection);
	if (result >= 0)
		result = count_octets(connection);
	if (result >= 0)
		result = await(connection, more);
	if (result < 0)
		connection_free(connection);
	if (!account)
		return;
	account_charge(account, started, 1);
	account_release(account);
}

static void on_turn(struct turn *turn)
{
	struct connection *connection =
		(struct connection *)((char *)turn - offsetof(struct connection, turn));

	sd_event_source_set_enabled(connection->source, SD_EVENT_ON);
	serve(connection);
}

static int on_io(sd_event_source *source, int fd, uint32_t events, void *user_data)
{
	struct connection *connection = user_data;

	/* A stream that has nothing to send would not notice otherwise. */
	if (connection->stream && events & (EPOLLHUP | EPOLLERR)) {
		connection_free(connection);
		return 0;
	}
	if (!connection->account || account_may(connection->account, &connection->turn))
		serve(connection);
	else
		sd_event_source_set_enabled(connection->source, SD_EVENT_OFF);
	return 0;
}

/* Instead of an answer to its first call. */
static void refuse_connection(int socket)
{
	static const char text[] = "{\"error\":\"" INTERFACE
				   ".Failed\",\"parameters\":{\"message\":\"this user has too "
				   "many connections (MaxConnectionsPerUser=)\",\"errno\":122}}";

	send(socket, text, sizeof(text), MSG_DONTWAIT | MSG_NOSIGNAL);
}

static unsigned count_of_user(const struct control *control, uid_t uid)
{
	unsigned n = 0;

	for (const struct connection *c = control->connections; c; c = c->next)
		n += c->peer.uid == uid;
	return n;
}

static int admit(struct connection *connection)
{
	struct control *control = connection->control;
	int result = peer_of_socket(&connection->peer, connection->socket);

	if (result < 0)
		return result;
	if (count_of_user(control, connection->peer.uid) > control->max_connections) {
		refuse_connection(connection->socket);
		return -EDQUOT;
	}
	if (control->accounts)
		connection->account = accounts_get(control->accounts, connection->peer.uid);
	if (connection->account)
		account_hold(connection->account);
	connection->turn.resume = on_turn;
	return sd_event_add_io(control->event, &connection->source, connection->socket, EPOLLIN,
		on_io, connection);
}

static void add_connection(struct control *control, int socket)
{
	struct connection *connection = calloc(1, sizeof(*connection));

	if (!connection) {
		close_fd(&socket);
		return;
	}
	connection->control = control;
	connection->socket = socket;
	connection->peer.pidfd = -1;
	connection->next = control->connections;
	control->connections = connection;
	if (admit(connection) < 0)
		connection_free(connection);
}

static int on_connection(sd_event_source *source, int fd, uint32_t events, void *user_data)
{
	for (int i = 0; i < 16; i++) {
		int socket = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

		if (socket < 0)
			break;
		add_connection(user_data, socket);
	}
	return 0;
}

int control_new(struct control **ret, sd_event *event, int socket,
	const struct control_method *methods, void *user_data)
{
	struct control *control = calloc(1, sizeof(*control));
	int result;

	if (!control) {
		close_fd(&socket);
		return -ENOMEM;
	}
	control->socket = socket;
	control->event = sd_event_ref(event);
	control->methods = methods;
	control->user_data = user_data;
	control->status_group = control->admin_group = (gid_t)-1;
	control->max_connections = 512;
	result = sd_event_add_io(event, &control->source, socket, EPOLLIN, on_connection, control);
	/* Without a free descriptor accept4() leaves the connection waiting, and the loop would
	 * spin. */
	if (result >= 0)
		result = sd_event_source_set_ratelimit(
			control->source, 100 * USEC_PER_MSEC, ACCEPT_TURNS);
	if (result < 0) {
		control_free(control);
		return result;
	}
	*ret = control;
	return 0;
}

struct control *control_free(struct control *control)
{
	if (!control)
		return NULL;
	while (control->connections)
		connection_free(control->connections);
	sd_event_source_disable_unref(control->source);
	close_fd(&control->socket);
	sd_event_unref(control->event);
	free(control);
	return NULL;
}

void control_stream_wake(struct control_stream *stream)
{
	/* Not yet said to be one: its first reply is on its way anyway. */
	if (stream->connection)
		sd_event_source_set_io_events(stream->connection->source, EPOLLOUT);
}

void control_set_groups(struct control *control, gid_t status_group, gid_t admin_group)
{
	control->status_group = status_group;
	control->admin_group = admin_group;
}

void control_set_max_connections(struct control *control, unsigned max_connections)
{
	control->max_connections = max_connections;
}

void control_set_accounts(struct control *control, struct accounts *accounts)
{
	control->accounts = accounts;
}

void control_tick(struct control *control, uint64_t timeout_usec)
{
	uint64_t now = now_usec();

	for (struct connection *c = control->connections, *next; c; c = next) {
		next = c->next;
		/* Who has to wait for its turn can do nothing for it. */
		if (c->waits_since_usec && !c->turn.account &&
			now - c->waits_since_usec >= timeout_usec)
			connection_free(c);
	}
}

void control_set_foreign(struct control *control, struct foreign *foreign)
{
	control->foreign = foreign;
}

int control_caller(const struct control *control)
{
	return control->caller;
}

int *control_sockets(const struct control *control)
{
	int *sockets = calloc(control_count(control) + 1, sizeof(*sockets)), *next = sockets;

	for (const struct connection *c = control->connections; c && sockets; c = c->next)
		*next++ = c->socket;
	return sockets;
}

unsigned control_count(const struct control *control)
{
	unsigned n = 0;

	for (const struct connection *c = control ? control->connections : NULL; c; c = c->next)
		n++;
	return n;
}
