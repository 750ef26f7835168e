/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The file of ConnectionIDKeyFile=: keys that a person, a provisioning tool or a load balancer's
 * configuration gives, for several hosts to decode each other's connection IDs.
 *
 *     # comment
 *     2 8f95f09245765f80256934e50c66207f
 *     1 4d9d0fd25a25e7f321ef464e13f9fa3d
 *     secret 000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f
 *
 * A key a line: config rotation, 0 to 6, and 32 hexadecimal digits. The first is the one that new
 * IDs are made with; the others are decoded. `secret` (64 digits) is for tokens; without it the
 * secret is derived from the first key (HMAC-SHA256), so that hosts with one file share it too.
 */
#pragma once

#include <stddef.h>

#include "daemon/keys.h"

/* Fills current, valid, key and token_secret; nothing on failure: negative errno and *ret_error a
 * sentence that begins with PATH or PATH:LINE, to free(), NULL with -ENOMEM. */
int key_file_read(struct keys *keys, const char *path, char **ret_error);

/* HMAC-SHA256 of the label under a key: what may be told to others or kept in its stead. */
void key_derive(const uint8_t key[16], const char *label, uint8_t ret[32]);
