/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The way of a client: protects an Initial, so that tests and fuzzers can have any payload behind a
 * tag that matches. Never in a program that is installed.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <openssl/evp.h>

#include "classify/initial-keys.h"

#define SEAL_OVERHEAD (1 + 4 + 1 + PACKET_CID_MAX + 1 + PACKET_CID_MAX + 2 + 4 + 4 + 16)

struct seal {
	uint32_t version;
	uint8_t dcid[PACKET_CID_MAX], scid[PACKET_CID_MAX];
	uint8_t dcid_length, scid_length;
	const uint8_t *token;
	size_t token_length; /* at most 16383 */
	uint32_t number;
	unsigned number_length; /* 1 to 4 */
	uint8_t reserved;       /* the two reserved bits */
};

static inline void seal_varint(uint8_t *out, size_t *n, size_t value, unsigned octets)
{
	static const uint8_t prefixes[] = {0, 0x00, 0x40, 0, 0x80};

	for (unsigned i = 0; i < octets; i++)
		out[*n + i] = (uint8_t)(value >> (8 * (octets - 1 - i)));
	out[*n] |= prefixes[octets];
	*n += octets;
}

/* The header up to and with the packet number; *ret_number is where that begins. */
static inline size_t seal_header(
	const struct seal *seal, size_t payload_length, uint8_t *out, size_t *ret_number)
{
	uint8_t type = seal->version == QUIC_VERSION_2 ? 0x10 : 0;
	size_t n = 0;

	out[n++] = (uint8_t)(0xc0 | type | seal->reserved << 2 | (seal->number_length - 1));
	for (unsigned i = 0; i < 4; i++)
		out[n++] = (uint8_t)(seal->version >> (8 * (3 - i)));
	out[n++] = seal->dcid_length;
	memcpy(out + n, seal->dcid, seal->dcid_length);
	n += seal->dcid_length;
	out[n++] = seal->scid_length;
	memcpy(out + n, seal->scid, seal->scid_length);
	n += seal->scid_length;
	seal_varint(out, &n, seal->token_length, 2);
	if (seal->token_length)
		memcpy(out + n, seal->token, seal->token_length);
	n += seal->token_length;
	seal_varint(out, &n, seal->number_length + payload_length + INITIAL_TAG_OCTETS, 4);
	*ret_number = n;
	for (unsigned i = 0; i < seal->number_length; i++)
		out[n++] = (uint8_t)(seal->number >> (8 * (seal->number_length - 1 - i)));
	return n;
}

/*
 * Writes a protected Initial to out, which has room for the payload, the token and SEAL_OVERHEAD.
 * The payload has 4 octets at least. Returns the packet's length, 0 when libcrypto fails.
 */
static inline size_t seal_initial(const struct seal *seal, const struct initial_keys *keys,
	const uint8_t *payload, size_t length, uint8_t *out)
{
	EVP_CIPHER_CTX *context = EVP_CIPHER_CTX_new();
	uint8_t nonce[INITIAL_IV_OCTETS], mask[16];
	size_t number, header = seal_header(seal, length, out, &number);
	bool good;
	int n;

	memcpy(nonce, keys->iv, sizeof(nonce));
	for (unsigned i = 0; i < 4; i++)
		nonce[8 + i] ^= (uint8_t)(seal->number >> (8 * (3 - i)));
	good = context &&
	       EVP_EncryptInit_ex2(context, EVP_aes_128_gcm(), keys->key, nonce, NULL) == 1 &&
	       EVP_EncryptUpdate(context, NULL, &n, out, (int)header) == 1 &&
	       EVP_EncryptUpdate(context, out + header, &n, payload, (int)length) == 1 &&
	       EVP_EncryptFinal_ex(context, out + header + length, &n) == 1 &&
	       EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_GET_TAG, INITIAL_TAG_OCTETS,
		       out + header + length) == 1 &&
	       EVP_EncryptInit_ex2(context, EVP_aes_128_ecb(), keys->header_key, NULL, NULL) == 1 &&
	       EVP_EncryptUpdate(context, mask, &n, out + number + 4, sizeof(mask)) == 1;
	EVP_CIPHER_CTX_free(context);
	if (!good)
		return 0;
	out[0] ^= mask[0] & 0x0f;
	for (unsigned i = 0; i < seal->number_length; i++)
		out[number + i] ^= mask[1 + i];
	return header + length + INITIAL_TAG_OCTETS;
}
