/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The one reader of QUIC packet headers: what kind of packet a datagram begins with, and where its
 * destination connection ID stands. Compiled into the BPF program, which steers by it, and into the
 * tools, tests and fuzzers, so that all of them mean the same by "a short header".
 *
 * Steering needs no more than the octets up to the end of the destination connection ID. What comes
 * after may be cut off or nonsense: that is for the server to judge (RFC 9000 section 12.2), and a
 * datagram that can be steered is. So a packet is invalid here only when the octets up to there are
 * not all present. The fixed bit is not looked at (RFC 8999 does not have it, RFC 9287 lets it be
 * 0).
 */
#pragma once

#include <linux/types.h>

#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif

/* Octets that the steering parser reads: 1 + 4 + 1 and a connection ID of 20, rounded up. */
#define QUIC_WINDOW 32

#define QUIC_VERSION_1 0x00000001u        /* RFC 9000 */
#define QUIC_VERSION_2 0x6b3343cfu        /* RFC 9369 */
#define QUIC_VERSION_DRAFT_29 0xff00001du /* its packet types are those of version 1 */

enum quic_kind {
	QUIC_INVALID, /* the destination connection ID is not all there */
	QUIC_INITIAL,
	QUIC_0RTT,
	QUIC_HANDSHAKE,
	QUIC_RETRY,
	QUIC_VERSION_NEGOTIATION,
	QUIC_SHORT,
	QUIC_UNKNOWN_VERSION,
};

struct quic_header {
	__u32 version; /* of a long header, else 0 */
	__u8 kind;     /* enum quic_kind */
	__u8 long_header;
	__u8 dcid_offset; /* 6 with a long header, 1 with a short one */
	__u8 dcid_length; /* 0 .. 255; more than 20 octets are not all in the window */
};

/* Kind of a packet with a long header: RFC 8999 section 6, RFC 9000 section 17.2, RFC 9369 3.2. */
static __always_inline __u8 quic_long_kind(__u8 first, __u32 version)
{
	__u8 type = (first >> 4) & 3;

	if (version == 0)
		return QUIC_VERSION_NEGOTIATION;
	if (version == QUIC_VERSION_2)
		type = (type - 1) & 3; /* Initial 1, 0-RTT 2, Handshake 3, Retry 0 */
	else if (version != QUIC_VERSION_1 && version != QUIC_VERSION_DRAFT_29)
		return QUIC_UNKNOWN_VERSION;
	return QUIC_INITIAL + type;
}

/*
 * Reads the header at p, of which QUIC_WINDOW octets are readable: the beginning of the datagram,
 * zeros after its end. length is that of the datagram and may be more than the window.
 * short_dcid_length is how many octets a connection ID has in a short header, which does not say so
 * itself. Every access is at a constant offset.
 */
static __always_inline struct quic_header quic_read_header(
	const __u8 *p, __u32 length, __u8 short_dcid_length)
{
	struct quic_header header = {0};

	if (length == 0)
		return header;
	if (!(p[0] & 0x80)) {
		header.dcid_offset = 1;
		header.dcid_length = short_dcid_length;
		if (length >= 1 + (__u32)short_dcid_length)
			header.kind = QUIC_SHORT;
		return header;
	}

	header.long_header = 1;
	if (length < 5)
		return header;
	header.version = (__u32)p[1] << 24 | (__u32)p[2] << 16 | (__u32)p[3] << 8 | p[4];
	if (length < 6)
		return header;
	header.dcid_offset = 6;
	header.dcid_length = p[5];
	if (length >= 6 + (__u32)p[5])
		header.kind = quic_long_kind(p[0], header.version);
	return header;
}

#ifndef __bpf__

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

/* All of RFC 8999: what the steering parser reads, and the source connection ID. */
struct quic_packet {
	struct quic_header header;
	bool has_version; /* also of an invalid one, when the datagram is long enough */
	const __u8 *dcid; /* into the datagram, dcid_length octets; NULL in an invalid packet */
	const __u8 *scid; /* NULL: short header, or cut off */
	__u8 scid_length;
};

/* Reads the first packet of a datagram. What is not there stays zero. */
static inline struct quic_packet quic_read_packet(
	const __u8 *datagram, size_t length, __u8 short_dcid_length)
{
	struct quic_packet packet = {0};
	__u8 window[QUIC_WINDOW] = {0};
	size_t offset;

	if (length)
		memcpy(window, datagram, length < sizeof(window) ? length : sizeof(window));
	packet.header = quic_read_header(
		window, length > 0xffffffffu ? 0xffffffffu : (__u32)length, short_dcid_length);
	packet.has_version = packet.header.long_header && length >= 5;
	if (packet.header.kind == QUIC_INVALID)
		return packet;
	packet.dcid = datagram + packet.header.dcid_offset;
	if (!packet.header.long_header)
		return packet;
	offset = (size_t)packet.header.dcid_offset + packet.header.dcid_length;
	if (offset >= length || offset + 1 + datagram[offset] > length)
		return packet;
	packet.scid_length = datagram[offset];
	packet.scid = datagram + offset + 1;
	return packet;
}

/* The words of the reference corpus and of `reuseportctl explain`. */
static inline const char *quic_kind_name(enum quic_kind kind)
{
	switch (kind) {
	case QUIC_INITIAL:
		return "initial";
	case QUIC_0RTT:
		return "0rtt";
	case QUIC_HANDSHAKE:
		return "handshake";
	case QUIC_RETRY:
		return "retry";
	case QUIC_VERSION_NEGOTIATION:
		return "vneg";
	case QUIC_SHORT:
		return "short";
	case QUIC_UNKNOWN_VERSION:
		return "unknown_version";
	case QUIC_INVALID:
		break;
	}
	return "invalid";
}

#endif
