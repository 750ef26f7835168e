/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Datagrams to one group. Opens it, says "ready FD" (the program's descriptor, -1 when it has none
 * of its own), and then for each line on its input, "alone COUNT", "pair COUNT" or "latency COUNT"
 * (enum traffic_mode), sends so many datagrams and prints "SENT RECEIVED MISDELIVERED NANOSECONDS
 * INSTRUCTIONS"; after "latency" a second line has all latencies. scripts/bench reads the kernel's
 * meter before and after.
 */
#include "bench.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

static const char usage[] =
	"bench-case [OPTIONS]\n"
	"  --daemon PATH         worker.sock of a reuseportd; --service NAME (default: bench)\n"
	"  --object FILE         BPF object for a group of our own; --program NAME in it\n"
	"                        (with neither: a group of our own without a program)\n"
	"  --port N              of a group of our own (default 4433)\n"
	"  --sockets N           1 to 4096 (default 4)\n"
	"  --shared              one socket without SO_REUSEPORT\n"
	"  --datagrams KIND      short, short-fresh, introduced, initial, initial-known, generated,\n"
	"                        generated-fresh, registered, cookie, or file:PATH (one in\n"
	"                        hexadecimal a line); fresh ones and Initials are new in each run\n"
	"  --number N            different datagrams, each from an address of its own\n"
	"                        (default 1024)\n"
	"  --octets N            of each datagram, 64 to 1500 (default 64)\n"
	"  --train N             so many are sent as one by UDP_SEGMENT, received with UDP_GRO\n"
	"  --window N            datagrams sent and not yet received (default 1024)\n"
	"  --send-cpu N, --receive-cpu N\n"
	"                        processors of the two threads (default 0 and 1)\n";

struct options {
	struct group_options group;
	struct traffic_options traffic;
	const char *datagrams;
	unsigned long number, octets;
};

static void refuse(void)
{
	fputs(usage, stderr);
	exit(2);
}

static struct options parse(int argc, char **argv)
{
	enum {
		DAEMON,
		SERVICE,
		OBJECT,
		PROGRAM,
		PORT,
		SOCKETS,
		SHARED,
		DATAGRAMS,
		NUMBER,
		OCTETS,
		TRAIN,
		WINDOW,
		SEND_CPU,
		RECEIVE_CPU
	};
	static const struct option known[] = {
		{"daemon", required_argument, NULL, DAEMON},
		{"service", required_argument, NULL, SERVICE},
		{"object", required_argument, NULL, OBJECT},
		{"program", required_argument, NULL, PROGRAM},
		{"port", required_argument, NULL, PORT},
		{"sockets", required_argument, NULL, SOCKETS},
		{"shared", no_argument, NULL, SHARED},
		{"datagrams", required_argument, NULL, DATAGRAMS},
		{"number", required_argument, NULL, NUMBER},
		{"octets", required_argument, NULL, OCTETS},
		{"train", required_argument, NULL, TRAIN},
		{"window", required_argument, NULL, WINDOW},
		{"send-cpu", required_argument, NULL, SEND_CPU},
		{"receive-cpu", required_argument, NULL, RECEIVE_CPU},
		{0},
	};
	struct options o = {
		.group = {.service = "bench", .port = 4433, .type = SOCK_DGRAM, .n_sockets = 4},
		.traffic = {.window = 1024, .train = 1, .send_cpu = 0, .receive_cpu = 1},
		.datagrams = "short",
		.number = 1024,
		.octets = HEAD_OCTETS,
	};

	for (int c; (c = getopt_long(argc, argv, "", known, NULL)) != -1;) {
		if (c == DAEMON)
			o.group.daemon = optarg;
		else if (c == SERVICE)
			o.group.service = optarg;
		else if (c == OBJECT)
			o.group.object = optarg;
		else if (c == PROGRAM)
			o.group.program = optarg;
		else if (c == PORT)
			o.group.port = (uint16_t)parse_number("--port", optarg, 1, 65535);
		else if (c == SOCKETS)
			o.group.n_sockets =
				(unsigned)parse_number("--sockets", optarg, 1, SOCKETS_MAX);
		else if (c == SHARED)
			o.group.shared = true;
		else if (c == DATAGRAMS)
			o.datagrams = optarg;
		else if (c == NUMBER)
			o.number = parse_number("--number", optarg, 1, 1 << 22);
		else if (c == OCTETS)
			o.octets =
				parse_number("--octets", optarg, HEAD_OCTETS, DATAGRAM_OCTETS_MAX);
		else if (c == TRAIN)
			o.traffic.train = (unsigned)parse_number("--train", optarg, 1, 32);
		else if (c == WINDOW)
			o.traffic.window = (unsigned)parse_number("--window", optarg, 1, 1 << 16);
		else if (c == SEND_CPU)
			o.traffic.send_cpu = (int)parse_number("--send-cpu", optarg, 0, 1023);
		else if (c == RECEIVE_CPU)
			o.traffic.receive_cpu = (int)parse_number("--receive-cpu", optarg, 0, 1023);
		else
			refuse();
	}
	o.group.gro = o.traffic.train > 1;
	if (optind != argc || (o.group.object && (o.group.daemon || !o.group.program)) ||
		(o.group.shared && (o.group.daemon || o.group.n_sockets != 1)))
		refuse();
	return o;
}

static void run(struct traffic *traffic, struct datagrams *datagrams, const char *line)
{
	static const char *const names[] = {"alone", "pair", "latency"};
	unsigned long long count = 0;
	uint64_t *latencies;
	struct run result;
	char name[16];
	unsigned mode;

	if (sscanf(line, "%15s %llu", name, &count) != 2 || !count)
		fail(EINVAL, "not a command: %s", line);
	for (mode = 0; mode < 3 && strcmp(name, names[mode]) != 0; mode++)
		;
	if (mode == 3)
		fail(EINVAL, "not a command: %s", line);
	latencies = calloc(mode == TRAFFIC_LATENCY ? count : 1, sizeof(*latencies));
	if (!latencies)
		fail(ENOMEM, "no room for %llu latencies", count);
	result = traffic_run(traffic, datagrams, count, mode, latencies);
	printf("%llu %llu %llu %llu %lld\n", (unsigned long long)result.sent,
		(unsigned long long)result.received, (unsigned long long)result.misdelivered,
		(unsigned long long)result.nanoseconds, (long long)result.instructions);
	if (mode == TRAFFIC_LATENCY)
		print_samples("latencies", latencies, count);
	fflush(stdout);
	free(latencies);
}

int main(int argc, char **argv)
{
	struct options options = parse(argc, argv);
	struct datagrams datagrams = {.n = options.number, .octets = options.octets};
	struct traffic *traffic;
	struct group group;
	char line[64];

	group_open(&group, &options.group);
	datagrams_open(&datagrams, options.datagrams, &group);
	traffic = traffic_new(&group, &options.traffic);
	if (datagrams.introduced) {
		struct datagrams introductions = datagrams_introductions(&datagrams);

		traffic_run(traffic, &introductions, introductions.n * options.traffic.train,
			TRAFFIC_ALONE, NULL);
		/* The flow is where its Initial went. */
		memcpy(datagrams.owners, introductions.owners,
			datagrams.n * sizeof(*datagrams.owners));
	}
	printf("ready %d\n", group.program);
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		datagrams_prepare(&datagrams, &group);
		run(traffic, &datagrams, line);
	}
	return 0;
}
