/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Workers and what they ask of the daemon. Says "ready", and then for each line on its input does
 * it and prints samples (nanoseconds, or a count), each kind in a line that begins with its name:
 *   "workers N"            registers until there are N, each with a connection of its own: "workers
 *                          N"
 *   "ids N"                registers connection IDs of worker 0 until there are N: "ids N"
 *   "register COUNT CLIENTS"
 *                          so many registrations of one worker by so many threads, each from
 *                          connecting to UNREGISTER: "open", "register", "ready", "unregister",
 *                          "all" (one sample each), and "wall" (from the first to the last)
 *   "events COUNT RATE"    so many requests, so many a second: IDs of worker 0 are added and
 *                          retired in turn: "late" (how many were sent 10 ms late or more)
 */
#include "bench.h"

#include <errno.h>
#include <getopt.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "client-lib/reuseport.h"

#define THREADS_MAX 64
#define ID_BATCH 4096
#define STEPS 5

static const char *const step_names[STEPS] = {"open", "register", "ready", "unregister", "all"};

struct options {
	const char *daemon, *service;
};

struct worker_set {
	struct options options;
	struct reuseport *clients[SOCKETS_MAX];
	unsigned n;
	unsigned long n_ids;
};

/* What one thread of "register" does, and its samples. */
struct registrar {
	const struct options *options;
	pthread_t thread;
	unsigned long count;
	uint64_t *samples[STEPS];
};

static struct reuseport *add_worker(const struct options *options)
{
	struct reuseport *r = open_client(options->daemon);

	check(r, reuseport_register(r, options->service, NULL, 1, 0, TIMEOUT_MSEC), "register");
	check(r, reuseport_ready(r, TIMEOUT_MSEC), "become active");
	return r;
}

static void add_workers(struct worker_set *set, unsigned long n)
{
	while (set->n < n)
		set->clients[set->n++] = add_worker(&set->options);
	printf("workers %u\n", set->n);
	fflush(stdout);
}

static void make_ids(struct reuseport_cid *ids, size_t n)
{
	if (getrandom(ids, n * sizeof(*ids), 0) != (ssize_t)(n * sizeof(*ids)))
		fail(errno, "cannot get random octets");
	for (size_t i = 0; i < n; i++)
		ids[i].length = REUSEPORT_CID_OCTETS;
}

/* Each worker may have half of a listener's IDs, so all workers have a part each time. */
static void add_ids(struct worker_set *set, unsigned long n)
{
	static struct reuseport_cid ids[ID_BATCH];
	unsigned long part = (n - set->n_ids + set->n - 1) / set->n;

	for (unsigned turn = 0; set->n_ids < n; turn++) {
		struct reuseport *r = set->clients[turn % set->n];
		size_t left = n - set->n_ids, batch = part < ID_BATCH ? part : ID_BATCH;

		batch = left < batch ? left : batch;
		make_ids(ids, batch);
		check(r, reuseport_cid_add(r, 0, 0, ids, batch, TIMEOUT_MSEC),
			"register connection IDs");
		set->n_ids += batch;
	}
	printf("ids %lu\n", set->n_ids);
	fflush(stdout);
}

static void register_once(struct registrar *registrar, unsigned long i)
{
	uint64_t times[STEPS];
	struct reuseport *r;

	times[0] = now();
	r = open_client(registrar->options->daemon);
	times[1] = now();
	check(r, reuseport_register(r, registrar->options->service, NULL, 1, 0, TIMEOUT_MSEC),
		"register");
	times[2] = now();
	check(r, reuseport_ready(r, TIMEOUT_MSEC), "become active");
	times[3] = now();
	check(r, reuseport_unregister(r, TIMEOUT_MSEC), "unregister");
	times[4] = now();
	for (unsigned step = 0; step + 1 < STEPS; step++)
		registrar->samples[step][i] = times[step + 1] - times[step];
	/* What a server waits for before it can serve. */
	registrar->samples[STEPS - 1][i] = times[3] - times[0];
	reuseport_close(r);
}

static void *register_many(void *argument)
{
	struct registrar *registrar = argument;

	for (unsigned long i = 0; i < registrar->count; i++)
		register_once(registrar, i);
	return NULL;
}

static void run_register(const struct options *options, unsigned long count, unsigned n_threads)
{
	struct registrar registrars[THREADS_MAX] = {0};
	uint64_t *samples[STEPS], begin;
	unsigned long each = count / n_threads;

	for (unsigned step = 0; step < STEPS; step++) {
		samples[step] = calloc(each * n_threads, sizeof(uint64_t));
		if (!samples[step])
			fail(ENOMEM, "no room for %lu samples", count);
	}
	begin = now();
	for (unsigned i = 0; i < n_threads; i++) {
		registrars[i].options = options;
		registrars[i].count = each;
		for (unsigned step = 0; step < STEPS; step++)
			registrars[i].samples[step] = samples[step] + i * each;
		errno = pthread_create(&registrars[i].thread, NULL, register_many, &registrars[i]);
		if (errno)
			fail(errno, "cannot start a thread");
	}
	for (unsigned i = 0; i < n_threads; i++)
		pthread_join(registrars[i].thread, NULL);
	begin = now() - begin;
	for (unsigned step = 0; step < STEPS; step++) {
		print_samples(step_names[step], samples[step], each * n_threads);
		free(samples[step]);
	}
	print_samples("wall", &begin, 1);
}

static void wait_until(uint64_t when)
{
	const struct timespec t = {
		.tv_sec = (time_t)(when / 1000000000), .tv_nsec = (long)(when % 1000000000)};

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
		;
}

static void run_events(struct worker_set *set, unsigned long count, unsigned long rate)
{
	struct reuseport *r = set->clients[0];
	struct reuseport_cid id = {.length = 0};
	uint64_t begin = now(), late = 0;

	for (unsigned long i = 0; i < count; i++) {
		uint64_t due = begin + i * 1000000000 / rate;

		wait_until(due);
		late += now() - due >= 10000000;
		if (i % 2 == 0) {
			make_ids(&id, 1);
			check(r, reuseport_cid_add(r, 0, 0, &id, 1, TIMEOUT_MSEC), "add an ID");
		} else {
			check(r, reuseport_cid_retire(r, 0, 0, &id, 1, TIMEOUT_MSEC),
				"retire an ID");
		}
	}
	print_samples("late", &late, 1);
}

static struct options parse(int argc, char **argv)
{
	static const struct option known[] = {
		{"daemon", required_argument, NULL, 'd'},
		{"service", required_argument, NULL, 's'},
		{0},
	};
	struct options o = {.service = "bench"};

	for (int c; (c = getopt_long(argc, argv, "", known, NULL)) != -1;) {
		if (c == 'd')
			o.daemon = optarg;
		else if (c == 's')
			o.service = optarg;
		else
			o.daemon = NULL;
	}
	if (optind != argc || !o.daemon) {
		fputs("bench-workers --daemon PATH [--service NAME]\n", stderr);
		exit(2);
	}
	return o;
}

int main(int argc, char **argv)
{
	static struct worker_set set;
	char line[64];

	set.options = parse(argc, argv);
	raise_descriptor_limit();
	puts("ready");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		unsigned long a = 0, b = 0;

		if (sscanf(line, "workers %lu", &a) == 1 && a <= SOCKETS_MAX)
			add_workers(&set, a);
		else if (sscanf(line, "ids %lu", &a) == 1 && set.n)
			add_ids(&set, a);
		else if (sscanf(line, "register %lu %lu", &a, &b) == 2 && b && b <= THREADS_MAX)
			run_register(&set.options, a, (unsigned)b);
		else if (sscanf(line, "events %lu %lu", &a, &b) == 2 && b && set.n)
			run_events(&set, a, b);
		else
			fail(EINVAL, "not a command: %s", line);
	}
	return 0;
}
