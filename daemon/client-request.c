/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Requests about a registration that has its sockets: READY, DRAIN, UNREGISTER, connection IDs, and
 * sockets that the server made itself.
 */
#include <endian.h>
#include <string.h>

#include "common/util.h"
#include "daemon/client.h"
#include "daemon/load.h"
#include "daemon/group.h"
#include "daemon/group-quic.h"
#include "daemon/socket.h"
#include "daemon/store.h"

int client_handle_registration(struct client *client, uint16_t type)
{
	struct registration *registration = client->registration;
	uint32_t id = le32toh(client->message->registration.registration);
	uint32_t sequence = client->message->header.sequence;

	/* What is unfinished can be given back; nothing else can be done with it. */
	if (!registration || registration->id != id ||
		(!registration->acked && type != PROTOCOL_UNREGISTER))
		return client_refuse(client, EINVAL,
			"%s: registration %u is not this connection's, or its "
			"last GRANT is unacknowledged",
			message_type_name(type), id);
	if (type == PROTOCOL_READY) {
		if (registration->drained ||
			(registration->n_workers &&
				registration->workers[0].state == WORKER_DRAINING))
			return client_refuse(client, EINVAL, "READY: the workers drain");
		registration_ready(registration);
	} else if (type == PROTOCOL_DRAIN) {
		for (uint32_t i = 0; i < registration->n_workers; i++)
			if (registration->workers[i].state == WORKER_JOINING)
				return client_refuse(
					client, EINVAL, "DRAIN: the workers are not READY");
		registration_drain(registration, -1, 0); /* it asks, so it needs no event */
	} else {
		registration_free(registration, "given back");
	}
	store_commit(client->manager->store);
	return client_send_ok(client, sequence);
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
		return client_refuse(client, EEXIST,
			"CID_ADD: connection ID %zu of the batch is another worker's; none was added",
			failed);
	case -EDQUOT:
		return client_refuse(client, EDQUOT,
			"CID_ADD: listener %s has %u connection IDs of %u (Flows=); none was added",
			listener->config->name, quic->n_cids, quic->max_cids);
	case -ENOSPC:
		return client_refuse(client, EDQUOT,
			"CID_ADD: one worker may have half of the connection IDs of listener %s, "
			"%u of %u (Flows=); none was added",
			listener->config->name, quic->max_cids / 2, quic->max_cids);
	case -EMLINK:
		return client_refuse(client, EMLINK,
			"CID_ADD: connection ID %zu has a length that listener %s does not know, "
			"and it knows %d already; none was added",
			failed, listener->config->name, QUIC_CID_LENGTHS);
	case -EINVAL:
		return client_refuse(client, EINVAL,
			"CID_ADD: connection ID %zu has %u octets, 1 to %d are possible", failed,
			message_cids(client->message)[failed].length, QUIC_CID_OCTETS);
	default:
		return client_refuse(
			client, -error, "CID_ADD: %s; none was added", strerror(-error));
	}
}

/* 1: the user may have n more; they all count, also those that it has already. */
static int check_cid_limit(struct client *client, uint16_t n)
{
	const struct manager *manager = client->manager;
	uint32_t n_cids = manager_count_cids(manager, client->registration->uid);

	if (n_cids + n <= manager->config->max_cids)
		return 1;
	return client_refuse(client, EDQUOT,
		"CID_ADD: user %u has %u connection IDs of %u (MaxConnectionIDsPerUser=); none was "
		"added",
		client->registration->uid, n_cids, manager->config->max_cids);
}

int client_handle_cids(struct client *client, uint16_t type)
{
	struct registration *registration = client->registration;
	const struct protocol_cids *cids = &client->message->cids;
	uint32_t worker = le32toh(cids->worker);
	uint16_t index = le16toh(cids->listener), n = le16toh(cids->count);
	const char *name = message_type_name(type);
	struct listener *listener;
	size_t failed = 0;
	int result = 0;

	if (!registration || registration->id != le32toh(cids->registration) ||
		!registration->acked)
		return client_refuse(client, EINVAL,
			"%s: registration %u is not this connection's, or its last GRANT is "
			"unacknowledged",
			name, le32toh(cids->registration));
	if (worker >= registration->n_workers || index >= registration->n_granted)
		return client_refuse(client, ERANGE, "%s: there is no worker %u with a listener %u",
			name, worker, index);
	listener = client_granted_listener(registration, index);
	if (!listener)
		return client_refuse(client, ENOENT, "%s: listener %u is closed", name, index);
	if (listener->config->cid_mode != CID_REGISTERED)
		return client_refuse(client, EOPNOTSUPP,
			"%s: listener %s has ConnectionID=%s, not registered", name,
			listener->config->name, cid_mode_name(listener->config->cid_mode));
	if (type == PROTOCOL_CID_ADD) {
		result = check_cid_limit(client, n);
		if (result != 1)
			return result;
		result = group_quic_add_cids(listener->group->quic,
			registration->workers[worker].slot, message_cids(client->message), n,
			&failed);
	} else {
		group_quic_retire_cids(listener->group->quic, registration->workers[worker].slot,
			message_cids(client->message), n);
	}
	if (result < 0)
		return refuse_cid(client, listener, result, failed);
	return client_send_ok(client, client->message->header.sequence);
}

void client_send_adopted(
	struct client *client, const struct worker *worker, uint32_t listener, uint64_t cookie)
{
	const struct protocol_adopted event = {
		.registration = htole32(worker->registration->id),
		.listener = htole16((uint16_t)listener),
		.slot = htole16(worker->slot),
		.cookie = htole64(cookie),
	};

	/* A client that reads nothing misses it, and can't bring the socket to another daemon. */
	message_send(client->socket, PROTOCOL_ADOPTED, 0, &event, sizeof(event), NULL, 0);
}

int client_handle_adopt(struct client *client)
{
	struct registration *registration = client->registration;
	const struct protocol_adopt request = client->message->adopt;
	uint32_t id = le32toh(request.registration), sequence = client->message->header.sequence;
	uint16_t index = le16toh(request.listener);
	char text[PROTOCOL_TEXT_MAX];
	struct listener *listener;
	struct worker *worker;
	uint64_t cookie;
	int result;

	if (!registration || registration->id != id || !registration->acked ||
		!registration->max_workers)
		return client_refuse(client, EINVAL,
			"ADOPT: registration %u is not one of this connection that adopts", id);
	if (index >= registration->n_granted)
		return client_refuse(client, EINVAL, "ADOPT: there is no listener %u", index);
	listener = client_granted_listener(registration, index);
	if (!listener)
		return client_refuse(client, ENOENT, "ADOPT: listener %u is closed", index);
	result = adopt_socket(registration, listener, client->message->fds[0],
		le16toh(request.step), le32toh(request.backlog), &worker, text);
	cookie = socket_cookie(client->message->fds[0]);
	/* Before the answer: once the server goes on, no copy of its socket is here. */
	close_fd(&client->message->fds[0]);
	if (result < 0)
		return client_refuse(client, -result, "%s", text);
	store_commit(client->manager->store);
	if (worker)
		client_send_adopted(client, worker, index, cookie);
	return client_send_ok(client, sequence);
}

int client_handle_load(struct client *client)
{
	struct registration *registration = client->registration;
	uint32_t id = le32toh(client->message->registration.registration);
	uint32_t sequence = client->message->header.sequence;
	struct protocol_loads answer = {.registration = htole32(id)};
	int fd;

	if (!registration || registration->id != id || !registration->acked)
		return client_refuse(client, EINVAL,
			"LOAD: registration %u is not this connection's, or its last GRANT is "
			"unacknowledged",
			id);
	if (registration->max_workers)
		return client_refuse(client, EOPNOTSUPP,
			"LOAD: which worker is which is not known of a registration that adopts");
	fd = loads_open(registration);
	if (fd < 0)
		return client_refuse(
			client, -fd, "LOAD: cannot make the memory: %s", strerror(-fd));
	store_commit(client->manager->store);
	answer.n_workers = htole32(registration->n_workers);
	return message_send(
		client->socket, PROTOCOL_LOADS, sequence, &answer, sizeof(answer), &fd, 1);
}
