/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * TCP listeners. The kernel asks once for every SYN, and, the program being of the migrate kind
 * (Linux 5.14), for every connection or handshake in the queue of a socket that closes: those move
 * to a worker that is active, or wait in the standby, instead of being reset.
 */
#include "group.bpf.h"

#define TCP_FLAGS_OFFSET 13
#define TCP_SYN 0x02
#define TCP_ACK 0x10

/* SYN without ACK; data begins at the TCP header, which the kernel has made linear before it asks.
 */
static __always_inline bool opens_connection(const struct sk_reuseport_md *ctx)
{
	const __u8 *header = ctx->data;

	if (header + TCP_FLAGS_OFFSET + 1 > (const __u8 *)ctx->data_end)
		return false;
	return (header[TCP_FLAGS_OFFSET] & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

SEC("sk_reuseport/migrate")
int tcp_select(struct sk_reuseport_md *ctx)
{
	if (ctx->migrating_sk)
		return verdict_of(select_new(ctx, 0, ctx->hash, ARRIVAL_MOVED));
	if (opens_connection(ctx))
		return verdict_of(select_new(ctx, 0, ctx->hash, ARRIVAL_NEW));
	return verdict_of(select_new(ctx, 0, ctx->hash, ARRIVAL_STRAY));
}

char _license[] SEC("license") = "Dual BSD/GPL";
