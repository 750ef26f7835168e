/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What the QUIC program and the daemon must agree on, beside layout.h: which connection IDs are
 * ours, what is remembered of others, and how both are hashed. Compiled on both sides, so that the
 * daemon can say where a packet would go.
 */
#pragma once

#include "layout.h"
#include "quic_header.h"
#include "quic_lb.h"

/*
 * Our own IDs (modes quic-lb and quic-lb-plain): one octet, a server ID of host ID (2 octets), zero
 * (2) and slot (2), and a nonce. 16 octets of plaintext are one AES block.
 */
#define QUIC_SERVER_ID_LENGTH 6
#define QUIC_NONCE_LENGTH 10
#define QUIC_CID_LENGTH (1 + QUIC_SERVER_ID_LENGTH + QUIC_NONCE_LENGTH)

/* The server ID of a slot, as it stands in an ID. */
static __always_inline void quic_server_id(
	__u16 host_id, __u16 slot, __u8 ret[QUIC_SERVER_ID_LENGTH])
{
	ret[0] = host_id >> 8;
	ret[1] = host_id & 0xff;
	ret[2] = ret[3] = 0;
	ret[4] = slot >> 8;
	ret[5] = slot & 0xff;
}

#define QUIC_ROTATIONS 8   /* of three bits; QUIC_LB_UNROUTABLE is never valid */
#define QUIC_CID_LENGTHS 4 /* different lengths of registered IDs on one listener */
#define QUIC_CID_OCTETS 20 /* longest connection ID of versions 1 and 2, RFC 9000 section 17.2 */

/* Octets of an unknown server's ID that are looked at: all of a longer one is not needed. */
#define QUIC_PREFIX_LONG 8
#define QUIC_PREFIX_SHORT 4

/* Modes, by the values of enum cid_mode; each has a program of its own. */
#define QUIC_MODE_LB 1
#define QUIC_MODE_LB_PLAIN 2
#define QUIC_MODE_REGISTERED 3
#define QUIC_MODE_NGINX 4
#define QUIC_MODE_OPAQUE 5

/* How many octets a connection ID has in a short header of this mode; 0: not known. */
static __always_inline __u8 quic_short_dcid_length(__u32 mode)
{
	if (mode == QUIC_MODE_LB || mode == QUIC_MODE_LB_PLAIN)
		return QUIC_CID_LENGTH;
	return mode == QUIC_MODE_NGINX ? QUIC_CID_OCTETS : 0;
}

/* Does a packet of this kind begin a connection? An unknown version gets Version Negotiation. */
static __always_inline int quic_begins_connection(__u32 kind)
{
	return kind == QUIC_INITIAL || kind == QUIC_0RTT || kind == QUIC_UNKNOWN_VERSION;
}

/* Read-only data, set before loading. */
struct quic_settings {
	__u32 cid_cache_mask;  /* sets of the cache less one */
	__u32 dcid_cache_mask; /* sets of that of registered IDs less one */
};

/* Random, one a group, so that nobody outside can choose what collides. */
struct quic_hash_key {
	union {
		__u32 word[6];
		__u64 half[3];
	};
};

/* Written by the daemon, read by the program. */
struct quic_state {
	__u32 server;    /* the first four octets of our server IDs: host ID << 16 */
	__u32 rotations; /* bit i: IDs of config rotation i are decoded */
	__u8 n_cid_lengths;
	__u8 cid_length[QUIC_CID_LENGTHS]; /* registered: lengths that a short header may have */
	__u8 reserved[3];
	__u64 dcid_mask[3]; /* registered: octets of an ID of cid_length[0], as quic_hash() has them
			     */
	struct quic_hash_key hash_key;
	struct quic_lb_config config[QUIC_ROTATIONS];
};

/*
 * The cache of decrypted IDs: one word an entry, of which 48 bits are a keyed hash of the ID and 16
 * the slot. One store writes it, so it needs no lock. An ID that is not ours matches an entry once
 * in 2^48, and then goes to a worker, as once in 2^32 it would after decryption.
 *
 * Two words a set, in one cache line: a new one goes to the first place, what was there to the
 * second. So a set remembers the last two, and half of the memory misses as rarely as single
 * entries would.
 */
#define CID_CACHE_SLOT 0xffffULL
#define CID_CACHE_WAYS 2

struct cid_set {
	__u64 word[CID_CACHE_WAYS];
};

/* Place in the cache by the low bits, check by the upper 48. rotation: of the ID's first octet. */
static __always_inline __u64 cid_cache_hash(
	const struct quic_hash_key *key, __u64 word0, __u64 word1, __u32 rotation)
{
	__u64 hash = (word0 ^ rotation ^ key->half[0]) * 0x9e3779b97f4a7c15ULL;

	hash = (hash ^ hash >> 32) + word1;
	hash = (hash ^ key->half[1]) * 0xd6e8feb86659fd93ULL;
	return hash ^ hash >> 32;
}

/* A registered ID. */
struct dcid_key {
	__u8 octet[QUIC_CID_OCTETS]; /* zero behind its end */
	__u8 reserved[3];
	__u8 length;
};

/*
 * What stands before the map of registered IDs: words as in the cache of decrypted IDs, in sets of
 * one cache line. Written by the daemon alone. An ID for which there is no room is found in the
 * map.
 */
#define DCID_CACHE_WAYS 8

struct dcid_set {
	__u64 word[DCID_CACHE_WAYS];
};

/*
 * NH of UMAC (RFC 4418 section 5.2.2) over 24 octets, then a mixing that is no part of it. Two
 * different inputs collide once in 2^32 under a key that is not known.
 */
static __always_inline __u64 quic_hash(
	const struct quic_hash_key *key, __u64 word0, __u64 word1, __u64 word2)
{
	__u64 hash;

	hash = (__u64)((__u32)word0 + key->word[0]) * ((__u32)(word0 >> 32) + key->word[1]);
	hash += (__u64)((__u32)word1 + key->word[2]) * ((__u32)(word1 >> 32) + key->word[3]);
	hash += (__u64)((__u32)word2 + key->word[4]) * ((__u32)(word2 >> 32) + key->word[5]);
	hash ^= hash >> 32;
	hash *= 0x9e3779b97f4a7c15ULL;
	return hash ^ hash >> 29;
}

/* What is hashed, in the upper octets of word2, where no connection ID reaches. */
#define QUIC_HASH_CID(length) ((__u64)(length) << 48)
#define QUIC_HASH_PREFIX(length) ((__u64)1 << 56 | (__u64)(length) << 48)
#define QUIC_HASH_FLOW ((__u64)2 << 56) /* client's address, and its port in the low octets */

#ifndef __bpf__
/* Of a whole connection ID; of a longer one, of a version that is not known, the beginning. */
static inline __u64 quic_cid_hash(const struct quic_hash_key *key, const __u8 *cid, __u32 length)
{
	__u64 word[3] = {0};

	if (length)
		__builtin_memcpy(word, cid, length > QUIC_CID_OCTETS ? QUIC_CID_OCTETS : length);
	return quic_hash(key, word[0], word[1], word[2] | QUIC_HASH_CID(length));
}
#endif

/* Of a handshake: hash of the client's address, and of its source connection ID. */
static __always_inline __u64 quic_hash_handshake(__u64 address, __u64 scid)
{
	return (address << 1 | address >> 63) + scid;
}

/* Place of a hash in the flow map, and in the listener map. */
static __always_inline __u32 quic_flow_tag(__u64 hash)
{
	return (__u32)(hash >> 32) | 1;
}

static __always_inline __u32 quic_flow_set(__u64 hash)
{
	return (__u32)hash;
}

/* Not the low 32 bits alone: those choose the set, and the table takes the upper bits of these. */
static __always_inline __u32 quic_listener_hash(__u64 hash)
{
	return (__u32)(hash >> 24);
}
