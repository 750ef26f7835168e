/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * From REGISTER to the last ACK: who may, which sockets are made, what a worker is told of its
 * listeners, and of their keys when these change later.
 */
#include <endian.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>

#include "common/util.h"
#include "daemon/client.h"
#include "daemon/event.h"
#include "daemon/group.h"
#include "daemon/group-quic.h"
#include "daemon/log.h"
#include "daemon/store.h"

int client_describe_listener(
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
struct listener *client_granted_listener(const struct registration *registration, uint32_t index)
{
	const struct service *service = registration->service;

	for (size_t i = 0; i < service->n_listeners; i++)
		if (service->listeners[i] &&
			service->listeners[i]->number == registration->granted[index])
			return service->listeners[i];
	return NULL;
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
	int result = client_describe_listener(&entry, listener, registration->workers[worker].slot);

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
		struct listener *listener = client_granted_listener(registration, index);

		if (!listener || !listener->keys || listener->config->cid_mode != CID_QUIC_LB)
			continue;
		for (uint32_t i = 0; i < registration->n_workers; i++) {
			uint32_t *told = &registration->told[i * PROTOCOL_LISTENERS_MAX + index];

			if (*told == listener->keys_version)
				continue;
			if (!client_has_room(client))
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
	struct protocol_grant *grant = &client->message->grant;
	struct protocol_grant_listener *entry = (struct protocol_grant_listener *)(grant + 1);
	int fds[PROTOCOL_LISTENERS_MAX] = {0};
	const char *step = "";
	uint16_t n = 0;
	int result = 0;

	memset(client->message->body, 0, sizeof(client->message->body));
	for (size_t i = 0; i < service->n_listeners && n < PROTOCOL_LISTENERS_MAX; i++) {
		struct listener *listener = service->listeners[i];

		if (!listener)
			continue;
		fds[n] = group_add_socket(listener->group, listener->config, worker->slot, &step);
		if (fds[n] < 0) {
			result = fds[n];
			event_listener(EVENT_GRANT_FAILED, listener, strerror(-result),
				"cannot make a socket for %s: %s", registration->instance, step);
			break;
		}
		group_reset_slot(listener->group, worker->slot);
		entry[n].descriptor = htole16(n);
		worker->present |= 1ULL << listener->index;
		registration->granted[n] = listener->number;
		registration->n_granted = ++n;
		registration->told[index * PROTOCOL_LISTENERS_MAX + n - 1] = listener->keys_version;
		result = client_describe_listener(&entry[n - 1], listener, worker->slot);
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
	client_await_answer(client);
	return 0;
}

static bool is_granted(const struct registration *registration, const struct listener *listener)
{
	for (uint32_t i = 0; i < registration->n_granted; i++)
		if (registration->granted[i] == listener->number)
			return true;
	return false;
}

/* Those that it does not know yet, behind the others, whose numbers stay. Whether there are any. */
static bool grant_new_listeners(struct registration *registration)
{
	const struct service *service = registration->service;
	bool any = false;

	for (size_t i = 0; i < service->n_listeners; i++) {
		const struct listener *listener = service->listeners[i];

		if (!listener || is_granted(registration, listener) ||
			registration->n_granted == PROTOCOL_LISTENERS_MAX)
			continue;
		registration->granted[registration->n_granted++] = listener->number;
		any = true;
	}
	return any;
}

/* The GRANT of a registration that brings its own sockets: what there is to bind. */
int client_send_listeners(struct client *client, uint32_t sequence)
{
	const struct registration *registration = client->registration;
	struct protocol_grant *grant = &client->message->grant;
	struct protocol_grant_listener *entry = (struct protocol_grant_listener *)(grant + 1);
	const uint32_t n = registration->n_granted;

	memset(client->message->body, 0, sizeof(client->message->body));
	for (uint32_t i = 0; i < n; i++) {
		const struct listener *listener = client_granted_listener(registration, i);

		/* Keys are of no use to it, so it gets none. */
		entry[i].descriptor = htole16(PROTOCOL_NO_DESCRIPTOR);
		if (!listener)
			continue;
		snprintf(entry[i].name, sizeof(entry[i].name), "%s", listener->config->name);
		snprintf(entry[i].address, sizeof(entry[i].address), "%s",
			listener->config->address_text);
		entry[i].transport = (uint8_t)listener->config->transport;
		entry[i].cid_mode = (uint8_t)listener->config->cid_mode;
	}
	grant->registration = htole32(registration->id);
	grant->n_listeners = htole16((uint16_t)n);
	memcpy(grant->instance, registration->instance, sizeof(grant->instance));
	return message_send(client->socket, PROTOCOL_GRANT, sequence, grant,
		sizeof(*grant) + n * sizeof(*entry), NULL, 0);
}

void client_tell_listeners(struct client *client)
{
	struct registration *registration = client->registration;
	uint32_t before;

	if (!registration || !registration->max_workers || !registration->acked ||
		client->resumed_untold) /* that comes first */
		return;
	before = registration->n_granted;
	if (!grant_new_listeners(registration))
		return;
	store_touch(client->manager->store);
	store_commit(client->manager->store);
	if (client_send_listeners(client, 0) >= 0)
		return;
	registration->n_granted = before; /* it does not read: a second later again */
	store_touch(client->manager->store);
}

/* The listeners of a registration that is new. */
static int grant_listeners(struct client *client)
{
	int result;

	grant_new_listeners(client->registration);
	result = client_send_listeners(client, client->sequence);
	if (result < 0)
		return result;
	client->granting = 0;
	client_await_answer(client);
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

int client_check_registration(struct client *client, const char *service_name, const char *instance,
	uint32_t n_workers, uint32_t weight, uint32_t n_slots, struct service **ret)
{
	struct manager *manager = client->manager;
	struct service *service = manager_find_service(manager, service_name);
	struct account *account = client->account;
	uint32_t taken = 0;

	if (client->registration)
		return client_refuse(client, EALREADY, "this connection has registered already");
	if (client->peer.pidfd < 0)
		return client_refuse(client, EPERM,
			"HELLO must bring a pidfd of the client: this kernel is older than 6.5");
	if (!is_plain_name(service_name))
		return client_refuse(client, ENOENT, "no service has such a name");
	if (!service || service->removed)
		return client_refuse(client, ENOENT, "there is no service '%s'", service_name);
	if (client->peer.uid != 0 && !service_config_allows(service->config, client->peer.uid,
					     client->peer.gids, client->peer.n_gids))
		return client_refuse(client, EACCES,
			"user %u may not register with service '%s': AllowUser= and AllowGroup= in %s "
			"decide",
			client->peer.uid, service_name,
			service->config->file ? service->config->file : "its configuration");
	if (!is_plain_name(instance))
		return client_refuse(client, EINVAL,
			"the instance's name has other characters than printable ASCII without blanks");
	if (n_workers < 1 || n_workers > PROTOCOL_WORKERS_MAX)
		return client_refuse(client, EINVAL, "%u workers asked for, 1 to %u are possible",
			n_workers, PROTOCOL_WORKERS_MAX);
	if (weight > 1000)
		return client_refuse(client, EINVAL, "weight %u, 1 to 1000 are possible", weight);
	for (struct registration *r = service->registrations; r; r = r->next)
		taken += MAX(r->n_workers, r->n_expected);
	if (taken + n_slots > service->config->max_workers)
		return client_refuse(client, EDQUOT,
			"service '%s' has %u workers of %u (MaxWorkers=)", service_name, taken,
			service->config->max_workers);
	if (account->n_slots + n_slots > manager->config->max_slots)
		return client_refuse(client, EDQUOT,
			"user %u has %u slots of %u (MaxSlotsPerUser=)", client->peer.uid,
			account->n_slots, manager->config->max_slots);
	*ret = service;
	return 1;
}

int client_handle_register(struct client *client)
{
	const struct protocol_register request = client->message->reg;
	bool adopt = le32toh(request.flags) & PROTOCOL_REGISTER_ADOPT;
	_cleanup_close_ int pidfd = -1;
	struct registration *registration;
	struct service *service = NULL;
	const char *reason;
	int result;

	/* Those that adopt are counted as they come; one should be possible. */
	result = client_check_registration(client, request.service, request.instance,
		le32toh(request.n_workers), le32toh(request.weight),
		adopt ? 1 : le32toh(request.n_workers), &service);
	if (result != 1)
		return result;
	pidfd = fcntl(client->peer.pidfd, F_DUPFD_CLOEXEC, 3);
	if (pidfd < 0)
		return client_refuse(
			client, errno, "the daemon has no descriptor left: %s", strerror(errno));
	result = (adopt ? registration_new_adopting : registration_new)(&registration, service,
		client, request.instance, le32toh(request.n_workers), le32toh(request.weight),
		&reason);
	if (result < 0)
		return client_refuse(client, -result, "cannot register with service '%s': %s",
			request.service, reason);
	registration->uid = client->peer.uid;
	client->account->n_slots += registration->n_workers;
	client->registration = registration;
	client->sequence = client->message->header.sequence;
	result = registration_set_process(registration, client->peer.pid, take_fd(&pidfd));
	if (result >= 0)
		result = adopt ? grant_listeners(client) : send_grant(client, 0);
	if (result < 0) {
		bool told = result != -EAGAIN && result != -EPIPE && result != -ETOOMANYREFS;

		registration_free(registration, "its sockets could not be made or sent");
		return told ? 0 : result;
	}
	return 0;
}

/* A launcher names the process that it started: of the same user, or the launcher is root. */
int client_take_process(struct client *client, int *pidfd)
{
	uid_t uid = (uid_t)-1;
	pid_t pid;
	int result;

	result = pidfd_to_pid(*pidfd, &pid);
	if (result == -ESRCH)
		return client_refuse(client, ESRCH,
			"the process has ended already, or is in a PID namespace that the daemon "
			"can't see into");
	if (result < 0)
		return client_refuse(client, EBADF, "the descriptor is not a pidfd");
	result = pid_to_uid(pid, &uid);
	/* What was read may be of another process, when that one has ended meanwhile. */
	if (result >= 0)
		result = pidfd_to_pid(*pidfd, &pid);
	if (client->peer.uid != 0 && (result < 0 || uid != client->peer.uid))
		return client_refuse(client, EPERM, "process %d is not one of user %u", (int)pid,
			client->peer.uid);
	result = registration_set_process(client->registration, pid, take_fd(pidfd));
	if (result < 0)
		return client_refuse(client, -result, "cannot watch process %d: %s", (int)pid,
			strerror(-result));
	return 1;
}

int client_handle_ack(struct client *client)
{
	struct registration *registration = client->registration;
	const struct protocol_ack *ack = &client->message->ack;
	uint32_t worker = le32toh(ack->worker), sequence = client->message->header.sequence;
	int result;

	if (!registration || le32toh(ack->registration) != registration->id ||
		registration->acked || worker != client->granting)
		return client_refuse(client, EINVAL,
			"no GRANT of registration %u, worker %u is awaited",
			le32toh(ack->registration), worker);
	if (le32toh(ack->flags) & PROTOCOL_ACK_PROCESS) {
		result = client_take_process(client, &client->message->fds[0]);
		if (result != 1)
			return result;
	}
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
	client_keep(client, false);
	store_commit(client->manager->store);
	event_tell(client->manager, EVENT_WORKER_REGISTERED,
		&(struct event_about){.registration = registration}, "registered");
	result = client_send_ok(client, sequence);
	if (result >= 0)
		client_send_keys(client);
	return result;
}
