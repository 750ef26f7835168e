/* SPDX-License-Identifier: BSD-2-Clause */
#include "daemon/kick.h"

#include <errno.h>

#include "daemon/event.h"
#include "daemon/group.h"
#include "daemon/manager.h"
#include "daemon/sockdiag.h"

/* Ends the worker's listening socket, if it has one. */
static void close_queue(
	const struct worker *worker, const struct listener *listener, struct kick *kick)
{
	size_t n_workers = 0;
	uint64_t cookie;
	int result;

	if (listener->config->transport != TRANSPORT_TCP ||
		!group_has_socket(listener->group, worker->slot, &cookie))
		return;
	for (const struct registration *r = listener->service->registrations; r; r = r->next)
		n_workers += r->n_workers;
	result = sockdiag_destroy(listener->config, cookie, n_workers + 2);
	if (result >= 0)
		kick->sockets++;
	else if (result != -ENOENT && !kick->error)
		kick->error = result;
}

bool kick(struct worker *worker, uint32_t reason, struct kick *kick)
{
	struct registration *registration = worker->registration;
	const struct service *service = registration->service;
	unsigned before = kick->sockets;

	if (worker->state == WORKER_JOINING)
		return false;
	registration_drain(registration, worker->slot, reason);
	for (size_t i = 0; i < service->n_listeners; i++)
		if (service->listeners[i])
			close_queue(worker, service->listeners[i], kick);
	event_tell(service->manager, EVENT_WORKER_KICKED,
		&(struct event_about){
			.registration = registration,
			.slot = &worker->slot,
			.n_slots = 1,
		},
		"kicked, %u of its listening sockets are closed", kick->sockets - before);
	return true;
}
