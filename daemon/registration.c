/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A registration and its workers: slots taken, made active, drained, given back.
 *
 * Two things tell that a worker is over: its process has ended (pidfd), and its sockets are gone
 * from the socket map, which the kernel does by itself at their last close. A process that has
 * ended while others still hold its sockets (a master killed, its children alive) makes its workers
 * drain: no new connection goes there, and nothing that they still serve is disturbed.
 */
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>

#include "common/util.h"
#include "daemon/group.h"
#include "daemon/log.h"
#include "daemon/manager.h"

#define WEIGHT_DEFAULT 100

static void set_state(struct worker *worker, enum worker_state state)
{
	worker->state = state;
	worker->since_usec = now_realtime();
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

int registration_new(struct registration **ret, struct service *service, struct client *client,
	const char *instance, uint32_t n_workers, uint32_t weight, const char **ret_reason)
{
	struct manager *manager = service->manager;
	struct registration *registration = calloc(1, sizeof(*registration));

	*ret_reason = "out of memory";
	if (!registration)
		return -ENOMEM;
	registration->workers = calloc(n_workers, sizeof(*registration->workers));
	if (!registration->workers) {
		free(registration);
		return -ENOMEM;
	}
	registration->told =
		calloc((size_t)n_workers * PROTOCOL_LISTENERS_MAX, sizeof(*registration->told));
	if (!registration->told) {
		free(registration->workers);
		free(registration);
		return -ENOMEM;
	}
	registration->pidfd = -1;
	registration->service = service;
	registration->client = client;
	registration->id = ++manager->next_registration;
	if (*instance)
		snprintf(registration->instance, sizeof(registration->instance), "%s", instance);
	else
		snprintf(registration->instance, sizeof(registration->instance), "%.40s-%u",
			service->config->name, registration->id);
	for (uint32_t i = 0; i < n_workers; i++) {
		struct worker *worker = &registration->workers[i];
		int32_t slot = take_slot(service);

		if (slot < 0) {
			for (uint32_t k = 0; k < i; k++)
				manager->slots[registration->workers[k].slot] = NULL;
			free(registration->told);
			free(registration->workers);
			free(registration);
			*ret_reason = "all slots of the daemon are taken";
			return -ENOSPC;
		}
		worker->registration = registration;
		worker->slot = (uint16_t)slot;
		worker->weight = (uint16_t)(weight ? weight : WEIGHT_DEFAULT);
		set_state(worker, WORKER_JOINING);
		manager->slots[slot] = worker;
	}
	registration->n_workers = n_workers;
	registration->next = service->registrations;
	service->registrations = registration;
	*ret = registration;
	return 0;
}

#define log_registration(registration, event, ...)                        \
	log_entry(LOG_INFO, event,                                        \
		&(struct log_about){                                      \
			.service = (registration)->service->config->name, \
			.instance = (registration)->instance,             \
			.slot = &(registration)->workers[0].slot,         \
		},                                                        \
		__VA_ARGS__)

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
	if (reason) {
		/* First out of the tables, then out of the socket map: no packet falls between. */
		if (was_active)
			service_update(service);
		log_registration(registration, EVENT_WORKER_GONE,
			"%s: instance %s (pid %d, slot %u%s) gone: %s", service->config->name,
			registration->instance, (int)registration->pid,
			registration->workers[0].slot,
			registration->n_workers > 1 ? " and more" : "", reason);
		release_sockets(registration);
	}
	for (uint32_t i = 0; i < registration->n_workers; i++)
		manager->slots[registration->workers[i].slot] = NULL;
	manager_account(manager, registration->uid)->n_slots -= registration->n_workers;
	if (registration->client)
		client_forget(registration->client);
	sd_event_source_disable_unref(registration->exit_source);
	close_fd(&registration->pidfd);
	free(registration->told);
	free(registration->workers);
	free(registration);
}

static int on_process_exit(sd_event_source *source, int fd, uint32_t events, void *user_data)
{
	struct registration *registration = user_data;
	struct service *service = registration->service;

	registration->exited = true;
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
	close_fd(&registration->pidfd);
	registration->exit_source = source;
	registration->pidfd = pidfd;
	registration->pid = pid;
	return 0;
}

static void drain_predecessors(struct registration *registration)
{
	for (struct registration *r = registration->service->registrations, *next; r; r = next) {
		next = r->next;
		if (r != registration && strcmp(r->instance, registration->instance) == 0)
			registration_drain(r, -1, PROTOCOL_DRAIN_REPLACED);
	}
}

static void open_slot(const struct worker *worker)
{
	const struct service *service = worker->registration->service;

	for (size_t i = 0; i < service->n_listeners; i++)
		if (service->listeners[i] && worker->present & 1ULL << i)
			group_open_slot(service->listeners[i]->group, worker->slot, true);
}

void registration_ready(struct registration *registration)
{
	unsigned n = 0;

	for (uint32_t i = 0; i < registration->n_workers; i++)
		if (registration->workers[i].state == WORKER_JOINING) {
			set_state(&registration->workers[i], WORKER_ACTIVE);
			open_slot(&registration->workers[i]);
			n++;
		}
	if (!n)
		return;
	service_update(registration->service);
	log_registration(registration, EVENT_WORKER_ACTIVE,
		"%s: instance %s (pid %d, %u slots) active", registration->service->config->name,
		registration->instance, (int)registration->pid, n);
	drain_predecessors(registration);
}

unsigned registration_drain(
	struct registration *registration, int32_t slot, enum protocol_drain_reason reason)
{
	struct service *service = registration->service;
	uint64_t timeout = service->config->drain_timeout_usec;
	unsigned n = 0;

	for (uint32_t i = 0; i < registration->n_workers; i++) {
		struct worker *worker = &registration->workers[i];

		if ((slot >= 0 && worker->slot != slot) || worker->state == WORKER_DRAINING)
			continue;
		set_state(worker, WORKER_DRAINING);
		worker->drain_before_usec = timeout ? now_monotonic() + timeout : 0;
		n++;
	}
	if (!n)
		return 0;
	service_update(service);
	log_registration(registration, EVENT_WORKER_DRAINING,
		"%s: instance %s (pid %d, %u slots) draining", service->config->name,
		registration->instance, (int)registration->pid, n);
	for (uint32_t i = 0; i < registration->n_workers; i++)
		if (registration->workers[i].state != WORKER_DRAINING)
			return n; /* the process is told when the last of its workers drains */
	if (registration->client)
		client_send_drain(registration->client, registration, reason, timeout);
	return n;
}

unsigned registration_undrain(struct registration *registration, int32_t slot)
{
	unsigned n = 0;

	for (uint32_t i = 0; i < registration->n_workers && !registration->exited; i++) {
		struct worker *worker = &registration->workers[i];

		if ((slot >= 0 && worker->slot != slot) || worker->state != WORKER_DRAINING ||
			!worker->present)
			continue;
		set_state(worker, WORKER_ACTIVE);
		worker->drain_before_usec = 0;
		n++;
	}
	if (n)
		service_update(registration->service);
	return n;
}

/* Which of the worker's sockets are there, as the kernel has it. */
static uint64_t look_for_sockets(const struct worker *worker)
{
	const struct service *service = worker->registration->service;
	uint64_t present = 0;

	for (size_t i = 0; i < service->n_listeners; i++)
		if (worker->present & 1ULL << i && service->listeners[i] &&
			group_has_socket(service->listeners[i]->group, worker->slot, NULL))
			present |= 1ULL << i;
	return present;
}

void registration_check(struct registration *registration)
{
	struct service *service = registration->service;
	uint64_t now = now_monotonic();
	bool changed = false, any_socket = false, overdue = false;

	if (!registration->acked)
		return;
	for (uint32_t i = 0; i < registration->n_workers; i++) {
		struct worker *worker = &registration->workers[i];
		uint64_t present = look_for_sockets(worker);

		changed |= present != worker->present && worker->state == WORKER_ACTIVE;
		worker->present = present;
		any_socket |= present != 0;
		if (worker->state == WORKER_ACTIVE && (!present || registration->exited)) {
			set_state(worker, WORKER_DRAINING);
			changed = true;
		}
		overdue |= worker->state == WORKER_DRAINING && worker->drain_before_usec &&
			   now >= worker->drain_before_usec;
	}
	if (changed)
		service_update(service);
	if (registration->exited && !any_socket)
		registration_free(registration, "its process has ended");
	else if (registration->exited && service->removed)
		registration_free(registration, "its process has ended, its service was removed");
	else if (overdue) {
		struct client *client = registration->client;

		registration_free(registration, "its time to drain is over");
		if (client)
			client_goodbye(client, ETIMEDOUT, "the time to drain is over");
	}
}
