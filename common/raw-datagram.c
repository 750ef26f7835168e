/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * IP and UDP headers in front of a datagram (RFC 791, RFC 8200, RFC 768). The kernel fills in
 * identification and checksum of an IPv4 header (raw(7)), not the UDP checksum.
 */
#include "common/raw-datagram.h"

#include <errno.h>
#include <netinet/ip.h>
#include <netinet/ip6.h>
#include <netinet/udp.h>
#include <stdbool.h>
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

struct in6_addr path_map_ipv4(struct in_addr address)
{
	struct in6_addr result = {.s6_addr[10] = 0xff, .s6_addr[11] = 0xff};

	memcpy(&result.s6_addr[12], &address, sizeof(address));
	return result;
}

int raw_datagram_send(int raw_ipv4, int raw_ipv6, const struct path *path, uint8_t traffic_class,
	const uint8_t *datagram, size_t length)
{
	const bool is_ipv4 = IN6_IS_ADDR_V4MAPPED(&path->client);
	union {
		struct iphdr ipv4;
		struct ip6_hdr ipv6;
	} ip;
	struct udphdr udp = {
		.source = path->client_port,
		.dest = path->own_port,
		.len = htons((uint16_t)(sizeof(udp) + length)),
	};
	uint8_t packet[sizeof(ip) + sizeof(udp) + RAW_DATAGRAM_MAX], *end = packet;
	size_t ip_length;

	if (length > RAW_DATAGRAM_MAX)
		return -EMSGSIZE;
	if (is_ipv4 != !!IN6_IS_ADDR_V4MAPPED(&path->own))
		return -EAFNOSUPPORT;
	if (IN6_IS_ADDR_LINKLOCAL(&path->client) || IN6_IS_ADDR_LINKLOCAL(&path->own))
		return -EADDRNOTAVAIL;
	if (is_ipv4) {
		ip_length = write_ipv4(&ip.ipv4, path, traffic_class, sizeof(udp) + length);
		/* daddr follows saddr, as ip6_dst does ip6_src */
		udp.check = checksum(&ip.ipv4.saddr, 8, &udp, datagram, length);
	} else {
		ip_length = write_ipv6(&ip.ipv6, path, traffic_class, sizeof(udp) + length);
		udp.check = checksum(&ip.ipv6.ip6_src, 32, &udp, datagram, length);
	}
	end = mempcpy(end, &ip, ip_length);
	end = mempcpy(end, &udp, sizeof(udp));
	end = mempcpy(end, datagram, length);
	if (sendto(is_ipv4 ? raw_ipv4 : raw_ipv6, packet, (size_t)(end - packet), MSG_DONTWAIT,
		    NULL, 0) < 0)
		return -errno;
	return 0;
}
