/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The state file is JSON:
 *
 *     {"format": 1, "current": 1,
 *      "keys": [{"rotation": 0, "key": "32 hexadecimal digits"}, ...],
 *      "token_secret": "64 hexadecimal digits",
 *      "nonce_prefixes": [{"key_digest": "32 hexadecimal digits", "next": 1796000000}, ...]}
 *
 * "current", "keys" and "token_secret" are absent if keys were given by a file from the start.
 * Nonce prefixes go by a digest of the key, so that a key keeps its numbers when it comes back, and
 * another begins anew.
 */
#include "daemon/keys-state.h"

#include <errno.h>
#include <string.h>

#include "common/hex.h"
#include "common/util.h"
#include "daemon/key-file.h"

#define DIGEST_OCTETS 16
/* Keys whose numbers are remembered; beyond it those with the lowest numbers are forgotten. */
#define DIGESTS_MAX 64

int keys_state_get(const json_t *root, struct keys *ret)
{
	const json_t *list = json_object_get(root, "keys");
	const json_t *current = json_object_get(root, "current"), *entry;
	size_t i;

	if (!json_is_object(root) || json_integer_value(json_object_get(root, "format")) != 1)
		return -EBADMSG;
	if (!list)
		return 0;
	if (!json_is_array(list))
		return -EBADMSG;
	json_array_foreach(list, i, entry)
	{
		const json_t *number = json_object_get(entry, "rotation");
		json_int_t rotation = json_integer_value(number);

		if (!json_is_integer(number) || rotation < 0 || rotation >= KEYS_MAX ||
			ret->valid[rotation] ||
			!hex_read(json_string_value(json_object_get(entry, "key")),
				ret->key[rotation], sizeof(ret->key[rotation])))
			return -EBADMSG;
		ret->valid[rotation] = true;
	}
	if (!json_is_integer(current) || json_integer_value(current) < 0 ||
		json_integer_value(current) >= KEYS_MAX || !ret->valid[json_integer_value(current)])
		return -EBADMSG;
	ret->current = (uint8_t)json_integer_value(current);
	if (!hex_read(json_string_value(json_object_get(root, "token_secret")), ret->token_secret,
		    sizeof(ret->token_secret)))
		return -EBADMSG;
	return 1;
}

static int set_hex(json_t *object, const char *name, const uint8_t *octets, size_t n)
{
	char text[2 * 32 + 1];
	int r;

	hex_write(text, octets, n);
	r = json_object_set_new(object, name, json_string(text));
	explicit_bzero(text, sizeof(text));
	return r < 0 ? -ENOMEM : 0;
}

int keys_state_set(json_t *root, const struct keys *keys)
{
	json_auto_t *list = json_array();

	for (unsigned i = 0; list && i < KEYS_MAX; i++) {
		json_auto_t *entry = NULL;

		if (!keys->valid[i])
			continue;
		entry = json_pack("{s:i}", "rotation", (int)i);
		if (!entry || set_hex(entry, "key", keys->key[i], sizeof(keys->key[i])) < 0 ||
			json_array_append(list, entry) < 0)
			return -ENOMEM;
	}
	if (!list || json_object_set(root, "keys", list) < 0 ||
		json_object_set_new(root, "current", json_integer(keys->current)) < 0)
		return -ENOMEM;
	return set_hex(root, "token_secret", keys->token_secret, sizeof(keys->token_secret));
}

static void key_digest(const struct keys *keys, uint8_t ret[DIGEST_OCTETS])
{
	uint8_t derived[32];

	key_derive(keys->key[keys->current], "reuseportd nonce prefixes", derived);
	memcpy(ret, derived, DIGEST_OCTETS);
}

int keys_state_find_prefixes(const json_t *list, const struct keys *keys, json_t **ret)
{
	uint8_t digest[DIGEST_OCTETS], octets[DIGEST_OCTETS];
	json_t *entry;
	size_t i;

	*ret = NULL;
	if (!list)
		return 0;
	if (!json_is_array(list))
		return -EBADMSG;
	key_digest(keys, digest);
	json_array_foreach(list, i, entry)
	{
		const char *text = json_string_value(json_object_get(entry, "key_digest"));
		const json_t *next = json_object_get(entry, "next");

		if (!hex_read(text, octets, sizeof(octets)) || !json_is_integer(next) ||
			json_integer_value(next) < 0 ||
			json_integer_value(next) > (json_int_t)KEYS_NONCE_END)
			return -EBADMSG;
		if (memcmp(octets, digest, sizeof(digest)))
			continue;
		if (*ret)
			return -EBADMSG;
		*ret = entry;
	}
	return 0;
}

/* Room for one more entry. */
static void forget_lowest(json_t *list)
{
	while (json_array_size(list) >= DIGESTS_MAX) {
		size_t lowest = 0, i;
		json_int_t least = INT64_MAX;
		json_t *entry;

		json_array_foreach(list, i, entry)
		{
			json_int_t next = json_integer_value(json_object_get(entry, "next"));

			if (next < least) {
				least = next;
				lowest = i;
			}
		}
		json_array_remove(list, lowest);
	}
}

int keys_state_set_prefixes(json_t *root, json_t *entry, const struct keys *keys, uint64_t next)
{
	json_t *list = json_object_get(root, "nonce_prefixes");
	uint8_t digest[DIGEST_OCTETS];

	if (entry)
		return json_object_set_new(entry, "next", json_integer((json_int_t)next)) < 0
			       ? -ENOMEM
			       : 0;
	if (!list) {
		list = json_array();
		if (json_object_set_new(root, "nonce_prefixes", list) < 0)
			return -ENOMEM;
	}
	forget_lowest(list);
	key_digest(keys, digest);
	entry = json_pack("{s:I}", "next", (json_int_t)next);
	if (json_array_append_new(list, entry) < 0)
		return -ENOMEM;
	return set_hex(entry, "key_digest", digest, sizeof(digest));
}
