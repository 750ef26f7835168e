/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Connection IDs, in numbers a second. Each line on its input is done and answered by "COUNT
 * NANOSECONDS" (processor time of this thread for "generate", else elapsed time):
 *   "generate COUNT"   made by the library, for listener 0 of the service
 *   "register COUNT"   by the daemon, one call of the library; they are retired afterwards
 *   "direct COUNT"     one bpf(2) call each, into a hash map of our own of the same shape
 */
#include "bench.h"

#include <bpf/bpf.h>
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "bpf/quic_layout.h"
#include "client-lib/reuseport.h"

#define COUNT_MAX (1 << 20)

static uint64_t processor_time(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static struct reuseport_cid *make_ids(size_t n)
{
	struct reuseport_cid *ids = calloc(n, sizeof(*ids));

	if (!ids)
		fail(ENOMEM, "no room for %zu connection IDs", n);
	for (size_t i = 0; i < n; i++) {
		ids[i].length = REUSEPORT_CID_OCTETS;
		if (getrandom(ids[i].id, sizeof(ids[i].id), 0) != sizeof(ids[i].id))
			fail(errno, "cannot get random octets");
	}
	return ids;
}

static uint64_t generate(struct reuseport *r, size_t n)
{
	uint8_t id[REUSEPORT_CID_OCTETS];
	uint64_t begin = processor_time();

	for (size_t i = 0; i < n; i++) {
		int length = reuseport_cid_generate(r, 0, 0, id, sizeof(id));

		if (length < 0)
			fail(-length, "cannot generate a connection ID");
	}
	return processor_time() - begin;
}

static uint64_t add(struct reuseport *r, size_t n)
{
	struct reuseport_cid *ids = make_ids(n);
	uint64_t begin = now();

	check(r, reuseport_cid_add(r, 0, 0, ids, n, TIMEOUT_MSEC), "register connection IDs");
	begin = now() - begin;
	check(r, reuseport_cid_retire(r, 0, 0, ids, n, TIMEOUT_MSEC), "retire connection IDs");
	free(ids);
	return begin;
}

static uint64_t direct(size_t n)
{
	int map = bpf_map_create(BPF_MAP_TYPE_HASH, "bench_direct", sizeof(struct dcid_key),
		sizeof(uint32_t), COUNT_MAX, NULL);
	struct reuseport_cid *ids = make_ids(n);
	const uint32_t slot = 0;
	uint64_t begin;

	if (map < 0)
		fail(errno, "cannot make a map");
	begin = now();
	for (size_t i = 0; i < n; i++) {
		struct dcid_key key = {.length = ids[i].length};

		memcpy(key.octet, ids[i].id, ids[i].length);
		if (bpf_map_update_elem(map, &key, &slot, BPF_NOEXIST) < 0)
			fail(errno, "cannot put an ID into the map");
	}
	begin = now() - begin;
	free(ids);
	return begin;
}

static const char *parse(int argc, char **argv, const char **service)
{
	static const struct option known[] = {
		{"daemon", required_argument, NULL, 'd'},
		{"service", required_argument, NULL, 's'},
		{0},
	};
	const char *daemon = NULL;

	*service = "bench";
	for (int c; (c = getopt_long(argc, argv, "", known, NULL)) != -1;) {
		if (c == 'd')
			daemon = optarg;
		else if (c == 's')
			*service = optarg;
	}
	if (optind != argc || !daemon) {
		fputs("bench-cids --daemon PATH [--service NAME]\n", stderr);
		exit(2);
	}
	return daemon;
}

int main(int argc, char **argv)
{
	const char *service, *daemon = parse(argc, argv, &service);
	struct reuseport *r = open_client(daemon);
	char line[64];

	check(r, reuseport_register(r, service, NULL, 1, 0, TIMEOUT_MSEC), "register");
	check(r, reuseport_ready(r, TIMEOUT_MSEC), "become active");
	puts("ready");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		size_t n = 0;
		uint64_t nanoseconds;

		if (sscanf(line, "generate %zu", &n) == 1 && n)
			nanoseconds = generate(r, n);
		else if (sscanf(line, "register %zu", &n) == 1 && n)
			nanoseconds = add(r, n);
		else if (sscanf(line, "direct %zu", &n) == 1 && n && n <= COUNT_MAX)
			nanoseconds = direct(n);
		else
			fail(EINVAL, "not a command: %s", line);
		printf("%zu %llu\n", n, (unsigned long long)nanoseconds);
		fflush(stdout);
	}
	return 0;
}
