/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Keys that a file gives: what becomes of them beside those of the state, and each mistake by its
 * line.
 */
#include "common/hex.h"
#include "tests/unit/keys-fixture.h"

static void write_key_file(const struct directory *directory, const char *text)
{
	write_text(directory->key_file, 0600, text, strlen(text));
}

static void a_key_file_gives_all_its_keys(void **state)
{
	const struct directory *directory = *state;
	_cleanup_(keys_freep) struct keys *keys = NULL;
	uint8_t expected[32];

	write_key_file(directory, "# of all hosts\n\n  2 " KEY_A "\t# the current one\r\n"
				  "0\t4D9D0FD25A25E7F321EF464E13F9FA3D");
	keys = opened_with(directory, directory->key_file);
	assert_int_equal(keys->current, 2);
	for (unsigned i = 0; i < KEYS_MAX; i++)
		assert_int_equal(keys->valid[i], i == 0 || i == 2);
	assert_true(hex_read(KEY_A, expected, 16));
	assert_memory_equal(keys->key[2], expected, 16);
	assert_true(hex_read(KEY_B, expected, 16));
	assert_memory_equal(keys->key[0], expected, 16);
	/* HMAC-SHA256 by Python's hmac module. */
	assert_true(hex_read(
		"b725c82c1d6367db4574b5622d65be1cca6999d1264974420526f807a1dad3ec", expected, 32));
	assert_memory_equal(keys->token_secret, expected, 32);

	keys_free(keys);
	write_key_file(directory, "secret " KEY_B KEY_A "\n2 " KEY_A "\n");
	keys = opened_with(directory, directory->key_file);
	assert_true(hex_read(KEY_B KEY_A, expected, 32));
	assert_memory_equal(keys->token_secret, expected, 32);
	assert_int_equal(keys->current, 2);
}

static void given_keys_are_rotated_by_their_file_alone(void **state)
{
	const struct directory *directory = *state;
	_cleanup_(keys_freep) struct keys *keys = NULL;

	write_key_file(directory, "1 " KEY_A "\n2 " KEY_B "\n");
	keys = opened_with(directory, directory->key_file);
	assert_int_equal(keys_rotate(keys), -EOPNOTSUPP);
	assert_int_equal(keys->current, 1);
	assert_int_equal(keys_retire(keys, 1), -EINVAL);
	assert_int_equal(keys_retire(keys, 2), 0);
	assert_false(keys->valid[2]);
	assert_int_equal(n_renames, 0);
}

static void given_keys_leave_those_of_the_state_alone(void **state)
{
	const struct directory *directory = *state;
	_cleanup_(keys_freep) struct keys *made = opened(directory), *given = NULL, *again = NULL;

	write_key_file(directory, "1 " KEY_A "\n");
	given = opened_with(directory, directory->key_file);
	assert_false(same_keys(made, given));
	assert_int_equal(next_prefix(given), 1000);
	assert_int_equal(next_prefix(made), 1000);
	again = opened(directory);
	assert_true(same_keys(made, again));
}

static void prefixes_go_by_the_key(void **state)
{
	static const struct {
		const char *file;
		time_t clock;
		uint32_t expected;
	} steps[] = {
		{"1 " KEY_A "\n", 1000, 1000},
		{"1 " KEY_B "\n", 1010, 1010},
		{"1 " KEY_A "\n", 1020, 2024}, /* not what it had before */
		{"3 " KEY_A "\n", 1030, 3048}, /* nor under another rotation */
		{"0 " KEY_B "\n1 " KEY_A "\n", 1040, 2034},
	};
	const struct directory *directory = *state;

	for (unsigned i = 0; i < ARRAY_SIZE(steps); i++) {
		_cleanup_(keys_freep) struct keys *keys = NULL;

		fake_clock = steps[i].clock;
		write_key_file(directory, steps[i].file);
		keys = opened_with(directory, directory->key_file);
		assert_int_equal(next_prefix(keys), steps[i].expected);
	}
}

/* The state was lost with the disk; the file came back with the host's configuration. */
static void a_given_key_without_its_state_repeats_no_prefix(void **state)
{
	const struct directory *directory = *state;
	uint32_t prefixes[4000];

	write_key_file(directory, "1 " KEY_A "\n");
	for (unsigned i = 0; i < 2; i++) {
		_cleanup_(keys_freep) struct keys *keys =
			opened_with(directory, directory->key_file);

		for (unsigned j = 0; j < 2000; j++)
			prefixes[2000 * i + j] = next_prefix(keys);
		fake_clock += 2000; /* one a second */
		assert_int_equal(unlink(directory->state), 0);
	}
	assert_distinct(prefixes, ARRAY_SIZE(prefixes));
}

static void the_state_remembers_64_keys_and_no_more(void **state)
{
	const struct directory *directory = *state;
	json_auto_t *root = NULL;
	_cleanup_free_ char *text = NULL;

	for (unsigned i = 0; i < 70; i++) {
		_cleanup_(keys_freep) struct keys *keys = NULL;
		char line[64];

		fake_clock++;
		snprintf(line, sizeof(line), "0 %032x\n", i);
		write_key_file(directory, line);
		keys = opened_with(directory, directory->key_file);
		assert_int_equal(next_prefix(keys), fake_clock);
	}
	text = read_text_of(directory->state);
	root = json_loads(text, 0, NULL);
	assert_int_equal(json_array_size(json_object_get(root, "nonce_prefixes")), 64);
	/* Those used last. */
	fake_clock = 0;
	for (unsigned i = 6; i < 70; i++) {
		_cleanup_(keys_freep) struct keys *keys = NULL;
		char line[64];

		snprintf(line, sizeof(line), "0 %032x\n", i);
		write_key_file(directory, line);
		keys = opened_with(directory, directory->key_file);
		assert_int_equal(next_prefix(keys), 1001 + i + 1024);
	}
}

static void mistakes_in_a_key_file_are_told_by_line(void **state)
{
	static const struct {
		const char *text, *expected;
	} cases[] = {
		{"", "@/given: no key in it; a line ROTATION and 32 hexadecimal digits is needed"},
		{"# 1 " KEY_A "\nsecret " KEY_A KEY_A,
			"@/given: no key in it; a line ROTATION and 32 hexadecimal digits is "
			"needed"},
		{"1 " KEY_A "\n7 " KEY_B,
			"@/given:2: begins with neither a config rotation from 0 to 6 nor with "
			"secret"},
		{"-1 " KEY_A,
			"@/given:1: begins with neither a config rotation from 0 to 6 nor with "
			"secret"},
		{"Secret " KEY_A KEY_A,
			"@/given:1: begins with neither a config rotation from 0 to 6 nor with "
			"secret"},
		{"\n\n1 " KEY_A "0", "@/given:3: the key has to be 32 hexadecimal digits"},
		{"1 " KEY_A "\n2 8f95f09245765f80256934e50c66207",
			"@/given:2: the key has to be 32 hexadecimal digits"},
		{"1 8f95f09245765f80256934e50c66207g",
			"@/given:1: the key has to be 32 hexadecimal digits"},
		{"1\n", "@/given:1: not two words: ROTATION and 32 hexadecimal digits, or secret "
			"and 64"},
		{"1 " KEY_A " " KEY_B,
			"@/given:1: not two words: ROTATION and 32 hexadecimal digits, or secret "
			"and 64"},
		{"1 " KEY_A "\n# x\n1 " KEY_B,
			"@/given:3: config rotation 1 has a key on line 1 already"},
		{"1 " KEY_A "\n2 " KEY_A,
			"@/given:2: the key is that of config rotation 1 (line 1) already; each "
			"needs a key of its own"},
		{"1 " KEY_A "\nsecret " KEY_A KEY_A "\nsecret " KEY_A KEY_A,
			"@/given:3: a second secret"},
		{"1 " KEY_A "\nsecret " KEY_A,
			"@/given:2: the secret has to be 64 hexadecimal digits"},
	};
	const struct directory *directory = *state;

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		write_key_file(directory, cases[i].text);
		assert_refused(directory, directory->key_file, -EBADMSG, cases[i].expected);
	}
	write_text(directory->key_file, 0600, "1 " KEY_A "\n\0", 37);
	assert_refused(directory, directory->key_file, -EBADMSG,
		"@/given:2: the line contains a NUL octet");
	assert_int_equal(access(directory->state, F_OK), -1);
}

static void a_key_file_is_of_bounded_length(void **state)
{
	const struct directory *directory = *state;
	_cleanup_free_ char *text = malloc(16385);

	memset(text, '#', 16385);
	memcpy(text, "1 " KEY_A, 34);
	write_text(directory->key_file, 0600, text, 16384);
	keys_free(opened_with(directory, directory->key_file));
	write_text(directory->key_file, 0600, text, 16385);
	assert_refused(
		directory, directory->key_file, -EBADMSG, "@/given: longer than 16384 octets");
}

static void a_key_file_that_others_could_read_is_refused(void **state)
{
	static const mode_t good[] = {0400, 0440, 0600, 0640}, bad[] = {0644, 0660, 0604, 0602};
	const struct directory *directory = *state;

	write_key_file(directory, "1 " KEY_A "\n");
	for (unsigned i = 0; i < ARRAY_SIZE(good); i++) {
		assert_int_equal(chmod(directory->key_file, good[i]), 0);
		keys_free(opened_with(directory, directory->key_file));
	}
	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
		char expected[200];

		assert_int_equal(chmod(directory->key_file, bad[i]), 0);
		snprintf(expected, sizeof(expected),
			"@/given: mode is %04o: keys must not be readable by others or writable by "
			"the group; chmod 0640 or 0600",
			(unsigned)bad[i]);
		assert_refused(directory, directory->key_file, -EPERM, expected);
	}
}

static void a_key_file_has_to_be_a_file(void **state)
{
	const struct directory *directory = *state;

	assert_refused(directory, directory->key_file, -ENOENT,
		"@/given: cannot open the key file: No such file or directory");
	assert_refused(directory, "/dev/null", -EBADMSG, "/dev/null: not a regular file");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		keys_test(a_key_file_gives_all_its_keys),
		keys_test(given_keys_are_rotated_by_their_file_alone),
		keys_test(given_keys_leave_those_of_the_state_alone),
		keys_test(prefixes_go_by_the_key),
		keys_test(a_given_key_without_its_state_repeats_no_prefix),
		keys_test(the_state_remembers_64_keys_and_no_more),
		keys_test(mistakes_in_a_key_file_are_told_by_line),
		keys_test(a_key_file_is_of_bounded_length),
		keys_test(a_key_file_that_others_could_read_is_refused),
		keys_test(a_key_file_has_to_be_a_file),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
