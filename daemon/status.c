/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The methods of io.reuseport.Control: what runs as JSON, and what an operator may change.
 * The interface file documents them.
 */
#include <stdio.h>
#include <string.h>

#include "common/util.h"
#include "daemon/control.h"
#include "daemon/explain.h"
#include "daemon/group.h"
#include "daemon/manager.h"
#include "daemon/store.h"

#define ERROR_FAILED "io.reuseport.Control.Failed"
#define ERROR_NO_SERVICE "io.reuseport.Control.NoSuchService"
#define ERROR_NO_WORKER "io.reuseport.Control.NoSuchWorker"

/* NULL: the listener has none that anybody could rotate. */
static json_t *keys_status(const struct listener *listener)
{
	const struct keys *keys = listener->keys;
	json_t *rotations;

	if (listener->config->cid_mode != CID_QUIC_LB)
		return NULL;
	rotations = json_array();
	for (int i = 0; i < KEYS_MAX; i++)
		if (keys->valid[i])
			json_array_append_new(rotations, json_integer(i));
	return json_pack("{s:i, s:o, s:b}", "rotation", keys->current, "rotations", rotations,
		"given", keys->given);
}

static json_t *listener_status(const struct listener *listener)
{
	const struct group *group = listener->group;
	const struct listener_config *config = listener->config;
	uint64_t verdicts[VERDICT_COUNT], packets = 0;

	group_read_counters(group, verdicts);
	for (int i = 0; i < VERDICT_COUNT; i++)
		packets += verdicts[i];
	return json_pack(
		"{s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, "
		"s:o?}",
		"name", config->name, "transport", transport_name(config->transport), "address",
		config->address_text, "connection_id", cid_mode_name(config->cid_mode), "packets",
		(json_int_t)packets, "new_connections",
		(json_int_t)(verdicts[VERDICT_LISTENER] + verdicts[VERDICT_FALLBACK]),
		"by_connection_id", (json_int_t)verdicts[VERDICT_CONNECTION_ID], "by_flow",
		(json_int_t)verdicts[VERDICT_FLOW], "migrated",
		(json_int_t)verdicts[VERDICT_MIGRATED], "fallback",
		(json_int_t)verdicts[VERDICT_FALLBACK], "standby",
		(json_int_t)verdicts[VERDICT_STANDBY], "expired", (json_int_t)group->expired,
		"stray", (json_int_t)verdicts[VERDICT_STRAY], "dropped",
		(json_int_t)verdicts[VERDICT_DROPPED], "invalid",
		(json_int_t)verdicts[VERDICT_INVALID], "active",
		(json_int_t)group->listener_map->tables[group->listener_map->current & 1].n_active,
		"generation", (json_int_t)group->generation, "keys", keys_status(listener));
}

static json_t *worker_status(const struct worker *worker)
{
	const struct registration *registration = worker->registration;
	const struct service *service = registration->service;
	struct slot_counters counters = {0};

	for (size_t i = 0; i < service->n_listeners; i++)
		if (service->listeners[i] && worker->granted)
			group_read_slot(service->listeners[i]->group, worker->slot, &counters);
	return json_pack("{s:i, s:s, s:i, s:I, s:s, s:i, s:I, s:I, s:I, s:b, s:b}", "slot",
		worker->slot, "instance", registration->instance, "pid", (int)registration->pid,
		"uid", (json_int_t)registration->uid, "state", worker_state_name(worker->state),
		"weight", worker->weight, "packets", (json_int_t)counters.packets,
		"new_connections", (json_int_t)counters.new_connections, "since",
		(json_int_t)worker->since_usec, "exited", registration->exited, "connected",
		registration->client != NULL);
}

static json_t *service_status(const struct service *service)
{
	json_t *listeners = json_array(), *workers = json_array();

	for (size_t i = 0; i < service->n_listeners; i++)
		if (service->listeners[i])
			json_array_append_new(listeners, listener_status(service->listeners[i]));
	for (uint32_t slot = 0; slot < SLOT_COUNT; slot++) {
		const struct worker *worker = service->manager->slots[slot];

		if (worker && worker->registration->service == service)
			json_array_append_new(workers, worker_status(worker));
	}
	return json_pack("{s:s, s:b, s:o, s:o}", "name", service->config->name, "removed",
		service->removed, "listeners", listeners, "workers", workers);
}

static int compare_names(const void *a, const void *b)
{
	const struct service *const *left = a, *const *right = b;

	return strcmp((*left)->config->name, (*right)->config->name);
}

static const char *string_parameter(const json_t *parameters, const char *name)
{
	return json_string_value(json_object_get(parameters, name));
}

/*
 * A parameter of the wrong type must not count as absent: a worker's number given as a string would
 * leave its whole service named.
 */
static int check_types(const json_t *parameters, json_t **ret, const char **ret_error)
{
	static const struct {
		const char *name;
		json_type type;
	} types[] = {{"worker", JSON_INTEGER}, {"instance", JSON_STRING}, {"service", JSON_STRING},
		{"listener", JSON_STRING}};

	for (size_t i = 0; i < ARRAY_SIZE(types); i++) {
		const json_t *value = json_object_get(parameters, types[i].name);

		if (!value || json_is_null(value) || json_typeof(value) == types[i].type)
			continue;
		*ret_error = "org.varlink.service.InvalidParameter";
		*ret = json_pack("{s:s}", "parameter", types[i].name);
		return -EINVAL;
	}
	return 0;
}

static int no_service(const char *name, json_t **ret, const char **ret_error)
{
	*ret_error = ERROR_NO_SERVICE;
	*ret = json_pack("{s:s}", "name", name);
	return -ENOENT;
}

static int method_status(
	void *user_data, const json_t *parameters, json_t **ret, const char **ret_error)
{
	struct manager *manager = user_data;
	const char *name = string_parameter(parameters, "service");
	_cleanup_free_ struct service **sorted = NULL;
	json_t *services;
	size_t n = 0;
	int result = check_types(parameters, ret, ret_error);

	if (result < 0)
		return result;
	services = json_array();
	if (name && !manager_find_service(manager, name)) {
		json_decref(services);
		return no_service(name, ret, ret_error);
	}
	for (struct service *s = manager->services; s; s = s->next)
		n++;
	sorted = calloc(n + 1, sizeof(*sorted));
	if (!sorted) {
		json_decref(services);
		return -ENOMEM;
	}
	n = 0;
	for (struct service *s = manager->services; s; s = s->next)
		if (!name || strcmp(s->config->name, name) == 0)
			sorted[n++] = s;
	qsort(sorted, n, sizeof(*sorted), compare_names);
	for (size_t i = 0; i < n; i++)
		json_array_append_new(services, service_status(sorted[i]));
	*ret = json_pack("{s:{s:s, s:i, s:I, s:I}, s:o}", "daemon", "version", VERSION, "pid",
		(int)getpid(), "since", (json_int_t)manager->started_usec, "uptime",
		(json_int_t)(now_realtime() - manager->started_usec), "services", services);
	return *ret ? 0 : -ENOMEM;
}

/*
 * Calls change() for each worker that the parameters name: by slot ("worker"), by instance, by
 * service, each narrowing the others. Naming nothing, or nobody, is an error.
 */
static int for_each_named(struct manager *manager, const json_t *parameters,
	unsigned (*change)(struct worker *worker, int64_t value), int64_t value, unsigned *ret_n,
	json_t **ret, const char **ret_error)
{
	const json_t *slot = json_object_get(parameters, "worker");
	const char *instance = string_parameter(parameters, "instance");
	const char *service = string_parameter(parameters, "service");
	unsigned n = 0, found = 0;
	int result = check_types(parameters, ret, ret_error);

	if (result < 0)
		return result;
	if (!json_is_integer(slot) && !instance && !service) {
		*ret_error = "org.varlink.service.InvalidParameter";
		*ret = json_pack("{s:s}", "parameter", "worker");
		return -EINVAL;
	}
	if (service && !manager_find_service(manager, service))
		return no_service(service, ret, ret_error);
	for (uint32_t i = 0; i < SLOT_COUNT; i++) {
		struct worker *worker = manager->slots[i];

		if (!worker || (json_is_integer(slot) && json_integer_value(slot) != i) ||
			(instance && strcmp(worker->registration->instance, instance) != 0) ||
			(service &&
				strcmp(worker->registration->service->config->name, service) != 0))
			continue;
		found++;
		n += change(worker, value);
	}
	if (!found) {
		*ret_error = ERROR_NO_WORKER;
		*ret = json_is_integer(slot)
			       ? json_pack("{s:o}", "worker",
					 json_sprintf(
						 "%" JSON_INTEGER_FORMAT, json_integer_value(slot)))
			       : json_pack("{s:s}", "worker", instance ? instance : service);
		return -ENOENT;
	}
	*ret_n = n;
	return 0;
}

static unsigned change_drain(struct worker *worker, int64_t value)
{
	return worker->state == WORKER_JOINING ? 0
					       : registration_drain(worker->registration,
							 worker->slot, PROTOCOL_DRAIN_OPERATOR);
}

static unsigned change_undrain(struct worker *worker, int64_t value)
{
	return registration_undrain(worker->registration, worker->slot);
}

static unsigned change_weight(struct worker *worker, int64_t value)
{
	if (worker->weight == value)
		return 0;
	worker->weight = (uint16_t)value;
	service_update(worker->registration->service);
	return 1;
}

static int change_named(void *user_data, const json_t *parameters, const char *result_name,
	unsigned (*change)(struct worker *worker, int64_t value), int64_t value, json_t **ret,
	const char **ret_error)
{
	unsigned n;
	int result = for_each_named(user_data, parameters, change, value, &n, ret, ret_error);

	if (result < 0)
		return result;
	store_commit(((struct manager *)user_data)->store);
	*ret = json_pack("{s:i}", result_name, (int)n);
	return 0;
}

static int method_drain(
	void *user_data, const json_t *parameters, json_t **ret, const char **ret_error)
{
	return change_named(user_data, parameters, "drained", change_drain, 0, ret, ret_error);
}

static int method_undrain(
	void *user_data, const json_t *parameters, json_t **ret, const char **ret_error)
{
	return change_named(user_data, parameters, "undrained", change_undrain, 0, ret, ret_error);
}

static int method_set_weight(
	void *user_data, const json_t *parameters, json_t **ret, const char **ret_error)
{
	const json_t *weight = json_object_get(parameters, "weight");

	if (!json_is_integer(weight) || json_integer_value(weight) < 1 ||
		json_integer_value(weight) > 1000) {
		*ret_error = "org.varlink.service.InvalidParameter";
		*ret = json_pack("{s:s}", "parameter", "weight");
		return -EINVAL;
	}
	return change_named(user_data, parameters, "changed", change_weight,
		json_integer_value(weight), ret, ret_error);
}

static int method_reload(
	void *user_data, const json_t *parameters, json_t **ret, const char **ret_error)
{
	_cleanup_free_ char *error = NULL;
	int result = manager_reload_files(user_data, &error);

	if (result < 0) {
		*ret_error = ERROR_FAILED;
		*ret = json_pack("{s:s, s:i}", "message", error ? error : strerror(-result),
			"errno", -result);
		return result;
	}
	*ret = json_object();
	return 0;
}

static int method_reexec(
	void *user_data, const json_t *parameters, json_t **ret, const char **ret_error)
{
	struct manager *manager = user_data;
	int result = manager_reexec(manager, control_caller(manager->control));
	char *message;

	if (asprintf(&message, "cannot run %s: %s; the daemon goes on as before", manager->program,
		    strerror(-result)) < 0)
		return result;
	*ret_error = ERROR_FAILED;
	*ret = json_pack("{s:s, s:i}", "message", message, "errno", -result);
	free(message);
	return result;
}

static int method_rotate_keys(
	void *user_data, const json_t *parameters, json_t **ret, const char **ret_error)
{
	const char *name = string_parameter(parameters, "service");
	const char *listener = string_parameter(parameters, "listener");
	_cleanup_free_ char *error = NULL;
	struct service *service;
	unsigned n = 0;
	int result = check_types(parameters, ret, ret_error);

	if (result < 0)
		return result;
	if (!name) {
		*ret_error = "org.varlink.service.InvalidParameter";
		*ret = json_pack("{s:s}", "parameter", "service");
		return -EINVAL;
	}
	service = manager_find_service(user_data, name);
	if (!service)
		return no_service(name, ret, ret_error);
	result = service_rotate_keys(service, listener, &n, &error);
	if (result < 0) {
		*ret_error = ERROR_FAILED;
		*ret = json_pack("{s:s, s:i}", "message", error ? error : strerror(-result),
			"errno", -result);
		return result;
	}
	*ret = json_pack("{s:i}", "rotated", (int)n);
	return 0;
}

const struct control_method manager_methods[] = {
	{.name = "Status", .handler = method_status},
	{.name = "Explain", .handler = explain_method},
	{.name = "Drain", .changes = true, .handler = method_drain},
	{.name = "Undrain", .changes = true, .handler = method_undrain},
	{.name = "SetWeight", .changes = true, .handler = method_set_weight},
	{.name = "RotateKeys", .changes = true, .handler = method_rotate_keys},
	{.name = "Reload", .changes = true, .handler = method_reload},
	{.name = "Reexec", .changes = true, .handler = method_reexec},
	{0},
};
