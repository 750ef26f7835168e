/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The usual way to steer by connection IDs that the server tells: each one is a key of a SOCKHASH.
 * What mode `registered` is measured against. All IDs have 20 octets here, so that the key can be
 * taken from the short header as it stands.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define UDP_HEADER 8

struct connection_id {
	__u8 octet[20];
};

struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, 1 << 20);
	__type(key, struct connection_id);
	__type(value, __u64);
} socket_map SEC(".maps");

SEC("sk_reuseport")
int bench_sockhash(struct sk_reuseport_md *ctx)
{
	struct connection_id id;

	if (bpf_skb_load_bytes(ctx, UDP_HEADER + 1, &id, sizeof(id)) < 0)
		return SK_DROP;
	return bpf_sk_select_reuseport(ctx, &socket_map, &id, 0) ? SK_DROP : SK_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
