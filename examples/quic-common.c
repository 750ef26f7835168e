/* SPDX-License-Identifier: BSD-2-Clause */
/* See quic-common.h. */
#include <arpa/inet.h>
#include <errno.h>
#include <limits.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "common/util.h"
#include "examples/quic-common.h"

int address_parse(struct address *ret, const char *host, const char *port)
{
	struct addrinfo hints = {
		.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV,
		.ai_socktype = SOCK_DGRAM,
	};
	struct addrinfo *found;

	if (getaddrinfo(host, port, &hints, &found) != 0)
		return -EINVAL;
	*ret = (struct address){.length = found->ai_addrlen};
	memcpy(&ret->storage, found->ai_addr, found->ai_addrlen);
	freeaddrinfo(found);
	return 0;
}

ngtcp2_path address_path(const struct address *local, const struct address *remote)
{
	return (ngtcp2_path){
		.local = {(struct sockaddr *)&local->any, local->length},
		.remote = {(struct sockaddr *)&remote->any, remote->length},
	};
}

static ngtcp2_tstamp read_clock(clockid_t clock)
{
	struct timespec time;

	clock_gettime(clock, &time);
	return (uint64_t)time.tv_sec * NGTCP2_SECONDS + (uint64_t)time.tv_nsec;
}

ngtcp2_tstamp now_nsec(void)
{
	return read_clock(CLOCK_MONOTONIC);
}

ngtcp2_tstamp wall_clock_nsec(void)
{
	return read_clock(CLOCK_REALTIME);
}

void random_octets(void *data, size_t size)
{
	while (size > 0) {
		ssize_t n = getrandom(data, MIN(size, 256), 0);

		if (n < 0) {
			perror("cannot get random octets");
			abort();
		}
		data = (uint8_t *)data + n;
		size -= (size_t)n;
	}
}

void random_callback(uint8_t *data, size_t size, const ngtcp2_rand_ctx *context)
{
	random_octets(data, size);
}

void common_settings(ngtcp2_settings *settings)
{
	static uint32_t versions[] = {NGTCP2_PROTO_VER_V1};

	ngtcp2_settings_default(settings);
	settings->initial_ts = now_nsec();
	settings->max_tx_udp_payload_size = QUIC_PAYLOAD_MAX;
	settings->no_pmtud = 1;
	settings->preferred_versions = versions; /* what a client compares after a negotiation */
	settings->preferred_versionslen = ARRAY_SIZE(versions);
}

void common_transport_params(ngtcp2_transport_params *params, ngtcp2_duration idle_timeout)
{
	ngtcp2_transport_params_default(params);
	params->initial_max_streams_bidi = 100;
	params->initial_max_stream_data_bidi_local = 65536;
	params->initial_max_stream_data_bidi_remote = 65536;
	params->initial_max_data = 1 << 20;
	params->max_idle_timeout = idle_timeout;
	params->max_udp_payload_size = QUIC_RECEIVE_MAX;
	params->active_connection_id_limit = 4;
}

void timers_free(struct timers *timers)
{
	free(timers->heap);
	*timers = (struct timers){};
}

static void place(struct timers *timers, size_t i, struct timer *timer)
{
	timers->heap[i] = timer;
	timer->position = i + 1;
}

/* Moves what is at i to where it belongs. */
static void sift(struct timers *timers, size_t i)
{
	struct timer *timer = timers->heap[i];

	while (i > 0 && timers->heap[(i - 1) / 2]->when > timer->when) {
		place(timers, i, timers->heap[(i - 1) / 2]);
		i = (i - 1) / 2;
	}
	for (;;) {
		size_t child = 2 * i + 1;

		if (child + 1 < timers->n &&
			timers->heap[child + 1]->when < timers->heap[child]->when)
			child++;
		if (child >= timers->n || timers->heap[child]->when >= timer->when)
			break;
		place(timers, i, timers->heap[child]);
		i = child;
	}
	place(timers, i, timer);
}

static void take_away(struct timers *timers, struct timer *timer)
{
	size_t i = timer->position - 1;
	struct timer *last = timers->heap[--timers->n];

	timer->position = 0;
	if (last == timer)
		return;
	place(timers, i, last);
	sift(timers, i);
}

void timers_set(struct timers *timers, struct timer *timer, ngtcp2_tstamp when)
{
	if (when == UINT64_MAX) {
		if (timer->position)
			take_away(timers, timer);
		return;
	}
	timer->when = when;
	if (!timer->position) {
		if (timers->n == timers->room) {
			timers->room = timers->room ? 2 * timers->room : 64;
			timers->heap = realloc(timers->heap, timers->room * sizeof(struct timer *));
			if (!timers->heap)
				abort();
		}
		place(timers, timers->n++, timer);
	}
	sift(timers, timer->position - 1);
}

struct timer *timers_take_due(struct timers *timers, ngtcp2_tstamp now)
{
	struct timer *timer;

	if (!timers->n || timers->heap[0]->when > now)
		return NULL;
	timer = timers->heap[0];
	take_away(timers, timer);
	return timer;
}

int timers_timeout_msec(const struct timers *timers, ngtcp2_tstamp now)
{
	ngtcp2_tstamp left;

	if (!timers->n)
		return -1;
	if (timers->heap[0]->when <= now)
		return 0;
	left = (timers->heap[0]->when - now + NGTCP2_MILLISECONDS - 1) / NGTCP2_MILLISECONDS;
	return (int)MIN(left, (ngtcp2_tstamp)INT_MAX);
}
