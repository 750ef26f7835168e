/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The one codec of connection IDs that name a server: draft-ietf-quic-load-balancers-21 (QUIC-LB).
 * Compiled into the BPF program, which decodes, and into the daemon, the library and the tools.
 *
 * A connection ID is a first octet (config rotation in the upper three bits, below them the length
 * of the rest or anything), server ID, nonce, and perhaps octets of the server's own. The two in
 * the middle are called plaintext here; they stand in the clear, or encrypted: by one AES block
 * when they have 16 octets together (section 5.4.1), else by a Feistel network of four passes
 * (5.4.2).
 *
 * Decoding works on three 64-bit words instead of octets: shifts and masks where an array with
 * indexes would need the verifier's trust.
 */
#pragma once

#include <linux/types.h>

#include "aes128.h"

#define QUIC_LB_CID_MAX 20
#define QUIC_LB_CID_MIN 6
#define QUIC_LB_SERVER_ID_MIN 1
#define QUIC_LB_SERVER_ID_MAX 15
#define QUIC_LB_NONCE_MIN 4
#define QUIC_LB_NONCE_MAX 18
#define QUIC_LB_PLAINTEXT_MIN 5
#define QUIC_LB_PLAINTEXT_MAX 19

#define QUIC_LB_ROTATION_MAX 6
#define QUIC_LB_UNROUTABLE 7 /* config rotation of IDs that name no server (section 3) */

struct quic_lb_config {
	__u8 rotation;         /* 0 .. QUIC_LB_ROTATION_MAX */
	__u8 server_id_length; /* 1 .. 15 octets */
	__u8 nonce_length;     /* 4 .. 18 octets, 19 together with the server ID */
	__u8 encrypted;
	__u32 reserved;
	struct aes128_key key;
};

/* Server ID and nonce, big-endian from the top of word[0]: octet i is in word[i / 8]. */
struct quic_lb_words {
	__u64 word0;
	__u64 word1;
	__u64 word2;
};

/* Room to work in, outside the BPF stack. Holds nothing between calls. */
struct quic_lb_scratch {
	union aes128_block block;
	union aes128_block other;
	__u64 left[2];
	__u64 right[2];
	__u64 left_mask[2];
	__u64 right_mask[2];
};

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define QUIC_LB_BE64(x) __builtin_bswap64(x)
#else
#define QUIC_LB_BE64(x) ((__u64)(x))
#endif

/*
 * Eight octets, big-endian. A program whose connection ID lies in a map value or in the packet, not
 * on the stack, may define QUIC_LB_UNALIGNED: the verifier lets it load eight at once.
 */
static __always_inline __u64 quic_lb_load64(const __u8 *p)
{
#if defined(__bpf__) && defined(QUIC_LB_UNALIGNED)
	return QUIC_LB_BE64(*(const __u64 *)p);
#elif defined(__bpf__)
	return (__u64)p[0] << 56 | (__u64)p[1] << 48 | (__u64)p[2] << 40 | (__u64)p[3] << 32 |
	       (__u64)p[4] << 24 | (__u64)p[5] << 16 | (__u64)p[6] << 8 | p[7];
#else
	__u64 value;

	__builtin_memcpy(&value, p, sizeof(value));
	return QUIC_LB_BE64(value);
#endif
}

static __always_inline __u8 quic_lb_rotation(__u8 first)
{
	return first >> 5;
}

/* May an ID of this length, which begins with this octet, be of this configuration? */
static __always_inline int quic_lb_matches(
	const struct quic_lb_config *config, __u8 first, __u32 cid_length)
{
	return quic_lb_rotation(first) == config->rotation &&
	       cid_length > (__u32)config->server_id_length + config->nonce_length;
}

/* Takes what follows the first octet of an ID; QUIC_LB_CID_MAX octets at cid are readable. */
static __always_inline struct quic_lb_words quic_lb_load(const __u8 *cid)
{
	struct quic_lb_words words = {
		.word0 = quic_lb_load64(cid + 1),
		.word1 = quic_lb_load64(cid + 9),
		.word2 = (__u64)cid[17] << 56 | (__u64)cid[18] << 48 | (__u64)cid[19] << 40,
	};

	return words;
}

/* The server ID as a number; server_id_length is 1 .. 8. */
static __always_inline __u64 quic_lb_server_id(struct quic_lb_words words, __u32 server_id_length)
{
	return words.word0 >> ((64 - 8 * server_id_length) & 63);
}

/*
 * What contains AES is a global function in a BPF program: the verifier checks such a function
 * once, by itself, not again on every path that leads to it. It then knows no more of the arguments
 * than their types, so both have to be in memory that can be written.
 */
#ifdef __bpf__
#define QUIC_LB_FUNCTION __attribute__((noinline)) int
#define QUIC_LB_CHECK(config, scratch)       \
	do {                                 \
		if (!(config) || !(scratch)) \
			return 0;            \
	} while (0)
#else
#define QUIC_LB_FUNCTION static inline int
#define QUIC_LB_CHECK(config, scratch) ((void)0)
#endif

/* Single pass: 16 octets, one block. */
QUIC_LB_FUNCTION quic_lb_decrypt_block(
	const struct quic_lb_config *config, struct quic_lb_scratch *scratch)
{
	QUIC_LB_CHECK(config, scratch);
	aes128_decrypt(&config->key, &scratch->block, &scratch->other);
	return 0;
}

static __always_inline void quic_lb_decrypt_single(const struct quic_lb_config *config,
	struct quic_lb_words *words, struct quic_lb_scratch *scratch)
{
	volatile __u64 *block = scratch->block.half;

	block[0] = QUIC_LB_BE64(words->word0);
	block[1] = QUIC_LB_BE64(words->word1);
	quic_lb_decrypt_block(config, scratch);
	words->word0 = QUIC_LB_BE64(block[0]);
	words->word1 = QUIC_LB_BE64(block[1]);
}

/* Octets shift / 8 .. of words, as many as fit in two words. */
static __always_inline __u64 quic_lb_slice(__u64 high, __u64 low, __u32 shift)
{
	return shift ? high << shift | low >> (64 - shift) : high;
}

/*
 * Splits a plaintext of length octets in halves (section 5.4.2.3 step 2): left the first half of
 * its bits, right the second. With an odd length the octet in the middle belongs to both, four bits
 * to each; the four of the other half are zero.
 */
static __always_inline void quic_lb_split(
	struct quic_lb_words words, __u32 length, struct quic_lb_scratch *scratch)
{
	__u32 bits = 4 * length;      /* of a half, 20 .. 76 */
	__u32 shift = length / 2 * 8; /* where the right half begins: 16 .. 72 */
	__u64 mask0 = bits < 64 ? ~(~0ULL >> bits) : ~0ULL;
	__u64 mask1 = bits > 64 ? ~(~0ULL >> (bits - 64)) : 0;
	__u64 right0, right1;

	scratch->left[0] = words.word0 & mask0;
	scratch->left[1] = words.word1 & mask1;
	scratch->left_mask[0] = mask0;
	scratch->left_mask[1] = mask1;

	if (shift < 64) {
		right0 = quic_lb_slice(words.word0, words.word1, shift);
		right1 = quic_lb_slice(words.word1, words.word2, shift);
	} else {
		right0 = quic_lb_slice(words.word1, words.word2, shift - 64);
		right1 = words.word2 << (shift - 64);
	}
	if (length & 1) {
		mask1 = mask0 << 60 | mask1 >> 4;
		mask0 >>= 4;
	}
	scratch->right[0] = right0 & mask0;
	scratch->right[1] = right1 & mask1;
	scratch->right_mask[0] = mask0;
	scratch->right_mask[1] = mask1;
}

/* The reverse of quic_lb_split(). */
static __always_inline struct quic_lb_words quic_lb_join(
	__u32 length, const struct quic_lb_scratch *scratch)
{
	__u32 shift = length / 2 * 8;
	__u64 right0 = scratch->right[0], right1 = scratch->right[1];
	struct quic_lb_words words = {.word0 = scratch->left[0], .word1 = scratch->left[1]};

	if (shift < 64) { /* and never 0 */
		words.word0 |= right0 >> shift;
		words.word1 |= right0 << (64 - shift) | right1 >> shift;
		words.word2 = right1 << (64 - shift);
	} else if (shift == 64) {
		words.word1 |= right0;
		words.word2 = right1;
	} else {
		words.word1 |= right0 >> (shift - 64);
		words.word2 = right0 << (128 - shift) | right1 >> (shift - 64);
	}
	return words;
}

/*
 * One pass of section 5.4.2: AES of one half, expanded to a block with the length and the number of
 * the pass in its last two octets, is added to the other half. Odd passes change the right half.
 * The same for encryption and decryption, which differ in the order alone.
 */
QUIC_LB_FUNCTION quic_lb_pass(const struct quic_lb_config *config, struct quic_lb_scratch *scratch,
	__u32 length, __u32 pass)
{
	volatile __u64 *left = scratch->left, *right = scratch->right;
	volatile __u64 *output = scratch->block.half;
	__u64 odd = 0 - (__u64)(pass & 1), even = ~odd;
	__u64 output0, output1;

	QUIC_LB_CHECK(config, scratch);
	/*
	 * Masks, where a choice between the halves would read better: the compiler would make one
	 * access with an offset of it, which the verifier refuses without CAP_PERFMON.
	 */
	output[0] = QUIC_LB_BE64((left[0] & odd) | (right[0] & even));
	output[1] = QUIC_LB_BE64((left[1] & odd) | (right[1] & even) | length << 8 | pass);
	aes128_encrypt(&config->key, &scratch->block, &scratch->other);
	output0 = QUIC_LB_BE64(output[0]);
	output1 = QUIC_LB_BE64(output[1]);
	right[0] ^= output0 & scratch->right_mask[0] & odd;
	right[1] ^= output1 & scratch->right_mask[1] & odd;
	left[0] ^= output0 & scratch->left_mask[0] & even;
	left[1] ^= output1 & scratch->left_mask[1] & even;
	return 0;
}

/*
 * Undoes the four passes. Without want_nonce it stops before the first one where that has no part
 * in the server ID (section 5.5.2).
 */
static __always_inline void quic_lb_decrypt_four(const struct quic_lb_config *config,
	struct quic_lb_words *words, int want_nonce, struct quic_lb_scratch *scratch)
{
	__u32 length = (__u32)config->server_id_length + config->nonce_length;

	quic_lb_split(*words, length, scratch);
	quic_lb_pass(config, scratch, length, 4);
	quic_lb_pass(config, scratch, length, 3);
	quic_lb_pass(config, scratch, length, 2);
	if (want_nonce || config->server_id_length > config->nonce_length)
		quic_lb_pass(config, scratch, length, 1);
	*words = quic_lb_join(length, scratch);
}

/*
 * Server ID of an ID that quic_lb_matches(), as words, whatever the algorithm. The nonce behind it
 * is right only with want_nonce; octets behind that are undefined.
 */
static __always_inline void quic_lb_decrypt(const struct quic_lb_config *config,
	struct quic_lb_words *words, int want_nonce, struct quic_lb_scratch *scratch)
{
	if (!config->encrypted)
		return;
	if (config->server_id_length + config->nonce_length == AES128_OCTETS)
		quic_lb_decrypt_single(config, words, scratch);
	else
		quic_lb_decrypt_four(config, words, want_nonce, scratch);
}

#ifndef __bpf__

#include <errno.h>
#include <stddef.h>
#include <string.h>

/* For the low bits of the first octet: the length of what follows (section 5.1). */
#define QUIC_LB_SELF_ENCODE_LENGTH (-1)

/*
 * Fills *config. key has AES128_OCTETS octets, or is NULL for IDs in the clear.
 * Errors: -ERANGE, and *config stays as it was.
 */
static inline int quic_lb_configure(struct quic_lb_config *config, unsigned rotation,
	unsigned server_id_length, unsigned nonce_length, const __u8 *key)
{
	if (rotation > QUIC_LB_ROTATION_MAX || server_id_length < QUIC_LB_SERVER_ID_MIN ||
		server_id_length > QUIC_LB_SERVER_ID_MAX || nonce_length < QUIC_LB_NONCE_MIN ||
		nonce_length > QUIC_LB_NONCE_MAX ||
		server_id_length + nonce_length > QUIC_LB_PLAINTEXT_MAX)
		return -ERANGE;
	memset(config, 0, sizeof(*config));
	config->rotation = rotation;
	config->server_id_length = server_id_length;
	config->nonce_length = nonce_length;
	config->encrypted = !!key;
	if (key)
		aes128_expand_key(&config->key, key);
	return 0;
}

static inline size_t quic_lb_cid_length(const struct quic_lb_config *config)
{
	return 1 + (size_t)config->server_id_length + config->nonce_length;
}

static inline void quic_lb_store(__u8 cid[QUIC_LB_CID_MAX], struct quic_lb_words words)
{
	words.word0 = QUIC_LB_BE64(words.word0);
	words.word1 = QUIC_LB_BE64(words.word1);
	words.word2 = QUIC_LB_BE64(words.word2);
	memcpy(cid + 1, &words.word0, 8);
	memcpy(cid + 9, &words.word1, 8);
	memcpy(cid + 17, &words.word2, 3);
}

/*
 * Makes an ID of quic_lb_cid_length() octets; what is behind them in ret_cid becomes zero. The
 * nonce must never have been used under this key. first_bits are the low five bits of the first
 * octet (bits that say nothing should be random), or QUIC_LB_SELF_ENCODE_LENGTH. Returns the
 * length.
 */
static inline size_t quic_lb_encode(const struct quic_lb_config *config, const __u8 *server_id,
	const __u8 *nonce, int first_bits, __u8 ret_cid[QUIC_LB_CID_MAX])
{
	size_t length = quic_lb_cid_length(config) - 1;
	__u8 cid[QUIC_LB_CID_MAX] = {0};
	struct quic_lb_scratch scratch;

	if (first_bits == QUIC_LB_SELF_ENCODE_LENGTH)
		first_bits = length;
	cid[0] = config->rotation << 5 | (first_bits & 0x1f);
	memcpy(cid + 1, server_id, config->server_id_length);
	memcpy(cid + 1 + config->server_id_length, nonce, config->nonce_length);
	if (config->encrypted && length == AES128_OCTETS) {
		memcpy(scratch.block.octet, cid + 1, AES128_OCTETS);
		aes128_encrypt(&config->key, &scratch.block, &scratch.other);
		memcpy(cid + 1, scratch.block.octet, AES128_OCTETS);
	} else if (config->encrypted) {
		quic_lb_split(quic_lb_load(cid), length, &scratch);
		for (unsigned pass = 1; pass <= 4; pass++)
			quic_lb_pass(config, &scratch, length, pass);
		quic_lb_store(cid, quic_lb_join(length, &scratch));
	}
	memcpy(ret_cid, cid, sizeof(cid));
	return length + 1;
}

/*
 * Reads an ID. Octets behind the nonce are the server's own and are ignored. ret_server_id has room
 * for config->server_id_length octets, ret_nonce for config->nonce_length; each may be NULL.
 * Errors: -ENODATA (empty), -EADDRNOTAVAIL (rotation 7: unroutable), -ENOKEY (of another
 * configuration), -EMSGSIZE (too short for this one, or above 20 octets).
 */
static inline int quic_lb_decode(const struct quic_lb_config *config, const __u8 *cid,
	size_t cid_length, __u8 *ret_server_id, __u8 *ret_nonce)
{
	__u8 octets[QUIC_LB_CID_MAX] = {0};
	struct quic_lb_scratch scratch;
	struct quic_lb_words words;

	if (cid_length == 0)
		return -ENODATA;
	if (quic_lb_rotation(cid[0]) == QUIC_LB_UNROUTABLE)
		return -EADDRNOTAVAIL;
	if (quic_lb_rotation(cid[0]) != config->rotation)
		return -ENOKEY;
	if (cid_length > QUIC_LB_CID_MAX || !quic_lb_matches(config, cid[0], cid_length))
		return -EMSGSIZE;
	memcpy(octets, cid, cid_length);
	words = quic_lb_load(octets);
	quic_lb_decrypt(config, &words, ret_nonce != NULL, &scratch);
	quic_lb_store(octets, words);
	if (ret_server_id)
		memcpy(ret_server_id, octets + 1, config->server_id_length);
	if (ret_nonce)
		memcpy(ret_nonce, octets + 1 + config->server_id_length, config->nonce_length);
	return 0;
}

#endif
