/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A registration and its workers: slots taken, made active, drained, given back.
 *
 * Two things tell that a worker is over: its process has ended (pidfd), and its sockets are gone
 * from the socket map, which the kernel does by itself at their last close. A process that has
 * ended while others still hold its sockets (a master killed, its children alive) makes its workers
 * drain: no new connection goes there, and nothing that they still serve is disturbed.
 *
 * What is decided is written into the state first, then done: a daemon that dies in between leaves
 * a state whose next start does it again.
 */
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>

#include "common/util.h"
#include "daemon/event.h"
#include "daemon/group.h"
#include "daemon/load.h"
#include "daemon/manager.h"
#include "daemon/registration.h"
#include "daemon/store.h"
#include "daemon/takeover.h"

#define WEIGHT_DEFAULT 100
#define ADOPT_SETTLE_USEC (5 * USEC_PER_SEC)

static void set_state(struct worker *worker, enum worker_state state)
{
	worker->state = state;
	worker->stalled = 0;
	worker->since_usec = now_realtime();
	store_touch(worker->registration->service->manager->store);
}

/* The slot for the next worker: the service's reserved one, else any. -1: none left. */
static int32_t take_slot(struct service *service)
{
	struct manager *manager = service->manager;
	int32_t slot = service->reserved_slot;

	if (slot >= 0 && !manager->slots[slot])
		return slot;
	slot = manager_reserve_slot(manager);
	if (slot >= 0)
		manager->reserved[slot] = 0; /* the worker in it holds it from here */
	return slot;
}

static void free_memory(struct registration *registration)
{
	if (!registration)
		return;
	piece_done(&registration->saved);
	claims_free(registration);
	loads_free(registration->loads);
	free(registration->told);
	free(registration->workers);
	free(registration);
}

/* Room for n_workers, of which there is none yet; it is not the service's yet. */
struct registration *registration_allocate(struct service *service, struct client *client,
	const char *instance, uint32_t n_workers, uint32_t weight)
{
	struct registration *registration = calloc(1, sizeof(*registration));

	if (!registration)
		return NULL;
	registration->workers = calloc(n_workers, sizeof(*registration->workers));
	registration->told =
		calloc((size_t)n_workers * PROTOCOL_LISTENERS_MAX, sizeof(*registration->told));
	if (!registration->workers || !registration->told) {
		free_memory(registration);
		return NULL;
	}
	registration->pidfd = -1;
	registration->service = service;
	registration->client = client;
	registration->id = ++service->manager->next_registration;
	if (*instance)
		snprintf(registration->instance, sizeof(registration->instance), "%s", instance);
	else
		snprintf(registration->instance, sizeof(registration->instance), "%.40s-%u",
			service->config->name, registration->id);
	for (uint32_t i = 0; i < n_workers; i++) {
		registration->workers[i].registration = registration;
		registration->workers[i].weight = (uint16_t)(weight ? weight : WEIGHT_DEFAULT);
	}
	return registration;
}

static void place_worker(struct worker *worker, uint16_t slot)
{
	worker->slot = slot;
	set_state(worker, WORKER_JOINING);
	worker->registration->service->manager->slots[slot] = worker;
}

int registration_new(struct registration **ret, struct service *service, struct client *client,
	const char *instance, uint32_t n_workers, uint32_t weight, const char **ret_reason)
{
	struct registration *registration =
		registration_allocate(service, client, instance, n_workers, weight);

	*ret_reason = "out of memory";
	if (!registration)
		return -ENOMEM;
	for (uint32_t i = 0; i < n_workers; i++) {
		int32_t slot = take_slot(service);

		if (slot < 0) {
			for (uint32_t k = 0; k < i; k++)
				service->manager->slots[registration->workers[k].slot] = NULL;
			free_memory(registration);
			*ret_reason = "all slots of the daemon are taken";
			return -ENOSPC;
		}
		place_worker(&registration->workers[i], (uint16_t)slot);
	}
	registration->n_workers = n_workers;
	registration->next = service->registrations;
	service->registrations = registration;
	*ret = registration;
	return 0;
}

int registration_new_adopting(struct registration **ret, struct service *service,
	struct client *client, const char *instance, uint32_t max_workers, uint32_t weight,
	const char **ret_reason)
{
	struct registration *registration =
		registration_allocate(service, client, instance, max_workers, weight);

	*ret_reason = "out of memory";
	if (!registration)
		return -ENOMEM;
	registration->max_workers = max_workers;
	registration->next = service->registrations;
	service->registrations = registration;
	*ret = registration;
	return 0;
}

/* Workers that come back with the sockets that an earlier daemon made. */

int registration_new_resumed(struct registration **ret, struct service *service,
	struct client *client, const char *instance, uint32_t n_workers, uint32_t max_workers,
	uint32_t weight)
{
	struct registration *registration = registration_allocate(
		service, client, instance, MAX(n_workers, max_workers), weight);

	if (!registration)
		return -ENOMEM;
	registration->n_expected = n_workers;
	registration->max_workers = max_workers;
	registration->next = service->registrations;
	service->registrations = registration;
	*ret = registration;
	return 0;
}

/* The next worker of a service can have another one, unless its standby stands there already. */
static void release_reserved(struct manager *manager, uint16_t slot)
{
	for (struct service *s = manager->services; s; s = s->next) {
		bool stands = false;

		if (s->reserved_slot != slot)
			continue;
		for (size_t i = 0; i < s->n_listeners; i++)
			stands |= s->listeners[i] && s->listeners[i]->group->standby_index == slot;
		if (stands)
			continue;
		s->reserved_slot = -1;
		manager->reserved[slot] = 0;
	}
}

/* Nobody's connection IDs name it, and no map has its sockets yet. */
static bool may_move(const struct worker *worker)
{
	const struct service *service = worker->registration->service;
	bool quic = false;

	for (size_t i = 0; i < service->n_listeners; i++)
		quic |= service->listeners[i] && service->listeners[i]->keys;
	return worker->registration->n_expected && !worker->present && !quic;
}

int registration_resume_worker(
	struct registration *registration, uint16_t slot, bool exactly, struct worker **ret)
{
	struct manager *manager = registration->service->manager;
	struct worker *worker = &registration->workers[registration->n_workers];
	struct worker *there;
	int32_t other = -1;

	release_reserved(manager, slot);
	there = manager->slots[slot];
	if (there || manager->reserved[slot]) {
		if (exactly && (!there || !may_move(there)))
			return -EEXIST;
		other = manager_reserve_slot(manager);
		if (other < 0)
			return -ENOSPC;
		manager->reserved[other] = 0;
	}
	if (other >= 0 && exactly) {
		there->slot = (uint16_t)other;
		manager->slots[other] = there;
	} else if (other >= 0) {
		slot = (uint16_t)other;
	}
	place_worker(worker, slot);
	worker->granted = true;
	registration->n_workers++;
	manager_account(manager, registration->uid)->n_slots++;
	if (slot >= manager->next_slot)
		manager->next_slot = (slot + 1u) % SLOT_COUNT;
	*ret = worker;
	return 0;
}

/* slot: the first of n that changed. */
static void tell_change(const struct registration *registration, enum event event,
	const uint16_t *slot, uint32_t n, const char *reason, const char *text)
{
	event_tell(registration->service->manager, event,
		&(struct event_about){
			.registration = registration,
			.slot = slot,
			.n_slots = n,
			.reason = reason,
		},
		"%s", text);
}

static void tell_gone(const struct registration *registration, const char *reason)
{
	event_tell(registration->service->manager, EVENT_WORKER_GONE,
		&(struct event_about){
			.registration = registration,
			.reason = reason,
			.served_usec = registration->ready_usec
					       ? now_monotonic() - registration->ready_usec
					       : 0,
		},
		"gone");
}

static void release_sockets(struct registration *registration)
{
	struct service *service = registration->service;

	for (uint32_t i = 0; i < registration->n_workers; i++)
		for (size_t k = 0; k < service->n_listeners; k++)
			if (service->listeners[k])
				group_remove_socket(service->listeners[k]->group,
					registration->workers[i].slot);
}

void registration_free(struct registration *registration, const char *reason)
{
	struct service *service = registration->service;
	struct manager *manager = service->manager;
	struct registration **link = &service->registrations;
	bool was_active = false;

	while (*link != registration)
		link = &(*link)->next;
	*link = registration->next;
	for (uint32_t i = 0; i < registration->n_workers; i++)
		was_active |= registration->workers[i].state == WORKER_ACTIVE;
	store_touch(manager->store);
	if (reason) {
		store_commit(manager->store);
		/* First out of the tables, then out of the socket map: no packet falls between. */
		if (was_active)
			service_update(service);
		if (registration->n_workers)
			tell_gone(registration, reason);
		release_sockets(registration);
	}
	for (uint32_t i = 0; i < registration->n_workers; i++)
		manager->slots[registration->workers[i].slot] = NULL;
	manager_account(manager, registration->uid)->n_slots -= registration->n_workers;
	if (registration->client)
		client_forget(registration->client);
	sd_event_source_disable_unref(registration->exit_source);
	store_drop(manager->store, registration->pidfd_entry, registration->pidfd);
	loads_drop(registration);
	free_memory(registration);
}

static int on_process_exit(sd_event_source *source, int fd, uint32_t events, void *user_data)
{
	struct registration *registration = user_data;
	struct service *service = registration->service;

	registration->exited = true;
	store_touch(service->manager->store);
	sd_event_source_set_enabled(registration->exit_source, SD_EVENT_OFF);
	registration_check(registration);
	/* What a lost worker leaves may include a standby that has to be made again. */
	service_update(service);
	return 0;
}

int registration_set_process(struct registration *registration, pid_t pid, int pidfd)
{
	sd_event_source *source = NULL;
	int result;

	result = sd_event_add_io(registration->service->manager->event, &source, pidfd, EPOLLIN,
		on_process_exit, registration);
	if (result < 0) {
		close_fd(&pidfd);
		return result;
	}
	sd_event_source_disable_unref(registration->exit_source);
	store_drop(registration->service->manager->store, registration->pidfd_entry,
		registration->pidfd);
	registration->pidfd_entry = 0;
	registration->exit_source = source;
	registration->pidfd = pidfd;
	registration->pid = pid;
	return 0;
}

/* Which of the worker's sockets are there, as the kernel has it. */
uint64_t worker_look_for_sockets(const struct worker *worker)
{
	const struct service *service = worker->registration->service;
	uint64_t present = 0;

	for (size_t i = 0; i < service->n_listeners; i++)
		if (worker->present & 1ULL << i && service->listeners[i] &&
			group_has_socket(service->listeners[i]->group, worker->slot, NULL))
			present |= 1ULL << i;
	return present;
}

/* For which listeners the registration has sockets. */
static uint64_t covered(const struct registration *registration)
{
	uint64_t present = 0;

	for (uint32_t i = 0; i < registration->n_workers; i++)
		present |= worker_look_for_sockets(&registration->workers[i]);
	return present;
}

/*
 * A server that binds for itself binds one address after the other, and may fail at the last one.
 * Its predecessor goes when it has all that that one has; or, when its configuration has changed,
 * after a while without another socket.
 */
static void drain_predecessors(struct registration *registration)
{
	uint64_t has = registration->max_workers ? covered(registration) : 0;
	bool settled = !registration->max_workers ||
		       now_monotonic() >= registration->adopted_usec + ADOPT_SETTLE_USEC;
	bool left = false;

	for (struct registration *r = registration->service->registrations, *next; r; r = next) {
		next = r->next;
		/* A later one is to follow this one, however soon it came. */
		if ((int32_t)(r->id - registration->id) >= 0 ||
			strcmp(r->instance, registration->instance) != 0)
			continue;
		if (settled || !(covered(r) & ~has))
			registration_drain(r, -1, PROTOCOL_DRAIN_REPLACED);
		else
			left = true;
	}
	if (!left)
		registration->adopted_usec = 0;
}

static void open_slot(const struct worker *worker)
{
	const struct service *service = worker->registration->service;

	for (size_t i = 0; i < service->n_listeners; i++)
		if (service->listeners[i] && worker->present & 1ULL << i)
			group_open_slot(service->listeners[i]->group, worker->slot, true);
}

static void set_ready_time(struct registration *registration)
{
	if (!registration->ready_usec)
		registration->ready_usec = now_monotonic();
}

void registration_ready(struct registration *registration)
{
	const uint16_t *first = NULL;
	uint32_t n = 0;

	if (!registration->ready)
		store_touch(registration->service->manager->store); /* it may have no worker yet */
	registration->ready = true;
	for (uint32_t i = 0; i < registration->n_workers; i++)
		if (registration->workers[i].state == WORKER_JOINING) {
			set_state(&registration->workers[i], WORKER_ACTIVE);
			first = n++ ? first : &registration->workers[i].slot;
		}
	if (!n)
		return;
	set_ready_time(registration);
	store_commit(registration->service->manager->store);
	for (uint32_t i = 0; i < registration->n_workers; i++)
		open_slot(&registration->workers[i]);
	service_update(registration->service);
	tell_change(registration, EVENT_WORKER_ACTIVE, first, n, NULL, "active");
	drain_predecessors(registration);
}

void registration_resumed(struct registration *registration)
{
	const uint64_t timeout = registration->service->config->drain_timeout_usec;

	registration->n_expected = registration->n_came = 0;
	registration->acked = true;
	for (uint32_t i = 0; registration->ready && i < registration->n_workers; i++) {
		struct worker *worker = &registration->workers[i];

		set_state(worker, registration->drained ? WORKER_DRAINING : WORKER_ACTIVE);
		if (registration->drained && timeout)
			worker->drain_before_usec = now_monotonic() + timeout;
		open_slot(worker);
	}
	if (registration->ready)
		set_ready_time(registration);
}

/* Workers that bring their sockets. */

static bool lacks_socket(const struct worker *worker, const struct listener *listener)
{
	return !(worker->present & 1ULL << listener->index) ||
	       !group_has_socket(listener->group, worker->slot, NULL);
}

static struct worker *add_worker(
	struct registration *registration, int *ret_error, const char **ret_reason)
{
	struct service *service = registration->service;
	struct manager *manager = service->manager;
	struct account *account = manager_account(manager, registration->uid);
	struct worker *worker = &registration->workers[registration->n_workers];
	uint32_t taken = 0;
	int32_t slot;

	*ret_error = -EDQUOT;
	for (struct registration *r = service->registrations; r; r = r->next)
		taken += r->n_workers;
	*ret_reason = "the service has as many workers as MaxWorkers= allows";
	if (taken >= service->config->max_workers)
		return NULL;
	*ret_reason = "the user has as many slots as MaxSlotsPerUser= allows";
	if (account->n_slots >= manager->config->max_slots)
		return NULL;
	*ret_reason = "the registration has as many workers as it asked for";
	if (registration->n_workers == registration->max_workers)
		return NULL;
	/* Not the service's reserved one: where a UDP standby stands, no other socket can. */
	slot = manager_reserve_slot(manager);
	*ret_error = -ENOSPC;
	*ret_reason = "all slots of the daemon are taken";
	if (slot < 0)
		return NULL;
	manager->reserved[slot] = 0;
	place_worker(worker, (uint16_t)slot);
	worker->granted = true;
	registration->n_workers++;
	account->n_slots++;
	/* Whatever becomes of its socket, it has the slot. */
	store_commit(manager->store);
	return worker;
}

struct worker *registration_take_worker(struct registration *registration,
	const struct listener *listener, int *ret_error, const char **ret_reason)
{
	*ret_error = -ESHUTDOWN;
	*ret_reason = "the instance drains, its server is to end";
	if (registration->drained)
		return NULL;
	for (uint32_t i = 0; i < registration->n_workers; i++) {
		struct worker *worker = &registration->workers[i];

		/* One that drains because an operator said so goes on with what it has. */
		if (!lacks_socket(worker, listener) ||
			(worker->state == WORKER_DRAINING && worker_look_for_sockets(worker)))
			continue;
		group_remove_socket(listener->group, worker->slot);
		worker->present &= ~(1ULL << listener->index);
		if (worker->state == WORKER_DRAINING) {
			worker->drain_before_usec = 0;
			set_state(worker, WORKER_JOINING);
		}
		return worker;
	}
	return add_worker(registration, ret_error, ret_reason);
}

void registration_joined(struct worker *worker, const struct listener *listener)
{
	struct registration *registration = worker->registration;

	worker->present |= 1ULL << listener->index;
	registration->adopted_usec = now_monotonic();
	store_touch(registration->service->manager->store);
	if (!registration->ready)
		return;
	if (worker->state == WORKER_JOINING) {
		set_state(worker, WORKER_ACTIVE);
		set_ready_time(registration);
		tell_change(registration, EVENT_WORKER_ACTIVE, &worker->slot, 1, NULL, "active");
	}
	open_slot(worker);
	service_update(registration->service);
	drain_predecessors(registration);
}

void registration_drop_worker(struct worker *worker, const struct listener *listener)
{
	struct registration *registration = worker->registration;

	group_remove_socket(listener->group, worker->slot);
	worker->present &= ~(1ULL << listener->index);
	if (worker->present || worker != &registration->workers[registration->n_workers - 1])
		return;
	store_touch(registration->service->manager->store);
	registration->service->manager->slots[worker->slot] = NULL;
	manager_account(registration->service->manager, registration->uid)->n_slots--;
	registration->n_workers--;
}

void registration_tell_drain(struct registration *registration)
{
	uint32_t reason = registration->drain_untold;

	if (!reason)
		return;
	if (registration->client)
		client_send_drain(registration->client, registration, reason,
			registration->service->config->drain_timeout_usec);
	/* Told twice, if the daemon ends before this is written, does no harm. */
	registration->drain_untold = 0;
	store_touch(registration->service->manager->store);
}

static const char *drain_reason(uint32_t reason)
{
	switch (reason) {
	case PROTOCOL_DRAIN_REPLACED:
		return "another one of this instance is ready";
	case PROTOCOL_DRAIN_OPERATOR:
		return "an operator said so";
	case PROTOCOL_DRAIN_STALLED:
		return "its queue stood still";
	case PROTOCOL_DRAIN_RELOAD:
		return "its service left the configuration";
	default:
		return "its server said so";
	}
}

unsigned registration_drain(struct registration *registration, int32_t slot, uint32_t reason)
{
	struct service *service = registration->service;
	uint64_t timeout = service->config->drain_timeout_usec;
	bool idle = registration->max_workers && !registration->n_workers;
	const uint16_t *first = NULL;
	unsigned n = 0;
	bool all = true;

	if (slot < 0 && idle && !registration->drained && registration->client && reason)
		client_send_drain(registration->client, registration, reason, timeout);
	if (slot < 0 && !registration->drained)
		store_touch(service->manager->store);
	registration->drained |= slot < 0;
	for (uint32_t i = 0; i < registration->n_workers; i++) {
		struct worker *worker = &registration->workers[i];

		if ((slot >= 0 && worker->slot != slot) || worker->state == WORKER_DRAINING)
			continue;
		set_state(worker, WORKER_DRAINING);
		worker->drain_before_usec = timeout ? now_monotonic() + timeout : 0;
		first = n++ ? first : &worker->slot;
	}
	if (!n)
		return 0;
	for (uint32_t i = 0; i < registration->n_workers; i++)
		if (registration->workers[i].state != WORKER_DRAINING)
			all = false; /* the process is told when the last of its workers drains */
	if (registration->client && all && reason)
		registration->drain_untold = reason;
	store_commit(service->manager->store);
	service_update(service);
	tell_change(
		registration, EVENT_WORKER_DRAINING, first, n, drain_reason(reason), "draining");
	registration_tell_drain(registration);
	return n;
}

unsigned registration_undrain(struct registration *registration, int32_t slot)
{
	const uint16_t *first = NULL;
	unsigned n = 0;

	registration->drained &= slot >= 0;
	for (uint32_t i = 0; i < registration->n_workers && !registration->exited; i++) {
		struct worker *worker = &registration->workers[i];

		if ((slot >= 0 && worker->slot != slot) || worker->state != WORKER_DRAINING ||
			!worker->present)
			continue;
		set_state(worker, WORKER_ACTIVE);
		worker->drain_before_usec = 0;
		first = n++ ? first : &worker->slot;
	}
	if (n) {
		store_commit(registration->service->manager->store);
		service_update(registration->service);
		tell_change(registration, EVENT_WORKER_UNDRAINED, first, n, NULL, "active again");
	}
	return n;
}

bool registration_is_awaited(const struct registration *registration)
{
	if (registration->exited || !registration->client || registration->adopted_usec ||
		registration->service->removed)
		return true;
	for (uint32_t i = 0; i < registration->n_workers; i++)
		if (registration->workers[i].state == WORKER_DRAINING)
			return true;
	return false;
}

void registration_check(struct registration *registration)
{
	struct service *service = registration->service;
	uint64_t now = now_monotonic(), timeout = service->config->drain_timeout_usec;
	bool changed = false, any_socket = false, overdue = registration->n_workers;
	const uint16_t *first = NULL;
	uint32_t n = 0;

	if (!registration->acked)
		return;
	for (uint32_t i = 0; i < registration->n_workers; i++) {
		struct worker *worker = &registration->workers[i];
		uint64_t present = worker_look_for_sockets(worker);

		changed |= present != worker->present && worker->state == WORKER_ACTIVE;
		worker->present = present;
		any_socket |= present != 0;
		if (worker->state == WORKER_ACTIVE && (!present || registration->exited)) {
			set_state(worker, WORKER_DRAINING);
			worker->drain_before_usec = timeout ? now + timeout : 0;
			changed = true;
			first = n++ ? first : &worker->slot;
		}
		/* One that drains alone keeps its slot: its process is needed by the others. */
		overdue &= worker->state == WORKER_DRAINING && worker->drain_before_usec &&
			   now >= worker->drain_before_usec;
	}
	if (changed)
		service_update(service);
	if (n)
		tell_change(registration, EVENT_WORKER_DRAINING, first, n,
			registration->exited ? "its process has ended" : "its sockets are closed",
			"draining");
	if (registration->adopted_usec && registration->ready && any_socket)
		drain_predecessors(registration);
	if (registration->exited && !any_socket)
		registration_free(registration, "its process has ended");
	else if (registration->exited && service->removed)
		registration_free(registration, "its process has ended, its service was removed");
	else if (!any_socket && !registration->client)
		registration_free(registration, "its sockets and its connection are closed");
	else if (overdue) {
		struct client *client = registration->client;

		registration_free(registration, "its time to drain is over");
		if (client)
			client_goodbye(client, ETIMEDOUT, "the time to drain is over");
	}
}
