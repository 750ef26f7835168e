/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * One case of the benchmark as a process: opens the group, says "ready FD" (the program's
 * descriptor, -1 when it has none of its own), and then for each line "alone COUNT" (one thread)
 * or "pair COUNT" (one sends, one receives) on its input sends so many datagrams and prints "SENT
 * RECEIVED MISDELIVERED NANOSECONDS". scripts/bench reads the kernel's meter before and after.
 */
#include "bench.h"

#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client-lib/reuseport.h"

static const char usage[] =
	"bench-case [OPTIONS]\n"
	"  --daemon PATH         worker.sock of a reuseportd; --service NAME (default: bench)\n"
	"  --object FILE         BPF object for a group of our own; --program NAME in it\n"
	"                        (with neither: a group of our own without a program)\n"
	"  --port N              of a group of our own (default 4433)\n"
	"  --sockets N           1 to 64 (default 4)\n"
	"  --datagrams KIND      short, short-fresh, introduced, initial, generated,\n"
	"                        generated-fresh, registered, cookie, or file:PATH (one in\n"
	"                        hexadecimal a line); fresh ones and Initials are new in each run\n"
	"  --number N            different datagrams, each from an address of its own\n"
	"                        (default 1024)\n"
	"  --octets N            of each datagram, 64 to 1500 (default 64)\n"
	"  --window N            datagrams sent and not yet received (default 1024)\n"
	"  --send-cpu N, --receive-cpu N\n"
	"                        processors of the two threads (default 0 and 1)\n";

struct options {
	const char *daemon, *service, *object, *program, *datagrams;
	unsigned long port, sockets, number, octets, window;
	int send_cpu, receive_cpu;
};

void fail(int error, const char *format, ...)
{
	va_list arguments;

	fputs("bench-case: ", stderr);
	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fprintf(stderr, ": %s\n", strerror(error));
	exit(1);
}

static unsigned long number(
	const char *name, const char *text, unsigned long min, unsigned long max)
{
	char *end;
	unsigned long value;

	errno = 0;
	value = strtoul(text, &end, 10);
	if (errno || end == text || *end || value < min || value > max)
		fail(EINVAL, "--%s is %lu to %lu, not %s", name, min, max, text);
	return value;
}

static struct options parse(int argc, char **argv)
{
	static const struct option known[] = {
		{"daemon", required_argument, NULL, 'd'},
		{"service", required_argument, NULL, 's'},
		{"object", required_argument, NULL, 'o'},
		{"program", required_argument, NULL, 'p'},
		{"port", required_argument, NULL, 'P'},
		{"sockets", required_argument, NULL, 'S'},
		{"datagrams", required_argument, NULL, 'D'},
		{"number", required_argument, NULL, 'n'},
		{"octets", required_argument, NULL, 'O'},
		{"window", required_argument, NULL, 'w'},
		{"send-cpu", required_argument, NULL, 'c'},
		{"receive-cpu", required_argument, NULL, 'r'},
		{0},
	};
	struct options o = {.service = "bench",
		.datagrams = "short",
		.port = 4433,
		.sockets = 4,
		.number = 1024,
		.octets = HEAD_OCTETS,
		.window = 1024,
		.send_cpu = 0,
		.receive_cpu = 1};

	for (int c; (c = getopt_long(argc, argv, "", known, NULL)) != -1;) {
		if (c == 'd')
			o.daemon = optarg;
		else if (c == 's')
			o.service = optarg;
		else if (c == 'o')
			o.object = optarg;
		else if (c == 'p')
			o.program = optarg;
		else if (c == 'D')
			o.datagrams = optarg;
		else if (c == 'P')
			o.port = number("port", optarg, 1, 65535);
		else if (c == 'S')
			o.sockets = number("sockets", optarg, 1, SOCKETS_MAX);
		else if (c == 'n')
			o.number = number("number", optarg, 1, 1 << 22);
		else if (c == 'O')
			o.octets = number("octets", optarg, HEAD_OCTETS, DATAGRAM_OCTETS_MAX);
		else if (c == 'w')
			o.window = number("window", optarg, 1, 1 << 16);
		else if (c == 'c')
			o.send_cpu = (int)number("send-cpu", optarg, 0, 1023);
		else if (c == 'r')
			o.receive_cpu = (int)number("receive-cpu", optarg, 0, 1023);
		else {
			fputs(usage, stderr);
			exit(2);
		}
	}
	if (optind != argc || (o.object && (o.daemon || !o.program))) {
		fputs(usage, stderr);
		exit(2);
	}
	return o;
}

static void print_run(struct run run)
{
	printf("%llu %llu %llu %llu\n", (unsigned long long)run.sent,
		(unsigned long long)run.received, (unsigned long long)run.misdelivered,
		(unsigned long long)run.nanoseconds);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	struct options options = parse(argc, argv);
	struct datagrams datagrams = {.n = options.number, .octets = options.octets};
	struct traffic *traffic;
	unsigned long long count;
	struct group group;
	char line[64];

	if (options.daemon)
		group_open_daemon(
			&group, (unsigned)options.sockets, options.daemon, options.service);
	else
		group_open_own(&group, (unsigned)options.sockets, (uint16_t)options.port,
			options.object, options.program);
	datagrams_open(&datagrams, options.datagrams, &group);
	traffic = traffic_new(
		&group, (unsigned)options.window, options.send_cpu, options.receive_cpu);
	if (datagrams.introduced) {
		struct datagrams introductions = datagrams_introductions(&datagrams);

		traffic_run(traffic, &introductions, introductions.n, true);
		/* The flow is where its Initial went. */
		memcpy(datagrams.owners, introductions.owners, datagrams.n);
	}
	printf("ready %d\n", group.program);
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		bool alone = sscanf(line, "alone %llu", &count) == 1;

		if ((!alone && sscanf(line, "pair %llu", &count) != 1) || !count)
			fail(EINVAL, "not a command: %s", line);
		datagrams_prepare(&datagrams, &group);
		print_run(traffic_run(traffic, &datagrams, count, alone));
	}
	return 0;
}
