/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Workers: how they are named on a command line, and how state and queues read.
 */
#include "tools/ctl-worker.h"

#include <stdio.h>
#include <string.h>

#include "tools/ctl-field.h"
#include "tools/ctl-table.h"

void ctl_selection_done(struct ctl_selection *selection)
{
	free(selection->name);
	selection->name = NULL;
}

/* A slot when it is a number, else an instance; --instance is for instances that are numbers. */
static int take_worker(const char *worker, struct ctl_selection *selection)
{
	if (!*worker || strspn(worker, "0123456789") != strlen(worker)) {
		selection->instance = worker;
		return 0;
	}
	/* No slot is longer; the daemon knows which exist. */
	if (strlen(worker) > 9)
		return ctl_usage("no worker can have the name", worker), -ERANGE;
	selection->slot = strtol(worker, NULL, 10);
	return 0;
}

int ctl_select(
	const struct ctl *ctl, int argc, char **argv, int n_others, struct ctl_selection *ret)
{
	bool taken = argc == n_others + 1;
	const char *instance = ctl_get(ctl, OPTION_INSTANCE);
	const char *service = ctl_get(ctl, OPTION_SERVICE);
	const char *kind = taken ? "worker" : instance ? "instance" : "service";
	const char *name = taken ? argv[0] : instance ? instance : service;

	*ret = (struct ctl_selection){.slot = -1, .instance = instance, .service = service};
	if (argc > n_others + 1)
		return ctl_usage("too many arguments", NULL), -EINVAL;
	if (argc < n_others || !name)
		return ctl_usage("an argument is missing: which worker?", NULL), -EINVAL;
	if (taken && instance)
		return ctl_usage("a worker is named once: by WORKER or by --instance", NULL),
		       -EINVAL;
	if (taken && take_worker(name, ret) < 0)
		return -EINVAL;
	ret->name = ctl_format("%s %s", kind, name);
	if (!ret->name)
		return ctl_usage("out of memory", NULL), -ENOMEM;
	return taken;
}

json_t *ctl_selection_parameters(const struct ctl_selection *selection)
{
	json_t *parameters = json_object();
	int result = 0;

	if (selection->slot >= 0)
		result |= json_object_set_new(parameters, "worker", json_integer(selection->slot));
	if (selection->instance)
		result |= json_object_set_new(
			parameters, "instance", json_string(selection->instance));
	if (selection->service)
		result |=
			json_object_set_new(parameters, "service", json_string(selection->service));
	if (result < 0) {
		ctl_usage("no worker can have the name", selection->name);
		json_decref(parameters);
		return NULL;
	}
	return parameters;
}

bool ctl_selects(const struct ctl_selection *selection, const json_t *service, const json_t *worker)
{
	return (selection->slot < 0 || ctl_number(worker, "slot") == selection->slot) &&
	       (!selection->instance || ctl_is(worker, "instance", selection->instance)) &&
	       (!selection->service || ctl_is(service, "name", selection->service));
}

json_t *ctl_flat_workers(const json_t *status, const struct ctl_selection *selection)
{
	const json_t *service;
	json_t *flat = json_array(), *worker;
	size_t i, k;

	json_array_foreach(json_object_get(status, "services"), i, service)
	{
		json_array_foreach(json_object_get(service, "workers"), k, worker)
		{
			json_t *copy;

			if (selection && !ctl_selects(selection, service, worker))
				continue;
			copy = json_copy(worker);
			json_object_set(copy, "service", json_object_get(service, "name"));
			json_array_append_new(flat, copy);
		}
	}
	return flat;
}

char *ctl_worker_state(const json_t *worker, const char **ret_colour)
{
	const char *state = ctl_string(worker, "state");

	*ret_colour = ctl_is(worker, "state", "active")     ? GREEN
		      : ctl_is(worker, "state", "draining") ? YELLOW
							    : BLUE;
	if (!ctl_is_true(worker, "exited") && !ctl_is_true(worker, "stalled"))
		return ctl_format("%s", state);
	*ret_colour = RED;
	return ctl_is_true(worker, "exited") ? ctl_format("%s (exited)", state)
					     : ctl_format("%s (stalled)", state);
}

double ctl_queue_fill(const json_t *socket)
{
	json_int_t limit = ctl_number(socket, "queue_limit");

	if (!ctl_has(socket, "queue") || limit <= 0)
		return -1;
	return (double)ctl_number(socket, "queue") / (double)limit;
}

const json_t *ctl_find_listener(const json_t *service, const char *name)
{
	const json_t *listener;
	size_t i;

	json_array_foreach(json_object_get(service, "listeners"), i,
		listener) if (ctl_is(listener, "name", name)) return listener;
	return NULL;
}

char *ctl_queue_text(const json_t *service, const json_t *socket)
{
	const json_t *listener = ctl_find_listener(service, ctl_string(socket, "listener"));
	bool tcp = ctl_is(listener, "transport", "tcp");
	_cleanup_free_ char *queue = NULL, *limit = NULL;

	if (ctl_queue_fill(socket) < 0)
		return NULL;
	if (tcp)
		return ctl_format("%" JSON_INTEGER_FORMAT "/%" JSON_INTEGER_FORMAT,
			ctl_number(socket, "queue"), ctl_number(socket, "queue_limit"));
	queue = ctl_short_number((double)ctl_number(socket, "queue"));
	limit = ctl_short_number((double)ctl_number(socket, "queue_limit"));
	return queue && limit ? ctl_format("%sB/%sB", queue, limit) : NULL;
}

const json_t *ctl_fullest_socket(const json_t *worker)
{
	const json_t *socket, *fullest = NULL;
	size_t i;

	json_array_foreach(json_object_get(worker, "sockets"), i,
		socket) if (ctl_queue_fill(socket) >= 0 &&
			    (!fullest || ctl_queue_fill(socket) > ctl_queue_fill(fullest)))
		fullest = socket;
	return fullest;
}

json_int_t ctl_worker_drops(const json_t *worker)
{
	json_int_t drops = -1;
	const json_t *socket;
	size_t i;

	json_array_foreach(
		json_object_get(worker, "sockets"), i, socket) if (ctl_has(socket, "drops")) drops =
		MAX(drops, 0) + ctl_number(socket, "drops");
	return drops;
}

size_t ctl_count_workers(const json_t *service, const char *state)
{
	const json_t *worker;
	size_t i, n = 0;

	json_array_foreach(json_object_get(service, "workers"), i, worker) n +=
		!state || ctl_is(worker, "state", state);
	return n;
}
