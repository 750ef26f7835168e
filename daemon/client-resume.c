/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * RESUME: workers that an earlier daemon made come back with their sockets. What they say of
 * themselves is believed as far as it harms nobody: who may register with the service, the sockets
 * themselves, and slots that nobody else has. The rest is takeover.c.
 */
#include <endian.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "common/util.h"
#include "daemon/client.h"
#include "daemon/group.h"
#include "daemon/socket.h"
#include "daemon/store.h"
#include "daemon/takeover.h"

/* A listener that there is no longer: no number is as high. */
#define CLOSED UINT32_MAX

static const struct protocol_resume_listener *listener_of(const struct message *message, uint32_t i)
{
	return (const void *)(message->body + sizeof(message->resume) +
			      i * sizeof(struct protocol_resume_listener));
}

static struct listener *find_listener(
	const struct service *service, const struct protocol_resume_listener *wanted)
{
	for (size_t i = 0; i < service->n_listeners; i++) {
		struct listener *listener = service->listeners[i];

		if (listener && strcmp(listener->config->name, wanted->name) == 0 &&
			strcmp(listener->config->address_text, wanted->address) == 0 &&
			(int)listener->config->transport == wanted->transport &&
			(int)listener->config->cid_mode == wanted->cid_mode)
			return listener;
	}
	return NULL;
}

/* The first worker: who may, and the registration. 1: it is the client's. */
static int begin(struct client *client, const struct protocol_resume *resume)
{
	const uint32_t flags = le32toh(resume->flags), n = le32toh(resume->n_workers);
	struct registration *registration;
	struct service *service = NULL;
	const uint32_t max_workers = le32toh(resume->max_workers);
	int pidfd, result;

	if (max_workers && (max_workers > PROTOCOL_WORKERS_MAX || n > max_workers))
		return client_refuse(client, EINVAL, "RESUME: %u workers of at most %u", n,
			MIN(max_workers, (uint32_t)PROTOCOL_WORKERS_MAX));
	result = client_check_registration(
		client, resume->service, resume->instance, n, le32toh(resume->weight), n, &service);
	if (result != 1)
		return result;
	pidfd = fcntl(client->peer.pidfd, F_DUPFD_CLOEXEC, 3);
	if (pidfd < 0)
		return client_refuse(
			client, errno, "the daemon has no descriptor left: %s", strerror(errno));
	result = registration_new_resumed(&registration, service, client, resume->instance, n,
		max_workers, le32toh(resume->weight));
	if (result < 0) {
		close_fd(&pidfd);
		return client_refuse(client, -result, "RESUME: %s", strerror(-result));
	}
	registration->uid = client->peer.uid;
	registration->ready = flags & PROTOCOL_RESUME_READY;
	registration->drained = flags & PROTOCOL_RESUME_DRAINING;
	client->registration = registration;
	for (uint32_t i = 0; i < le16toh(resume->n_listeners); i++) {
		const struct listener *listener =
			find_listener(service, listener_of(client->message, i));

		registration->granted[registration->n_granted++] =
			listener ? listener->number : CLOSED;
	}
	result = registration_set_process(registration, client->peer.pid, pidfd);
	if (result < 0)
		return client_refuse(
			client, -result, "cannot watch the process: %s", strerror(-result));
	if (!(flags & PROTOCOL_RESUME_PROCESS))
		return 1;
	return client_take_process(client, &client->message->fds[client->message->n_fds - 1]);
}

static int check_order(struct client *client, const struct protocol_resume *resume)
{
	const struct registration *registration = client->registration;

	if (registration->n_expected != le32toh(resume->n_workers) ||
		registration->n_came != le32toh(resume->worker) ||
		registration->max_workers != le32toh(resume->max_workers) ||
		registration->n_granted != le16toh(resume->n_listeners) ||
		strcmp(registration->instance, resume->instance) != 0 ||
		strcmp(registration->service->config->name, resume->service) != 0)
		return client_refuse(client, EINVAL,
			"RESUME: worker %u of %u does not follow the one before",
			le32toh(resume->worker), le32toh(resume->n_workers));
	return 1;
}

/* IDs of its connections name the slot, and no other one will do. */
static bool slot_is_named(const struct registration *registration)
{
	for (uint32_t i = 0; i < registration->n_granted; i++) {
		const struct listener *listener = client_granted_listener(registration, i);

		if (listener && (listener->config->cid_mode == CID_QUIC_LB ||
					listener->config->cid_mode == CID_QUIC_LB_PLAIN))
			return true;
	}
	return false;
}

static int claim_slot(struct client *client, const struct protocol_resume *resume)
{
	struct registration *registration = client->registration;
	const uint16_t slot = le16toh(resume->slot);
	struct worker *worker;
	int result;

	if (slot == PROTOCOL_NO_SLOT && registration->max_workers)
		return 1;
	if (slot >= SLOT_COUNT)
		return client_refuse(client, EINVAL, "RESUME: there is no slot %u", slot);
	/* Others may have come since the first of its workers. */
	if (client->account->n_slots >= client->manager->config->max_slots)
		return client_refuse(client, EDQUOT,
			"user %u has %u slots of %u (MaxSlotsPerUser=)", client->peer.uid,
			client->account->n_slots, client->manager->config->max_slots);
	result = registration_resume_worker(
		registration, slot, slot_is_named(registration), &worker);
	if (result < 0)
		return client_refuse(client, -result, "RESUME: slot %u: %s", slot,
			result == -EEXIST ? "another worker has it" : strerror(-result));
	return 1;
}

static int take_worker(struct client *client, const struct protocol_resume *resume)
{
	struct registration *registration = client->registration;
	const uint32_t index = registration->n_workers;
	int result = claim_slot(client, resume);

	if (result != 1)
		return result;
	registration->n_came++;
	for (uint32_t i = 0; i < registration->n_granted; i++) {
		const struct protocol_resume_listener *entry = listener_of(client->message, i);
		struct listener *listener = client_granted_listener(registration, i);
		uint16_t descriptor = le16toh(entry->descriptor);
		const char *reason = "";

		if (descriptor == PROTOCOL_NO_DESCRIPTOR || !listener)
			continue;
		result = claim_socket(registration, index,
			entry->flags ? PROTOCOL_NO_SLOT : le16toh(resume->slot), i, listener,
			take_fd(&client->message->fds[descriptor]), &reason);
		if (result < 0)
			return client_refuse(client, -result,
				"RESUME: the socket of worker %u for listener %s: %s", index,
				entry->name, reason);
	}
	return 1;
}

static bool has_socket(
	const struct registration *registration, const struct listener *listener, uint64_t cookie)
{
	/* Which of the slots a server has that made its sockets itself, it need not know. */
	const uint32_t n = registration->max_workers ? registration->n_workers : 1;
	uint64_t standing;

	for (uint32_t i = 0; i < n; i++)
		if (group_has_socket(listener->group, registration->workers[i].slot, &standing) &&
			standing == cookie)
			return true;
	return false;
}

/* Whether one of its sockets was brought, so that it is the worker that it says. */
static bool brings_own(const struct client *client, const struct registration *registration)
{
	const struct message *message = client->message;

	for (uint32_t i = 0; i < le16toh(message->resume.n_listeners); i++) {
		const struct protocol_resume_listener *entry = listener_of(message, i);
		const struct listener *listener = find_listener(registration->service, entry);
		uint16_t descriptor = le16toh(entry->descriptor);

		if (listener && descriptor != PROTOCOL_NO_DESCRIPTOR &&
			has_socket(registration, listener, socket_cookie(message->fds[descriptor])))
			return true;
	}
	return false;
}

/* Those of one that adopts come and go: what it brings is what it has, some or all of it. */
static bool is_as_known(const struct registration *r, const struct protocol_resume *resume)
{
	const uint32_t n_listeners = le16toh(resume->n_listeners);

	if (r->max_workers != le32toh(resume->max_workers) || strcmp(r->instance, resume->instance))
		return false;
	if (r->max_workers)
		return n_listeners <= r->n_granted;
	return n_listeners == r->n_granted && r->n_workers == le32toh(resume->n_workers) &&
	       r->workers[0].slot == le16toh(resume->slot);
}

/* One whose connection alone was lost. */
static struct registration *find_known(struct client *client, const struct protocol_resume *resume)
{
	struct service *service = manager_find_service(client->manager, resume->service);

	if (client->registration || resume->worker || !service)
		return NULL;
	for (struct registration *r = service->registrations; r; r = r->next)
		if (r->acked && !r->client && r->uid == client->peer.uid &&
			is_as_known(r, resume) && brings_own(client, r))
			return r;
	return NULL;
}

/* It has all that it needs, its sockets as well; only who asks for it is new. */
static int come_again(struct client *client, const struct protocol_resume *resume)
{
	struct registration *registration = client->registration;
	const uint32_t n =
		registration->max_workers ? le32toh(resume->n_workers) : registration->n_workers;

	if (client->n_again >= n)
		return client_refuse(client, EALREADY, "this connection has registered already");
	if (le32toh(resume->worker) != client->n_again)
		return client_refuse(client, EINVAL,
			"RESUME: worker %u does not follow the one before",
			le32toh(resume->worker));
	if (++client->n_again == n) {
		/* Listeners that it does not know yet are told anew. */
		if (registration->max_workers)
			registration->n_granted = le16toh(resume->n_listeners);
		client->resumed_untold = registration->max_workers ? 1 : n;
		client_keep(client, false);
		store_commit(client->manager->store);
	}
	return client_send_ok(client, client->message->header.sequence);
}

int client_handle_resume(struct client *client)
{
	const struct protocol_resume resume = client->message->resume;
	const uint32_t sequence = client->message->header.sequence;
	struct registration *registration = client->registration;
	struct registration *known = find_known(client, &resume);
	int result;

	if (known) {
		client->registration = known;
		known->client = client;
	}
	if (known || client->n_again) {
		result = come_again(client, &resume);
		if (result >= 0)
			client_send_resumed(client);
		return result;
	}
	if (registration && !registration->n_expected)
		return client_refuse(client, EALREADY, "this connection has registered already");
	if (!registration && resume.worker)
		return client_refuse(client, EINVAL, "RESUME: the first worker is worker 0");
	result = registration ? check_order(client, &resume) : begin(client, &resume);
	if (result == 1)
		result = take_worker(client, &resume);
	registration = client->registration;
	if (result != 1) {
		/* What it had brought is let go. */
		if (registration)
			registration_free(registration, NULL);
		return result;
	}
	if (registration->n_came < registration->n_expected) {
		client_await_answer(client);
		return client_send_ok(client, sequence);
	}
	client->answer_before_usec = 0;
	result = claims_complete(registration);
	return result < 0 ? result : client_send_ok(client, sequence);
}

/* One GRANT, as of a new worker but without descriptors. */
static int send_resumed(struct client *client, uint32_t index)
{
	struct registration *registration = client->registration;
	const struct worker *worker = &registration->workers[index];
	struct protocol_grant *grant = &client->message->grant;
	struct protocol_grant_listener *entry = (struct protocol_grant_listener *)(grant + 1);
	const uint32_t n = registration->n_granted;
	int result = 0;

	memset(client->message->body, 0, sizeof(client->message->body));
	for (uint32_t i = 0; i < n && result >= 0; i++) {
		const struct listener *listener = client_granted_listener(registration, i);

		entry[i].descriptor = htole16(PROTOCOL_NO_DESCRIPTOR);
		if (!listener)
			continue;
		result = client_describe_listener(&entry[i], listener, worker->slot);
		registration->told[index * PROTOCOL_LISTENERS_MAX + i] = listener->keys_version;
	}
	grant->registration = htole32(registration->id);
	grant->worker = htole32(index);
	grant->n_workers = htole32(registration->n_workers);
	grant->slot = htole16(worker->slot);
	grant->n_listeners = htole16((uint16_t)n);
	memcpy(grant->instance, registration->instance, sizeof(grant->instance));
	if (result >= 0)
		result = message_send(client->socket, PROTOCOL_GRANT, 0, grant,
			sizeof(*grant) + n * sizeof(*entry), NULL, 0);
	explicit_bzero(client->message->body, sizeof(client->message->body)); /* keys */
	return result;
}

void client_send_resumed(struct client *client)
{
	const struct registration *registration = client->registration;

	while (client->resumed_untold && registration && client_has_room(client) &&
		(registration->max_workers
				? client_send_listeners(client, 0)
				: send_resumed(client,
					  registration->n_workers - client->resumed_untold)) >= 0)
		client->resumed_untold--;
}
