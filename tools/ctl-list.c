/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * list-services and list-workers: one line each, for people and for pipes; as JSON one flat array.
 */
#include <stdio.h>
#include <string.h>

#include "tools/ctl-field.h"
#include "tools/ctl-status.h"
#include "tools/ctl-worker.h"

static void add_service(struct ctl_table *table, const json_t *service)
{
	ctl_add_cell(
		table, ctl_format("%s", ctl_string(service, "name")), ctl_service_colour(service));
	ctl_add_cell(table,
		ctl_format("%zu", json_array_size(json_object_get(service, "listeners"))), NULL);
	ctl_add_cell(table, ctl_format("%zu", ctl_count_workers(service, "active")), NULL);
	ctl_add_cell(table, ctl_format("%zu", ctl_count_workers(service, "draining")), NULL);
	ctl_add_cell(table, ctl_format("%zu", ctl_count_workers(service, "joining")), NULL);
	ctl_add_cell(table,
		ctl_format("%s", ctl_is_true(service, "removed") ? "removed" : "configured"), NULL);
}

static void print_count(const struct ctl *ctl, size_t n, const char *what)
{
	if (ctl->legend)
		printf("\n%zu %s%s listed.\n", n, what, n == 1 ? "" : "s");
}

int ctl_run_list_services(const struct ctl *ctl, int argc, char **argv)
{
	static const char *const titles[] = {"LISTENERS", "ACTIVE", "DRAINING", "JOINING"};
	struct ctl_table table = {.legend = ctl->legend, .colour = ctl->colour};
	json_t *status, *services, *service;
	int result = ctl_call_status(ctl, NULL, &status);
	size_t i;

	if (result != CTL_OK)
		return result;
	services = json_object_get(status, "services");
	if (ctl->json == CTL_JSON_OFF) {
		ctl_add_column(&table, "SERVICE", false);
		for (i = 0; i < ARRAY_SIZE(titles); i++)
			ctl_add_column(&table, titles[i], true);
		ctl_add_column(&table, "CONFIGURATION", false);
		json_array_foreach(services, i, service) add_service(&table, service);
		ctl_print_table(&table);
		print_count(ctl, json_array_size(services), "service");
	} else {
		ctl_print_json(ctl, services);
	}
	json_decref(status);
	return CTL_OK;
}

static void print_workers(const struct ctl *ctl, const json_t *status)
{
	struct ctl_table table = {.legend = ctl->legend, .colour = ctl->colour};
	struct ctl_worker_columns columns = {.service = true};
	const json_t *services = json_object_get(status, "services"), *service, *worker;
	int64_t now = ctl_now_usec();
	size_t i, k, n = 0;

	json_array_foreach(services, i, service)
		ctl_find_worker_columns(json_object_get(service, "workers"), &columns);
	ctl_add_worker_columns(&table, &columns);
	json_array_foreach(services, i, service)
	{
		json_array_foreach(json_object_get(service, "workers"), k, worker)
		{
			ctl_add_worker(&table, &columns, service, worker, now);
			n++;
		}
	}
	ctl_print_table(&table);
	print_count(ctl, n, "worker");
}

int ctl_run_list_workers(const struct ctl *ctl, int argc, char **argv)
{
	json_t *status;
	int result = ctl_call_status(ctl, argc ? argv[0] : NULL, &status);

	if (result != CTL_OK)
		return result;
	if (ctl->json == CTL_JSON_OFF) {
		print_workers(ctl, status);
	} else {
		json_t *flat = ctl_flat_workers(status, NULL);

		ctl_print_json(ctl, flat);
		json_decref(flat);
	}
	json_decref(status);
	return CTL_OK;
}
