/* SPDX-License-Identifier: BSD-2-Clause */
#include "daemon/redeliver.h"

#include <string.h>
#include <sys/socket.h>

#include "common/raw-datagram.h"
#include "common/util.h"
#include "daemon/privileges.h"

#define ONCE_MAX 4096 /* datagrams; the rest follows a second later */

/* As it was received. */
struct datagram {
	struct path path;
	uint8_t traffic_class;
	size_t length;
	uint8_t payload[RAW_DATAGRAM_MAX];
};

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
			ret->path.own = path_map_ipv4(ipv4.ipi_addr);
		} else if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_TOS) {
			ret->traffic_class = *data;
		} else if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_PKTINFO) {
			memcpy(&ipv6, data, sizeof(ipv6));
			ret->path.own = ipv6.ipi6_addr;
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
	ret->path = (struct path){.own_port = own_port};
	ret->traffic_class = 0;
	if (sender.ss_family == AF_INET) {
		const struct sockaddr_in *ipv4 = (const void *)&sender;

		ret->path.client = path_map_ipv4(ipv4->sin_addr);
		ret->path.client_port = ipv4->sin_port;
	} else {
		const struct sockaddr_in6 *ipv6 = (const void *)&sender;

		ret->path.client = ipv6->sin6_addr;
		ret->path.client_port = ipv6->sin6_port;
	}
	read_control(&header, ret);
	return true;
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
		lost += raw_datagram_send(raw4, raw6, &datagram->path, datagram->traffic_class,
				datagram->payload, datagram->length) < 0;
	tell_addresses(standby, family, 0);
	return lost;
}
