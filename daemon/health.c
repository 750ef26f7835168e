/* SPDX-License-Identifier: BSD-2-Clause */
#include "daemon/health.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/capability.h>

#include "common/util.h"
#include "daemon/event.h"
#include "daemon/group.h"
#include "daemon/kick.h"
#include "daemon/log.h"
#include "daemon/manager.h"
#include "daemon/privileges.h"
#include "daemon/sockdiag.h"

/* One look at a listener's queues. */
struct look {
	struct listener *listener;
	struct sockdiag_list list;
	struct suspect *suspects; /* room for every slot */
	size_t n_suspects;
	size_t n_active; /* workers that get, or would get, new connections */
	uint64_t now, timeout;
	bool changed; /* somebody was marked or unmarked */
};

static bool is_member(const struct worker *worker, const struct listener *listener)
{
	return worker->state == WORKER_ACTIVE && worker->present & 1ULL << listener->index;
}

static size_t count_active(const struct listener *listener)
{
	size_t n = 0;

	for (const struct registration *r = listener->service->registrations; r; r = r->next)
		for (uint32_t i = 0; i < r->n_workers; i++)
			n += is_member(&r->workers[i], listener);
	return n;
}

static int compare_slots(const void *a, const void *b)
{
	const struct suspect *left = a, *right = b;

	return (left->slot > right->slot) - (left->slot < right->slot);
}

static const struct suspect *find(const struct suspect *suspects, size_t n, uint16_t slot)
{
	const struct suspect key = {.slot = slot};

	return n ? bsearch(&key, suspects, n, sizeof(*suspects), compare_slots) : NULL;
}

static bool anything_waits(const struct sockdiag_list *list)
{
	for (size_t i = 0; i < list->n; i++)
		if (list->sockets[i].queue)
			return true;
	return false;
}

/* Whose queue is not empty, and since when it has not become shorter. */
static void suspect(struct look *look, const struct worker *worker)
{
	const struct health *before = &look->listener->health;
	const struct sockdiag_socket *socket;
	const struct suspect *known;
	uint64_t cookie;

	if (!group_has_socket(look->listener->group, worker->slot, &cookie))
		return;
	socket = sockdiag_find(&look->list, cookie);
	if (!socket || !socket->queue)
		return;
	known = find(before->suspects, before->n_suspects, worker->slot);
	if (known && (known->cookie != cookie || socket->queue < known->queue))
		known = NULL;
	look->suspects[look->n_suspects++] = (struct suspect){
		.cookie = cookie,
		.since_usec = known ? known->since_usec : look->now,
		.queue = socket->queue,
		.slot = worker->slot,
	};
}

static void tell(
	const struct look *look, const struct worker *worker, bool stalled, const char *reason)
{
	const struct registration *registration = worker->registration;

	event_tell(look->listener->service->manager,
		stalled ? EVENT_WORKER_STALLED : EVENT_WORKER_RECOVERED,
		&(struct event_about){
			.listener = look->listener,
			.registration = registration,
			.slot = &worker->slot,
			.n_slots = 1,
			.reason = reason,
		},
		"%s", stalled ? "stalled" : "recovered");
	/* With several listeners it hears of the first that stands still, and of the last. */
	if (registration->client && !(worker->stalled & ~(1ULL << look->listener->index)))
		client_send_stalled(registration->client, registration,
			(uint32_t)(worker - registration->workers), stalled);
}

static void mark(struct look *look, struct worker *worker, uint32_t queue)
{
	const struct listener *listener = look->listener;
	bool tcp = listener->config->transport == TRANSPORT_TCP;
	_cleanup_free_ char *reason = NULL;

	worker->stalled |= 1ULL << listener->index;
	look->changed = true;
	if (asprintf(&reason,
		    "%u %s wait, and their number has not fallen for %llu ms: it gets no new "
		    "connection until it has",
		    queue, tcp ? "connections" : "octets",
		    (unsigned long long)(look->timeout / 1000)) < 0)
		reason = NULL;
	tell(look, worker, true, reason);
	if (!listener->service->config->stall_kick || !tcp)
		return;
	if (privileges_may(CAP_NET_ADMIN))
		kick(worker, PROTOCOL_DRAIN_STALLED, &(struct kick){0});
	else
		log_warning(
			"%s: StallAction=kick: cannot take the accept queue of slot %u away: the "
			"daemon has no CAP_NET_ADMIN (drop-in net-admin.conf, or --net-admin when "
			"started by root)",
			listener->service->config->name, worker->slot);
}

static void unmark(struct look *look, struct worker *worker)
{
	worker->stalled &= ~(1ULL << look->listener->index);
	look->changed = true;
	tell(look, worker, false, "its queue moves");
}

/* When more than half stand still it is not they who hang, and the rest could not do their work. */
static void judge(struct look *look)
{
	const struct service *service = look->listener->service;
	uint64_t bit = 1ULL << look->listener->index;
	size_t standing = 0;

	for (size_t i = 0; i < look->n_suspects; i++)
		standing += look->now >= look->suspects[i].since_usec + look->timeout;
	for (struct registration *r = service->registrations, *next; r; r = next) {
		next = r->next;
		for (uint32_t i = 0; i < r->n_workers; i++) {
			struct worker *worker = &r->workers[i];
			const struct suspect *s =
				find(look->suspects, look->n_suspects, worker->slot);

			if (!is_member(worker, look->listener))
				worker->stalled &= ~bit;
			else if (worker->stalled & bit && (!s || s->since_usec == look->now))
				unmark(look, worker);
			else if (!(worker->stalled & bit) && s && standing * 2 <= look->n_active &&
				 look->now >= s->since_usec + look->timeout)
				mark(look, worker, s->queue);
		}
	}
}

/* What was known is replaced by what is seen now. */
static void keep(struct health *health, struct look *look)
{
	free(health->suspects);
	health->suspects = NULL;
	health->n_suspects = 0;
	if (!look->n_suspects)
		return;
	health->suspects = realloc(look->suspects, look->n_suspects * sizeof(*look->suspects));
	if (!health->suspects)
		return;
	health->n_suspects = look->n_suspects;
	look->suspects = NULL;
}

static void look_at_queues(struct look *look)
{
	struct service *service = look->listener->service;

	if (anything_waits(&look->list))
		for (const struct registration *r = service->registrations; r; r = r->next)
			for (uint32_t i = 0; i < r->n_workers; i++)
				if (is_member(&r->workers[i], look->listener))
					suspect(look, &r->workers[i]);
	qsort(look->suspects, look->n_suspects, sizeof(*look->suspects), compare_slots);
	judge(look);
	keep(&look->listener->health, look);
	if (look->changed)
		service_update(service);
}

/* The key was set to 0: whoever is marked is so no more. */
static void forget_all(struct listener *listener)
{
	struct look look = {.listener = listener};

	for (struct registration *r = listener->service->registrations; r; r = r->next)
		for (uint32_t i = 0; i < r->n_workers; i++)
			if (r->workers[i].stalled & 1ULL << listener->index)
				unmark(&look, &r->workers[i]);
	health_done(&listener->health);
	if (look.changed)
		service_update(listener->service);
}

void health_tick(struct listener *listener)
{
	struct health *health = &listener->health;
	struct look look = {
		.listener = listener,
		.now = now_monotonic(),
		.timeout = listener->service->config->stall_timeout_usec,
	};

	if (!look.timeout) {
		if (health->n_suspects)
			forget_all(listener);
		return;
	}
	if (listener->watch.packets == health->packets && !health->n_suspects)
		return;
	health->packets = listener->watch.packets;
	look.n_active = count_active(listener);
	if (look.n_active < 2 && !health->n_suspects)
		return;
	look.suspects = calloc(look.n_active + 1, sizeof(*look.suspects));
	if (look.suspects && sockdiag_read(listener->config, &look.list) >= 0) {
		look_at_queues(&look);
		sockdiag_done(&look.list);
	}
	free(look.suspects);
}

void health_done(struct health *health)
{
	free(health->suspects);
	*health = (struct health){0};
}
