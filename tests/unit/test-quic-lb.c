/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Connection IDs are those of draft-ietf-quic-load-balancers-21: its vectors (without the malformed
 * one, and with the config rotation that the printed octets have where the draft contradicts
 * itself), further ones, computed with two other AES implementations, for the remaining lengths,
 * the unroutable ones, and a round trip over all legal lengths.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "bpf/quic_lb.h"
#include "tests/unit/vectors.h"

#define SEED 0x9e3779b97f4a7c15ULL
#define DRAFT_VECTORS 8
#define DERIVED_VECTORS 62
#define LEGAL_PAIRS 120
#define ROUNDS_A_PAIR 200

static uint64_t next_random(uint64_t *state)
{
	*state ^= *state >> 12;
	*state ^= *state << 25;
	*state ^= *state >> 27;
	return *state * 0x2545f4914f6cdd1dULL;
}

static void fill_random(uint64_t *state, uint8_t *octets, size_t length)
{
	for (size_t i = 0; i < length; i++)
		octets[i] = next_random(state) >> 56;
}

static void check_vector(const json_t *vector)
{
	uint8_t cid[QUIC_LB_CID_MAX], made[QUIC_LB_CID_MAX], key[16];
	uint8_t server_id[15], nonce[18], found_server_id[15], found_nonce[18];
	const char *key_text = vector_string(vector, "key");
	const char *trailing = vector_string(vector, "trailing");
	size_t server_id_length, nonce_length, cid_length, own;
	struct quic_lb_config config = {0};
	int first_bits;

	print_message("# %s\n", vector_string(vector, "id"));
	server_id_length = vector_hex(vector_string(vector, "server_id"), server_id, 15);
	nonce_length = vector_hex(vector_string(vector, "nonce"), nonce, 18);
	cid_length = vector_hex(vector_string(vector, "cid"), cid, sizeof(cid));
	assert_int_equal(server_id_length, vector_number(vector, "server_id_len"));
	assert_int_equal(nonce_length, vector_number(vector, "nonce_len"));
	if (key_text)
		assert_int_equal(vector_hex(key_text, key, sizeof(key)), sizeof(key));

	/* The rotation in the octets counts: d21-B.2-4 is printed with another one beside it. */
	assert_int_equal(quic_lb_configure(&config, cid[0] >> 5, server_id_length, nonce_length,
				 key_text ? key : NULL),
		0);
	if (strcmp(vector_string(vector, "id"), "d21-B.2-4") != 0)
		assert_int_equal(cid[0] >> 5, vector_number(vector, "config_rotation"));

	assert_int_equal(quic_lb_decode(&config, cid, cid_length, found_server_id, found_nonce), 0);
	assert_memory_equal(found_server_id, server_id, server_id_length);
	assert_memory_equal(found_nonce, nonce, nonce_length);
	/* Without the nonce, as the program decodes. */
	memset(found_server_id, 0, sizeof(found_server_id));
	assert_int_equal(quic_lb_decode(&config, cid, cid_length, found_server_id, NULL), 0);
	assert_memory_equal(found_server_id, server_id, server_id_length);

	own = quic_lb_cid_length(&config);
	assert_int_equal(cid_length, own + (trailing ? strlen(trailing) / 2 : 0));
	first_bits = cid[0] & 0x1f;
	if (json_is_true(json_object_get(vector, "length_self_encoding"))) {
		assert_int_equal(first_bits, cid_length - 1);
		if (!trailing)
			first_bits = QUIC_LB_SELF_ENCODE_LENGTH;
	}
	assert_int_equal(quic_lb_encode(&config, server_id, nonce, first_bits, made), own);
	assert_memory_equal(made, cid, own);
}

static unsigned check_vectors(const json_t *vectors)
{
	const json_t *vector;
	unsigned n = 0;
	size_t i;

	json_array_foreach(vectors, i, vector)
	{
		if (json_is_false(json_object_get(vector, "usable")))
			continue;
		check_vector(vector);
		n++;
	}
	return n;
}

static void test_vectors_of_the_draft(void **state)
{
	json_t *root = vector_load(VECTORS "/quic-lb-vectors.json");

	assert_int_equal(check_vectors(json_object_get(root, "vectors")), DRAFT_VECTORS);
	json_decref(root);
}

static void test_vectors_of_other_lengths(void **state)
{
	json_t *root = vector_load(VECTORS "/quic-lb-vectors.json");
	json_t *derived = json_object_get(root, "derived_here");

	assert_int_equal(check_vectors(json_object_get(derived, "vectors")), DERIVED_VECTORS);
	json_decref(root);
}

/* Up to -18 the passes were different: those IDs must not decode to their server. */
static void test_ids_of_older_drafts_name_another_server(void **state)
{
	json_t *root = vector_load(VECTORS "/quic-lb-vectors.json");
	json_t *vector, *vectors = json_object_get(root, "obsolete_vectors");
	unsigned n = 0;
	size_t i;

	json_array_foreach(vectors, i, vector)
	{
		uint8_t cid[QUIC_LB_CID_MAX], key[16], server_id[15], nonce[18], found[15];
		size_t cid_length = vector_hex(vector_string(vector, "cid"), cid, sizeof(cid));
		size_t server_id_length =
			vector_hex(vector_string(vector, "server_id"), server_id, 15);
		size_t nonce_length = vector_hex(vector_string(vector, "nonce"), nonce, 18);
		struct quic_lb_config config = {0};

		vector_hex(vector_string(vector, "key"), key, sizeof(key));
		assert_int_equal(quic_lb_configure(
					 &config, cid[0] >> 5, server_id_length, nonce_length, key),
			0);
		assert_int_equal(quic_lb_decode(&config, cid, cid_length, found, NULL), 0);
		if (server_id_length + nonce_length == 16) /* the single pass stayed the same */
			assert_memory_equal(found, server_id, server_id_length);
		else
			assert_memory_not_equal(found, server_id, server_id_length);
		n++;
	}
	assert_int_equal(n, 4);
	json_decref(root);
}

static int decode_hex(const struct quic_lb_config *config, const char *text)
{
	uint8_t cid[64], server_id[15], nonce[18];
	size_t length = vector_hex(text, cid, sizeof(cid));

	return quic_lb_decode(config, cid, length, server_id, nonce);
}

static void test_unroutable_ids(void **state)
{
	struct quic_lb_config config = {0};

	assert_int_equal(quic_lb_configure(&config, 0, 3, 4, NULL), 0);
	assert_int_equal(decode_hex(&config, ""), -ENODATA);
	assert_int_equal(decode_hex(&config, "e0"), -EADDRNOTAVAIL);
	assert_int_equal(decode_hex(&config, "e708090a0b0c0d0e"), -EADDRNOTAVAIL);
	assert_int_equal(decode_hex(&config, "1f"), -EMSGSIZE);
	assert_int_equal(decode_hex(&config, "c000000000000000"), -ENOKEY);
	assert_int_equal(decode_hex(&config, "07c4605e4504cc"), -EMSGSIZE);
	assert_int_equal(decode_hex(&config, "07c4605e4504cc4f"), 0);
	assert_int_equal(
		decode_hex(&config, "000000000000000000000000000000000000000000"), -EMSGSIZE);
}

static void test_illegal_lengths_are_refused(void **state)
{
	struct quic_lb_config config = {0};
	uint8_t key[16] = {0};
	unsigned legal = 0;

	for (unsigned rotation = 0; rotation <= 9; rotation++)
		for (unsigned server_id = 0; server_id <= 30; server_id++)
			for (unsigned nonce = 0; nonce <= 30; nonce++) {
				int r = quic_lb_configure(&config, rotation, server_id, nonce, key);

				if (r == 0)
					legal++;
				else
					assert_int_equal(r, -ERANGE);
			}
	assert_int_equal(legal, 7 * LEGAL_PAIRS);
}

static void test_every_legal_length_comes_back(void **state)
{
	uint64_t random = SEED;
	unsigned n = 0;

	print_message("# seed 0x%llx\n", (unsigned long long)SEED);
	for (unsigned i = 0; i < LEGAL_PAIRS * 2 * ROUNDS_A_PAIR; i++) {
		uint8_t server_id[15], nonce[18], found_server_id[15], found_nonce[18], key[16];
		uint8_t cid[QUIC_LB_CID_MAX], tail;
		unsigned pair = i / (2 * ROUNDS_A_PAIR), server_id_length = 1, nonce_length;
		struct quic_lb_config config = {0};
		size_t length;

		while (pair >= 16 - server_id_length)
			pair -= 16 - server_id_length++;
		nonce_length = 4 + pair;
		fill_random(&random, server_id, sizeof(server_id));
		fill_random(&random, nonce, sizeof(nonce));
		fill_random(&random, key, sizeof(key));
		assert_int_equal(quic_lb_configure(&config, i % 7, server_id_length, nonce_length,
					 i % 2 ? key : NULL),
			0);
		length = quic_lb_encode(&config, server_id, nonce,
			i % 3 ? QUIC_LB_SELF_ENCODE_LENGTH : (int)(i % 32), cid);
		assert_int_equal(length, 1 + server_id_length + nonce_length);
		assert_int_equal(cid[0] >> 5, i % 7);
		assert_int_equal(cid[0] & 0x1f, i % 3 ? length - 1 : i % 32);
		for (size_t j = length; j < sizeof(cid); j++)
			assert_int_equal(cid[j], 0);
		if (i % 2 == 0) {
			assert_memory_equal(cid + 1, server_id, server_id_length);
			assert_memory_equal(cid + 1 + server_id_length, nonce, nonce_length);
		}

		/* What stands behind the nonce is the server's own and changes nothing. */
		tail = next_random(&random) >> 56;
		memset(cid + length, tail, sizeof(cid) - length);
		assert_int_equal(quic_lb_decode(&config, cid, i % 5 ? length : sizeof(cid),
					 found_server_id, found_nonce),
			0);
		assert_memory_equal(found_server_id, server_id, server_id_length);
		assert_memory_equal(found_nonce, nonce, nonce_length);
		assert_int_equal(quic_lb_decode(&config, cid, length, found_server_id, NULL), 0);
		assert_memory_equal(found_server_id, server_id, server_id_length);
		assert_int_equal(quic_lb_decode(&config, cid, length - 1, NULL, NULL), -EMSGSIZE);
		n++;
	}
	assert_int_equal(n, LEGAL_PAIRS * 2 * ROUNDS_A_PAIR);
}

/* What the program does: words, number of the server, no nonce. */
static void test_server_id_as_a_number(void **state)
{
	uint8_t server_id[8] = {0x12, 0x34, 0, 0, 0x01, 0x02, 0x77, 0x88}, nonce[18] = {9, 8, 7};
	uint8_t key[16] = {0xc4, 0x0d};
	uint64_t wanted = 0;

	for (unsigned length = 1; length <= 8; length++) {
		uint8_t cid[QUIC_LB_CID_MAX];
		struct quic_lb_scratch scratch;
		struct quic_lb_config config = {0};
		struct quic_lb_words words;

		wanted = wanted << 8 | server_id[length - 1];
		for (unsigned encrypted = 0; encrypted <= 1; encrypted++) {
			assert_int_equal(quic_lb_configure(&config, 2, length, 16 - length,
						 encrypted ? key : NULL),
				0);
			quic_lb_encode(&config, server_id, nonce, QUIC_LB_SELF_ENCODE_LENGTH, cid);
			assert_true(quic_lb_matches(&config, cid[0], 17));
			assert_false(quic_lb_matches(&config, cid[0], 16));
			words = quic_lb_load(cid);
			quic_lb_decrypt(&config, &words, 0, &scratch);
			assert_true(quic_lb_server_id(words, length) == wanted);
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_vectors_of_the_draft),
		cmocka_unit_test(test_vectors_of_other_lengths),
		cmocka_unit_test(test_ids_of_older_drafts_name_another_server),
		cmocka_unit_test(test_unroutable_ids),
		cmocka_unit_test(test_illegal_lengths_are_refused),
		cmocka_unit_test(test_every_legal_length_comes_back),
		cmocka_unit_test(test_server_id_as_a_number),
	};

	return cmocka_run_group_tests_name("quic-lb", tests, NULL, NULL);
}
