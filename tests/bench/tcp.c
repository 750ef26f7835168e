/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * TCP connections to one group. Opens it, says "ready FD" (the program's descriptor, -1 when it has
 * none of its own), and then for each line on its input:
 *   "accepts COUNT"  connects so often, accepts all; prints "COUNT ACCEPTED 0 NANOSECONDS -1"
 *   "queue COUNT"    connects without accepting; prints how many wait at the next socket that
 *                    "close" will close
 *   "close"          closes that socket and accepts all that were queued, at the other sockets;
 *                    prints "QUEUED ACCEPTED 0 NANOSECONDS -1"
 * Connections end with a reset, so that none is left in TIME_WAIT. On loopback the handshake is
 * over when connect(2) returns.
 */
#include "bench.h"

#include <errno.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "client-lib/reuseport.h"

#define BATCH 64
#define QUEUE_MAX 4096

static const char usage[] =
	"bench-tcp [OPTIONS]\n"
	"  --daemon PATH         worker.sock of a reuseportd; --service NAME (default: bench)\n"
	"  --object FILE         BPF object for a group of our own; --program NAME in it\n"
	"  --port N              of a group of our own (default 4433)\n"
	"  --sockets N           1 to 4096 (default 4)\n"
	"  --shared              one socket without SO_REUSEPORT\n"
	"  --cpu N               where it runs (default 0)\n";

struct connections {
	int fds[QUEUE_MAX];
	unsigned n;
	uint32_t next_source;
};

static void refuse(void)
{
	fputs(usage, stderr);
	exit(2);
}

static struct group_options parse(int argc, char **argv)
{
	enum { DAEMON, SERVICE, OBJECT, PROGRAM, PORT, SOCKETS, SHARED, CPU };
	static const struct option known[] = {
		{"daemon", required_argument, NULL, DAEMON},
		{"service", required_argument, NULL, SERVICE},
		{"object", required_argument, NULL, OBJECT},
		{"program", required_argument, NULL, PROGRAM},
		{"port", required_argument, NULL, PORT},
		{"sockets", required_argument, NULL, SOCKETS},
		{"shared", no_argument, NULL, SHARED},
		{"cpu", required_argument, NULL, CPU},
		{0},
	};
	struct group_options o = {
		.service = "bench", .port = 4433, .type = SOCK_STREAM, .n_sockets = 4};
	int cpu = 0;

	for (int c; (c = getopt_long(argc, argv, "", known, NULL)) != -1;) {
		if (c == DAEMON)
			o.daemon = optarg;
		else if (c == SERVICE)
			o.service = optarg;
		else if (c == OBJECT)
			o.object = optarg;
		else if (c == PROGRAM)
			o.program = optarg;
		else if (c == PORT)
			o.port = (uint16_t)parse_number("--port", optarg, 1, 65535);
		else if (c == SOCKETS)
			o.n_sockets = (unsigned)parse_number("--sockets", optarg, 1, SOCKETS_MAX);
		else if (c == SHARED)
			o.shared = true;
		else if (c == CPU)
			cpu = (int)parse_number("--cpu", optarg, 0, 1023);
		else
			refuse();
	}
	if (optind != argc || (o.object && (o.daemon || !o.program)) ||
		(o.shared && (o.daemon || o.n_sockets != 1)))
		refuse();
	pin(cpu);
	return o;
}

static void close_with_reset(int fd)
{
	const struct linger reset = {.l_onoff = 1};

	if (setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset)) < 0)
		fail(errno, "cannot make a connection end with a reset");
	close(fd);
}

static void open_connection(const struct group *group, struct connections *connections)
{
	const struct sockaddr_in source = {.sin_family = AF_INET,
		.sin_addr.s_addr = source_address(connections->next_source++)};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	const int one = 1;

	/* The port is chosen by connect(), for this destination alone. */
	if (fd < 0 || setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof(one)) < 0 ||
		bind(fd, (const struct sockaddr *)&source, sizeof(source)) < 0 ||
		connect(fd, (const struct sockaddr *)&group->address, sizeof(group->address)) < 0)
		fail(errno, "cannot connect to port %u", ntohs(group->address.sin_port));
	connections->fds[connections->n++] = fd;
}

static void close_connections(struct connections *connections)
{
	while (connections->n)
		close_with_reset(connections->fds[--connections->n]);
}

/* All that wait, of every socket; at most `most`. */
static unsigned accept_ready(const struct group *group, unsigned most)
{
	struct epoll_event events[BATCH];
	int n = epoll_wait(group->epoll, events, BATCH, 0);
	unsigned accepted = 0;

	for (int i = 0; i < n; i++)
		while (accepted < most) {
			int fd = accept4(group->sockets[events[i].data.u32], NULL, NULL,
				SOCK_CLOEXEC | SOCK_NONBLOCK);

			if (fd < 0 && errno == EAGAIN)
				break;
			if (fd < 0)
				fail(errno, "cannot accept");
			close_with_reset(fd);
			accepted++;
		}
	return accepted;
}

/* Until all are there, or none has come for a second. */
static unsigned accept_all(const struct group *group, unsigned count)
{
	uint64_t last = now();
	unsigned accepted = 0;

	while (accepted < count && now() - last < 1000000000) {
		unsigned more = accept_ready(group, count - accepted);

		accepted += more;
		if (more)
			last = now();
	}
	return accepted;
}

static void print_run(uint64_t count, uint64_t accepted, uint64_t nanoseconds)
{
	printf("%llu %llu 0 %llu -1\n", (unsigned long long)count, (unsigned long long)accepted,
		(unsigned long long)nanoseconds);
	fflush(stdout);
}

static void run_accepts(
	const struct group *group, struct connections *connections, unsigned long count)
{
	unsigned long connected = 0, accepted = 0;
	uint64_t begin = now();

	while (connected < count) {
		unsigned n = count - connected < BATCH ? (unsigned)(count - connected) : BATCH;

		for (unsigned i = 0; i < n; i++)
			open_connection(group, connections);
		connected += n;
		accepted += accept_all(group, n);
		close_connections(connections);
	}
	print_run(connected, accepted, now() - begin);
}

/* How long the accept queue of a listening socket is. */
static unsigned queue_length(int fd)
{
	struct tcp_info info;
	socklen_t length = sizeof(info);

	if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) < 0)
		fail(errno, "cannot ask how long a queue is");
	return info.tcpi_unacked;
}

int main(int argc, char **argv)
{
	struct group_options options = parse(argc, argv);
	static struct connections connections;
	struct group group;
	unsigned next = 0;
	uint64_t begin;
	char line[64];

	group_open(&group, &options);
	printf("ready %d\n", group.program);
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		unsigned long count = 0;

		if (sscanf(line, "accepts %lu", &count) == 1 && count) {
			run_accepts(&group, &connections, count);
		} else if (sscanf(line, "queue %lu", &count) == 1 && count &&
			   count <= QUEUE_MAX - connections.n && next + 1 < group.n_sockets) {
			for (unsigned long i = 0; i < count; i++)
				open_connection(&group, &connections);
			printf("%u\n", queue_length(group.sockets[next]));
			fflush(stdout);
		} else if (strncmp(line, "close", 5) == 0 && next + 1 < group.n_sockets) {
			unsigned worker;
			struct reuseport *client = group_client(&group, next, &worker);

			begin = now();
			close(client ? reuseport_take_socket(client, worker, 0)
				     : group.sockets[next]);
			next++;
			count = accept_all(&group, connections.n);
			print_run(connections.n, count, now() - begin);
			close_connections(&connections);
		} else {
			fail(EINVAL, "not a command: %s", line);
		}
	}
	return 0;
}
