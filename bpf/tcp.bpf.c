/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * TCP listeners. The kernel asks once for every SYN, and, the program being of the migrate kind
 * (Linux 5.14), for every connection or handshake in the queue of a socket that closes: those move
 * to a worker that is active, or wait in the standby, instead of being reset.
 */
#include "group.bpf.h"

SEC("sk_reuseport/migrate")
int tcp_select(struct sk_reuseport_md *ctx)
{
	struct group_counters *counters = bpf_map_lookup_elem(&group_counters, index_key(0));

	if (!counters)
		return SK_DROP;
	return verdict_of(select_new(ctx, ctx->hash, counters, ctx->migrating_sk != NULL));
}

char _license[] SEC("license") = "Dual BSD/GPL";
