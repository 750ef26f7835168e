/* SPDX-License-Identifier: BSD-2-Clause */
/* The sockets of a case, and who chooses among them. */
#include "bench.h"

#include <arpa/inet.h>
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <netinet/udp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "client-lib/reuseport.h"

#define RECEIVE_BUFFER (32 << 20) /* a window of datagrams must fit, whatever the kernel adds */
#define BACKLOG 4096

static void set_buffer(int fd)
{
	const int octets = RECEIVE_BUFFER;

	if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &octets, sizeof(octets)) < 0)
		fail(errno, "cannot enlarge a receive buffer (needs CAP_NET_ADMIN)");
}

static int open_socket(const struct group *group, const struct group_options *options)
{
	int fd = socket(AF_INET, options->type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	const int reuseport = !options->shared;

	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &reuseport, sizeof(reuseport)) < 0 ||
		bind(fd, (const struct sockaddr *)&group->address, sizeof(group->address)) < 0)
		fail(errno, "cannot bind 127.0.0.1:%u", ntohs(group->address.sin_port));
	if (options->type == SOCK_STREAM && listen(fd, BACKLOG) < 0)
		fail(errno, "cannot listen at 127.0.0.1:%u", ntohs(group->address.sin_port));
	return fd;
}

/* Loads one program of the object; the others stay out. */
static void load(struct group *group, const char *file, const char *name)
{
	struct bpf_program *program, *wanted;
	int error;

	group->object = bpf_object__open_file(file, NULL);
	if (!group->object)
		fail(errno, "cannot open %s", file);
	wanted = bpf_object__find_program_by_name(group->object, name);
	if (!wanted)
		fail(ENOENT, "no program %s in %s", name, file);
	bpf_object__for_each_program(program, group->object)
		bpf_program__set_autoload(program, program == wanted);
	error = bpf_object__load(group->object);
	if (error < 0)
		fail(-error, "cannot load %s of %s", name, file);
	group->program = bpf_program__fd(wanted);
}

static void fill_socket_map(const struct group *group)
{
	struct bpf_map *map = bpf_object__find_map_by_name(group->object, "socket_map");

	if (!map || bpf_map__type(map) != BPF_MAP_TYPE_REUSEPORT_SOCKARRAY)
		return; /* a SOCKHASH: filled with its connection IDs */
	for (uint32_t i = 0; i < group->n_sockets; i++) {
		uint64_t value = (uint64_t)group->sockets[i];

		if (bpf_map_update_elem(bpf_map__fd(map), &i, &value, BPF_ANY) < 0)
			fail(errno, "cannot put a socket into the socket map");
	}
}

static void open_own(struct group *group, const struct group_options *options)
{
	group->address = (struct sockaddr_in){.sin_family = AF_INET,
		.sin_port = htons(options->port),
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	for (unsigned i = 0; i < group->n_sockets; i++)
		group->sockets[i] = open_socket(group, options);
	if (!options->object)
		return;
	load(group, options->object, options->program);
	fill_socket_map(group);
	if (setsockopt(group->sockets[0], SOL_SOCKET, SO_ATTACH_REUSEPORT_EBPF, &group->program,
		    sizeof(group->program)) < 0)
		fail(errno, "cannot attach %s", options->program);
}

struct reuseport *group_client(const struct group *group, unsigned socket, unsigned *ret_worker)
{
	*ret_worker = socket % CLIENT_WORKERS;
	return group->clients[socket / CLIENT_WORKERS];
}

static void open_daemon(struct group *group, const struct group_options *options)
{
	socklen_t length = sizeof(group->address);

	for (unsigned first = 0; first < group->n_sockets; first += CLIENT_WORKERS) {
		unsigned left = group->n_sockets - first;
		unsigned n = left < CLIENT_WORKERS ? left : CLIENT_WORKERS;
		struct reuseport *r = open_client(options->daemon);

		check(r, reuseport_register(r, options->service, NULL, n, 0, TIMEOUT_MSEC),
			"register");
		for (unsigned i = 0; i < n; i++)
			group->sockets[first + i] = reuseport_socket(r, i, 0);
		check(r, reuseport_ready(r, TIMEOUT_MSEC), "become active");
		group->clients[first / CLIENT_WORKERS] = r;
	}
	if (getsockname(group->sockets[0], (struct sockaddr *)&group->address, &length) < 0 ||
		group->address.sin_family != AF_INET)
		fail(errno, "the listener is not at an IPv4 address");
}

void group_open(struct group *group, const struct group_options *options)
{
	const int one = 1;

	raise_descriptor_limit();
	*group = (struct group){
		.n_sockets = options->n_sockets,
		.program = -1,
		.sockets = calloc(options->n_sockets, sizeof(int)),
		.epoll = epoll_create1(EPOLL_CLOEXEC),
	};
	if (!group->sockets || group->epoll < 0)
		fail(errno, "no room for %u sockets", options->n_sockets);
	if (options->daemon)
		open_daemon(group, options);
	else
		open_own(group, options);
	for (unsigned i = 0; i < group->n_sockets; i++) {
		struct epoll_event event = {.events = EPOLLIN, .data.u32 = i};

		if (epoll_ctl(group->epoll, EPOLL_CTL_ADD, group->sockets[i], &event) < 0)
			fail(errno, "cannot wait for socket %u", i);
		if (options->type == SOCK_DGRAM)
			set_buffer(group->sockets[i]);
		if (options->gro &&
			setsockopt(group->sockets[i], SOL_UDP, UDP_GRO, &one, sizeof(one)) < 0)
			fail(errno, "cannot set UDP_GRO");
	}
}
