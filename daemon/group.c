/* SPDX-License-Identifier: BSD-2-Clause */
#include "daemon/group-private.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "common/util.h"
#include "daemon/group-quic.h"
#include "daemon/group-share.h"
#include "daemon/guard.h"
#include "daemon/manager.h"
#include "daemon/sink.h"
#include "daemon/sockdiag.h"
#include "daemon/socket.h"
#include "daemon/store.h"

int group_silence_socket(int fd)
{
	const int one = 1;
	struct sink_filter filter = {0};
	int result = sink_filter_new(&filter);

	if (result >= 0)
		result = sink_filter_attach(&filter, fd);
	sink_filter_done(&filter);
	if (result >= 0 && setsockopt(fd, SOL_SOCKET, SO_LOCK_FILTER, &one, sizeof(one)) < 0)
		result = -errno;
	return result;
}

int group_put_socket(const struct group *group, uint32_t index, int fd)
{
	uint64_t value = (uint64_t)fd;

	return bpf_map_update_elem(group->socket_map, &index, &value, BPF_ANY) < 0 ? -errno : 0;
}

int group_make_sink(
	struct group *group, const struct listener_config *config, const char **ret_step)
{
	_cleanup_close_ int sink = socket_new(config, ret_step);
	int result;

	group = group->whole;
	if (sink < 0)
		return sink;
	*ret_step = "attach the drop filter to the sink";
	result = sink_filter_attach(&group->sink_filter, sink);
	if (result < 0)
		return result;
	*ret_step = "put the sink into the socket map";
	result = group_put_socket(group, INDEX_SINK, sink);
	if (result < 0)
		return result;
	store_drop(group->store, group->sink_entry, group->sink);
	group->sink = take_fd(&sink);
	group->sink_entry = store_put(group->store, STORE_SOCKET, group->sink, false);
	return 0;
}

void group_open_slot(struct group *group, uint16_t slot, bool open)
{
	__atomic_store_n(&group->slot_key[slot], open ? slot : INDEX_NONE, __ATOMIC_RELEASE);
}

int group_heal(struct group *group)
{
	const struct group *whole = group->whole;

	return setsockopt(whole->sink, SOL_SOCKET, SO_ATTACH_REUSEPORT_EBPF, &whole->program,
		       sizeof(whole->program)) < 0
		       ? -errno
		       : 0;
}

static char *explain(const struct listener_config *config, const char *step, int error)
{
	const char *hint = "";
	char *text = NULL;

	if (error == -EADDRINUSE)
		hint = " (another process has the address, or workers of an earlier reuseportd "
		       "have it and go on serving it: see ss -lntup)";
	else if (error == -EACCES && strcmp(step, "bind") == 0)
		hint = " (a port below 1024 needs CAP_NET_BIND_SERVICE)";
	else if (error == -EACCES)
		hint = " (this kernel's verifier refuses it, perhaps only without CAP_PERFMON: try the "
		       "drop-in perfmon.conf; REUSEPORTD_DEBUG=1 in the environment shows what it says)";
	else if (error == -EPERM)
		hint = " (loading programs needs CAP_BPF; marks, devices and transparent sockets "
		       "need CAP_NET_ADMIN)";
	else if (error == -EADDRNOTAVAIL)
		hint = " (no interface has the address; FreeBind=yes binds it all the same)";
	if (asprintf(&text, "cannot open %s://%s: %s: %s%s", transport_name(config->transport),
		    config->address_text, step, strerror(-error), hint) < 0)
		return NULL;
	return text;
}

static struct group *allocate(const struct listener_config *config, struct store *store, int guard)
{
	struct group *group = calloc(1, sizeof(*group));

	if (!group)
		return NULL;
	group->whole = group;
	group->guard = guard;
	group->sink = group->standby = -1;
	group->standby_index = INDEX_NONE;
	group->store = store;
	if (config->standby_timeout_usec) {
		group->n_waiting = config->standby_timeout_usec / USEC_PER_SEC + 1;
		group->waiting = calloc(group->n_waiting, sizeof(*group->waiting));
		if (!group->waiting)
			return group_free(group);
	}
	return group;
}

/*
 * Only workers of a daemon of this user have sockets there; others the kernel would not let in. And
 * what is known of connections can be known again: not so the IDs that servers registered, nor what
 * was learned.
 */
static bool may_take_over(const struct listener_config *config)
{
	struct sockdiag_list list;
	bool own = sockdiag_read(config, &list) >= 0;

	for (size_t i = 0; own && i < list.n; i++)
		own &= !list.sockets[i].exact || list.sockets[i].uid == geteuid();
	sockdiag_done(&list);
	return own && !config->share && config->cid_mode != CID_REGISTERED &&
	       config->cid_mode != CID_OPAQUE;
}

int group_wake(struct group *group, const struct listener_config *config, uint16_t slot,
	const char **ret_step)
{
	struct listener_config holding = *config;
	int result = group_make_sink(group, config, ret_step);

	holding.standby_hold = true;
	if (result >= 0)
		result = group_make_standby(group, &holding, slot, ret_step);
	return result;
}

void group_awake(struct group *group, const struct listener_config *config)
{
	group->dormant = false;
	if (config->standby_hold || group->standby < 0)
		return;
	/* It was there for the switch alone. */
	if (group->listener_map->tables[group->listener_map->current & 1].n_active)
		group_settle_standby(group, config);
	group_drop_standby(group);
	group_publish_standby(group);
}

int group_new(struct group **ret, const struct listener_config *config,
	const struct group_place *place, char **ret_error)
{
	struct group *group = allocate(config, place->store, place->guard);
	const char *step = "load the program";
	int result;

	if (!group)
		return -ENOMEM;
	result = group_load(group, config, place, NULL);
	/* Members of a group that an earlier daemon left would lose their traffic to our program.
	 */
	if (result >= 0 && sockdiag_is_bound(config) > 0) {
		group->dormant = place->takes_over && may_take_over(config);
		if (!group->dormant) {
			step = "bind";
			result = -EADDRINUSE;
		}
	}
	if (result >= 0 && !group->dormant)
		result = group_make_sink(group, config, &step);
	if (result >= 0 && !group->dormant) {
		step = "attach the program";
		result = group_heal(group);
	}
	if (result < 0) {
		*ret_error = explain(config, step, result);
		group_free(group);
		return result;
	}
	*ret = group;
	return 0;
}

int group_join(struct group **ret, struct group *whole, uint32_t number,
	const struct listener_config *config)
{
	struct group *group = allocate(config, whole->store, whole->guard);

	if (!group)
		return -ENOMEM;
	group->whole = whole;
	group->number = number;
	group->listener_map = &whole->share->maps[number];
	group->head = whole->head;
	group->socket_map = whole->socket_map;
	group->group_cpu = whole->group_cpu;
	group->slot_counters = whole->slot_counters;
	group->slot_key = whole->slot_key;
	group->flows = whole->flows;
	group->n_flow_sets = whole->n_flow_sets;
	group->quic = whole->quic;
	group->share = whole->share;
	*ret = group;
	return 0;
}

void group_refuse(struct group *group)
{
	__atomic_store_n(&group->listener_map->standby, INDEX_NONE, __ATOMIC_RELEASE);
	group_set_members(group, NULL, 0);
}

struct group *group_free(struct group *group)
{
	if (!group)
		return NULL;
	store_drop(group->store, group->standby_entry, group->standby);
	free(group->waiting);
	if (group->whole != group) {
		free(group);
		return NULL;
	}
	if (group->bss)
		munmap(group->bss, group->bss_size);
	if (group->slot_key)
		munmap(group->slot_key, INDEX_KEYS * sizeof(*group->slot_key));
	if (group->flows)
		munmap(group->flows, group->n_flow_sets * sizeof(struct flow_set));
	store_drop(group->store, group->sink_entry, group->sink);
	for (int i = 0; i < GROUP_MAPS; i++)
		store_drop(group->store, group->map_entry[i], -1);
	group_share_free(group->share);
	sink_filter_done(&group->sink_filter);
	group_quic_free(group->quic);
	bpf_object__close(group->object);
	free(group);
	return NULL;
}

int group_guard_socket(
	struct group *group, const struct listener_config *config, int fd, const char **ret_step)
{
	const int one = 1;

	/* A holder must not attach a program or filter of its own; it can still detach ours, which
	 * group_heal() mends. Can't be undone, so only on what leaves. */
	*ret_step = "setsockopt SO_LOCK_FILTER";
	if (config->lock_filter &&
		setsockopt(fd, SOL_SOCKET, SO_LOCK_FILTER, &one, sizeof(one)) < 0)
		return -errno;
	return config->address.ss_family == AF_INET ? group_make_sink(group, config, ret_step) : 0;
}

/* What a socket that stands at its slot needs before packets may go there. */
static int complete_socket(struct group *group, const struct listener_config *config, uint16_t slot,
	int fd, const char **ret_step)
{
	if (group->quic) {
		int result;

		*ret_step = "put the socket's cookie into the map";
		result = group_quic_add_socket(group->quic, config->cid_mode, fd, slot);
		if (result < 0)
			return result;
	}
	return group_guard_socket(group, config, fd, ret_step);
}

int group_adopt_socket(struct group *group, const struct listener_config *config, uint16_t slot,
	int fd, const char **ret_step)
{
	int result;

	group_share_take_slot(group, slot);
	*ret_step = "put the socket into the socket map";
	result = group_put_socket(group, slot, fd);
	return result < 0 ? result : complete_socket(group, config, slot, fd, ret_step);
}

int group_add_socket(struct group *group, const struct listener_config *config, uint16_t slot,
	const char **ret_step)
{
	_cleanup_close_ int fd = -1;
	int result;

	if (group->standby_index == slot && group->standby >= 0 && !group->standby_lent) {
		*ret_step = "duplicate the standby";
		fd = fcntl(group->standby, F_DUPFD_CLOEXEC, 3);
		if (fd < 0)
			return -errno;
		group->standby_lent = true;
		group_publish_standby(group);
	} else {
		fd = socket_new(config, ret_step);
		if (fd < 0)
			return fd;
		group_share_take_slot(group, slot);
		*ret_step = "put the socket into the socket map";
		result = group_put_socket(group, slot, fd);
		if (result < 0)
			return result;
	}
	result = complete_socket(group, config, slot, fd, ret_step);
	if (result >= 0) {
		*ret_step = "guard the socket";
		result = guard_socket(group->guard, fd);
	}
	return result < 0 ? result : take_fd(&fd);
}

void group_remove_socket(struct group *group, uint16_t slot)
{
	uint32_t index = slot;

	group_open_slot(group, slot, false);
	if (group->standby_index == slot && group->standby >= 0) {
		group->standby_lent = false; /* the socket is the daemon's alone again */
		group_publish_standby(group);
	} else {
		bpf_map_delete_elem(group->socket_map, &index);
	}
	if (group->quic)
		group_quic_remove_slot(group->quic, slot);
	if (group->standby_index != slot || group->standby < 0)
		group_share_leave_slot(group, slot);
	for (size_t i = 0; i < group->n_flow_sets; i++)
		for (size_t way = 0; way < FLOW_WAYS; way++) {
			__u64 *word = &group->flows[i].word[way];
			__u64 seen = __atomic_load_n(word, __ATOMIC_RELAXED);

			if (seen && ((seen >> 16) & 0xffff) == slot)
				__atomic_compare_exchange_n(
					word, &seen, 0, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
		}
}

bool group_has_socket(const struct group *group, uint16_t slot, uint64_t *ret_cookie)
{
	uint32_t index = slot;
	uint64_t cookie;

	if (bpf_map_lookup_elem(group->socket_map, &index, &cookie) < 0)
		return false;
	if (ret_cookie)
		*ret_cookie = cookie;
	return true;
}

static bool same_table(const struct listener_table *a, const struct listener_table *b)
{
	return a->n_active == b->n_active &&
	       !memcmp(a->active, b->active, a->n_active * sizeof(*a->active)) &&
	       (!a->n_active || (a->n_entries == b->n_entries &&
					!memcmp(a->entries, b->entries,
						a->n_entries * sizeof(*a->entries))));
}

/* Who they are and what they weigh, in their order. */
static uint64_t hash_members(const struct maglev_member *members, size_t n_members)
{
	uint64_t hash = n_members;

	for (size_t i = 0; i < n_members; i++) {
		hash ^= (uint64_t)members[i].slot << 16 | members[i].weight;
		hash *= 0x9e3779b97f4a7c15ULL;
		hash ^= hash >> 29;
	}
	return hash;
}

static bool same_members(
	const struct listener_table *table, const struct maglev_member *members, size_t n_members)
{
	if (table->n_active != n_members)
		return false;
	for (size_t i = 0; i < n_members; i++)
		if (table->active[i] != members[i].slot)
			return false;
	return true;
}

int group_set_members(struct group *group, const struct maglev_member *members, size_t n_members)
{
	struct listener_map *map = group->listener_map;
	uint32_t spare = !(map->current & 1);
	struct listener_table *table = &map->tables[spare];
	uint64_t hash = hash_members(members, n_members);
	int result;

	/* Most of what a service is updated for changes no table. */
	if (group->members_hash == hash && same_members(&map->tables[!spare], members, n_members))
		return 0;
	if (n_members) {
		table->n_entries = maglev_size(members, n_members, TABLE_SIZE);
		result = maglev_fill(table->entries, table->n_entries, members, n_members);
		if (result < 0)
			return result;
	}
	for (size_t i = 0; i < n_members; i++)
		table->active[i] = members[i].slot;
	table->n_active = (uint32_t)n_members;
	group->members_hash = hash;
	if (same_table(table, &map->tables[!spare]))
		return 0;
	__atomic_store_n(&map->current, spare | (map->current & LISTENER_LOADS), __ATOMIC_RELEASE);
	group->generation++;
	group->switched_usec = now_realtime();
	return 0;
}

void group_set_load(struct group *group, uint16_t slot, uint16_t load)
{
	__atomic_store_n(&group->listener_map->load[slot], load, __ATOMIC_RELAXED);
}

void group_use_loads(struct group *group, bool use)
{
	struct listener_map *map = group->listener_map;
	uint32_t current = (map->current & 1) | (use ? LISTENER_LOADS : 0);

	if (map->current != current)
		__atomic_store_n(&map->current, current, __ATOMIC_RELEASE);
}

void group_read_counters(const struct group *group, uint64_t verdicts[VERDICT_COUNT])
{
	int n_cpus = libbpf_num_possible_cpus();
	_cleanup_free_ struct group_cpu *each = NULL;
	uint32_t key = group->number;

	memset(verdicts, 0, VERDICT_COUNT * sizeof(*verdicts));
	if (n_cpus <= 0)
		return;
	each = calloc((size_t)n_cpus, sizeof(*each));
	if (!each || bpf_map_lookup_elem(group->group_cpu, &key, each) < 0)
		return;
	for (int cpu = 0; cpu < n_cpus; cpu++)
		for (int i = 0; i < VERDICT_COUNT; i++)
			verdicts[i] += each[cpu].verdict[i];
}

void group_read_slot(const struct group *group, uint16_t slot, struct slot_counters *ret)
{
	int n_cpus = libbpf_num_possible_cpus();
	_cleanup_free_ struct slot_counters *each = NULL;
	uint32_t key = slot;

	if (n_cpus <= 0)
		return;
	each = calloc((size_t)n_cpus, sizeof(*each));
	if (!each || bpf_map_lookup_elem(group->slot_counters, &key, each) < 0)
		return;
	for (int cpu = 0; cpu < n_cpus; cpu++) {
		ret->packets += each[cpu].packets;
		ret->new_connections += each[cpu].new_connections;
	}
}

void group_reset_slot(const struct group *group, uint16_t slot)
{
	int n_cpus = libbpf_num_possible_cpus();
	_cleanup_free_ struct slot_counters *zero = NULL;
	uint32_t key = slot;

	if (n_cpus <= 0)
		return;
	zero = calloc((size_t)n_cpus, sizeof(*zero));
	if (zero)
		bpf_map_update_elem(group->slot_counters, &key, zero, BPF_ANY);
}

/* From here: a group that an earlier daemon made goes on under this one. */

json_t *group_to_json(const struct group *group)
{
	json_t *json = group_standby_to_json(group);

	if (group->whole == group) {
		json_object_set_new(json, "maps", group_maps_to_json(group));
		json_object_set_new(json, "sink", json_integer(group->sink_entry));
	}
	return json;
}

static uint32_t saved_entry(const json_t *saved, const char *name)
{
	return (uint32_t)json_integer_value(json_object_get(saved, name));
}

int group_resume(struct group **ret, const struct listener_config *config,
	const struct group_place *place, const json_t *saved, char **ret_error)
{
	struct group *group = allocate(config, place->store, place->guard);
	const char *step = "load the program over the maps that are in use";
	int result;

	if (!group)
		return -ENOMEM;
	result = group_load(group, config, place, json_object_get(saved, "maps"));
	if (result >= 0) {
		group->sink_entry = saved_entry(saved, "sink");
		group->sink = store_take(group->store, STORE_SOCKET, group->sink_entry);
		if (group->sink < 0) {
			group->sink = -1;
			group->sink_entry = 0;
			result = group_make_sink(group, config, &step);
		} else {
			sink_filter_attach(&group->sink_filter, group->sink); /* counts anew */
		}
	}
	if (result < 0) {
		*ret_error = explain(config, step, result);
		group_free(group);
		return result;
	}
	if (!config->share)
		group_resume_standby(group, config, saved);
	*ret = group;
	return 0;
}

int group_resume_joined(struct group **ret, struct group *whole, uint32_t number,
	const struct listener_config *config, const json_t *saved)
{
	int result = group_join(ret, whole, number, config);

	if (result >= 0)
		group_resume_standby(*ret, config, saved);
	return result;
}

/* Puts the daemon's own socket at its place, if it does not stand there. */
static void put_own(const struct group *group, uint32_t index, int fd)
{
	uint64_t own, there;
	socklen_t length = sizeof(own);

	if (fd < 0 || getsockopt(fd, SOL_SOCKET, SO_COOKIE, &own, &length) < 0)
		return;
	if (bpf_map_lookup_elem(group->socket_map, &index, &there) < 0 || there != own)
		group_put_socket(group, index, fd);
}

static void forget_flows(struct group *group, const bool *held)
{
	for (size_t i = 0; i < group->n_flow_sets; i++)
		for (size_t way = 0; way < FLOW_WAYS; way++) {
			__u64 *word = &group->flows[i].word[way];
			__u64 seen = __atomic_load_n(word, __ATOMIC_RELAXED);
			uint32_t slot = (seen >> 16) & 0xffff;

			if (seen && (slot >= SLOT_COUNT ||
					    (!held[slot] && slot != group->standby_index)))
				__atomic_compare_exchange_n(
					word, &seen, 0, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
		}
}

void group_reconcile(struct group *group, const struct listener_config *config, const bool *open,
	const bool *held)
{
	/* Lent to a worker that never knew it: the socket is the daemon's alone again. */
	if (group->standby_index < SLOT_COUNT && !held[group->standby_index])
		group->standby_lent = false;
	for (uint32_t slot = 0; slot < SLOT_COUNT; slot++) {
		if (slot == group->standby_index && group->standby >= 0)
			continue;
		group_open_slot(group, (uint16_t)slot, open[slot]);
		if (!held[slot])
			group_share_leave_slot(group, (uint16_t)slot);
		/* A worker that was never told of its registration still holds its socket. */
		if (!held[slot] && group_has_socket(group, (uint16_t)slot, NULL))
			bpf_map_delete_elem(group->socket_map, &slot);
	}
	put_own(group, INDEX_SINK, group->whole->sink);
	if (group->standby >= 0)
		put_own(group, group->standby_index, group->standby);
	group_publish_standby(group);
	if (group->quic)
		group_quic_reconcile(group->quic, held);
	forget_flows(group, held);
}
