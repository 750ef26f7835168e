/* SPDX-License-Identifier: BSD-2-Clause */
#include "daemon/event.h"

#include <stdarg.h>
#include <stdio.h>

#include <jansson.h>

#include "common/format.h"
#include "daemon/log.h"
#include "daemon/manager.h"
#include "daemon/monitor.h"

static const struct {
	const char *kind;
	const char *message_id;
	int priority;
} event_kinds[] = {
#define X(name, event_kind, event_priority, id) \
	[EVENT_##name] = {.kind = event_kind, .message_id = id, .priority = event_priority},
	EVENTS(X)
#undef X
};

static const struct service *service_of(const struct event_about *about)
{
	if (about->registration)
		return about->registration->service;
	return about->listener ? about->listener->service : about->service;
}

static const uint16_t *slot_of(const struct event_about *about)
{
	if (about->slot)
		return about->slot;
	return about->registration && about->registration->n_workers
		       ? &about->registration->workers[0].slot
		       : NULL;
}

static pid_t pid_of(const struct event_about *about)
{
	return about->pid || !about->registration ? about->pid : about->registration->pid;
}

/* "web: instance web@1 (pid 12, slot 3 and 2 more) "; for a listener "web: listener http: ". */
static void describe(char *text, size_t size, const struct event_about *about)
{
	const struct service *service = service_of(about);
	const struct registration *registration = about->registration;
	const uint16_t *slot = slot_of(about);
	char slots[64] = "";
	uint32_t n;

	*text = 0;
	if (!service)
		return;
	if (!registration) {
		snprintf(text, size, "%s: %s%s%s", service->config->name,
			about->listener ? "listener " : "",
			about->listener ? about->listener->config->name : "",
			about->listener ? ": " : "");
		return;
	}
	n = about->n_slots ? about->n_slots : registration->n_workers;
	if (slot && n > 1)
		snprintf(slots, sizeof(slots), ", slot %u and %u more", *slot, n - 1);
	else if (slot)
		snprintf(slots, sizeof(slots), ", slot %u", *slot);
	snprintf(text, size, "%s: instance %s (pid %d%s) ", service->config->name,
		registration->instance, (int)registration->pid, slots);
}

static void set_number(json_t *json, const char *name, bool there, uint64_t value)
{
	json_object_set_new(json, name, there ? json_integer((json_int_t)value) : json_null());
}

static void set_text(json_t *json, const char *name, const char *value)
{
	json_object_set_new(json, name, value ? json_string(value) : json_null());
}

static void tell_monitors(
	struct manager *manager, const char *kind, const struct event_about *about)
{
	const struct service *service = service_of(about);
	const uint16_t *slot = slot_of(about);
	pid_t pid = pid_of(about);
	json_t *json;

	if (!manager || !monitor_has_clients(manager->monitor))
		return;
	json = json_object();
	set_number(json, "time", true, now_realtime());
	set_text(json, "kind", kind);
	set_text(json, "service", service ? service->config->name : "");
	set_text(json, "listener", about->listener ? about->listener->config->name : NULL);
	set_number(json, "slot", slot, slot ? *slot : 0);
	set_text(json, "instance", about->registration ? about->registration->instance : NULL);
	set_number(json, "pid", pid > 0, (uint64_t)pid);
	set_text(json, "reason", about->reason);
	set_number(json, "served", about->served_usec > 0, about->served_usec);
	monitor_tell(manager->monitor, json);
}

void event_tell(struct manager *manager, enum event event, const struct event_about *about,
	const char *format, ...)
{
	static const struct event_about nothing;
	_cleanup_free_ char *text = NULL;
	const struct service *service;
	char subject[512];
	va_list arguments;
	pid_t pid;

	about = about ? about : &nothing;
	service = service_of(about);
	pid = pid_of(about);
	describe(subject, sizeof(subject), about);
	va_start(arguments, format);
	text = format_list(format, arguments);
	va_end(arguments);
	if (text)
		log_entry(event_kinds[event].priority, event_kinds[event].message_id,
			&(struct log_about){
				.service = service ? service->config->name : NULL,
				.listener = about->listener ? about->listener->config->name : NULL,
				.instance =
					about->registration ? about->registration->instance : NULL,
				.slot = slot_of(about),
				.pid = pid,
			},
			"%s%s%s%s", subject, text, about->reason ? ": " : "",
			about->reason ? about->reason : "");
	tell_monitors(manager, event_kinds[event].kind, about);
}
