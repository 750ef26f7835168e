/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Initial keys and opening of Initials, by libcrypto.
 *
 * WHY HMAC and not libcrypto's HKDF: each output here is shorter than one SHA-256, so that both
 * halves of HKDF (RFC 5869) are a single HMAC each, for which one context serves all. What needs a
 * look-up of an algorithm or an allocation by name happens once, in initial_crypto_new(): per
 * datagram there are 3 microseconds for the keys and 1 for opening it (libcrypto 3.0, AES-NI).
 */
#include "classify/initial-keys.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <openssl/core_names.h>
#include <openssl/evp.h>

#include "common/util.h"

#define SECRET_OCTETS 32
#define SAMPLE_OCTETS 16
/* RFC 9001 section 5.4.2: the sample is taken as if the packet number had four octets. */
#define SAMPLE_OFFSET 4
#define PAYLOAD_MAX 65535

struct initial_crypto {
	EVP_MAC *hmac;
	EVP_MAC_CTX *hmac_context;
	EVP_CIPHER *header, *payload;
	EVP_CIPHER_CTX *header_context, *payload_context;
	uint8_t plaintext[PAYLOAD_MAX];
};

static const struct initial_version {
	uint32_t version;
	uint8_t salt[20];
	const char *key, *iv, *header_key;
} versions[] = {
	/* RFC 9001 sections 5.1 and 5.2. */
	{QUIC_VERSION_1,
		{0x38, 0x76, 0x2c, 0xf7, 0xf5, 0x59, 0x34, 0xb3, 0x4d, 0x17, 0x9a, 0xe6, 0xa4, 0xc8,
			0x0c, 0xad, 0xcc, 0xbb, 0x7f, 0x0a},
		"quic key", "quic iv", "quic hp"},
	/* RFC 9369 section 3.3. */
	{QUIC_VERSION_2,
		{0x0d, 0xed, 0xe3, 0xde, 0xf7, 0x00, 0xa6, 0xdb, 0x81, 0x93, 0x81, 0xbe, 0x6e, 0x26,
			0x9d, 0xcb, 0xf9, 0xbd, 0x2e, 0xd9},
		"quicv2 key", "quicv2 iv", "quicv2 hp"},
};

void initial_crypto_free(struct initial_crypto *crypto)
{
	if (!crypto)
		return;
	EVP_CIPHER_CTX_free(crypto->payload_context);
	EVP_CIPHER_CTX_free(crypto->header_context);
	EVP_CIPHER_free(crypto->payload);
	EVP_CIPHER_free(crypto->header);
	EVP_MAC_CTX_free(crypto->hmac_context);
	EVP_MAC_free(crypto->hmac);
	free(crypto);
}

static void free_crypto(struct initial_crypto **crypto)
{
	initial_crypto_free(*crypto);
}

int initial_crypto_new(struct initial_crypto **ret)
{
	OSSL_PARAM digest[] = {
		OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, (char[]){"SHA256"}, 0),
		OSSL_PARAM_construct_end(),
	};
	_cleanup_(free_crypto) struct initial_crypto *crypto = calloc(1, sizeof(*crypto));

	if (!crypto)
		return -ENOMEM;
	crypto->hmac = EVP_MAC_fetch(NULL, "HMAC", NULL);
	crypto->header = EVP_CIPHER_fetch(NULL, "AES-128-ECB", NULL);
	crypto->payload = EVP_CIPHER_fetch(NULL, "AES-128-GCM", NULL);
	if (!crypto->hmac || !crypto->header || !crypto->payload)
		return -EOPNOTSUPP;
	crypto->hmac_context = EVP_MAC_CTX_new(crypto->hmac);
	crypto->header_context = EVP_CIPHER_CTX_new();
	crypto->payload_context = EVP_CIPHER_CTX_new();
	if (!crypto->hmac_context || !crypto->header_context || !crypto->payload_context)
		return -ENOMEM;
	if (EVP_MAC_CTX_set_params(crypto->hmac_context, digest) != 1 ||
		EVP_EncryptInit_ex2(crypto->header_context, crypto->header, NULL, NULL, NULL) !=
			1 ||
		EVP_DecryptInit_ex2(crypto->payload_context, crypto->payload, NULL, NULL, NULL) !=
			1)
		return -EOPNOTSUPP;
	*ret = take_pointer(crypto);
	return 0;
}

static int hmac(struct initial_crypto *crypto, const uint8_t *key, size_t key_length,
	const uint8_t *data, size_t length, uint8_t ret[SECRET_OCTETS])
{
	size_t n;

	if (EVP_MAC_init(crypto->hmac_context, key, key_length, NULL) != 1 ||
		EVP_MAC_update(crypto->hmac_context, data, length) != 1 ||
		EVP_MAC_final(crypto->hmac_context, ret, &n, SECRET_OCTETS) != 1 ||
		n != SECRET_OCTETS)
		return -EIO;
	return 0;
}

/* HKDF-Expand-Label of RFC 8446 section 7.1 with an empty context, of at most one digest. */
static int expand(struct initial_crypto *crypto, const uint8_t secret[SECRET_OCTETS],
	const char *label, uint8_t *ret, size_t length)
{
	static const char prefix[] = "tls13 ";
	size_t prefix_length = strlen(prefix), label_length = strlen(label), n = 0;
	uint8_t info[64], block[SECRET_OCTETS];

	info[n++] = 0;
	info[n++] = (uint8_t)length;
	info[n++] = (uint8_t)(prefix_length + label_length);
	memcpy(info + n, prefix, prefix_length);
	n += prefix_length;
	memcpy(info + n, label, label_length);
	n += label_length;
	info[n++] = 0; /* length of the context */
	info[n++] = 1; /* number of the block, RFC 5869 section 2.3 */
	if (hmac(crypto, secret, SECRET_OCTETS, info, n, block) < 0)
		return -EIO;
	memcpy(ret, block, length);
	return 0;
}

int initial_keys_derive(struct initial_crypto *crypto, uint32_t version, const uint8_t *dcid,
	size_t dcid_length, enum initial_sender sender, struct initial_keys *ret)
{
	const char *label = sender == INITIAL_FROM_CLIENT ? "client in" : "server in";
	const struct initial_version *v = NULL;
	uint8_t initial[SECRET_OCTETS], secret[SECRET_OCTETS];
	struct initial_keys keys;

	for (size_t i = 0; i < ARRAY_SIZE(versions); i++)
		if (versions[i].version == version)
			v = &versions[i];
	if (!v)
		return -EPROTONOSUPPORT;
	if (hmac(crypto, v->salt, sizeof(v->salt), dcid, dcid_length, initial) < 0 ||
		expand(crypto, initial, label, secret, sizeof(secret)) < 0 ||
		expand(crypto, secret, v->key, keys.key, sizeof(keys.key)) < 0 ||
		expand(crypto, secret, v->iv, keys.iv, sizeof(keys.iv)) < 0 ||
		expand(crypto, secret, v->header_key, keys.header_key, sizeof(keys.header_key)) < 0)
		return -EIO;
	*ret = keys;
	return 0;
}

int64_t initial_packet_number(int64_t largest, uint32_t truncated, unsigned length)
{
	int64_t expected = largest + 1, window = (int64_t)1 << (8 * length), half = window / 2;
	int64_t candidate = (expected & ~(window - 1)) | truncated;

	if (candidate <= expected - half && candidate < ((int64_t)1 << 62) - window)
		return candidate + window;
	if (candidate > expected + half && candidate >= window)
		return candidate - window;
	return candidate;
}

/* Five octets that hide the first one and the packet number, RFC 9001 section 5.4.3. */
static int header_mask(struct initial_crypto *crypto, const struct initial_keys *keys,
	const uint8_t *sample, uint8_t ret[SAMPLE_OCTETS])
{
	int n;

	if (EVP_EncryptInit_ex2(crypto->header_context, NULL, keys->header_key, NULL, NULL) != 1 ||
		EVP_CIPHER_CTX_set_padding(crypto->header_context, 0) != 1 ||
		EVP_EncryptUpdate(crypto->header_context, ret, &n, sample, SAMPLE_OCTETS) != 1 ||
		n != SAMPLE_OCTETS)
		return -EIO;
	return 0;
}

/* The header in its three parts: the first octet, what was never hidden, the packet number. */
struct open_header {
	uint8_t first;
	uint8_t number[4];
	unsigned number_length;
};

static int decrypt(struct initial_crypto *crypto, const uint8_t *key, const uint8_t *nonce,
	const struct packet *packet, const struct open_header *header, size_t *ret_length)
{
	const uint8_t *ciphertext = packet->octets + packet->number_offset + header->number_length;
	size_t length = (size_t)(packet->octets + packet->length - ciphertext) - INITIAL_TAG_OCTETS;
	EVP_CIPHER_CTX *context = crypto->payload_context;
	uint8_t tag[INITIAL_TAG_OCTETS];
	int n;

	memcpy(tag, ciphertext + length, sizeof(tag));
	if (EVP_DecryptInit_ex2(context, NULL, key, nonce, NULL) != 1 ||
		EVP_DecryptUpdate(context, NULL, &n, &header->first, 1) != 1 ||
		EVP_DecryptUpdate(context, NULL, &n, packet->octets + 1,
			(int)(packet->number_offset - 1)) != 1 ||
		EVP_DecryptUpdate(context, NULL, &n, header->number, (int)header->number_length) !=
			1 ||
		EVP_DecryptUpdate(context, crypto->plaintext, &n, ciphertext, (int)length) != 1 ||
		EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_SET_TAG, sizeof(tag), tag) != 1)
		return -EIO;
	if (EVP_DecryptFinal_ex(context, crypto->plaintext + n, &n) != 1)
		return -EBADMSG;
	*ret_length = length;
	return 0;
}

int initial_open(struct initial_crypto *crypto, const struct initial_keys *keys,
	const struct packet *packet, int64_t largest, const uint8_t **ret_payload,
	size_t *ret_length, int64_t *ret_number)
{
	const uint8_t *protected_number = packet->octets + packet->number_offset;
	size_t behind_header = packet->length - packet->number_offset, length;
	uint8_t mask[SAMPLE_OCTETS], nonce[INITIAL_IV_OCTETS];
	struct open_header header = {};
	uint32_t truncated = 0;
	int64_t number;
	int r;

	if (behind_header < SAMPLE_OFFSET + SAMPLE_OCTETS || packet->length > PAYLOAD_MAX)
		return -EBADMSG;
	r = header_mask(crypto, keys, protected_number + SAMPLE_OFFSET, mask);
	if (r < 0)
		return r;
	header.first = packet->octets[0] ^ (mask[0] & 0x0f);
	header.number_length = (header.first & 3) + 1;
	for (unsigned i = 0; i < header.number_length; i++) {
		header.number[i] = protected_number[i] ^ mask[1 + i];
		truncated = truncated << 8 | header.number[i];
	}
	number = initial_packet_number(largest, truncated, header.number_length);
	memcpy(nonce, keys->iv, sizeof(nonce));
	for (unsigned i = 0; i < 8; i++)
		nonce[sizeof(nonce) - 1 - i] ^= (uint8_t)(number >> (8 * i));

	r = decrypt(crypto, keys->key, nonce, packet, &header, &length);
	if (r < 0)
		return r;
	if (header.first & 0x0c)
		return -EPROTO;
	*ret_payload = crypto->plaintext;
	*ret_length = length;
	*ret_number = number;
	return 0;
}
