/* SPDX-License-Identifier: BSD-2-Clause */
#include "daemon/sockdiag.h"

#include <libmnl/libmnl.h>
#include <linux/inet_diag.h>
#include <linux/sock_diag.h>
#include <net/if.h>
#include <netinet/in.h>
#include <string.h>

#include "common/util.h"

#define TCP_STATE_ESTABLISHED 1 /* include/net/tcp_states.h: a UDP socket that is connected */
#define TCP_STATE_CLOSE 7       /* one that isn't */
#define TCP_STATE_LISTEN 10
#define BUFFER_OCTETS 32768 /* the kernel fills as much in one piece of a dump, netlink(7) */

struct search {
	const struct listener_config *config;
	uint32_t device;
	int (*found)(struct search *search, const struct nlmsghdr *header);
	struct sockdiag_list *list;
	bool exact; /* sockdiag_is_bound(): there is one */
};

static void close_netlink(struct mnl_socket **netlink)
{
	if (*netlink)
		mnl_socket_close(*netlink);
}

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

static bool is_wildcard(const struct listener_config *config)
{
	static const struct in6_addr any = IN6ADDR_ANY_INIT;
	const void *address;
	uint16_t port;
	size_t size = address_of(config, &address, &port);

	return memcmp(address, &any, size) == 0;
}

static bool is_exact(const struct search *search, const struct inet_diag_msg *message)
{
	const void *address;
	uint16_t port;
	size_t size = address_of(search->config, &address, &port);

	return message->idiag_family == search->config->address.ss_family &&
	       message->id.idiag_if == search->device &&
	       memcmp(message->id.idiag_src, address, size) == 0;
}

/* The kernel prefers what is bound more closely. What is bound to a device that is none gets
 * nothing. */
static bool is_part(const struct search *search, const struct inet_diag_msg *message)
{
	char name[IF_NAMESIZE];
	const void *address;
	uint16_t port;
	size_t size = address_of(search->config, &address, &port);

	if (message->id.idiag_if != search->device &&
		(search->device || !if_indextoname(message->id.idiag_if, name)))
		return false;
	return is_wildcard(search->config) || memcmp(message->id.idiag_src, address, size) == 0;
}

static int on_message(const struct nlmsghdr *header, void *user_data)
{
	const struct inet_diag_msg *message = mnl_nlmsg_get_payload(header);
	struct search *search = user_data;
	const void *address;
	uint16_t port;

	address_of(search->config, &address, &port);
	if (mnl_nlmsg_get_payload_len(header) < sizeof(*message) || message->id.idiag_sport != port)
		return MNL_CB_OK;
	return search->found(search, header);
}

static int open_netlink(struct mnl_socket **ret)
{
	*ret = mnl_socket_open2(NETLINK_SOCK_DIAG, SOCK_CLOEXEC);
	if (!*ret || mnl_socket_bind(*ret, 0, MNL_SOCKET_AUTOPID) < 0)
		return -errno;
	return 0;
}

static struct inet_diag_req_v2 *put_request(
	void *buffer, uint16_t type, uint16_t flags, const struct listener_config *config)
{
	bool tcp = config->transport == TRANSPORT_TCP;
	struct nlmsghdr *header = mnl_nlmsg_put_header(buffer);
	struct inet_diag_req_v2 *request;

	header->nlmsg_type = type;
	header->nlmsg_flags = NLM_F_REQUEST | flags;
	request = mnl_nlmsg_put_extra_header(header, sizeof(*request));
	request->sdiag_family = (uint8_t)config->address.ss_family;
	request->sdiag_protocol = tcp ? IPPROTO_TCP : IPPROTO_UDP;
	request->idiag_states =
		tcp ? 1u << TCP_STATE_LISTEN : 1u << TCP_STATE_ESTABLISHED | 1u << TCP_STATE_CLOSE;
	return request;
}

/* All of one family that have the port. */
static int dump(struct search *search, uint8_t family)
{
	_cleanup_(close_netlink) struct mnl_socket *netlink = NULL;
	_cleanup_free_ char *buffer = malloc(BUFFER_OCTETS);
	struct inet_diag_req_v2 *request;
	int more = MNL_CB_OK, result;
	const void *address;

	if (!buffer)
		return -ENOMEM;
	result = open_netlink(&netlink);
	if (result < 0)
		return result;
	request = put_request(buffer, SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, search->config);
	request->sdiag_family = family;
	request->idiag_ext = 1u << (INET_DIAG_SKMEMINFO - 1);
	address_of(
		search->config, &address, &request->id.idiag_sport); /* the kernel filters by it */
	if (mnl_socket_sendto(netlink, buffer, ((struct nlmsghdr *)buffer)->nlmsg_len) < 0)
		return -errno;
	while (more == MNL_CB_OK) {
		ssize_t n = mnl_socket_recvfrom(netlink, buffer, BUFFER_OCTETS);

		if (n < 0)
			return -errno;
		more = mnl_cb_run(
			buffer, (size_t)n, 0, mnl_socket_get_portid(netlink), on_message, search);
		if (more < 0)
			return -errno;
	}
	return 0;
}

static int start_search(struct search *search, const struct listener_config *config)
{
	search->config = config;
	if (!config->bind_to_device)
		return 0;
	search->device = if_nametoindex(config->bind_to_device);
	return search->device ? 0 : -ENODEV;
}

static int note_exact(struct search *search, const struct nlmsghdr *header)
{
	search->exact |= is_exact(search, mnl_nlmsg_get_payload(header));
	return MNL_CB_OK;
}

int sockdiag_is_bound(const struct listener_config *config)
{
	struct search search = {.found = note_exact};
	int result = start_search(&search, config);

	if (result >= 0)
		result = dump(&search, (uint8_t)config->address.ss_family);
	return result < 0 ? result : search.exact;
}

static uint64_t cookie_of(const struct inet_diag_sockid *id)
{
	return (uint64_t)id->idiag_cookie[1] << 32 | id->idiag_cookie[0];
}

static void read_attributes(struct sockdiag_socket *socket, const struct nlmsghdr *header)
{
	const struct nlattr *attribute;

	mnl_attr_for_each(attribute, header, sizeof(struct inet_diag_msg))
	{
		const void *payload = mnl_attr_get_payload(attribute);
		size_t n = mnl_attr_get_payload_len(attribute);
		uint32_t memory[SK_MEMINFO_VARS] = {0};

		switch (mnl_attr_get_type(attribute)) {
		case INET_DIAG_SKMEMINFO:
			memcpy(memory, payload, MIN(n, sizeof(memory)));
			socket->drops = memory[SK_MEMINFO_DROPS];
			if (!socket->queue_limit)
				socket->queue_limit = memory[SK_MEMINFO_RCVBUF];
			break;
		case INET_DIAG_CGROUP_ID:
			if (n == sizeof(socket->cgroup))
				memcpy(&socket->cgroup, payload, n);
			break;
		}
	}
}

static int add_socket(struct search *search, const struct nlmsghdr *header)
{
	const struct inet_diag_msg *message = mnl_nlmsg_get_payload(header);
	struct sockdiag_list *list = search->list;
	bool tcp = search->config->transport == TRANSPORT_TCP;

	if (!is_part(search, message))
		return MNL_CB_OK;
	if (list->n == list->n_allocated) {
		size_t n = MAX(64, 2 * list->n_allocated);
		struct sockdiag_socket *more = NULL;

		errno = E2BIG;
		if (n <= SOCKDIAG_SOCKETS_MAX)
			more = realloc(list->sockets, n * sizeof(*more));
		if (!more)
			return MNL_CB_ERROR;
		list->sockets = more;
		list->n_allocated = n;
	}
	list->sockets[list->n] = (struct sockdiag_socket){
		.cookie = cookie_of(&message->id),
		.inode = message->idiag_inode,
		.uid = message->idiag_uid,
		.exact = is_exact(search, message),
		.queue = message->idiag_rqueue,
		/* For a listening socket, wqueue is its backlog (inet_diag(7), Linux). */
		.queue_limit = tcp ? message->idiag_wqueue : 0,
	};
	read_attributes(&list->sockets[list->n++], header);
	return MNL_CB_OK;
}

static int compare_cookies(const void *a, const void *b)
{
	const struct sockdiag_socket *left = a, *right = b;

	return (left->cookie > right->cookie) - (left->cookie < right->cookie);
}

int sockdiag_read(const struct listener_config *config, struct sockdiag_list *ret)
{
	struct search search = {.found = add_socket, .list = ret};
	int result = start_search(&search, config);

	*ret = (struct sockdiag_list){0};
	if (result >= 0)
		result = dump(&search, (uint8_t)config->address.ss_family);
	/* [::] without IPV6_V6ONLY stands for IPv4 as well. */
	if (result >= 0 && config->address.ss_family == AF_INET6 && !config->ipv6_only &&
		is_wildcard(config))
		result = dump(&search, AF_INET);
	if (result < 0) {
		sockdiag_done(ret);
		return result;
	}
	if (ret->n)
		qsort(ret->sockets, ret->n, sizeof(*ret->sockets), compare_cookies);
	return 0;
}

void sockdiag_done(struct sockdiag_list *list)
{
	free(list->sockets);
	*list = (struct sockdiag_list){0};
}

const struct sockdiag_socket *sockdiag_find(const struct sockdiag_list *list, uint64_t cookie)
{
	const struct sockdiag_socket key = {.cookie = cookie};

	if (!list->n)
		return NULL;
	return bsearch(&key, list->sockets, list->n, sizeof(key), compare_cookies);
}

/*
 * SOCK_DESTROY finds its socket by address, ports and the peer's address, and looks at the cookie
 * only then (inet_diag_find_one_icsk, Linux 6.18). Of a group, the peer decides by its hash which
 * member is found, whatever the program says. So peers are made up until the one with the cookie is
 * met: with n members, one in n does it. They are sent DESTROY_BATCH at a time.
 */
#define DESTROY_BATCH 64
#define REQUEST_OCTETS (MNL_NLMSG_HDRLEN + MNL_ALIGN(sizeof(struct inet_diag_req_v2)))

struct destroy {
	unsigned answers;
	bool done;
	int error; /* that is none of the search */
};

static int on_answer(const struct nlmsghdr *header, void *user_data)
{
	const struct nlmsgerr *answer = mnl_nlmsg_get_payload(header);
	struct destroy *destroy = user_data;

	destroy->answers++;
	if (answer->error == 0)
		destroy->done = true;
	else if (answer->error != -ENOENT && answer->error != -ESTALE)
		destroy->error = answer->error;
	return MNL_CB_OK;
}

/* Peers first, first + 1 ...: from networks that are for documentation (RFC 5737, RFC 3849). */
static size_t put_batch(char *buffer, const struct search *search, uint64_t cookie, uint32_t first)
{
	size_t length = 0;

	for (uint32_t i = 0; i < DESTROY_BATCH; i++) {
		struct inet_diag_req_v2 *request =
			put_request(buffer + length, SOCK_DESTROY, NLM_F_ACK, search->config);
		struct inet_diag_sockid *id = &request->id;
		const void *address;
		size_t size = address_of(search->config, &address, &id->idiag_sport);

		memcpy(id->idiag_src, address, size);
		id->idiag_dst[0] = htonl(size == sizeof(struct in_addr) ? 0xc0000201 : 0x20010db8);
		id->idiag_dst[3] = size == sizeof(struct in_addr) ? 0 : htonl((first + i) >> 16);
		id->idiag_dport = htons((uint16_t)(first + i));
		id->idiag_if = search->device;
		id->idiag_cookie[0] = (uint32_t)cookie;
		id->idiag_cookie[1] = (uint32_t)(cookie >> 32);
		((struct nlmsghdr *)(buffer + length))->nlmsg_seq = first + i + 1;
		length += REQUEST_OCTETS;
	}
	return length;
}

static int try_batch(struct mnl_socket *netlink, char *buffer, const struct search *search,
	uint64_t cookie, uint32_t first)
{
	struct destroy destroy = {0};
	size_t length = put_batch(buffer, search, cookie, first);

	if (mnl_socket_sendto(netlink, buffer, length) < 0)
		return -errno;
	while (destroy.answers < DESTROY_BATCH) {
		ssize_t n = mnl_socket_recvfrom(netlink, buffer, BUFFER_OCTETS);
		mnl_cb_t controls[] = {[NLMSG_ERROR] = on_answer};

		if (n < 0)
			return -errno;
		if (mnl_cb_run2(buffer, (size_t)n, 0, mnl_socket_get_portid(netlink), NULL,
			    &destroy, controls, ARRAY_SIZE(controls)) < 0)
			return -errno;
	}
	return destroy.done ? 1 : destroy.error;
}

int sockdiag_destroy(const struct listener_config *config, uint64_t cookie, size_t n_members)
{
	_cleanup_(close_netlink) struct mnl_socket *netlink = NULL;
	_cleanup_free_ char *buffer = malloc(BUFFER_OCTETS);
	struct search search = {0};
	/* 32 times as many as members: it is missed once in e^32. A port has 65,535 peers. */
	size_t tries = MIN(32 * (n_members + 16), UINT16_MAX);
	int result = start_search(&search, config);

	if (result >= 0 && !buffer)
		result = -ENOMEM;
	if (result >= 0)
		result = open_netlink(&netlink);
	for (size_t i = 0; i < tries && result == 0; i += DESTROY_BATCH)
		result = try_batch(netlink, buffer, &search, cookie, (uint32_t)i);
	if (result == 0)
		return -ENOENT;
	return result < 0 ? result : 0;
}
