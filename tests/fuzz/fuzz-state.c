/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What a daemon finds as its predecessor's state: any octets as the memfd, and any JSON in it. What
 * state_check() lets pass is read by code that looks no further, so it is read here as well.
 */
#include "daemon/config.c"
#include "daemon/keys-disk.c"
#include "daemon/keys-state.c"
#include "daemon/keys.c"
#include "daemon/key-file.c"
#include "daemon/state-check.c"
#include "daemon/state-config.c"
#include "daemon/state.c"
#include "daemon/state-text.c"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void read_listener(const json_t *json)
{
	struct listener_config *config = NULL;
	struct keys *keys = NULL;

	if (listener_config_from_json(&config, json_object_get(json, "config")) >= 0) {
		json_t *again = listener_config_to_json(config);

		json_decref(again);
		listener_config_free(config);
	}
	if (keys_from_json(&keys, json_object_get(json, "keys"), NULL, "web", "quic") >= 0) {
		if (keys->current >= KEYS_MAX || !keys->valid[keys->current])
			abort();
		keys_free(keys);
	}
}

static void read_registration(const json_t *json)
{
	const json_t *workers = json_object_get(json, "workers"), *entry;
	size_t i;

	if (strlen(json_string_value(json_object_get(json, "instance"))) >= PROTOCOL_NAME_MAX)
		abort();
	json_array_foreach(workers, i, entry)
	{
		if (json_integer_value(json_object_get(entry, "slot")) >= SLOT_COUNT)
			abort();
	}
	json_array_foreach(json_object_get(json, "told"), i, entry)
	{
		if (json_integer_value(json_array_get(entry, 0)) >=
				(json_int_t)json_array_size(workers) ||
			json_integer_value(json_array_get(entry, 1)) >= PROTOCOL_LISTENERS_MAX)
			abort();
	}
}

static void read_json(const json_t *json)
{
	const json_t *service, *entry;
	struct service_config *service_config = NULL;
	struct config *config = NULL;
	size_t i, k;

	if (state_check(json))
		return;
	if (config_from_json(&config, json_object_get(json, "config")) >= 0)
		config_free(config);
	json_array_foreach(json_object_get(json, "services"), i, service)
	{
		if (service_config_from_json(&service_config, json_object_get(service, "config")) >=
			0)
			service_config_free(service_config);
		json_array_foreach(json_object_get(service, "listeners"), k, entry)
			read_listener(entry);
		json_array_foreach(json_object_get(service, "registrations"), k, entry)
			read_registration(entry);
	}
}

static void read_memfd(const uint8_t *data, size_t size)
{
	int fd = memfd_create("fuzz", MFD_CLOEXEC);
	struct state *state;
	json_t *json;

	if (fd < 0 || write(fd, data, size) != (ssize_t)size)
		abort();
	if (state_open(&state, fd) < 0)
		return;
	if (state_read(state, &json) >= 0) {
		read_json(json);
		json_decref(json);
	}
	json = json_pack("{s:i}", "after", 1);
	if (state_write(state, json) < 0)
		abort();
	json_decref(json);
	if (state_read(state, &json) < 0 || !json_object_get(json, "after"))
		abort();
	json_decref(json);
	state_free(state);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	json_error_t error;
	json_t *json;

	if (size && data[0] != '{') {
		read_memfd(data, size);
		return 0;
	}
	json = json_loadb((const char *)data, size, JSON_REJECT_DUPLICATES, &error);
	if (json)
		read_json(json);
	json_decref(json);
	return 0;
}
