/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What the shared header parser and connection-ID codec say of many packets, in one process: the
 * other side of the test that the program in the kernel does the same with the same packets.
 *
 *	quic_reader SHORT_LENGTH ROTATION SERVER_ID_LENGTH NONCE_LENGTH KEY|- < packets
 *
 * Each packet on stdin is its length in two octets, big-endian, and itself. Each line on stdout is
 *
 *	KIND DCID|- SERVER_ID|-
 *
 * with the connection ID in hexadecimal ("." when it is empty) and what its server ID decodes to.
 */
#include <stdio.h>
#include <stdlib.h>

#include "bpf/quic_header.h"
#include "bpf/quic_lb.h"

#define PACKET_MAX 65535

static int read_key(const char *text, __u8 key[AES128_OCTETS])
{
	if (strlen(text) != 2 * AES128_OCTETS)
		return -1;
	for (unsigned i = 0; i < AES128_OCTETS; i++) {
		unsigned octet;

		if (sscanf(text + 2 * i, "%2x", &octet) != 1)
			return -1;
		key[i] = (__u8)octet;
	}
	return 0;
}

static void print_octets(const __u8 *octets, size_t length)
{
	if (length == 0)
		putchar('.');
	for (size_t i = 0; i < length; i++)
		printf("%02x", octets[i]);
}

static void print_packet(const struct quic_lb_config *config, const __u8 *datagram, size_t length,
	__u8 short_dcid_length)
{
	struct quic_packet packet = quic_read_packet(datagram, length, short_dcid_length);
	__u8 server_id[QUIC_LB_SERVER_ID_MAX];

	printf("%s ", quic_kind_name(packet.header.kind));
	if (packet.dcid)
		print_octets(packet.dcid, packet.header.dcid_length);
	else
		putchar('-');
	putchar(' ');
	if (packet.dcid && quic_lb_decode(config, packet.dcid, packet.header.dcid_length, server_id,
				   NULL) == 0)
		print_octets(server_id, config->server_id_length);
	else
		putchar('-');
	putchar('\n');
}

int main(int argc, char **argv)
{
	static __u8 datagram[PACKET_MAX];
	struct quic_lb_config config;
	__u8 key[AES128_OCTETS], size[2];
	const __u8 *used_key = NULL;

	if (argc != 6)
		return 2;
	if (strcmp(argv[5], "-") != 0) {
		if (read_key(argv[5], key) < 0)
			return 2;
		used_key = key;
	}
	if (quic_lb_configure(&config, atoi(argv[2]), atoi(argv[3]), atoi(argv[4]), used_key) < 0)
		return 2;
	while (fread(size, 1, sizeof(size), stdin) == sizeof(size)) {
		size_t length = (size_t)size[0] << 8 | size[1];

		if (fread(datagram, 1, length, stdin) != length)
			return 1;
		print_packet(&config, datagram, length, (__u8)atoi(argv[1]));
	}
	return ferror(stdin) || fflush(stdout) != 0;
}
