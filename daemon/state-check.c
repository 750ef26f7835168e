/* SPDX-License-Identifier: BSD-2-Clause */
#include "daemon/state-check.h"

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "bpf/share_layout.h"
#include "common/util.h"
#include "daemon/keys.h"
#include "proto/protocol.h"

#define LISTENER_INDEXES 64 /* bits of worker.present */
#define STATES 3            /* enum worker_state */

struct number {
	const char *name;
	json_int_t minimum, maximum;
};

/* Each must be there. The last one's name is NULL. */
static bool has_numbers(const json_t *json, const struct number *numbers)
{
	for (; numbers->name; numbers++) {
		const json_t *value = json_object_get(json, numbers->name);

		if (!json_is_integer(value) || json_integer_value(value) < numbers->minimum ||
			json_integer_value(value) > numbers->maximum)
			return false;
	}
	return true;
}

/* What a group has for its listener, or for each that shares it. */
static const char *check_standby(const json_t *json)
{
	static const struct number numbers[] = {
		{"standby", 0, UINT32_MAX},
		{"standby_index", 0, UINT32_MAX},
		{"left", 0, INT64_MAX},
		{"expired", 0, INT64_MAX},
		{"generation", 0, INT64_MAX},
		{0},
	};
	json_int_t index = json_integer_value(json_object_get(json, "standby_index"));

	if (!has_numbers(json, numbers) ||
		(index > INDEX_STANDBY && index != (json_int_t)INDEX_NONE))
		return "a group is incomplete";
	return NULL;
}

static const char *check_group(const json_t *json)
{
	static const struct number numbers[] = {
		{"sink", 0, UINT32_MAX},
		{0},
	};
	static const struct number of_map[] = {
		{"entry", 0, UINT32_MAX},
		{"layout", 0, UINT32_MAX},
		{0},
	};
	json_t *maps = json_object_get(json, "maps"), *map;
	const char *name;

	if (!has_numbers(json, numbers) || !json_is_object(maps))
		return "a group is incomplete";
	json_object_foreach(maps, name, map)
	{
		if (!has_numbers(map, of_map))
			return "a map of a group is incomplete";
	}
	return check_standby(json);
}

/* Of a version that knew none, there is nothing. */
static const char *check_shares(const json_t *json)
{
	static const struct number numbers[] = {
		{"number", 0, UINT32_MAX},
		{0},
	};
	const json_t *share;
	size_t i;

	if (json && !json_is_array(json))
		return "its shares are no list";
	json_array_foreach(json, i, share)
	{
		const json_t *leaving = json_object_get(share, "leaving"), *mode;
		size_t k;

		if (!has_numbers(share, numbers) ||
			!json_is_object(json_object_get(share, "config")) ||
			json_array_size(leaving) != SHARE_MAX)
			return "a share is incomplete";
		json_array_foreach(leaving, k, mode)
		{
			if (json_integer_value(mode) < 0 ||
				json_integer_value(mode) > QUIC_MODE_OPAQUE)
				return "a share is incomplete";
		}
		if (check_group(json_object_get(share, "group")))
			return check_group(json_object_get(share, "group"));
	}
	return NULL;
}

/* A listener that is in one. */
static const char *check_place(const json_t *json)
{
	static const struct number numbers[] = {
		{"number", 0, UINT32_MAX},
		{"place", 0, SHARE_MAX - 1},
		{0},
	};

	return has_numbers(json, numbers) ? NULL : "a listener's place in a share is incomplete";
}

static const char *check_listeners(const json_t *json)
{
	static const struct number numbers[] = {
		{"index", 0, LISTENER_INDEXES - 1},
		{"number", 0, UINT32_MAX},
		{"keys_version", 0, UINT32_MAX},
		{0},
	};
	uint64_t seen = 0;
	const json_t *listener;
	size_t i;

	if (!json_is_array(json))
		return "a service has no listeners";
	json_array_foreach(json, i, listener)
	{
		const json_t *last = json_object_get(listener, "last_registration");
		const char *wrong;
		uint64_t bit;

		if (!has_numbers(listener, numbers) || json_array_size(last) != KEYS_MAX ||
			!json_is_object(json_object_get(listener, "config")))
			return "a listener is incomplete";
		for (size_t k = 0; k < KEYS_MAX; k++)
			if (!json_is_integer(json_array_get(last, k)))
				return "a listener is incomplete";
		bit = 1ULL << json_integer_value(json_object_get(listener, "index"));
		if (seen & bit)
			return "two listeners of a service have one index";
		seen |= bit;
		if (json_is_object(json_object_get(listener, "share"))) {
			wrong = check_place(json_object_get(listener, "share"));
			if (!wrong)
				wrong = check_standby(json_object_get(listener, "group"));
		} else {
			wrong = check_group(json_object_get(listener, "group"));
		}
		if (wrong)
			return wrong;
	}
	return NULL;
}

/* slots: who has been seen. */
static const char *check_workers(const json_t *json, bool *slots)
{
	static const struct number numbers[] = {
		{"slot", 0, SLOT_COUNT - 1},
		{"weight", 1, UINT16_MAX},
		{"state", 0, STATES - 1},
		{"since", 0, INT64_MAX},
		{"drain_before", 0, INT64_MAX},
		{"present", INT64_MIN, INT64_MAX},
		{0},
	};
	const json_t *worker;
	size_t i;

	if (!json_is_array(json) || json_array_size(json) > PROTOCOL_WORKERS_MAX)
		return "a registration has too many workers";
	json_array_foreach(json, i, worker)
	{
		json_int_t slot = json_integer_value(json_object_get(worker, "slot"));

		if (!has_numbers(worker, numbers))
			return "a worker is incomplete";
		if (slots[slot])
			return "two workers have one slot";
		slots[slot] = true;
	}
	return NULL;
}

/* Which listeners it was granted, and which of its workers know which keys. */
static const char *check_granted(const json_t *registration)
{
	const json_t *granted = json_object_get(registration, "granted"), *entry;
	const json_t *told = json_object_get(registration, "told");
	size_t n_granted = json_array_size(granted), i;
	size_t n_workers = json_array_size(json_object_get(registration, "workers"));

	if (!json_is_array(granted) || !json_is_array(told) || n_granted > PROTOCOL_LISTENERS_MAX)
		return "a registration's listeners are incomplete";
	json_array_foreach(granted, i, entry)
	{
		if (!json_is_integer(entry))
			return "a registration's listeners are incomplete";
	}
	json_array_foreach(told, i, entry)
	{
		json_int_t worker = json_integer_value(json_array_get(entry, 0));
		json_int_t listener = json_integer_value(json_array_get(entry, 1));

		if (json_array_size(entry) != 3 || worker < 0 || listener < 0 ||
			worker >= (json_int_t)n_workers || listener >= (json_int_t)n_granted)
			return "a registration's keys are incomplete";
	}
	return NULL;
}

/* Workers come one by one there; all others have some. */
static const char *check_adopting(const json_t *registration)
{
	static const struct number numbers[] = {
		{"max_workers", 1, PROTOCOL_WORKERS_MAX},
		{"weight", 1, UINT16_MAX},
		{"adopted", 0, INT64_MAX},
		{0},
	};
	const json_t *adopting = json_object_get(registration, "adopting");
	size_t n = json_array_size(json_object_get(registration, "workers"));

	if (json_is_null(adopting))
		return n ? NULL : "a registration has no workers";
	if (!has_numbers(adopting, numbers) ||
		(json_int_t)n > json_integer_value(json_object_get(adopting, "max_workers")))
		return "a registration that adopts is incomplete";
	return NULL;
}

static const char *check_registrations(const json_t *json, bool *slots)
{
	static const struct number numbers[] = {
		{"id", 1, UINT32_MAX},
		{"uid", 0, UINT32_MAX},
		{"pid", 0, INT32_MAX},
		{"pidfd", 0, UINT32_MAX},
		{"client", 0, UINT32_MAX},
		{"drain_untold", 0, UINT16_MAX},
		{0},
	};
	const json_t *registration;
	size_t i;

	if (!json_is_array(json))
		return "a service has no registrations";
	json_array_foreach(json, i, registration)
	{
		const char *wrong, *instance;

		instance = json_string_value(json_object_get(registration, "instance"));
		if (!has_numbers(registration, numbers) || !instance || !*instance ||
			strlen(instance) >= PROTOCOL_NAME_MAX)
			return "a registration is incomplete";
		wrong = check_workers(json_object_get(registration, "workers"), slots);
		if (!wrong)
			wrong = check_granted(registration);
		if (!wrong)
			wrong = check_adopting(registration);
		if (wrong)
			return wrong;
	}
	return NULL;
}

static const char *check_clients(const json_t *json)
{
	static const struct number numbers[] = {
		{"id", 1, UINT32_MAX},
		{"entry", 1, UINT32_MAX},
		{"pid", 0, INT32_MAX},
		{"granting", 0, UINT32_MAX},
		{"sequence", 0, UINT32_MAX},
		{0},
	};
	const json_t *client;
	size_t i;

	if (!json_is_array(json))
		return "it has no clients";
	json_array_foreach(json, i, client)
	{
		if (!has_numbers(client, numbers))
			return "a client is incomplete";
	}
	return NULL;
}

const char *state_check(const json_t *json)
{
	static const struct number numbers[] = {
		{"ring", 0, UINT32_MAX},
		{"next_slot", 0, SLOT_COUNT - 1},
		{"next_registration", 0, UINT32_MAX},
		{"next_listener", 0, UINT32_MAX},
		{"next_client", 0, UINT32_MAX},
		{0},
	};
	static const struct number of_service[] = {
		{"reserved_slot", -1, SLOT_COUNT - 1},
		{0},
	};
	const json_t *services = json_object_get(json, "services"), *service;
	bool slots[SLOT_COUNT] = {false};
	const char *wrong_share;
	size_t i;

	if (!has_numbers(json, numbers) || !json_is_object(json_object_get(json, "config")))
		return "it is incomplete";
	if (!json_is_array(services))
		return "it has no services";
	wrong_share = check_shares(json_object_get(json, "shares"));
	if (wrong_share)
		return wrong_share;
	json_array_foreach(services, i, service)
	{
		const char *wrong;

		if (!has_numbers(service, of_service) ||
			!json_is_object(json_object_get(service, "config")))
			return "a service is incomplete";
		wrong = check_listeners(json_object_get(service, "listeners"));
		if (!wrong)
			wrong = check_registrations(
				json_object_get(service, "registrations"), slots);
		if (wrong)
			return wrong;
	}
	return check_clients(json_object_get(json, "clients"));
}
