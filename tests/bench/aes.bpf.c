/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The server ID in the connection ID, encrypted by one block of AES that is decrypted for every
 * packet (nghttpx's way). What mode `quic-lb` is measured against. Loaded by root, so without the
 * verifier's guards that the daemon's programs have.
 */
#define QUIC_LB_UNALIGNED
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "bpf/quic_lb.h"

#define UDP_HEADER 8
#define SLOTS 4096

struct {
	__uint(type, BPF_MAP_TYPE_REUSEPORT_SOCKARRAY);
	__uint(max_entries, SLOTS);
	__type(key, __u32);
	__type(value, __u64);
} socket_map SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct quic_lb_config);
} config SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct quic_lb_scratch);
} scratch SEC(".maps");

SEC("sk_reuseport")
int bench_aes(struct sk_reuseport_md *ctx)
{
	const struct quic_lb_config *current;
	struct quic_lb_scratch *room;
	struct quic_lb_words words = {0};
	const __u8 *id = ctx->data;
	__u32 zero = 0, slot;

	id += UDP_HEADER + 2;
	if (id + AES128_OCTETS > (const __u8 *)ctx->data_end)
		return SK_DROP;
	current = bpf_map_lookup_elem(&config, &zero);
	room = bpf_map_lookup_elem(&scratch, &zero);
	if (!current || !room)
		return SK_DROP;
	words.word0 = quic_lb_load64(id);
	words.word1 = quic_lb_load64(id + 8);
	quic_lb_decrypt_single(current, &words, room);
	slot = (words.word0 >> 16) & (SLOTS - 1);
	return bpf_sk_select_reuseport(ctx, &socket_map, &slot, 0) ? SK_DROP : SK_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
