/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Gives a datagram to the kernel once more, as it came, by a raw socket that is connected to the
 * loopback address. The route of such a socket is that of the loopback interface whatever a packet
 * says, so a packet reaches this host alone, past the filter on sources, and the socket that gets
 * it is found by the packet's own addresses: tests/system/test_redelivery.py has what that rests
 * on.
 *
 * Addresses, ports, contents and ECN are what they were; what a receiver may see is that it came by
 * the loopback interface, with another TTL.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <netinet/in.h>

/* What UDP's length can say (RFC 768), without its header; IPv4 has 20 less. */
#define RAW_DATAGRAM_MAX (65535 - 8)

/* Where a datagram came from and went to; IPv4 addresses as ::ffff:a.b.c.d (RFC 4291 2.5.5.2). */
struct path {
	struct in6_addr client;
	struct in6_addr own;
	uint16_t client_port; /* network byte order, as own_port */
	uint16_t own_port;
};

struct in6_addr path_map_ipv4(struct in_addr address);

/*
 * Sends it by raw_ipv4 or raw_ipv6. traffic_class: the octet of DSCP and ECN that it came with.
 * Returns 0, -EAFNOSUPPORT if one end is IPv4 and the other is not, -EADDRNOTAVAIL for a link-local
 * address, which has a meaning on its link alone and can't come by the loopback interface,
 * -EMSGSIZE, or what sendto(2) said. (Never sendmsg(2): classify/confine.c lets the classifier send
 * by these sockets to where they are connected alone, and a filter sees sendto's address only.)
 */
int raw_datagram_send(int raw_ipv4, int raw_ipv6, const struct path *path, uint8_t traffic_class,
	const uint8_t *datagram, size_t length);
