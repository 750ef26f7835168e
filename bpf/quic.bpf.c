/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * QUIC listeners. A packet goes to the worker that its destination connection ID names: read from
 * the ID itself (quic-lb), or looked up (registered, nginx), or learned (opaque). An ID that names
 * nobody is either the client's own choice, so a handshake: the flow map keeps its datagrams, 0-RTT
 * and retransmissions together while the listener map changes; or it belongs to a connection that
 * is lost: an active worker gets it and answers with a stateless reset.
 *
 * There is a program for each mode, and a group loads one.
 * Every packet is read in a window of QUIC_WINDOW octets, in place where they stand together.
 */
#define QUIC_LB_UNALIGNED
#include <bpf/bpf_endian.h>

#include "flow.bpf.h"
#include "quic_layout.h"

#define UDP_HEADER 8
#define IPV4_SOURCE 12 /* where the address stands in the IP header */
#define IPV6_SOURCE 8
#define ETHERTYPE_IPV6 0x86dd

const volatile struct quic_settings settings SEC(".rodata.settings");

struct quic_state quic_state SEC(".data.quic");

/* For octets 0 .. length - 1 of an ID: eight at a time from keep + 32 - length. */
const volatile __u8 keep[96] SEC(".rodata.keep") = {
	0xff,
	0xff,
	0xff,
	0xff,
	0xff,
	0xff,
	0xff,
	0xff,
	0xff,
	0xff,
	0xff,
	0xff,
	0xff,
	0xff,
	0xff,
	0xff,
	0xff,
	0xff,
	0xff,
	0xff,
	0xff,
	0xff,
	0xff,
	0xff,
	0xff,
	0xff,
	0xff,
	0xff,
	0xff,
	0xff,
	0xff,
	0xff,
};

/* Per CPU: room outside the stack. */
struct quic_scratch {
	__u8 window[QUIC_WINDOW + 8];
	union {
		struct dcid_key key;
		__u64 word[3];
	};
	__u64 address[2];
	__u8 scid[1 + QUIC_CID_OCTETS + 4];
	__u16 port;
	__u32 number;
	struct quic_lb_scratch lb;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct quic_scratch);
} quic_scratch SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1); /* quic-lb: set before loading, a power of two */
	__type(key, __u32);
	__type(value, struct cid_cache_entry);
} cid_cache SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* registered: set before loading */
	__type(key, struct dcid_key);
	__type(value, __u32);
} dcid_map SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* nginx: set before loading */
	__type(key, __u64);
	__type(value, __u32);
} cookie_map SEC(".maps");

static __always_inline struct quic_scratch *scratch_of_cpu(void)
{
	return bpf_map_lookup_elem(&quic_scratch, index_key(0));
}

/*
 * The beginning of a datagram that is short or lies in pieces, copied; zeros behind its end. NULL:
 * there is nothing to read.
 */
__noinline int copy_window(struct sk_reuseport_md *ctx, struct quic_scratch *scratch)
{
	__u32 length = ctx->len - UDP_HEADER;
	volatile __u64 *word;

	if (!scratch)
		return -1;
	word = (volatile __u64 *)scratch->window;
	word[0] = 0;
	word[1] = 0;
	word[2] = 0;
	word[3] = 0;
	if (length >= QUIC_WINDOW)
		return bpf_skb_load_bytes(ctx, UDP_HEADER, scratch->window, QUIC_WINDOW);
	length &= QUIC_WINDOW - 1;
	if (length == 0)
		return -1;
	return bpf_skb_load_bytes(ctx, UDP_HEADER, scratch->window, length);
}

/* Slot of a decrypted or plain server ID, the upper octets of word; INDEX_NONE: not one of ours. */
static __always_inline __u32 slot_of_server_id(__u64 word)
{
	__u32 slot = (word >> 16) & 0xffff;

	return (__u32)(word >> 32) == quic_state.server && slot < SLOT_COUNT ? slot : INDEX_NONE;
}

__noinline __u32 decrypt_slot(
	struct quic_scratch *scratch, __u32 rotation, __u64 word0, __u64 word1)
{
	struct quic_lb_words words = {.word0 = word0, .word1 = word1};

	if (!scratch)
		return INDEX_NONE;
	quic_lb_decrypt_single(
		&quic_state.config[rotation & (QUIC_ROTATIONS - 1)], &words, &scratch->lb);
	return slot_of_server_id(words.word0);
}

/* The slot in an encrypted ID: from the cache, else by decrypting it. */
static __always_inline __u32 encrypted_slot(
	struct group_counters *counters, __u32 rotation, __u64 word0, __u64 word1)
{
	__u64 hash = (word0 ^ rotation) * 0x9e3779b97f4a7c15ULL + word1;
	__u64 check = (hash * 0xd6e8feb86659fd93ULL) >> 16;
	struct cid_cache_entry *entry;
	struct quic_scratch *scratch;
	__u32 slot;

	counters->key = (hash >> 32) & settings.cid_cache_mask;
	entry = bpf_map_lookup_elem(&cid_cache, &counters->key);
	if (!entry)
		return INDEX_NONE;
	if (entry->word[0] == word0 && entry->word[1] == word1 && entry->slot >> 16 == check)
		return entry->slot & 0xffff;
	scratch = scratch_of_cpu();
	if (!scratch)
		return INDEX_NONE;
	slot = decrypt_slot(scratch, rotation, word0, word1);
	if (slot < SLOT_COUNT) {
		entry->word[0] = word0;
		entry->word[1] = word1;
		entry->slot = check << 16 | slot;
	}
	return slot;
}

/* The slot that one of our own IDs names; INDEX_NONE for other IDs. */
static __always_inline __u32 own_slot(
	struct group_counters *counters, const __u8 *p, __u32 length, __u32 mode)
{
	const __u8 *short_dcid = p;
	__u64 word0, word1;
	__u32 rotation;

	/* Two pointers, so that the compiler makes no variable offset of 6 and 1. */
	asm volatile("" : "+r"(short_dcid));
	if (p[0] & 0x80) {
		__u32 dcid_length = p[5];

		if (dcid_length < QUIC_CID_LENGTH || dcid_length > QUIC_CID_OCTETS ||
			length < 6 + dcid_length)
			return INDEX_NONE;
		rotation = p[6] >> 5;
		word0 = quic_lb_load64(p + 7);
		word1 = quic_lb_load64(p + 15);
	} else {
		if (length < 1 + QUIC_CID_LENGTH)
			return INDEX_NONE;
		rotation = short_dcid[1] >> 5;
		word0 = quic_lb_load64(short_dcid + 2);
		word1 = quic_lb_load64(short_dcid + 10);
	}
	if (!(quic_state.rotations >> rotation & 1))
		return INDEX_NONE;
	if (mode == QUIC_MODE_LB_PLAIN)
		return slot_of_server_id(word0);
	return encrypted_slot(counters, rotation, word0, word1);
}

static __always_inline bool pass_to(
	struct sk_reuseport_md *ctx, struct group_counters *counters, __u32 slot)
{
	if (slot >= SLOT_COUNT || slot == listener_map.vacant || select_index(ctx, slot) != 0)
		return false;
	counters->verdict[VERDICT_CONNECTION_ID]++;
	count_slot(slot, false);
	return true;
}

/*
 * The ID at p as words as they stand in memory, zero behind its end; 24 octets at p are readable.
 * An ID longer than QUIC_CID_OCTETS, of a version that is not known, is cut there.
 */
static __always_inline void load_dcid(struct quic_scratch *scratch, const __u8 *p, __u32 length)
{
	volatile __u32 *number = &scratch->number;
	const volatile __u8 *mask;

	length = length > QUIC_CID_OCTETS ? QUIC_CID_OCTETS : length;
	/* Through memory, so that on no path the verifier knows it: see count_new(). */
	*number = 32 - (length & 31);
	mask = keep + (*number & 63);
	scratch->word[0] = *(const __u64 *)p & *(const volatile __u64 *)mask;
	scratch->word[1] = *(const __u64 *)(p + 8) & *(const volatile __u64 *)(mask + 8);
	scratch->word[2] = *(const __u32 *)(p + 16) & *(const volatile __u32 *)(mask + 16);
}

/* Registered: whom the ID in scratch was registered for. */
static __always_inline __u32 registered_slot(struct quic_scratch *scratch, __u32 length)
{
	__u32 *slot;

	scratch->key.length = length;
	slot = bpf_map_lookup_elem(&dcid_map, &scratch->key);
	scratch->key.length = 0;
	return slot ? *slot : INDEX_NONE;
}

/* The same for a short header, which does not say how long its ID is. */
__noinline __u32 registered_short_slot(struct quic_scratch *scratch, __u32 length)
{
	__u32 i, slot;

	if (!scratch)
		return INDEX_NONE;
#pragma unroll
	for (i = 0; i < QUIC_CID_LENGTHS; i++) {
		__u32 cid_length = quic_state.cid_length[i];

		if (cid_length == 0 || length < 1 + cid_length)
			continue;
		load_dcid(scratch, scratch->window + 1, cid_length);
		slot = registered_slot(scratch, cid_length);
		if (slot != INDEX_NONE)
			return slot;
	}
	return INDEX_NONE;
}

/* nginx: the worker with this socket cookie. */
static __always_inline __u32 cookie_slot(struct quic_scratch *scratch)
{
	__u32 *slot;

	scratch->word[0] = QUIC_LB_BE64(scratch->word[0]);
	slot = bpf_map_lookup_elem(&cookie_map, &scratch->word[0]);
	scratch->word[0] = QUIC_LB_BE64(scratch->word[0]);
	return slot ? *slot : INDEX_NONE;
}

/* Does a packet of this kind begin a connection? An unknown version gets Version Negotiation. */
static __always_inline bool begins_connection(__u8 kind)
{
	return kind == QUIC_INITIAL || kind == QUIC_0RTT || kind == QUIC_UNKNOWN_VERSION;
}

static __always_inline __u64 hash_dcid(const struct quic_scratch *scratch, __u32 length)
{
	return quic_hash(&quic_state.hash_key, scratch->word[0], scratch->word[1],
		scratch->word[2] | QUIC_HASH_CID(length));
}

/* The slot that the flow map has at this place and that took the packet, or INDEX_NONE. */
static __always_inline __u32 pass_by_flow(struct sk_reuseport_md *ctx,
	struct group_counters *counters, const struct flow_place *place)
{
	__u32 slot = flow_slot(place);

	if (slot == INDEX_NONE || select_index(ctx, slot) != 0)
		return INDEX_NONE;
	flow_refresh(place, slot);
	counters->verdict[VERDICT_FLOW]++;
	count_slot(slot, false);
	return slot;
}

static __always_inline int drop_invalid(
	struct sk_reuseport_md *ctx, struct group_counters *counters)
{
	__sync_fetch_and_add(&counters->verdict[VERDICT_INVALID], 1);
	return select_index(ctx, INDEX_SINK) == 0 ? SK_PASS : SK_DROP;
}

/* A packet of a connection that nobody has: an active worker answers it. */
static __always_inline int select_stray(
	struct sk_reuseport_md *ctx, struct group_counters *counters, __u64 hash)
{
	return verdict_of(select_new(ctx, quic_listener_hash(hash), counters, ARRIVAL_STRAY));
}

/* An ID that names nobody. */
static __noinline int select_unknown(struct sk_reuseport_md *ctx, struct group_counters *counters,
	struct quic_scratch *scratch, __u32 kind, __u32 dcid_length)
{
	__u64 hash = hash_dcid(scratch, dcid_length);
	struct flow_place place = {0};
	__u32 slot;

	if (!begins_connection(kind))
		return select_stray(ctx, counters, hash);
	if (flow_find(&place, counters, quic_flow_set(hash), quic_flow_tag(hash)) &&
		pass_by_flow(ctx, counters, &place) != INDEX_NONE)
		return SK_PASS;
	slot = select_new(ctx, quic_listener_hash(hash), counters, ARRIVAL_NEW);
	if (place.set)
		flow_remember(&place, slot_of(slot));
	return verdict_of(slot);
}

/* How many octets a connection ID has in a short header of this mode; 0: not known. */
static __always_inline __u8 short_dcid_length(__u32 mode)
{
	if (mode == QUIC_MODE_LB || mode == QUIC_MODE_LB_PLAIN)
		return QUIC_CID_LENGTH;
	return mode == QUIC_MODE_NGINX ? QUIC_CID_OCTETS : 0;
}

/*
 * The client's address and port, from the headers before and of UDP: an IPv4 one as four octets, on
 * a socket for both kinds as well. 0, or a negative errno.
 */
__noinline int load_address(struct sk_reuseport_md *ctx, struct quic_scratch *scratch)
{
	int result;

	if (!scratch)
		return -1;
	*(volatile __u64 *)&scratch->address[0] = 0;
	*(volatile __u64 *)&scratch->address[1] = 0;
	if (ctx->eth_protocol == bpf_htons(ETHERTYPE_IPV6))
		result = bpf_skb_load_bytes_relative(ctx, IPV6_SOURCE, scratch->address,
			sizeof(scratch->address), BPF_HDR_START_NET);
	else
		result = bpf_skb_load_bytes_relative(
			ctx, IPV4_SOURCE, scratch->address, 4, BPF_HDR_START_NET);
	if (result < 0)
		return result;
	return bpf_skb_load_bytes(ctx, 0, &scratch->port, sizeof(scratch->port));
}

/*
 * The source connection ID of a long header, into scratch->word; returns its length. It stands
 * behind the destination's, which may be anywhere. Zeros where the packet is too short for one.
 */
__noinline __u32 load_scid(struct sk_reuseport_md *ctx, struct quic_scratch *scratch, __u32 offset)
{
	__u32 length;

	if (!scratch)
		return 0;
	*(volatile __u8 *)scratch->scid = 0;
	bpf_skb_load_bytes(ctx, UDP_HEADER + offset, scratch->scid, 1 + QUIC_CID_OCTETS);
	length = *(volatile __u8 *)scratch->scid;
	length = length > QUIC_CID_OCTETS ? QUIC_CID_OCTETS : length;
	load_dcid(scratch, scratch->scid + 1, length);
	return length;
}

/* Remembers that the hash belongs to the slot. */
static __always_inline void note_flow(struct group_counters *counters, __u64 hash, __u32 slot)
{
	struct flow_place place = {0};

	if (!flow_find(&place, counters, quic_flow_set(hash), quic_flow_tag(hash)))
		return;
	if (flow_slot(&place) == slot)
		flow_refresh(&place, slot);
	else
		flow_remember(&place, slot);
}

/* The slot that the flow map has for this hash and that took the packet, or INDEX_NONE. */
static __always_inline __u32 select_by_flow(
	struct sk_reuseport_md *ctx, struct group_counters *counters, __u64 hash)
{
	struct flow_place place = {0};

	if (!flow_find(&place, counters, quic_flow_set(hash), quic_flow_tag(hash)))
		return INDEX_NONE;
	return pass_by_flow(ctx, counters, &place);
}

/* Hash of the first octets of the ID at dcid; prefix is QUIC_PREFIX_LONG or _SHORT. */
static __always_inline __u64 hash_prefix(
	struct quic_scratch *scratch, const __u8 *dcid, __u32 prefix)
{
	load_dcid(scratch, dcid, prefix);
	return quic_hash(&quic_state.hash_key, scratch->word[0], 0, QUIC_HASH_PREFIX(prefix));
}

/* Opaque: the ID that the server has chosen, learned from what the client sends to it. */
static __noinline int learn_dcid(
	struct group_counters *counters, struct quic_scratch *scratch, __u32 slot)
{
	__u32 length = scratch->window[5], prefix;

	if (length < QUIC_PREFIX_SHORT)
		return 0;
	prefix = length >= QUIC_PREFIX_LONG ? QUIC_PREFIX_LONG : QUIC_PREFIX_SHORT;
	if (!quic_state.prefix)
		quic_state.prefix = prefix;
	note_flow(counters, hash_prefix(scratch, scratch->window + 6, prefix), slot);
	return 0;
}

/*
 * Opaque, long header. All that a client sends in one handshake has one source connection ID (RFC
 * 9000 section 7.2), whatever the destination's becomes. The ID that the server has chosen is
 * learned from the client's Handshake packet.
 */
static __noinline int select_opaque_long(struct sk_reuseport_md *ctx,
	struct group_counters *counters, struct quic_scratch *scratch, __u64 address, __u32 kind)
{
	__u32 length = load_scid(ctx, scratch, 6 + scratch->window[5]), slot;
	__u64 hash = quic_hash_handshake(
		address, quic_hash(&quic_state.hash_key, scratch->word[0], scratch->word[1],
				 scratch->word[2] | QUIC_HASH_CID(length)));

	slot = select_by_flow(ctx, counters, hash);
	if (slot == INDEX_NONE) {
		if (!begins_connection(kind))
			return select_stray(ctx, counters, hash);
		slot = select_new(ctx, quic_listener_hash(hash), counters, ARRIVAL_NEW);
		if (slot == INDEX_NONE)
			return SK_DROP;
		slot = slot_of(slot);
		note_flow(counters, hash, slot);
	}
	note_flow(counters, address, slot);
	if (kind == QUIC_HANDSHAKE)
		learn_dcid(counters, scratch, slot);
	return SK_PASS;
}

/*
 * Opaque, short header: by an ID that was learned, else by the client's address. Then the client
 * goes on with an ID that nobody has seen, and it is learned.
 */
static __noinline int select_opaque_short(struct sk_reuseport_md *ctx,
	struct group_counters *counters, struct quic_scratch *scratch, __u64 address)
{
	__u32 prefix = quic_state.prefix, slot;
	__u64 hash = 0;

	if (prefix) {
		hash = hash_prefix(scratch, scratch->window + 1, prefix);
		slot = select_by_flow(ctx, counters, hash);
		if (slot != INDEX_NONE) {
			note_flow(counters, address, slot);
			return SK_PASS;
		}
	}
	slot = select_by_flow(ctx, counters, address);
	if (slot == INDEX_NONE)
		return select_stray(ctx, counters, address);
	if (prefix)
		note_flow(counters, hash, slot);
	return SK_PASS;
}

/* Nothing is known of the server's IDs but what can be learned. */
static __always_inline int select_opaque(struct sk_reuseport_md *ctx,
	struct group_counters *counters, struct quic_scratch *scratch, struct quic_header header)
{
	__u64 address;

	if (load_address(ctx, scratch) < 0)
		return drop_invalid(ctx, counters);
	address = quic_hash(&quic_state.hash_key, scratch->address[0], scratch->address[1],
		QUIC_HASH_FLOW | scratch->port);
	if (header.long_header)
		return select_opaque_long(ctx, counters, scratch, address, header.kind);
	return select_opaque_short(ctx, counters, scratch, address);
}

/* All that is not one of our own IDs; the packet is in scratch->window. */
static __always_inline int select_other(struct sk_reuseport_md *ctx,
	struct group_counters *counters, struct quic_scratch *scratch, __u32 length, __u32 mode)
{
	struct quic_header header =
		quic_read_header(scratch->window, length, short_dcid_length(mode));
	const __u8 *dcid = scratch->window + 1;

	if (header.kind == QUIC_INVALID)
		return drop_invalid(ctx, counters);
	if (mode == QUIC_MODE_OPAQUE)
		return select_opaque(ctx, counters, scratch, header);
	asm volatile("" : "+r"(dcid)); /* as in own_slot() */
	if (header.long_header)
		dcid = scratch->window + 6;
	load_dcid(scratch, dcid, header.dcid_length);
	if (mode == QUIC_MODE_NGINX && pass_to(ctx, counters, cookie_slot(scratch)))
		return SK_PASS;
	if (mode == QUIC_MODE_REGISTERED) {
		__u32 slot = header.long_header ? registered_slot(scratch, header.dcid_length)
						: registered_short_slot(scratch, length);

		if (pass_to(ctx, counters, slot))
			return SK_PASS;
	}
	return select_unknown(ctx, counters, scratch, header.kind, header.dcid_length);
}

static __always_inline int select_quic(struct sk_reuseport_md *ctx, __u32 mode)
{
	struct group_counters *counters = bpf_map_lookup_elem(&group_counters, index_key(0));
	struct quic_scratch *scratch = NULL;
	__u32 length = ctx->len - UDP_HEADER;
	const __u8 *p = ctx->data;

	if (!counters)
		return SK_DROP;
	if (p + UDP_HEADER + QUIC_WINDOW <= (const __u8 *)ctx->data_end) {
		p += UDP_HEADER;
	} else {
		scratch = scratch_of_cpu();
		if (!scratch)
			return SK_DROP;
		if (copy_window(ctx, scratch) < 0)
			return drop_invalid(ctx, counters);
		p = scratch->window;
	}
	if ((mode == QUIC_MODE_LB || mode == QUIC_MODE_LB_PLAIN) &&
		pass_to(ctx, counters, own_slot(counters, p, length, mode)))
		return SK_PASS;
	scratch = scratch_of_cpu();
	if (!scratch)
		return SK_DROP;
	((__u64 *)scratch->window)[0] = ((const __u64 *)p)[0];
	((__u64 *)scratch->window)[1] = ((const __u64 *)p)[1];
	((__u64 *)scratch->window)[2] = ((const __u64 *)p)[2];
	((__u64 *)scratch->window)[3] = ((const __u64 *)p)[3];
	return select_other(ctx, counters, scratch, length, mode);
}

/* One of these is loaded. */
#define QUIC_PROGRAM(name, mode)                 \
	SEC("sk_reuseport/migrate")              \
	int name(struct sk_reuseport_md *ctx)    \
	{                                        \
		return select_quic(ctx, (mode)); \
	}

QUIC_PROGRAM(quic_lb, QUIC_MODE_LB)
QUIC_PROGRAM(quic_lb_plain, QUIC_MODE_LB_PLAIN)
QUIC_PROGRAM(registered, QUIC_MODE_REGISTERED)
QUIC_PROGRAM(nginx, QUIC_MODE_NGINX)
QUIC_PROGRAM(opaque, QUIC_MODE_OPAQUE)

char _license[] SEC("license") = "Dual BSD/GPL";
