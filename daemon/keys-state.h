/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A listener's keys and the prefixes of their nonces as JSON.
 */
#pragma once

#include "daemon/keys.h"

#define KEYS_NONCE_END (1ULL << 32)

/* The keys of a state: 0 if it has none, 1 if it has, -EBADMSG. */
int keys_state_get(const json_t *root, struct keys *ret);

/* 0 or -ENOMEM. */
int keys_state_set(json_t *root, const struct keys *keys);

/* The entry of the current key, NULL if there is none. -EBADMSG if any is malformed. */
int keys_state_find_prefixes(const json_t *list, const struct keys *keys, json_t **ret);

/* The next prefix of the current key, into its entry, or a new one if that is NULL. */
int keys_state_set_prefixes(json_t *root, json_t *entry, const struct keys *keys, uint64_t next);
