/* SPDX-License-Identifier: BSD-2-Clause */
#include "daemon/group.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "common/util.h"
#include "daemon/group-quic.h"
#include "daemon/log.h"
#include "daemon/manager.h"
#include "daemon/privileges.h"
#include "daemon/redeliver.h"
#include "daemon/sockdiag.h"
#include "daemon/socket.h"
#include "daemon/store.h"
#include "quic.skel.h"
#include "tcp.skel.h"
#include "udp.skel.h"

/* How long the datagrams of a QUIC handshake stay together: a client that waits 1, 2, 4 and 8 s for
 * an answer (RFC 9002 section 6.2.2, twice as long each time) comes again within it. */
#define HANDSHAKE_USEC (15 * USEC_PER_SEC)

static const struct {
	const char *name;
	uint32_t layout;
} group_maps[GROUP_MAPS] = {
	[GROUP_SOCKETS] = {"socket_map", 1},
	[GROUP_COUNTERS] = {"group_cpu", LAYOUT_COUNTERS},
	[GROUP_SLOT_COUNTERS] = {"slot_counters", LAYOUT_COUNTERS},
	[GROUP_LISTENER_MAP] = {".bss", LAYOUT_LISTENER_MAP},
	[GROUP_SLOT_KEYS] = {".data.slots", LAYOUT_LISTENER_MAP},
	[GROUP_FLOWS] = {"flow_map", LAYOUT_FLOW_MAP},
	[GROUP_QUIC_STATE] = {".data.quic", LAYOUT_QUIC},
	[GROUP_DCIDS] = {"dcid_map", LAYOUT_QUIC},
	[GROUP_DCID_CACHE] = {"dcid_cache", LAYOUT_QUIC},
	[GROUP_COOKIES] = {"cookie_map", LAYOUT_QUIC},
	[GROUP_CID_CACHE] = {"cid_cache", LAYOUT_QUIC},
};

/* Opens the embedded object of the transport; the programs differ, the maps have the same names. */
static struct bpf_object *open_object(enum transport transport)
{
	const void *bytes;
	size_t size;

	if (transport == TRANSPORT_TCP)
		bytes = tcp_bpf__elf_bytes(&size);
	else if (transport == TRANSPORT_QUIC)
		bytes = quic_bpf__elf_bytes(&size);
	else
		bytes = udp_bpf__elf_bytes(&size);
	return bpf_object__open_mem(bytes, size, NULL);
}

static int prepare_object(struct group *group, const struct listener_config *config, int ring)
{
	struct bpf_map *flows = bpf_object__find_map_by_name(group->object, "flow_map");
	struct bpf_map *events = bpf_object__find_map_by_name(group->object, "events");
	int result;

	result = bpf_map__reuse_fd(events, ring);
	if (result < 0)
		return result;
	if (flows) {
		group->n_flow_sets = MAX(config->n_flows / FLOW_WAYS, 1u);
		result = bpf_map__set_max_entries(flows, (uint32_t)group->n_flow_sets);
	}
	if (result >= 0 && config->transport == TRANSPORT_QUIC)
		result = group_quic_prepare(group->object, config);
	return result;
}

static bool same_shape(const struct bpf_map *map, int fd)
{
	struct bpf_map_info info = {0};
	uint32_t length = sizeof(info);

	return bpf_obj_get_info_by_fd(fd, &info, &length) == 0 && info.type == bpf_map__type(map) &&
	       info.key_size == bpf_map__key_size(map) &&
	       info.value_size == bpf_map__value_size(map) &&
	       info.max_entries == bpf_map__max_entries(map) &&
	       info.map_flags == bpf_map__map_flags(map);
}

/* 1: the map is the earlier daemon's; 0: it has to be made anew. */
static int inherit_map(struct group *group, enum group_map which, const json_t *saved)
{
	struct bpf_map *map = bpf_object__find_map_by_name(group->object, group_maps[which].name);
	uint32_t entry = (uint32_t)json_integer_value(json_object_get(saved, "entry"));
	int fd = map ? store_take(group->store, STORE_MAP, entry) : -1;
	int result;

	if (fd < 0)
		return 0;
	if (json_integer_value(json_object_get(saved, "layout")) != group_maps[which].layout ||
		!same_shape(map, fd)) {
		store_drop(group->store, entry, fd);
		return 0;
	}
	result = bpf_map__reuse_fd(map, fd); /* duplicates it */
	if (result < 0) {
		store_drop(group->store, entry, fd);
		return result;
	}
	store_move(group->store, entry, bpf_map__fd(map));
	close_fd(&fd);
	group->map_entry[which] = entry;
	group->inherited[which] = true;
	return 1;
}

static int inherit_maps(
	struct group *group, const struct listener_config *config, const json_t *saved)
{
	for (int i = 0; i < GROUP_MAPS; i++) {
		const json_t *map = json_object_get(saved, group_maps[i].name);
		int result;

		if (!map)
			continue;
		result = inherit_map(group, (enum group_map)i, map);
		if (result < 0)
			return result;
		/* Sockets can't be had again. */
		if (!result && i == GROUP_SOCKETS)
			return -ENOENT;
		if (!result)
			log_info("%s://%s: %s is another one in this version, and begins anew",
				transport_name(config->transport), config->address_text,
				i == GROUP_COUNTERS || i == GROUP_SLOT_COUNTERS
					? "the map of counters"
					: group_maps[i].name);
	}
	return 0;
}

static void keep_maps(struct group *group)
{
	for (int i = 0; i < GROUP_MAPS; i++) {
		int fd = bpf_object__find_map_fd_by_name(group->object, group_maps[i].name);

		if (fd < 0)
			continue;
		if (group->inherited[i])
			store_move(group->store, group->map_entry[i], fd);
		else
			group->map_entry[i] = store_put(group->store, STORE_MAP, fd, false);
	}
}

static void *map_memory(const struct bpf_object *object, const char *name, size_t size)
{
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED,
		bpf_object__find_map_fd_by_name(object, name), 0);

	return memory == MAP_FAILED ? NULL : memory;
}

/* Ticks for which the flow map remembers: a flow, or the datagrams of a QUIC handshake. */
static uint32_t flow_ticks(const struct listener_config *config)
{
	uint64_t usec = config->flow_timeout_usec;

	if (config->transport == TRANSPORT_QUIC && config->cid_mode != CID_OPAQUE)
		usec = MIN(usec, HANDSHAKE_USEC);
	return (uint32_t)MIN(FLOW_TIMEOUT_MAX, MAX(1, usec * NSEC_PER_USEC >> FLOW_TICK_SHIFT));
}

static int map_memories(struct group *group)
{
	group->listener_map = map_memory(group->object, ".bss", sizeof(struct listener_map));
	group->slot_key = map_memory(group->object, ".data.slots", INDEX_KEYS * sizeof(uint32_t));
	if (!group->listener_map || !group->slot_key)
		return -errno;
	if (group->n_flow_sets) {
		group->flows = map_memory(
			group->object, "flow_map", group->n_flow_sets * sizeof(struct flow_set));
		if (!group->flows)
			return -errno;
	}
	return 0;
}

/* saved: the maps of an earlier daemon, or NULL. */
static int load(struct group *group, const struct listener_config *config,
	const struct group_place *place, const json_t *saved)
{
	struct bpf_program *program;
	int result;

	group->object = open_object(config->transport);
	if (!group->object)
		return -errno;
	result = prepare_object(group, config, place->ring);
	if (result >= 0)
		result = inherit_maps(group, config, saved);
	if (result < 0)
		return result;
	privileges_set_perfmon(true);
	result = bpf_object__load(group->object);
	privileges_set_perfmon(false);
	if (result < 0)
		return result;
	program = bpf_object__next_program(group->object, NULL);
	while (program && !bpf_program__autoload(program))
		program = bpf_object__next_program(group->object, program);
	if (!program)
		return -EINVAL;
	group->program = bpf_program__fd(program);
	group->socket_map = bpf_object__find_map_fd_by_name(group->object, "socket_map");
	group->group_cpu = bpf_object__find_map_fd_by_name(group->object, "group_cpu");
	group->slot_counters = bpf_object__find_map_fd_by_name(group->object, "slot_counters");
	result = map_memories(group);
	if (result < 0)
		return result;
	keep_maps(group);
	for (uint32_t i = 0; i < INDEX_KEYS && !group->inherited[GROUP_SLOT_KEYS]; i++)
		group->slot_key[i] = INDEX_NONE;
	group->slot_key[INDEX_SINK] = INDEX_SINK;
	if (!group->inherited[GROUP_LISTENER_MAP])
		group->listener_map->standby = INDEX_NONE;
	group->listener_map->reported = 0;
	group->listener_map->group = place->number;
	group->listener_map->flow_mask = group->n_flow_sets ? (uint32_t)group->n_flow_sets - 1 : 0;
	group->listener_map->flow_timeout = flow_ticks(config);
	if (config->transport == TRANSPORT_QUIC)
		return group_quic_new(
			&group->quic, group->object, config, group->inherited[GROUP_QUIC_STATE]);
	return 0;
}

/*
 * The sink drops all that reaches it, in silence. An eBPF filter, which CAP_BPF loads: no other
 * capability is asked for, whatever a kernel wants for classic ones.
 */
static int attach_drop_filter(int fd)
{
	const struct bpf_insn code[] = {
		{.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_0, .imm = 0},
		{.code = BPF_JMP | BPF_EXIT},
	};
	_cleanup_close_ int program = bpf_prog_load(
		BPF_PROG_TYPE_SOCKET_FILTER, "sink", "Dual BSD/GPL", code, ARRAY_SIZE(code), NULL);

	if (program < 0)
		return -errno;
	return setsockopt(fd, SOL_SOCKET, SO_ATTACH_BPF, &program, sizeof(program)) < 0 ? -errno
											: 0;
}

int group_silence_socket(int fd)
{
	const int one = 1;
	int result = attach_drop_filter(fd);

	if (result >= 0 && setsockopt(fd, SOL_SOCKET, SO_LOCK_FILTER, &one, sizeof(one)) < 0)
		result = -errno;
	return result;
}

static int put_socket(const struct group *group, uint32_t index, int fd)
{
	uint64_t value = (uint64_t)fd;

	return bpf_map_update_elem(group->socket_map, &index, &value, BPF_ANY) < 0 ? -errno : 0;
}

static int make_sink(
	struct group *group, const struct listener_config *config, const char **ret_step)
{
	_cleanup_close_ int sink = socket_new(config, ret_step);
	int result;

	if (sink < 0)
		return sink;
	*ret_step = "attach the drop filter to the sink";
	result = attach_drop_filter(sink);
	if (result < 0)
		return result;
	*ret_step = "put the sink into the socket map";
	result = put_socket(group, INDEX_SINK, sink);
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

/*
 * Tells the program of a change of the standby. Its slot is open while a worker has it as its
 * socket, be it joining: what waits there may be served already.
 */
static void publish_standby(struct group *group)
{
	uint32_t index = group->standby >= 0 ? group->standby_index : INDEX_NONE;

	__atomic_store_n(&group->listener_map->standby, index, __ATOMIC_RELEASE);
	if (index < SLOT_COUNT)
		group_open_slot(group, (uint16_t)index, group->standby_lent);
}

int group_heal(struct group *group)
{
	return setsockopt(group->sink, SOL_SOCKET, SO_ATTACH_REUSEPORT_EBPF, &group->program,
		       sizeof(group->program)) < 0
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

static struct group *allocate(const struct listener_config *config, struct store *store)
{
	struct group *group = calloc(1, sizeof(*group));

	if (!group)
		return NULL;
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

int group_new(struct group **ret, const struct listener_config *config,
	const struct group_place *place, char **ret_error)
{
	struct group *group = allocate(config, place->store);
	const char *step = "load the program";
	int result;

	if (!group)
		return -ENOMEM;
	result = load(group, config, place, NULL);
	/* Members of a group that an earlier daemon left would lose their traffic to our program.
	 */
	if (result >= 0 && sockdiag_is_bound(config) > 0) {
		step = "bind";
		result = -EADDRINUSE;
	}
	if (result >= 0)
		result = make_sink(group, config, &step);
	if (result >= 0) {
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

void group_refuse(struct group *group)
{
	__atomic_store_n(&group->listener_map->standby, INDEX_NONE, __ATOMIC_RELEASE);
	group_set_members(group, NULL, 0);
}

struct group *group_free(struct group *group)
{
	if (!group)
		return NULL;
	if (group->listener_map)
		munmap(group->listener_map, sizeof(struct listener_map));
	if (group->slot_key)
		munmap(group->slot_key, INDEX_KEYS * sizeof(*group->slot_key));
	if (group->flows)
		munmap(group->flows, group->n_flow_sets * sizeof(struct flow_set));
	store_drop(group->store, group->standby_entry, group->standby);
	store_drop(group->store, group->sink_entry, group->sink);
	for (int i = 0; i < GROUP_MAPS; i++)
		store_drop(group->store, group->map_entry[i], -1);
	group_quic_free(group->quic);
	bpf_object__close(group->object);
	free(group->waiting);
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
	return config->address.ss_family == AF_INET ? make_sink(group, config, ret_step) : 0;
}

/* What a socket that stands at its slot needs before packets may go there. */
static int complete_socket(struct group *group, const struct listener_config *config, uint16_t slot,
	int fd, const char **ret_step)
{
	if (group->quic) {
		int result;

		*ret_step = "put the socket's cookie into the map";
		result = group_quic_add_socket(group->quic, fd, slot);
		if (result < 0)
			return result;
	}
	return group_guard_socket(group, config, fd, ret_step);
}

int group_adopt_socket(struct group *group, const struct listener_config *config, uint16_t slot,
	int fd, const char **ret_step)
{
	int result;

	*ret_step = "put the socket into the socket map";
	result = put_socket(group, slot, fd);
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
		publish_standby(group);
	} else {
		fd = socket_new(config, ret_step);
		if (fd < 0)
			return fd;
		*ret_step = "put the socket into the socket map";
		result = put_socket(group, slot, fd);
		if (result < 0)
			return result;
	}
	result = complete_socket(group, config, slot, fd, ret_step);
	return result < 0 ? result : take_fd(&fd);
}

void group_remove_socket(struct group *group, uint16_t slot)
{
	uint32_t index = slot;

	group_open_slot(group, slot, false);
	if (group->standby_index == slot && group->standby >= 0) {
		group->standby_lent = false; /* the socket is the daemon's alone again */
		publish_standby(group);
	} else {
		bpf_map_delete_elem(group->socket_map, &index);
	}
	if (group->quic)
		group_quic_remove_slot(group->quic, slot);
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

int group_set_members(struct group *group, const struct maglev_member *members, size_t n_members)
{
	struct listener_map *map = group->listener_map;
	uint32_t spare = !(map->current & 1);
	struct listener_table *table = &map->tables[spare];
	int result;

	if (n_members) {
		table->n_entries = maglev_size(members, n_members, TABLE_SIZE);
		result = maglev_fill(table->entries, table->n_entries, members, n_members);
		if (result < 0)
			return result;
	}
	for (size_t i = 0; i < n_members; i++)
		table->active[i] = members[i].slot;
	table->n_active = (uint32_t)n_members;
	if (same_table(table, &map->tables[!spare]))
		return 0;
	__atomic_store_n(&map->current, spare, __ATOMIC_RELEASE);
	group->generation++;
	group->switched_usec = now_realtime();
	return 0;
}

/* The socket goes; what it holds should have moved. */
static void drop_standby(struct group *group)
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
	*ret_step = "put the standby into the socket map";
	result = put_socket(group, index, group->standby);
	if (result < 0) {
		drop_standby(group);
		return result;
	}
	publish_standby(group);
	if (config->address.ss_family == AF_INET)
		return make_sink(group, config, ret_step);
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
		drop_standby(group);
		publish_standby(group);
		return;
	}
	/* The new one stands before the old one closes, so there is no moment without. What waits
	 * moves by shutdown(): systemd may hold a duplicate a little longer. */
	fresh = socket_new(config, &step);
	if (fresh >= 0 && put_socket(group, INDEX_STANDBY, fresh) >= 0) {
		shutdown(group->standby, SHUT_RD);
		store_drop(group->store, group->standby_entry, group->standby);
		group->standby = fresh;
		group->standby_entry = store_put(group->store, STORE_SOCKET, fresh, false);
		if (config->address.ss_family == AF_INET)
			make_sink(group, config, &step);
		return;
	}
	close_fd(&fresh);
	/* No second socket to be had: this moves the queue too, and listen() revives the socket. */
	shutdown(group->standby, SHUT_RD);
	if (listen(group->standby, config->backlog) < 0 ||
		put_socket(group, INDEX_STANDBY, group->standby) < 0) {
		drop_standby(group);
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
	uint64_t due;

	if (group->standby < 0 || group->standby_lent || !group->n_waiting)
		return;
	due = group->waiting[group->next_waiting];
	group->waiting[group->next_waiting] = standby_arrived(group, config);
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

void group_read_counters(const struct group *group, uint64_t verdicts[VERDICT_COUNT])
{
	int n_cpus = libbpf_num_possible_cpus();
	_cleanup_free_ struct group_cpu *each = NULL;
	uint32_t key = 0;

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
	json_t *maps = json_object();

	for (int i = 0; i < GROUP_MAPS; i++)
		if (group->map_entry[i])
			json_object_set_new(maps, group_maps[i].name,
				json_pack("{s:I, s:I}", "entry", (json_int_t)group->map_entry[i],
					"layout", (json_int_t)group_maps[i].layout));
	return json_pack("{s:o, s:I, s:I, s:I, s:b, s:I, s:I, s:I, s:I}", "maps", maps, "sink",
		(json_int_t)group->sink_entry, "standby", (json_int_t)group->standby_entry,
		"standby_index", (json_int_t)group->standby_index, "standby_lent",
		group->standby_lent, "left", (json_int_t)group->left, "expired",
		(json_int_t)group->expired, "generation", (json_int_t)group->generation, "switched",
		(json_int_t)group->switched_usec);
}

static uint64_t saved_number(const json_t *saved, const char *name)
{
	return (uint64_t)json_integer_value(json_object_get(saved, name));
}

/* Counters of a map that begins anew start at zero, and so does what was counted against them. */
static void resume_standby(
	struct group *group, const struct listener_config *config, const json_t *saved)
{
	int listens = 0;
	socklen_t length = sizeof(listens);

	group->expired = saved_number(saved, "expired");
	group->left = group->inherited[GROUP_COUNTERS] ? saved_number(saved, "left") : 0;
	/* How long each has waited already is not known any more: the time begins anew. */
	for (size_t i = 0; i < group->n_waiting; i++)
		group->waiting[i] = group->left;
	group->standby_entry = (uint32_t)saved_number(saved, "standby");
	group->standby = store_take(group->store, STORE_SOCKET, group->standby_entry);
	if (group->standby < 0) {
		drop_standby(group);
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

int group_resume(struct group **ret, const struct listener_config *config,
	const struct group_place *place, const json_t *saved, char **ret_error)
{
	struct group *group = allocate(config, place->store);
	const char *step = "load the program over the maps that are in use";
	int result;

	if (!group)
		return -ENOMEM;
	group->generation = saved_number(saved, "generation");
	group->switched_usec = saved_number(saved, "switched");
	result = load(group, config, place, json_object_get(saved, "maps"));
	if (result >= 0) {
		group->sink_entry = (uint32_t)saved_number(saved, "sink");
		group->sink = store_take(group->store, STORE_SOCKET, group->sink_entry);
		if (group->sink < 0) {
			group->sink = -1;
			group->sink_entry = 0;
			result = make_sink(group, config, &step);
		}
	}
	if (result < 0) {
		*ret_error = explain(config, step, result);
		group_free(group);
		return result;
	}
	resume_standby(group, config, saved);
	*ret = group;
	return 0;
}

/* Puts the daemon's own socket at its place, if it does not stand there. */
static void put_own(const struct group *group, uint32_t index, int fd)
{
	uint64_t own, there;
	socklen_t length = sizeof(own);

	if (fd < 0 || getsockopt(fd, SOL_SOCKET, SO_COOKIE, &own, &length) < 0)
		return;
	if (bpf_map_lookup_elem(group->socket_map, &index, &there) < 0 || there != own)
		put_socket(group, index, fd);
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
		/* A worker that was never told of its registration still holds its socket. */
		if (!held[slot] && group_has_socket(group, (uint16_t)slot, NULL))
			bpf_map_delete_elem(group->socket_map, &slot);
	}
	put_own(group, INDEX_SINK, group->sink);
	if (group->standby >= 0)
		put_own(group, group->standby_index, group->standby);
	publish_standby(group);
	if (group->quic)
		group_quic_reconcile(group->quic, held);
	forget_flows(group, held);
}
