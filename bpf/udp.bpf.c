/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Plain UDP listeners. A flow (4-tuple) stays with its worker while that worker has its socket and
 * the flow is not idle for too long, through every change of the listener map. The kernel's keyed
 * 4-tuple hash names the flow; two flows with one hash share a worker, which does no harm.
 */
#include "flow.bpf.h"

/* A flow that begins; flow_find() has found where it can be remembered. A function of its own, so
 * that nothing is spilled where the flows that are known go. */
__noinline int select_beginning(struct sk_reuseport_md *ctx)
{
	__u32 selected = select_new(ctx, 0, ctx->hash, ARRIVAL_NEW);
	struct group_cpu *cpu = this_cpu();

	if (cpu)
		flow_remember(cpu, slot_of(0, selected));
	return verdict_of(selected);
}

SEC("sk_reuseport/migrate")
int udp_select(struct sk_reuseport_md *ctx)
{
	struct group_cpu *cpu = this_cpu();
	__u32 hash = ctx->hash;

	if (!cpu)
		return SK_DROP;
	/* A tag is never 0; the lowest bit chooses the set, so nothing is lost by setting it. */
	if (select_flow(ctx, cpu, hash, hash | 1) != INDEX_NONE)
		return SK_PASS;
	return select_beginning(ctx);
}

char _license[] SEC("license") = "Dual BSD/GPL";
