/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Gives a datagram back to the kernel as it came, by a raw socket that is connected to the loopback
 * address: docs/sni-routing.md has why, tests/system/test_redelivery.py what that rests on.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <netinet/in.h>

/* Largest datagram that is held: Ethernet's jumbo frames have less. */
#define REDELIVER_OCTETS 9216

/* Where a datagram came from and went to; IPv4 addresses as ::ffff:a.b.c.d (RFC 4291 2.5.5.2). */
struct path {
	struct in6_addr client;
	struct in6_addr own;
	uint16_t client_port; /* network byte order, as own_port */
	uint16_t own_port;
};

/*
 * Sends it by raw_ipv4 or raw_ipv6. traffic_class: the octet of DSCP and ECN that it came with.
 * Returns 0, -EADDRNOTAVAIL for a link-local address, which has a meaning on its link alone and
 * can't come by the loopback interface, or what sendto(2) said.
 */
int redeliver(int raw_ipv4, int raw_ipv6, const struct path *path, uint8_t traffic_class,
	const uint8_t *datagram, size_t length);
