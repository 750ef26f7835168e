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

/*
 * Looks for cpu->flow_tag in a set. cpu->flow_way becomes the way that holds it, else one that is
 * free or out of date, else FLOW_WAYS. Returns the slot, or INDEX_NONE when it is not there. A
 * global function, so that its registers are its own.
 */
__noinline __u32 flow_search(struct flow_set *set, struct group_cpu *cpu)
{
	__u32 timeout = group_head.flow_timeout, i;
	volatile __u64 *word; /* each time from memory: all eight don't fit in registers */

	if (!set || !cpu)
		return INDEX_NONE;
	word = set->word;
#pragma unroll
	for (i = 0; i < FLOW_WAYS; i++) {
		__u64 seen = word[i];

		if ((__u32)(seen >> 32) == cpu->flow_tag) {
			cpu->flow_way = i;
			return flow_age(seen, cpu->flow_now) > timeout ? INDEX_NONE
								       : (seen >> 16) & 0xffff;
		}
	}
#pragma unroll
	for (i = 0; i < FLOW_WAYS; i++) {
		__u64 seen = word[i];

		if (seen == 0 || flow_age(seen, cpu->flow_now) > timeout) {
			cpu->flow_way = i;
			return INDEX_NONE;
		}
	}
	cpu->flow_way = FLOW_WAYS;
	return INDEX_NONE;
}

/* The slot of a hash, or INDEX_NONE. cpu keeps the place, for the two functions below. */
static __always_inline __u32 flow_find(struct group_cpu *cpu, __u32 set_hash, __u32 tag)
{
	struct flow_set *set;

	cpu->key = set_hash & group_head.flow_mask;
	cpu->flow_tag = tag;
	cpu->flow_now = bpf_ktime_get_coarse_ns() >> FLOW_TICK_SHIFT;
	set = bpf_map_lookup_elem(&flow_map, &again(cpu)->key);
	if (!set)
		return INDEX_NONE;
	return flow_search(set, cpu);
}

/* Remembers the slot at the place that was found last. */
static __always_inline void flow_remember(struct group_cpu *cpu, __u32 slot)
{
	struct flow_set *set;
	__u32 way = cpu->flow_way;

	if (way >= FLOW_WAYS || slot >= SLOT_COUNT)
		return;
	set = bpf_map_lookup_elem(&flow_map, &again(cpu)->key);
	if (set)
		set->word[way & (FLOW_WAYS - 1)] = flow_word(cpu->flow_tag, slot, cpu->flow_now);
}

/* What was found was used: its time starts again. Written only now and then. */
static __always_inline void flow_refresh(struct group_cpu *cpu)
{
	struct flow_set *set = bpf_map_lookup_elem(&flow_map, &again(cpu)->key);
	__u32 way = cpu->flow_way & (FLOW_WAYS - 1);
	__u64 word;

	asm volatile("" : "+r"(way));
	if (!set)
		return;
	word = set->word[way & (FLOW_WAYS - 1)];
	if (flow_age(word, cpu->flow_now) > group_head.flow_timeout / 16)
		set->word[way & (FLOW_WAYS - 1)] =
			flow_word(cpu->flow_tag, (word >> 16) & 0xffff, cpu->flow_now);
}

/*
 * To the worker that a hash was sent to before. Returns its slot; INDEX_NONE: it was sent nowhere,
 * or that worker is gone.
 */
static __always_inline __u32 select_flow(
	struct sk_reuseport_md *ctx, struct group_cpu *cpu, __u32 set_hash, __u32 tag)
{
	__u32 slot = flow_find(cpu, set_hash, tag);

	if (slot == INDEX_NONE || select_slot(ctx, slot) != 0)
		return INDEX_NONE;
	flow_refresh(cpu);
	count_at(cpu, service_of(slot), VERDICT_FLOW);
	count_slot(slot, false);
	return slot;
}
