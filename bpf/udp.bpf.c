/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Plain UDP listeners. A flow (4-tuple) stays with its worker while that worker has its socket and
 * the flow is not idle for too long, through every change of the listener map. The kernel's keyed
 * 4-tuple hash names the flow; two flows with one hash share a worker, which does no harm.
 */
#include "group.bpf.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1); /* set before loading */
	__type(key, __u32);
	__type(value, struct flow_set);
} flow_map SEC(".maps");

/* Age in ticks; 16 bits, modular. */
static __always_inline __u32 flow_age(__u64 word, __u32 now)
{
	return (now - (__u32)word) & 0xffff;
}

static __always_inline __u64 flow_word(__u32 tag, __u32 slot, __u32 now)
{
	return (__u64)tag << 32 | (slot & 0xffff) << 16 | (now & 0xffff);
}

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

SEC("sk_reuseport/migrate")
int udp_select(struct sk_reuseport_md *ctx)
{
	struct group_counters *counters = bpf_map_lookup_elem(&group_counters, index_key(0));
	__u32 hash = ctx->hash;
	__u32 tag = hash | 1; /* never 0; the lowest bit chooses the set, so nothing is lost */
	struct flow_set *set;
	__u32 now, way, slot;

	if (!counters)
		return SK_DROP;
	counters->key = hash & listener_map.flow_mask;
	set = bpf_map_lookup_elem(&flow_map, &counters->key);
	if (!set)
		return SK_DROP;
	now = bpf_ktime_get_coarse_ns() >> FLOW_TICK_SHIFT;
	way = flow_way(set, tag, now);
	if (way < FLOW_WAYS) {
		__u64 word = set->word[way];
		__u32 age = flow_age(word, now);

		slot = (word >> 16) & 0xffff;
		if ((__u32)(word >> 32) == tag && age <= listener_map.flow_timeout &&
			select_index(ctx, slot) == 0) {
			if (age > listener_map.flow_timeout / 16)
				set->word[way] = flow_word(tag, slot, now);
			counters->verdict[VERDICT_FLOW]++;
			count_slot(slot, false);
			return SK_PASS;
		}
	}
	slot = select_new(ctx, hash, counters, ARRIVAL_NEW);
	if (slot < SLOT_COUNT && way < FLOW_WAYS)
		set->word[way] = flow_word(tag, slot, now);
	return verdict_of(slot);
}

char _license[] SEC("license") = "Dual BSD/GPL";
