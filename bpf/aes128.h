/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * AES-128 (FIPS 197), one block at a time, for the connection IDs of QUIC-LB. The kernel offers no
 * cipher to programs of type sk_reuseport, so the program brings its own; the daemon, the library
 * and the tools use the same one for the same IDs, and a test compares it with libcrypto.
 *
 * By look-up tables, four of 1 KiB for each direction, in read-only data. Their time depends on the
 * octets looked up, so a neighbour on the same core could learn about the key by measuring caches.
 * QUIC-LB hides which server an ID names and which IDs belong together; it protects no content.
 *
 * Written for the verifier: blocks live in memory that the caller gives, not on the BPF stack,
 * where a program without CAP_PERFMON pays a barrier for each slot that the compiler spills to. An
 * octet that is loaded from memory is an index that needs no check. The words of blocks and keys
 * are in memory order, so nothing is swapped on either byte order.
 */
#pragma once

#include <linux/types.h>

#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif

#define AES128_OCTETS 16

union aes128_block {
	__u8 octet[16];
	__u32 word[4];
	__u64 half[2];
};

struct aes128_key {
	__u32 encrypt[44];
	__u32 decrypt[44]; /* in the order of use, for the equivalent inverse cipher (section 5.3.5)
			    */
};

/* Four octets as they stand in memory. */
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define AES128_WORD(a, b, c, d) ((__u32)(a) | (__u32)(b) << 8 | (__u32)(c) << 16 | (__u32)(d) << 24)
#else
#define AES128_WORD(a, b, c, d) ((__u32)(a) << 24 | (__u32)(b) << 16 | (__u32)(c) << 8 | (__u32)(d))
#endif

/* clang-format off */
/* The S-box (section 5.1.1, table 4) and its inverse (table 6). */
#define AES128_S(X) \
	X(0x63) X(0x7c) X(0x77) X(0x7b) X(0xf2) X(0x6b) X(0x6f) X(0xc5) \
	X(0x30) X(0x01) X(0x67) X(0x2b) X(0xfe) X(0xd7) X(0xab) X(0x76) \
	X(0xca) X(0x82) X(0xc9) X(0x7d) X(0xfa) X(0x59) X(0x47) X(0xf0) \
	X(0xad) X(0xd4) X(0xa2) X(0xaf) X(0x9c) X(0xa4) X(0x72) X(0xc0) \
	X(0xb7) X(0xfd) X(0x93) X(0x26) X(0x36) X(0x3f) X(0xf7) X(0xcc) \
	X(0x34) X(0xa5) X(0xe5) X(0xf1) X(0x71) X(0xd8) X(0x31) X(0x15) \
	X(0x04) X(0xc7) X(0x23) X(0xc3) X(0x18) X(0x96) X(0x05) X(0x9a) \
	X(0x07) X(0x12) X(0x80) X(0xe2) X(0xeb) X(0x27) X(0xb2) X(0x75) \
	X(0x09) X(0x83) X(0x2c) X(0x1a) X(0x1b) X(0x6e) X(0x5a) X(0xa0) \
	X(0x52) X(0x3b) X(0xd6) X(0xb3) X(0x29) X(0xe3) X(0x2f) X(0x84) \
	X(0x53) X(0xd1) X(0x00) X(0xed) X(0x20) X(0xfc) X(0xb1) X(0x5b) \
	X(0x6a) X(0xcb) X(0xbe) X(0x39) X(0x4a) X(0x4c) X(0x58) X(0xcf) \
	X(0xd0) X(0xef) X(0xaa) X(0xfb) X(0x43) X(0x4d) X(0x33) X(0x85) \
	X(0x45) X(0xf9) X(0x02) X(0x7f) X(0x50) X(0x3c) X(0x9f) X(0xa8) \
	X(0x51) X(0xa3) X(0x40) X(0x8f) X(0x92) X(0x9d) X(0x38) X(0xf5) \
	X(0xbc) X(0xb6) X(0xda) X(0x21) X(0x10) X(0xff) X(0xf3) X(0xd2) \
	X(0xcd) X(0x0c) X(0x13) X(0xec) X(0x5f) X(0x97) X(0x44) X(0x17) \
	X(0xc4) X(0xa7) X(0x7e) X(0x3d) X(0x64) X(0x5d) X(0x19) X(0x73) \
	X(0x60) X(0x81) X(0x4f) X(0xdc) X(0x22) X(0x2a) X(0x90) X(0x88) \
	X(0x46) X(0xee) X(0xb8) X(0x14) X(0xde) X(0x5e) X(0x0b) X(0xdb) \
	X(0xe0) X(0x32) X(0x3a) X(0x0a) X(0x49) X(0x06) X(0x24) X(0x5c) \
	X(0xc2) X(0xd3) X(0xac) X(0x62) X(0x91) X(0x95) X(0xe4) X(0x79) \
	X(0xe7) X(0xc8) X(0x37) X(0x6d) X(0x8d) X(0xd5) X(0x4e) X(0xa9) \
	X(0x6c) X(0x56) X(0xf4) X(0xea) X(0x65) X(0x7a) X(0xae) X(0x08) \
	X(0xba) X(0x78) X(0x25) X(0x2e) X(0x1c) X(0xa6) X(0xb4) X(0xc6) \
	X(0xe8) X(0xdd) X(0x74) X(0x1f) X(0x4b) X(0xbd) X(0x8b) X(0x8a) \
	X(0x70) X(0x3e) X(0xb5) X(0x66) X(0x48) X(0x03) X(0xf6) X(0x0e) \
	X(0x61) X(0x35) X(0x57) X(0xb9) X(0x86) X(0xc1) X(0x1d) X(0x9e) \
	X(0xe1) X(0xf8) X(0x98) X(0x11) X(0x69) X(0xd9) X(0x8e) X(0x94) \
	X(0x9b) X(0x1e) X(0x87) X(0xe9) X(0xce) X(0x55) X(0x28) X(0xdf) \
	X(0x8c) X(0xa1) X(0x89) X(0x0d) X(0xbf) X(0xe6) X(0x42) X(0x68) \
	X(0x41) X(0x99) X(0x2d) X(0x0f) X(0xb0) X(0x54) X(0xbb) X(0x16)

#define AES128_INVERSE_S(X) \
	X(0x52) X(0x09) X(0x6a) X(0xd5) X(0x30) X(0x36) X(0xa5) X(0x38) \
	X(0xbf) X(0x40) X(0xa3) X(0x9e) X(0x81) X(0xf3) X(0xd7) X(0xfb) \
	X(0x7c) X(0xe3) X(0x39) X(0x82) X(0x9b) X(0x2f) X(0xff) X(0x87) \
	X(0x34) X(0x8e) X(0x43) X(0x44) X(0xc4) X(0xde) X(0xe9) X(0xcb) \
	X(0x54) X(0x7b) X(0x94) X(0x32) X(0xa6) X(0xc2) X(0x23) X(0x3d) \
	X(0xee) X(0x4c) X(0x95) X(0x0b) X(0x42) X(0xfa) X(0xc3) X(0x4e) \
	X(0x08) X(0x2e) X(0xa1) X(0x66) X(0x28) X(0xd9) X(0x24) X(0xb2) \
	X(0x76) X(0x5b) X(0xa2) X(0x49) X(0x6d) X(0x8b) X(0xd1) X(0x25) \
	X(0x72) X(0xf8) X(0xf6) X(0x64) X(0x86) X(0x68) X(0x98) X(0x16) \
	X(0xd4) X(0xa4) X(0x5c) X(0xcc) X(0x5d) X(0x65) X(0xb6) X(0x92) \
	X(0x6c) X(0x70) X(0x48) X(0x50) X(0xfd) X(0xed) X(0xb9) X(0xda) \
	X(0x5e) X(0x15) X(0x46) X(0x57) X(0xa7) X(0x8d) X(0x9d) X(0x84) \
	X(0x90) X(0xd8) X(0xab) X(0x00) X(0x8c) X(0xbc) X(0xd3) X(0x0a) \
	X(0xf7) X(0xe4) X(0x58) X(0x05) X(0xb8) X(0xb3) X(0x45) X(0x06) \
	X(0xd0) X(0x2c) X(0x1e) X(0x8f) X(0xca) X(0x3f) X(0x0f) X(0x02) \
	X(0xc1) X(0xaf) X(0xbd) X(0x03) X(0x01) X(0x13) X(0x8a) X(0x6b) \
	X(0x3a) X(0x91) X(0x11) X(0x41) X(0x4f) X(0x67) X(0xdc) X(0xea) \
	X(0x97) X(0xf2) X(0xcf) X(0xce) X(0xf0) X(0xb4) X(0xe6) X(0x73) \
	X(0x96) X(0xac) X(0x74) X(0x22) X(0xe7) X(0xad) X(0x35) X(0x85) \
	X(0xe2) X(0xf9) X(0x37) X(0xe8) X(0x1c) X(0x75) X(0xdf) X(0x6e) \
	X(0x47) X(0xf1) X(0x1a) X(0x71) X(0x1d) X(0x29) X(0xc5) X(0x89) \
	X(0x6f) X(0xb7) X(0x62) X(0x0e) X(0xaa) X(0x18) X(0xbe) X(0x1b) \
	X(0xfc) X(0x56) X(0x3e) X(0x4b) X(0xc6) X(0xd2) X(0x79) X(0x20) \
	X(0x9a) X(0xdb) X(0xc0) X(0xfe) X(0x78) X(0xcd) X(0x5a) X(0xf4) \
	X(0x1f) X(0xdd) X(0xa8) X(0x33) X(0x88) X(0x07) X(0xc7) X(0x31) \
	X(0xb1) X(0x12) X(0x10) X(0x59) X(0x27) X(0x80) X(0xec) X(0x5f) \
	X(0x60) X(0x51) X(0x7f) X(0xa9) X(0x19) X(0xb5) X(0x4a) X(0x0d) \
	X(0x2d) X(0xe5) X(0x7a) X(0x9f) X(0x93) X(0xc9) X(0x9c) X(0xef) \
	X(0xa0) X(0xe0) X(0x3b) X(0x4d) X(0xae) X(0x2a) X(0xf5) X(0xb0) \
	X(0xc8) X(0xeb) X(0xbb) X(0x3c) X(0x83) X(0x53) X(0x99) X(0x61) \
	X(0x17) X(0x2b) X(0x04) X(0x7e) X(0xba) X(0x77) X(0xd6) X(0x26) \
	X(0xe1) X(0x69) X(0x14) X(0x63) X(0x55) X(0x21) X(0x0c) X(0x7d)
/* clang-format on */

/* Multiplication in GF(2^8) by 2, 4 and 8; the others are sums of these (section 4.2). */
#define AES128_X2(s) ((((s) << 1) ^ (((s) >> 7) * 0x1b)) & 0xff)
#define AES128_X4(s) AES128_X2(AES128_X2(s))
#define AES128_X8(s) AES128_X2(AES128_X4(s))
#define AES128_X3(s) (AES128_X2(s) ^ (s))
#define AES128_X9(s) (AES128_X8(s) ^ (s))
#define AES128_X11(s) (AES128_X8(s) ^ AES128_X2(s) ^ (s))
#define AES128_X13(s) (AES128_X8(s) ^ AES128_X4(s) ^ (s))
#define AES128_X14(s) (AES128_X8(s) ^ AES128_X4(s) ^ AES128_X2(s))

/* SubBytes and MixColumns in one: the share of row 0, 1, 2 and 3 in a column. */
#define AES128_E0(s) AES128_WORD(AES128_X2(s), s, s, AES128_X3(s)),
#define AES128_E1(s) AES128_WORD(AES128_X3(s), AES128_X2(s), s, s),
#define AES128_E2(s) AES128_WORD(s, AES128_X3(s), AES128_X2(s), s),
#define AES128_E3(s) AES128_WORD(s, s, AES128_X3(s), AES128_X2(s)),
#define AES128_D0(s) AES128_WORD(AES128_X14(s), AES128_X9(s), AES128_X13(s), AES128_X11(s)),
#define AES128_D1(s) AES128_WORD(AES128_X11(s), AES128_X14(s), AES128_X9(s), AES128_X13(s)),
#define AES128_D2(s) AES128_WORD(AES128_X13(s), AES128_X11(s), AES128_X14(s), AES128_X9(s)),
#define AES128_D3(s) AES128_WORD(AES128_X9(s), AES128_X13(s), AES128_X11(s), AES128_X14(s)),
#define AES128_OCTET(s) s,

#define AES128_TABLE static const __attribute__((unused, aligned(64)))

AES128_TABLE __u32 aes128_e[4][256] = {
	{AES128_S(AES128_E0)}, {AES128_S(AES128_E1)}, {AES128_S(AES128_E2)}, {AES128_S(AES128_E3)}};
AES128_TABLE __u32 aes128_d[4][256] = {{AES128_INVERSE_S(AES128_D0)}, {AES128_INVERSE_S(AES128_D1)},
	{AES128_INVERSE_S(AES128_D2)}, {AES128_INVERSE_S(AES128_D3)}};
AES128_TABLE __u8 aes128_s[256] = {AES128_S(AES128_OCTET)};
AES128_TABLE __u8 aes128_inverse_s[256] = {AES128_INVERSE_S(AES128_OCTET)};

/*
 * One column of one round. `in` is read octet by octet, each time from memory: that is what keeps
 * the state out of registers, of which a BPF program has too few, and so off the stack.
 */
#define AES128_LOOK_UP(table, in, i) ((table)[((const volatile __u8 *)(in)->octet)[(i)&15]])

/*
 * Where the verifier may compare states. Without CAP_PERFMON it follows each look-up twice, once as
 * a processor might mispredict it. After the load both paths are the same, but it looks for that
 * only at jumps, and keeps a state to compare with only after two of them (is_state_visited(),
 * Linux 5.14 to 6.18). They do nothing, and it deletes them afterwards. Not in a loop: there it
 * keeps fewer.
 */
#ifdef __bpf__
/* Makes the compiler hold an address in a register, instead of loading 64 bits for each use. */
#define AES128_HOLD(address) asm volatile("" : "+r"(address))
#define AES128_CHECKPOINT() asm volatile("goto +0\n\tgoto +0")
#else
#define AES128_HOLD(address) ((void)0)
#define AES128_CHECKPOINT() ((void)0)
#endif

static __always_inline void aes128_encrypt_round(union aes128_block *out,
	const union aes128_block *in, const __u32 *round_key, const __u32 *table)
{
#define AES128_COLUMN(c)                                                                        \
	(*(volatile __u32 *)&out->word[c] = AES128_LOOK_UP(table + 256 * 0, in, 4 * (c)) ^      \
					    AES128_LOOK_UP(table + 256 * 1, in, 4 * (c) + 5) ^  \
					    AES128_LOOK_UP(table + 256 * 2, in, 4 * (c) + 10) ^ \
					    AES128_LOOK_UP(table + 256 * 3, in, 4 * (c) + 15) ^ \
					    round_key[c])
	AES128_COLUMN(0);
	AES128_CHECKPOINT();
	AES128_COLUMN(1);
	AES128_CHECKPOINT();
	AES128_COLUMN(2);
	AES128_CHECKPOINT();
	AES128_COLUMN(3);
	AES128_CHECKPOINT();
#undef AES128_COLUMN
}

static __always_inline void aes128_decrypt_round(union aes128_block *out,
	const union aes128_block *in, const __u32 *round_key, const __u32 *table)
{
#define AES128_COLUMN(c)                                                                        \
	(*(volatile __u32 *)&out->word[c] = AES128_LOOK_UP(table + 256 * 0, in, 4 * (c)) ^      \
					    AES128_LOOK_UP(table + 256 * 1, in, 4 * (c) + 13) ^ \
					    AES128_LOOK_UP(table + 256 * 2, in, 4 * (c) + 10) ^ \
					    AES128_LOOK_UP(table + 256 * 3, in, 4 * (c) + 7) ^  \
					    round_key[c])
	AES128_COLUMN(0);
	AES128_CHECKPOINT();
	AES128_COLUMN(1);
	AES128_CHECKPOINT();
	AES128_COLUMN(2);
	AES128_CHECKPOINT();
	AES128_COLUMN(3);
	AES128_CHECKPOINT();
#undef AES128_COLUMN
}

static __always_inline void aes128_add_key(union aes128_block *block, const __u32 *round_key)
{
	block->word[0] ^= round_key[0];
	block->word[1] ^= round_key[1];
	block->word[2] ^= round_key[2];
	block->word[3] ^= round_key[3];
}

/* The last round has no MixColumns: the plain S-box. */
#define AES128_LAST_COLUMN(out, in, box, c, i1, i2, i3, round_key)                               \
	(*(volatile __u32 *)&(out)->word[c] = AES128_WORD(AES128_LOOK_UP(box, in, 4 * (c)),      \
						      AES128_LOOK_UP(box, in, 4 * (c) + (i1)),   \
						      AES128_LOOK_UP(box, in, 4 * (c) + (i2)),   \
						      AES128_LOOK_UP(box, in, 4 * (c) + (i3))) ^ \
					      (round_key)[c])

/* Encrypts *block in place; *scratch holds the state of every other round. */
static __always_inline void aes128_encrypt(
	const struct aes128_key *key, union aes128_block *block, union aes128_block *scratch)
{
	const __u32 *round_key = key->encrypt, *table = aes128_e[0];

	AES128_HOLD(table);
	aes128_add_key(block, round_key);
	aes128_encrypt_round(scratch, block, round_key + 4, table);
	aes128_encrypt_round(block, scratch, round_key + 8, table);
	aes128_encrypt_round(scratch, block, round_key + 12, table);
	aes128_encrypt_round(block, scratch, round_key + 16, table);
	aes128_encrypt_round(scratch, block, round_key + 20, table);
	aes128_encrypt_round(block, scratch, round_key + 24, table);
	aes128_encrypt_round(scratch, block, round_key + 28, table);
	aes128_encrypt_round(block, scratch, round_key + 32, table);
	aes128_encrypt_round(scratch, block, round_key + 36, table);
	round_key += 40;
	AES128_LAST_COLUMN(block, scratch, aes128_s, 0, 5, 10, 15, round_key);
	AES128_CHECKPOINT();
	AES128_LAST_COLUMN(block, scratch, aes128_s, 1, 5, 10, 15, round_key);
	AES128_CHECKPOINT();
	AES128_LAST_COLUMN(block, scratch, aes128_s, 2, 5, 10, 15, round_key);
	AES128_CHECKPOINT();
	AES128_LAST_COLUMN(block, scratch, aes128_s, 3, 5, 10, 15, round_key);
	AES128_CHECKPOINT();
}

/* Decrypts *block in place; *scratch holds the state of every other round. */
static __always_inline void aes128_decrypt(
	const struct aes128_key *key, union aes128_block *block, union aes128_block *scratch)
{
	const __u32 *round_key = key->decrypt, *table = aes128_d[0];

	AES128_HOLD(table);
	aes128_add_key(block, round_key);
	aes128_decrypt_round(scratch, block, round_key + 4, table);
	aes128_decrypt_round(block, scratch, round_key + 8, table);
	aes128_decrypt_round(scratch, block, round_key + 12, table);
	aes128_decrypt_round(block, scratch, round_key + 16, table);
	aes128_decrypt_round(scratch, block, round_key + 20, table);
	aes128_decrypt_round(block, scratch, round_key + 24, table);
	aes128_decrypt_round(scratch, block, round_key + 28, table);
	aes128_decrypt_round(block, scratch, round_key + 32, table);
	aes128_decrypt_round(scratch, block, round_key + 36, table);
	round_key += 40;
	AES128_LAST_COLUMN(block, scratch, aes128_inverse_s, 0, 13, 10, 7, round_key);
	AES128_CHECKPOINT();
	AES128_LAST_COLUMN(block, scratch, aes128_inverse_s, 1, 13, 10, 7, round_key);
	AES128_CHECKPOINT();
	AES128_LAST_COLUMN(block, scratch, aes128_inverse_s, 2, 13, 10, 7, round_key);
	AES128_CHECKPOINT();
	AES128_LAST_COLUMN(block, scratch, aes128_inverse_s, 3, 13, 10, 7, round_key);
	AES128_CHECKPOINT();
}

#ifndef __bpf__

/*
 * Key expansion (section 5.2). Done where keys are made, never per packet, so it stays out of the
 * programs.
 */
static inline void aes128_expand_key(struct aes128_key *key, const __u8 octets[AES128_OCTETS])
{
	union aes128_block last;
	__u8 round_constant = 1;

	for (unsigned i = 0; i < 4; i++)
		key->encrypt[i] = AES128_WORD(
			octets[4 * i], octets[4 * i + 1], octets[4 * i + 2], octets[4 * i + 3]);
	for (unsigned i = 4; i < 44; i++) {
		last.word[0] = key->encrypt[i - 1];
		if (i % 4 == 0) {
			last.word[0] = AES128_WORD(aes128_s[last.octet[1]] ^ round_constant,
				aes128_s[last.octet[2]], aes128_s[last.octet[3]],
				aes128_s[last.octet[0]]);
			round_constant = AES128_X2(round_constant);
		}
		key->encrypt[i] = key->encrypt[i - 4] ^ last.word[0];
	}

	for (unsigned i = 0; i < 44; i++) {
		/* Rounds in reverse, columns in order; InvMixColumns on all but first and last. */
		last.word[0] = key->encrypt[40 - i / 4 * 4 + i % 4];
		if (i >= 4 && i < 40)
			last.word[0] = aes128_d[0][aes128_s[last.octet[0]]] ^
				       aes128_d[1][aes128_s[last.octet[1]]] ^
				       aes128_d[2][aes128_s[last.octet[2]]] ^
				       aes128_d[3][aes128_s[last.octet[3]]];
		key->decrypt[i] = last.word[0];
	}
}

#endif
