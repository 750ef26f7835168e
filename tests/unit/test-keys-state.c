/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The file that keys are kept in: nothing damaged is replaced, nothing foreign is read, and nothing
 * is written elsewhere.
 */
#include "tests/unit/keys-fixture.h"

static void listeners_have_files_and_keys_of_their_own(void **state)
{
	/* Both would be a.b.c with a dot between the names. */
	static const char *const names[][3] = {
		{"a", "b.c", "a:b.c.keys"}, {"a.b", "c", "a.b:c.keys"}};
	const struct directory *directory = *state;
	struct keys *keys[2] = {};

	for (unsigned i = 0; i < 2; i++) {
		_cleanup_free_ char *error = NULL, *path = NULL;

		assert_int_equal(keys_open(&keys[i], directory->path, names[i][0], names[i][1],
					 NULL, &error),
			0);
		assert_true(asprintf(&path, "%s/%s", directory->path, names[i][2]) > 0);
		assert_int_equal(unlink(path), 0);
	}
	assert_memory_not_equal(keys[0]->key[0], keys[1]->key[0], 16);
	keys_free(keys[0]);
	keys_free(keys[1]);
}

static void no_name_leads_out_of_the_directory(void **state)
{
	const struct directory *directory = *state;
	static const char *const names[][2] = {{"../web", "quic"}, {"web", "a/b"}, {"web", "a:b"}};

	for (unsigned i = 0; i < ARRAY_SIZE(names); i++) {
		_cleanup_free_ char *error = NULL;
		struct keys *keys = NULL;

		assert_int_equal(
			keys_open(&keys, directory->path, names[i][0], names[i][1], NULL, &error),
			-EINVAL);
		assert_non_null(error);
		assert_null(keys);
	}
}

static void keys_that_somebody_else_changed_are_not_overwritten(void **state)
{
	const struct directory *directory = *state;
	_cleanup_(keys_freep) struct keys *first = opened(directory), *second = opened(directory);
	_cleanup_(keys_freep) struct keys *now = NULL;

	assert_int_equal(keys_rotate(first), 0);
	assert_int_equal(keys_rotate(second), -ESTALE);
	assert_int_equal(second->current, 0);
	now = opened(directory);
	assert_true(same_keys(now, first));
	/* Prefixes are still had, each by its own key. */
	assert_int_equal(next_prefix(first), 1000);
	assert_int_equal(next_prefix(second), 1000);
	keys_free(now);
	now = opened(directory);
	assert_true(same_keys(now, first));
}

static void a_state_file_deleted_meanwhile_comes_back(void **state)
{
	const struct directory *directory = *state;
	_cleanup_(keys_freep) struct keys *keys = opened(directory), *again = NULL;
	uint32_t prefixes[1100];

	for (unsigned i = 0; i < 600; i++)
		prefixes[i] = next_prefix(keys);
	assert_int_equal(unlink(directory->state), 0);
	for (unsigned i = 600; i < 1100; i++)
		prefixes[i] = next_prefix(keys);
	assert_distinct(prefixes, ARRAY_SIZE(prefixes));
	again = opened(directory);
	assert_true(same_keys(keys, again));
	assert_int_equal(next_prefix(again), 1000 + 2048);
}

static void what_a_crash_left_behind_is_no_obstacle(void **state)
{
	const struct directory *directory = *state;
	char path[96];

	snprintf(path, sizeof(path), "%s/.%s.new", directory->path, STATE);
	write_text(path, 0600, "{", 1);
	keys_free(opened(directory));
	assert_int_equal(access(path, F_OK), -1);
}

static void a_damaged_state_is_refused_and_stays(void **state)
{
	static const char not_understood[] = "@/" STATE " is not a state of keys that this version "
					     "understands; restore it, or move it away to "
					     "begin with a new key";
	static const char *const texts[] = {
		"[]",
		"{}",
		"{\"format\": 2}",
		"{\"format\": \"1\"}",
		"{\"format\": 1, \"keys\": {}}",
		"{\"format\": 1, \"keys\": []}",
		"{\"format\": 1, \"current\": 0, \"keys\": [{\"rotation\": 0}]}",
		"{\"format\": 1, \"current\": 0, \"keys\": [{\"rotation\": 0, \"key\": \"" KEY_A
		"\"}]}",
		"{\"format\": 1, \"current\": 1, \"keys\": [{\"rotation\": 0, \"key\": \"" KEY_A
		"\"}], \"token_secret\": \"" KEY_A KEY_A "\"}",
		"{\"format\": 1, \"current\": 7, \"keys\": [{\"rotation\": 7, \"key\": \"" KEY_A
		"\"}], \"token_secret\": \"" KEY_A KEY_A "\"}",
		"{\"format\": 1, \"current\": 0, \"keys\": [{\"rotation\": 0, \"key\": \"" KEY_A
		"\"}, {\"rotation\": 0, \"key\": \"" KEY_B "\"}], \"token_secret\": \"" KEY_A KEY_A
		"\"}",
		"{\"format\": 1, \"current\": 0, \"keys\": [{\"rotation\": 0, \"key\": \"" KEY_A
		"\"}], \"token_secret\": \"" KEY_A KEY_A "\", \"nonce_prefixes\": {}}",
		"{\"format\": 1, \"current\": 0, \"keys\": [{\"rotation\": 0, \"key\": \"" KEY_A
		"\"}], \"token_secret\": \"" KEY_A KEY_A
		"\", \"nonce_prefixes\": [{\"key_digest\": \"" KEY_A "\", \"next\": -1}]}",
		"{\"format\": 1, \"nonce_prefixes\": [{\"key_digest\": \"" KEY_A
		"\", \"next\": 4294967297}]}",
		"{\"format\": 1, \"nonce_prefixes\": [{\"key_digest\": \"x\", \"next\": 1}]}",
	};
	const struct directory *directory = *state;

	for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
		_cleanup_free_ char *after = NULL;

		write_text(directory->state, 0600, texts[i], strlen(texts[i]));
		assert_refused(directory, NULL, -EBADMSG, not_understood);
		after = read_text_of(directory->state);
		assert_string_equal(after, texts[i]);
	}
	assert_int_equal(n_renames, 0);
}

static void a_state_that_is_no_json_is_refused_with_its_line(void **state)
{
	const struct directory *directory = *state;
	_cleanup_free_ char *large = calloc(1, FILE_OCTETS_MAX);

	write_text(directory->state, 0600, "{\"format\": 1,\n\"current\": 0", 26);
	assert_refused(directory, NULL, -EBADMSG,
		"@/" STATE ":2: '}' expected near end of file; restore it, or move it away to "
		"begin with a new key");
	write_text(directory->state, 0600, "", 0);
	assert_refused(directory, NULL, -EBADMSG,
		"@/" STATE ":1: '[' or '{' expected near end of file; restore it, or move it away "
		"to begin with a new key");
	write_text(directory->state, 0600, large, FILE_OCTETS_MAX);
	assert_refused(directory, NULL, -EBADMSG, "@/" STATE " is longer than any state of keys");
	assert_int_equal(n_renames, 0);
}

/* A state that was good at the start may not be later. */
static void a_state_damaged_meanwhile_gives_out_nothing(void **state)
{
	const struct directory *directory = *state;
	_cleanup_(keys_freep) struct keys *keys = opened(directory);
	_cleanup_free_ char *after = NULL;
	uint8_t prefix[4];

	write_text(directory->state, 0600, "{}", 2);
	assert_int_equal(keys_next_nonce_prefix(keys, prefix), -EBADMSG);
	assert_int_equal(keys_rotate(keys), -EBADMSG);
	after = read_text_of(directory->state);
	assert_string_equal(after, "{}");
}

static void a_state_that_others_could_read_is_refused(void **state)
{
	const struct directory *directory = *state;
	static const mode_t modes[] = {0640, 0620, 0604, 0601, 0666};

	keys_free(opened(directory));
	for (unsigned i = 0; i < ARRAY_SIZE(modes); i++) {
		char expected[200];

		assert_int_equal(chmod(directory->state, modes[i]), 0);
		snprintf(expected, sizeof(expected),
			"@/" STATE " has mode %04o: others may have read its keys; chmod 0600, or "
			"move it away to begin with a new key",
			(unsigned)modes[i]);
		assert_refused(directory, NULL, -EPERM, expected);
	}
	assert_int_equal(chmod(directory->state, 0600), 0);
	keys_free(opened(directory));
}

static void a_state_of_another_user_is_refused(void **state)
{
	const struct directory *directory = *state;

	if (geteuid() != 0) {
		print_message("needs root, to give a file away\n");
		skip();
	}
	keys_free(opened(directory));
	assert_int_equal(chown(directory->state, 12345, 0), 0);
	assert_refused(directory, NULL, -EPERM,
		"@/" STATE " belongs to user 12345, not to the daemon's (0); chown it, or move it "
		"away to begin with a new key");
}

static void a_state_is_never_followed_elsewhere(void **state)
{
	const struct directory *directory = *state;

	assert_int_equal(symlink("/dev/null", directory->state), 0);
	assert_refused(directory, NULL, -ELOOP,
		"cannot open @/" STATE ": Too many levels of symbolic links");
	assert_int_equal(unlink(directory->state), 0);
	assert_int_equal(mkdir(directory->state, 0700), 0);
	assert_refused(directory, NULL, -EPERM, "@/" STATE " is not a regular file");
	assert_int_equal(rmdir(directory->state), 0);
}

static void a_directory_that_others_write_in_is_refused(void **state)
{
	const struct directory *directory = *state;
	assert_int_equal(chmod(directory->path, 0770), 0);
	assert_refused(directory, NULL, -EPERM,
		"the state directory @ has mode 0770: others could replace the keys in it; chmod "
		"0700");
	assert_int_equal(chmod(directory->path, 0700), 0);
}

static void a_directory_that_is_not_there_is_told(void **state)
{
	_cleanup_free_ char *error = NULL;
	struct keys *keys = NULL;

	assert_int_equal(
		keys_open(&keys, "/nonexistent/state", "web", "quic", NULL, &error), -ENOENT);
	assert_null(keys);
	assert_string_equal(error,
		"cannot open the state directory /nonexistent/state: No such file or directory");
}

static void without_a_directory_all_is_in_memory(void **state)
{
	_cleanup_free_ char *error = NULL;
	_cleanup_(keys_freep) struct keys *first = NULL, *second = NULL;

	assert_int_equal(keys_open(&first, NULL, "web", "quic", NULL, &error), 0);
	assert_int_equal(keys_open(&second, NULL, "web", "quic", NULL, &error), 0);
	assert_false(same_keys(first, second));
	for (unsigned i = 0; i < 3000; i++)
		assert_int_equal(next_prefix(first), 1000 + i);
	assert_int_equal(keys_rotate(first), 0);
	assert_int_equal(first->current, 1);
	assert_int_equal(next_prefix(first), 1000);
	assert_int_equal(keys_retire(first, 0), 0);
	assert_false(first->valid[0]);
	assert_int_equal(n_renames, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		keys_test(listeners_have_files_and_keys_of_their_own),
		keys_test(no_name_leads_out_of_the_directory),
		keys_test(keys_that_somebody_else_changed_are_not_overwritten),
		keys_test(a_state_file_deleted_meanwhile_comes_back),
		keys_test(what_a_crash_left_behind_is_no_obstacle),
		keys_test(a_damaged_state_is_refused_and_stays),
		keys_test(a_state_that_is_no_json_is_refused_with_its_line),
		keys_test(a_state_damaged_meanwhile_gives_out_nothing),
		keys_test(a_state_that_others_could_read_is_refused),
		keys_test(a_state_of_another_user_is_refused),
		keys_test(a_state_is_never_followed_elsewhere),
		keys_test(a_directory_that_others_write_in_is_refused),
		keys_test(a_directory_that_is_not_there_is_told),
		keys_test(without_a_directory_all_is_in_memory),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
