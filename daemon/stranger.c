/* SPDX-License-Identifier: BSD-2-Clause */
#include "daemon/stranger.h"

#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "bpf/share_layout.h"
#include "common/util.h"
#include "daemon/event.h"
#include "daemon/group.h"
#include "daemon/manager.h"
#include "daemon/process.h"
#include "daemon/sockdiag.h"

/* A socket that is being closed, be it systemd or the keeper that still holds it, is gone by then.
 */
#define SETTLE_USEC (2 * USEC_PER_SEC)

struct stranger {
	uint64_t cookie;
	uint32_t inode;
	uid_t uid;
	uint64_t cgroup;
	struct process process;
	uint64_t since_usec; /* when it was seen first, CLOCK_MONOTONIC */
	bool told;           /* it stays, and the log knows */
};

struct strangers {
	struct stranger of[STRANGERS_MAX];
	size_t n;
};

struct strangers *strangers_free(struct strangers *strangers)
{
	free(strangers);
	return NULL;
}

static int compare_numbers(const void *a, const void *b)
{
	const uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;

	return (left > right) - (left < right);
}

static size_t add_own(uint64_t *cookies, size_t n, int fd)
{
	socklen_t length = sizeof(*cookies);

	if (fd >= 0 && getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookies[n], &length) == 0)
		n++;
	return n;
}

/*
 * Cookies of the sockets that belong there, sorted: workers' of all services on the address, what
 * stands at the slot of the next one, and the classifier's, of which the group alone knows. NULL:
 * no memory.
 */
static uint64_t *collect_members(const struct listener *listener, size_t *ret_n)
{
	const struct manager *manager = listener->service->manager;
	const struct group *group = listener->group;
	uint64_t *cookies = calloc(SLOT_COUNT + 3, sizeof(*cookies));
	size_t n = 0;

	if (!cookies)
		return NULL;
	for (uint32_t slot = 0; slot < SLOT_COUNT; slot++)
		if (manager->slots[slot] || manager->reserved[slot])
			n += group_has_socket(group, (uint16_t)slot, &cookies[n]);
	if (group->whole->share)
		n += group_has_socket(group, INDEX_CLASSIFIER, &cookies[n]);
	n = add_own(cookies, n, group->whole->sink);
	n = add_own(cookies, n, group->standby);
	qsort(cookies, n, sizeof(*cookies), compare_numbers);
	*ret_n = n;
	return cookies;
}

static const struct stranger *find_known(const struct strangers *strangers, uint64_t cookie)
{
	for (size_t i = 0; strangers && i < strangers->n; i++)
		if (strangers->of[i].cookie == cookie)
			return &strangers->of[i];
	return NULL;
}

/* Those of the list; what is known of them already is kept. Returns how many. */
static size_t find_strangers(const struct listener *listener, const struct sockdiag_list *list,
	struct stranger found[STRANGERS_MAX])
{
	size_t n_members, n = 0;
	_cleanup_free_ uint64_t *members = collect_members(listener, &n_members);

	for (size_t i = 0; members && i < list->n && n < STRANGERS_MAX; i++) {
		const struct sockdiag_socket *socket = &list->sockets[i];
		const struct stranger *known = find_known(listener->strangers, socket->cookie);

		if (bsearch(&socket->cookie, members, n_members, sizeof(*members), compare_numbers))
			continue;
		if (known)
			found[n++] = *known;
		else
			found[n++] = (struct stranger){
				.cookie = socket->cookie,
				.inode = socket->inode,
				.uid = socket->uid,
				.cgroup = socket->cgroup,
				.since_usec = now_monotonic(),
			};
	}
	return n;
}

static void identify(struct stranger *strangers, size_t n)
{
	uint32_t inodes[STRANGERS_MAX] = {0};
	struct process processes[STRANGERS_MAX];

	for (size_t i = 0; i < n; i++)
		inodes[i] = strangers[i].inode;
	process_find_holders(inodes, n, processes);
	for (size_t i = 0; i < n; i++) {
		strangers[i].process = processes[i];
		if (!processes[i].pid)
			process_unit_of_cgroup(strangers[i].cgroup, strangers[i].process.unit,
				sizeof(strangers[i].process.unit));
	}
}

static void warn(const struct listener *listener, const struct stranger *stranger)
{
	const struct process *process = &stranger->process;
	char who[512] = "the daemon may not see whose";
	bool unit = *process->unit;

	if (process->pid)
		snprintf(who, sizeof(who), "process %d (%s)%s%s", (int)process->pid,
			process->command, unit ? " of unit " : "", process->unit);
	else if (unit)
		snprintf(who, sizeof(who), "a process of unit %s", process->unit);
	event_tell(listener->service->manager, EVENT_STRANGER,
		&(struct event_about){.listener = listener, .pid = process->pid, .reason = who},
		"a socket at its address is no worker's (inode %u, uid %u)", stranger->inode,
		stranger->uid);
}

/* Keeps what is there now, and tells of what stays. */
static void look(struct listener *listener, const struct sockdiag_list *list)
{
	struct strangers *strangers = listener->strangers;
	struct stranger found[STRANGERS_MAX];
	size_t n = find_strangers(listener, list, found);
	uint64_t now = now_monotonic();
	bool fresh = false;

	listener->looked_usec = now;
	if (!n) {
		listener->strangers = strangers_free(strangers);
		return;
	}
	if (!strangers)
		listener->strangers = strangers = malloc(sizeof(*strangers));
	if (!strangers)
		return;
	for (size_t i = 0; i < n; i++) {
		if (found[i].told)
			continue;
		if (now >= found[i].since_usec + SETTLE_USEC)
			fresh = true;
		else /* it is soon known whether it stays */
			listener->looked_usec = now - STRANGERS_LOOK_USEC + SETTLE_USEC;
	}
	if (fresh)
		identify(found, n);
	for (size_t i = 0; i < n; i++) {
		if (found[i].told || now < found[i].since_usec + SETTLE_USEC)
			continue;
		found[i].told = true;
		warn(listener, &found[i]);
	}
	memcpy(strangers->of, found, n * sizeof(*found));
	strangers->n = n;
}

void strangers_tick(struct manager *manager)
{
	uint64_t now = now_monotonic();
	struct listener *next = NULL;
	struct sockdiag_list list;

	for (const struct service *s = manager->services; s; s = s->next)
		for (size_t i = 0; i < s->n_listeners; i++)
			if (s->listeners[i] && !s->listeners[i]->group->dormant &&
				(!next || s->listeners[i]->looked_usec < next->looked_usec))
				next = s->listeners[i];
	if (!next || now < next->looked_usec + STRANGERS_LOOK_USEC)
		return;
	next->looked_usec = now; /* also when the kernel doesn't tell */
	if (sockdiag_read(next->config, &list) < 0)
		return;
	look(next, &list);
	sockdiag_done(&list);
}

static json_t *text_or_null(const char *text)
{
	return *text ? json_string(text) : json_null();
}

json_t *strangers_status(struct listener *listener, const struct sockdiag_list *list)
{
	json_t *json = json_array();

	look(listener, list);
	for (size_t i = 0; listener->strangers && i < listener->strangers->n; i++) {
		const struct stranger *stranger = &listener->strangers->of[i];
		const struct process *process = &stranger->process;

		if (!stranger->told)
			continue;
		json_array_append_new(json,
			json_pack("{s:o, s:I, s:o, s:o, s:I}", "pid",
				process->pid ? json_integer(process->pid) : json_null(), "uid",
				(json_int_t)stranger->uid, "unit", text_or_null(process->unit),
				"command", text_or_null(process->command), "inode",
				(json_int_t)stranger->inode));
	}
	return json;
}
