/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The standby of a group: what waits while nobody is active, and where it goes.
 */
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>

#include "common/util.h"
#include "daemon/group-private.h"
#include "daemon/group-share.h"
#include "daemon/log.h"
#include "daemon/manager.h"
#include "daemon/redeliver.h"
#include "daemon/socket.h"
#include "daemon/store.h"

static uint64_t saved_number(const json_t *saved, const char *name)
{
	return (uint64_t)json_integer_value(json_object_get(saved, name));
}

/*
 * Tells the program of a change of the standby. Its slot is open while a worker has it as its
 * socket, be it joining: what waits there may be served already.
 */
void group_publish_standby(struct group *group)
{
	uint32_t index = group->standby >= 0 ? group->standby_index : INDEX_NONE;

	__atomic_store_n(&group->listener_map->standby, index, __ATOMIC_RELEASE);
	if (index < SLOT_COUNT)
		group_open_slot(group, (uint16_t)index, group->standby_lent);
}

/* The socket goes; what it holds should have moved. */
void group_drop_standby(struct group *group)
{
	store_drop(group->store, group->standby_entry, group->standby);
	group->standby = -1;
	group->standby_entry = 0;
	group->standby_index = INDEX_NONE;
	group->standby_lent = false;
}

int group_make_standby(struct group *group, const struct listener_config *config, uint16_t slot,
	const char **ret_step)
{
	uint32_t index = config->transport == TRANSPORT_TCP ? INDEX_STANDBY : slot;
	_cleanup_close_ int fd = -1;
	int result;

	if (group->standby >= 0 || !config->standby_hold)
		return 0;
	fd = socket_new(config, ret_step);
	if (fd < 0)
		return fd;
	group->standby = take_fd(&fd);
	group->standby_index = index;
	group->standby_entry = store_put(group->store, STORE_SOCKET, group->standby, false);
	/* Whatever comes into it from here must be found again. */
	store_commit(group->store);
	if (index < SLOT_COUNT)
		group_share_take_slot(group, (uint16_t)index);
	*ret_step = "put the standby into the socket map";
	result = group_put_socket(group, index, group->standby);
	if (result < 0) {
		group_drop_standby(group);
		return result;
	}
	group_publish_standby(group);
	if (config->address.ss_family == AF_INET)
		return group_make_sink(group, config, ret_step);
	return 0;
}

/* The queue was handed over: nothing waits, count from here. */
static void forget_waiting(struct group *group, const struct listener_config *config)
{
	uint64_t verdicts[VERDICT_COUNT] = {0};

	for (size_t i = 0; i < group->n_waiting; i++)
		group->waiting[i] = 0;
	if (config->transport != TRANSPORT_TCP)
		group_read_counters(group, verdicts);
	group->left = verdicts[VERDICT_STANDBY];
}

static bool datagrams_wait(const struct group *group)
{
	char octet;

	return recv(group->standby, &octet, 1, MSG_PEEK | MSG_DONTWAIT) >= 0;
}

/* The workers that are active have sockets of their own. */
static void deliver_again(struct group *group, const struct listener_config *config)
{
	int result;

	if (!datagrams_wait(group))
		return;
	result = redeliver(group->standby, config);
	if (result < 0) {
		if (!group->told_of_waiting)
			log_warning(
				"listener %s: what came before there was a worker waits for one "
				"that is granted its socket, or for StandbyTimeoutSec=, as it "
				"can't be delivered again: %s%s",
				config->name, strerror(-result),
				result == -EPERM ? " (needs CAP_NET_RAW: see chown.conf)" : "");
		group->told_of_waiting = true;
		return;
	}
	group->expired += (uint64_t)result;
	forget_waiting(group, config);
}

void group_settle_standby(struct group *group, const struct listener_config *config)
{
	const char *step;
	int fresh;

	if (group->standby < 0)
		return;
	if (config->transport != TRANSPORT_TCP && !group->standby_lent) {
		deliver_again(group, config);
		return;
	}
	forget_waiting(group, config);
	if (config->transport != TRANSPORT_TCP) {
		group_drop_standby(group);
		group_publish_standby(group);
		return;
	}
	/* The new one stands before the old one closes, so there is no moment without. What waits
	 * moves by shutdown(): systemd may hold a duplicate a little longer. */
	fresh = socket_new(config, &step);
	if (fresh >= 0 && group_put_socket(group, INDEX_STANDBY, fresh) >= 0) {
		shutdown(group->standby, SHUT_RD);
		store_drop(group->store, group->standby_entry, group->standby);
		group->standby = fresh;
		group->standby_entry = store_put(group->store, STORE_SOCKET, fresh, false);
		if (config->address.ss_family == AF_INET)
			group_make_sink(group, config, &step);
		return;
	}
	close_fd(&fresh);
	/* No second socket to be had: this moves the queue too, and listen() revives the socket. */
	shutdown(group->standby, SHUT_RD);
	if (listen(group->standby, config->backlog) < 0 ||
		group_put_socket(group, INDEX_STANDBY, group->standby) < 0) {
		group_drop_standby(group);
		__atomic_store_n(&group->listener_map->standby, INDEX_NONE, __ATOMIC_RELEASE);
	}
}

uint32_t group_standby_queue(const struct group *group)
{
	struct tcp_info info = {0};
	socklen_t length = sizeof(info);

	/* tcpi_unacked of a listening socket is its accept queue (tcp_get_info, Linux). */
	if (getsockopt(group->standby, IPPROTO_TCP, TCP_INFO, &info, &length) < 0)
		return 0;
	return info.tcpi_unacked;
}

void group_empty_standby(struct group *group, const struct listener_config *config)
{
	const struct listener_map *map = group->listener_map;

	if (group->standby < 0 || group->standby_lent || !map->tables[map->current & 1].n_active ||
		(config->transport == TRANSPORT_TCP && !group_standby_queue(group)))
		return;
	group_settle_standby(group, config);
	store_commit(group->store);
}

/* How many connections or datagrams have come to the standby since forget_waiting(), in all. */
static uint64_t standby_arrived(const struct group *group, const struct listener_config *config)
{
	uint64_t verdicts[VERDICT_COUNT];

	if (config->transport == TRANSPORT_TCP)
		return group->left + group_standby_queue(group);
	group_read_counters(group, verdicts);
	return verdicts[VERDICT_STANDBY];
}

static bool drop_one(const struct group *group, const struct listener_config *config)
{
	const struct linger at_once = {.l_onoff = 1, .l_linger = 0};
	_cleanup_close_ int fd = -1;
	char byte;

	if (config->transport != TRANSPORT_TCP)
		return recv(group->standby, &byte, 1, MSG_DONTWAIT | MSG_TRUNC) >= 0;
	fd = accept4(group->standby, NULL, NULL, SOCK_CLOEXEC);
	if (fd < 0)
		return false;
	setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once)); /* RST on close */
	return true;
}

/*
 * What waits is a queue, first in first out, of which the length is known and the times are not. So
 * each second the number of all that ever came is noted; what had come a timeout ago and is still
 * here is too old. UDP: datagrams that the socket had no room for are counted as come, which can
 * only make some leave early while the buffer overflows.
 */
void group_expire_standby(struct group *group, const struct listener_config *config)
{
	uint64_t due, arrived;

	if (group->standby < 0 || group->standby_lent || !group->n_waiting)
		return;
	due = group->waiting[group->next_waiting];
	arrived = standby_arrived(group, config);
	/* The next process is to know how long each has waited. */
	if (arrived !=
		group->waiting[(group->next_waiting + group->n_waiting - 1) % group->n_waiting])
		store_touch(group->store);
	group->waiting[group->next_waiting] = arrived;
	group->next_waiting = (group->next_waiting + 1) % group->n_waiting;
	if (group->left < due)
		store_touch(group->store);
	while (group->left < due) {
		if (!drop_one(group, config)) {
			group->left = due; /* taken by a worker in the meantime */
			break;
		}
		group->left++;
		group->expired++;
	}
}

/* Counters of a map that begins anew start at zero, and so does what was counted against them. */
/* The samples, from the oldest one on; none where nothing waits. */
static json_t *waiting_to_json(const struct group *group)
{
	json_t *json = json_array();
	uint64_t last = group->n_waiting
				? group->waiting[(group->next_waiting + group->n_waiting - 1) %
						 group->n_waiting]
				: group->left;

	for (size_t i = 0; last > group->left && i < group->n_waiting; i++)
		json_array_append_new(
			json, json_integer((json_int_t)group->waiting[(group->next_waiting + i) %
								      group->n_waiting]));
	return json;
}

/*
 * As many samples are missing as seconds have passed since: what came in them waits from now on.
 * Without samples, or where the counters begin anew, that holds for all.
 */
static void resume_waiting(struct group *group, const json_t *saved)
{
	const json_t *waiting = json_object_get(saved, "waiting");
	uint64_t at = saved_number(saved, "waiting_at"), now = now_monotonic();
	uint64_t missing = now > at ? (now - at) / USEC_PER_SEC : 0;
	bool known = json_array_size(waiting) == group->n_waiting && group->n_waiting &&
		     group->whole->inherited[GROUP_COUNTERS];

	for (size_t i = 0; i < group->n_waiting; i++) {
		size_t from = (size_t)MIN(i + missing, (uint64_t)group->n_waiting - 1);

		group->waiting[i] =
			known ? (uint64_t)json_integer_value(json_array_get(waiting, from))
			      : group->left;
	}
	group->next_waiting = 0;
}

void group_resume_standby(
	struct group *group, const struct listener_config *config, const json_t *saved)
{
	int listens = 0;
	socklen_t length = sizeof(listens);

	group->generation = saved_number(saved, "generation");
	group->switched_usec = saved_number(saved, "switched");
	group->expired = saved_number(saved, "expired");
	group->left = group->whole->inherited[GROUP_COUNTERS] ? saved_number(saved, "left") : 0;
	resume_waiting(group, saved);
	group->standby_entry = (uint32_t)saved_number(saved, "standby");
	group->standby = store_take(group->store, STORE_SOCKET, group->standby_entry);
	if (group->standby < 0) {
		group_drop_standby(group);
		return;
	}
	group->standby_index = (uint32_t)saved_number(saved, "standby_index");
	group->standby_lent = json_is_true(json_object_get(saved, "standby_lent"));
	/* Its successor stood already, and it was shut; or it never was one. */
	if (config->transport == TRANSPORT_TCP &&
		(getsockopt(group->standby, SOL_SOCKET, SO_ACCEPTCONN, &listens, &length) < 0 ||
			!listens))
		listen(group->standby, config->backlog);
}

json_t *group_standby_to_json(const struct group *group)
{
	return json_pack("{s:I, s:I, s:b, s:I, s:o, s:I, s:I, s:I, s:I}", "standby",
		(json_int_t)group->standby_entry, "standby_index", (json_int_t)group->standby_index,
		"standby_lent", group->standby_lent, "left", (json_int_t)group->left, "waiting",
		waiting_to_json(group), "waiting_at", (json_int_t)now_monotonic(), "expired",
		(json_int_t)group->expired, "generation", (json_int_t)group->generation, "switched",
		(json_int_t)group->switched_usec);
}
