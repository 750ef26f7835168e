/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * status: for each service a table of its listeners and one of its workers. The columns are those
 * that mean something for one of the transports, and that the daemon knows of.
 */
#include "tools/ctl-status.h"

#include <stdio.h>
#include <string.h>

#include "tools/ctl-field.h"
#include "tools/ctl-share.h"
#include "tools/ctl-terminal.h"
#include "tools/ctl-worker.h"

enum { TCP = 1, UDP = 2, QUIC = 4, ALL = TCP | UDP | QUIC };

static unsigned transport_of(const json_t *listener)
{
	const char *transport = ctl_string(listener, "transport");

	return strcmp(transport, "tcp") == 0 ? TCP : strcmp(transport, "udp") == 0 ? UDP : QUIC;
}

/* Counters of listeners; a table has those that mean something for one of its transports. */
static const struct counter {
	const char *title, *key, *colour_unless_zero;
	unsigned transports;
} counters[] = {
	{"WAITING", "waiting", YELLOW, ALL},
	{"PACKETS", "packets", NULL, ALL},
	{"NEW", "new_connections", NULL, ALL},
	{"BY ID", "by_connection_id", NULL, QUIC},
	{"BY FLOW", "by_flow", NULL, UDP | QUIC},
	{"MIGRATED", "migrated", NULL, TCP},
	{"FALLBACK", "fallback", NULL, ALL},
	{"STANDBY", "standby", NULL, ALL},
	{"EXPIRED", "expired", RED, ALL},
	{"STRAY", "stray", NULL, TCP | QUIC},
	{"INVALID", "invalid", NULL, QUIC},
	{"DROPPED", "dropped", RED, ALL},
};

/* Which counters a table of these listeners has, a bit each. */
static unsigned counters_of(const json_t *listeners, unsigned *ret_transports, bool *ret_fill)
{
	unsigned found = 0;
	const json_t *listener;
	size_t i;

	*ret_transports = 0;
	*ret_fill = false;
	json_array_foreach(listeners, i, listener)
	{
		unsigned transport = transport_of(listener);

		*ret_transports |= transport;
		*ret_fill |= ctl_fullest_map(listener) >= 0;
		for (size_t k = 0; k < ARRAY_SIZE(counters); k++)
			if ((counters[k].transports & transport) &&
				ctl_has(listener, counters[k].key))
				found |= 1U << k;
	}
	return found;
}

double ctl_fullest_map(const json_t *listener)
{
	static const char *const maps[] = {"flows", "connection_ids", "cookies"};
	double fullest = -1;

	for (size_t i = 0; i < ARRAY_SIZE(maps); i++) {
		const json_t *fill = json_object_get(listener, maps[i]);
		json_int_t size = ctl_number(fill, "size");

		if (size > 0)
			fullest = MAX(fullest, (double)ctl_number(fill, "used") / (double)size);
	}
	return fullest;
}

static void add_fill(struct ctl_table *table, const json_t *listener)
{
	double fill = ctl_fullest_map(listener);

	ctl_add_cell(table, fill < 0 ? NULL : ctl_format("%.0f%%", fill * 100),
		fill >= CTL_MAP_FULL ? RED : NULL);
}

/* What waits, comes and begins is always there. */
static void add_counter_column(struct ctl_table *table, const struct counter *counter)
{
	if (counter - counters < 3)
		ctl_add_column(table, counter->title, true);
	else
		ctl_add_optional_column(table, counter->title);
}

static void print_listeners(const struct ctl *ctl, const json_t *listeners)
{
	struct ctl_table table = {
		.indent = 2, .room = ctl->columns, .legend = ctl->legend, .colour = ctl->colour};
	unsigned transports, found;
	const json_t *listener;
	bool fill;
	size_t i;

	found = counters_of(listeners, &transports, &fill);
	ctl_add_column(&table, "LISTENER", false);
	ctl_add_column(&table, "ADDRESS", false);
	ctl_add_column(&table, "ACTIVE", true);
	if (transports & QUIC)
		ctl_add_column(&table, "IDS", false);
	if (fill)
		ctl_add_column(&table, "FILL", true);
	for (size_t k = 0; k < ARRAY_SIZE(counters); k++)
		if (found & 1U << k)
			add_counter_column(&table, &counters[k]);
	json_array_foreach(listeners, i, listener)
	{
		unsigned transport = transport_of(listener);

		ctl_add_cell(&table, ctl_format("%s", ctl_string(listener, "name")), NULL);
		ctl_add_cell(&table,
			ctl_format("%s://%s", ctl_string(listener, "transport"),
				ctl_string(listener, "address")),
			NULL);
		ctl_add_number(&table, listener, "active", NULL);
		if (transports & QUIC)
			ctl_add_cell(&table,
				ctl_format("%s", transport == QUIC
							 ? ctl_string(listener, "connection_id")
							 : "-"),
				NULL);
		if (fill)
			add_fill(&table, listener);
		for (size_t k = 0; k < ARRAY_SIZE(counters); k++)
			if (!(found & 1U << k))
				continue;
			else if (counters[k].transports & transport)
				ctl_add_number(&table, listener, counters[k].key,
					counters[k].colour_unless_zero);
			else
				ctl_add_cell(&table, NULL, NULL);
	}
	ctl_print_table(&table);
}

/* Whether any of the workers has the field. */
static bool any_has(const json_t *workers, const char *key)
{
	const json_t *worker;
	size_t i;

	json_array_foreach(workers, i, worker) if (ctl_has(worker, key)) return true;
	return false;
}

void ctl_find_worker_columns(const json_t *workers, struct ctl_worker_columns *columns)
{
	columns->sockets |= any_has(workers, "sockets");
	columns->load |= any_has(workers, "load");
}

void ctl_add_worker_columns(struct ctl_table *table, const struct ctl_worker_columns *columns)
{
	ctl_add_column(table, "SLOT", true);
	ctl_add_column(table, "INSTANCE", false);
	if (columns->service)
		ctl_add_column(table, "SERVICE", false);
	ctl_add_column(table, "STATE", false);
	ctl_add_column(table, "FOR", true);
	ctl_add_column(table, "WEIGHT", true);
	ctl_add_column(table, "PID", true);
	ctl_add_column(table, "USER", false);
	ctl_add_column(table, "PACKETS", true);
	ctl_add_column(table, "NEW", true);
	if (columns->sockets) {
		ctl_add_column(table, "QUEUE", true);
		ctl_add_column(table, "DROPS", true);
	}
	if (columns->load)
		ctl_add_column(table, "LOAD", true);
}

static void add_queue(struct ctl_table *table, const json_t *service, const json_t *worker)
{
	const json_t *fullest = ctl_fullest_socket(worker);
	json_int_t drops = ctl_worker_drops(worker);

	ctl_add_cell(table, fullest ? ctl_queue_text(service, fullest) : NULL,
		fullest && ctl_queue_fill(fullest) >= CTL_QUEUE_FULL ? RED : NULL);
	ctl_add_cell(table, drops < 0 ? NULL : ctl_format("%" JSON_INTEGER_FORMAT, drops),
		drops > 0 ? RED : NULL);
}

void ctl_add_worker(struct ctl_table *table, const struct ctl_worker_columns *columns,
	const json_t *service, const json_t *worker, int64_t now)
{
	const char *colour;
	char *state = ctl_worker_state(worker, &colour);

	ctl_add_number(table, worker, "slot", NULL);
	ctl_add_cell(table, ctl_format("%s", ctl_string(worker, "instance")), NULL);
	if (columns->service)
		ctl_add_cell(table, ctl_format("%s", ctl_string(service, "name")), NULL);
	ctl_add_cell(table, state, colour);
	ctl_add_cell(table, ctl_duration(now - ctl_number(worker, "since")), NULL);
	ctl_add_number(table, worker, "weight", NULL);
	ctl_add_number(table, worker, "pid", NULL);
	ctl_add_cell(table, ctl_user_name(ctl_number(worker, "uid")), NULL);
	ctl_add_number(table, worker, "packets", NULL);
	ctl_add_number(table, worker, "new_connections", NULL);
	if (columns->sockets)
		add_queue(table, service, worker);
	if (columns->load)
		ctl_add_cell(table,
			ctl_has(worker, "load")
				? ctl_format("%.1f%%", (double)ctl_number(worker, "load") / 10)
				: NULL,
			NULL);
}

static void print_workers(const struct ctl *ctl, const json_t *service)
{
	const json_t *workers = json_object_get(service, "workers"), *worker;
	struct ctl_table table = {.indent = 2, .legend = ctl->legend, .colour = ctl->colour};
	struct ctl_worker_columns columns = {0};
	int64_t now = ctl_now_usec();
	size_t i;

	ctl_find_worker_columns(workers, &columns);
	ctl_add_worker_columns(&table, &columns);
	json_array_foreach(workers, i, worker)
		ctl_add_worker(&table, &columns, service, worker, now);
	ctl_print_table(&table);
}

char *ctl_stranger_text(const json_t *stranger)
{
	_cleanup_free_ char *user = ctl_user_name(ctl_number(stranger, "uid"));
	const char *unit = ctl_has(stranger, "unit") ? ctl_plain(stranger, "unit") : NULL;
	const char *command = ctl_has(stranger, "command") ? ctl_plain(stranger, "command") : NULL;

	if (!ctl_has(stranger, "pid"))
		return ctl_format("a process that is not visible, user %s", user ? user : "?");
	return ctl_format("pid %" JSON_INTEGER_FORMAT "%s%s%s, user %s%s%s",
		ctl_number(stranger, "pid"), command ? " (" : "", command ? command : "",
		command ? ")" : "", user ? user : "?", unit ? ", " : "", unit ? unit : "");
}

static void print_strangers(const json_t *listeners, bool colour)
{
	const json_t *listener, *stranger;
	size_t i, k;

	json_array_foreach(listeners, i, listener)
	{
		json_array_foreach(json_object_get(listener, "strangers"), k, stranger)
		{
			_cleanup_free_ char *text = ctl_stranger_text(stranger);

			printf("  %sa stranger has a socket at %s: %s%s\n", colour ? RED : "",
				ctl_plain(listener, "address"), text ? text : "?",
				colour ? COLOUR_END : "");
		}
	}
}

const char *ctl_service_colour(const json_t *service)
{
	const json_t *worker;
	size_t i;

	if (ctl_is_true(service, "removed"))
		return GREY;
	if (!ctl_count_workers(service, "active"))
		return RED;
	json_array_foreach(json_object_get(service, "workers"), i,
		worker) if (ctl_is_true(worker, "stalled")) return YELLOW;
	return GREEN;
}

static void print_service(const struct ctl *ctl, const json_t *service)
{
	bool colour = ctl->colour;
	const json_t *listeners = json_object_get(service, "listeners");

	printf("%s%s%s %s%s%s%s\n", colour ? ctl_service_colour(service) : "", ctl_dot(),
		colour ? COLOUR_END : "", colour ? BOLD : "", ctl_plain(service, "name"),
		colour ? COLOUR_END : "",
		ctl_is_true(service, "removed") ? " (left the configuration, its workers drain)"
						: "");
	print_listeners(ctl, listeners);
	print_strangers(listeners, colour);
	if (ctl_count_workers(service, NULL)) {
		if (ctl->legend)
			putchar('\n');
		print_workers(ctl, service);
	} else if (ctl->legend) {
		puts("  no worker has registered");
	}
}

void ctl_print_daemon(const json_t *daemon)
{
	_cleanup_free_ char *uptime = ctl_duration(ctl_number(daemon, "uptime"));

	printf("reuseportd %s, pid %" JSON_INTEGER_FORMAT ", up %s", ctl_plain(daemon, "version"),
		ctl_number(daemon, "pid"), uptime ? uptime : "-");
	if (ctl_has(daemon, "kernel"))
		printf(", Linux %s", ctl_plain(daemon, "kernel"));
	putchar('\n');
}

void ctl_print_status(const struct ctl *ctl, const json_t *status)
{
	const json_t *services = json_object_get(status, "services");
	const json_t *daemon = json_object_get(status, "daemon");
	const json_t *service;
	size_t i;

	if (ctl->legend && daemon)
		ctl_print_daemon(daemon);
	json_array_foreach(services, i, service)
	{
		if (ctl->legend)
			putchar('\n');
		print_service(ctl, service);
	}
	if (ctl->legend && !json_array_size(services))
		puts("no service is configured (reuseportd.conf(5))");
}

int ctl_run_status(const struct ctl *ctl, int argc, char **argv)
{
	json_t *reply;
	int result = ctl_call_status(ctl, argc ? argv[0] : NULL, &reply);

	if (result != CTL_OK)
		return result;
	if (ctl->json == CTL_JSON_OFF) {
		ctl_print_status(ctl, reply);
		ctl_print_shares(ctl, reply, argc ? argv[0] : NULL);
	} else {
		ctl_print_json(ctl, reply);
	}
	json_decref(reply);
	return result;
}
