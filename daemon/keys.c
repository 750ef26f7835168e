/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Keys of connection IDs, and their state on disk.
 *
 * Every change reads the file again, under a lock of the directory, and replaces it as a whole: a
 * listener that is removed and added again, or a second daemon, may have taken a block meanwhile.
 */
#include "daemon/keys.h"

#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "common/format.h"
#include "common/util.h"
#include "daemon/key-file.h"
#include "daemon/keys-disk.h"
#include "daemon/keys-state.h"

#define NONCE_BLOCK 1024

static int random_octets(void *ret, size_t n)
{
	/* Up to 256 octets come whole (getrandom(2)). */
	return getrandom(ret, n, 0) == (ssize_t)n ? 0 : -EIO;
}

static bool same_keys(const struct keys *a, const struct keys *b)
{
	return a->current == b->current && !memcmp(a->valid, b->valid, sizeof(a->valid)) &&
	       !memcmp(a->key, b->key, sizeof(a->key)) &&
	       !memcmp(a->token_secret, b->token_secret, sizeof(a->token_secret));
}

static void copy_keys(struct keys *to, const struct keys *from)
{
	to->current = from->current;
	memcpy(to->valid, from->valid, sizeof(to->valid));
	memcpy(to->key, from->key, sizeof(to->key));
	memcpy(to->token_secret, from->token_secret, sizeof(to->token_secret));
}

/*
 * The state under the lock: one that can be changed and written back, an empty one if there is no
 * file. ret_found (may be NULL): the keys in it, all invalid if it has none.
 */
static int begin_change(const struct keys *keys, int *ret_directory, json_t **ret_root,
	struct keys *ret_found, char **ret_error)
{
	_cleanup_close_ int directory = keys_disk_lock(keys, ret_error);
	json_auto_t *root = NULL;
	struct keys found = {};
	json_t *entry;
	int r;

	if (directory < 0)
		return directory;
	r = keys_disk_read(keys, directory, &root, ret_error);
	if (r == -ENOENT) {
		root = json_pack("{s:i}", "format", 1);
		r = root ? 0 : -ENOMEM;
	}
	if (r < 0)
		return r;
	r = keys_state_get(root, &found);
	if (r >= 0)
		r = keys_state_find_prefixes(
			json_object_get(root, "nonce_prefixes"), &found, &entry);
	if (r < 0) {
		explicit_bzero(&found, sizeof(found));
		return format_error(ret_error, r,
			"%s/%s is not a state of keys that this version understands; restore it, "
			"or move it away to begin with a new key",
			keys->directory, keys->name);
	}
	if (ret_found)
		*ret_found = found;
	explicit_bzero(&found, sizeof(found));
	*ret_directory = take_fd(&directory);
	*ret_root = take_pointer(root);
	return 0;
}

static int make_keys(struct keys *keys)
{
	keys->current = 0;
	memset(keys->valid, 0, sizeof(keys->valid));
	keys->valid[0] = true;
	return random_octets(keys->key[0], sizeof(keys->key[0])) < 0 ||
			       random_octets(keys->token_secret, sizeof(keys->token_secret)) < 0
		       ? -EIO
		       : 0;
}

/* Also with given keys, to learn of a damaged state now and not when a worker comes. */
static int open_state(struct keys *keys, char **ret_error)
{
	_cleanup_close_ int directory = -1;
	json_auto_t *root = NULL;
	struct keys found = {};
	int r;

	r = begin_change(keys, &directory, &root, &found, ret_error);
	if (r < 0 || keys->given) {
		explicit_bzero(&found, sizeof(found));
		return r;
	}
	if (found.valid[found.current]) {
		copy_keys(keys, &found);
		explicit_bzero(&found, sizeof(found));
		return 0;
	}
	r = make_keys(keys);
	if (r >= 0)
		r = keys_state_set(root, keys);
	if (r >= 0)
		r = keys_disk_write(keys, directory, root);
	if (r < 0)
		return format_error(ret_error, r, "cannot keep the keys in %s/%s: %s",
			keys->directory, keys->name, strerror(-r));
	return 0;
}

int keys_open(struct keys **ret, const char *state_directory, const char *service,
	const char *listener, const char *key_file, char **ret_error)
{
	_cleanup_(keys_freep) struct keys *keys = calloc(1, sizeof(*keys));
	_cleanup_free_ char *error = NULL;
	int r = 0;

	*ret_error = NULL;
	if (!keys)
		return -ENOMEM;
	/* config.c lets no such name pass. */
	if (strchr(service, '/') || strpbrk(listener, "/:") ||
		strlen(service) + strlen(listener) > 200)
		return format_error(ret_error, -EINVAL,
			"the listener '%s' of the service '%s' gives no name of a file", listener,
			service);
	if (asprintf(&keys->name, "%s:%s.keys", service, listener) < 0) {
		keys->name = NULL;
		return -ENOMEM;
	}
	if (key_file) {
		keys->given = true;
		r = key_file_read(keys, key_file, &error);
	}
	if (r >= 0 && state_directory) {
		keys->directory = strdup(state_directory);
		r = keys->directory ? open_state(keys, &error) : -ENOMEM;
	} else if (r >= 0 && !key_file) {
		r = make_keys(keys);
	}
	if (r < 0) {
		*ret_error = take_pointer(error);
		return r;
	}
	*ret = take_pointer(keys);
	return 0;
}

struct keys *keys_free(struct keys *keys)
{
	if (!keys)
		return NULL;
	free(keys->directory);
	free(keys->name);
	explicit_bzero(keys, sizeof(*keys));
	free(keys);
	return NULL;
}

void keys_freep(struct keys **keys)
{
	*keys = keys_free(*keys);
}

/* Where a block may begin: never behind what was given out, as far as that is known. */
static uint64_t begin_block(const struct keys *keys, const json_t *entry)
{
	uint64_t clock = (uint32_t)time(NULL);
	uint64_t stored = (uint64_t)json_integer_value(json_object_get(entry, "next"));

	return MAX(MAX(clock, stored), keys->next_block);
}

static int reserve_block(struct keys *keys)
{
	_cleanup_close_ int directory = -1;
	json_auto_t *root = NULL;
	_cleanup_free_ char *error = NULL;
	json_t *entry = NULL;
	uint64_t first, end;
	int r = 0;

	if (keys->directory) {
		r = begin_change(keys, &directory, &root, NULL, &error);
		if (r >= 0)
			r = keys_state_find_prefixes(
				json_object_get(root, "nonce_prefixes"), keys, &entry);
		/* Somebody deleted the file: the keys are still in use. */
		if (r >= 0 && !keys->given && !json_object_get(root, "keys"))
			r = keys_state_set(root, keys);
		if (r < 0)
			return r;
	}
	first = begin_block(keys, entry);
	if (first >= KEYS_NONCE_END)
		return -EOVERFLOW;
	end = MIN(first + NONCE_BLOCK, KEYS_NONCE_END);
	if (keys->directory) {
		r = keys_state_set_prefixes(root, entry, keys, end);
		if (r >= 0)
			r = keys_disk_write(keys, directory, root);
		if (r < 0)
			return r;
	}
	keys->next = first;
	keys->next_block = end;
	return 0;
}

int keys_next_nonce_prefix(struct keys *keys, uint8_t ret_prefix[4])
{
	int r;

	if (keys->next == keys->next_block) {
		r = reserve_block(keys);
		if (r < 0)
			return r;
	}
	for (unsigned i = 0; i < 4; i++)
		ret_prefix[i] = (uint8_t)(keys->next >> (24 - 8 * i));
	keys->next++;
	return 0;
}

/* Writes the keys of `changed` if the disk still has those of `keys`. */
static int replace_keys(const struct keys *keys, const struct keys *changed)
{
	_cleanup_close_ int directory = -1;
	json_auto_t *root = NULL;
	_cleanup_free_ char *error = NULL;
	struct keys found = {};
	int r;

	if (!keys->directory)
		return 0;
	r = begin_change(keys, &directory, &root, &found, &error);
	if (r >= 0 && json_object_get(root, "keys") && !same_keys(keys, &found))
		r = -ESTALE;
	explicit_bzero(&found, sizeof(found));
	if (r >= 0)
		r = keys_state_set(root, changed);
	return r < 0 ? r : keys_disk_write(keys, directory, root);
}

/* A new key under the next rotation of *changed that is free; on disk, then in *keys. */
static int make_current(struct keys *keys, struct keys *changed)
{
	unsigned rotation = keys->current;
	int r;

	for (unsigned tried = 1;; tried++) {
		rotation = (rotation + 1) % KEYS_MAX;
		if (!changed->valid[rotation] && !(keys->foreign & 1u << rotation))
			break;
		if (tried == KEYS_MAX)
			return -EBUSY;
	}
	changed->current = (uint8_t)rotation;
	changed->valid[rotation] = true;
	r = random_octets(changed->key[rotation], sizeof(changed->key[rotation]));
	if (r >= 0)
		r = replace_keys(keys, changed);
	if (r >= 0) {
		copy_keys(keys, changed);
		keys->next = 0;
		keys->next_block = 0;
	}
	return r;
}

int keys_rotate(struct keys *keys)
{
	struct keys changed = {};
	int r;

	if (keys->given)
		return -EOPNOTSUPP;
	copy_keys(&changed, keys);
	r = make_current(keys, &changed);
	explicit_bzero(&changed, sizeof(changed));
	return r;
}

int keys_avoid_foreign(struct keys *keys)
{
	struct keys changed = {};
	bool found = false;
	int r = 0;

	if (keys->given)
		return -EOPNOTSUPP;
	copy_keys(&changed, keys);
	for (unsigned i = 0; i < KEYS_MAX; i++)
		if (keys->valid[i] && keys->foreign & 1u << i) {
			found = true;
			changed.valid[i] = false;
			explicit_bzero(changed.key[i], sizeof(changed.key[i]));
		}
	if (found && !changed.valid[keys->current])
		r = make_current(keys, &changed);
	else if (found)
		r = replace_keys(keys, &changed);
	if (found && r >= 0)
		copy_keys(keys, &changed);
	explicit_bzero(&changed, sizeof(changed));
	return r;
}

int keys_retire(struct keys *keys, uint8_t rotation)
{
	struct keys changed = {};
	int r = 0;

	if (rotation >= KEYS_MAX || rotation == keys->current)
		return -EINVAL;
	if (!keys->valid[rotation])
		return 0;
	copy_keys(&changed, keys);
	changed.valid[rotation] = false;
	explicit_bzero(changed.key[rotation], sizeof(changed.key[rotation]));
	if (!keys->given)
		r = replace_keys(keys, &changed);
	copy_keys(keys, &changed);
	explicit_bzero(&changed, sizeof(changed));
	return r;
}

json_t *keys_to_json(const struct keys *keys)
{
	json_t *json = json_pack("{s:i, s:b, s:I}", "format", 1, "given", keys->given, "next_block",
		(json_int_t)keys->next_block);

	if (json && keys_state_set(json, keys) < 0) {
		json_decref(json);
		return NULL;
	}
	return json;
}

int keys_from_json(struct keys **ret, const json_t *json, const char *state_directory,
	const char *service, const char *listener)
{
	_cleanup_(keys_freep) struct keys *keys = calloc(1, sizeof(*keys));
	json_int_t block = json_integer_value(json_object_get(json, "next_block"));
	int r;

	if (!keys)
		return -ENOMEM;
	if (strchr(service, '/') || strpbrk(listener, "/:"))
		return -EBADMSG;
	r = keys_state_get(json, keys);
	if (r <= 0 || block < 0 || block > (json_int_t)KEYS_NONCE_END)
		return -EBADMSG;
	keys->given = json_is_true(json_object_get(json, "given"));
	/* What is left of the block that was written down may have been given out. */
	keys->next = keys->next_block = (uint64_t)block;
	if (asprintf(&keys->name, "%s:%s.keys", service, listener) < 0) {
		keys->name = NULL;
		return -ENOMEM;
	}
	if (state_directory) {
		keys->directory = strdup(state_directory);
		if (!keys->directory)
			return -ENOMEM;
	}
	*ret = take_pointer(keys);
	return 0;
}
