/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Long headers behind the connection IDs: token, length, packet number (RFC 9000 section 17.2).
 */
#include "classify/packet.h"

#include <errno.h>

int packet_varint(const uint8_t *octets, size_t length, size_t *offset, uint64_t *ret)
{
	size_t at = *offset, n;
	uint64_t value;

	if (at >= length)
		return -EBADMSG;
	n = (size_t)1 << (octets[at] >> 6);
	if (n > length - at)
		return -EBADMSG;
	value = octets[at] & 0x3f;
	for (size_t i = 1; i < n; i++)
		value = value << 8 | octets[at + i];
	*offset = at + n;
	*ret = value;
	return 0;
}

int packet_read(const uint8_t *octets, size_t length, struct packet *ret)
{
	struct packet packet = {.quic = quic_read_packet(octets, length, 0), .octets = octets};
	uint64_t token_length = 0, rest;
	size_t offset;

	if (packet.quic.header.kind == QUIC_INVALID)
		return -EBADMSG;
	if (!packet.quic.header.long_header || packet.quic.header.kind == QUIC_RETRY ||
		packet.quic.header.kind == QUIC_VERSION_NEGOTIATION)
		return -ENOMSG;
	if (packet.quic.header.version != QUIC_VERSION_1 &&
		packet.quic.header.version != QUIC_VERSION_2)
		return -EPROTONOSUPPORT;
	if (!packet.quic.scid || packet.quic.header.dcid_length > PACKET_CID_MAX ||
		packet.quic.scid_length > PACKET_CID_MAX)
		return -EBADMSG;

	offset = (size_t)(packet.quic.scid - octets) + packet.quic.scid_length;
	if (packet.quic.header.kind == QUIC_INITIAL) {
		if (packet_varint(octets, length, &offset, &token_length) < 0 ||
			token_length > length - offset)
			return -EBADMSG;
		offset += token_length;
	}
	if (packet_varint(octets, length, &offset, &rest) < 0 || rest > length - offset)
		return -EBADMSG;
	packet.token_length = token_length;
	packet.number_offset = offset;
	packet.length = offset + rest;
	*ret = packet;
	return 0;
}
