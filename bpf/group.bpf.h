/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The maps of a group and what all its programs do: count, choose by the listener map, fall back.
 *
 * The programs are loaded with CAP_BPF alone, without CAP_PERFMON. The verifier then guards against
 * speculative store bypass by a barrier after every first store to a stack slot (Linux 6.18,
 * check_stack_write_fixed_off), and on x86 that is an LFENCE of several nanoseconds. So what a run
 * has to keep is kept in struct group_cpu or looked up again, which costs less; map keys are
 * pointed to where they stand already; and what is rare is a function of its own, whose frame costs
 * only those who call it.
 */
#pragma once

#include <linux/bpf.h>
#include <stdbool.h>
#include <stddef.h>
#include <bpf/bpf_helpers.h>

#ifdef SHARED
#include "share_layout.h"
#define GROUP_INDEXES (INDEX_CLASSIFIER + 1)
#define GROUP_ROWS (SHARE_MAX + 1) /* the last one is of no service */
#else
#include "layout.h"
#define GROUP_INDEXES INDEX_COUNT
#define GROUP_ROWS 1
#endif

struct {
	__uint(type, BPF_MAP_TYPE_REUSEPORT_SOCKARRAY);
	__uint(max_entries, GROUP_INDEXES);
	__type(key, __u32);
	__type(value, __u64);
} socket_map SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, GROUP_ROWS);
	__type(key, __u32);
	__type(value, struct group_cpu);
} group_cpu SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SLOT_COUNT);
	__type(key, __u32);
	__type(value, struct slot_counters);
} slot_counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries,
		4096); /* the daemon puts one of its own in place, shared by all groups */
} events SEC(".maps");

/*
 * One listener map, or one for each service that shares the listener. All that is asked for by
 * number of a service below is the same whatever the number where there is one.
 */
#ifdef SHARED
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, SHARE_MAX);
	__type(key, __u32);
	__type(value, struct listener_map);
} listener_maps SEC(".maps");

struct group_head group_head;

/* Of each slot, the service; SHARE_NONE: nobody's. Written by the daemon. */
__u8 slot_service[INDEX_KEYS] SEC(".data.services");
const volatile __u32 service_key[SHARE_KEYS] SEC(".rodata.services") = {0, 1, 2, 3, 4, 5, 6, 7};
#else
struct listener_map listener_map; /* .bss: the program knows its address, no look-up */
#define group_head listener_map.head
#endif

/*
 * Keys to point at. slot_key[i] is i where packets may go to slot i: its worker is past joining, or
 * holds what a standby took. Else INDEX_NONE, which selects nothing, whatever socket stands there.
 * slot_key[INDEX_SINK] is the sink. Written by the daemon.
 */
__u32 slot_key[INDEX_KEYS] SEC(".data.slots");
const volatile __u32 first_key SEC(".rodata.first") = 0;

static __always_inline void *key_of(__u32 index)
{
	/* A mask, not a branch: the verifier follows one path instead of two. */
	index &= INDEX_KEYS - 1;
	asm volatile("" : "+r"(index));
	return &slot_key[index & (INDEX_KEYS - 1)];
}

static __always_inline int select_slot(struct sk_reuseport_md *ctx, __u32 slot)
{
	return bpf_sk_select_reuseport(ctx, &socket_map, key_of(slot), 0);
}

/*
 * Asked for again in a function of its own that has a map's key in it, not handed to it: an
 * argument is plain memory to the verifier, which Linux 6.1 takes for no key ("R2 type=mem
 * expected=fp, ...").
 */
static __always_inline struct group_cpu *this_cpu(void)
{
	return bpf_map_lookup_elem(&group_cpu, (void *)&first_key);
}

/* The same pointer as a new value: addresses in it are computed anew, not kept over a call. */
static __always_inline struct group_cpu *again(struct group_cpu *cpu)
{
	asm volatile("" : "+r"(cpu));
	return cpu;
}

#ifdef SHARED
static __always_inline void *key_of_service(__u32 service)
{
	service &= SHARE_KEYS - 1;
	asm volatile("" : "+r"(service));
	return (void *)&service_key[service & (SHARE_KEYS - 1)];
}

/* NULL: there is no such service. */
static __always_inline struct listener_map *listener_map_of(__u32 service)
{
	return bpf_map_lookup_elem(&listener_maps, key_of_service(service));
}

static __always_inline __u32 service_of(__u32 slot)
{
	slot &= INDEX_KEYS - 1;
	asm volatile("" : "+r"(slot));
	return slot_service[slot & (INDEX_KEYS - 1)];
}

static __always_inline struct group_cpu *row_of(__u32 service)
{
	return bpf_map_lookup_elem(&group_cpu, key_of_service(service));
}
#else
static __always_inline struct listener_map *listener_map_of(__attribute__((unused)) __u32 service)
{
	return &listener_map;
}

static __always_inline __u32 service_of(__attribute__((unused)) __u32 slot)
{
	return 0;
}

static __always_inline struct group_cpu *row_of(__attribute__((unused)) __u32 service)
{
	return this_cpu();
}
#endif

static __always_inline void count(__u32 service, enum verdict verdict)
{
	struct group_cpu *row = row_of(service);

	if (row)
		row->verdict[verdict]++;
}

/* The same where the row of the only service is at hand. */
static __always_inline void count_at(
	struct group_cpu *cpu, __attribute__((unused)) __u32 service, enum verdict verdict)
{
#ifdef SHARED
	cpu = row_of(service);
	if (!cpu)
		return;
#endif
	cpu->verdict[verdict]++;
}

static __always_inline void count_slot(__u32 slot, bool new_connection)
{
	struct slot_counters *counters = bpf_map_lookup_elem(&slot_counters, key_of(slot));

	if (!counters)
		return;
	counters->packets++;
	if (new_connection)
		counters->new_connections++;
}

/* Tells the daemon, once until it has looked, that a slot it believes in is empty. */
static __always_inline void report_empty(__u32 slot)
{
	struct slot_event *event;

	if (group_head.reported)
		return;
	group_head.reported = 1;
	event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event) {
		group_head.reported = 0;
		return;
	}
	event->group = group_head.group;
	event->slot = slot;
	bpf_ringbuf_submit(event, 0);
}

/* The table's answer for a hash; the multiplication spreads 32 bits over the entries evenly. */
static __always_inline __u32 table_slot(const struct listener_table *table, __u32 hash)
{
	__u32 entry = ((__u64)hash * table->n_entries) >> 32;

	asm volatile("" : "+r"(entry));
	return table->entries[entry & (TABLE_ROOM - 1)];
}

/* An argument that is not used in one of the objects: else the compiler passes none, and the
 * verifier wants it. */
#define NEEDED(argument) asm volatile("" : : "r"(argument))

/*
 * Where workers say how loaded they are: the less loaded of two candidates, the first one if they
 * are equal. Two are enough for the longest queue to be short (Mitzenmacher, "The Power of Two
 * Choices in Randomized Load Balancing", 2001), also where what is known of the load is old, and
 * they keep the weights. A function of its own: who has no loads does not pay for its frame.
 */
__noinline __u32 less_loaded(__u32 service, __u32 hash)
{
	const struct listener_map *map = listener_map_of(service);
	const struct listener_table *table;
	__u32 first, second;

	NEEDED(service);
	if (!map)
		return INDEX_NONE;
	table = &map->tables[map->current & 1];
	first = table_slot(table, hash);
	second = table_slot(table, SECOND_HASH(hash));
	return map->load[second & (SLOT_COUNT - 1)] < map->load[first & (SLOT_COUNT - 1)] ? second
											  : first;
}

/*
 * One try of select_fallback(): the active worker that comes number `offset` after the hash's.
 * Returns its slot when it took the packet, INDEX_NONE when it did not. A global function: the
 * verifier checks it once by itself, and the loop that calls it stays simple (without CAP_PERFMON
 * every branch is walked speculatively as well, and 8,192 pending ones are the limit).
 */
__noinline __u32 select_active(struct sk_reuseport_md *ctx, __u32 service, __u32 hash, __u32 offset)
{
	const struct listener_map *map = listener_map_of(service);
	const struct listener_table *table;
	__u32 slot;

	NEEDED(service);
	if (!map)
		return INDEX_NONE;
	table = &map->tables[map->current & 1];
	if (offset >= table->n_active)
		return INDEX_NONE;
	slot = table->active[((hash % table->n_active + offset) % table->n_active) &
			     (SLOT_COUNT - 1)];
	return select_slot(ctx, slot) == 0 ? slot : INDEX_NONE;
}

enum arrival {
	ARRIVAL_NEW,   /* opens a connection or flow */
	ARRIVAL_MOVED, /* comes from a socket that closed */
	ARRIVAL_STRAY, /* neither, and still somebody must answer it */
};

/*
 * The chosen slot is empty, or nobody is active: the next active workers in order, so that with at
 * most FALLBACK_TRIES of them every one is tried, then the standby. Returns as select_new().
 */
__noinline __u32 select_other(struct sk_reuseport_md *ctx, __u32 service, __u32 hash, __u32 arrival)
{
	struct listener_map *map;
	__u32 i, slot;

	NEEDED(service);
#pragma unroll
	for (i = 0; i < FALLBACK_TRIES; i++) {
		slot = select_active(ctx, service, hash, i);
		if (slot != INDEX_NONE) {
			count(service, VERDICT_FALLBACK);
			count_slot(slot, arrival != ARRIVAL_STRAY);
			return slot;
		}
	}
	map = listener_map_of(service);
	if (map && map->standby != INDEX_NONE &&
		bpf_sk_select_reuseport(ctx, &socket_map, &map->standby, 0) == 0) {
		count(service, VERDICT_STANDBY);
		return INDEX_STANDBY;
	}
	count(service, VERDICT_DROPPED);
	return INDEX_NONE;
}

/*
 * A new connection or one that moves: listener map, else other active workers, else the standby.
 * Returns the slot that took it, INDEX_STANDBY for the standby, INDEX_NONE for nobody. Each packet
 * counts for one verdict.
 */
static __always_inline __u32 select_new(
	struct sk_reuseport_md *ctx, __u32 service, __u32 hash, enum arrival arrival)
{
	const struct listener_map *map = listener_map_of(service);
	const struct listener_table *table;
	__u32 current, slot;

	if (!map)
		return INDEX_NONE;
	current = map->current;
	table = &map->tables[current & 1];
	if (table->n_active) {
		slot = current & LISTENER_LOADS ? less_loaded(service, hash)
						: table_slot(table, hash);
		if (select_slot(ctx, slot) == 0) {
			count(service, arrival == ARRIVAL_NEW     ? VERDICT_LISTENER
				       : arrival == ARRIVAL_MOVED ? VERDICT_MIGRATED
								  : VERDICT_STRAY);
			count_slot(slot, arrival != ARRIVAL_STRAY);
			return slot;
		}
		report_empty(slot);
	}
	return select_other(ctx, service, hash, arrival);
}

/*
 * The slot to remember for what was selected. A UDP standby becomes the socket of the worker that
 * takes its slot, and the rest of what it holds the beginning of must go there as well.
 */
static __always_inline __u32 slot_of(__u32 service, __u32 selected)
{
	const struct listener_map *map;

	if (selected != INDEX_STANDBY)
		return selected;
	map = listener_map_of(service);
	return map ? map->standby : INDEX_NONE;
}

/*
 * Never SK_PASS without a selection: the kernel would then choose among all members of the group,
 * those that drain included.
 */
static __always_inline int verdict_of(__u32 selected)
{
	return selected == INDEX_NONE ? SK_DROP : SK_PASS;
}
