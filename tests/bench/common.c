/* SPDX-License-Identifier: BSD-2-Clause */
/* What all measuring programs need. */
#include "bench.h"

#include <errno.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "client-lib/reuseport.h"

void fail(int error, const char *format, ...)
{
	va_list arguments;

	fprintf(stderr, "%s: ", program_invocation_short_name);
	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fprintf(stderr, ": %s\n", strerror(error));
	exit(1);
}

unsigned long parse_number(const char *name, const char *text, unsigned long min, unsigned long max)
{
	char *end;
	unsigned long value;

	errno = 0;
	value = strtoul(text, &end, 10);
	if (errno || end == text || *end || value < min || value > max)
		fail(EINVAL, "%s is %lu to %lu, not %s", name, min, max, text);
	return value;
}

uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

void pin(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set) < 0)
		fail(errno, "cannot run on processor %d", cpu);
}

void raise_descriptor_limit(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
		fail(errno, "cannot read the limit of descriptors");
	if (limit.rlim_max < 20000) /* root may; anybody else keeps what there is */
		limit.rlim_max = 20000;
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
}

uint32_t source_address(uint32_t number)
{
	return htonl(INADDR_LOOPBACK - 1 + (1 << 16) + number % (253 << 16));
}

void print_samples(const char *name, const uint64_t *samples, size_t n)
{
	printf("%s", name);
	for (size_t i = 0; i < n; i++)
		printf(" %llu", (unsigned long long)samples[i]);
	putchar('\n');
	fflush(stdout);
}

struct reuseport *open_client(const char *path)
{
	struct reuseport *r;
	int error = reuseport_open(&r, path, TIMEOUT_MSEC);

	if (error < 0)
		fail(-error, "cannot connect to reuseportd at %s", path);
	if (error > 0)
		fail(ENOENT, "no reuseportd at %s", path);
	return r;
}

void check(const struct reuseport *r, int error, const char *what)
{
	if (error < 0)
		fail(-error, "cannot %s: %s", what, reuseport_error(r));
}
