/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The methods of io.reuseport.Control: what runs (status.c), and what an operator may change. The
 * interface file documents them.
 */
#include <stdio.h>
#include <string.h>
#include <sys/capability.h>

#include "common/util.h"
#include "daemon/control.h"
#include "daemon/event.h"
#include "daemon/explain.h"
#include "daemon/kick.h"
#include "daemon/manager.h"
#include "daemon/share.h"
#include "daemon/monitor.h"
#include "daemon/privileges.h"
#include "daemon/status.h"
#include "daemon/store.h"

static const char *string_parameter(const json_t *parameters, const char *name)
{
	return json_string_value(json_object_get(parameters, name));
}

static int no_service(const char *name, json_t **ret, const char **ret_error)
{
	*ret_error = CONTROL_NO_SERVICE;
	*ret = json_pack("{s:s}", "name", name);
	return -ENOENT;
}

static int method_status(
	void *user_data, const json_t *parameters, json_t **ret, const char **ret_error)
{
	struct manager *manager = user_data;
	const char *name = string_parameter(parameters, "service");

	if (name && !manager_find_service(manager, name))
		return no_service(name, ret, ret_error);
	*ret = json_pack("{s:o, s:o, s:o}", "daemon", status_daemon(manager), "services",
		status_services(manager, name), "shares", shares_status(manager));
	return *ret ? 0 : -ENOMEM;
}

/*
 * Calls change() for each worker that the parameters name: by slot ("worker"), by instance, by
 * service, each narrowing the others. Naming nothing, or nobody, is an error.
 */
static int for_each_named(struct manager *manager, const json_t *parameters,
	unsigned (*change)(struct worker *worker, void *data), void *data, unsigned *ret_n,
	json_t **ret, const char **ret_error)
{
	const json_t *slot = json_object_get(parameters, "worker");
	const char *instance = string_parameter(parameters, "instance");
	const char *service = string_parameter(parameters, "service");
	unsigned n = 0, found = 0;

	if (!json_is_integer(slot) && !instance && !service) {
		*ret_error = CONTROL_INVALID_PARAMETER;
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
		n += change(worker, data);
	}
	if (!found) {
		*ret_error = CONTROL_NO_WORKER;
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

static unsigned change_drain(struct worker *worker, void *data)
{
	return worker->state == WORKER_JOINING ? 0
					       : registration_drain(worker->registration,
							 worker->slot, PROTOCOL_DRAIN_OPERATOR);
}

static unsigned change_undrain(struct worker *worker, void *data)
{
	return registration_undrain(worker->registration, worker->slot);
}

static unsigned change_weight(struct worker *worker, void *data)
{
	const json_int_t *weight = data;

	if (worker->weight == *weight)
		return 0;
	worker->weight = (uint16_t)*weight;
	service_update(worker->registration->service);
	event_tell(worker->registration->service->manager, EVENT_WORKER_WEIGHT,
		&(struct event_about){
			.registration = worker->registration,
			.slot = &worker->slot,
			.n_slots = 1,
		},
		"has weight %u", worker->weight);
	return 1;
}

static int change_named(void *user_data, const json_t *parameters, const char *result_name,
	unsigned (*change)(struct worker *worker, void *data), void *data, json_t **ret,
	const char **ret_error)
{
	unsigned n;
	int result = for_each_named(user_data, parameters, change, data, &n, ret, ret_error);

	if (result < 0)
		return result;
	store_commit(((struct manager *)user_data)->store);
	*ret = json_pack("{s:i}", result_name, (int)n);
	return 0;
}

static int method_drain(
	void *user_data, const json_t *parameters, json_t **ret, const char **ret_error)
{
	return change_named(user_data, parameters, "drained", change_drain, NULL, ret, ret_error);
}

static int method_undrain(
	void *user_data, const json_t *parameters, json_t **ret, const char **ret_error)
{
	return change_named(
		user_data, parameters, "undrained", change_undrain, NULL, ret, ret_error);
}

static int method_set_weight(
	void *user_data, const json_t *parameters, json_t **ret, const char **ret_error)
{
	json_int_t weight = json_integer_value(json_object_get(parameters, "weight"));

	if (weight < 1 || weight > 1000) {
		*ret_error = CONTROL_INVALID_PARAMETER;
		*ret = json_pack("{s:s}", "parameter", "weight");
		return -EINVAL;
	}
	return change_named(
		user_data, parameters, "changed", change_weight, &weight, ret, ret_error);
}

static unsigned change_kick(struct worker *worker, void *data)
{
	return kick(worker, PROTOCOL_DRAIN_OPERATOR, data);
}

static int refuse(json_t **ret, const char **ret_error, int error, const char *message)
{
	*ret_error = CONTROL_FAILED;
	*ret = json_pack("{s:s, s:i}", "message", message, "errno", -error);
	return error;
}

static int method_kick(
	void *user_data, const json_t *parameters, json_t **ret, const char **ret_error)
{
	struct kick done = {0};
	unsigned n;
	int result;

	if (!privileges_may(CAP_NET_ADMIN))
		return refuse(ret, ret_error, -EPERM,
			"cannot close another process's socket: the daemon has no CAP_NET_ADMIN "
			"(drop-in net-admin.conf, or --net-admin when started by root)");
	result = for_each_named(user_data, parameters, change_kick, &done, &n, ret, ret_error);
	if (result < 0)
		return result;
	store_commit(((struct manager *)user_data)->store);
	if (done.error == -EOPNOTSUPP)
		return refuse(ret, ret_error, done.error,
			"the workers drain, but what waits for them can't be moved: this kernel was "
			"built without CONFIG_INET_DIAG_DESTROY");
	if (done.error)
		return refuse(ret, ret_error, done.error, strerror(-done.error));
	*ret = json_pack("{s:i, s:i}", "kicked", (int)n, "sockets", (int)done.sockets);
	return 0;
}

static int method_reload(
	void *user_data, const json_t *parameters, json_t **ret, const char **ret_error)
{
	_cleanup_free_ char *error = NULL;
	int result = manager_reload_files(user_data, &error);

	if (result < 0)
		return refuse(ret, ret_error, result, error ? error : strerror(-result));
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
	*ret_error = CONTROL_FAILED;
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
	int result;

	service = manager_find_service(user_data, name);
	if (!service)
		return no_service(name, ret, ret_error);
	result = service_rotate_keys(service, listener, &n, &error);
	if (result < 0)
		return refuse(ret, ret_error, result, error ? error : strerror(-result));
	*ret = json_pack("{s:i}", "rotated", (int)n);
	return 0;
}

const struct control_method manager_methods[] = {
	{.name = "Status", .handler = method_status},
	{.name = "Monitor", .opener = monitor_open},
	{.name = "Explain", .handler = explain_method},
	{.name = "Drain", .changes = true, .handler = method_drain},
	{.name = "Undrain", .changes = true, .handler = method_undrain},
	{.name = "SetWeight", .changes = true, .handler = method_set_weight},
	{.name = "Kick", .changes = true, .handler = method_kick},
	{.name = "RotateKeys", .changes = true, .handler = method_rotate_keys},
	{.name = "Reload", .changes = true, .handler = method_reload},
	{.name = "Reexec", .changes = true, .handler = method_reexec},
	{0},
};
