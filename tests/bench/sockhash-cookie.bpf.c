/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * A socket's cookie in its connection IDs, first 8 octets, and a SOCKHASH from these to the socket
 * (nginx's way). What mode `nginx` is measured against.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define UDP_HEADER 8

struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, __u64);
} socket_map SEC(".maps");

SEC("sk_reuseport")
int bench_sockhash_cookie(struct sk_reuseport_md *ctx)
{
	__u64 cookie;

	if (bpf_skb_load_bytes(ctx, UDP_HEADER + 1, &cookie, sizeof(cookie)) < 0)
		return SK_DROP;
	return bpf_sk_select_reuseport(ctx, &socket_map, &cookie, 0) ? SK_DROP : SK_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
