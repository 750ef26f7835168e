/* SPDX-License-Identifier: BSD-2-Clause */
#include "daemon/takeover.h"

#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <systemd/sd-daemon.h>

#include "common/util.h"
#include "daemon/client.h"
#include "daemon/event.h"
#include "daemon/group.h"
#include "daemon/guard.h"
#include "daemon/log.h"
#include "daemon/manager.h"
#include "daemon/sockdiag.h"
#include "daemon/socket.h"
#include "daemon/store.h"

#define LOOK_USEC (20 * USEC_PER_MSEC) /* while workers are awaited */
/* The kernel lets go of a program and its maps after a grace period of RCU. */
#define TRY_USEC (1 * USEC_PER_MSEC)
#define GIVE_UP_USEC (5 * USEC_PER_SEC)

struct claim {
	struct claim *next;
	uint32_t worker, granted;
	uint16_t slot; /* that it had; PROTOCOL_NO_SLOT: none */
	int fd;
	uint64_t cookie;
};

struct takeover {
	uint64_t until_usec; /* CLOCK_MONOTONIC */
	bool switched, over;
	bool incomplete; /* some may come later */
	int result;
	char *error;
};

bool takeover_runs(const struct manager *manager)
{
	return manager->takeover;
}

bool takeover_waits(const struct manager *manager)
{
	return manager->takeover && !manager->takeover->switched;
}

void takeover_free(struct manager *manager)
{
	if (manager->takeover)
		free(manager->takeover->error);
	free(take_pointer(manager->takeover));
}

/* Claims */

static int check_socket(int fd, const struct listener_config *config, const char **ret_reason)
{
	_cleanup_close_ int here = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	bool tcp = config->transport == TRANSPORT_TCP;
	struct stat status;

	*ret_reason = "it is of another kind than the listener";
	if (socket_option(fd, SO_DOMAIN) != config->address.ss_family ||
		socket_option(fd, SO_TYPE) != (tcp ? SOCK_STREAM : SOCK_DGRAM) ||
		socket_option(fd, SO_PROTOCOL) != (tcp ? IPPROTO_TCP : IPPROTO_UDP))
		return -EBADF;
	*ret_reason = "it is of another network namespace";
	if (socket_network(fd) != socket_network(here))
		return -EBADF;
	*ret_reason = "it is not bound to the listener's address";
	if (!socket_has_address(fd, config))
		return -EBADF;
	*ret_reason = "it does not listen any more";
	if (tcp && socket_option(fd, SO_ACCEPTCONN) != 1)
		return -EBADF;
	*ret_reason = "no daemon of this user made it";
	if (fstat(fd, &status) < 0 || status.st_uid != geteuid() ||
		socket_option(fd, SO_REUSEPORT) != 1)
		return -EBADF;
	return 0;
}

/* Somebody has it already. */
static bool is_taken(const struct service *service, const struct group *group, uint64_t cookie)
{
	uint64_t standing;

	for (const struct registration *r = service->registrations; r; r = r->next) {
		for (const struct claim *c = r->claims; c; c = c->next)
			if (c->cookie == cookie)
				return true;
		for (uint32_t i = 0; i < r->n_workers; i++)
			if (group_has_socket(group, r->workers[i].slot, &standing) &&
				standing == cookie)
				return true;
	}
	return false;
}

int claim_socket(struct registration *registration, uint32_t worker, uint16_t slot,
	uint32_t granted, struct listener *listener, int fd, const char **ret_reason)
{
	_cleanup_close_ int socket = fd;
	int result = check_socket(socket, listener->config, ret_reason);
	const uint64_t cookie = socket_cookie(socket);
	struct claim *claim;

	if (result < 0)
		return result;
	*ret_reason = "another worker has brought it already";
	if (is_taken(registration->service, listener->group, cookie))
		return -EEXIST;
	claim = malloc(sizeof(*claim));
	*ret_reason = "out of memory";
	if (!claim)
		return -ENOMEM;
	*claim = (struct claim){
		.next = registration->claims,
		.worker = worker,
		.granted = granted,
		.slot = slot,
		.cookie = cookie,
		.fd = take_fd(&socket),
	};
	registration->claims = claim;
	return 0;
}

static void drop_claim(struct claim **link)
{
	struct claim *claim = *link;

	*link = claim->next;
	close_fd(&claim->fd);
	free(claim);
}

void claims_free(struct registration *registration)
{
	while (registration->claims)
		drop_claim(&registration->claims);
}

static bool is_complete(const struct registration *registration)
{
	return registration->n_expected && registration->n_came == registration->n_expected;
}

/* To its slot; -EBUSY while another map has it. */
static int place(struct registration *registration, const struct claim *claim)
{
	struct worker *worker = &registration->workers[claim->worker];
	struct listener *listener = client_granted_listener(registration, claim->granted);
	const char *step = "";
	int result;

	if (!listener || claim->slot == PROTOCOL_NO_SLOT) /* a reload has closed it, or it waits */
		return 0;
	result = group_adopt_socket(
		listener->group, listener->config, worker->slot, claim->fd, &step);
	if (result == -EBUSY)
		return result;
	if (result >= 0 && !registration->max_workers) { /* one that a server made can't be */
		step = "guard the socket";
		result = guard_socket(listener->group->guard, claim->fd);
	}
	if (result < 0) {
		group_remove_socket(listener->group, worker->slot);
		event_listener(EVENT_LISTENER_TROUBLE, listener, strerror(-result),
			"cannot take back a socket of %s: %s", registration->instance, step);
		return result;
	}
	group_reset_slot(listener->group, worker->slot);
	worker->present |= 1ULL << listener->index;
	if (registration->max_workers && worker->slot != claim->slot)
		client_send_adopted(registration->client, worker, claim->granted, claim->cookie);
	return 0;
}

/* Whether nothing is left to be tried. */
static bool place_claims(struct registration *registration, uint64_t now)
{
	for (struct claim **link = &registration->claims; *link;) {
		if (place(registration, *link) != -EBUSY) {
			drop_claim(link);
		} else if (now >= registration->claims_before_usec) {
			log_warning("%s: a socket of instance %s stands in the map of another "
				    "daemon; it is left there",
				registration->service->config->name, registration->instance);
			drop_claim(link);
		} else {
			link = &(*link)->next;
		}
	}
	return !registration->claims;
}

static void finish(struct registration *registration)
{
	struct client *client = registration->client;
	bool any = !registration->n_workers; /* its server has none that serves yet */

	for (uint32_t i = 0; i < registration->n_workers; i++)
		any |= registration->workers[i].present;
	if (!any) {
		registration_free(registration, "none of its sockets could be had");
		client_goodbye(client, ENOENT, "none of the sockets that were brought can be used");
		return;
	}
	registration_resumed(registration);
	client->resumed_untold = registration->max_workers ? 1 : registration->n_workers;
	client_keep(client, false);
	store_commit(client->manager->store);
	event_tell(client->manager, EVENT_WORKER_REGISTERED,
		&(struct event_about){.registration = registration}, "came back");
	client_send_resumed(client);
}

/* The switch */

int takeover_new(struct manager *manager)
{
	if (manager->takeover)
		return 0;
	manager->takeover = calloc(1, sizeof(*manager->takeover));
	return manager->takeover ? 0 : -ENOMEM;
}

static int compare_cookies(const void *a, const void *b)
{
	const uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;

	return (left > right) - (left < right);
}

/* Cookies of the claims for a listener, sorted. NULL: no memory. */
static uint64_t *collect_claims(const struct listener *listener, size_t *ret_n)
{
	size_t n = 0;
	uint64_t *cookies;

	for (const struct registration *r = listener->service->registrations; r; r = r->next)
		for (const struct claim *c = r->claims; c; c = c->next)
			n++;
	cookies = calloc(n + 1, sizeof(*cookies));
	if (!cookies)
		return NULL;
	n = 0;
	for (const struct registration *r = listener->service->registrations; r; r = r->next)
		for (const struct claim *c = r->claims; is_complete(r) && c; c = c->next)
			if (r->granted[c->granted] == listener->number)
				cookies[n++] = c->cookie;
	qsort(cookies, n, sizeof(*cookies), compare_cookies);
	*ret_n = n;
	return cookies;
}

/* How many sockets at the listener's address nobody has claimed, and how many somebody has. */
static int count_missing(const struct listener *listener, size_t *ret_missing, size_t *ret_claimed)
{
	_cleanup_free_ uint64_t *cookies = collect_claims(listener, ret_claimed);
	struct sockdiag_list list;
	int result;

	if (!cookies)
		return -ENOMEM;
	result = sockdiag_read(listener->config, &list);
	if (result < 0)
		return result;
	*ret_missing = 0;
	for (size_t i = 0; i < list.n; i++)
		*ret_missing += list.sockets[i].exact &&
				!bsearch(&list.sockets[i].cookie, cookies, *ret_claimed,
					sizeof(*cookies), compare_cookies);
	sockdiag_done(&list);
	return 0;
}

static struct listener *next_dormant(const struct service *service, size_t *i)
{
	while (*i < service->n_listeners) {
		struct listener *listener = service->listeners[(*i)++];

		if (listener && listener->group->dormant)
			return listener;
	}
	return NULL;
}

static bool is_dormant(const struct service *service)
{
	size_t i = 0;

	return next_dormant(service, &i);
}

static void fail(struct manager *manager, const struct listener *listener, int error,
	const char *step, const char *hint)
{
	struct takeover *takeover = manager->takeover;

	takeover->over = true;
	takeover->result = error;
	if (asprintf(&takeover->error, "cannot open %s://%s: %s: %s%s",
		    transport_name(listener->config->transport), listener->config->address_text,
		    step, strerror(-error), hint) < 0)
		takeover->error = NULL;
}

/* Before anything is changed. Whether it can be done; late: who has not come will not. */
static bool may_switch(struct manager *manager, bool late)
{
	const struct listener *listener;

	for (const struct service *s = manager->services; s; s = s->next)
		for (size_t i = 0; (listener = next_dormant(s, &i));) {
			size_t missing = 0, claimed = 0;
			int result = count_missing(listener, &missing, &claimed);

			if (result >= 0 && !missing)
				continue;
			if (!late)
				return false;
			if (result < 0 || !claimed) {
				fail(manager, listener, result < 0 ? result : -EADDRINUSE, "bind",
					" (workers of an earlier reuseportd have it and go on "
					"serving it, and none has come back within "
					"ResumeGraceSec=: see ss -lntup)");
				return false;
			}
			log_warning("%s: listener %s: %zu sockets came back, %zu did not within "
				    "ResumeGraceSec= and get nothing new from now on",
				s->config->name, listener->config->name, claimed, missing);
			manager->takeover->incomplete = true;
		}
	return true;
}

static void switch_programs(struct manager *manager)
{
	const uint64_t before = now_monotonic() + GIVE_UP_USEC;
	struct listener *listener = NULL;
	const char *step = "";
	int result = 0;

	manager->takeover->switched = true;
	/* Who comes later should find the slot free that connection IDs name. */
	if (manager->takeover->incomplete)
		manager->next_slot = (manager->next_slot + SLOT_COUNT / 2) % SLOT_COUNT;
	for (struct service *s = manager->services; s && result >= 0; s = s->next)
		if (is_dormant(s))
			result = service_wake(s, &listener, &step);
	for (struct service *s = manager->services; s && result >= 0; s = s->next) {
		struct listener *dormant;

		for (size_t i = 0; result >= 0 && (dormant = next_dormant(s, &i));) {
			listener = dormant;
			step = "attach the program";
			result = group_heal(listener->group);
		}
		for (struct registration *r = s->registrations; r; r = r->next)
			r->claims_before_usec = before;
	}
	if (result < 0)
		fail(manager, listener, result, step, "");
}

/* The daemon has a copy of their sockets: it must not be the last one. */
static void forget_ended(struct manager *manager)
{
	for (struct service *s = manager->services; s; s = s->next)
		for (struct registration *r = s->registrations, *next; r; r = next) {
			next = r->next;
			if (r->n_expected && r->exited)
				registration_free(r, "its process has ended");
		}
}

/* Whether there is anything left to be tried soon. */
static bool place_all(struct manager *manager)
{
	const uint64_t now = now_monotonic();
	bool left = false, dormant = false;

	for (struct service *s = manager->services; s; s = s->next) {
		bool waits = false, finished = false;

		for (struct registration *r = s->registrations, *next; r; r = next) {
			next = r->next;
			if (!is_complete(r))
				continue;
			if (place_claims(r, now)) {
				finish(r);
				finished = true;
			} else {
				waits = true;
			}
		}
		if (!waits && is_dormant(s))
			service_awake(s);
		else if (finished)
			service_update(s);
		left |= waits;
		dormant |= is_dormant(s);
	}
	if (manager->takeover && !dormant)
		manager->takeover->over = true;
	return left;
}

static int on_time(sd_event_source *source, uint64_t time, void *user_data)
{
	struct manager *manager = user_data;
	const struct takeover *takeover = manager->takeover;
	bool left = true;

	forget_ended(manager);
	if (takeover && !takeover->switched && !takeover->over) {
		bool late = now_monotonic() >= takeover->until_usec;

		if (may_switch(manager, late))
			switch_programs(manager);
	}
	if (takeover && takeover->over)
		return 0;
	if (!takeover_waits(manager))
		left = place_all(manager);
	if (!left && (!takeover || takeover->over)) {
		manager->claims_source = sd_event_source_disable_unref(manager->claims_source);
		return 0;
	}
	sd_event_source_set_time(
		source, now_monotonic() + (takeover_waits(manager) ? LOOK_USEC : TRY_USEC));
	return sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
}

static int start_timer(struct manager *manager)
{
	if (manager->claims_source)
		return 0;
	return sd_event_add_time(manager->event, &manager->claims_source, CLOCK_MONOTONIC,
		now_monotonic(), 1, on_time, manager);
}

int claims_complete(struct registration *registration)
{
	registration->claims_before_usec = now_monotonic() + GIVE_UP_USEC;
	return start_timer(registration->service->manager);
}

int takeover_run(struct manager *manager, char **ret_error)
{
	struct takeover *takeover = manager->takeover;
	uint64_t grace;
	int result;

	if (!takeover)
		return 0;
	grace = manager->config->resume_grace_usec;
	takeover->until_usec = now_monotonic() + grace;
	log_info("workers of an earlier daemon serve what this one is to serve: waiting %llu s for "
		 "them to come back, at most (ResumeGraceSec=)",
		(unsigned long long)((grace + USEC_PER_SEC - 1) / USEC_PER_SEC));
	sd_notifyf(0, "STATUS=Waiting for workers of an earlier daemon\nEXTEND_TIMEOUT_USEC=%llu",
		(unsigned long long)(grace + 2 * GIVE_UP_USEC));
	result = start_timer(manager);
	while (result >= 0 && !takeover->over) {
		result = sd_event_run(manager->event, UINT64_MAX);
		if (sd_event_get_state(manager->event) == SD_EVENT_FINISHED)
			return 1;
	}
	if (result >= 0)
		result = takeover->result;
	*ret_error = take_pointer(takeover->error);
	takeover_free(manager);
	clients_release(manager);
	return MIN(result, 0);
}
