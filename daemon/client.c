/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * One connection on worker.sock: the daemon's side of the worker protocol. Whatever a client sends,
 * or doesn't, touches that client alone: everything is bounded by number or by time, nothing
 * blocks, and at most one message with descriptors is under way to it (descriptors in flight count
 * against the daemon's user, and would starve the others; Linux, unix_attach_fds).
 */
#include <endian.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "common/util.h"
#include "daemon/client.h"
#include "daemon/log.h"
#include "daemon/state.h"
#include "daemon/store.h"
#include "daemon/takeover.h"

#define ACCEPT_TURNS 500 /* of the loop in 100 ms, 16 connections each */

void client_await_answer(struct client *client)
{
	client->answer_before_usec = now_monotonic() + client->manager->config->answer_timeout_usec;
}

struct client *client_free(struct client *client)
{
	struct client **link = &client->manager->clients;
	struct registration *registration = client->registration;

	while (*link != client)
		link = &(*link)->next;
	*link = client->next;
	if (registration) {
		client->registration = NULL;
		registration->client = NULL;
		/* An unfinished registration ends with its connection; the others live with their
		 * process. */
		if (!store_is_frozen(client->manager->store) &&
			(!registration->acked || !registration->n_workers ||
				registration->workers[0].state == WORKER_JOINING))
			registration_free(registration, "its connection ended before it was ready");
	}
	client->account->n_connections--;
	account_release(client->account);
	turn_cancel(&client->turn);
	foreign_cancel(&client->look);
	sd_event_source_disable_unref(client->source);
	/* The next process goes on with it, and has a duplicate. */
	if (client->entry && store_is_frozen(client->manager->store))
		close_fd(&client->socket);
	/* At once, though a duplicate may stay a little longer. */
	foreign_close(client->manager->foreign, &client->socket);
	store_drop(client->manager->store, client->entry, -1);
	if (client->peer_entry)
		store_drop(
			client->manager->store, client->peer_entry, take_fd(&client->peer.pidfd));
	peer_done(&client->peer);
	free(client);
	return NULL;
}

void client_forget(struct client *client)
{
	client->registration = NULL;
	client->n_again = client->resumed_untold = 0;
	client->answer_before_usec = 0;
}

void client_goodbye(struct client *client, int error, const char *text)
{
	struct protocol_goodbye goodbye = {.error = htole32((uint32_t)error)};

	snprintf(goodbye.text, sizeof(goodbye.text), "%s", text);
	message_send(client->socket, PROTOCOL_GOODBYE, 0, &goodbye, sizeof(goodbye), NULL, 0);
	client_free(client);
}

void client_send_drain(struct client *client, const struct registration *registration,
	enum protocol_drain_reason reason, uint64_t deadline_usec)
{
	const struct protocol_drain_requested event = {
		.registration = htole32(registration->id),
		.reason = htole32(reason),
		.deadline_usec = htole64(deadline_usec),
	};

	/* A client that reads nothing misses it, and loses its slots at the deadline. */
	message_send(client->socket, PROTOCOL_DRAIN_REQUESTED, 0, &event, sizeof(event), NULL, 0);
}

bool client_has_room(const struct client *client)
{
	struct pollfd poll_fd = {.fd = client->socket, .events = POLLOUT};

	/* The kernel says so while a quarter of the buffer is used at most (unix_writable()), so
	 * events leave room for answers. */
	return poll(&poll_fd, 1, 0) == 1 && poll_fd.revents & POLLOUT;
}

void client_send_stalled(struct client *client, const struct registration *registration,
	uint32_t worker, bool stalled)
{
	const struct protocol_stalled event = {
		.registration = htole32(registration->id),
		.worker = htole32(worker),
		.stalled = htole32(stalled),
	};

	/* One that reads nothing, as one that stands still may, misses it. */
	if (client_has_room(client))
		message_send(client->socket, PROTOCOL_STALLED, 0, &event, sizeof(event), NULL, 0);
}

int client_send_ok(struct client *client, uint32_t sequence)
{
	const struct protocol_ok ok = {0};

	return message_send(client->socket, PROTOCOL_OK, sequence, &ok, sizeof(ok), NULL, 0);
}

/* Kernels without SO_PEERPIDFD: the client's own pidfd, believed if its pid is the sender's. */
static int take_own_pidfd(struct client *client)
{
	struct message *message = client->message;
	pid_t pid;

	if (client->peer.pidfd >= 0 || message->n_fds == 0)
		return 0;
	if (!message->has_credentials || pidfd_to_pid(message->fds[0], &pid) < 0 ||
		pid != message->credentials.pid)
		return client_refuse(client, EPERM,
			"HELLO: the descriptor is not a pidfd of the process that sent it");
	client->peer.pidfd = take_fd(&message->fds[0]);
	client->peer.pid = pid;
	return 0;
}

static int handle_hello(struct client *client)
{
	const struct protocol_hello *hello = &client->message->hello;
	struct protocol_welcome welcome = {
		.version = htole16(PROTOCOL_VERSION),
		.message_max = htole32(PROTOCOL_MESSAGE_MAX),
		.workers_max = htole32(PROTOCOL_WORKERS_MAX),
		.answer_msec = htole32(
			(uint32_t)(client->manager->config->answer_timeout_usec / USEC_PER_MSEC)),
	};
	int result;

	if (client->greeted)
		return client_refuse(client, EALREADY, "HELLO was said already");
	if (le16toh(hello->version_min) > PROTOCOL_VERSION ||
		le16toh(hello->version_max) < PROTOCOL_VERSION)
		return client_refuse(client, EPROTONOSUPPORT,
			"this daemon speaks protocol version %d, the client %u to %u",
			PROTOCOL_VERSION, le16toh(hello->version_min), le16toh(hello->version_max));
	result = take_own_pidfd(client);
	if (result < 0)
		return result;
	client->greeted = true;
	client->answer_before_usec = 0;
	snprintf(welcome.daemon_version, sizeof(welcome.daemon_version), "%s", VERSION);
	return message_send(client->socket, PROTOCOL_WELCOME, client->message->header.sequence,
		&welcome, sizeof(welcome), NULL, 0);
}

/* What must be there for the next process to go on with this client and its registration. */
void client_keep(struct client *client, bool here_only)
{
	struct registration *registration = client->registration;
	struct store *store = client->manager->store;

	client->entry = store_keep(store, client->entry, STORE_CLIENT, client->socket, here_only);
	/* One that it brought (Linux before 6.5) can't be had again. */
	if (!registration && here_only && client->peer.pidfd >= 0)
		client->peer_entry = store_keep(
			store, client->peer_entry, STORE_PIDFD, client->peer.pidfd, here_only);
	if (registration && registration->pidfd >= 0)
		registration->pidfd_entry = store_keep(store, registration->pidfd_entry,
			STORE_PIDFD, registration->pidfd, here_only);
	store_touch(store);
}

static int handle_message(struct client *client)
{
	uint16_t type = client->message->header.type;

	if (!client->greeted && type != PROTOCOL_HELLO)
		return client_refuse(
			client, EPROTO, "HELLO comes first, not %s", message_type_name(type));
	switch (type) {
	case PROTOCOL_HELLO:
		return handle_hello(client);
	case PROTOCOL_REGISTER:
		return client_handle_register(client);
	case PROTOCOL_ACK:
		return client_handle_ack(client);
	case PROTOCOL_READY:
	case PROTOCOL_DRAIN:
	case PROTOCOL_UNREGISTER:
		return client_handle_registration(client, type);
	case PROTOCOL_CID_ADD:
	case PROTOCOL_CID_RETIRE:
		return client_handle_cids(client, type);
	case PROTOCOL_ADOPT:
		return client_handle_adopt(client);
	case PROTOCOL_LOAD:
		return client_handle_load(client);
	case PROTOCOL_RESUME:
		return client_handle_resume(client);
	default:
		return client_refuse(client, EOPNOTSUPP, "unknown message type %u", type);
	}
}

/* Tables are filled, sockets made, and lines written to the log. */
static unsigned price_of(uint16_t type)
{
	return type == PROTOCOL_REGISTER || type == PROTOCOL_RESUME ? 20 : 1;
}

/* What asks for the same when it is done twice, and brings no descriptor that is needed then. */
static bool is_repeatable(uint16_t type)
{
	return type == PROTOCOL_ACK || type == PROTOCOL_READY || type == PROTOCOL_DRAIN ||
	       type == PROTOCOL_UNREGISTER || type == PROTOCOL_CID_ADD ||
	       type == PROTOCOL_CID_RETIRE || type == PROTOCOL_LOAD;
}

/* A message that was noted as it came goes the way of all messages: there is one reader of them. */
static int receive_note(struct message *ret, struct state *state)
{
	int pair[2], result;

	if (!state_note_length(state))
		return 0;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
		return -errno;
	result = send(pair[0], state_note(state), state_note_length(state), MSG_NOSIGNAL) < 0
			 ? -errno
			 : message_receive(pair[1], ret, NULL);
	close_fd(&pair[0]);
	close_fd(&pair[1]);
	return result;
}

bool client_repeat(struct client *client, struct state *state)
{
	struct message *message = client->message;
	const struct registration *registration = client->registration;
	uint32_t id;
	uint16_t type;
	int result = receive_note(message, state);

	/* Once: should it be what ended the earlier process, it ends its client's connection then.
	 */
	state_set_answering(state, client->id, 0);
	if (result != 1)
		return false;
	type = message->header.type;
	if (!is_repeatable(type))
		return false;
	/* Each of them begins with it. */
	id = le32toh(message->registration.registration);
	if (type == PROTOCOL_ACK) {
		if (!registration || registration->id != id || !registration->acked)
			return false;
		result = client_send_ok(client, message->header.sequence);
	} else if (type == PROTOCOL_UNREGISTER && (!registration || registration->id != id)) {
		result = client_send_ok(client, message->header.sequence);
	} else {
		result = handle_message(client);
	}
	return result >= 0;
}

/* Notes what comes next, before it is taken: a process that ends in here has taken nothing. */
static void note_message(struct client *client, struct state *state)
{
	ssize_t length;

	length = recv(client->socket, state_note(state), STATE_NOTE_MAX, MSG_PEEK | MSG_DONTWAIT);
	state_set_answering(state, client->id, length > 0 ? (size_t)length : 0);
}

/* Takes one message, whose descriptors are harmless; may free the client. */
static void take_one(struct client *client)
{
	const uint64_t started = now_monotonic();
	struct account *account = client->account;
	struct state *state = client->manager->state;
	const char *reason = "";
	unsigned price = 1;
	int result;

	account_hold(account); /* the client may go meanwhile */
	/* From the moment that a message is taken until it is answered, the answer may be lost. */
	if (state)
		note_message(client, state);
	result = message_receive(client->socket, client->message, &reason);
	if (result == -EAGAIN) {
		price = 0;
	} else if (result == -EBADMSG) {
		client_refuse(client, EBADMSG, "%s", reason);
		client_goodbye(client, EBADMSG, reason);
	} else if (result <= 0) {
		client_free(client);
	} else {
		price = price_of(client->message->header.type);
		result = handle_message(client);
		message_done(client->message);
		if (result < 0) /* the client does not read, or has gone */
			client_free(client);
	}
	if (state)
		state_set_answering(state, 0, 0);
	if (price)
		account_charge(account, started, price);
	account_release(account);
}

/* The message can't be taken, and so none behind it: the connection ends. */
static void refuse_look(struct client *client, int error)
{
	char text[PROTOCOL_TEXT_MAX];

	if (error == EBUSY)
		snprintf(text, sizeof(text),
			"what user %u has sent beside other messages can't be closed, since a file "
			"system does not answer: no more descriptors are taken until it does",
			(unsigned)client->peer.uid);
	else
		snprintf(text, sizeof(text),
			"the descriptors of the message could not be looked at: %s",
			strerror(error));
	message_send_error(client->socket, client->look_sequence, error, "%s", text);
	client_goodbye(client, error, text);
}

static void on_looked(struct foreign_look *look, enum foreign_verdict verdict)
{
	struct client *client = (struct client *)((char *)look - offsetof(struct client, look));
	int result = 0;

	sd_event_source_set_enabled(client->source, SD_EVENT_ON);
	switch (verdict) {
	case FOREIGN_WANTED:
		take_one(client);
		break;
	case FOREIGN_TAKEN:
		result = message_send_error(client->socket, client->look_sequence, EBADF,
			"only sockets of IPv4 and IPv6, and pidfds, may come with a message; one "
			"of its descriptors is something else, and none was taken");
		if (result < 0)
			client_free(client);
		break;
	default:
		refuse_look(client, verdict == FOREIGN_BUSY ? EBUSY : ETIMEDOUT);
	}
}

/* Has the next message, which brings descriptors, looked at. */
static void look(struct client *client, const struct protocol_header *header)
{
	struct account *account = client->account;
	const uint64_t started = now_monotonic();
	int result;

	account_hold(account); /* the client may go meanwhile */
	client->look_sequence =
		le32toh(header->magic) == PROTOCOL_MAGIC ? le32toh(header->sequence) : 0;
	sd_event_source_set_enabled(client->source, SD_EVENT_OFF);
	result = foreign_look(client->manager->foreign, &client->look, client->socket,
		client->peer.uid, on_looked);
	if (result < 0)
		refuse_look(client, -result);
	account_charge(account, started, 1);
	account_release(account);
}

/* Takes one message, or has it looked at first; may free the client. */
static void receive_one(struct client *client)
{
	struct protocol_header header = {0};
	bool descriptors;
	ssize_t n = foreign_peek(client->socket, &header, sizeof(header), &descriptors);

	/* What came since is not known, and is for the next time. */
	if (n < 0 && errno == EAGAIN)
		return;
	if (n < 0)
		client_free(client);
	else if (descriptors)
		look(client, &header);
	else
		take_one(client);
}

/* While workers of an earlier daemon are awaited, nobody else is given a slot: it may be theirs. */
static bool must_wait(struct client *client)
{
	struct protocol_header header;
	bool descriptors;

	if (!takeover_runs(client->manager) ||
		foreign_peek(client->socket, &header, sizeof(header), &descriptors) <
			(ssize_t)sizeof(header) ||
		le16toh(header.type) != PROTOCOL_REGISTER)
		return false;
	client->held = true;
	sd_event_source_set_enabled(client->source, SD_EVENT_OFF);
	return true;
}

static void on_turn(struct turn *turn)
{
	struct client *client = (struct client *)((char *)turn - offsetof(struct client, turn));

	if (must_wait(client))
		return;
	sd_event_source_set_enabled(client->source, SD_EVENT_ON);
	receive_one(client);
}

void clients_release(struct manager *manager)
{
	for (struct client *client = manager->clients; client; client = client->next)
		if (client->held) {
			client->held = false;
			sd_event_source_set_enabled(client->source, SD_EVENT_ON);
		}
}

static int on_readable(sd_event_source *source, int fd, uint32_t events, void *user_data)
{
	struct client *client = user_data;

	if (events & EPOLLOUT)
		client_send_keys(client);
	if (must_wait(client))
		return 0;
	if (account_may(client->account, &client->turn))
		receive_one(client);
	else
		sd_event_source_set_enabled(client->source, SD_EVENT_OFF);
	return 0;
}

static int watch(struct client *client)
{
	struct manager *manager = client->manager;
	int result = peer_of_socket(&client->peer, client->socket);

	if (!manager->message)
		manager->message = calloc(1, sizeof(*manager->message));
	client->message = manager->message;
	if (result >= 0 && !client->message)
		result = -ENOMEM;
	if (result >= 0)
		result = sd_event_add_io(manager->event, &client->source, client->socket, EPOLLIN,
			on_readable, client);
	if (result < 0) {
		peer_done(&client->peer);
		return result;
	}
	client->turn.resume = on_turn;
	client->account = manager_account(manager, client->peer.uid);
	client->account->n_connections++;
	account_hold(client->account);
	client->next = manager->clients;
	manager->clients = client;
	return 0;
}

static int client_new(struct manager *manager, int socket)
{
	const uint64_t started = now_monotonic();
	const int one = 1;
	struct client *client = calloc(1, sizeof(*client));
	int result;

	if (!client) {
		close_fd(&socket);
		return -ENOMEM;
	}
	client->manager = manager;
	client->id = ++manager->next_client;
	client->socket = socket;
	result = watch(client);
	if (result < 0) {
		foreign_close(manager->foreign, &client->socket);
		free(client);
		return result;
	}
	setsockopt(socket, SOL_SOCKET, SO_PASSCRED, &one, sizeof(one));
	client_await_answer(client);
	account_charge(client->account, started, 1);
	if (client->account->n_connections > manager->config->max_connections)
		client_goodbye(client, EDQUOT,
			"this user has too many connections (MaxConnectionsPerUser=)");
	return 0;
}

static int on_connection(sd_event_source *source, int fd, uint32_t events, void *user_data)
{
	struct manager *manager = user_data;

	/* A few at a time, so that a crowd at the door keeps nobody inside waiting. */
	for (int i = 0; i < 16; i++) {
		int socket = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

		if (socket < 0)
			break;
		client_new(manager, socket);
	}
	return 0;
}

int client_listen(struct manager *manager, int socket)
{
	sd_event_source *source;
	int result;

	result = sd_event_add_io(manager->event, &source, socket, EPOLLIN, on_connection, manager);
	if (result < 0)
		return result;
	sd_event_source_set_io_fd_own(source, true);
	/* When no descriptor is free, accept4() fails and the connection stays at the door: don't
	 * spin. */
	sd_event_source_set_ratelimit(source, 100 * USEC_PER_MSEC, ACCEPT_TURNS);
	return sd_event_source_set_floating(source, true) < 0 ? -ENOMEM
							      : (sd_event_source_unref(source), 0);
}

void clients_tell_listeners(struct manager *manager)
{
	for (struct client *client = manager->clients; client; client = client->next)
		client_tell_listeners(client);
}

void clients_tick(struct manager *manager)
{
	uint64_t now = now_monotonic();

	for (struct client *client = manager->clients, *next; client; client = next) {
		next = client->next;
		client_send_resumed(client);
		if (client->keys_untold)
			client_send_keys(client);
		client_tell_listeners(client);
		/* Who has to wait for its turn can't answer. */
		if (client->answer_before_usec && now >= client->answer_before_usec &&
			!client->turn.account && !foreign_is_looking(&client->look))
			client_goodbye(client, ETIMEDOUT,
				client->greeted ? "no ACK came in time (AnswerTimeoutSec=)"
						: "no HELLO came in time (AnswerTimeoutSec=)");
	}
}

bool client_is_kept(const struct client *client)
{
	return client->entry;
}

static void write_number(struct text *text, const char *name, int64_t number)
{
	text_add_string(text, name);
	text_add_number(text, number);
}

/* There are as many as workers, and all of it is numbers. */
void client_write(const struct client *client, struct text *text)
{
	write_number(text, "{\"id\":", client->id);
	write_number(text, ",\"entry\":", client->entry);
	text_add_string(text, client->greeted ? ",\"greeted\":true" : ",\"greeted\":false");
	write_number(text, ",\"pid\":", client->peer.pid);
	write_number(text, ",\"peer\":", client->peer_entry);
	write_number(text, ",\"granting\":", client->granting);
	write_number(text, ",\"sequence\":", client->sequence);
	write_number(text, ",\"resumed_untold\":", client->resumed_untold);
	text_add_string(text, "}");
}

struct client *client_next(const struct client *client)
{
	return client->next;
}

static void resume_peer(struct client *client, uint32_t entry)
{
	int pidfd = entry ? store_take(client->manager->store, STORE_PIDFD, entry) : -1;

	if (pidfd < 0)
		return;
	if (client->peer.pidfd >= 0) {
		store_drop(client->manager->store, entry, pidfd);
		return;
	}
	client->peer.pidfd = pidfd;
	client->peer_entry = entry;
}

int client_resume(struct manager *manager, const json_t *json)
{
	uint32_t entry = (uint32_t)json_integer_value(json_object_get(json, "entry"));
	int socket = store_take(manager->store, STORE_CLIENT, entry), result;
	struct client *client;

	if (socket < 0) /* systemd has seen it end */
		return 0;
	client = calloc(1, sizeof(*client));
	if (!client)
		return -ENOMEM;
	client->manager = manager;
	client->socket = socket;
	client->entry = entry;
	client->id = (uint32_t)json_integer_value(json_object_get(json, "id"));
	client->greeted = json_is_true(json_object_get(json, "greeted"));
	client->granting = (uint32_t)json_integer_value(json_object_get(json, "granting"));
	client->sequence = (uint32_t)json_integer_value(json_object_get(json, "sequence"));
	client->resumed_untold =
		(uint32_t)json_integer_value(json_object_get(json, "resumed_untold"));
	client->keys_untold = true; /* a look at the next tick */
	result = watch(client);
	if (result < 0) {
		foreign_close(manager->foreign, &client->socket);
		store_drop(manager->store, entry, -1);
		free(client);
		return result;
	}
	/* Of an own pidfd that it brought, before Linux 6.5. */
	client->peer.pid = (pid_t)json_integer_value(json_object_get(json, "pid"));
	resume_peer(client, (uint32_t)json_integer_value(json_object_get(json, "peer")));
	if (!client->greeted)
		client_await_answer(client);
	return 0;
}

struct client *client_find(struct manager *manager, uint32_t id)
{
	for (struct client *client = manager->clients; client; client = client->next)
		if (client->id == id)
			return client;
	return NULL;
}

uint32_t client_id(const struct client *client)
{
	return client->id;
}

void client_set_registration(struct client *client, struct registration *registration)
{
	client->registration = registration;
	if (!registration->acked)
		client_await_answer(client);
	if (client->peer.pidfd < 0 && registration->pidfd >= 0 &&
		registration->pid == client->peer.pid)
		client->peer.pidfd = fcntl(registration->pidfd, F_DUPFD_CLOEXEC, 3);
}

void clients_keep(struct manager *manager)
{
	for (struct client *client = manager->clients; client; client = client->next)
		client_keep(client, true);
}

void clients_let_go(struct manager *manager)
{
	for (struct client *client = manager->clients, *next; client; client = next) {
		struct pollfd poll_fd = {.fd = client->socket};

		next = client->next;
		if (poll(&poll_fd, 1, 0) == 1)
			client_free(client);
	}
}
