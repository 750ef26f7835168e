/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The root of everything the daemon holds, its clock tick, and reload: all new listeners are opened
 * first, and only when that worked is anything changed.
 */
#include "daemon/manager.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <stdio.h>
#include <string.h>
#include <sys/capability.h>
#include <sys/epoll.h>
#include <systemd/sd-daemon.h>
#include <time.h>

#include "common/util.h"
#include "daemon/classifier.h"
#include "daemon/control.h"
#include "daemon/event.h"
#include "daemon/foreign.h"
#include "daemon/group.h"
#include "daemon/group-quic.h"
#include "daemon/guard.h"
#include "daemon/log.h"
#include "daemon/privileges.h"
#include "daemon/monitor.h"
#include "daemon/share.h"
#include "daemon/state.h"
#include "daemon/store.h"
#include "daemon/stranger.h"
#include "daemon/takeover.h"

#define RING_OCTETS 4096

static uint64_t now(clockid_t clock)
{
	struct timespec time;

	clock_gettime(clock, &time);
	return (uint64_t)time.tv_sec * USEC_PER_SEC + (uint64_t)time.tv_nsec / NSEC_PER_USEC;
}

uint64_t now_realtime(void)
{
	return now(CLOCK_REALTIME);
}

uint64_t now_monotonic(void)
{
	return now(CLOCK_MONOTONIC);
}

struct account *manager_account(struct manager *manager, uid_t uid)
{
	return accounts_get(manager->accounts, uid);
}

uint32_t manager_count_cids(const struct manager *manager, uid_t uid)
{
	uint32_t n = 0;

	for (const struct service *s = manager->services; s; s = s->next)
		for (size_t i = 0; i < s->n_listeners; i++) {
			const struct listener *listener = s->listeners[i];

			if (!listener || listener->config->cid_mode != CID_REGISTERED)
				continue;
			for (const struct registration *r = s->registrations; r; r = r->next)
				for (uint32_t k = 0; r->uid == uid && k < r->n_workers; k++)
					n += listener->group->quic->n_of_slot[r->workers[k].slot];
		}
	return n;
}

int32_t manager_reserve_slot(struct manager *manager)
{
	for (uint32_t tried = 0; tried < SLOT_COUNT; tried++) {
		uint32_t slot = manager->next_slot;

		manager->next_slot = (slot + 1) % SLOT_COUNT;
		if (!manager->slots[slot] && !manager->reserved[slot]) {
			manager->reserved[slot] = 1;
			return (int32_t)slot;
		}
	}
	return -1;
}

struct service *manager_find_service(struct manager *manager, const char *name)
{
	for (struct service *s = manager->services; s; s = s->next)
		if (strcmp(s->config->name, name) == 0)
			return s;
	return NULL;
}

/* A program found a slot empty: the worker closed its socket and the tables don't know yet. */
static int on_slot_event(void *user_data, void *data, size_t size)
{
	struct manager *manager = user_data;
	const struct slot_event *event = data;
	struct worker *worker;

	if (size < sizeof(*event) || event->slot >= SLOT_COUNT)
		return 0;
	for (struct service *s = manager->services; s; s = s->next)
		for (size_t i = 0; i < s->n_listeners; i++)
			if (s->listeners[i] && s->listeners[i]->number == event->group)
				s->listeners[i]->group->head->reported = 0;
	if (share_find(manager, event->group))
		share_find(manager, event->group)->group->head->reported = 0;
	worker = manager->slots[event->slot];
	if (worker)
		registration_check(worker->registration);
	return 0;
}

static int on_ring(sd_event_source *source, int fd, uint32_t events, void *user_data)
{
	struct manager *manager = user_data;

	ring_buffer__consume(manager->ring);
	return 0;
}

static void free_removed_services(struct manager *manager)
{
	struct service **link = &manager->services;

	while (*link) {
		struct service *service = *link;

		if (service->removed && !service->registrations) {
			*link = service->next;
			store_touch(service->manager->store);
			service_free(service);
		} else {
			link = &service->next;
		}
	}
}

static int on_tick(sd_event_source *source, uint64_t time, void *user_data)
{
	struct manager *manager = user_data;

	foreign_tick(manager->foreign);
	classifier_reap_others(manager);
	clients_tick(manager);
	if (manager->control)
		control_tick(manager->control, manager->config->answer_timeout_usec);
	for (struct service *s = manager->services; s; s = s->next)
		service_tick(s);
	shares_tick(manager);
	strangers_tick(manager);
	free_removed_services(manager);
	store_tick(manager->store);
	sd_event_source_set_time(source, now_monotonic() + USEC_PER_SEC);
	return 0;
}

int manager_start(struct manager *manager)
{
	sd_event_source *source;
	int result = foreign_new(&manager->foreign, manager->event);

	if (result < 0)
		return result;
	if (manager->ring_map < 0) {
		manager->ring_map =
			bpf_map_create(BPF_MAP_TYPE_RINGBUF, "events", 0, 0, RING_OCTETS, NULL);
		if (manager->ring_map < 0)
			return -errno;
		manager->ring_entry =
			store_put(manager->store, STORE_MAP, manager->ring_map, false);
	}
	manager->ring = ring_buffer__new(manager->ring_map, on_slot_event, manager, NULL);
	if (!manager->ring)
		return -errno;
	result = sd_event_add_io(manager->event, &source, ring_buffer__epoll_fd(manager->ring),
		EPOLLIN, on_ring, manager);
	if (result < 0)
		return result;
	sd_event_source_set_floating(source, true);
	sd_event_source_unref(source);
	result = sd_event_add_time(manager->event, &source, CLOCK_MONOTONIC,
		now_monotonic() + USEC_PER_SEC, 0, on_tick, manager);
	if (result < 0)
		return result;
	sd_event_source_set_enabled(source, SD_EVENT_ON);
	sd_event_source_set_floating(source, true);
	sd_event_source_unref(source);
	return 0;
}

int manager_new(struct manager **ret, sd_event *event, struct config *config, struct store *store,
	char **ret_error)
{
	struct manager *manager = calloc(1, sizeof(*manager));
	int result;

	if (!manager) {
		config_free(config);
		store_free(store);
		return -ENOMEM;
	}
	manager->event = sd_event_ref(event);
	manager->started_usec = now_realtime();
	manager->ring_map = manager->caller = -1;
	manager->store = store;
	manager->state_directory = take_pointer(config->state_directory);
	manager_guard(manager);
	result = accounts_new(&manager->accounts, event);
	if (result < 0) {
		config_free(config);
		manager_free(manager);
		return result;
	}
	result = manager_start(manager);
	if (result < 0) {
		if (asprintf(ret_error,
			    "cannot create BPF maps: %s (needs CAP_BPF, Linux 5.14 or newer)",
			    strerror(-result)) < 0)
			*ret_error = NULL;
		config_free(config);
	} else {
		manager->starts = true;
		result = manager_reload(manager, config, ret_error);
		manager->starts = false;
	}
	if (result < 0) {
		manager_free(manager);
		return result;
	}
	*ret = manager;
	return 0;
}

void manager_stop(struct manager *manager)
{
	store_commit(manager->store);
	/* A worker's socket that was a standby a moment ago has no duplicate any more. */
	store_sync(manager->store);
	clients_let_go(manager);
	for (struct service *s = manager->services; s; s = s->next)
		for (struct registration *r = s->registrations, *next; r; r = next) {
			next = r->next;
			registration_check(r);
		}
	store_commit(manager->store);
}

struct manager *manager_free(struct manager *manager)
{
	bool stays = store_outlives(manager->store);

	/* Whether systemd starts it again, only systemd knows. */
	store_freeze(manager->store);
	shares_stop(manager);
	while (manager->clients) {
		if (stays)
			client_free(manager->clients);
		else
			client_goodbye(manager->clients, 0, "the daemon stops");
	}
	sd_event_source_disable_unref(manager->load_source);
	free(manager->message);
	while (manager->services) {
		struct service *next = manager->services->next;

		service_free(manager->services);
		manager->services = next;
	}
	takeover_free(manager);
	sd_event_source_disable_unref(manager->claims_source);
	manager->control = control_free(manager->control);
	foreign_free(manager->foreign);
	manager->monitor = monitor_free(manager->monitor);
	accounts_free(manager->accounts);
	guard_free(manager->guard);
	free(manager->unguarded);
	if (manager->ring)
		ring_buffer__free(manager->ring);
	close_fd(&manager->ring_map);
	close_fd(&manager->caller);
	state_free(manager->state);
	store_free(manager->store);
	config_free(manager->config);
	free(manager->state_directory);
	sd_event_unref(manager->event);
	free(manager);
	return NULL;
}

struct change {
	struct service *service; /* existing, or the new one */
	struct listener **fresh; /* of an existing one */
};

static void undo(struct change *changes, struct config *config, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		if (changes[i].fresh) {
			for (size_t k = 0; k < config->services[i]->n_listeners; k++)
				listener_free(changes[i].fresh[k]);
			free(changes[i].fresh);
		} else if (changes[i].service) {
			config->services[i] = NULL; /* goes with the service that took it */
			service_free(changes[i].service);
		}
	}
}

static int prepare(
	struct manager *manager, struct config *config, struct change *changes, char **ret_error)
{
	int result = 0;

	for (size_t i = 0; i < config->n_services && result >= 0; i++) {
		struct service_config *wanted = config->services[i];
		struct service *service = manager_find_service(manager, wanted->name);

		if (service) {
			changes[i].service = service;
			result = service_prepare(service, wanted, &changes[i].fresh, ret_error);
		} else {
			result = service_new(&changes[i].service, manager, wanted, ret_error);
		}
		if (result < 0)
			undo(changes, config, i);
	}
	return result;
}

static void compact(struct config *config)
{
	size_t n = 0;

	for (size_t i = 0; i < config->n_services; i++)
		if (config->services[i])
			config->services[n++] = config->services[i];
	config->n_services = n;
}

void manager_guard(struct manager *manager)
{
	int result;

	if (manager->guard)
		return;
	free(manager->unguarded);
	manager->unguarded = NULL;
	if (!privileges_may(CAP_NET_ADMIN)) {
		manager->unguarded = strdup("that takes CAP_NET_ADMIN from the start on: see "
					    "net-admin.conf, or --net-admin");
		return;
	}
	result = guard_new(&manager->guard, manager->store, &manager->unguarded);
	if (result < 0)
		log_warning("workers' sockets are not guarded: %s",
			manager->unguarded ? manager->unguarded : strerror(-result));
}

/*
 * Services of different users that share a listener: none of their workers may be able to harm the
 * others. All sockets are guarded from the start on, or none: there may be some already.
 */
static int check_guard(const struct manager *manager, const struct config *config, char **ret_error)
{
	const struct listener_config *listener = config_shared_by_users(config);

	if (!listener || manager->guard)
		return 0;
	if (asprintf(ret_error,
		    "%s:%u: services of different users have the share %s: their sockets would "
		    "have to be guarded from each other, and %s. Or give them the same AllowUser= "
		    "and AllowGroup=",
		    listener->file, listener->share_line, listener->share,
		    manager->unguarded ? manager->unguarded : "they can't be") < 0)
		*ret_error = NULL;
	return -EPERM;
}

int manager_reload(struct manager *manager, struct config *config, char **ret_error)
{
	_cleanup_free_ struct change *changes = calloc(config->n_services + 1, sizeof(*changes));
	int result;

	if (!changes) {
		config_free(config);
		return -ENOMEM;
	}
	result = check_guard(manager, config, ret_error);
	if (result >= 0)
		result = prepare(manager, config, changes, ret_error);
	if (result < 0) {
		/* What was opened is closed when the caller hears of it. */
		store_commit(manager->store);
		compact(config);
		config_free(config);
		return result;
	}
	for (struct service *s = manager->services; s; s = s->next) {
		bool wanted = false;

		for (size_t i = 0; i < config->n_services; i++)
			wanted |= changes[i].service == s;
		if (!wanted && !s->removed)
			service_remove(s);
	}
	for (size_t i = 0; i < config->n_services; i++) {
		if (changes[i].fresh) {
			service_commit(changes[i].service, config->services[i], changes[i].fresh);
		} else {
			changes[i].service->next = manager->services;
			manager->services = changes[i].service;
		}
	}
	config->n_services = 0; /* each went to its service */
	config_free(manager->config);
	manager->config = config;
	accounts_set_rate(manager->accounts, config->max_messages);
	if (manager->control) {
		control_set_groups(manager->control, config->status_group, config->admin_group);
		control_set_max_connections(manager->control, config->max_connections);
	}
	free_removed_services(manager);
	shares_update(manager);
	store_touch(manager->store);
	store_commit(manager->store);
	clients_tell_listeners(manager);
	return 0;
}

int manager_reload_files(struct manager *manager, char **ret_error)
{
	struct config *config = NULL;
	int result;

	sd_notifyf(0, "RELOADING=1\nMONOTONIC_USEC=%llu\nSTATUS=Reading the configuration",
		(unsigned long long)now_monotonic());
	result = manager->load(&config, ret_error, manager->load_data);
	if (result >= 0)
		result = manager_reload(manager, config, ret_error);
	if (result < 0)
		event_tell(manager, EVENT_RELOAD_REFUSED,
			&(struct event_about){
				.reason = *ret_error ? *ret_error : strerror(-result),
			},
			"reload refused, all stays as it was");
	else
		event_tell(manager, EVENT_RELOADED, NULL, "configuration reloaded");
	sd_notifyf(0, "READY=1\nSTATUS=%s",
		result < 0 ? "Running; the last reload was refused" : "Running");
	return result;
}
