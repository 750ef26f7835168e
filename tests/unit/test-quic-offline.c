/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What reuseportctl says without a daemon: for every case of the two sets of vectors the right JSON
 * and exit status 0, and for each kind of wrong usage exit status 2 and nothing on stdout.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/unit/vectors.h"
#include "tools/offline.h"

#define ARGUMENTS_MAX 20

typedef int (*verb_function)(int argc, char **argv);

static void copy_back(int from, int to)
{
	fflush(to == STDOUT_FILENO ? stdout : stderr);
	assert_int_equal(dup2(from, to), to);
	close(from);
}

/*
 * Calls a verb with the arguments up to NULL and gives what it wrote to stdout as JSON, NULL when
 * it wrote nothing.
 */
static json_t *call(int expected_status, verb_function verb, const char *const *arguments)
{
	char *argv[ARGUMENTS_MAX + 1] = {0};
	int out = memfd_create("stdout", MFD_CLOEXEC), err = memfd_create("stderr", MFD_CLOEXEC);
	int saved_out, saved_err, argc = 0, status;
	off_t out_size, err_size;
	char *text;
	json_t *answer = NULL;

	assert_true(out >= 0 && err >= 0);
	while (arguments[argc]) {
		assert_true(argc < ARGUMENTS_MAX);
		argv[argc] = strdup(arguments[argc]);
		argc++;
	}
	fflush(stdout);
	fflush(stderr);
	saved_out = dup(STDOUT_FILENO);
	saved_err = dup(STDERR_FILENO);
	dup2(out, STDOUT_FILENO);
	dup2(err, STDERR_FILENO);
	status = verb(argc, argv);
	copy_back(saved_out, STDOUT_FILENO);
	copy_back(saved_err, STDERR_FILENO);

	assert_int_equal(status, expected_status);
	out_size = lseek(out, 0, SEEK_END);
	err_size = lseek(err, 0, SEEK_END);
	text = calloc(1, out_size + 1);
	assert_non_null(text);
	assert_int_equal(pread(out, text, out_size, 0), out_size);
	if (expected_status == 0) {
		assert_int_equal(err_size, 0);
		assert_int_equal(text[out_size - 1], '\n');
		answer = json_loads(text, 0, NULL);
		assert_non_null(answer);
	} else {
		assert_int_equal(out_size, 0);
		assert_true(err_size > 0);
	}
	free(text);
	for (int i = 0; i < argc; i++)
		free(argv[i]);
	close(out);
	close(err);
	return answer;
}

#define EXPLAIN(status, ...) \
	call(status, offline_explain, (const char *const[]){"explain", __VA_ARGS__, NULL})
#define MAKE_CID(status, ...) \
	call(status, offline_make_cid, (const char *const[]){"make-cid", __VA_ARGS__, NULL})

static void check_string(const json_t *answer, const char *key, const char *expected)
{
	json_t *value = json_object_get(answer, key);

	assert_non_null(value);
	if (expected)
		assert_string_equal(json_string_value(value), expected);
	else
		assert_true(json_is_null(value));
}

static void test_every_packet_of_the_corpus_is_explained(void **state)
{
	json_t *root = vector_load(VECTORS "/quic-headers-corpus.json"), *vector;
	unsigned n = 0;
	size_t i;

	json_array_foreach(json_object_get(root, "cases"), i, vector)
	{
		const json_t *expect = json_object_get(vector, "expect");
		const json_t *length = json_object_get(vector, "short_dcid_len");
		const char *kind = vector_string(expect, "kind");
		char number[16];
		json_t *answer;

		if (json_is_true(json_object_get(expect, "dcid_available")))
			kind = "initial"; /* all of them are */
		snprintf(
			number, sizeof(number), "%d", length ? (int)json_integer_value(length) : 8);
		answer = EXPLAIN(0, "--offline", "--packet", vector_string(vector, "hex"),
			"--cid-length", number);
		assert_int_equal(json_object_size(answer), 4);
		check_string(answer, "kind", kind);
		check_string(answer, "version", vector_string(expect, "version"));
		check_string(answer, "dcid", vector_string(expect, "dcid"));
		check_string(answer, "scid", vector_string(expect, "scid"));
		json_decref(answer);
		n++;
	}
	assert_int_equal(n, 84);
	json_decref(root);
}

static void check_vector(const json_t *vector)
{
	const char *cid = vector_string(vector, "cid"), *key = vector_string(vector, "key");
	const char *server_id = vector_string(vector, "server_id");
	const char *nonce = vector_string(vector, "nonce"), *made;
	bool self_encoding = json_is_true(json_object_get(vector, "length_self_encoding"));
	size_t own = 2 + strlen(server_id) + strlen(nonce);
	char rotation[24], server_id_length[24], nonce_length[24];
	const char *arguments[ARGUMENTS_MAX] = {"make-cid", "--config-rotation", rotation,
		"--server-id", server_id, "--nonce", nonce};
	unsigned n = 7;
	json_t *answer;

	/* The upper three bits of the first digit and the first of the second one. */
	snprintf(rotation, sizeof(rotation), "%lu", strtoul((char[]){cid[0], 0}, NULL, 16) >> 1);
	snprintf(server_id_length, sizeof(server_id_length), "%zu", strlen(server_id) / 2);
	snprintf(nonce_length, sizeof(nonce_length), "%zu", strlen(nonce) / 2);

	answer = EXPLAIN(0, "--offline", "--cid", cid, "--config-rotation", rotation,
		"--server-id-length", server_id_length, "--nonce-length", nonce_length,
		key ? "--key" : NULL, key);
	assert_int_equal(json_object_size(answer), 3);
	assert_true(json_is_true(json_object_get(answer, "routable")));
	check_string(answer, "server_id", server_id);
	check_string(answer, "nonce", nonce);
	json_decref(answer);

	if (key) {
		arguments[n++] = "--key";
		arguments[n++] = key;
	}
	if (!self_encoding)
		arguments[n++] = "--no-length";
	answer = call(0, offline_make_cid, arguments);
	assert_int_equal(json_object_size(answer), 1);
	made = vector_string(answer, "cid");
	assert_non_null(made);
	assert_int_equal(strlen(made), own);
	if (self_encoding && strlen(cid) == own) {
		assert_string_equal(made, cid);
	} else {
		uint8_t ours[20], theirs[20];

		vector_hex(made, ours, sizeof(ours));
		vector_hex(cid, theirs, sizeof(theirs));
		assert_int_equal(ours[0] >> 5, theirs[0] >> 5);
		assert_memory_equal(ours + 1, theirs + 1, own / 2 - 1);
	}
	json_decref(answer);
}

static void test_every_vector_is_made_and_explained(void **state)
{
	json_t *root = vector_load(VECTORS "/quic-lb-vectors.json"), *vector;
	unsigned n = 0;
	size_t i;

	json_array_foreach(json_object_get(root, "vectors"), i, vector)
	{
		if (json_is_false(json_object_get(vector, "usable")))
			continue;
		check_vector(vector);
		n++;
	}
	json_array_foreach(
		json_object_get(json_object_get(root, "derived_here"), "vectors"), i, vector)
	{
		check_vector(vector);
		n++;
	}
	assert_int_equal(n, 8 + 62);
	json_decref(root);
}

static void test_unroutable_ids_have_a_reason(void **state)
{
	static const char *const cids[] = {"", "e0", "e708090a0b0c0d0e", "1f", "c000000000000000",
		"07c4605e4504cc", "07c4605e4504cc4f07c4605e4504cc4f07c4605e45"};

	for (size_t i = 0; i < sizeof(cids) / sizeof(cids[0]); i++) {
		json_t *answer = EXPLAIN(0, "--offline", "--cid", cids[i], "--config-rotation", "0",
			"--server-id-length", "3", "--nonce-length", "4");

		assert_int_equal(json_object_size(answer), 2);
		assert_true(json_is_false(json_object_get(answer, "routable")));
		assert_true(strlen(vector_string(answer, "reason")) > 0);
		json_decref(answer);
	}
}

static void test_wrong_usage_is_told(void **state)
{
	EXPLAIN(2, "--offline");
	EXPLAIN(2, "--packet", "40");
	EXPLAIN(2, "--offline", "--packet");
	EXPLAIN(2, "--offline", "--packet", "4");
	EXPLAIN(2, "--offline", "--packet", "4g");
	EXPLAIN(2, "--offline", "--packet", "40", "--packet", "40");
	EXPLAIN(2, "--offline", "--packet", "40", "--cid", "40");
	EXPLAIN(2, "--offline", "--packet", "40", "--cid-length", "256");
	EXPLAIN(2, "--offline", "--packet", "40", "--cid-length", "-1");
	EXPLAIN(2, "--offline", "--packet", "40", "--cid-length", "");
	EXPLAIN(2, "--offline", "--packet", "40", "--frobnicate");
	EXPLAIN(2, "--offline", "--packet", "40", "extra");
	EXPLAIN(2, "--offline", "--cid", "07c4605e4504cc4f");
	EXPLAIN(2, "--offline", "--cid", "07c4605e4504cc4f", "--config-rotation", "7",
		"--server-id-length", "3", "--nonce-length", "4");
	EXPLAIN(2, "--offline", "--cid", "07c4605e4504cc4f", "--config-rotation", "0",
		"--server-id-length", "15", "--nonce-length", "5");
	EXPLAIN(2, "--offline", "--cid", "07c4605e4504cc4f", "--config-rotation", "0",
		"--server-id-length", "3", "--nonce-length", "4", "--key", "00");
	MAKE_CID(2, "--server-id", "010203", "--nonce", "01020304");
	MAKE_CID(2, "--config-rotation", "0", "--nonce", "01020304");
	MAKE_CID(2, "--config-rotation", "0", "--server-id", "010203");
	MAKE_CID(2, "--config-rotation", "0", "--server-id", "010203", "--nonce", "010203");
	MAKE_CID(2, "--config-rotation", "0x1", "--server-id", "010203", "--nonce", "01020304");
	MAKE_CID(2, "--config-rotation", "0", "--server-id", "01020304050607080910", "--nonce",
		"01020304050607080910");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_every_packet_of_the_corpus_is_explained),
		cmocka_unit_test(test_every_vector_is_made_and_explained),
		cmocka_unit_test(test_unroutable_ids_have_a_reason),
		cmocka_unit_test(test_wrong_usage_is_told),
	};

	return cmocka_run_group_tests_name("quic-offline", tests, NULL, NULL);
}
