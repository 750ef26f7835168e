/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Any octets as a datagram: the reader stays inside, what it points to is inside, and the steering
 * parser says the same whatever stands behind the octets that it may look at.
 */
#include <stdlib.h>

#include "bpf/quic_header.h"

int LLVMFuzzerTestOneInput(const __u8 *data, size_t size);

static void check(bool condition)
{
	if (!condition)
		abort();
}

int LLVMFuzzerTestOneInput(const __u8 *data, size_t size)
{
	struct quic_packet packet;
	struct quic_header header;
	__u8 window[QUIC_WINDOW] = {0};
	const __u8 *datagram;

	/* The first octet says how long connection IDs are in short headers. */
	if (size < 1)
		return 0;
	datagram = data + 1;
	size--;
	packet = quic_read_packet(datagram, size, data[0]);
	check(quic_kind_name(packet.header.kind) != NULL);
	check((packet.header.kind == QUIC_INVALID) == (packet.dcid == NULL));
	if (packet.dcid)
		check(packet.dcid == datagram + packet.header.dcid_offset &&
			packet.dcid + packet.header.dcid_length <= datagram + size);
	if (packet.scid)
		check(packet.scid == packet.dcid + packet.header.dcid_length + 1 &&
			packet.scid + packet.scid_length <= datagram + size);

	memcpy(window, datagram, size < sizeof(window) ? size : sizeof(window));
	header = quic_read_header(window, size, data[0]);
	check(memcmp(&header, &packet.header, sizeof(header)) == 0);
	return 0;
}
