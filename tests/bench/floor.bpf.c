/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What the programs of bpf/ are measured against. bench_floor selects one socket, always the same:
 * nothing that steers can do less. bench_empty does not even that and so shows what the kernel's
 * meter itself costs; the kernel then chooses by its own hash. bench_modulo is what classic BPF
 * that steers by connection ID comes to (Envoy's way): a word of the ID modulo the number of
 * sockets, returned as an index among the members.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define UDP_HEADER 8

struct {
	__uint(type, BPF_MAP_TYPE_REUSEPORT_SOCKARRAY);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, __u64);
} socket_map SEC(".maps");

const volatile __u32 slot = 0;
const volatile __u32 n_sockets = 4;

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

/* The loads of classic BPF, as the kernel translates them. */
unsigned long long load_byte(void *skb, unsigned long long offset) asm("llvm.bpf.load.byte");
unsigned long long load_word(void *skb, unsigned long long offset) asm("llvm.bpf.load.word");

/* The kernel has pulled the UDP header before it calls a program of this type. */
SEC("socket")
int bench_modulo(struct __sk_buff *skb)
{
	__u32 offset = load_byte(skb, 0) & 0x80 ? 6 : 1;

	return (__u32)load_word(skb, offset) % n_sockets;
}

char _license[] SEC("license") = "Dual BSD/GPL";
