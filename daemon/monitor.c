/* SPDX-License-Identifier: BSD-2-Clause */
#include "daemon/monitor.h"

#include <string.h>

#include "common/util.h"
#include "daemon/control.h"
#include "daemon/manager.h"
#include "daemon/status.h"

struct watcher {
	struct control_stream stream; /* first: what control.c knows of it */
	struct watcher *next;
	struct manager *manager;
	char *service;       /* NULL: all */
	uint64_t next_event; /* by number of those that ever were */
	bool needs_snapshot;
};

struct monitor {
	json_t *events[MONITOR_EVENTS]; /* event i is at i % MONITOR_EVENTS */
	uint64_t n_events;
	struct watcher *watchers;
};

int monitor_new(struct monitor **ret)
{
	*ret = calloc(1, sizeof(**ret));
	return *ret ? 0 : -ENOMEM;
}

static void forget_events(struct monitor *monitor)
{
	for (size_t i = 0; i < MONITOR_EVENTS; i++) {
		json_decref(monitor->events[i]);
		monitor->events[i] = NULL;
	}
}

struct monitor *monitor_free(struct monitor *monitor)
{
	if (monitor)
		forget_events(monitor);
	free(monitor);
	return NULL;
}

bool monitor_has_clients(const struct monitor *monitor)
{
	return monitor && monitor->watchers;
}

void monitor_tell(struct monitor *monitor, json_t *event)
{
	json_t **place = &monitor->events[monitor->n_events++ % MONITOR_EVENTS];

	json_decref(*place);
	*place = event;
	for (struct watcher *c = monitor->watchers; c; c = c->next)
		control_stream_wake(&c->stream);
}

static void watcher_end(struct control_stream *stream)
{
	struct watcher *watcher = (struct watcher *)stream;
	struct monitor *monitor = watcher->manager->monitor;
	struct watcher **link = &monitor->watchers;

	while (*link != watcher)
		link = &(*link)->next;
	*link = watcher->next;
	if (!monitor->watchers)
		forget_events(monitor);
	free(watcher->service);
	free(watcher);
}

/* Of its service, or of none. */
static bool concerns(const json_t *event, const struct watcher *watcher)
{
	const char *service = json_string_value(json_object_get(event, "service"));

	return !watcher->service || !service || !*service || strcmp(service, watcher->service) == 0;
}

static json_t *reply_of(json_t *services, json_t *event)
{
	return json_pack("{s:o, s:o}", "services", services ? services : json_null(), "event",
		event ? event : json_null());
}

static json_t *overrun(void)
{
	return json_pack("{s:I, s:s, s:s, s:n, s:n, s:n, s:n, s:n, s:n}", "time",
		(json_int_t)now_realtime(), "kind", "overrun", "service", "", "listener", "slot",
		"instance", "pid", "reason", "served");
}

static int watcher_next(struct control_stream *stream, json_t **ret)
{
	struct watcher *watcher = (struct watcher *)stream;
	struct monitor *monitor = watcher->manager->monitor;

	if (watcher->needs_snapshot) {
		watcher->needs_snapshot = false;
		watcher->next_event = monitor->n_events;
		*ret = reply_of(status_services(watcher->manager, watcher->service), NULL);
		return *ret ? 1 : -ENOMEM;
	}
	if (monitor->n_events - watcher->next_event > MONITOR_EVENTS) {
		watcher->needs_snapshot = true;
		*ret = reply_of(NULL, overrun());
		return *ret ? 1 : -ENOMEM;
	}
	while (watcher->next_event < monitor->n_events) {
		json_t *event = monitor->events[watcher->next_event++ % MONITOR_EVENTS];

		if (!concerns(event, watcher))
			continue;
		*ret = reply_of(NULL, json_incref(event));
		return *ret ? 1 : -ENOMEM;
	}
	return 0;
}

int monitor_open(void *user_data, const json_t *parameters, struct control_stream **ret,
	json_t **ret_parameters, const char **ret_error)
{
	struct manager *manager = user_data;
	const char *service = json_string_value(json_object_get(parameters, "service"));
	struct watcher *watcher;

	if (service && !manager_find_service(manager, service)) {
		*ret_error = CONTROL_NO_SERVICE;
		*ret_parameters = json_pack("{s:s}", "name", service);
		return -ENOENT;
	}
	watcher = calloc(1, sizeof(*watcher));
	if (watcher && service)
		watcher->service = strdup(service);
	if (!watcher || (service && !watcher->service)) {
		free(watcher);
		return -ENOMEM;
	}
	watcher->stream.next = watcher_next;
	watcher->stream.end = watcher_end;
	watcher->manager = manager;
	watcher->needs_snapshot = true;
	watcher->next = manager->monitor->watchers;
	manager->monitor->watchers = watcher;
	*ret = &watcher->stream;
	return 0;
}
