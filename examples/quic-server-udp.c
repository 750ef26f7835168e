/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Datagrams in and out. A socket that is bound to a wildcard address must tell, and choose, the
 * local address of each: an answer from another address is not part of the client's connection.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "examples/quic-server.h"

#define BUFFER_OCTETS (4 << 20)

static uint16_t *port_of(struct address *address)
{
	return address->any.sa_family == AF_INET6 ? &address->in6.sin6_port : &address->in.sin_port;
}

/* A burst of handshakes is to wait rather than be lost; without the right to, what is allowed. */
static void enlarge(int fd, int force, int plain)
{
	int octets = BUFFER_OCTETS;

	if (setsockopt(fd, SOL_SOCKET, force, &octets, sizeof(octets)) < 0)
		setsockopt(fd, SOL_SOCKET, plain, &octets, sizeof(octets));
}

int udp_prepare(struct server *server)
{
	struct address bound = {.length = sizeof(bound.storage)};
	int on = 1, result;

	if (getsockname(server->fd, &bound.any, &bound.length) < 0)
		return -errno;
	server->port = *port_of(&bound);
	if (bound.any.sa_family == AF_INET6)
		result = setsockopt(server->fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, &on, sizeof(on));
	else
		result = setsockopt(server->fd, IPPROTO_IP, IP_PKTINFO, &on, sizeof(on));
	if (result < 0)
		return -errno;
	enlarge(server->fd, SO_RCVBUFFORCE, SO_RCVBUF);
	enlarge(server->fd, SO_SNDBUFFORCE, SO_SNDBUF);
	return 0;
}

union control {
	struct cmsghdr align;
	char octets[CMSG_SPACE(sizeof(struct in6_pktinfo))];
};

static void take_local_address(struct server *server, struct msghdr *message, struct address *local)
{
	memset(local, 0, sizeof(*local));
	for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
		struct in6_pktinfo info6;
		struct in_pktinfo info;

		if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO) {
			memcpy(&info, CMSG_DATA(c), sizeof(info));
			local->in.sin_family = AF_INET;
			local->in.sin_addr = info.ipi_addr;
			local->length = sizeof(local->in);
		} else if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_PKTINFO) {
			memcpy(&info6, CMSG_DATA(c), sizeof(info6));
			local->in6.sin6_family = AF_INET6;
			local->in6.sin6_addr = info6.ipi6_addr;
			local->length = sizeof(local->in6);
		}
	}
	if (local->length)
		*port_of(local) = server->port;
}

bool udp_receive(struct server *server, struct datagram *ret, uint8_t *buffer)
{
	union control control;

	for (;;) {
		struct iovec part = {buffer, QUIC_RECEIVE_MAX};
		struct msghdr message = {
			.msg_name = &ret->remote.storage,
			.msg_namelen = sizeof(ret->remote.storage),
			.msg_iov = &part,
			.msg_iovlen = 1,
			.msg_control = &control,
			.msg_controllen = sizeof(control),
		};
		ssize_t n = recvmsg(server->fd, &message, MSG_DONTWAIT);

		if (n < 0 && (errno == EINTR || errno == ECONNREFUSED))
			continue;
		if (n < 0)
			return false;
		take_local_address(server, &message, &ret->local);
		if ((message.msg_flags & MSG_TRUNC) || !ret->local.length)
			continue; /* nobody who keeps to what we announced sends so much */
		ret->remote.length = message.msg_namelen;
		ret->info = (ngtcp2_pkt_info){};
		ret->data = buffer;
		ret->length = (size_t)n;
		return true;
	}
}

static size_t put_local_address(struct cmsghdr *c, const struct sockaddr *local)
{
	if (local->sa_family == AF_INET6) {
		struct in6_pktinfo info = {
			.ipi6_addr = ((const struct sockaddr_in6 *)local)->sin6_addr};

		c->cmsg_level = IPPROTO_IPV6;
		c->cmsg_type = IPV6_PKTINFO;
		c->cmsg_len = CMSG_LEN(sizeof(info));
		memcpy(CMSG_DATA(c), &info, sizeof(info));
		return CMSG_SPACE(sizeof(info));
	}
	struct in_pktinfo info = {.ipi_spec_dst = ((const struct sockaddr_in *)local)->sin_addr};

	c->cmsg_level = IPPROTO_IP;
	c->cmsg_type = IP_PKTINFO;
	c->cmsg_len = CMSG_LEN(sizeof(info));
	memcpy(CMSG_DATA(c), &info, sizeof(info));
	return CMSG_SPACE(sizeof(info));
}

void udp_send(struct server *server, const struct sockaddr *local, const struct sockaddr *remote,
	socklen_t remote_length, const uint8_t *data, size_t length)
{
	struct iovec part = {(uint8_t *)data, length};
	union control control = {};
	struct msghdr message = {
		.msg_name = (struct sockaddr *)remote,
		.msg_namelen = remote_length,
		.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = &control,
	};

	message.msg_controllen = put_local_address(&control.align, local);
	while (sendmsg(server->fd, &message, MSG_DONTWAIT) < 0)
		/* ECONNREFUSED is about an earlier datagram (RFC 9000 section 14.2.1). */
		if (errno != EINTR && errno != ECONNREFUSED)
			break;
}
