/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The keys of a listener in a directory of the test's own. Includes the file under test to set its
 * clock and to count its writes.
 */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <time.h>

#include <cmocka.h>

static time_t fake_clock = 1000;
static unsigned n_renames;

static inline time_t fake_time(void)
{
	return fake_clock;
}

static inline int counted_renameat(int from_fd, const char *from, int to_fd, const char *to)
{
	n_renames++;
	return renameat(from_fd, from, to_fd, to);
}

#define time(x) fake_time()
#define renameat counted_renameat
#include "daemon/keys-disk.c"
#include "daemon/keys.c"
#undef renameat
#undef time

#define STATE "web:quic.keys"
#define KEY_A "8f95f09245765f80256934e50c66207f"
#define KEY_B "4d9d0fd25a25e7f321ef464e13f9fa3d"

struct directory {
	char path[64];
	char state[96];
	char key_file[96];
};

static inline int make_directory(void **state)
{
	struct directory *directory = calloc(1, sizeof(*directory));

	assert_non_null(directory);
	strcpy(directory->path, "/tmp/test-keys.XXXXXX");
	assert_non_null(mkdtemp(directory->path));
	snprintf(directory->state, sizeof(directory->state), "%s/" STATE, directory->path);
	snprintf(directory->key_file, sizeof(directory->key_file), "%s/given", directory->path);
	fake_clock = 1000;
	n_renames = 0;
	*state = directory;
	return 0;
}

static inline int remove_directory(void **state)
{
	struct directory *directory = *state;
	bool left;

	unlink(directory->state);
	unlink(directory->key_file);
	/* Nothing else may be left in it. */
	left = rmdir(directory->path) < 0;
	free(directory);
	return left ? -1 : 0;
}

static inline struct keys *opened_with(const struct directory *directory, const char *key_file)
{
	_cleanup_free_ char *error = NULL;
	struct keys *keys = NULL;
	int r = keys_open(&keys, directory->path, "web", "quic", key_file, &error);

	if (error)
		print_error("%s\n", error);
	assert_int_equal(r, 0);
	assert_null(error);
	return keys;
}

static inline struct keys *opened(const struct directory *directory)
{
	return opened_with(directory, NULL);
}

/* expected: "@" stands for the directory. */
static inline void assert_refused(
	const struct directory *directory, const char *key_file, int error, const char *expected)
{
	_cleanup_free_ char *message = NULL, *text = NULL;
	const char *mark = strchr(expected, '@');
	int before = mark ? (int)(mark - expected) : 0;
	struct keys *keys = NULL;

	assert_int_equal(
		keys_open(&keys, directory->path, "web", "quic", key_file, &message), error);
	assert_null(keys);
	assert_non_null(message);
	if (mark)
		assert_true(asprintf(&text, "%.*s%s%s", before, expected, directory->path,
				    mark + 1) > 0);
	assert_string_equal(message, mark ? text : expected);
}

static inline void write_text(const char *path, mode_t mode, const char *text, size_t length)
{
	FILE *file = fopen(path, "we");

	assert_non_null(file);
	assert_int_equal(fwrite(text, 1, length, file), length);
	assert_int_equal(fclose(file), 0);
	assert_int_equal(chmod(path, mode), 0);
}

static inline char *read_text_of(const char *path)
{
	char *text = calloc(1, 65536);
	FILE *file = fopen(path, "re");

	assert_non_null(text);
	assert_non_null(file);
	assert_true(fread(text, 1, 65535, file) < 65535);
	fclose(file);
	return text;
}

static inline uint32_t next_prefix(struct keys *keys)
{
	uint8_t prefix[4];

	assert_int_equal(keys_next_nonce_prefix(keys, prefix), 0);
	return (uint32_t)prefix[0] << 24 | (uint32_t)prefix[1] << 16 | (uint32_t)prefix[2] << 8 |
	       prefix[3];
}

static inline int compare_prefixes(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return x < y ? -1 : x > y;
}

static inline void assert_distinct(uint32_t *prefixes, size_t n)
{
	qsort(prefixes, n, sizeof(*prefixes), compare_prefixes);
	for (size_t i = 1; i < n; i++)
		assert_int_not_equal(prefixes[i - 1], prefixes[i]);
}

#define keys_test(name) cmocka_unit_test_setup_teardown(name, make_directory, remove_directory)
