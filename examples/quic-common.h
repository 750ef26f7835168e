/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What the example server and the example client both need around ngtcp2: a clock, timers for
 * thousands of connections, addresses, randomness. None of it knows of reuseportd; what does is in
 * quic-server-ids.c.
 */
#pragma once

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include <ngtcp2/ngtcp2.h>

#define QUIC_ALPN "reuseport"
#define QUIC_PAYLOAD_MAX 1200 /* octets of a datagram we send; no path MTU discovery here */
#define QUIC_RECEIVE_MAX 2048 /* octets of a datagram we receive; we announce this limit */
#define QUIC_LINE_MAX 1024    /* octets of a request or an answer, newline included */

struct address {
	union {
		struct sockaddr any;
		struct sockaddr_in in;
		struct sockaddr_in6 in6;
		struct sockaddr_storage storage;
	};
	socklen_t length;
};

/* host: numeric. 0, -EINVAL. */
int address_parse(struct address *ret, const char *host, const char *port);

/* The two ends of a datagram as ngtcp2 wants them; valid while both addresses are. */
ngtcp2_path address_path(const struct address *local, const struct address *remote);

/* Nanoseconds of CLOCK_MONOTONIC, the time of every ngtcp2 call. */
ngtcp2_tstamp now_nsec(void);

/* Nanoseconds of CLOCK_REALTIME, for tokens, which are read by other processes. */
ngtcp2_tstamp wall_clock_nsec(void);

/* size unpredictable octets; ends the process when the system has none. */
void random_octets(void *data, size_t size);

/* ngtcp2's callback `rand`. */
void random_callback(uint8_t *data, size_t size, const ngtcp2_rand_ctx *context);

/* Settings and transport parameters that both sides share. */
void common_settings(ngtcp2_settings *settings);
void common_transport_params(ngtcp2_transport_params *params, ngtcp2_duration idle_timeout);

/*
 * Timers: a binary heap, so that setting one among n costs log n. A struct timer is part of its
 * owner; zeroed, it is not set.
 */
struct timer {
	ngtcp2_tstamp when;
	size_t position; /* in the heap plus 1; 0: not set */
};

struct timers {
	struct timer **heap;
	size_t n, room;
};

void timers_free(struct timers *timers);

/* UINT64_MAX takes it away. Ends the process when there is no memory. */
void timers_set(struct timers *timers, struct timer *timer, ngtcp2_tstamp when);

/* The first timer that is due; it is taken away. NULL: none is due yet. */
struct timer *timers_take_due(struct timers *timers, ngtcp2_tstamp now);

/* Milliseconds for poll(2) until the first is due, rounded up; -1: none is set. */
int timers_timeout_msec(const struct timers *timers, ngtcp2_tstamp now);
