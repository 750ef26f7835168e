/* SPDX-License-Identifier: BSD-2-Clause */
/* The sockets of a case, and who chooses among them. */
#include "bench.h"

#include <arpa/inet.h>
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "client-lib/reuseport.h"

#define RECEIVE_BUFFER (32 << 20) /* a window of datagrams must fit, whatever the kernel adds */
#define TIMEOUT_MSEC 30000

static void set_buffer(int fd)
{
	const int octets = RECEIVE_BUFFER;

	if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &octets, sizeof(octets)) < 0)
		fail(errno, "cannot enlarge a receive buffer (needs CAP_NET_ADMIN)");
}

static int open_socket(const struct sockaddr_in *address)
{
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	const int one = 1;

	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one)) < 0 ||
		bind(fd, (const struct sockaddr *)address, sizeof(*address)) < 0)
		fail(errno, "cannot bind 127.0.0.1:%u", ntohs(address->sin_port));
	set_buffer(fd);
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

	if (bpf_map__type(map) != BPF_MAP_TYPE_REUSEPORT_SOCKARRAY)
		return; /* a SOCKHASH: filled with its connection IDs */
	for (uint32_t i = 0; i < group->n_sockets; i++) {
		uint64_t value = (uint64_t)group->sockets[i];

		if (bpf_map_update_elem(bpf_map__fd(map), &i, &value, BPF_ANY) < 0)
			fail(errno, "cannot put a socket into the socket map");
	}
}

void group_open_own(struct group *group, unsigned n_sockets, uint16_t port, const char *object,
	const char *program)
{
	*group = (struct group){
		.n_sockets = n_sockets,
		.program = -1,
		.address = {.sin_family = AF_INET,
			.sin_port = htons(port),
			.sin_addr.s_addr = htonl(INADDR_LOOPBACK)},
	};
	for (unsigned i = 0; i < n_sockets; i++)
		group->sockets[i] = open_socket(&group->address);
	if (!object)
		return;
	load(group, object, program);
	fill_socket_map(group);
	if (setsockopt(group->sockets[0], SOL_SOCKET, SO_ATTACH_REUSEPORT_EBPF, &group->program,
		    sizeof(group->program)) < 0)
		fail(errno, "cannot attach %s", program);
}

void group_open_daemon(
	struct group *group, unsigned n_sockets, const char *path, const char *service)
{
	struct sockaddr_in address;
	socklen_t length = sizeof(address);
	struct reuseport *r;
	int error;

	*group = (struct group){.n_sockets = n_sockets, .program = -1};
	error = reuseport_open(&r, path, TIMEOUT_MSEC);
	if (error < 0)
		fail(-error, "cannot connect to reuseportd at %s", path);
	if (error > 0)
		fail(ENOENT, "no reuseportd at %s", path);
	group->client = r;
	error = reuseport_register(r, service, "bench", n_sockets, 0, TIMEOUT_MSEC);
	if (error < 0)
		fail(-error, "cannot register: %s", reuseport_error(r));
	for (unsigned i = 0; i < n_sockets; i++) {
		group->sockets[i] = reuseport_socket(r, i, 0);
		set_buffer(group->sockets[i]);
	}
	if (getsockname(group->sockets[0], (struct sockaddr *)&address, &length) < 0 ||
		address.sin_family != AF_INET)
		fail(errno, "the listener is not at an IPv4 address");
	group->address = address;
	error = reuseport_ready(r, TIMEOUT_MSEC);
	if (error < 0)
		fail(-error, "cannot become active: %s", reuseport_error(r));
}
