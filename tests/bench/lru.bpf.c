/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Flows in a hash map that forgets the least recently used, by 4-tuple (udpgrm's way). What plain
 * UDP and mode `opaque` are measured against.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define IPV4_SOURCE 12
#define N_SOCKETS 4

struct flow {
	__u32 address[2];
	__u32 ports;
};

struct {
	__uint(type, BPF_MAP_TYPE_REUSEPORT_SOCKARRAY);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, __u64);
} socket_map SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct flow);
	__type(value, __u32);
} flows SEC(".maps");

SEC("sk_reuseport")
int bench_lru(struct sk_reuseport_md *ctx)
{
	struct flow flow;
	__u32 *known, slot;

	if (bpf_skb_load_bytes_relative(
		    ctx, IPV4_SOURCE, flow.address, sizeof(flow.address), BPF_HDR_START_NET) < 0 ||
		bpf_skb_load_bytes(ctx, 0, &flow.ports, sizeof(flow.ports)) < 0)
		return SK_DROP;
	known = bpf_map_lookup_elem(&flows, &flow);
	if (known && bpf_sk_select_reuseport(ctx, &socket_map, known, 0) == 0)
		return SK_PASS;
	slot = ctx->hash % N_SOCKETS;
	if (bpf_sk_select_reuseport(ctx, &socket_map, &slot, 0) != 0)
		return SK_DROP;
	bpf_map_update_elem(&flows, &flow, &slot, BPF_ANY);
	return SK_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
