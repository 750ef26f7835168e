/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A service: its listeners with their groups, its registrations, and the one place that brings both
 * together: service_update() makes the tables and standbys what the workers' states ask for.
 */
#include <stdio.h>
#include <string.h>

#include "common/util.h"
#include "daemon/event.h"
#include "daemon/group.h"
#include "daemon/group-quic.h"
#include "daemon/guard.h"
#include "daemon/log.h"
#include "daemon/load.h"
#include "daemon/manager.h"
#include "daemon/share.h"
#include "daemon/state-config.h"
#include "daemon/store.h"
#include "daemon/stranger.h"
#include "daemon/takeover.h"

#define SOCKETS_LOOKED_AT 128 /* each second, of workers from whom nothing is awaited */

const char *worker_state_name(enum worker_state state)
{
	static const char *const names[] = {"joining", "active", "draining"};

	return names[state];
}

struct listener *listener_free(struct listener *listener)
{
	if (listener) {
		if (listener->share)
			share_leave(listener);
		group_free(listener->group);
		keys_free(listener->keys);
		keys_free(listener->next_keys);
		strangers_free(listener->strangers);
		health_done(&listener->health);
		free(listener);
	}
	return NULL;
}

/* Connection IDs of an earlier listener of this name, and their secrets, are this one's too. */
static int open_keys(struct listener *listener, const char *service, char **ret_error)
{
	int result;

	result = keys_open(&listener->keys, listener->service->manager->state_directory, service,
		listener->config->name, listener->config->key_file, ret_error);
	if (result >= 0)
		result = listener_settle_keys(listener, listener->keys, service, ret_error);
	if (result < 0)
		return result;
	group_quic_set_keys(listener->group->quic, listener->group->number,
		listener->config->cid_mode, listener->keys);
	return 0;
}

static int listener_new(struct listener **ret, struct service *service, const char *name,
	struct listener_config *config, char **ret_error)
{
	struct group_place place;
	struct listener *listener;
	int result;

	listener = calloc(1, sizeof(*listener));
	if (!listener)
		return -ENOMEM;
	listener->service = service;
	listener->config = config;
	listener->number = service->manager->next_listener++;
	place = (struct group_place){
		.number = listener->number,
		.ring = service->manager->ring_map,
		.store = service->manager->store,
		.guard = guard_map(service->manager->guard),
		/* With other keys the workers' connections would be lost. */
		.takes_over = service->manager->starts &&
			      (config->transport != TRANSPORT_QUIC ||
				      service->manager->state_directory || config->key_file),
	};
	result = config->share ? share_join(service->manager, listener, ret_error)
			       : group_new(&listener->group, config, &place, ret_error);
	if (result >= 0 && config->transport == TRANSPORT_QUIC)
		result = open_keys(listener, name, ret_error);
	if (result < 0) {
		listener_free(listener);
		return result;
	}
	if (listener->group->dormant) {
		result = takeover_new(service->manager);
		if (result < 0) {
			listener_free(listener);
			return result;
		}
	}
	watch_begin(listener);
	*ret = listener;
	return 0;
}

json_t *listener_to_json(const struct listener *listener)
{
	json_t *last = json_array(), *share = json_null();

	for (int i = 0; i < KEYS_MAX; i++)
		json_array_append_new(last, json_integer(listener->last_registration[i]));
	if (listener->share)
		share = json_pack("{s:I, s:I}", "number", (json_int_t)listener->share->number,
			"place", (json_int_t)listener->group->number);
	return json_pack("{s:o, s:I, s:I, s:o, s:o, s:o?, s:I, s:o}", "share", share, "index",
		(json_int_t)listener->index, "number", (json_int_t)listener->number, "config",
		listener_config_to_json(listener->config), "group", group_to_json(listener->group),
		"keys", listener->keys ? keys_to_json(listener->keys) : NULL, "keys_version",
		(json_int_t)listener->keys_version, "last_registration", last);
}

/*
 * The files are ahead of the state where a rotation was under way: workers have the key before it
 * and are told. Where the files can't be read, the state has all that is needed.
 */
static int resume_keys(struct listener *listener, const json_t *json, char **ret_error)
{
	struct manager *manager = listener->service->manager;
	const struct listener_config *config = listener->config;
	const char *service = listener->service->config->name;
	const json_t *saved = json_object_get(json, "keys");
	_cleanup_free_ char *error = NULL;
	struct keys *before = NULL;
	int result;

	result = keys_from_json(&before, saved, manager->state_directory, service, config->name);
	if (manager->state_directory)
		result = keys_open(&listener->keys, manager->state_directory, service, config->name,
			config->key_file, &error);
	if (!listener->keys && before) {
		if (error)
			log_warning("%s: listener %s goes on with the keys it has: %s", service,
				config->name, error);
		listener->keys = take_pointer(before);
	}
	if (!listener->keys) {
		*ret_error = take_pointer(error);
		return result < 0 ? result : -EBADMSG;
	}
	if (before && before->current != listener->keys->current) {
		listener->last_registration[before->current] = manager->next_registration;
		listener->keys_version++;
		listener->keys_ahead = true;
	}
	keys_free(before);
	group_quic_set_keys(listener->group->quic, listener->group->number,
		listener->config->cid_mode, listener->keys);
	return 0;
}

int listener_resume(struct service *service, const json_t *json, char **ret_error)
{
	const json_t *last = json_object_get(json, "last_registration");
	const json_t *share = json_object_get(json, "share");
	struct listener *listener = calloc(1, sizeof(*listener));
	struct group_place place = {
		.ring = service->manager->ring_map,
		.store = service->manager->store,
		.guard = guard_map(service->manager->guard),
	};
	int result;

	if (!listener)
		return -ENOMEM;
	listener->service = service;
	listener->index = (uint32_t)json_integer_value(json_object_get(json, "index"));
	listener->number = (uint32_t)json_integer_value(json_object_get(json, "number"));
	listener->keys_version =
		(uint32_t)json_integer_value(json_object_get(json, "keys_version"));
	for (size_t i = 0; i < KEYS_MAX; i++)
		listener->last_registration[i] =
			(uint32_t)json_integer_value(json_array_get(last, i));
	place.number = listener->number;
	result = listener_config_from_json(&listener->config, json_object_get(json, "config"));
	if (result >= 0) {
		result = service_config_add_listener(service->config, listener->config);
		if (result < 0)
			listener_config_free(listener->config);
	}
	if (result >= 0 && listener->config->share)
		result = share_resume_listener(listener,
			(uint32_t)json_integer_value(json_object_get(share, "number")),
			(uint32_t)json_integer_value(json_object_get(share, "place")),
			json_object_get(json, "group"));
	else if (result >= 0)
		result = group_resume(&listener->group, listener->config, &place,
			json_object_get(json, "group"), ret_error);
	if (result >= 0 && listener->config->transport == TRANSPORT_QUIC)
		result = resume_keys(listener, json, ret_error);
	if (result < 0) {
		listener_free(listener);
		return result;
	}
	watch_begin(listener);
	service->listeners[listener->index] = listener;
	return 0;
}

/* A listener that goes on as it is: same name, same address, same options of its sockets. Its keys
 * may be others: listener_prepare_keys(). */
static bool same_listener(const struct listener_config *a, const struct listener_config *b)
{
	return strcmp(a->name, b->name) == 0 && listener_config_same_socket(a, b) &&
	       strcmp(a->share ? a->share : "", b->share ? b->share : "") == 0 &&
	       a->cid_mode == b->cid_mode && a->standby_hold == b->standby_hold &&
	       a->standby_timeout_usec == b->standby_timeout_usec;
}

static struct listener *find_listener(
	const struct service *service, const struct listener_config *config)
{
	for (size_t i = 0; i < service->n_listeners; i++)
		if (service->listeners[i] && same_listener(service->listeners[i]->config, config))
			return service->listeners[i];
	return NULL;
}

/* The listener that is open on the address, whatever its other options. */
static const struct listener *find_open(
	const struct manager *manager, const struct listener_config *config)
{
	for (const struct service *s = manager->services; s; s = s->next)
		for (size_t i = 0; i < s->n_listeners; i++)
			if (s->listeners[i] &&
				listener_config_same_address(s->listeners[i]->config, config))
				return s->listeners[i];
	return NULL;
}

/* What can't be changed on an address that is in use: the workers' sockets and the maps are made
 * for it. A list, to free(), or NULL. */
static char *list_changes(const struct listener_config *a, const struct listener_config *b)
{
	const struct {
		const char *name;
		bool differs;
	} options[] = {
		{"the listener's name", strcmp(a->name, b->name) != 0},
		{"ConnectionID=", a->cid_mode != b->cid_mode},
		{"HostID=", a->host_id != b->host_id},
		{"Flows=", a->n_flows != b->n_flows},
		{"FlowTimeoutSec=", a->flow_timeout_usec != b->flow_timeout_usec},
		{"Standby=", a->standby_hold != b->standby_hold},
		{"StandbyTimeoutSec=", a->standby_timeout_usec != b->standby_timeout_usec},
		{"BindIPv6Only=", a->ipv6_only != b->ipv6_only},
		{"FreeBind=", a->free_bind != b->free_bind},
		{"Transparent=", a->transparent != b->transparent},
		{"Share=", strcmp(a->share ? a->share : "", b->share ? b->share : "") != 0},
	};
	char text[256] = "";
	size_t n = 0;

	for (size_t i = 0; i < ARRAY_SIZE(options); i++)
		if (options[i].differs)
			n += (size_t)snprintf(
				text + n, sizeof(text) - n, "%s%s", n ? ", " : "", options[i].name);
	return *text ? strdup(text) : NULL;
}

/* Instead of who else may have the address: it is our own listener that is to be another one. */
static void explain_in_use(
	const struct manager *manager, const struct listener_config *config, char **ret_error)
{
	const struct listener *open = find_open(manager, config);
	_cleanup_free_ char *changes = open ? list_changes(open->config, config) : NULL;
	char *text;

	if (!open ||
		asprintf(&text,
			"%s:%u: %s%scan't be changed while %s://%s is open (listener %s of "
			"service %s) and its workers have sockets there: take the listener out and "
			"reload, then put it in as it is to be and reload again, when its workers "
			"have ended; or open it on another address",
			config->file, config->line, changes ? changes : "the listener",
			changes ? " " : "'s service ", transport_name(config->transport),
			config->address_text, open->config->name, open->service->config->name) < 0)
		return;
	free(*ret_error);
	*ret_error = text;
}

int service_prepare(struct service *service, struct service_config *config,
	struct listener ***ret_fresh, char **ret_error)
{
	struct listener **fresh = calloc(config->n_listeners + 1, sizeof(*fresh));
	int result = 0;

	if (!fresh)
		return -ENOMEM;
	for (size_t i = 0; i < config->n_listeners && result >= 0; i++) {
		struct listener *found = find_listener(service, config->listeners[i]);

		if (found) {
			result = listener_prepare_keys(found, config->listeners[i], ret_error);
			continue;
		}
		result = listener_new(
			&fresh[i], service, config->name, config->listeners[i], ret_error);
		if (result == -EADDRINUSE)
			explain_in_use(service->manager, config->listeners[i], ret_error);
	}
	if (result < 0) {
		for (size_t i = 0; i < config->n_listeners; i++)
			listener_free(fresh[i]);
		free(fresh);
		return result;
	}
	*ret_fresh = fresh;
	return 0;
}

/* The lowest index that no listener has now; workers keep theirs by number of bit. */
static size_t free_index(struct service *service)
{
	struct listener **more;

	for (size_t i = 0; i < service->n_listeners; i++)
		if (!service->listeners[i])
			return i;
	more = realloc(service->listeners, (service->n_listeners + 1) * sizeof(*more));
	if (!more)
		abort(); /* a pointer's worth of memory: nothing sensible is left to do */
	service->listeners = more;
	service->listeners[service->n_listeners] = NULL;
	return service->n_listeners++;
}

static void forget_listener_bit(struct service *service, size_t index)
{
	for (struct registration *r = service->registrations; r; r = r->next)
		for (uint32_t i = 0; i < r->n_workers; i++) {
			r->workers[i].present &= ~(1ULL << index);
			r->workers[i].stalled &= ~(1ULL << index);
		}
}

void service_commit(struct service *service, struct service_config *config, struct listener **fresh)
{
	struct service_config *old = service->config;

	/* Those that stay take the new settings, which hold for sockets made from now on. */
	for (size_t i = 0; i < service->n_listeners; i++) {
		struct listener *listener = service->listeners[i];
		struct listener_config *found = NULL;

		if (!listener)
			continue;
		for (size_t k = 0; k < config->n_listeners; k++)
			if (same_listener(listener->config, config->listeners[k]))
				found = config->listeners[k];
		if (found) {
			listener->config = found;
			listener_commit_keys(listener);
			continue;
		}
		event_listener(EVENT_LISTENER_CLOSED, listener, NULL, "%s://%s closed",
			transport_name(listener->config->transport),
			listener->config->address_text);
		group_refuse(listener->group);
		service->listeners[i] = listener_free(listener);
		forget_listener_bit(service, i);
	}
	for (size_t i = 0; i < config->n_listeners; i++) {
		size_t index;

		if (!fresh[i])
			continue;
		index = free_index(service);
		fresh[i]->index = (uint32_t)index;
		service->listeners[index] = fresh[i];
	}
	service->config = config;
	for (size_t i = 0; i < config->n_listeners; i++)
		if (fresh[i] && !fresh[i]->group->dormant)
			event_listener(EVENT_LISTENER_OPEN, fresh[i], NULL, "open on %s://%s",
				transport_name(fresh[i]->config->transport),
				fresh[i]->config->address_text);
	free(fresh);
	service->removed = false;
	service_config_free(old);
	service_update(service);
}

int service_new(struct service **ret, struct manager *manager, struct service_config *config,
	char **ret_error)
{
	struct service *service = calloc(1, sizeof(*service));
	struct listener **fresh;
	int result;

	if (!service)
		return -ENOMEM;
	service->manager = manager;
	service->reserved_slot = -1;
	result = service_prepare(service, config, &fresh, ret_error);
	if (result < 0) {
		free(service);
		return result;
	}
	service_commit(service, config, fresh);
	*ret = service;
	return 0;
}

struct service *service_free(struct service *service)
{
	while (service->registrations)
		registration_free(service->registrations, NULL);
	for (size_t i = 0; i < service->n_listeners; i++)
		listener_free(service->listeners[i]);
	if (service->reserved_slot >= 0)
		service->manager->reserved[service->reserved_slot] = 0;
	free(service->listeners);
	service_config_free(service->config);
	free(service);
	return NULL;
}

void service_remove(struct service *service)
{
	service->removed = true;
	for (size_t i = 0; i < service->n_listeners; i++)
		if (service->listeners[i]) {
			group_refuse(service->listeners[i]->group);
			service->listeners[i] = listener_free(service->listeners[i]);
		}
	event_tell(service->manager, EVENT_SERVICE_REMOVED,
		&(struct event_about){.service = service}, "removed from the configuration");
	for (struct registration *r = service->registrations, *next; r; r = next) {
		next = r->next;
		registration_drain(r, -1, PROTOCOL_DRAIN_RELOAD);
	}
}

/* The reserved slot belongs to the next worker; once that one is past joining, another is reserved.
 */
static void update_reserved_slot(struct service *service)
{
	struct manager *manager = service->manager;

	/* Workers that come back want the slots that they had. */
	if (takeover_waits(manager))
		return;
	if (service->reserved_slot >= 0) {
		const struct worker *holder = manager->slots[service->reserved_slot];

		if (!holder || holder->state == WORKER_JOINING)
			return;
		manager->reserved[service->reserved_slot] = 0;
	}
	service->reserved_slot = manager_reserve_slot(manager);
}

/* The active workers that have a socket for the listener, without those that hang, unless there
 * are no others. Returns how many. */
static size_t collect_members(const struct listener *listener, struct maglev_member *members)
{
	size_t n = 0;

	for (int stalled = 0; stalled < 2 && !n; stalled++)
		for (struct registration *r = listener->service->registrations; r; r = r->next)
			for (uint32_t i = 0; i < r->n_workers; i++) {
				const struct worker *worker = &r->workers[i];

				if (worker->state != WORKER_ACTIVE ||
					!worker->stalled != !stalled ||
					!(worker->present & 1ULL << listener->index) ||
					n == SLOT_COUNT)
					continue;
				members[n++] = (struct maglev_member){
					.slot = worker->slot,
					.weight = worker->weight,
					.seed = 0x9e3779b97f4a7c15ULL * (worker->slot + 1),
				};
			}
	return n;
}

/* As soon as anyone is active. A UDP standby that is lent: when the worker that has it is. */
static bool standby_is_due(const struct listener *listener)
{
	const struct group *group = listener->group;
	const struct worker *holder;

	if (!group->standby_lent)
		return true;
	if (group->standby_index >= SLOT_COUNT)
		return false;
	holder = listener->service->manager->slots[group->standby_index];
	return holder && holder->state != WORKER_JOINING;
}

static void update_listener(struct listener *listener, struct maglev_member *members)
{
	struct service *service = listener->service;
	size_t n = collect_members(listener, members);
	const char *step = "";
	int result;

	if (listener->group->dormant)
		return;
	result = group_set_members(listener->group, members, n);
	if (result >= 0 && n && standby_is_due(listener))
		group_settle_standby(listener->group, listener->config);
	if (result >= 0)
		result = group_make_standby(
			listener->group, listener->config, (uint16_t)service->reserved_slot, &step);
	if (result < 0)
		event_listener(EVENT_LISTENER_TROUBLE, listener, strerror(-result),
			"cannot %s, tried again every second", step);
}

void service_update(struct service *service)
{
	_cleanup_free_ struct maglev_member *members = calloc(SLOT_COUNT, sizeof(*members));

	store_touch(service->manager->store);
	if (!members || service->removed)
		return;
	update_reserved_slot(service);
	for (size_t i = 0; i < service->n_listeners; i++)
		if (service->listeners[i])
			update_listener(service->listeners[i], members);
}

int service_wake(struct service *service, struct listener **ret_listener, const char **ret_step)
{
	int result = 0;

	update_reserved_slot(service);
	for (size_t i = 0; i < service->n_listeners && result >= 0; i++) {
		*ret_listener = service->listeners[i];
		if (*ret_listener && (*ret_listener)->group->dormant)
			result = group_wake((*ret_listener)->group, (*ret_listener)->config,
				(uint16_t)service->reserved_slot, ret_step);
	}
	return result;
}

void service_awake(struct service *service)
{
	bool dormant[PROTOCOL_LISTENERS_MAX] = {false};

	for (size_t i = 0; i < service->n_listeners; i++)
		if (service->listeners[i] && service->listeners[i]->group->dormant) {
			service->listeners[i]->group->dormant = false;
			dormant[i] = true;
		}
	service_update(service);
	for (size_t i = 0; i < service->n_listeners; i++) {
		struct listener *listener = service->listeners[i];

		if (!listener || !dormant[i])
			continue;
		group_awake(listener->group, listener->config);
		event_listener(EVENT_LISTENER_OPEN, listener, NULL, "taken over on %s://%s",
			transport_name(listener->config->transport),
			listener->config->address_text);
	}
}

void service_reconcile(struct service *service)
{
	struct manager *manager = service->manager;
	_cleanup_free_ struct maglev_member *members = calloc(SLOT_COUNT, sizeof(*members));
	_cleanup_free_ bool *open = calloc(SLOT_COUNT, sizeof(*open));
	_cleanup_free_ bool *held = calloc(SLOT_COUNT, sizeof(*held));

	if (!members || !open || !held)
		return;
	for (size_t i = 0; i < service->n_listeners; i++) {
		struct listener *listener = service->listeners[i];
		int result;

		if (!listener)
			continue;
		if (listener->share)
			share_collect(listener->share, open, held);
		for (uint32_t slot = 0; slot < SLOT_COUNT && !listener->share; slot++) {
			const struct worker *worker = manager->slots[slot];

			held[slot] = worker && worker->registration->service == service &&
				     worker->present & 1ULL << i;
			open[slot] = held[slot] && worker->state != WORKER_JOINING;
		}
		group_reconcile(listener->group, listener->config, open, held);
		result = group_set_members(
			listener->group, members, collect_members(listener, members));
		if (result >= 0)
			result = group_heal(listener->group);
		if (result < 0)
			log_warning("%s: listener %s: cannot take the group over: %s; tried again "
				    "every second",
				service->config->name, listener->config->name, strerror(-result));
	}
	service_update_loads(service);
}

/*
 * A socket that is closed is found by the first packet that should go there (on_slot_event()), the
 * end of a process or connection tells of itself, and where nothing comes, nothing is lost. So of
 * many workers from whom nothing is awaited some are looked at each second, in turn.
 */
static void check_registrations(struct service *service)
{
	uint64_t n = 0;
	uint32_t turns;

	for (const struct registration *r = service->registrations; r; r = r->next)
		n += r->n_workers * service->n_listeners;
	turns = (uint32_t)((n + SOCKETS_LOOKED_AT - 1) / SOCKETS_LOOKED_AT);
	service->turn++;
	for (struct registration *r = service->registrations, *next; r; r = next) {
		next = r->next;
		if (turns <= 1 || r->id % turns == service->turn % turns ||
			registration_is_awaited(r))
			registration_check(r);
	}
}

void service_tick(struct service *service)
{
	for (size_t i = 0; i < service->n_listeners; i++) {
		struct listener *listener = service->listeners[i];
		const char *step = "";

		if (!listener || listener->group->dormant)
			continue;
		group_heal(listener->group);
		watch_tick(listener);
		health_tick(listener);
		group_empty_standby(listener->group, listener->config);
		group_expire_standby(listener->group, listener->config);
		if (service->reserved_slot >= 0 && listener->group->standby < 0 &&
			!service->manager->slots[service->reserved_slot])
			group_make_standby(listener->group, listener->config,
				(uint16_t)service->reserved_slot, &step);
	}
	check_registrations(service);
	service_retire_keys(service);
}
