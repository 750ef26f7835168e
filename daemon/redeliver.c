/* SPDX-License-Identifier: BSD-2-Clause */
#include "daemon/redeliver.h"

#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/ip6.h>
#include <netinet/udp.h>
#include <string.h>
#include <sys/socket.h>

#include "common/util.h"
#include "daemon/privileges.h"

#define ONCE_MAX 4096                               /* datagrams; the rest follows a second later */
#define PAYLOAD_MAX (65535 - sizeof(struct udphdr)) /* IPv6; IPv4 has 20 less */
#define HOPS 64

/* One datagram: as it was received, and the packet that is made of it. */
struct datagram {
	struct in6_addr source, destination; /* of IPv4: v4-mapped */
	in_port_t source_port, destination_port;
	uint8_t traffic_class;
	size_t length;
	uint8_t headers[sizeof(struct ip6_hdr) + sizeof(struct udphdr)];
	uint8_t payload[PAYLOAD_MAX];
};

static struct in6_addr mapped(struct in_addr address)
{
	struct in6_addr result = {.s6_addr[10] = 0xff, .s6_addr[11] = 0xff};

	memcpy(&result.s6_addr[12], &address, sizeof(address));
	return result;
}

int redeliver_open(int family)
{
	const struct sockaddr_in ipv4 = {
		.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	const struct sockaddr_in6 ipv6 = {
		.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
	_cleanup_close_ int fd = -1;
	int result;

	privileges_set_raw(true);
	fd = socket(family, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_RAW);
	result = -errno;
	privileges_set_raw(false);
	if (fd < 0)
		return result;
	if (family == AF_INET ? connect(fd, (const void *)&ipv4, sizeof(ipv4)) < 0
			      : connect(fd, (const void *)&ipv6, sizeof(ipv6)) < 0)
		return -errno;
	return take_fd(&fd);
}

/* What the standby tells of each datagram; the socket may become a worker's yet, so not for good.
 */
static void tell_addresses(int standby, int family, int on)
{
	setsockopt(standby, IPPROTO_IP, IP_PKTINFO, &on, sizeof(on));
	setsockopt(standby, IPPROTO_IP, IP_RECVTOS, &on, sizeof(on));
	if (family == AF_INET6) {
		setsockopt(standby, IPPROTO_IPV6, IPV6_RECVPKTINFO, &on, sizeof(on));
		setsockopt(standby, IPPROTO_IPV6, IPV6_RECVTCLASS, &on, sizeof(on));
	}
}

static void read_control(struct msghdr *header, struct datagram *ret)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(header); c; c = CMSG_NXTHDR(header, c)) {
		const uint8_t *data = CMSG_DATA(c);
		struct in_pktinfo ipv4;
		struct in6_pktinfo ipv6;
		int number;

		if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO) {
			memcpy(&ipv4, data, sizeof(ipv4));
			ret->destination = mapped(ipv4.ipi_addr);
		} else if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_TOS) {
			ret->traffic_class = *data;
		} else if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_PKTINFO) {
			memcpy(&ipv6, data, sizeof(ipv6));
			ret->destination = ipv6.ipi6_addr;
		} else if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_TCLASS) {
			memcpy(&number, data, sizeof(number));
			ret->traffic_class = (uint8_t)number;
		}
	}
}

/* false: nothing waits. */
static bool receive(int standby, in_port_t own_port, struct datagram *ret)
{
	union {
		struct cmsghdr align;
		uint8_t octets[256];
	} control;
	struct sockaddr_storage sender = {0};
	struct iovec part = {.iov_base = ret->payload, .iov_len = sizeof(ret->payload)};
	struct msghdr header = {
		.msg_name = &sender,
		.msg_namelen = sizeof(sender),
		.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	ssize_t size = recvmsg(standby, &header, MSG_DONTWAIT);

	if (size < 0)
		return false;
	ret->length = (size_t)size;
	ret->destination = (struct in6_addr)IN6ADDR_ANY_INIT;
	ret->destination_port = own_port;
	ret->traffic_class = 0;
	if (sender.ss_family == AF_INET) {
		const struct sockaddr_in *ipv4 = (const void *)&sender;

		ret->source = mapped(ipv4->sin_addr);
		ret->source_port = ipv4->sin_port;
	} else {
		const struct sockaddr_in6 *ipv6 = (const void *)&sender;

		ret->source = ipv6->sin6_addr;
		ret->source_port = ipv6->sin6_port;
	}
	read_control(&header, ret);
	return true;
}

static uint32_t sum(const void *data, size_t length, uint32_t before)
{
	const uint8_t *octets = data;

	/* At most 64 KiB: it does not overflow. */
	for (size_t i = 0; i + 1 < length; i += 2)
		before += (uint32_t)octets[i] << 8 | octets[i + 1];
	if (length % 2)
		before += (uint32_t)octets[length - 1] << 8;
	return before;
}

/* RFC 768, RFC 8200 section 8.1: of a pseudo header, the UDP header and the payload; never 0. */
static uint16_t checksum(const struct datagram *d, const void *addresses, size_t addresses_length,
	const struct udphdr *udp)
{
	uint32_t total = sum(addresses, addresses_length, IPPROTO_UDP + ntohs(udp->len));

	total = sum(udp, sizeof(*udp), total);
	total = sum(d->payload, d->length, total);
	while (total >> 16)
		total = (total & 0xffff) + (total >> 16);
	total = ~total & 0xffff;
	return htons(total ? (uint16_t)total : 0xffff);
}

static size_t write_ipv4(struct datagram *d, struct udphdr *udp)
{
	struct iphdr ip = {
		.version = 4,
		.ihl = sizeof(ip) / 4,
		.tos = d->traffic_class,
		.tot_len = htons((uint16_t)(sizeof(ip) + sizeof(*udp) + d->length)),
		.ttl = HOPS,
		.protocol = IPPROTO_UDP,
	};

	memcpy(&ip.saddr, &d->source.s6_addr[12], 4);
	memcpy(&ip.daddr, &d->destination.s6_addr[12], 4);
	udp->check = checksum(d, &ip.saddr, 8, udp); /* daddr follows saddr */
	memcpy(d->headers, &ip, sizeof(ip));         /* its checksum is the kernel's (raw(7)) */
	memcpy(d->headers + sizeof(ip), udp, sizeof(*udp));
	return sizeof(ip) + sizeof(*udp);
}

static size_t write_ipv6(struct datagram *d, struct udphdr *udp)
{
	struct ip6_hdr ip = {
		.ip6_flow = htonl(6U << 28 | (uint32_t)d->traffic_class << 20),
		.ip6_plen = htons((uint16_t)(sizeof(*udp) + d->length)),
		.ip6_nxt = IPPROTO_UDP,
		.ip6_hlim = HOPS,
		.ip6_src = d->source,
		.ip6_dst = d->destination,
	};

	udp->check = checksum(d, &ip.ip6_src, 32, udp);
	memcpy(d->headers, &ip, sizeof(ip));
	memcpy(d->headers + sizeof(ip), udp, sizeof(*udp));
	return sizeof(ip) + sizeof(*udp);
}

static bool send_again(struct datagram *d, const int raw[2])
{
	bool ipv4 = IN6_IS_ADDR_V4MAPPED(&d->source);
	struct udphdr udp = {
		.source = d->source_port,
		.dest = d->destination_port,
		.len = htons((uint16_t)(sizeof(udp) + d->length)),
	};
	struct iovec parts[] = {
		{.iov_base = d->headers},
		{.iov_base = d->payload, .iov_len = d->length},
	};
	struct msghdr header = {.msg_iov = parts, .msg_iovlen = ARRAY_SIZE(parts)};

	/* The answer to a link-local address would leave by the interface that it came by now. */
	if (ipv4 != !!IN6_IS_ADDR_V4MAPPED(&d->destination) || IN6_IS_ADDR_LINKLOCAL(&d->source))
		return false;
	parts[0].iov_len = ipv4 ? write_ipv4(d, &udp) : write_ipv6(d, &udp);
	return sendmsg(raw[!ipv4], &header, MSG_DONTWAIT) >= 0;
}

int redeliver(int standby, const struct listener_config *config)
{
	const int family = config->address.ss_family;
	_cleanup_close_ int raw4 = -1, raw6 = -1;
	_cleanup_free_ struct datagram *datagram = NULL;
	/* Of either family, at the same place in both. */
	const in_port_t port = ((const struct sockaddr_in *)&config->address)->sin_port;
	int lost = 0;

	if (config->bind_to_device)
		return -EOPNOTSUPP;
	datagram = malloc(sizeof(*datagram));
	if (!datagram)
		return -ENOMEM;
	raw4 = redeliver_open(AF_INET);
	if (raw4 < 0)
		return raw4;
	if (family == AF_INET6)
		raw6 = redeliver_open(AF_INET6);
	if (family == AF_INET6 && raw6 < 0)
		return raw6;
	tell_addresses(standby, family, 1);
	for (int n = 0; n < ONCE_MAX && receive(standby, port, datagram); n++)
		lost += !send_again(datagram, (const int[]){raw4, raw6});
	tell_addresses(standby, family, 0);
	return lost;
}
