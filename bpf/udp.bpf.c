/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Plain UDP listeners. A flow (4-tuple) stays with its worker while that worker has its socket and
 * the flow is not idle for too long, through every change of the listener map. The kernel's keyed
 * 4-tuple hash names the flow; two flows with one hash share a worker, which does no harm.
 */
#include "flow.bpf.h"

SEC("sk_reuseport/migrate")
int udp_select(struct sk_reuseport_md *ctx)
{
	struct group_counters *counters = bpf_map_lookup_elem(&group_counters, index_key(0));
	struct flow_place place = {0};
	__u32 hash = ctx->hash;
	__u32 slot;

	if (!counters)
		return SK_DROP;
	/* A tag is never 0; the lowest bit chooses the set, so nothing is lost by setting it. */
	if (flow_find(&place, counters, hash, hash | 1)) {
		slot = flow_slot(&place);
		if (slot != INDEX_NONE && select_index(ctx, slot) == 0) {
			flow_refresh(&place, slot);
			counters->verdict[VERDICT_FLOW]++;
			count_slot(slot, false);
			return SK_PASS;
		}
	}
	slot = select_new(ctx, hash, counters, ARRIVAL_NEW);
	if (place.set)
		flow_remember(&place, slot_of(slot));
	return verdict_of(slot);
}

char _license[] SEC("license") = "Dual BSD/GPL";
