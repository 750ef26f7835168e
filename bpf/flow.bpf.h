/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The flow map: which slot a hash was sent to, for some time. Flows of plain UDP, handshakes of
 * QUIC, connections of QUIC servers of which nothing is known. layout.h describes its memory.
 */
#pragma once

#include "group.bpf.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1); /* set before loading */
	__type(key, __u32);
	__type(value, struct flow_set);
} flow_map SEC(".maps");

/* Where a hash stands, or would. */
struct flow_place {
	struct flow_set *set;
	__u32 tag;
	__u32 now; /* ticks */
	__u32 way; /* FLOW_WAYS: there is no room */
};

/*
 * The way that holds the tag, else one that is free or out of date, else FLOW_WAYS. A global
 * function, so that its registers are its own and nothing is spilled around it.
 */
__noinline __u32 flow_way(struct flow_set *set, __u32 tag, __u32 now)
{
	__u32 timeout = listener_map.flow_timeout, i;

	if (!set)
		return FLOW_WAYS;
#pragma unroll
	for (i = 0; i < FLOW_WAYS; i++)
		if ((__u32)(set->word[i] >> 32) == tag)
			return i;
#pragma unroll
	for (i = 0; i < FLOW_WAYS; i++)
		if (set->word[i] == 0 || flow_age(set->word[i], now) > timeout)
			return i;
	return FLOW_WAYS;
}

/* The word of a place that has a way. A mask, where the verifier has lost sight of the bound. */
static __always_inline __u64 *flow_at(const struct flow_place *place)
{
	__u32 way = place->way;

	asm volatile("" : "+r"(way));
	return &place->set->word[way & (FLOW_WAYS - 1)];
}

/* Looks the place up. False: no place, not even to remember it at. */
static __always_inline bool flow_find(
	struct flow_place *place, struct group_counters *counters, __u32 set_hash, __u32 tag)
{
	counters->key = set_hash & listener_map.flow_mask;
	place->set = bpf_map_lookup_elem(&flow_map, &counters->key);
	if (!place->set)
		return false;
	place->tag = tag;
	place->now = bpf_ktime_get_coarse_ns() >> FLOW_TICK_SHIFT;
	place->way = flow_way(place->set, tag, place->now);
	return place->way < FLOW_WAYS;
}

/*
 * The slot that stands there and is not out of date, else INDEX_NONE. Also for what waits in a
 * standby that is nobody's yet: it is decided as if it were new, and remembered again.
 */
static __always_inline __u32 flow_slot(const struct flow_place *place)
{
	__u64 word;
	__u32 slot;

	if (!place->set || place->way >= FLOW_WAYS)
		return INDEX_NONE;
	word = *flow_at(place);
	if ((__u32)(word >> 32) != place->tag ||
		flow_age(word, place->now) > listener_map.flow_timeout)
		return INDEX_NONE;
	slot = (word >> 16) & 0xffff;
	return slot == listener_map.vacant ? INDEX_NONE : slot;
}

static __always_inline void flow_remember(const struct flow_place *place, __u32 slot)
{
	if (place->way < FLOW_WAYS && slot < SLOT_COUNT)
		*flow_at(place) = flow_word(place->tag, slot, place->now);
}

/* Of a flow that was used: its time starts again. Written only now and then. */
static __always_inline void flow_refresh(const struct flow_place *place, __u32 slot)
{
	if (place->way < FLOW_WAYS &&
		flow_age(*flow_at(place), place->now) > listener_map.flow_timeout / 16)
		*flow_at(place) = flow_word(place->tag, slot, place->now);
}
