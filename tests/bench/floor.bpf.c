/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What the programs of bpf/ are measured against. bench_floor selects one socket, always the same:
 * nothing that steers can do less. bench_empty does not even that and so shows what the kernel's
 * meter itself costs; the kernel then chooses by its own hash.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_REUSEPORT_SOCKARRAY);
	__uint(max_entries, 256);
	__type(key, __u32);
	__type(value, __u64);
} socket_map SEC(".maps");

const volatile __u32 slot = 0;

SEC("sk_reuseport")
int bench_floor(struct sk_reuseport_md *ctx)
{
	return bpf_sk_select_reuseport(ctx, &socket_map, (void *)&slot, 0) ? SK_DROP : SK_PASS;
}

SEC("sk_reuseport")
int bench_empty(__attribute__((unused)) struct sk_reuseport_md *ctx)
{
	return SK_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
