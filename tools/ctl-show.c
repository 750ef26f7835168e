/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * show: all that the daemon knows of a worker, a line each, and its sockets.
 */
#include <stdio.h>
#include <string.h>

#include "tools/ctl-field.h"
#include "tools/ctl-status.h"
#include "tools/ctl-terminal.h"
#include "tools/ctl-worker.h"

/* What the process is called, from proc(5); NULL where that can't be seen. free(). */
static char *process_name(json_int_t pid)
{
	char path[64], name[64];
	FILE *file;
	bool good;

	snprintf(path, sizeof(path), "/proc/%" JSON_INTEGER_FORMAT "/comm", pid);
	file = fopen(path, "re");
	if (!file)
		return NULL;
	good = fgets(name, sizeof(name), file);
	fclose(file);
	if (!good)
		return NULL;
	name[strcspn(name, "\n")] = '\0';
	return ctl_is_plain(name) ? strdup(name) : NULL;
}

static void print_process(const json_t *worker)
{
	_cleanup_free_ char *user = ctl_user_name(ctl_number(worker, "uid"));
	_cleanup_free_ char *name = process_name(ctl_number(worker, "pid"));
	bool exited = ctl_is_true(worker, "exited");

	printf("    Process: %" JSON_INTEGER_FORMAT, ctl_number(worker, "pid"));
	if (exited)
		printf(" (has ended, others hold its sockets)");
	else if (name)
		printf(" (%s)", name);
	printf(", user %s, %s\n", user ? user : "?",
		ctl_is_true(worker, "connected") ? "connected" : "not connected");
}

/* The part of new connections that the weight means, among those that get any. */
static void print_weight(const json_t *service, const json_t *worker)
{
	json_int_t weight = ctl_number(worker, "weight"), sum = 0;
	const json_t *each;
	size_t i;

	json_array_foreach(json_object_get(service, "workers"), i,
		each) if (ctl_is(each, "state", "active") && !ctl_is_true(each, "stalled")) sum +=
		ctl_number(each, "weight");
	printf("     Weight: %" JSON_INTEGER_FORMAT, weight);
	if (ctl_is(worker, "state", "active") && !ctl_is_true(worker, "stalled") && sum)
		printf(" of %" JSON_INTEGER_FORMAT ", %.1f%% of new connections", sum,
			100 * (double)weight / (double)sum);
	putchar('\n');
}

static void print_sockets(const struct ctl *ctl, const json_t *service, const json_t *worker)
{
	struct ctl_table table = {.indent = 2, .legend = ctl->legend, .colour = ctl->colour};
	const json_t *sockets = json_object_get(worker, "sockets"), *socket;
	size_t i;

	if (!json_array_size(sockets))
		return;
	ctl_add_column(&table, "LISTENER", false);
	ctl_add_column(&table, "ADDRESS", false);
	ctl_add_column(&table, "PACKETS", true);
	ctl_add_column(&table, "NEW", true);
	ctl_add_column(&table, "QUEUE", true);
	ctl_add_column(&table, "DROPS", true);
	json_array_foreach(sockets, i, socket)
	{
		const char *name = ctl_string(socket, "listener");
		const json_t *listener = ctl_find_listener(service, name);

		ctl_add_cell(&table, ctl_format("%s", name), NULL);
		ctl_add_cell(&table,
			listener ? ctl_format("%s://%s", ctl_string(listener, "transport"),
					   ctl_string(listener, "address"))
				 : NULL,
			NULL);
		ctl_add_number(&table, socket, "packets", NULL);
		ctl_add_number(&table, socket, "new_connections", NULL);
		ctl_add_cell(&table, ctl_queue_text(service, socket),
			ctl_queue_fill(socket) >= CTL_QUEUE_FULL ? RED : NULL);
		ctl_add_number(&table, socket, "drops", RED);
	}
	putchar('\n');
	ctl_print_table(&table);
}

static void print_worker(const struct ctl *ctl, const json_t *service, const json_t *worker)
{
	const char *colour;
	_cleanup_free_ char *state = ctl_worker_state(worker, &colour);
	_cleanup_free_ char *since = ctl_duration(ctl_now_usec() - ctl_number(worker, "since"));
	const char *on = ctl->colour ? colour : "", *off = ctl->colour ? COLOUR_END : "";

	printf("%s%s%s %s%s%s, slot %" JSON_INTEGER_FORMAT " of service %s\n", on, ctl_dot(), off,
		ctl->colour ? BOLD : "", ctl_plain(worker, "instance"), off,
		ctl_number(worker, "slot"), ctl_plain(service, "name"));
	printf("      State: %s%s%s for %s\n", on, state && ctl_is_plain(state) ? state : "?", off,
		since ? since : "?");
	print_process(worker);
	print_weight(service, worker);
	if (ctl_has(worker, "load"))
		printf("       Load: %.1f%%\n", (double)ctl_number(worker, "load") / 10);
	printf("    Packets: %" JSON_INTEGER_FORMAT
	       ", of these new connections %" JSON_INTEGER_FORMAT "\n",
		ctl_number(worker, "packets"), ctl_number(worker, "new_connections"));
	print_sockets(ctl, service, worker);
}

static size_t print_selected(
	const struct ctl *ctl, const json_t *status, const struct ctl_selection *selection)
{
	const json_t *service, *worker;
	size_t i, k, n = 0;

	json_array_foreach(json_object_get(status, "services"), i, service)
	{
		json_array_foreach(json_object_get(service, "workers"), k, worker)
		{
			if (!ctl_selects(selection, service, worker))
				continue;
			if (n++)
				putchar('\n');
			print_worker(ctl, service, worker);
		}
	}
	return n;
}

int ctl_run_show(const struct ctl *ctl, int argc, char **argv)
{
	_cleanup_(ctl_selection_done) struct ctl_selection selection;
	json_t *status;
	size_t n;
	int result;

	if (ctl_select(ctl, argc, argv, 0, &selection) < 0)
		return CTL_USAGE;
	result = ctl_call_status(ctl, selection.service, &status);
	if (result != CTL_OK)
		return result;
	if (ctl->json == CTL_JSON_OFF) {
		n = print_selected(ctl, status, &selection);
	} else {
		json_t *flat = ctl_flat_workers(status, &selection);

		n = json_array_size(flat);
		if (n)
			ctl_print_json(ctl, flat);
		json_decref(flat);
	}
	json_decref(status);
	if (n)
		return CTL_OK;
	ctl_error("cannot show %s: reuseportd has no such worker (reuseportctl list-workers lists "
		  "them)",
		selection.name);
	return CTL_FAILED;
}
