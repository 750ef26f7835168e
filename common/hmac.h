/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * HMAC-SHA256 (RFC 2104), for daemon and library.
 *
 * WHY by libcrypto's SHA256_ functions, which are deprecated: they neither allocate nor lock nor
 * read a configuration. The first HMAC() or EVP_sha256() of a process sets up all of libcrypto,
 * which takes 2 MiB of its memory.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifndef OPENSSL_SUPPRESS_DEPRECATED
#define OPENSSL_SUPPRESS_DEPRECATED
#endif
#include <openssl/sha.h>

/* Of label || data. The key is no longer than a block, SHA256_CBLOCK. */
static inline void hmac_sha256(const uint8_t *key, size_t key_length, const char *label,
	const uint8_t *data, size_t length, uint8_t out[SHA256_DIGEST_LENGTH])
{
	uint8_t block[SHA256_CBLOCK], inner[SHA256_DIGEST_LENGTH];
	SHA256_CTX context;

	memset(block, 0x36, sizeof(block));
	for (size_t i = 0; i < key_length; i++)
		block[i] ^= key[i];
	SHA256_Init(&context);
	SHA256_Update(&context, block, sizeof(block));
	SHA256_Update(&context, label, strlen(label));
	SHA256_Update(&context, data, length);
	SHA256_Final(inner, &context);

	for (size_t i = 0; i < sizeof(block); i++)
		block[i] ^= 0x36 ^ 0x5c;
	SHA256_Init(&context);
	SHA256_Update(&context, block, sizeof(block));
	SHA256_Update(&context, inner, sizeof(inner));
	SHA256_Final(out, &context);

	explicit_bzero(block, sizeof(block));
	explicit_bzero(inner, sizeof(inner));
	explicit_bzero(&context, sizeof(context));
}
