/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Protection of QUIC Initial packets, version 1 (RFC 9001 section 5) and 2 (RFC 9369): the keys
 * that both sides derive from the destination connection ID of the client's first Initial (after a
 * Retry, of the first one behind it), and the way from a protected packet to its payload.
 *
 * These keys hide nothing from whoever sees the packets. What the tag shows is that the packet is
 * whole and was made by someone who knows the first one.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "classify/packet.h"

#define INITIAL_KEY_OCTETS 16
#define INITIAL_IV_OCTETS 12
#define INITIAL_TAG_OCTETS 16

enum initial_sender {
	INITIAL_FROM_CLIENT,
	INITIAL_FROM_SERVER,
};

struct initial_keys {
	uint8_t key[INITIAL_KEY_OCTETS];
	uint8_t iv[INITIAL_IV_OCTETS];
	uint8_t header_key[INITIAL_KEY_OCTETS];
};

/*
 * What libcrypto needs, made once, and room for one payload. For one thread at a time; any number
 * of flows share it.
 */
struct initial_crypto;

/* Returns 0 and the object, -ENOMEM, or -EOPNOTSUPP when libcrypto lacks an algorithm. */
int initial_crypto_new(struct initial_crypto **ret);
/* NULL is allowed. */
void initial_crypto_free(struct initial_crypto *crypto);

/*
 * Keys of the Initials that the sender protects, dcid being what the client first chose. Returns 0,
 * -EPROTONOSUPPORT for another version, -EIO when libcrypto fails.
 */
int initial_keys_derive(struct initial_crypto *crypto, uint32_t version, const uint8_t *dcid,
	size_t dcid_length, enum initial_sender sender, struct initial_keys *ret);

/*
 * Removes the protection of an Initial that packet_read() read. largest is the largest packet
 * number known of this sender, -1 where there is none. On success the payload stays valid until the
 * next call with this crypto, and *ret_number is the packet's number.
 *
 * Returns 0, or
 *   -EBADMSG   it is too short to be protected, or its tag does not match
 *   -EPROTO    authentic, with reserved bits set, which RFC 9000 section 17.2 forbids
 *   -EIO       libcrypto failed
 */
int initial_open(struct initial_crypto *crypto, const struct initial_keys *keys,
	const struct packet *packet, int64_t largest, const uint8_t **ret_payload,
	size_t *ret_length, int64_t *ret_number);

/* The full packet number of the length low octets in truncated, RFC 9000 appendix A.3. */
int64_t initial_packet_number(int64_t largest, uint32_t truncated, unsigned length);
