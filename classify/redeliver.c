/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * IP and UDP headers in front of a datagram (RFC 791, RFC 8200, RFC 768). The kernel fills in
 * identification and checksum of an IPv4 header (raw(7)), not the UDP checksum.
 */
#include "classify/redeliver.h"

#include <errno.h>
#include <netinet/ip.h>
#include <netinet/ip6.h>
#include <netinet/udp.h>
#include <string.h>
#include <sys/socket.h>

#define HOPS 64

/* Sum of 16-bit words in memory order, which its checksum does not care about (RFC 1071). */
static uint64_t sum(uint64_t total, const uint8_t *octets, size_t length)
{
	size_t i = 0;

	for (; i + 8 <= length; i += 8) {
		uint64_t word;

		memcpy(&word, octets + i, sizeof(word));
		total += (word & 0xffffffff) + (word >> 32);
	}
	for (; i < length; i += 2) {
		uint16_t word = 0;

		memcpy(&word, octets + i, length - i == 1 ? 1 : 2);
		total += word;
	}
	return total;
}

static uint16_t fold(uint64_t total)
{
	while (total >> 16)
		total = (total & 0xffff) + (total >> 16);
	/* 0 stands for "no checksum" (RFC 768), and is the same as 0xffff otherwise. */
	return total == 0xffff ? 0xffff : (uint16_t)~total;
}

static uint16_t checksum(const void *addresses, size_t addresses_length,
	const struct udphdr *header, const uint8_t *datagram, size_t length)
{
	uint64_t total = (uint64_t)htons(IPPROTO_UDP) + header->len;

	total = sum(total, addresses, addresses_length);
	total = sum(total, (const uint8_t *)header, sizeof(*header));
	return fold(sum(total, datagram, length));
}

static size_t write_ipv4(
	struct iphdr *header, const struct path *path, uint8_t traffic_class, size_t length)
{
	*header = (struct iphdr){
		.version = 4,
		.ihl = sizeof(*header) / 4,
		.tos = traffic_class,
		.tot_len = htons((uint16_t)(sizeof(*header) + length)),
		.ttl = HOPS,
		.protocol = IPPROTO_UDP,
	};
	memcpy(&header->saddr, &path->client.s6_addr[12], sizeof(header->saddr));
	memcpy(&header->daddr, &path->own.s6_addr[12], sizeof(header->daddr));
	return sizeof(*header);
}

static size_t write_ipv6(
	struct ip6_hdr *header, const struct path *path, uint8_t traffic_class, size_t length)
{
	*header = (struct ip6_hdr){
		.ip6_flow = htonl(6u << 28 | (uint32_t)traffic_class << 20),
		.ip6_plen = htons((uint16_t)length),
		.ip6_nxt = IPPROTO_UDP,
		.ip6_hlim = HOPS,
		.ip6_src = path->client,
		.ip6_dst = path->own,
	};
	return sizeof(*header);
}

int redeliver(int raw_ipv4, int raw_ipv6, const struct path *path, uint8_t traffic_class,
	const uint8_t *datagram, size_t length)
{
	const int is_ipv4 = IN6_IS_ADDR_V4MAPPED(&path->client);
	struct {
		union {
			struct iphdr ipv4;
			struct ip6_hdr ipv6;
		};
		struct udphdr udp;
		uint8_t octets[REDELIVER_OCTETS];
	} packet;
	struct udphdr udp = {
		.source = path->client_port,
		.dest = path->own_port,
		.len = htons((uint16_t)(sizeof(udp) + length)),
	};
	uint8_t *begin = (uint8_t *)&packet;
	size_t ip_length, udp_length = sizeof(udp) + length;

	if (length > REDELIVER_OCTETS)
		return -EMSGSIZE;
	if (IN6_IS_ADDR_LINKLOCAL(&path->client) || IN6_IS_ADDR_LINKLOCAL(&path->own))
		return -EADDRNOTAVAIL;
	if (is_ipv4) {
		ip_length = write_ipv4(&packet.ipv4, path, traffic_class, udp_length);
		udp.check = checksum(&packet.ipv4.saddr, 8, &udp, datagram, length);
	} else {
		ip_length = write_ipv6(&packet.ipv6, path, traffic_class, udp_length);
		udp.check = checksum(&packet.ipv6.ip6_src, 32, &udp, datagram, length);
	}
	memcpy(begin + ip_length, &udp, sizeof(udp));
	memcpy(begin + ip_length + sizeof(udp), datagram, length);
	if (sendto(is_ipv4 ? raw_ipv4 : raw_ipv6, begin, ip_length + udp_length, MSG_DONTWAIT, NULL,
		    0) < 0)
		return -errno;
	return 0;
}
