/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Our AES-128 must be AES-128: the examples of FIPS 197, then the same answers as libcrypto for
 * 1,000,000 random blocks under 1,000 random keys, in both directions.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>
#include <openssl/evp.h>

#include "bpf/aes128.h"

#define SEED 0x5eedf00d2545f491ULL
#define KEYS 1000
#define BLOCKS_A_KEY 1000

/* xorshift64*, so that a failure can be had again from the seed printed. */
static uint64_t next_random(uint64_t *state)
{
	*state ^= *state >> 12;
	*state ^= *state << 25;
	*state ^= *state >> 27;
	return *state * 0x2545f4914f6cdd1dULL;
}

static void check_example(
	const char key_octets[16], const char plaintext[16], const char ciphertext[16])
{
	struct aes128_key key;
	union aes128_block block, scratch;

	aes128_expand_key(&key, (const uint8_t *)key_octets);
	memcpy(block.octet, plaintext, 16);
	aes128_encrypt(&key, &block, &scratch);
	assert_memory_equal(block.octet, ciphertext, 16);
	aes128_decrypt(&key, &block, &scratch);
	assert_memory_equal(block.octet, plaintext, 16);
}

static void test_examples_of_fips_197(void **state)
{
	/* Appendix B, appendix C.1. */
	check_example("\x2b\x7e\x15\x16\x28\xae\xd2\xa6\xab\xf7\x15\x88\x09\xcf\x4f\x3c",
		"\x32\x43\xf6\xa8\x88\x5a\x30\x8d\x31\x31\x98\xa2\xe0\x37\x07\x34",
		"\x39\x25\x84\x1d\x02\xdc\x09\xfb\xdc\x11\x85\x97\x19\x6a\x0b\x32");
	check_example("\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f",
		"\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff",
		"\x69\xc4\xe0\xd8\x6a\x7b\x04\x30\xd8\xcd\xb7\x80\x70\xb4\xc5\x5a");
}

static void test_a_million_blocks_agree_with_libcrypto(void **state)
{
	static union aes128_block plain[BLOCKS_A_KEY], theirs[BLOCKS_A_KEY];
	EVP_CIPHER_CTX *context = EVP_CIPHER_CTX_new();
	uint64_t random = SEED;
	unsigned long compared = 0;

	assert_non_null(context);
	print_message("# seed 0x%llx\n", (unsigned long long)SEED);
	for (unsigned i = 0; i < KEYS; i++) {
		union aes128_block key_octets, ours, scratch;
		struct aes128_key key;
		int length;

		key_octets.half[0] = next_random(&random);
		key_octets.half[1] = next_random(&random);
		for (unsigned j = 0; j < BLOCKS_A_KEY; j++) {
			plain[j].half[0] = next_random(&random);
			plain[j].half[1] = next_random(&random);
		}
		aes128_expand_key(&key, key_octets.octet);
		assert_int_equal(EVP_EncryptInit_ex(
					 context, EVP_aes_128_ecb(), NULL, key_octets.octet, NULL),
			1);
		assert_int_equal(EVP_EncryptUpdate(context, theirs[0].octet, &length,
					 plain[0].octet, sizeof(plain)),
			1);
		assert_int_equal(length, sizeof(plain));

		for (unsigned j = 0; j < BLOCKS_A_KEY; j++) {
			ours = plain[j];
			aes128_encrypt(&key, &ours, &scratch);
			assert_memory_equal(ours.octet, theirs[j].octet, 16);
			aes128_decrypt(&key, &ours, &scratch);
			assert_memory_equal(ours.octet, plain[j].octet, 16);
			compared++;
		}
	}
	assert_int_equal(compared, 1000000);
	EVP_CIPHER_CTX_free(context);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_examples_of_fips_197),
		cmocka_unit_test(test_a_million_blocks_agree_with_libcrypto),
	};

	return cmocka_run_group_tests_name("aes", tests, NULL, NULL);
}
