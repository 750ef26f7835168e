/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * No prefix of a nonce is ever given out twice, whatever ends the process or happens to the file;
 * a rotation of keys, and what is left of a retired one.
 */
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "common/hex.h"
#include "tests/unit/keys-fixture.h"

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

int main(void)
{
	const struct CMUnitTest tests[] = {
		keys_test(the_next_start_finds_the_key_of_the_first),
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
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
