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

#include "tests/unit/hello-builder.h"
#include "tests/unit/initial-seal.h"
#include "tests/unit/vectors.h"
#include "tools/offline.h"

#define ARGUMENTS_MAX 140

typedef int (*verb_function)(int argc, char **argv);

/* As reuseportctl calls them: options read, of these verbs, and nothing besides. */
static int run_verb(
	int argc, char **argv, ctl_option_set allowed, int (*verb)(const struct ctl_values *values))
{
	struct ctl_values values;
	int first;

	if (ctl_read_options(argc, argv, &values, &first) < 0 ||
		ctl_check_options(argv[0], allowed, &values) < 0)
		return 2;
	return verb(&values);
}

static int run_explain(int argc, char **argv)
{
	return run_verb(argc, argv, OFFLINE_EXPLAIN_OPTIONS, offline_explain);
}

static int run_make_cid(int argc, char **argv)
{
	return run_verb(argc, argv, OFFLINE_MAKE_CID_OPTIONS, offline_make_cid);
}

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
	call(status, run_explain, (const char *const[]){"explain", __VA_ARGS__, NULL})
#define MAKE_CID(status, ...) \
	call(status, run_make_cid, (const char *const[]){"make-cid", __VA_ARGS__, NULL})

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
	answer = call(0, run_make_cid, arguments);
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

static json_t *explain_initials(const json_t *datagrams)
{
	const char *arguments[ARGUMENTS_MAX] = {"explain", "--offline"};
	json_t *datagram;
	size_t i, n = 2;

	json_array_foreach(datagrams, i, datagram)
	{
		arguments[n++] = "--initial";
		arguments[n++] = vector_string(datagram, "hex");
	}
	return call(0, run_explain, arguments);
}

static void test_every_flow_of_initials_is_explained(void **state)
{
	json_t *root = vector_load(VECTORS "/quic-initial-vectors.json"), *vector, *wanted, *answer;
	unsigned n = 0;
	size_t i;

	json_array_foreach(json_object_get(json_object_get(root, "synthetic"), "flows"), i, vector)
	{
		const json_t *datagrams = json_object_get(vector, "datagrams");

		if (!vector_string(vector, "sni"))
			continue;
		wanted = json_pack("{s:b, s:s, s:s, s:O, s:i, s:b}", "complete", 1, "version",
			vector_string(vector, "version"), "sni", vector_string(vector, "sni"),
			"alpn", json_object_get(vector, "alpn"), "packets",
			(int)json_array_size(datagrams), "authenticated", 1);
		answer = explain_initials(datagrams);
		assert_true(json_equal(answer, wanted));
		json_decref(answer);
		json_decref(wanted);
		n++;
	}
	assert_int_equal(n, 10);
	json_decref(root);
}

/* The answer to datagrams of a flow that are given by their numbers, up to -1. */
static json_t *explain_some(const char *id, const int *numbers)
{
	json_t *root = vector_load(VECTORS "/quic-initial-vectors.json"), *vector;
	json_t *some = json_array(), *answer;
	size_t i;

	json_array_foreach(json_object_get(json_object_get(root, "synthetic"), "flows"), i, vector)
	{
		if (strcmp(vector_string(vector, "id"), id) != 0)
			continue;
		for (; *numbers >= 0; numbers++)
			json_array_append(some,
				json_array_get(json_object_get(vector, "datagrams"), *numbers));
	}
	answer = explain_initials(some);
	json_decref(some);
	json_decref(root);
	return answer;
}

static void check_incomplete(
	json_t *answer, const char *missing, unsigned packets, const char *reason)
{
	assert_true(json_is_false(json_object_get(answer, "complete")));
	check_string(answer, "missing", missing);
	check_string(answer, "sni", NULL);
	check_string(answer, "version", packets ? "0x00000001" : NULL);
	assert_int_equal(json_array_size(json_object_get(answer, "alpn")), 0);
	assert_int_equal(vector_number(answer, "packets"), packets);
	assert_int_equal(json_is_true(json_object_get(answer, "authenticated")), packets > 0);
	if (reason)
		check_string(answer, "reason", reason);
	assert_int_equal(json_object_size(answer), reason ? 9 : 7);
	json_decref(answer);
}

static void test_what_is_missing_of_a_client_hello(void **state)
{
	static const char no_initial[] = "an Initial packet of a client that can be authenticated";

	check_incomplete(explain_some("syn-2dg-inorder", (int[]){0, -1}),
		"octets 1140-1415 of the ClientHello, which has 1416", 1, NULL);
	check_incomplete(explain_some("syn-2dg-inorder", (int[]){1, -1}),
		"octets 0-1139, from 1416 on of the ClientHello", 1, NULL);
	check_incomplete(explain_some("syn-2dg-chaos", (int[]){0, -1}),
		"octets 61-795 of the ClientHello, which has 1416", 1, NULL);
	check_incomplete(explain_some("syn-dcid-switch", (int[]){1, -1}), no_initial, 0,
		"the tag of the Initial does not match");
	check_incomplete(explain_some("syn-forged-tag", (int[]){0, -1}), no_initial, 0,
		"the tag of the Initial does not match");
	check_incomplete(EXPLAIN(0, "--offline", "--initial", "c01a2a3a4a0000"), no_initial, 0,
		"the version is neither 1 nor 2");
	check_incomplete(EXPLAIN(0, "--offline", "--initial", ""), no_initial, 0,
		"the datagram has no Initial");
}

/* Seals a payload as a client's Initial and has it explained. */
static json_t *explain_payload(const uint8_t *payload, size_t length)
{
	const struct seal seal = {QUIC_VERSION_1, .dcid_length = 8, .number_length = 4};
	uint8_t out[512 + SEAL_OVERHEAD];
	char hex[2 * sizeof(out) + 1];
	struct initial_crypto *crypto;
	struct initial_keys keys;
	size_t n;

	assert_true(length <= 512);
	assert_int_equal(initial_crypto_new(&crypto), 0);
	assert_int_equal(
		initial_keys_derive(crypto, seal.version, seal.dcid, 8, INITIAL_FROM_CLIENT, &keys),
		0);
	initial_crypto_free(crypto);
	n = seal_initial(&seal, &keys, payload, length, out);
	assert_true(n > 0);
	for (size_t i = 0; i < n; i++)
		snprintf(hex + 2 * i, 3, "%02x", out[i]);
	return EXPLAIN(0, "--offline", "--initial", hex);
}

static void test_what_is_wrong_with_a_client_hello(void **state)
{
	json_t *answer = explain_payload((const uint8_t *)"\6\0\1\2", 4);

	assert_true(json_is_false(json_object_get(answer, "complete")));
	check_string(answer, "reason",
		"the first message is no ClientHello (octet 0 of the ClientHello)");
	assert_null(json_object_get(answer, "missing"));
	assert_true(json_is_true(json_object_get(answer, "malformed")));
	assert_true(json_is_true(json_object_get(answer, "authenticated")));
	assert_int_equal(vector_number(answer, "packets"), 1);
	json_decref(answer);
	/* More than is read is not against any rule. */
	answer = explain_payload((const uint8_t *)"\6\x80\0\x40\0\1a", 7);
	check_string(answer, "reason",
		"a CRYPTO frame goes beyond octet 16384 of the handshake (octet 0 of the payload "
		"of the Initial)");
	assert_null(json_object_get(answer, "malformed"));
	json_decref(answer);
	check_incomplete(explain_payload((const uint8_t *)"\1\1\1\1", 4),
		"the ClientHello: no packet has a CRYPTO frame", 1, NULL);
}

static void test_protocols_of_any_octets_and_ech(void **state)
{
	static const char protocols[] = "\0\14\2\xba\xba\2h3\5a\\b \"";
	static struct builder built;
	size_t list = begin_hello(&built);
	uint8_t payload[512] = {6, 0};
	size_t n = 2;
	json_t *answer, *alpn;

	put_extension(&built, 16, protocols, sizeof(protocols) - 1);
	put_extension(&built, 0xfe0d, "", 0);
	end_hello(&built, list);
	seal_varint(payload, &n, built.length, 2);
	memcpy(payload + n, built.octets, built.length);
	answer = explain_payload(payload, n + built.length);
	assert_true(json_is_true(json_object_get(answer, "complete")));
	assert_true(json_is_true(json_object_get(answer, "ech")));
	check_string(answer, "sni", NULL);
	alpn = json_pack("[sss]", "\\xba\\xba", "h3", "a\\x5cb\\x20\"");
	assert_true(json_equal(json_object_get(answer, "alpn"), alpn));
	json_decref(alpn);
	json_decref(answer);
}

static void test_more_initials_than_any_client_needs(void **state)
{
	const char *arguments[ARGUMENTS_MAX] = {"explain", "--offline"};

	for (unsigned i = 0; i < 64; i++) {
		arguments[2 + 2 * i] = "--initial";
		arguments[3 + 2 * i] = "40";
	}
	json_decref(call(0, run_explain, arguments));
	arguments[2 + 2 * 64] = "--initial";
	arguments[3 + 2 * 64] = "40";
	call(2, run_explain, arguments);
}

static void test_wrong_usage_is_told(void **state)
{
	EXPLAIN(2, "--offline", "--initial");
	EXPLAIN(2, "--offline", "--initial", "4");
	EXPLAIN(2, "--offline", "--initial", "40", "--initial", "4g");
	EXPLAIN(2, "--offline", "--initial", "40", "--packet", "40");
	EXPLAIN(2, "--offline", "--initial", "40", "--cid", "40");
	EXPLAIN(2, "--offline", "--initial", "40", "--cid-length", "8");
	EXPLAIN(2, "--offline", "--initial", "40", "--key", "00");
	EXPLAIN(2, "--initial", "40");

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
		cmocka_unit_test(test_every_flow_of_initials_is_explained),
		cmocka_unit_test(test_what_is_missing_of_a_client_hello),
		cmocka_unit_test(test_what_is_wrong_with_a_client_hello),
		cmocka_unit_test(test_protocols_of_any_octets_and_ech),
		cmocka_unit_test(test_more_initials_than_any_client_needs),
		cmocka_unit_test(test_wrong_usage_is_told),
	};

	return cmocka_run_group_tests_name("quic-offline", tests, NULL, NULL);
}
