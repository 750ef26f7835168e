/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Where the packets of a datagram begin and end, and what stands before the packet number of an
 * Initial. Steering needs none of this; opening a packet does. Goes on where bpf/quic_header.h, the
 * one reader of QUIC headers, ends.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "bpf/quic_header.h"

#define PACKET_CID_MAX 20 /* RFC 9000 section 17.2; RFC 9369 changes nothing here */

struct packet {
	struct quic_packet quic; /* kind, version and both connection IDs */
	const uint8_t *octets;
	size_t length;        /* of the whole packet; the next one begins behind it */
	size_t number_offset; /* where the packet number begins, which is protected */
	size_t token_length;  /* of an Initial */
};

/*
 * Reads a variable-length integer (RFC 9000 section 16) at *offset of length octets and moves
 * *offset behind it. Returns 0, or -EBADMSG when it is cut off; then nothing is changed.
 */
int packet_varint(const uint8_t *octets, size_t length, size_t *offset, uint64_t *ret);

/*
 * Reads the packet at the beginning of octets, which is the rest of a datagram. Returns 0 for an
 * Initial, 0-RTT or Handshake packet of version 1 or 2. *ret points into octets.
 *
 * Else nothing can follow it that has a beginning:
 *   -ENOMSG           a short header, Version Negotiation or Retry
 *   -EPROTONOSUPPORT  another version
 *   -EBADMSG          it ends too early, or a connection ID is longer than its version allows
 */
int packet_read(const uint8_t *octets, size_t length, struct packet *ret);
