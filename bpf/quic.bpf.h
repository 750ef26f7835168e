/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What the programs of QUIC listeners have in common: how a packet is read, and whom a connection
 * ID names.
 *
 * Every packet is read in a window of QUIC_WINDOW octets, in place where they stand together.
 */
#pragma once

#define QUIC_LB_UNALIGNED
#include <bpf/bpf_endian.h>

#include "flow.bpf.h"
#include "quic_layout.h"

#define UDP_HEADER 8

const volatile struct quic_settings settings SEC(".rodata.settings");

struct quic_state quic_state SEC(".data.quic");

#ifdef SHARED
struct share_state share_state SEC(".data.share");

/* An ID of this service, of a worker that is gone; in place of a slot. */
#define SLOT_GONE 0x10000u

static __always_inline __u32 rotation_service(__u32 rotation)
{
	return share_state.rotation_service[rotation & (QUIC_ROTATIONS - 1)] & (SHARE_KEYS - 1);
}
#endif

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

/* What group_cpu.room is used for. */
struct quic_room {
	__u8 window[QUIC_WINDOW + 8]; /* the beginning of the datagram, zeros after its end */
	union {                       /* an ID as it stands in memory, zeros behind its end */
		struct dcid_key dcid;
		__u64 word[3];
	};
	__u64 address[2]; /* the client's */
	__u8 scid[1 + QUIC_CID_OCTETS + 4];
	__u16 port; /* the client's, in network byte order */
	__u32 number;
	__u64 hash; /* of the whole ID */
	struct quic_header header;
	__u64 block[2]; /* of an encrypted ID */
	struct quic_lb_scratch lb;
};
_Static_assert(sizeof(struct quic_room) <= sizeof(((struct group_cpu *)0)->room), "room");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1); /* quic-lb: set before loading, a power of two */
	__type(key, __u32);
	__type(value, struct cid_set);
} cid_cache SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* registered: set before loading */
	__type(key, struct dcid_key);
	__type(value, __u32);
} dcid_map SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1); /* registered: set before loading, a power of two */
	__type(key, __u32);
	__type(value, struct dcid_set);
} dcid_cache SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* nginx: set before loading */
	__type(key, __u64);
	__type(value, __u32);
} cookie_map SEC(".maps");

static __always_inline struct quic_room *room_of(struct group_cpu *cpu)
{
	return (struct quic_room *)cpu->room;
}

/* ---- Our own IDs ---- */

/* Slot of a decrypted or plain server ID, the upper octets of word; INDEX_NONE: not one of ours. */
static __always_inline __u32 slot_of_server_id(__u64 word)
{
	__u32 slot = (word >> 16) & 0xffff;

	return (__u32)(word >> 32) == quic_state.server && slot < SLOT_COUNT ? slot : INDEX_NONE;
}

/*
 * The octets of the ID behind its first one, 16 at least, in a window where all that an ID of
 * QUIC_CID_OCTETS can reach is readable. NULL: no valid ID of ours. *rotation is its first three
 * bits.
 */
static __always_inline const __u8 *own_id(const __u8 *p, __u32 *rotation)
{
	const __u8 *short_dcid = p;

	/* Two pointers, so that the compiler makes no variable offset of 6 and 1. */
	asm volatile("" : "+r"(short_dcid));
	if (p[0] & 0x80) {
		if (p[5] < QUIC_CID_LENGTH || p[5] > QUIC_CID_OCTETS)
			return NULL;
		p += 7;
	} else {
		p = short_dcid + 2;
	}
	*rotation = *(p - 1) >> 5;
	return quic_state.rotations >> *rotation & 1 ? p : NULL;
}

/*
 * Decrypts the ID of which room->block has the two words, and keeps its slot in the cache, where
 * cpu->key says.
 */
__noinline __u32 decrypt_slot(__u32 rotation, __u64 check)
{
	struct group_cpu *cpu = this_cpu();
	struct quic_lb_words words;
	struct quic_room *room;
	struct cid_set *set;
	__u32 slot;

	if (!cpu)
		return INDEX_NONE;
	room = room_of(cpu);
	words.word0 = room->block[0];
	words.word1 = room->block[1];
	quic_lb_decrypt_single(
		&quic_state.config[rotation & (QUIC_ROTATIONS - 1)], &words, &room->lb);
	slot = slot_of_server_id(words.word0);
	if (slot == INDEX_NONE)
		return INDEX_NONE;
#ifdef SHARED
	/* A key belongs to one service. What names another one's slot is none of that one's IDs,
	 * and does not get into the cache. */
	if (service_of(slot) != rotation_service(rotation))
		return SLOT_GONE | rotation_service(rotation);
#endif
	set = bpf_map_lookup_elem(&cid_cache, &again(cpu)->key);
	if (set) {
		set->word[1] = set->word[0];
		set->word[0] = check | slot;
	}
	return slot;
}

/* The slot in an encrypted ID: from the cache, else by decrypting it. */
static __always_inline __u32 encrypted_slot(const __u8 *id, __u32 rotation)
{
	struct group_cpu *cpu = this_cpu();
	__u64 word0, word1, hash, seen;
	struct cid_set *set;

	if (!cpu)
		return INDEX_NONE;
	word0 = quic_lb_load64(id);
	word1 = quic_lb_load64(id + 8);
	room_of(cpu)->block[0] = word0;
	room_of(cpu)->block[1] = word1;
	hash = cid_cache_hash(&quic_state.hash_key, word0, word1, rotation);
	cpu->key = hash & settings.cid_cache_mask;
	set = bpf_map_lookup_elem(&cid_cache, &cpu->key);
	if (set) {
		seen = *(volatile __u64 *)&set->word[0];
		if ((seen ^ hash) <= CID_CACHE_SLOT)
			return seen & CID_CACHE_SLOT;
		seen = *(volatile __u64 *)&set->word[1];
		if ((seen ^ hash) <= CID_CACHE_SLOT)
			return seen & CID_CACHE_SLOT;
	}
	return decrypt_slot(rotation, hash & ~CID_CACHE_SLOT);
}

/* The slot that one of our own IDs names; INDEX_NONE for other IDs. */
static __always_inline __u32 own_slot(const __u8 *p, __u32 mode)
{
	__u32 rotation = 0;
	const __u8 *id = own_id(p, &rotation);

	if (!id)
		return INDEX_NONE;
	if (mode == QUIC_MODE_LB_PLAIN)
		return slot_of_server_id(quic_lb_load64(id));
	return encrypted_slot(id, rotation);
}

/* ---- IDs of others ---- */

/* To the worker that the packet's ID names. */
static __always_inline bool pass_to(struct sk_reuseport_md *ctx, __u32 slot)
{
	if (slot >= SLOT_COUNT || select_slot(ctx, slot) != 0)
		return false;
	count(service_of(slot), VERDICT_CONNECTION_ID);
	count_slot(slot, false);
	return true;
}

/*
 * The ID at p into room->word; 24 octets at p are readable. One longer than QUIC_CID_OCTETS, of a
 * version that is not known, is cut there.
 */
static __always_inline void load_dcid(struct quic_room *room, const __u8 *p, __u32 length)
{
	volatile __u32 *number = &room->number;
	const volatile __u8 *mask;

	length = length > QUIC_CID_OCTETS ? QUIC_CID_OCTETS : length;
	/* Through memory, so that on no path the verifier knows it: without CAP_PERFMON it refuses
	 * an addition to a pointer whose operand it knows on one path and not on another. */
	*number = 32 - (length & 31);
	mask = keep + (*number & 63);
	room->word[0] = *(const __u64 *)p & *(const volatile __u64 *)mask;
	room->word[1] = *(const __u64 *)(p + 8) & *(const volatile __u64 *)(mask + 8);
	room->word[2] = *(const __u32 *)(p + 16) & *(const volatile __u32 *)(mask + 16);
}

/* Registered: whom the ID in room was registered for. */
static __always_inline __u32 registered_slot(struct quic_room *room, __u32 length)
{
	__u32 *slot;

	room->dcid.length = length;
	slot = bpf_map_lookup_elem(&dcid_map, &room->dcid);
	room->dcid.length = 0;
	return slot ? *slot : INDEX_NONE;
}

/* The same for a short header, which does not say how long its ID is. */
__noinline __u32 registered_short_slot(__u32 length)
{
	struct group_cpu *cpu = this_cpu();
	struct quic_room *room;
	__u32 i, slot;

	if (!cpu)
		return INDEX_NONE;
	room = room_of(cpu);
#pragma unroll
	for (i = 0; i < QUIC_CID_LENGTHS; i++) {
		__u32 cid_length = quic_state.cid_length[i];

		if (cid_length == 0 || length < 1 + cid_length)
			continue;
		load_dcid(room, room->window + 1, cid_length);
		slot = registered_slot(room, cid_length);
		if (slot != INDEX_NONE)
			return slot;
	}
	return INDEX_NONE;
}

/*
 * A short header in one piece, with a registered ID of the length that most have: one cache line,
 * where the map takes two and the copy of the packet. False: it is to be looked for there.
 */
static __always_inline bool pass_registered(struct sk_reuseport_md *ctx)
{
	const __u64 *mask = quic_state.dcid_mask;
	const __u8 *p = ctx->data;
	__u32 slot = INDEX_NONE, i;
	volatile __u64 *word;
	struct group_cpu *cpu;
	struct dcid_set *set;
	__u64 hash;

	if (p + UDP_HEADER + QUIC_WINDOW > (const __u8 *)ctx->data_end)
		return false;
	p += UDP_HEADER;
	if (p[0] & 0x80)
		return false;
	hash = quic_hash(&quic_state.hash_key, *(const __u64 *)(p + 1) & mask[0],
		*(const __u64 *)(p + 9) & mask[1],
		(*(const __u32 *)(p + 17) & mask[2]) | QUIC_HASH_CID(quic_state.cid_length[0]));
	asm volatile("" : "+r"(hash)); /* here, and not with all its parts kept until later */
	cpu = this_cpu();
	if (!cpu)
		return false;
	cpu->key = hash & settings.dcid_cache_mask;
	set = bpf_map_lookup_elem(&dcid_cache, &cpu->key);
	if (!set)
		return false;
	word = set->word;
#pragma unroll
	for (i = 0; i < DCID_CACHE_WAYS; i++) {
		__u64 seen = word[i];

		if ((seen ^ hash) <= CID_CACHE_SLOT) {
			slot = seen & CID_CACHE_SLOT;
			break;
		}
	}
	return pass_to(ctx, slot);
}

static __always_inline __u32 dcid_slot(struct group_cpu *cpu, __u32 length)
{
	if (room_of(cpu)->header.long_header)
		return registered_slot(room_of(cpu), room_of(cpu)->header.dcid_length);
	return registered_short_slot(length);
}

/* nginx: the worker with this socket cookie. */
static __always_inline __u32 cookie_slot(struct quic_room *room)
{
	__u32 *slot;

	room->address[0] = QUIC_LB_BE64(room->word[0]);
	slot = bpf_map_lookup_elem(&cookie_map, &room->address[0]);
	return slot ? *slot : INDEX_NONE;
}

/* A short header in one piece. False: the cookie is nobody's, or it is to be looked at otherwise.
 */
static __always_inline bool pass_nginx(struct sk_reuseport_md *ctx)
{
	const __u8 *p = ctx->data;
	struct group_cpu *cpu;
	__u64 cookie;
	__u32 *slot;

	if (p + UDP_HEADER + QUIC_WINDOW > (const __u8 *)ctx->data_end || p[UDP_HEADER] & 0x80)
		return false;
	cookie = quic_lb_load64(p + UDP_HEADER + 1);
	asm volatile("" : "+r"(cookie));
	cpu = this_cpu();
	if (!cpu)
		return false;
	room_of(cpu)->address[0] = cookie;
	slot = bpf_map_lookup_elem(&cookie_map, &room_of(again(cpu))->address[0]);
	return slot && pass_to(ctx, *slot);
}

static __always_inline int drop_invalid(struct sk_reuseport_md *ctx)
{
	count(GROUP_ROWS - 1, VERDICT_INVALID);
	return select_slot(ctx, INDEX_SINK) == 0 ? SK_PASS : SK_DROP;
}

static __always_inline __u32 select_by_hash(
	struct sk_reuseport_md *ctx, struct group_cpu *cpu, __u64 hash)
{
	return select_flow(ctx, cpu, quic_flow_set(hash), quic_flow_tag(hash));
}

/* ---- The packet ---- */

/* Octets up to the end of the ID, in a packet that may have one of ours. */
static __always_inline __u32 own_header_length(const __u8 *window)
{
	return window[0] & 0x80 ? 6 + window[5] : 1 + QUIC_CID_LENGTH;
}

/* Does the beginning of the payload stand in one piece, where it can be read in place? */
static __always_inline bool is_in_place(const struct sk_reuseport_md *ctx)
{
	return (const __u8 *)ctx->data + UDP_HEADER + QUIC_WINDOW <= (const __u8 *)ctx->data_end;
}

/* The frequent case, in registers alone: an ID of ours in such a packet. */
static __always_inline bool pass_in_place(struct sk_reuseport_md *ctx, __u32 mode)
{
	const __u8 *p = ctx->data;

	if (p + UDP_HEADER + QUIC_WINDOW > (const __u8 *)ctx->data_end)
		return false;
	return pass_to(ctx, own_slot(p + UDP_HEADER, mode));
}

/* Copies the beginning of the payload, zeros behind its end. Returns the length of all of it. */
__noinline int copy_window(struct sk_reuseport_md *ctx, struct group_cpu *cpu)
{
	__u32 length = ctx->len - UDP_HEADER, last;
	volatile __u64 *window;

	if (!cpu)
		return 0;
	window = (volatile __u64 *)room_of(cpu)->window;
	window[0] = 0;
	window[1] = 0;
	window[2] = 0;
	window[3] = 0;
	if (length >= QUIC_WINDOW) {
		bpf_skb_load_bytes(ctx, UDP_HEADER, room_of(cpu)->window, QUIC_WINDOW);
		return (int)length;
	}
	if (!length)
		return 0;
	/* Written so that Linux 6.1 sees that it is not 0: a comparison does not tell it. */
	last = length - 1;
	asm volatile("" : "+r"(last));
	last &= QUIC_WINDOW - 1;
	bpf_skb_load_bytes(ctx, UDP_HEADER, room_of(cpu)->window, last + 1);
	return (int)length;
}

/* Reads the packet in the window: room->header, room->word and room->hash. Returns its kind. */
__noinline int read_window(struct group_cpu *cpu, __u32 length, __u32 short_length)
{
	struct quic_room *room;
	__u32 dcid_length;
	const __u8 *dcid;

	if (!cpu)
		return QUIC_INVALID;
	room = room_of(cpu);
	room->header = quic_read_header(room->window, length, short_length);
	dcid = room->window + 1;
	asm volatile("" : "+r"(dcid)); /* as in own_id() */
	/* A short header does not tell the length: where it is not known, as much as is usual. */
	dcid_length = short_length ? short_length : QUIC_PREFIX_LONG;
	if (room->header.long_header) {
		dcid = room->window + 6;
		dcid_length = room->header.dcid_length;
	}
	load_dcid(room, dcid, dcid_length);
	room->hash = quic_hash(&quic_state.hash_key, room->word[0], room->word[1],
		room->word[2] | QUIC_HASH_CID(dcid_length));
	return room->header.kind;
}

/* All but so many octets at the end of what stands in memory, zeros for those. */
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define WITHOUT_LAST(word, octets) ((word) << 8 * (octets) >> 8 * (octets))
#else
#define WITHOUT_LAST(word, octets) ((word) >> 8 * (octets) << 8 * (octets))
#endif

/*
 * A packet that begins a connection, in a datagram of one piece and with an ID of 8 octets or more
 * (RFC 9000 section 7.2): most of what no ID of ours decides. Read where it stands, as
 * read_window() reads it: room->header.kind and room->hash. False: something else.
 */
static __always_inline bool begins_in_place(struct sk_reuseport_md *ctx, struct group_cpu *cpu)
{
	const __u8 *p = ctx->data;
	__u64 word1 = 0, hash;
	__u32 word2 = 0, length, kind;

	if (p + UDP_HEADER + QUIC_WINDOW > (const __u8 *)ctx->data_end)
		return false;
	p += UDP_HEADER;
	length = p[5];
	if (!(p[0] & 0x80) || length < 8 || length > QUIC_CID_OCTETS)
		return false;
	kind = quic_long_kind(p[0], bpf_ntohl(*(const __u32 *)(p + 1)));
	if (!quic_begins_connection(kind))
		return false;
	if (length > 8) {
		word1 = *(const __u64 *)(p + 14);
		if (length < 16)
			word1 = WITHOUT_LAST(word1, (16 - length) & 7);
	}
	if (length > 16) {
		word2 = *(const __u32 *)(p + 22);
		word2 = WITHOUT_LAST(word2, (20 - length) & 3);
	}
	hash = quic_hash(&quic_state.hash_key, *(const __u64 *)(p + 6), word1,
		word2 | QUIC_HASH_CID(length));
	asm volatile("" : "+r"(hash)); /* here, and not with all its parts kept until later */
	room_of(cpu)->hash = hash;
	room_of(cpu)->header.kind = kind;
	return true;
}
