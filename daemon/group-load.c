/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The kernel's side of a group: the program that is loaded for it, and the maps, which an earlier
 * daemon may have left.
 */
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <string.h>
#include <sys/mman.h>

#include "common/util.h"
#include "daemon/group-private.h"
#include "daemon/group-quic.h"
#include "daemon/group-share.h"
#include "daemon/linger.h"
#include "daemon/log.h"
#include "daemon/privileges.h"
#include "daemon/store.h"
#include "quic.skel.h"
#include "shared.skel.h"
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
	[GROUP_LISTENER_MAPS] = {"listener_maps", LAYOUT_LISTENER_MAP},
	[GROUP_SLOT_SERVICES] = {".data.services", LAYOUT_SHARE},
	[GROUP_SHARE_STATE] = {".data.share", LAYOUT_SHARE},
	[GROUP_SHARE_PAGE] = {".data.page", LAYOUT_SHARE},
	[GROUP_CHOICES] = {"choice_map", LAYOUT_SHARE},
};

/* Opens the embedded object of the listener; the programs differ, the maps have the same names. */
static struct bpf_object *open_object(const struct listener_config *config)
{
	const void *bytes;
	size_t size;

	if (config->share)
		bytes = shared_bpf__elf_bytes(&size);
	else if (config->transport == TRANSPORT_TCP)
		bytes = tcp_bpf__elf_bytes(&size);
	else if (config->transport == TRANSPORT_QUIC)
		bytes = quic_bpf__elf_bytes(&size);
	else
		bytes = udp_bpf__elf_bytes(&size);
	return bpf_object__open_mem(bytes, size, NULL);
}

/*
 * Where an ID names its worker, only handshakes are remembered, for seconds instead of minutes:
 * half of the entries.
 */
static uint32_t n_flows(const struct listener_config *config)
{
	if (config->transport != TRANSPORT_QUIC || config->cid_mode == CID_OPAQUE || config->share)
		return config->n_flows;
	return MAX(config->n_flows / 2, LISTENER_FLOWS_MIN);
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
		group->n_flow_sets = MAX(n_flows(config) / FLOW_WAYS, 1u);
		result = bpf_map__set_max_entries(flows, (uint32_t)group->n_flow_sets);
	}
	if (result >= 0 && config->transport == TRANSPORT_QUIC)
		result = group_quic_prepare(group->object, config);
	if (result >= 0 && config->share)
		result = group_share_prepare(group->object, config);
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

void *group_map_memory(const struct bpf_object *object, const char *name, size_t size)
{
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED,
		bpf_object__find_map_fd_by_name(object, name), 0);

	return memory == MAP_FAILED ? NULL : memory;
}

/* What the maps began with is in the kernel now: a copy of it, as large as the listener map. */
static void forget_initial_values(const struct bpf_object *object)
{
	struct bpf_map *map;

	bpf_object__for_each_map(map, object)
	{
		size_t size;
		const void *memory = bpf_map__initial_value(map, &size);

		/* A libbpf that has mapped the map itself there refuses. */
		if (memory)
			madvise((void *)memory, size, MADV_REMOVE);
	}
}

/* Ticks for which the flow map remembers: a flow, or the datagrams of a QUIC handshake. */
static uint32_t flow_ticks(const struct listener_config *config)
{
	uint64_t usec = config->flow_timeout_usec;

	if (config->transport == TRANSPORT_QUIC && config->cid_mode != CID_OPAQUE)
		usec = MIN(usec, HANDSHAKE_USEC);
	return (uint32_t)MIN(FLOW_TIMEOUT_MAX, MAX(1, usec * NSEC_PER_USEC >> FLOW_TICK_SHIFT));
}

static int map_memories(struct group *group, bool shared)
{
	size_t head = shared ? sizeof(struct group_head) : sizeof(struct listener_map);

	group->bss_size = head;
	group->bss = group_map_memory(group->object, ".bss", head);
	group->slot_key =
		group_map_memory(group->object, ".data.slots", INDEX_KEYS * sizeof(uint32_t));
	if (!group->bss || !group->slot_key)
		return -errno;
	group->listener_map = shared ? NULL : group->bss;
	group->head = shared ? group->bss : &group->listener_map->head;
	if (group->n_flow_sets) {
		group->flows = group_map_memory(
			group->object, "flow_map", group->n_flow_sets * sizeof(struct flow_set));
		if (!group->flows)
			return -errno;
	}
	return 0;
}

int group_load(struct group *group, const struct listener_config *config,
	const struct group_place *place, const json_t *saved)
{
	struct bpf_program *program;
	int result;

	group->object = open_object(config);
	if (!group->object)
		return -errno;
	result = prepare_object(group, config, place->ring);
	if (result >= 0)
		result = inherit_maps(group, config, saved);
	if (result < 0)
		return result;
	/* A signal interrupts the verifier (EAGAIN), which takes longer than close(2) may. */
	linger_stop();
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
	result = map_memories(group, config->share);
	if (result >= 0)
		result = sink_filter_new(&group->sink_filter);
	if (result < 0)
		return result;
	forget_initial_values(group->object);
	keep_maps(group);
	for (uint32_t i = 0; i < INDEX_KEYS && !group->inherited[GROUP_SLOT_KEYS]; i++)
		group->slot_key[i] = INDEX_NONE;
	group->slot_key[INDEX_SINK] = INDEX_SINK;
	if (group->listener_map && !group->inherited[GROUP_LISTENER_MAP])
		group->listener_map->standby = INDEX_NONE;
	group->head->reported = 0;
	group->head->group = place->number;
	group->head->flow_mask = group->n_flow_sets ? (uint32_t)group->n_flow_sets - 1 : 0;
	group->head->flow_timeout = flow_ticks(config);
	if (config->transport == TRANSPORT_QUIC)
		result = group_quic_new(
			&group->quic, group->object, config, group->inherited[GROUP_QUIC_STATE]);
	if (result >= 0 && config->share)
		result = group_share_new(&group->share, group);
	return result;
}

json_t *group_maps_to_json(const struct group *group)
{
	json_t *maps = json_object();

	for (int i = 0; i < GROUP_MAPS; i++)
		if (group->map_entry[i])
			json_object_set_new(maps, group_maps[i].name,
				json_pack("{s:I, s:I}", "entry", (json_int_t)group->map_entry[i],
					"layout", (json_int_t)group_maps[i].layout));
	return maps;
}
