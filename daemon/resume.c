/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * One daemon goes on where another one ended: everything that it holds as JSON, and back.
 *
 * WHY: servers must not notice that the daemon is replaced, upgraded or killed. The kernel keeps
 * the truth about packets (programs, maps, sockets), whoever runs; what it can't know is which
 * worker a slot is, and what was decided about it. That is written here after each change, before
 * anybody is told. Where the two differ, the kernel is right about what exists, and the state about
 * what was meant.
 */
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/capability.h>
#include <sys/socket.h>
#include <systemd/sd-daemon.h>

#include "common/util.h"
#include "daemon/control.h"
#include "daemon/foreign.h"
#include "daemon/group.h"
#include "daemon/guard.h"
#include "daemon/log.h"
#include "daemon/manager.h"
#include "daemon/share.h"
#include "daemon/state.h"
#include "daemon/state-check.h"
#include "daemon/state-config.h"
#include "daemon/store.h"

static void write_service(struct text *text, const struct service *service)
{
	const struct manager *manager = service->manager;
	json_t *listeners = json_array();
	const char *comma = "";

	for (size_t i = 0; i < service->n_listeners; i++)
		if (service->listeners[i])
			json_array_append_new(listeners, listener_to_json(service->listeners[i]));
	text_add_object_open(
		text, json_pack("{s:o, s:b, s:i, s:o}", "config",
			      service_config_to_json(service->config), "removed", service->removed,
			      "reserved_slot", service->reserved_slot, "listeners", listeners));
	text_add_string(text, ",\"registrations\":[");
	/* An unfinished registration ends with the process, unless the next one begins at once. */
	for (struct registration *r = service->registrations; r; r = r->next) {
		if (!r->acked && !manager->orderly)
			continue;
		text_add_string(text, comma);
		registration_write(r, text);
		comma = ",";
	}
	text_add_string(text, "]}");
}

static void write_all(struct text *text, void *user_data)
{
	const struct manager *manager = user_data;
	const char *comma = "";

	text_add_object_open(text,
		json_pack("{s:o, s:o, s:o, s:s, s:o, s:s?, s:I, s:I, s:I, s:I, s:I}",
			"may_not_adopt", accounts_to_json(manager->accounts), "guard",
			guard_to_json(manager->guard), "shares", shares_to_json(manager), "version",
			VERSION, "config", config_to_json(manager->config), "state_directory",
			manager->state_directory, "ring", (json_int_t)manager->ring_entry,
			"next_slot", (json_int_t)manager->next_slot, "next_registration",
			(json_int_t)manager->next_registration, "next_listener",
			(json_int_t)manager->next_listener, "next_client",
			(json_int_t)manager->next_client));
	text_add_string(text, ",\"services\":[");
	for (const struct service *s = manager->services; s; s = s->next) {
		text_add_string(text, comma);
		write_service(text, s);
		comma = ",";
	}
	text_add_string(text, "],\"clients\":[");
	comma = "";
	for (const struct client *c = manager->clients; c; c = client_next(c)) {
		if (!client_is_kept(c))
			continue;
		text_add_string(text, comma);
		client_write(c, text);
		comma = ",";
	}
	text_add_string(text, "]}");
}

static int write_state(void *user_data)
{
	struct manager *manager = user_data;
	int result = state_write_by(manager->state, write_all, manager);

	if (result < 0 && !manager->state_failed)
		log_warning(
			"cannot keep the state for the next start of the daemon: %s; it would go "
			"on from an earlier one",
			strerror(-result));
	manager->state_failed = result < 0;
	return result;
}

/* Whatever one turn of the loop has changed, and was not written on the way. */
static int on_turn(sd_event_source *source, void *user_data)
{
	struct manager *manager = user_data;

	store_commit(manager->store);
	return 0;
}

int manager_keep_state(struct manager *manager)
{
	sd_event_source *source;
	int result;

	if (!manager->state) {
		result = state_new(&manager->state);
		if (result < 0)
			return result;
	}
	store_set_writer(manager->store, write_state, manager);
	store_touch(manager->store);
	/* The memfd goes to the store when there is something in it. */
	result = write_state(manager);
	if (result >= 0 && !manager->state_entry)
		manager->state_entry =
			store_put(manager->store, STORE_STATE, state_fd(manager->state), false);
	state_set_answering(manager->state, 0, 0);
	store_commit(manager->store);
	store_forget_rest(manager->store, true);
	result = sd_event_add_post(manager->event, &source, on_turn, manager);
	if (result < 0)
		return result;
	sd_event_source_set_floating(source, true);
	sd_event_source_unref(source);
	return 0;
}

static uint32_t number_of(const json_t *json, const char *name)
{
	return (uint32_t)json_integer_value(json_object_get(json, name));
}

static int resume_registrations(struct service *service, const json_t *json)
{
	struct manager *manager = service->manager;
	const json_t *registration;
	size_t i;

	json_array_foreach(json, i, registration)
	{
		uint32_t id = number_of(registration, "client");
		int result = registration_resume(
			service, id ? client_find(manager, id) : NULL, registration);

		if (result < 0)
			return result;
	}
	return 0;
}

static int resume_service(struct manager *manager, const json_t *json, char **ret_error)
{
	const json_t *listeners = json_object_get(json, "listeners"), *listener;
	struct service *service = calloc(1, sizeof(*service)), **link;
	size_t i;
	int result;

	if (!service)
		return -ENOMEM;
	service->manager = manager;
	service->reserved_slot =
		(int32_t)json_integer_value(json_object_get(json, "reserved_slot"));
	service->removed = json_is_true(json_object_get(json, "removed"));
	result = service_config_from_json(&service->config, json_object_get(json, "config"));
	if (result < 0) {
		free(service);
		return result;
	}
	if (service->reserved_slot >= 0)
		manager->reserved[service->reserved_slot] = 1;
	for (link = &manager->services; *link; link = &(*link)->next)
		;
	*link = service;
	json_array_foreach(listeners, i, listener) service->n_listeners =
		MAX(service->n_listeners, (size_t)number_of(listener, "index") + 1);
	service->listeners = calloc(service->n_listeners + 1, sizeof(*service->listeners));
	if (!service->listeners) {
		service->n_listeners = 0;
		return -ENOMEM;
	}
	json_array_foreach(listeners, i, listener)
	{
		result = listener_resume(service, listener, ret_error);
		if (result < 0)
			return result;
	}
	return resume_registrations(service, json_object_get(json, "registrations"));
}

/* The process may have lost sockets, or its own life, while nobody looked. */
static void compare_with_kernel(struct manager *manager)
{
	uint32_t answering = state_answering(manager->state);
	struct client *client = answering ? client_find(manager, answering) : NULL;

	for (struct service *s = manager->services; s; s = s->next)
		service_reconcile(s);
	/* What it asked may be done, but it may never hear of it. If that can't be done once more,
	 * it hears that it can't know. */
	if (client && !client_repeat(client, manager->state))
		client_free(client);
	for (struct service *s = manager->services; s; s = s->next) {
		for (struct registration *r = s->registrations, *next; r; r = next) {
			next = r->next;
			registration_tell_drain(r);
			if (!r->acked && !r->client)
				registration_free(r, "its connection ended before it was ready");
			else
				registration_check(r);
		}
		service_update(s);
	}
	shares_update(manager);
}

static int resume(struct manager *manager, const json_t *json, char **ret_error)
{
	const char *directory = json_string_value(json_object_get(json, "state_directory"));
	const json_t *clients = json_object_get(json, "clients"), *client;
	const json_t *services = json_object_get(json, "services"), *service;
	size_t i;
	int result;

	manager->next_slot = number_of(json, "next_slot");
	manager->next_registration = number_of(json, "next_registration");
	manager->next_listener = number_of(json, "next_listener");
	manager->next_client = number_of(json, "next_client");
	manager->state_directory = directory ? strdup(directory) : NULL;
	if (directory && !manager->state_directory)
		return -ENOMEM;
	result = config_from_json(&manager->config, json_object_get(json, "config"));
	if (result < 0)
		return result;
	result = accounts_new(&manager->accounts, manager->event);
	if (result < 0)
		return result;
	accounts_set_rate(manager->accounts, manager->config->max_messages);
	accounts_resume(manager->accounts, json_object_get(json, "may_not_adopt"));
	manager->ring_entry = number_of(json, "ring");
	manager->ring_map = store_take(manager->store, STORE_MAP, manager->ring_entry);
	manager->guard = guard_resume(manager->store, json_object_get(json, "guard"));
	manager_guard(manager);
	result = manager_start(manager);
	if (result < 0)
		return result;
	json_array_foreach(clients, i, client)
	{
		result = client_resume(manager, client);
		if (result < 0)
			return result;
	}
	result = shares_resume(manager, json_object_get(json, "shares"), ret_error);
	if (result < 0)
		return result;
	json_array_foreach(services, i, service)
	{
		result = resume_service(manager, service, ret_error);
		if (result < 0)
			return result;
	}
	compare_with_kernel(manager);
	/* Before the files are read: what a reload had begun is to be begun again. */
	store_forget_rest(manager->store, false);
	return 0;
}

int manager_resume(struct manager **ret, sd_event *event, struct store *store, struct state *state,
	uint32_t state_entry, const json_t *json, char **ret_error)
{
	_cleanup_free_ char *detail = NULL;
	const char *wrong = state_check(json);
	struct manager *manager;
	uint32_t caller_entry = 0;
	int result = wrong ? -EBADMSG : 0;

	manager = calloc(1, sizeof(*manager));
	if (!manager) {
		state_free(state);
		store_free(store);
		return -ENOMEM;
	}
	manager->event = sd_event_ref(event);
	manager->started_usec = now_realtime();
	manager->store = store;
	manager->state = state;
	manager->state_entry = state_entry;
	manager->ring_map = -1;
	manager->caller = store_take_only(store, STORE_CALLER, &caller_entry);
	manager->caller_entry = caller_entry;
	if (!wrong)
		result = resume(manager, json, &detail);
	if (result < 0) {
		/* What is in the store stays there, for a version that can. */
		if (asprintf(ret_error, "cannot go on from the state of the earlier daemon: %s",
			    wrong    ? wrong
			    : detail ? detail
				     : strerror(-result)) < 0)
			*ret_error = NULL;
		manager_free(manager);
		return result;
	}
	*ret = manager;
	return 0;
}

/* A daemon that became its user by itself keeps its capabilities over exec as ambient ones. */
static void keep_capabilities(void)
{
	cap_t capabilities = cap_get_proc();

	if (!capabilities)
		return;
	for (cap_value_t i = 0; CAP_IS_SUPPORTED(i); i++) {
		cap_flag_value_t permitted = CAP_CLEAR;

		if (cap_get_flag(capabilities, i, CAP_PERMITTED, &permitted) == 0 &&
			permitted == CAP_SET)
			cap_set_flag(capabilities, CAP_INHERITABLE, 1, &i, CAP_SET);
	}
	/* Those that are not permitted are refused. */
	if (cap_set_proc(capabilities) == 0)
		for (cap_value_t i = 0; CAP_IS_SUPPORTED(i); i++)
			prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, i, 0, 0);
	cap_free(capabilities);
}

static int exec_program(struct manager *manager)
{
	_cleanup_free_ int *sockets = control_sockets(manager->control);
	int left = foreign_leave(
		manager->foreign, sockets, sockets ? control_count(manager->control) : 0);
	int result = store_exec(manager->store, manager->program, manager->arguments);

	foreign_stay(left);
	return result;
}

int manager_reexec(struct manager *manager, int caller)
{
	uint32_t caller_entry = 0;
	int result;

	if (access(manager->program, X_OK) < 0)
		return -errno;
	sd_notifyf(0, "RELOADING=1\nMONOTONIC_USEC=%llu\nSTATUS=Starting the new program",
		(unsigned long long)now_monotonic());
	log_info("replaced by %s in place", manager->program);
	manager->orderly = true;
	clients_keep(manager);
	if (caller >= 0)
		caller_entry = store_put(manager->store, STORE_CALLER, caller, true);
	store_commit(manager->store);
	result = manager->state_failed ? -ENOMEM : 0;
	if (result >= 0) {
		keep_capabilities();
		result = exec_program(manager);
	}
	manager->orderly = false;
	log_error("cannot run %s: %s; going on as before", manager->program, strerror(-result));
	store_drop(manager->store, caller_entry, -1);
	store_touch(manager->store);
	sd_notify(0, "READY=1\nSTATUS=Running; the new program could not be started");
	return result;
}

void manager_answer_caller(struct manager *manager)
{
	static const char answer[] = "{\"parameters\":{}}";

	if (manager->caller < 0)
		return;
	send(manager->caller, answer, sizeof(answer), MSG_DONTWAIT | MSG_NOSIGNAL);
	store_drop(manager->store, manager->caller_entry, manager->caller);
	manager->caller = -1;
}
