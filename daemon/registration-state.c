/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A registration as it stands in the state, and back when the next daemon starts.
 */
#include "daemon/registration.h"

#include <stddef.h>
#include <string.h>

#include "common/util.h"
#include "daemon/client.h"
#include "daemon/load.h"
#include "daemon/manager.h"
#include "daemon/state-text.h"
#include "daemon/store.h"

static json_t *worker_to_json(const struct worker *worker)
{
	return json_pack("{s:i, s:i, s:i, s:I, s:I, s:b, s:I}", "slot", worker->slot, "weight",
		worker->weight, "state", worker->state, "since", (json_int_t)worker->since_usec,
		"drain_before", (json_int_t)worker->drain_before_usec, "granted", worker->granted,
		"present", (json_int_t)worker->present);
}

static const struct listener *listener_of_number(const struct service *service, uint32_t number)
{
	for (size_t i = 0; i < service->n_listeners; i++)
		if (service->listeners[i] && service->listeners[i]->number == number)
			return service->listeners[i];
	return NULL;
}

/* What differs from the listeners' versions of now: workers that were not told of a key yet. */
static json_t *told_to_json(const struct registration *registration)
{
	json_t *json = json_array();

	for (uint32_t k = 0; k < registration->n_granted; k++) {
		const struct listener *listener =
			listener_of_number(registration->service, registration->granted[k]);

		for (uint32_t i = 0; listener && i < registration->n_workers; i++) {
			uint32_t told = registration->told[i * PROTOCOL_LISTENERS_MAX + k];

			if (told != listener->keys_version)
				json_array_append_new(
					json, json_pack("[I, I, I]", (json_int_t)i, (json_int_t)k,
						      (json_int_t)told));
		}
	}
	return json;
}

/* Those that bring their sockets; null for others. The weight is of workers that are to come. */
static json_t *adopting_to_json(const struct registration *registration)
{
	uint32_t n = registration->max_workers;

	if (!n)
		return json_null();
	return json_pack("{s:I, s:i, s:b, s:b, s:I}", "max_workers", (json_int_t)n, "weight",
		registration->workers[n - 1].weight, "ready", registration->ready, "drained",
		registration->drained, "adopted", (json_int_t)registration->adopted_usec);
}

static json_t *registration_to_json(const struct registration *registration)
{
	json_t *workers = json_array(), *granted = json_array();
	uint32_t client = registration->client ? client_id(registration->client) : 0;

	for (uint32_t i = 0; i < registration->n_workers; i++)
		json_array_append_new(workers, worker_to_json(&registration->workers[i]));
	for (uint32_t i = 0; i < registration->n_granted; i++)
		json_array_append_new(granted, json_integer(registration->granted[i]));
	return json_pack(
		"{s:I, s:s, s:I, s:I, s:I, s:b, s:b, s:I, s:I, s:I, s:o, s:o, s:o, s:o, s:I}", "id",
		(json_int_t)registration->id, "instance", registration->instance, "uid",
		(json_int_t)registration->uid, "pid", (json_int_t)registration->pid, "pidfd",
		(json_int_t)registration->pidfd_entry, "exited", registration->exited, "acked",
		registration->acked, "client", (json_int_t)client, "drain_untold",
		(json_int_t)registration->drain_untold, "ready_since",
		(json_int_t)registration->ready_usec, "workers", workers, "granted", granted,
		"told", told_to_json(registration), "adopting", adopting_to_json(registration),
		"loads", (json_int_t)loads_entry(registration->loads));
}

void registration_write(struct registration *registration, struct text *text)
{
	const uint32_t client = registration->client ? client_id(registration->client) : 0;
	size_t n = MAX(registration->n_workers, registration->max_workers);
	uint32_t versions[PROTOCOL_LISTENERS_MAX] = {0};
	const size_t head = offsetof(struct registration, granted);
	const size_t tail = offsetof(struct registration, n_granted);
	const size_t granted = registration->n_granted * sizeof(uint32_t);
	/* What lies behind n_granted is nothing: there are thousands of these. */
	const struct iovec parts[] = {
		{registration, head + granted},
		{&registration->n_granted, offsetof(struct registration, saved) - tail},
		{registration->workers, n * sizeof(*registration->workers)},
		{registration->told,
			(n - 1) * PROTOCOL_LISTENERS_MAX * sizeof(*registration->told) + granted},
		{versions, granted},
		{(void *)&client, sizeof(client)},
	};

	/* What it is told of is compared with these. */
	for (uint32_t k = 0; k < registration->n_granted; k++) {
		const struct listener *listener =
			listener_of_number(registration->service, registration->granted[k]);

		versions[k] = listener ? listener->keys_version + 1 : 0;
	}
	if (!piece_is_of(&registration->saved, parts, ARRAY_SIZE(parts)))
		piece_set(&registration->saved, parts, ARRAY_SIZE(parts),
			registration_to_json(registration));
	if (!registration->saved.octets)
		text->failed = true;
	else
		text_add(text, registration->saved.octets, registration->saved.length);
}

static uint64_t number_of(const json_t *json, const char *name)
{
	return (uint64_t)json_integer_value(json_object_get(json, name));
}

static void resume_worker(struct registration *registration, uint32_t index, const json_t *json)
{
	struct worker *worker = &registration->workers[index];

	worker->registration = registration;
	worker->slot = (uint16_t)number_of(json, "slot");
	worker->weight = (uint16_t)number_of(json, "weight");
	worker->state = (enum worker_state)number_of(json, "state");
	worker->since_usec = number_of(json, "since");
	worker->drain_before_usec = number_of(json, "drain_before");
	worker->granted = json_is_true(json_object_get(json, "granted"));
	/* Of one that brought it, whatever was written before it was put there. */
	worker->present = registration->max_workers ? UINT64_MAX : number_of(json, "present");
	worker->present = worker_look_for_sockets(worker);
	registration->service->manager->slots[worker->slot] = worker;
}

static void resume_granted(struct registration *registration, const json_t *json)
{
	const json_t *granted = json_object_get(json, "granted");
	const json_t *told = json_object_get(json, "told"), *entry;
	size_t i;

	for (; registration->n_granted < json_array_size(granted); registration->n_granted++)
		registration->granted[registration->n_granted] = (uint32_t)json_integer_value(
			json_array_get(granted, registration->n_granted));
	for (uint32_t k = 0; k < registration->n_granted; k++) {
		const struct listener *listener =
			listener_of_number(registration->service, registration->granted[k]);

		for (uint32_t w = 0; listener && w < registration->n_workers; w++)
			registration->told[w * PROTOCOL_LISTENERS_MAX + k] =
				listener->keys_version - listener->keys_ahead;
	}
	json_array_foreach(told, i, entry) registration
		->told[json_integer_value(json_array_get(entry, 0)) * PROTOCOL_LISTENERS_MAX +
			json_integer_value(json_array_get(entry, 1))] =
		(uint32_t)json_integer_value(json_array_get(entry, 2));
}

/* A process that has ended meanwhile has left no pidfd in the store, or one that says so. */
static int resume_process(struct registration *registration, const json_t *json)
{
	struct store *store = registration->service->manager->store;
	uint32_t entry = (uint32_t)number_of(json, "pidfd");
	int pidfd = store_take(store, STORE_PIDFD, entry), result;

	registration->pid = (pid_t)number_of(json, "pid");
	if (pidfd < 0) {
		registration->exited = true;
		return 0;
	}
	if (registration->exited) {
		registration->pidfd_entry = entry;
		registration->pidfd = pidfd;
		return 0;
	}
	result = registration_set_process(registration, registration->pid, pidfd);
	registration->pidfd_entry = entry;
	return result;
}

int registration_resume(struct service *service, struct client *client, const json_t *json)
{
	const json_t *workers = json_object_get(json, "workers");
	const json_t *adopting = json_object_get(json, "adopting");
	uint32_t n = (uint32_t)json_array_size(workers);
	uint32_t room = MAX(n, (uint32_t)number_of(adopting, "max_workers"));
	uint32_t next = service->manager->next_registration;
	struct registration *registration, **link;

	registration = registration_allocate(service, client,
		json_string_value(json_object_get(json, "instance")), room,
		(uint32_t)number_of(adopting, "weight"));
	if (!registration)
		return -ENOMEM;
	service->manager->next_registration = next;
	registration->max_workers = (uint32_t)number_of(adopting, "max_workers");
	registration->ready = json_is_true(json_object_get(adopting, "ready"));
	registration->drained = json_is_true(json_object_get(adopting, "drained"));
	registration->adopted_usec = number_of(adopting, "adopted");
	registration->id = (uint32_t)number_of(json, "id");
	registration->uid = (uid_t)number_of(json, "uid");
	registration->exited = json_is_true(json_object_get(json, "exited"));
	registration->acked = json_is_true(json_object_get(json, "acked"));
	registration->drain_untold = (uint32_t)number_of(json, "drain_untold");
	registration->ready_usec = number_of(json, "ready_since");
	registration->n_workers = n;
	manager_account(service->manager, registration->uid)->n_slots += registration->n_workers;
	for (uint32_t i = 0; i < n; i++)
		resume_worker(registration, i, json_array_get(workers, i));
	resume_granted(registration, json);
	loads_resume(registration, (uint32_t)number_of(json, "loads"));
	for (link = &service->registrations; *link; link = &(*link)->next)
		;
	*link = registration;
	if (client) {
		registration->client = client;
		client_set_registration(client, registration);
	}
	return resume_process(registration, json);
}
