/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * QUIC listeners. A packet goes to the worker that its destination connection ID names: read from
 * the ID itself (quic-lb), or looked up (registered, nginx), or learned (opaque). An ID that names
 * nobody is either the client's own choice, so a handshake: the flow map keeps its datagrams, 0-RTT
 * and retransmissions together while the listener map changes; or it belongs to a connection that
 * is lost: an active worker gets it and answers with a stateless reset.
 *
 * There is a program for each mode, and a group loads one.
 */
#include "quic.bpf.h"

#define IPV4_SOURCE 12 /* where the address stands in the IP header */
#define IPV6_SOURCE 8
#define ETHERTYPE_IPV6 0x86dd

/* ---- IDs that name nobody ---- */

/* A packet of a connection that nobody has: an active worker answers it. */
static __always_inline int select_stray(struct sk_reuseport_md *ctx, __u64 hash)
{
	return verdict_of(select_new(ctx, 0, quic_listener_hash(hash), ARRIVAL_STRAY));
}

/*
 * A connection that begins, by room->hash; flow_find() has found no place for it, or which one it
 * may have. A function of its own, so that nothing is spilled between that search and the listener
 * map: the barrier that guards a spill would wait for the search's cache miss before the next one
 * can begin.
 */
__noinline int select_beginning(struct sk_reuseport_md *ctx)
{
	struct group_cpu *cpu = this_cpu();
	__u32 selected;

	if (!cpu)
		return SK_DROP;
	selected = select_new(ctx, 0, quic_listener_hash(room_of(cpu)->hash), ARRIVAL_NEW);
	cpu = this_cpu();
	if (cpu)
		flow_remember(cpu, slot_of(0, selected));
	return verdict_of(selected);
}

/* By room->header and room->hash. */
__noinline int select_unknown(struct sk_reuseport_md *ctx)
{
	struct group_cpu *cpu = this_cpu();

	if (!cpu)
		return SK_DROP;
	if (!quic_begins_connection(room_of(cpu)->header.kind))
		return select_stray(ctx, room_of(cpu)->hash);
	if (select_by_hash(ctx, cpu, room_of(cpu)->hash) != INDEX_NONE)
		return SK_PASS;
	return select_beginning(ctx);
}

/* ---- Opaque: nothing is known of the server's IDs but what can be learned ---- */

/*
 * The client's address and port, from the headers before and of UDP: an IPv4 one as four octets, on
 * a socket for both kinds as well. 0, or a negative errno.
 */
__noinline int load_address(struct sk_reuseport_md *ctx, struct group_cpu *cpu)
{
	struct quic_room *room;
	int result;

	if (!cpu)
		return -1;
	room = room_of(cpu);
	*(volatile __u64 *)&room->address[0] = 0;
	*(volatile __u64 *)&room->address[1] = 0;
	if (ctx->eth_protocol == bpf_htons(ETHERTYPE_IPV6))
		result = bpf_skb_load_bytes_relative(
			ctx, IPV6_SOURCE, room->address, sizeof(room->address), BPF_HDR_START_NET);
	else
		result = bpf_skb_load_bytes_relative(
			ctx, IPV4_SOURCE, room->address, 4, BPF_HDR_START_NET);
	if (result < 0)
		return result;
	return bpf_skb_load_bytes(ctx, 0, &room->port, sizeof(room->port));
}

/*
 * The source connection ID of a long header, into room->word; returns its length. It stands behind
 * the destination's, which may be anywhere. Zeros where the packet is too short for one.
 */
__noinline __u32 load_scid(struct sk_reuseport_md *ctx, struct group_cpu *cpu)
{
	struct quic_room *room;
	__u32 length;

	if (!cpu)
		return 0;
	room = room_of(cpu);
	*(volatile __u8 *)room->scid = 0;
	bpf_skb_load_bytes(ctx, UDP_HEADER + 6 + room->window[5], room->scid, 1 + QUIC_CID_OCTETS);
	length = *(volatile __u8 *)room->scid;
	length = length > QUIC_CID_OCTETS ? QUIC_CID_OCTETS : length;
	load_dcid(room, room->scid + 1, length);
	return length;
}

/* Remembers that the hash belongs to the slot. */
__noinline int note_flow(__u64 hash, __u32 slot)
{
	struct group_cpu *cpu = this_cpu();

	if (!cpu)
		return 0;
	if (flow_find(cpu, quic_flow_set(hash), quic_flow_tag(hash)) == slot)
		flow_refresh(cpu);
	else
		flow_remember(cpu, slot);
	return 0;
}

/* Hash of the first octets of the ID at dcid; prefix is QUIC_PREFIX_LONG or _SHORT. */
static __always_inline __u64 hash_prefix(struct quic_room *room, const __u8 *dcid, __u32 prefix)
{
	load_dcid(room, dcid, prefix);
	return quic_hash(&quic_state.hash_key, room->word[0], 0, QUIC_HASH_PREFIX(prefix));
}

/*
 * An ID of the server's, of which so many octets are known to be its: learned. That IDs are short
 * is remembered of the client's address, since a short header does not show it.
 */
__noinline int learn_dcid(struct group_cpu *cpu, __u64 address, __u32 length, __u32 slot)
{
	struct quic_room *room;
	const __u8 *dcid;

	if (!cpu || length < QUIC_PREFIX_SHORT)
		return 0;
	room = room_of(cpu);
	dcid = room->window[0] & 0x80 ? room->window + 6 : room->window + 1;
	if (length >= QUIC_PREFIX_LONG)
		return note_flow(hash_prefix(room, dcid, QUIC_PREFIX_LONG), slot);
	note_flow(~address, slot);
	return note_flow(hash_prefix(room, dcid, QUIC_PREFIX_SHORT), slot);
}

/*
 * Has the server chosen the destination ID of a long header? A client puts its Handshake packet
 * behind an Initial in the same datagram, as a rule, so this must be seen from the Initial as well.
 * What a client chooses itself has eight octets at least (RFC 9000 section 7.2); a server's ID of
 * eight or more is learned from the short headers that follow.
 */
static __always_inline bool is_servers_id(__u32 kind, __u32 length)
{
	return kind == QUIC_HANDSHAKE || (kind == QUIC_INITIAL && length < QUIC_PREFIX_LONG);
}

/*
 * These two are functions of their own, so that few registers are taken where they are called: what
 * is spilled there may share a place on the stack with something wider, which Linux 6.1 takes for
 * an attempt to forge a pointer.
 */
__noinline __u32 select_new_connection(struct sk_reuseport_md *ctx, __u32 hash)
{
	return select_new(ctx, 0, hash, ARRIVAL_NEW);
}

/* Whom the flow map names for the hash, when that one took the packet, else INDEX_NONE. */
__noinline __u32 select_known(struct sk_reuseport_md *ctx, __u64 hash)
{
	struct group_cpu *cpu = this_cpu();

	return cpu ? select_by_hash(ctx, cpu, hash) : INDEX_NONE;
}

/*
 * Long header. All that a client sends in one handshake has one source connection ID (RFC 9000
 * section 7.2), whatever the destination's becomes. The ID that the server has chosen is learned.
 * The listener map is asked by the address alone, as for a short header: so a connection holds
 * together also when there is no room to remember it.
 */
static __always_inline int select_opaque_long(
	struct sk_reuseport_md *ctx, struct group_cpu *cpu, __u64 address, __u32 kind)
{
	struct quic_room *room = room_of(cpu);
	__u32 length = load_scid(ctx, cpu), slot;
	__u64 hash = quic_hash_handshake(
		address, quic_hash(&quic_state.hash_key, room->word[0], room->word[1],
				 room->word[2] | QUIC_HASH_CID(length)));

	slot = select_known(ctx, hash);
	if (slot == INDEX_NONE) {
		if (!quic_begins_connection(kind))
			return select_stray(ctx, address);
		slot = select_new_connection(ctx, quic_listener_hash(address));
		if (slot == INDEX_NONE)
			return SK_DROP;
		slot = slot_of(0, slot);
		note_flow(hash, slot);
	}
	note_flow(address, slot);
	if (is_servers_id(kind, room->window[5]))
		learn_dcid(cpu, address, room->window[5], slot);
	return SK_PASS;
}

/* Are the IDs short that this client's connection has? */
static __always_inline bool has_short_ids(struct group_cpu *cpu, __u64 address, __u32 slot)
{
	return flow_find(cpu, quic_flow_set(~address), quic_flow_tag(~address)) == slot;
}

/*
 * Short header: by eight octets of an ID that was learned, else by the client's address, else by
 * four octets. In this order, since some servers' IDs have the first four in common. How long IDs
 * are is told by each client's own Handshake packets: none decides it for the others.
 */
static __always_inline int select_opaque_short(
	struct sk_reuseport_md *ctx, struct group_cpu *cpu, __u64 address)
{
	struct quic_room *room = room_of(cpu);
	__u32 slot;

	slot = select_known(ctx, hash_prefix(room, room->window + 1, QUIC_PREFIX_LONG));
	if (slot != INDEX_NONE) {
		note_flow(address, slot);
		return SK_PASS;
	}
	slot = select_known(ctx, address);
	if (slot != INDEX_NONE) {
		learn_dcid(cpu, address,
			has_short_ids(cpu, address, slot) ? QUIC_PREFIX_SHORT : QUIC_PREFIX_LONG,
			slot);
		return SK_PASS;
	}
	slot = select_known(ctx, hash_prefix(room, room->window + 1, QUIC_PREFIX_SHORT));
	if (slot == INDEX_NONE)
		return select_stray(ctx, address);
	note_flow(address, slot);
	note_flow(~address, slot);
	return SK_PASS;
}

static __always_inline int select_opaque(
	struct sk_reuseport_md *ctx, struct group_cpu *cpu, struct quic_header header)
{
	struct quic_room *room = room_of(cpu);
	__u64 address;

	if (load_address(ctx, cpu) < 0)
		return drop_invalid(ctx);
	address = quic_hash(&quic_state.hash_key, room->address[0], room->address[1],
		QUIC_HASH_FLOW | room->port);
	if (header.long_header)
		return select_opaque_long(ctx, cpu, address, header.kind);
	return select_opaque_short(ctx, cpu, address);
}

/* All that was not decided by an ID of ours in place. */
static __always_inline int select_rest(struct sk_reuseport_md *ctx, __u32 mode)
{
	struct group_cpu *cpu = this_cpu();
	__u32 length;

	if (!cpu)
		return SK_DROP;
	if ((mode == QUIC_MODE_LB || mode == QUIC_MODE_LB_PLAIN) && begins_in_place(ctx, cpu))
		return select_unknown(ctx);
	length = copy_window(ctx, cpu);
	if ((mode == QUIC_MODE_LB || mode == QUIC_MODE_LB_PLAIN) && !is_in_place(ctx) &&
		length >= own_header_length(room_of(cpu)->window) &&
		pass_to(ctx, own_slot(room_of(again(cpu))->window, mode)))
		return SK_PASS;
	if (read_window(cpu, length, quic_short_dcid_length(mode)) == QUIC_INVALID)
		return drop_invalid(ctx);
	if (mode == QUIC_MODE_OPAQUE)
		return select_opaque(ctx, cpu, room_of(cpu)->header);
	if (mode == QUIC_MODE_NGINX && pass_to(ctx, cookie_slot(room_of(again(cpu)))))
		return SK_PASS;
	if (mode == QUIC_MODE_REGISTERED && pass_to(ctx, dcid_slot(again(cpu), length)))
		return SK_PASS;
	return select_unknown(ctx);
}

/* Functions of their own, so that what they spill is no cost of the programs below. */
__noinline int quic_lb_rest(struct sk_reuseport_md *ctx)
{
	return select_rest(ctx, QUIC_MODE_LB);
}

__noinline int quic_lb_plain_rest(struct sk_reuseport_md *ctx)
{
	return select_rest(ctx, QUIC_MODE_LB_PLAIN);
}

__noinline int registered_rest(struct sk_reuseport_md *ctx)
{
	return select_rest(ctx, QUIC_MODE_REGISTERED);
}

__noinline int nginx_rest(struct sk_reuseport_md *ctx)
{
	return select_rest(ctx, QUIC_MODE_NGINX);
}

/* One of these programs is loaded. */

SEC("sk_reuseport/migrate")
int quic_lb(struct sk_reuseport_md *ctx)
{
	return pass_in_place(ctx, QUIC_MODE_LB) ? SK_PASS : quic_lb_rest(ctx);
}

SEC("sk_reuseport/migrate")
int quic_lb_plain(struct sk_reuseport_md *ctx)
{
	return pass_in_place(ctx, QUIC_MODE_LB_PLAIN) ? SK_PASS : quic_lb_plain_rest(ctx);
}

SEC("sk_reuseport/migrate")
int registered(struct sk_reuseport_md *ctx)
{
	return pass_registered(ctx) ? SK_PASS : registered_rest(ctx);
}

SEC("sk_reuseport/migrate")
int nginx(struct sk_reuseport_md *ctx)
{
	return pass_nginx(ctx) ? SK_PASS : nginx_rest(ctx);
}

SEC("sk_reuseport/migrate")
int opaque(struct sk_reuseport_md *ctx)
{
	return select_rest(ctx, QUIC_MODE_OPAQUE);
}

char _license[] SEC("license") = "Dual BSD/GPL";
