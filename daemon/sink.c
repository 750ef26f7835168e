/* SPDX-License-Identifier: BSD-2-Clause */
#include "daemon/sink.h"

#include <bpf/bpf.h>
#include <linux/bpf.h>
#include <linux/filter.h>
#include <linux/if_packet.h>
#include <stddef.h>
#include <sys/socket.h>

#include "common/util.h"

#define IPV4_DESTINATION 16
#define IPV6_DESTINATION 24

int sink_filter_new(struct sink_filter *ret)
{
	struct sink_filter filter;

	filter.counter = bpf_map_create(BPF_MAP_TYPE_ARRAY, "sink", 4, sizeof(uint64_t), 1, NULL);
	if (filter.counter < 0)
		return -errno;
	/*
	 * if (skb->pkt_type == PACKET_HOST && its destination is no multicast address) counter++;
	 * return 0; the loopback device has multicast for PACKET_HOST too.
	 */
	const struct bpf_insn code[] = {
		{.code = BPF_ALU64 | BPF_MOV | BPF_X, .dst_reg = BPF_REG_6, .src_reg = BPF_REG_1},
		{.code = BPF_LDX | BPF_W | BPF_MEM,
			.dst_reg = BPF_REG_2,
			.src_reg = BPF_REG_1,
			.off = offsetof(struct __sk_buff, pkt_type)},
		{.code = BPF_JMP | BPF_JNE | BPF_K,
			.dst_reg = BPF_REG_2,
			.imm = PACKET_HOST,
			.off = 11},
		{.code = BPF_LD | BPF_B | BPF_ABS, .imm = SKF_NET_OFF}, /* version */
		{.code = BPF_JMP | BPF_JGE | BPF_K, .dst_reg = BPF_REG_0, .imm = 0x60, .off = 3},
		{.code = BPF_LD | BPF_B | BPF_ABS, .imm = SKF_NET_OFF + IPV4_DESTINATION},
		{.code = BPF_JMP | BPF_JGE | BPF_K, .dst_reg = BPF_REG_0, .imm = 224, .off = 7},
		{.code = BPF_JMP | BPF_JA, .off = 2},
		{.code = BPF_LD | BPF_B | BPF_ABS, .imm = SKF_NET_OFF + IPV6_DESTINATION},
		{.code = BPF_JMP | BPF_JEQ | BPF_K, .dst_reg = BPF_REG_0, .imm = 0xff, .off = 4},
		{.code = BPF_LD | BPF_DW | BPF_IMM,
			.dst_reg = BPF_REG_1,
			.src_reg = BPF_PSEUDO_MAP_VALUE,
			.imm = filter.counter},
		{.code = 0},
		{.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_2, .imm = 1},
		{.code = BPF_STX | BPF_DW | BPF_ATOMIC,
			.dst_reg = BPF_REG_1,
			.src_reg = BPF_REG_2,
			.imm = BPF_ADD},
		{.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_0, .imm = 0},
		{.code = BPF_JMP | BPF_EXIT},
	};

	filter.program = bpf_prog_load(
		BPF_PROG_TYPE_SOCKET_FILTER, "sink", "Dual BSD/GPL", code, ARRAY_SIZE(code), NULL);
	if (filter.program < 0) {
		close_fd(&filter.counter);
		return -errno;
	}
	*ret = filter;
	return 0;
}

void sink_filter_done(struct sink_filter *filter)
{
	if (filter->program <= 0)
		return;
	close_fd(&filter->program);
	close_fd(&filter->counter);
	*filter = (struct sink_filter){0};
}

int sink_filter_attach(const struct sink_filter *filter, int socket)
{
	return setsockopt(socket, SOL_SOCKET, SO_ATTACH_BPF, &filter->program,
		       sizeof(filter->program)) < 0
		       ? -errno
		       : 0;
}

uint64_t sink_filter_count(const struct sink_filter *filter)
{
	uint64_t count = 0;
	uint32_t key = 0;

	bpf_map_lookup_elem(filter->counter, &key, &count);
	return count;
}
