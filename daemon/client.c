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
#include "daemon/group.h"
#include "daemon/group-quic.h"
#include "daemon/log.h"
#include "daemon/manager.h"
#include "daemon/peer.h"
#include "daemon/state.h"
#include "daemon/store.h"
#include "proto/message.h"

#define ACCEPT_TURNS 500 /* of the loop in 100 ms, 16 connections each */

struct client {
	struct client *next;
	struct manager *manager;
	uint32_t id; /* unique in the daemon's life, which is longer than this process's */
	int socket;
	uint32_t entry; /* of the socket in the store; 0: it ends with this process */
	sd_event_source *source;
	struct peer peer;
	bool greeted;
	struct registration *registration;
	uint32_t granting;           /* worker whose GRANT is unacknowledged, n_workers: none */
	uint32_t sequence;           /* of the request that GRANTs answer */
	uint64_t answer_before_usec; /* CLOCK_MONOTONIC, 0: nothing is awaited */
	bool keys_untold;            /* KEYS_ROTATED waits until it reads */
	struct account *account;
	struct turn turn;       /* while its user has to wait, it is not read from */
	struct message message; /* the one being handled; here because it is large */
};

static void await_answer(struct client *client)
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
	turn_cancel(&client->turn);
	sd_event_source_disable_unref(client->source);
	/* At once, though a duplicate may stay a little longer. */
	if (client->entry && !store_is_frozen(client->manager->store))
		shutdown(client->socket, SHUT_RDWR);
	store_drop(client->manager->store, client->entry, client->socket);
	peer_done(&client->peer);
	free(client);
	return NULL;
}

void client_forget(struct client *client)
{
	client->registration = NULL;
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

static int send_ok(struct client *client, uint32_t sequence)
{
	const struct protocol_ok ok = {0};

	return message_send(client->socket, PROTOCOL_OK, sequence, &ok, sizeof(ok), NULL, 0);
}

#define refuse(client, error, ...) \
	message_send_error((client)->socket, (client)->message.header.sequence, error, __VA_ARGS__)

/* Kernels without SO_PEERPIDFD: the client's own pidfd, believed if its pid is the sender's. */
static int take_own_pidfd(struct client *client)
{
	struct message *message = &client->message;
	pid_t pid;

	if (client->peer.pidfd >= 0 || message->n_fds == 0)
		return 0;
	if (!message->has_credentials || pidfd_to_pid(message->fds[0], &pid) < 0 ||
		pid != message->credentials.pid)
		return refuse(client, EPERM,
			"HELLO: the descriptor is not a pidfd of the process that sent it");
	client->peer.pidfd = take_fd(&message->fds[0]);
	client->peer.pid = pid;
	return 0;
}

static int handle_hello(struct client *client)
{
	const struct protocol_hello *hello = &client->message.hello;
	struct protocol_welcome welcome = {
		.version = htole16(PROTOCOL_VERSION),
		.message_max = htole32(PROTOCOL_MESSAGE_MAX),
		.workers_max = htole32(PROTOCOL_WORKERS_MAX),
		.answer_msec = htole32(
			(uint32_t)(client->manager->config->answer_timeout_usec / USEC_PER_MSEC)),
	};
	int result;

	if (client->greeted)
		return refuse(client, EALREADY, "HELLO was said already");
	if (le16toh(hello->version_min) > PROTOCOL_VERSION ||
		le16toh(hello->version_max) < PROTOCOL_VERSION)
		return refuse(client, EPROTONOSUPPORT,
			"this daemon speaks protocol version %d, the client %u to %u",
			PROTOCOL_VERSION, le16toh(hello->version_min), le16toh(hello->version_max));
	result = take_own_pidfd(client);
	if (result < 0)
		return result;
	client->greeted = true;
	client->answer_before_usec = 0;
	snprintf(welcome.daemon_version, sizeof(welcome.daemon_version), "%s", VERSION);
	return message_send(client->socket, PROTOCOL_WELCOME, client->message.header.sequence,
		&welcome, sizeof(welcome), NULL, 0);
}

/* What a worker must know of its listener: connection IDs and tokens, where it is QUIC. */
static int describe_listener(
	struct protocol_grant_listener *entry, const struct listener *listener, uint16_t slot)
{
	const struct listener_config *config = listener->config;
	const struct keys *keys = listener->keys;
	uint64_t block;
	int result;

	snprintf(entry->name, sizeof(entry->name), "%s", config->name);
	snprintf(entry->address, sizeof(entry->address), "%s", config->address_text);
	entry->transport = (uint8_t)config->transport;
	entry->cid_mode = (uint8_t)config->cid_mode;
	if (!keys)
		return 0;
	memcpy(entry->token_secret, keys->token_secret, sizeof(entry->token_secret));
	if (config->cid_mode != CID_QUIC_LB && config->cid_mode != CID_QUIC_LB_PLAIN)
		return 0;
	entry->config_rotation = keys->current;
	entry->server_id_length = QUIC_SERVER_ID_LENGTH;
	entry->nonce_length = QUIC_NONCE_LENGTH;
	quic_server_id(config->host_id, slot, entry->server_id);
	if (config->cid_mode == CID_QUIC_LB)
		memcpy(entry->key, keys->key[keys->current], sizeof(entry->key));
	block = keys->next_block;
	result = keys_next_nonce_prefix(listener->keys, entry->nonce_prefix);
	/* Without a directory the state alone knows what was given out. */
	if (keys->next_block != block) {
		store_touch(listener->service->manager->store);
		store_commit(listener->service->manager->store);
	}
	return result;
}

/* The listener that the client means by its index in the GRANT; NULL: a reload has closed it. */
static struct listener *granted_listener(const struct registration *registration, uint32_t index)
{
	const struct service *service = registration->service;

	for (size_t i = 0; i < service->n_listeners; i++)
		if (service->listeners[i] &&
			service->listeners[i]->number == registration->granted[index])
			return service->listeners[i];
	return NULL;
}

static bool has_room(const struct client *client)
{
	struct pollfd poll_fd = {.fd = client->socket, .events = POLLOUT};

	/* The kernel says so while a quarter of the buffer is used at most (unix_writable()), so
	 * events leave room for answers. */
	return poll(&poll_fd, 1, 0) == 1 && poll_fd.revents & POLLOUT;
}

/* 0 or the error of taking a nonce prefix or of sending. */
static int send_keys(
	struct client *client, uint32_t worker, uint32_t index, struct listener *listener)
{
	struct registration *registration = client->registration;
	struct protocol_grant_listener entry = {0};
	struct protocol_keys_rotated event = {
		.registration = htole32(registration->id),
		.worker = htole32(worker),
		.listener = htole16((uint16_t)index),
	};
	int result = describe_listener(&entry, listener, registration->workers[worker].slot);

	if (result >= 0) {
		event.config_rotation = entry.config_rotation;
		event.server_id_length = entry.server_id_length;
		event.nonce_length = entry.nonce_length;
		memcpy(event.server_id, entry.server_id, sizeof(event.server_id));
		memcpy(event.key, entry.key, sizeof(event.key));
		memcpy(event.nonce_prefix, entry.nonce_prefix, sizeof(event.nonce_prefix));
		result = message_send(
			client->socket, PROTOCOL_KEYS_ROTATED, 0, &event, sizeof(event), NULL, 0);
	}
	explicit_bzero(&entry, sizeof(entry));
	explicit_bzero(&event, sizeof(event));
	return result;
}

/* Returns whether all was told, or can never be; else what keeps it is in *ret_error. */
static bool send_all_keys(struct client *client, int *ret_error)
{
	struct registration *registration = client->registration;

	*ret_error = 0;
	for (uint32_t index = 0; index < registration->n_granted; index++) {
		struct listener *listener = granted_listener(registration, index);

		if (!listener || !listener->keys || listener->config->cid_mode != CID_QUIC_LB)
			continue;
		for (uint32_t i = 0; i < registration->n_workers; i++) {
			uint32_t *told = &registration->told[i * PROTOCOL_LISTENERS_MAX + index];

			if (*told == listener->keys_version)
				continue;
			if (!has_room(client))
				return false;
			*ret_error = send_keys(client, i, index, listener);
			if (*ret_error < 0)
				return false;
			*told = listener->keys_version;
			store_touch(client->manager->store);
		}
	}
	return true;
}

void client_send_keys(struct client *client)
{
	int error = 0;
	bool told;

	/* What it is sent before the last ACK it would not know whose it is. */
	if (!client->registration || !client->registration->acked ||
		client->registration->max_workers) /* adopts: none of its sockets has a key */
		return;
	told = send_all_keys(client, &error);
	if (error < 0 && !client->keys_untold)
		log_warning(
			"%s: cannot tell instance %s of its new key: %s; tried again every second",
			client->registration->service->config->name, client->registration->instance,
			strerror(-error));
	client->keys_untold = !told;
	/* On an error, which room in the buffer does not end, only the clock brings the next try.
	 */
	sd_event_source_set_io_events(
		client->source, !told && error >= 0 ? EPOLLIN | EPOLLOUT : EPOLLIN);
}

/* Makes the sockets of one worker and sends them; the daemon's copies are closed on return. */
static int send_grant(struct client *client, uint32_t index)
{
	struct registration *registration = client->registration;
	struct service *service = registration->service;
	struct worker *worker = &registration->workers[index];
	struct protocol_grant *grant = &client->message.grant;
	struct protocol_grant_listener *entry = (struct protocol_grant_listener *)(grant + 1);
	int fds[PROTOCOL_LISTENERS_MAX] = {0};
	const char *step = "";
	uint16_t n = 0;
	int result = 0;

	memset(client->message.body, 0, sizeof(client->message.body));
	for (size_t i = 0; i < service->n_listeners && n < PROTOCOL_LISTENERS_MAX; i++) {
		struct listener *listener = service->listeners[i];

		if (!listener)
			continue;
		fds[n] = group_add_socket(listener->group, listener->config, worker->slot, &step);
		if (fds[n] < 0) {
			result = fds[n];
			log_listener(LOG_WARNING, EVENT_GRANT_FAILED, listener,
				"%s: cannot make a socket for listener %s: %s: %s",
				service->config->name, listener->config->name, step,
				strerror(-result));
			break;
		}
		group_reset_slot(listener->group, worker->slot);
		entry[n].descriptor = htole16(n);
		worker->present |= 1ULL << listener->index;
		registration->granted[n] = listener->number;
		registration->n_granted = ++n;
		registration->told[index * PROTOCOL_LISTENERS_MAX + n - 1] = listener->keys_version;
		result = describe_listener(&entry[n - 1], listener, worker->slot);
		if (result < 0) {
			step = "take a nonce prefix for connection IDs";
			break;
		}
	}
	grant->registration = htole32(registration->id);
	grant->worker = htole32(index);
	grant->n_workers = htole32(registration->n_workers);
	grant->slot = htole16(worker->slot);
	grant->n_listeners = htole16(n);
	memcpy(grant->instance, registration->instance, sizeof(grant->instance));
	if (result >= 0)
		result = message_send(client->socket, PROTOCOL_GRANT, client->sequence, grant,
			sizeof(*grant) + n * sizeof(*entry), fds, n);
	else
		message_send_error(client->socket, client->sequence, -result,
			"cannot make the sockets of service '%s': %s: %s", service->config->name,
			step, strerror(-result));
	while (n > 0)
		close_fd(&fds[--n]);
	if (result < 0)
		return result;
	worker->granted = true;
	client->granting = index;
	await_answer(client);
	return 0;
}

/* The GRANT of a registration that brings its own sockets: what there is to bind. */
static int send_listeners(struct client *client)
{
	struct registration *registration = client->registration;
	const struct service *service = registration->service;
	struct protocol_grant *grant = &client->message.grant;
	struct protocol_grant_listener *entry = (struct protocol_grant_listener *)(grant + 1);
	uint16_t n = 0;
	int result;

	memset(client->message.body, 0, sizeof(client->message.body));
	for (size_t i = 0; i < service->n_listeners && n < PROTOCOL_LISTENERS_MAX; i++) {
		const struct listener *listener = service->listeners[i];

		if (!listener)
			continue;
		/* Keys are of no use to it, so it gets none. */
		snprintf(entry[n].name, sizeof(entry[n].name), "%s", listener->config->name);
		snprintf(entry[n].address, sizeof(entry[n].address), "%s",
			listener->config->address_text);
		entry[n].transport = (uint8_t)listener->config->transport;
		entry[n].cid_mode = (uint8_t)listener->config->cid_mode;
		entry[n].descriptor = htole16(PROTOCOL_NO_DESCRIPTOR);
		registration->granted[n] = listener->number;
		registration->n_granted = ++n;
	}
	grant->registration = htole32(registration->id);
	grant->n_listeners = htole16(n);
	memcpy(grant->instance, registration->instance, sizeof(grant->instance));
	result = message_send(client->socket, PROTOCOL_GRANT, client->sequence, grant,
		sizeof(*grant) + n * sizeof(*entry), NULL, 0);
	if (result < 0)
		return result;
	client->granting = 0;
	await_answer(client);
	return 0;
}

/* What a client names goes into logs, JSON and tables: printable ASCII without blanks. */
static bool is_plain_name(const char *name)
{
	for (; *name; name++)
		if (*name <= ' ' || *name > '~')
			return false;
	return true;
}

static int check_register(
	struct client *client, const struct protocol_register *request, struct service **ret)
{
	struct manager *manager = client->manager;
	struct service *service = manager_find_service(manager, request->service);
	struct account *account = client->account;
	uint32_t n = le32toh(request->n_workers), taken = 0;
	bool adopt = le32toh(request->flags) & PROTOCOL_REGISTER_ADOPT;

	if (client->registration)
		return refuse(client, EALREADY, "this connection has registered already");
	if (client->peer.pidfd < 0)
		return refuse(client, EPERM,
			"HELLO must bring a pidfd of the client: this kernel is older than 6.5");
	if (!is_plain_name(request->service))
		return refuse(client, ENOENT, "no service has such a name");
	if (!service || service->removed)
		return refuse(client, ENOENT, "there is no service '%s'", request->service);
	if (client->peer.uid != 0 && !service_config_allows(service->config, client->peer.uid,
					     client->peer.gids, client->peer.n_gids))
		return refuse(client, EACCES,
			"user %u may not register with service '%s': AllowUser= and AllowGroup= in %s "
			"decide",
			client->peer.uid, request->service,
			service->config->file ? service->config->file : "its configuration");
	if (!is_plain_name(request->instance))
		return refuse(client, EINVAL,
			"the instance's name has other characters than printable ASCII without blanks");
	if (n < 1 || n > PROTOCOL_WORKERS_MAX)
		return refuse(client, EINVAL, "%u workers asked for, 1 to %u are possible", n,
			PROTOCOL_WORKERS_MAX);
	if (le32toh(request->weight) > 1000)
		return refuse(client, EINVAL, "weight %u, 1 to 1000 are possible",
			le32toh(request->weight));
	if (adopt) /* counted as they come; one should be possible */
		n = 1;
	for (struct registration *r = service->registrations; r; r = r->next)
		taken += r->n_workers;
	if (taken + n > service->config->max_workers)
		return refuse(client, EDQUOT, "service '%s' has %u workers of %u (MaxWorkers=)",
			request->service, taken, service->config->max_workers);
	if (account->n_slots + n > manager->config->max_slots)
		return refuse(client, EDQUOT, "user %u has %u slots of %u (MaxSlotsPerUser=)",
			client->peer.uid, account->n_slots, manager->config->max_slots);
	*ret = service;
	return 1;
}

static int handle_register(struct client *client)
{
	const struct protocol_register request = client->message.reg;
	bool adopt = le32toh(request.flags) & PROTOCOL_REGISTER_ADOPT;
	_cleanup_close_ int pidfd = -1;
	struct registration *registration;
	struct service *service = NULL;
	const char *reason;
	int result;

	result = check_register(client, &request, &service);
	if (result != 1)
		return result;
	pidfd = fcntl(client->peer.pidfd, F_DUPFD_CLOEXEC, 3);
	if (pidfd < 0)
		return refuse(
			client, errno, "the daemon has no descriptor left: %s", strerror(errno));
	result = (adopt ? registration_new_adopting : registration_new)(&registration, service,
		client, request.instance, le32toh(request.n_workers), le32toh(request.weight),
		&reason);
	if (result < 0)
		return refuse(client, -result, "cannot register with service '%s': %s",
			request.service, reason);
	registration->uid = client->peer.uid;
	client->account->n_slots += registration->n_workers;
	client->registration = registration;
	client->sequence = client->message.header.sequence;
	result = registration_set_process(registration, client->peer.pid, take_fd(&pidfd));
	if (result >= 0)
		result = adopt ? send_listeners(client) : send_grant(client, 0);
	if (result < 0) {
		bool told = result != -EAGAIN && result != -EPIPE && result != -ETOOMANYREFS;

		registration_free(registration, "its sockets could not be made or sent");
		return told ? 0 : result;
	}
	return 0;
}

/* A launcher names the process that it started: of the same user, or the launcher is root. */
static int take_process(struct client *client)
{
	struct message *message = &client->message;
	uid_t uid = (uid_t)-1;
	pid_t pid;
	int result;

	if (!(le32toh(message->ack.flags) & PROTOCOL_ACK_PROCESS))
		return 1;
	if (message->n_fds != 1)
		return refuse(client, EINVAL, "ACK of a process without its pidfd");
	result = pidfd_to_pid(message->fds[0], &pid);
	if (result == -ESRCH)
		return refuse(client, ESRCH, "the process has ended already");
	if (result < 0)
		return refuse(client, EBADF, "the descriptor of the ACK is not a pidfd");
	result = pid_to_uid(pid, &uid);
	/* What was read may be of another process, when that one has ended meanwhile. */
	if (result >= 0)
		result = pidfd_to_pid(message->fds[0], &pid);
	if (client->peer.uid != 0 && (result < 0 || uid != client->peer.uid))
		return refuse(client, EPERM, "process %d is not one of user %u", (int)pid,
			client->peer.uid);
	result = registration_set_process(client->registration, pid, take_fd(&message->fds[0]));
	if (result < 0)
		return refuse(client, -result, "cannot watch process %d: %s", (int)pid,
			strerror(-result));
	return 1;
}

/* What must be there for the next process to go on with this client and its registration. */
static void keep(struct client *client, bool here_only)
{
	struct registration *registration = client->registration;
	struct store *store = client->manager->store;

	client->entry = store_keep(store, client->entry, STORE_CLIENT, client->socket, here_only);
	if (registration && registration->pidfd >= 0)
		registration->pidfd_entry = store_keep(store, registration->pidfd_entry,
			STORE_PIDFD, registration->pidfd, here_only);
	store_touch(store);
}

static int handle_ack(struct client *client)
{
	struct registration *registration = client->registration;
	const struct protocol_ack *ack = &client->message.ack;
	uint32_t worker = le32toh(ack->worker), sequence = client->message.header.sequence;
	int result;

	if (!registration || le32toh(ack->registration) != registration->id ||
		registration->acked || worker != client->granting)
		return refuse(client, EINVAL, "no GRANT of registration %u, worker %u is awaited",
			le32toh(ack->registration), worker);
	result = take_process(client);
	if (result != 1)
		return result;
	if (worker + 1 < registration->n_workers) {
		client->sequence = sequence; /* the next GRANT answers this ACK */
		result = send_grant(client, worker + 1);
		if (result < 0 && result != -EAGAIN && result != -EPIPE &&
			result != -ETOOMANYREFS) {
			registration_free(registration, "its sockets could not be made");
			return 0;
		}
		return result;
	}
	registration->acked = true;
	client->answer_before_usec = 0;
	keep(client, false);
	store_commit(client->manager->store);
	result = send_ok(client, sequence);
	if (result >= 0)
		client_send_keys(client);
	return result;
}

static int handle_registration(struct client *client, uint16_t type)
{
	struct registration *registration = client->registration;
	uint32_t id = le32toh(client->message.registration.registration);
	uint32_t sequence = client->message.header.sequence;

	/* What is unfinished can be given back; nothing else can be done with it. */
	if (!registration || registration->id != id ||
		(!registration->acked && type != PROTOCOL_UNREGISTER))
		return refuse(client, EINVAL,
			"%s: registration %u is not this connection's, or its "
			"last GRANT is unacknowledged",
			message_type_name(type), id);
	if (type == PROTOCOL_READY) {
		if (registration->drained ||
			(registration->n_workers &&
				registration->workers[0].state == WORKER_DRAINING))
			return refuse(client, EINVAL, "READY: the workers drain");
		registration_ready(registration);
	} else if (type == PROTOCOL_DRAIN) {
		for (uint32_t i = 0; i < registration->n_workers; i++)
			if (registration->workers[i].state == WORKER_JOINING)
				return refuse(client, EINVAL, "DRAIN: the workers are not READY");
		registration_drain(registration, -1, 0); /* it asks, so it needs no event */
	} else {
		registration_free(registration, "given back");
	}
	store_commit(client->manager->store);
	return send_ok(client, sequence);
}

static const struct protocol_cid *message_cids(const struct message *message)
{
	return (const struct protocol_cid *)(&message->cids + 1);
}

static int refuse_cid(
	struct client *client, const struct listener *listener, int error, size_t failed)
{
	const struct group_quic *quic = listener->group->quic;

	switch (error) {
	case -EEXIST:
		return refuse(client, EEXIST,
			"CID_ADD: connection ID %zu of the batch is another worker's; none was added",
			failed);
	case -EDQUOT:
		return refuse(client, EDQUOT,
			"CID_ADD: listener %s has %u connection IDs of %u (Flows=); none was added",
			listener->config->name, quic->n_cids, quic->max_cids);
	case -ENOSPC:
		return refuse(client, EDQUOT,
			"CID_ADD: one worker may have half of the connection IDs of listener %s, "
			"%u of %u (Flows=); none was added",
			listener->config->name, quic->max_cids / 2, quic->max_cids);
	case -EMLINK:
		return refuse(client, EMLINK,
			"CID_ADD: connection ID %zu has a length that listener %s does not know, "
			"and it knows %d already; none was added",
			failed, listener->config->name, QUIC_CID_LENGTHS);
	case -EINVAL:
		return refuse(client, EINVAL,
			"CID_ADD: connection ID %zu has %u octets, 1 to %d are possible", failed,
			message_cids(&client->message)[failed].length, QUIC_CID_OCTETS);
	default:
		return refuse(client, -error, "CID_ADD: %s; none was added", strerror(-error));
	}
}

/* 1: the user may have n more; they all count, also those that it has already. */
static int check_cid_limit(struct client *client, uint16_t n)
{
	const struct manager *manager = client->manager;
	uint32_t n_cids = manager_count_cids(manager, client->registration->uid);

	if (n_cids + n <= manager->config->max_cids)
		return 1;
	return refuse(client, EDQUOT,
		"CID_ADD: user %u has %u connection IDs of %u (MaxConnectionIDsPerUser=); none was "
		"added",
		client->registration->uid, n_cids, manager->config->max_cids);
}

static int handle_cids(struct client *client, uint16_t type)
{
	struct registration *registration = client->registration;
	const struct protocol_cids *cids = &client->message.cids;
	uint32_t worker = le32toh(cids->worker);
	uint16_t index = le16toh(cids->listener), n = le16toh(cids->count);
	const char *name = message_type_name(type);
	struct listener *listener;
	size_t failed = 0;
	int result = 0;

	if (!registration || registration->id != le32toh(cids->registration) ||
		!registration->acked)
		return refuse(client, EINVAL,
			"%s: registration %u is not this connection's, or its last GRANT is "
			"unacknowledged",
			name, le32toh(cids->registration));
	if (worker >= registration->n_workers || index >= registration->n_granted)
		return refuse(client, ERANGE, "%s: there is no worker %u with a listener %u", name,
			worker, index);
	listener = granted_listener(registration, index);
	if (!listener)
		return refuse(client, ENOENT, "%s: listener %u is closed", name, index);
	if (listener->config->cid_mode != CID_REGISTERED)
		return refuse(client, EOPNOTSUPP,
			"%s: listener %s has ConnectionID=%s, not registered", name,
			listener->config->name, cid_mode_name(listener->config->cid_mode));
	if (type == PROTOCOL_CID_ADD) {
		result = check_cid_limit(client, n);
		if (result != 1)
			return result;
		result = group_quic_add_cids(listener->group->quic,
			registration->workers[worker].slot, message_cids(&client->message), n,
			&failed);
	} else {
		group_quic_retire_cids(listener->group->quic, registration->workers[worker].slot,
			message_cids(&client->message), n);
	}
	if (result < 0)
		return refuse_cid(client, listener, result, failed);
	return send_ok(client, client->message.header.sequence);
}

static int handle_adopt(struct client *client)
{
	struct registration *registration = client->registration;
	const struct protocol_adopt request = client->message.adopt;
	uint32_t id = le32toh(request.registration), sequence = client->message.header.sequence;
	uint16_t index = le16toh(request.listener);
	char text[PROTOCOL_TEXT_MAX];
	struct listener *listener;
	int result;

	if (!registration || registration->id != id || !registration->acked ||
		!registration->max_workers)
		return refuse(client, EINVAL,
			"ADOPT: registration %u is not one of this connection that adopts", id);
	if (index >= registration->n_granted)
		return refuse(client, EINVAL, "ADOPT: there is no listener %u", index);
	listener = granted_listener(registration, index);
	if (!listener)
		return refuse(client, ENOENT, "ADOPT: listener %u is closed", index);
	result = adopt_socket(registration, listener, client->message.fds[0], le16toh(request.step),
		le32toh(request.backlog), text);
	/* Before the answer: once the server goes on, no copy of its socket is here. */
	close_fd(&client->message.fds[0]);
	if (result < 0)
		return refuse(client, -result, "%s", text);
	store_commit(client->manager->store);
	return send_ok(client, sequence);
}

static int handle_message(struct client *client)
{
	uint16_t type = client->message.header.type;

	if (!client->greeted && type != PROTOCOL_HELLO)
		return refuse(client, EPROTO, "HELLO comes first, not %s", message_type_name(type));
	switch (type) {
	case PROTOCOL_HELLO:
		return handle_hello(client);
	case PROTOCOL_REGISTER:
		return handle_register(client);
	case PROTOCOL_ACK:
		return handle_ack(client);
	case PROTOCOL_READY:
	case PROTOCOL_DRAIN:
	case PROTOCOL_UNREGISTER:
		return handle_registration(client, type);
	case PROTOCOL_CID_ADD:
	case PROTOCOL_CID_RETIRE:
		return handle_cids(client, type);
	case PROTOCOL_ADOPT:
		return handle_adopt(client);
	case PROTOCOL_RESUME:
		return refuse(client, EOPNOTSUPP,
			"%s is not supported by this version of the daemon",
			message_type_name(type));
	default:
		return refuse(client, EOPNOTSUPP, "unknown message type %u", type);
	}
}

/* Tables are filled, sockets made, and lines written to the log. */
static unsigned price_of(uint16_t type)
{
	return type == PROTOCOL_REGISTER ? 20 : 1;
}

/* What asks for the same when it is done twice, and brings no descriptor that is needed then. */
static bool is_repeatable(uint16_t type)
{
	return type == PROTOCOL_ACK || type == PROTOCOL_READY || type == PROTOCOL_DRAIN ||
	       type == PROTOCOL_UNREGISTER || type == PROTOCOL_CID_ADD ||
	       type == PROTOCOL_CID_RETIRE;
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
	struct message *message = &client->message;
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
		result = send_ok(client, message->header.sequence);
	} else if (type == PROTOCOL_UNREGISTER && (!registration || registration->id != id)) {
		result = send_ok(client, message->header.sequence);
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

/* Takes one message; may free the client. */
static void receive_one(struct client *client)
{
	const uint64_t started = now_monotonic();
	struct account *account = client->account;
	struct state *state = client->manager->state;
	const char *reason = "";
	unsigned price = 1;
	int result;

	/* From the moment that a message is taken until it is answered, the answer may be lost. */
	if (state)
		note_message(client, state);
	result = message_receive(client->socket, &client->message, &reason);
	if (result == -EAGAIN) {
		price = 0;
	} else if (result == -EBADMSG) {
		refuse(client, EBADMSG, "%s", reason);
		client_goodbye(client, EBADMSG, reason);
	} else if (result <= 0) {
		client_free(client);
	} else {
		price = price_of(client->message.header.type);
		result = handle_message(client);
		message_done(&client->message);
		if (result < 0) /* the client does not read, or has gone */
			client_free(client);
	}
	if (state)
		state_set_answering(state, 0, 0);
	if (price)
		account_charge(account, started, price);
}

static void on_turn(struct turn *turn)
{
	struct client *client = (struct client *)((char *)turn - offsetof(struct client, turn));

	sd_event_source_set_enabled(client->source, SD_EVENT_ON);
	receive_one(client);
}

static int on_readable(sd_event_source *source, int fd, uint32_t events, void *user_data)
{
	struct client *client = user_data;

	if (events & EPOLLOUT)
		client_send_keys(client);
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
		close_fd(&client->socket);
		free(client);
		return result;
	}
	setsockopt(socket, SOL_SOCKET, SO_PASSCRED, &one, sizeof(one));
	await_answer(client);
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

void clients_tick(struct manager *manager)
{
	uint64_t now = now_monotonic();

	for (struct client *client = manager->clients, *next; client; client = next) {
		next = client->next;
		if (client->keys_untold)
			client_send_keys(client);
		/* Who has to wait for its turn can't answer. */
		if (client->answer_before_usec && now >= client->answer_before_usec &&
			!client->turn.account)
			client_goodbye(client, ETIMEDOUT,
				client->greeted ? "no ACK came in time (AnswerTimeoutSec=)"
						: "no HELLO came in time (AnswerTimeoutSec=)");
	}
}

json_t *client_to_json(const struct client *client)
{
	if (!client->entry)
		return NULL;
	return json_pack("{s:I, s:I, s:b, s:I, s:I, s:I}", "id", (json_int_t)client->id, "entry",
		(json_int_t)client->entry, "greeted", client->greeted, "pid",
		(json_int_t)client->peer.pid, "granting", (json_int_t)client->granting, "sequence",
		(json_int_t)client->sequence);
}

struct client *client_next(const struct client *client)
{
	return client->next;
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
	client->keys_untold = true; /* a look at the next tick */
	result = watch(client);
	if (result < 0) {
		store_drop(manager->store, entry, socket);
		free(client);
		return result;
	}
	/* Of an own pidfd that it brought, before Linux 6.5. */
	client->peer.pid = (pid_t)json_integer_value(json_object_get(json, "pid"));
	if (!client->greeted)
		await_answer(client);
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
		await_answer(client);
	if (client->peer.pidfd < 0 && registration->pidfd >= 0 &&
		registration->pid == client->peer.pid)
		client->peer.pidfd = fcntl(registration->pidfd, F_DUPFD_CLOEXEC, 3);
}

void clients_keep(struct manager *manager)
{
	for (struct client *client = manager->clients; client; client = client->next)
		keep(client, true);
}
