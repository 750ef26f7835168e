/* SPDX-License-Identifier: BSD-2-Clause */
#include "daemon/sockdiag.h"

#include <libmnl/libmnl.h>
#include <linux/inet_diag.h>
#include <linux/sock_diag.h>
#include <net/if.h>
#include <netinet/in.h>
#include <string.h>

#include "common/util.h"

#define TCP_STATE_CLOSE 7 /* include/net/tcp_states.h: a UDP socket that isn't connected */
#define TCP_STATE_LISTEN 10
#define BUFFER_OCTETS 32768 /* the kernel fills as much in one piece of a dump, netlink(7) */

struct search {
	const struct listener_config *config;
	uint32_t device;
	bool found;
};

/* Address and port in network order, as struct inet_diag_sockid has them. */
static size_t address_of(const struct listener_config *config, const void **ret, uint16_t *ret_port)
{
	if (config->address.ss_family == AF_INET6) {
		const struct sockaddr_in6 *ipv6 = (const void *)&config->address;

		*ret = &ipv6->sin6_addr;
		*ret_port = ipv6->sin6_port;
		return sizeof(ipv6->sin6_addr);
	}
	const struct sockaddr_in *ipv4 = (const void *)&config->address;

	*ret = &ipv4->sin_addr;
	*ret_port = ipv4->sin_port;
	return sizeof(ipv4->sin_addr);
}

static int on_socket(const struct nlmsghdr *header, void *user_data)
{
	const struct inet_diag_msg *message = mnl_nlmsg_get_payload(header);
	struct search *search = user_data;
	const void *address;
	uint16_t port;
	size_t size;

	if (mnl_nlmsg_get_payload_len(header) < sizeof(*message))
		return MNL_CB_OK;
	size = address_of(search->config, &address, &port);
	if (message->idiag_family == search->config->address.ss_family &&
		message->id.idiag_sport == port && message->id.idiag_if == search->device &&
		memcmp(message->id.idiag_src, address, size) == 0)
		search->found = true;
	return MNL_CB_OK;
}

static void close_netlink(struct mnl_socket **netlink)
{
	if (*netlink)
		mnl_socket_close(*netlink);
}

int sockdiag_is_bound(const struct listener_config *config)
{
	_cleanup_(close_netlink) struct mnl_socket *netlink = NULL;
	bool tcp = config->transport == TRANSPORT_TCP;
	struct search search = {.config = config};
	struct inet_diag_req_v2 *request;
	_cleanup_free_ char *buffer = NULL;
	struct nlmsghdr *header;
	const void *address;
	ssize_t n;
	int more = MNL_CB_OK;

	if (config->bind_to_device)
		search.device = if_nametoindex(config->bind_to_device);
	buffer = malloc(BUFFER_OCTETS);
	netlink = mnl_socket_open2(NETLINK_SOCK_DIAG, SOCK_CLOEXEC);
	if (!buffer || !netlink || mnl_socket_bind(netlink, 0, MNL_SOCKET_AUTOPID) < 0)
		return -errno;
	header = mnl_nlmsg_put_header(buffer);
	header->nlmsg_type = SOCK_DIAG_BY_FAMILY;
	header->nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
	request = mnl_nlmsg_put_extra_header(header, sizeof(*request));
	request->sdiag_family = (uint8_t)config->address.ss_family;
	request->sdiag_protocol = tcp ? IPPROTO_TCP : IPPROTO_UDP;
	request->idiag_states = tcp ? 1u << TCP_STATE_LISTEN : 1u << TCP_STATE_CLOSE;
	address_of(config, &address, &request->id.idiag_sport); /* the kernel filters by port */
	if (mnl_socket_sendto(netlink, header, header->nlmsg_len) < 0)
		return -errno;
	while (more == MNL_CB_OK) {
		n = mnl_socket_recvfrom(netlink, buffer, BUFFER_OCTETS);
		if (n < 0)
			return -errno;
		more = mnl_cb_run(
			buffer, (size_t)n, 0, mnl_socket_get_portid(netlink), on_socket, &search);
		if (more < 0)
			return -errno;
	}
	return search.found;
}
