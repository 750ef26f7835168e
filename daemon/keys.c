/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Keys of connection IDs, and their state on disk.
 *
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
 *
 * Every change reads the file again, under a lock of the directory, and replaces it as a whole: a
 * listener that is removed and added again, or a second daemon, may have taken a block meanwhile.
 */
#include "daemon/keys.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>

#include <jansson.h>

#include "common/format.h"
#include "common/hex.h"
#include "common/util.h"
#include "daemon/key-file.h"

#define NONCE_BLOCK 1024
#define NONCE_END (1ULL << 32)
#define DIGEST_OCTETS 16
/* Keys whose numbers are remembered; beyond it those with the lowest numbers are forgotten. */
#define DIGESTS_MAX 64
#define STATE_OCTETS_MAX 65536

static void json_freep(json_t **json)
{
	json_decref(*json);
}

/* Returns r, with a sentence. */
static int _printf_(3, 4) sentence(char **ret_error, int r, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	*ret_error = format_list(format, arguments);
	va_end(arguments);
	return *ret_error ? r : -ENOMEM;
}

static int random_octets(void *ret, size_t n)
{
	/* Up to 256 octets come whole (getrandom(2)). */
	return getrandom(ret, n, 0) == (ssize_t)n ? 0 : -EIO;
}

/* Opens and locks the directory; closing unlocks. */
static int lock_directory(const struct keys *keys, char **ret_error)
{
	_cleanup_close_ int fd = open(keys->directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	struct stat status;
	int r;

	if (fd < 0 || fstat(fd, &status) < 0) {
		r = -errno;
		return sentence(ret_error, r, "cannot open the state directory %s: %s",
			keys->directory, strerror(-r));
	}
	if (status.st_mode & 0022)
		return sentence(ret_error, -EPERM,
			"the state directory %s has mode %04o: others could replace the keys in "
			"it; chmod 0700",
			keys->directory, (unsigned)(status.st_mode & 07777));
	while (flock(fd, LOCK_EX) < 0) {
		r = -errno;
		if (r != -EINTR)
			return sentence(ret_error, r, "cannot lock the state directory %s: %s",
				keys->directory, strerror(-r));
	}
	return take_fd(&fd);
}

static int check_state_file(const struct keys *keys, const struct stat *status, char **ret_error)
{
	if (!S_ISREG(status->st_mode))
		return sentence(ret_error, -EPERM, "%s/%s is not a regular file", keys->directory,
			keys->name);
	if (status->st_uid != geteuid())
		return sentence(ret_error, -EPERM,
			"%s/%s belongs to user %u, not to the daemon's (%u); chown it, or move it "
			"away to begin with a new key",
			keys->directory, keys->name, (unsigned)status->st_uid, (unsigned)geteuid());
	if (status->st_mode & 0077)
		return sentence(ret_error, -EPERM,
			"%s/%s has mode %04o: others may have read its keys; chmod 0600, or move "
			"it away to begin with a new key",
			keys->directory, keys->name, (unsigned)(status->st_mode & 07777));
	return 0;
}

/* -ENOENT without a sentence if there is no file. */
static int read_state(const struct keys *keys, int directory, json_t **ret, char **ret_error)
{
	_cleanup_close_ int fd =
		openat(directory, keys->name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	char *text;
	json_error_t error;
	struct stat status;
	ssize_t n;
	int r;

	if (fd < 0 || fstat(fd, &status) < 0) {
		r = -errno;
		if (r == -ENOENT)
			return r;
		return sentence(ret_error, r, "cannot open %s/%s: %s", keys->directory, keys->name,
			strerror(-r));
	}
	r = check_state_file(keys, &status, ret_error);
	if (r < 0)
		return r;
	text = malloc(STATE_OCTETS_MAX);
	if (!text)
		return -ENOMEM;
	n = read(fd, text, STATE_OCTETS_MAX);
	r = n < 0 ? -errno : 0;
	if (n >= 0 && n < STATE_OCTETS_MAX)
		*ret = json_loadb(text, (size_t)n, JSON_REJECT_DUPLICATES, &error);
	else
		*ret = NULL;
	explicit_bzero(text, STATE_OCTETS_MAX);
	free(text);
	if (r < 0)
		return sentence(ret_error, r, "cannot read %s/%s: %s", keys->directory, keys->name,
			strerror(-r));
	if (n == STATE_OCTETS_MAX)
		return sentence(ret_error, -EBADMSG, "%s/%s is longer than any state of keys",
			keys->directory, keys->name);
	if (!*ret)
		return sentence(ret_error, -EBADMSG,
			"%s/%s:%d: %s; restore it, or move it away to begin with a new key",
			keys->directory, keys->name, error.line, error.text);
	return 0;
}

static int write_octets(int fd, const char *text, size_t length)
{
	while (length) {
		ssize_t n = write(fd, text, length);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		text += n;
		length -= (size_t)n;
	}
	return fsync(fd) < 0 ? -errno : 0;
}

/* Replaces the file as a whole; on disk when it returns 0. */
static int write_state(const struct keys *keys, int directory, const json_t *root)
{
	char temporary[256];
	_cleanup_close_ int fd = -1;
	char *text;
	int r;

	/* The lock is ours: what has this name is left from a crash. */
	snprintf(temporary, sizeof(temporary), ".%s.new", keys->name);
	if (unlinkat(directory, temporary, 0) < 0 && errno != ENOENT)
		return -errno;
	text = json_dumps(root, JSON_INDENT(2));
	if (!text)
		return -ENOMEM;
	fd = openat(
		directory, temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	r = fd < 0 ? -errno : write_octets(fd, text, strlen(text));
	explicit_bzero(text, strlen(text));
	free(text);
	if (r >= 0 && renameat(directory, temporary, directory, keys->name) < 0)
		r = -errno;
	if (r >= 0 && fsync(directory) < 0)
		r = -errno;
	if (r < 0)
		unlinkat(directory, temporary, 0);
	return r;
}

/* The keys of a state; 0 if it has none, 1 if it has, -EBADMSG. */
static int get_keys(const json_t *root, struct keys *ret)
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

static int set_hex(json_t *object, const char *name, const uint8_t *octets, size_t n)
{
	char text[2 * 32 + 1];
	int r;

	hex_write(text, octets, n);
	r = json_object_set_new(object, name, json_string(text));
	explicit_bzero(text, sizeof(text));
	return r < 0 ? -ENOMEM : 0;
}

static int set_keys(json_t *root, const struct keys *keys)
{
	_cleanup_(json_freep) json_t *list = json_array();

	for (unsigned i = 0; list && i < KEYS_MAX; i++) {
		_cleanup_(json_freep) json_t *entry = NULL;

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

/* The entry of the current key, NULL if there is none. -EBADMSG if any is malformed. */
static int find_prefixes(const json_t *list, const struct keys *keys, json_t **ret)
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
			json_integer_value(next) > (json_int_t)NONCE_END)
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

static int set_prefixes(json_t *root, json_t *entry, const struct keys *keys, uint64_t next)
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

/*
 * The state under the lock: one that can be changed and written back, an empty one if there is no
 * file. ret_found (may be NULL): the keys in it, all invalid if it has none.
 */
static int begin_change(const struct keys *keys, int *ret_directory, json_t **ret_root,
	struct keys *ret_found, char **ret_error)
{
	_cleanup_close_ int directory = lock_directory(keys, ret_error);
	_cleanup_(json_freep) json_t *root = NULL;
	struct keys found = {};
	json_t *entry;
	int r;

	if (directory < 0)
		return directory;
	r = read_state(keys, directory, &root, ret_error);
	if (r == -ENOENT) {
		root = json_pack("{s:i}", "format", 1);
		r = root ? 0 : -ENOMEM;
	}
	if (r < 0)
		return r;
	r = get_keys(root, &found);
	if (r >= 0)
		r = find_prefixes(json_object_get(root, "nonce_prefixes"), &found, &entry);
	if (r < 0) {
		explicit_bzero(&found, sizeof(found));
		return sentence(ret_error, r,
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
	_cleanup_(json_freep) json_t *root = NULL;
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
		r = set_keys(root, keys);
	if (r >= 0)
		r = write_state(keys, directory, root);
	if (r < 0)
		return sentence(ret_error, r, "cannot keep the keys in %s/%s: %s", keys->directory,
			keys->name, strerror(-r));
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
		return sentence(ret_error, -EINVAL,
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
	_cleanup_(json_freep) json_t *root = NULL;
	_cleanup_free_ char *error = NULL;
	json_t *entry = NULL;
	uint64_t first, end;
	int r = 0;

	if (keys->directory) {
		r = begin_change(keys, &directory, &root, NULL, &error);
		if (r >= 0)
			r = find_prefixes(json_object_get(root, "nonce_prefixes"), keys, &entry);
		/* Somebody deleted the file: the keys are still in use. */
		if (r >= 0 && !keys->given && !json_object_get(root, "keys"))
			r = set_keys(root, keys);
		if (r < 0)
			return r;
	}
	first = begin_block(keys, entry);
	if (first >= NONCE_END)
		return -EOVERFLOW;
	end = MIN(first + NONCE_BLOCK, NONCE_END);
	if (keys->directory) {
		r = set_prefixes(root, entry, keys, end);
		if (r >= 0)
			r = write_state(keys, directory, root);
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
	_cleanup_(json_freep) json_t *root = NULL;
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
		r = set_keys(root, changed);
	return r < 0 ? r : write_state(keys, directory, root);
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

	if (json && set_keys(json, keys) < 0) {
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
	r = get_keys(json, keys);
	if (r <= 0 || block < 0 || block > (json_int_t)NONCE_END)
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
