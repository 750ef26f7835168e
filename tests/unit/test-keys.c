/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The keys of a listener: that no prefix of a nonce is ever given out twice, whatever ends the
 * process or happens to the file, that nothing damaged is replaced, and that each mistake in a key
 * file is told by its line. Includes the file under test to set its clock and to count its writes.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <time.h>

#include <cmocka.h>

static time_t fake_clock = 1000;
static unsigned n_renames;

static time_t fake_time(void)
{
	return fake_clock;
}

static int counted_renameat(int from_fd, const char *from, int to_fd, const char *to)
{
	n_renames++;
	return renameat(from_fd, from, to_fd, to);
}

#define time(x) fake_time()
#define renameat counted_renameat
#include "daemon/keys.c"
#undef renameat
#undef time

#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

#define STATE "web:quic.keys"
#define KEY_A "8f95f09245765f80256934e50c66207f"
#define KEY_B "4d9d0fd25a25e7f321ef464e13f9fa3d"

struct directory {
	char path[64];
	char state[96];
	char key_file[96];
};

static int make_directory(void **state)
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

static int remove_directory(void **state)
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

static struct keys *opened_with(const struct directory *directory, const char *key_file)
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

static struct keys *opened(const struct directory *directory)
{
	return opened_with(directory, NULL);
}

/* expected: "@" stands for the directory. */
static void assert_refused(
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

static void write_text(const char *path, mode_t mode, const char *text, size_t length)
{
	FILE *file = fopen(path, "we");

	assert_non_null(file);
	assert_int_equal(fwrite(text, 1, length, file), length);
	assert_int_equal(fclose(file), 0);
	assert_int_equal(chmod(path, mode), 0);
}

static void write_key_file(const struct directory *directory, const char *text)
{
	write_text(directory->key_file, 0600, text, strlen(text));
}

static char *read_text_of(const char *path)
{
	char *text = calloc(1, 65536);
	FILE *file = fopen(path, "re");

	assert_non_null(text);
	assert_non_null(file);
	assert_true(fread(text, 1, 65535, file) < 65535);
	fclose(file);
	return text;
}

static uint32_t next_prefix(struct keys *keys)
{
	uint8_t prefix[4];

	assert_int_equal(keys_next_nonce_prefix(keys, prefix), 0);
	return (uint32_t)prefix[0] << 24 | (uint32_t)prefix[1] << 16 | (uint32_t)prefix[2] << 8 |
	       prefix[3];
}

static int compare_prefixes(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return x < y ? -1 : x > y;
}

static void assert_distinct(uint32_t *prefixes, size_t n)
{
	qsort(prefixes, n, sizeof(*prefixes), compare_prefixes);
	for (size_t i = 1; i < n; i++)
		assert_int_not_equal(prefixes[i - 1], prefixes[i]);
}

static void the_next_start_finds_the_key_of_the_first(void **state)
{
	const struct directory *directory = *state;
	_cleanup_(keys_freep) struct keys *first = opened(directory), *second = opened(directory);
	static const uint8_t zero[32];
	struct stat status;

	assert_int_equal(first->current, 0);
	for (unsigned i = 0; i < KEYS_MAX; i++)
		assert_int_equal(first->valid[i], i == 0);
	assert_memory_not_equal(first->key[0], zero, 16);
	assert_memory_not_equal(first->token_secret, zero, 32);
	assert_true(same_keys(first, second));
	assert_int_equal(stat(directory->state, &status), 0);
	assert_int_equal(status.st_mode, S_IFREG | 0600);
	assert_int_equal(n_renames, 1);
}

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

static void five_thousand_prefixes_over_twenty_starts_are_distinct(void **state)
{
	const struct directory *directory = *state;
	uint32_t prefixes[5000];

	for (unsigned i = 0; i < 20; i++) {
		_cleanup_(keys_freep) struct keys *keys = opened(directory);

		for (unsigned j = 0; j < 250; j++)
			prefixes[250 * i + j] = next_prefix(keys);
	}
	assert_distinct(prefixes, ARRAY_SIZE(prefixes));
}

static void a_block_of_1024_is_on_disk_before_its_first_prefix(void **state)
{
	const struct directory *directory = *state;
	_cleanup_(keys_freep) struct keys *keys = opened(directory);
	_cleanup_free_ char *text = NULL;

	assert_int_equal(n_renames, 1); /* the key */
	assert_int_equal(next_prefix(keys), 1000);
	assert_int_equal(n_renames, 2);
	text = read_text_of(directory->state);
	assert_non_null(strstr(text, "\"next\": 2024"));
	for (unsigned i = 1; i < 1024; i++)
		assert_int_equal(next_prefix(keys), 1000 + i);
	assert_int_equal(n_renames, 2);
	assert_int_equal(next_prefix(keys), 2024);
	assert_int_equal(n_renames, 3);
}

/* A process takes n prefixes and ends by SIGKILL. */
static pid_t fork_taker(const struct directory *directory, unsigned n, int *ret_pipe)
{
	int fds[2];
	pid_t pid;

	assert_int_equal(pipe(fds), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		_cleanup_free_ char *error = NULL;
		struct keys *keys;
		uint8_t prefix[4];

		close(fds[0]);
		if (keys_open(&keys, directory->path, "web", "quic", NULL, &error) < 0)
			_exit(1);
		for (unsigned i = 0; i < n; i++) {
			if (keys_next_nonce_prefix(keys, prefix) < 0 ||
				write(fds[1], prefix, sizeof(prefix)) != sizeof(prefix))
				_exit(2);
		}
		raise(SIGKILL);
	}
	close(fds[1]);
	*ret_pipe = fds[0];
	return pid;
}

static void read_prefixes(int fd, uint32_t *prefixes, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		uint8_t octets[4];
		size_t length = 0;

		while (length < sizeof(octets)) {
			ssize_t got = read(fd, octets + length, sizeof(octets) - length);

			assert_true(got > 0);
			length += (size_t)got;
		}
		prefixes[i] = (uint32_t)octets[0] << 24 | (uint32_t)octets[1] << 16 |
			      (uint32_t)octets[2] << 8 | octets[3];
	}
	close(fd);
}

static void assert_killed(pid_t pid)
{
	int status;

	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSIGNALED(status));
	assert_int_equal(WTERMSIG(status), SIGKILL);
}

static void a_crash_repeats_no_prefix(void **state)
{
	uint32_t prefixes[5 * 1500];

	for (unsigned i = 0; i < 5; i++) {
		int fd;
		pid_t pid = fork_taker(*state, 1500, &fd);

		read_prefixes(fd, prefixes + 1500 * i, 1500);
		assert_killed(pid);
	}
	assert_distinct(prefixes, ARRAY_SIZE(prefixes));
}

static void processes_at_the_same_time_share_no_prefix(void **state)
{
	uint32_t prefixes[4 * 3000];
	int fds[4];
	pid_t pids[4];

	keys_free(opened(*state));
	for (unsigned i = 0; i < 4; i++)
		pids[i] = fork_taker(*state, 3000, &fds[i]);
	for (unsigned i = 0; i < 4; i++)
		read_prefixes(fds[i], prefixes + 3000 * i, 3000);
	for (unsigned i = 0; i < 4; i++)
		assert_killed(pids[i]);
	assert_distinct(prefixes, ARRAY_SIZE(prefixes));
}

static void two_openings_of_one_state_share_no_prefix(void **state)
{
	const struct directory *directory = *state;
	_cleanup_(keys_freep) struct keys *first = opened(directory), *second = opened(directory);
	uint32_t prefixes[6000];

	for (unsigned i = 0; i < 3000; i++) {
		prefixes[2 * i] = next_prefix(first);
		prefixes[2 * i + 1] = next_prefix(second);
	}
	assert_distinct(prefixes, ARRAY_SIZE(prefixes));
}

static void nothing_is_given_out_that_could_not_be_written(void **state)
{
	const struct directory *directory = *state;
	_cleanup_(keys_freep) struct keys *keys = opened(directory);
	_cleanup_free_ char *before = read_text_of(directory->state), *after = NULL;
	struct rlimit limit, none;
	uint8_t prefix[4], rotation = keys->current;

	signal(SIGXFSZ, SIG_IGN);
	assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
	none = (struct rlimit){.rlim_cur = 0, .rlim_max = limit.rlim_max};
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &none), 0);
	assert_int_equal(keys_next_nonce_prefix(keys, prefix), -EFBIG);
	assert_int_equal(keys_next_nonce_prefix(keys, prefix), -EFBIG);
	assert_int_equal(keys_rotate(keys), -EFBIG);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
	assert_int_equal(keys->current, rotation);
	assert_false(keys->valid[1]);
	after = read_text_of(directory->state);
	assert_string_equal(before, after);
	assert_int_equal(next_prefix(keys), 1000);
}

static void the_clock_goes_ahead_of_a_state_but_never_back(void **state)
{
	const struct directory *directory = *state;

	for (unsigned i = 0; i < 4; i++) {
		static const time_t clocks[] = {1000, 500, 1000000, 0};
		static const uint32_t expected[] = {1000, 2024, 1000000, 1001024};
		_cleanup_(keys_freep) struct keys *keys = opened(directory);

		fake_clock = clocks[i];
		assert_int_equal(next_prefix(keys), expected[i]);
	}
}

static void a_state_from_an_old_copy_repeats_no_prefix(void **state)
{
	const struct directory *directory = *state;
	_cleanup_free_ char *copy = NULL;
	uint32_t prefixes[4000];

	keys_free(opened(directory));
	copy = read_text_of(directory->state);
	for (unsigned i = 0; i < 2; i++) {
		_cleanup_(keys_freep) struct keys *keys = opened(directory);

		for (unsigned j = 0; j < 2000; j++)
			prefixes[2000 * i + j] = next_prefix(keys);
		fake_clock += 2000; /* one a second */
		write_text(directory->state, 0600, copy, strlen(copy));
	}
	assert_distinct(prefixes, ARRAY_SIZE(prefixes));
}

static void a_key_whose_prefixes_are_used_up_gives_no_more(void **state)
{
	const struct directory *directory = *state;
	_cleanup_(keys_freep) struct keys *keys = opened(directory);
	uint8_t prefix[4];

	fake_clock = UINT32_MAX - 9;
	for (unsigned i = 0; i < 10; i++)
		assert_int_equal(next_prefix(keys), UINT32_MAX - 9 + i);
	assert_int_equal(keys_next_nonce_prefix(keys, prefix), -EOVERFLOW);
	fake_clock = 1000;
	assert_int_equal(keys_next_nonce_prefix(keys, prefix), -EOVERFLOW);
	keys_free(keys);
	keys = opened(directory);
	assert_int_equal(keys_next_nonce_prefix(keys, prefix), -EOVERFLOW);
	assert_int_equal(keys_rotate(keys), 0);
	assert_int_equal(next_prefix(keys), 1000);
}

static void rotations_are_seven_until_one_is_retired(void **state)
{
	const struct directory *directory = *state;
	_cleanup_(keys_freep) struct keys *keys = opened(directory), *again = NULL;
	uint8_t first[16];

	memcpy(first, keys->key[0], 16);
	for (unsigned i = 1; i < KEYS_MAX; i++) {
		assert_int_equal(keys_rotate(keys), 0);
		assert_int_equal(keys->current, i);
		for (unsigned j = 0; j < KEYS_MAX; j++)
			assert_int_equal(keys->valid[j], j <= i);
		for (unsigned j = 0; j < i; j++)
			assert_memory_not_equal(keys->key[j], keys->key[i], 16);
	}
	assert_memory_equal(keys->key[0], first, 16);
	again = opened(directory);
	assert_true(same_keys(keys, again));
	assert_int_equal(keys_rotate(keys), -EBUSY);
	assert_true(same_keys(keys, again));

	assert_int_equal(keys_retire(keys, 3), 0);
	assert_int_equal(keys_rotate(keys), 0);
	assert_int_equal(keys->current, 3);
	assert_memory_not_equal(keys->key[3], again->key[3], 16);
	keys_free(again);
	again = opened(directory);
	assert_true(same_keys(keys, again));
}

static void a_retired_key_is_neither_in_memory_nor_on_disk(void **state)
{
	const struct directory *directory = *state;
	_cleanup_(keys_freep) struct keys *keys = opened(directory);
	_cleanup_free_ char *before = NULL, *after = NULL;
	static const uint8_t zero[16];
	char digits[33];

	hex_write(digits, keys->key[0], 16);
	assert_int_equal(keys_retire(keys, 0), -EINVAL); /* the current one */
	assert_int_equal(keys_rotate(keys), 0);
	before = read_text_of(directory->state);
	assert_non_null(strstr(before, digits));
	assert_int_equal(keys_retire(keys, 0), 0);
	assert_false(keys->valid[0]);
	assert_memory_equal(keys->key[0], zero, 16);
	after = read_text_of(directory->state);
	assert_null(strstr(after, digits));

	n_renames = 0;
	assert_int_equal(keys_retire(keys, 0), 0);
	assert_int_equal(keys_retire(keys, KEYS_MAX), -EINVAL);
	assert_int_equal(n_renames, 0);
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
	_cleanup_free_ char *large = calloc(1, STATE_OCTETS_MAX);

	write_text(directory->state, 0600, "{\"format\": 1,\n\"current\": 0", 26);
	assert_refused(directory, NULL, -EBADMSG,
		"@/" STATE ":2: '}' expected near end of file; restore it, or move it away to "
		"begin with a new key");
	write_text(directory->state, 0600, "", 0);
	assert_refused(directory, NULL, -EBADMSG,
		"@/" STATE ":1: '[' or '{' expected near end of file; restore it, or move it away "
		"to begin with a new key");
	write_text(directory->state, 0600, large, STATE_OCTETS_MAX);
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
	_cleanup_(json_freep) json_t *root = NULL;
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

#define keys_test(name) cmocka_unit_test_setup_teardown(name, make_directory, remove_directory)

int main(void)
{
	const struct CMUnitTest tests[] = {
		keys_test(the_next_start_finds_the_key_of_the_first),
		keys_test(listeners_have_files_and_keys_of_their_own),
		keys_test(no_name_leads_out_of_the_directory),
		keys_test(five_thousand_prefixes_over_twenty_starts_are_distinct),
		keys_test(a_block_of_1024_is_on_disk_before_its_first_prefix),
		keys_test(a_crash_repeats_no_prefix),
		keys_test(processes_at_the_same_time_share_no_prefix),
		keys_test(two_openings_of_one_state_share_no_prefix),
		keys_test(nothing_is_given_out_that_could_not_be_written),
		keys_test(the_clock_goes_ahead_of_a_state_but_never_back),
		keys_test(a_state_from_an_old_copy_repeats_no_prefix),
		keys_test(a_key_whose_prefixes_are_used_up_gives_no_more),
		keys_test(rotations_are_seven_until_one_is_retired),
		keys_test(a_retired_key_is_neither_in_memory_nor_on_disk),
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
