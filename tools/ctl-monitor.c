/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * monitor: first what there is, then every change as it happens, a line each, until it is
 * interrupted or the daemon ends. With --json each reply of the method Monitor is an object of its
 * own, so that a script reads lines.
 */
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "tools/ctl-field.h"
#include "tools/ctl-table.h"
#include "tools/ctl-worker.h"

#define WHAT "watch changes"
#define CONNECT_MSEC 10000

static const char *colour_of(const char *kind)
{
	static const struct {
		const char *kind, *colour;
	} colours[] = {{"ready", GREEN}, {"undrained", GREEN}, {"recovered", GREEN},
		{"draining", YELLOW}, {"standby_used", YELLOW}, {"kicked", YELLOW}, {"gone", GREY},
		{"stalled", RED}, {"stranger", RED}, {"healed", RED}, {"overrun", RED},
		{"listener_trouble", RED}, {"reload_refused", RED}, {"grant_failed", RED}};

	for (size_t i = 0; i < ARRAY_SIZE(colours); i++)
		if (strcmp(kind, colours[i].kind) == 0)
			return colours[i].colour;
	return BOLD;
}

static void print_time(int64_t usec)
{
	time_t seconds = (time_t)(usec / (int64_t)USEC_PER_SEC);
	struct tm broken;
	char text[32];

	localtime_r(&seconds, &broken);
	strftime(text, sizeof(text), "%b %d %H:%M:%S", &broken);
	printf("%s.%03d  ", text, (int)(usec % (int64_t)USEC_PER_SEC / 1000));
}

static void print_kind(const struct ctl *ctl, const char *kind)
{
	printf("%s%-16s%s", ctl->colour ? colour_of(kind) : "", kind,
		ctl->colour ? COLOUR_END : "");
}

/* "web/http  slot 3, web@1, pid 77: it was told to, after 2min 3s" */
static void print_event(const struct ctl *ctl, const json_t *event)
{
	print_time(ctl_number(event, "time"));
	print_kind(ctl, ctl_plain(event, "kind"));
	if (ctl_has(event, "service") && !ctl_is(event, "service", ""))
		printf("  %s", ctl_plain(event, "service"));
	if (ctl_has(event, "listener"))
		printf("/%s", ctl_plain(event, "listener"));
	if (ctl_has(event, "slot"))
		printf("  slot %" JSON_INTEGER_FORMAT, ctl_number(event, "slot"));
	if (ctl_has(event, "instance"))
		printf("  %s", ctl_plain(event, "instance"));
	if (ctl_has(event, "pid"))
		printf("  pid %" JSON_INTEGER_FORMAT, ctl_number(event, "pid"));
	if (ctl_has(event, "served")) {
		_cleanup_free_ char *served = ctl_duration(ctl_number(event, "served"));

		printf("  after %s", served ? served : "?");
	}
	if (ctl_has(event, "reason"))
		printf(": %s", ctl_plain(event, "reason"));
	putchar('\n');
}

static void print_snapshot(const struct ctl *ctl, const json_t *services)
{
	size_t i, listeners = 0, workers = 0, active = 0;
	const json_t *service;

	json_array_foreach(services, i, service)
	{
		listeners += json_array_size(json_object_get(service, "listeners"));
		workers += ctl_count_workers(service, NULL);
		active += ctl_count_workers(service, "active");
	}
	print_time(ctl_now_usec());
	print_kind(ctl, "snapshot");
	printf("  services: %zu, listeners: %zu, workers: %zu, of these active: %zu\n",
		json_array_size(services), listeners, workers, active);
}

/* One of the two fields is null in each reply: an object with the other one. */
static void print_object(const struct ctl *ctl, const char *key, const json_t *value)
{
	json_t *object;

	if (!value || json_is_null(value))
		return;
	object = json_pack("{s:O}", key, value);
	ctl_print_json(ctl, object);
	json_decref(object);
}

static int print_reply(const struct ctl *ctl, const json_t *parameters)
{
	const json_t *services = json_object_get(parameters, "services");
	const json_t *event = json_object_get(parameters, "event");

	if (ctl->json != CTL_JSON_OFF) {
		print_object(ctl, "services", services);
		print_object(ctl, "event", event);
	} else {
		if (json_is_array(services))
			print_snapshot(ctl, services);
		if (json_is_object(event))
			print_event(ctl, event);
	}
	if (fflush(stdout) == 0)
		return CTL_OK;
	ctl_error("cannot write what changes: %s", strerror(errno));
	return CTL_FAILED;
}

/* Until something goes wrong; *ret_error says what, unless it was told. */
static int follow(const struct ctl *ctl, struct ctl_connection *connection, char **ret_error)
{
	for (bool began = false;; began = true) {
		struct pollfd wait = {.fd = connection->fd, .events = POLLIN};
		json_t *message, *parameters;
		int result;

		while ((result = ctl_next(connection, &message)) == 0)
			poll(&wait, 1, -1);
		if (result == -ECONNRESET && began) {
			*ret_error =
				ctl_format("reuseportd at %s ended the connection: it has ended, "
					   "or was replaced",
					ctl->socket);
			return CTL_UNREACHABLE;
		}
		if (result < 0)
			return ctl_lost(ctl->socket, WHAT, result, ret_error);
		result = ctl_judge(ctl->socket, WHAT, message, &parameters, ret_error);
		json_decref(message);
		if (result != CTL_OK)
			return result;
		result = print_reply(ctl, parameters);
		json_decref(parameters);
		if (result != CTL_OK)
			return result;
	}
}

int ctl_run_monitor(const struct ctl *ctl, int argc, char **argv)
{
	_cleanup_(ctl_end) struct ctl_connection connection;
	_cleanup_free_ char *error = NULL;
	json_t *parameters = json_object();
	int result;

	if (argc && json_object_set_new(parameters, "service", json_string(argv[0])) < 0) {
		json_decref(parameters);
		return ctl_usage("a service's name is text in UTF-8", NULL);
	}
	result = ctl_begin(
		ctl->socket, "Monitor", parameters, true, CONNECT_MSEC, WHAT, &connection, &error);
	if (result == CTL_OK)
		result = follow(ctl, &connection, &error);
	if (error)
		ctl_error("%s", error);
	return result;
}
