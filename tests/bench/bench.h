/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The measuring programs: a reuseport group, what is sent to it, and the traffic. scripts/bench
 * starts one process for each case and has them run in turn.
 */
#pragma once

#include <netinet/in.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct bpf_object;
struct reuseport;

#define SOCKETS_MAX 4096
#define HEAD_OCTETS 64 /* of each datagram that are its own; what follows is the same in all */
#define DATAGRAM_OCTETS_MAX 1500
#define OWNER_UNKNOWN UINT16_MAX
#define TIMEOUT_MSEC 120000 /* for one answer of the daemon */

/* ---- common.c ---- */

/* Says what failed, and why, on stderr, and ends the process. */
__attribute__((noreturn, format(printf, 2, 3))) void fail(int error, const char *format, ...);
/* Reads an option's number, min to max; else fails. */
unsigned long parse_number(
	const char *name, const char *text, unsigned long min, unsigned long max);
/* CLOCK_MONOTONIC, nanoseconds. */
uint64_t now(void);
/* The calling thread runs on this processor alone. */
void pin(int cpu);
/* As many descriptors as the hard limit allows. */
void raise_descriptor_limit(void);
/* 127.1.0.0 and up, in network byte order: any address of 127.0.0.0/8 is ours, so that each flow
 * has one of its own. */
uint32_t source_address(uint32_t number);
/* One line: the name, then all samples. */
void print_samples(const char *name, const uint64_t *samples, size_t n);

/* Connects to the daemon; exits when it can't. */
struct reuseport *open_client(const char *path);
/* Ends the process when a call of the library failed; what: "register", as in "cannot register". */
void check(const struct reuseport *r, int error, const char *what);

/* ---- group.c ---- */

/* Who is behind the sockets of a group. */
struct group_options {
	const char *daemon;  /* worker.sock, or NULL for a group of our own */
	const char *service; /* of the daemon */
	const char *object;  /* file of a program of ours; NULL leaves the choice to the kernel */
	const char *program; /* its name in the object */
	uint16_t port;       /* of a group of our own */
	int type;            /* of a group of our own: SOCK_DGRAM or SOCK_STREAM */
	bool shared;         /* one socket without SO_REUSEPORT */
	bool gro;            /* trains are received as they came */
	unsigned n_sockets;
};

#define CLIENT_WORKERS 1000 /* workers of one registration; the protocol has 1,024 */
#define CLIENTS_MAX (SOCKETS_MAX / CLIENT_WORKERS + 1)

struct group {
	int *sockets;
	unsigned n_sockets;
	struct sockaddr_in address;
	int epoll;                              /* all sockets, data.u32 is the index */
	int program;                            /* -1: none, or the daemon's */
	struct bpf_object *object;              /* NULL: none */
	struct reuseport *clients[CLIENTS_MAX]; /* all NULL: not the daemon's */
};

/* Exits when it fails. */
void group_open(struct group *group, const struct group_options *options);
/* The registration of a socket of the daemon's, and its worker in there. */
struct reuseport *group_client(const struct group *group, unsigned socket, unsigned *ret_worker);

/* ---- datagrams.c ---- */

enum datagram_kind {
	DATAGRAM_SHORT,      /* short header, random ID that nobody knows */
	DATAGRAM_INITIAL,    /* Initial with a random ID */
	DATAGRAM_GENERATED,  /* short header, ID by reuseport_cid_generate(), or, in a group of our
			      * own, as the library makes them under a key of our own */
	DATAGRAM_REGISTERED, /* short header, ID by reuseport_cid_add() or in the SOCKHASH */
	DATAGRAM_COOKIE,     /* short header, ID as nginx makes them */
	DATAGRAM_FILE,       /* given */
};

struct datagrams {
	enum datagram_kind kind;
	bool fresh;      /* all are made anew, from new addresses, before each run */
	bool introduced; /* an Initial comes before the first of each flow */
	size_t n;
	size_t octets; /* of each; with DATAGRAM_FILE each has its own */
	uint8_t (*heads)[HEAD_OCTETS];
	uint16_t *lengths;
	uint16_t *owners; /* index of the socket where it must arrive, or OWNER_UNKNOWN */
	uint8_t tail[DATAGRAM_OCTETS_MAX];
	uint32_t first_source;
};

void datagrams_open(struct datagrams *datagrams, const char *kind, struct group *group);
/* Before each run: makes them anew if they are fresh ones. */
void datagrams_prepare(struct datagrams *datagrams, struct group *group);
/* One Initial for each datagram, from its source. */
struct datagrams datagrams_introductions(const struct datagrams *datagrams);
/* Its number, from the octets that arrived; n or more: it has none. */
uint32_t datagram_number(const uint8_t *octets, size_t length);

/* ---- traffic.c ---- */

struct run {
	uint64_t sent;
	uint64_t received;
	uint64_t misdelivered; /* arrived elsewhere than its owner, or than it did before */
	uint64_t nanoseconds;  /* from the first sending to the last receiving */
	int64_t instructions;  /* of the kernel, on the sender's processor; -1: no counter here */
};

enum traffic_mode {
	TRAFFIC_ALONE,   /* one thread sends a window and receives it, in turn, so that no other
			  * processor disturbs it */
	TRAFFIC_PAIR,    /* one thread sends, one receives, and both spin */
	TRAFFIC_LATENCY, /* one datagram at a time; the receiver sleeps until it comes */
};

struct traffic_options {
	unsigned window; /* datagrams sent and not yet received */
	unsigned train;  /* datagrams of one flow that are sent as one; 1: none are */
	int send_cpu, receive_cpu;
};

struct traffic;

struct traffic *traffic_new(const struct group *group, const struct traffic_options *options);
/*
 * Sends count datagrams, receives them all. latencies: with TRAFFIC_LATENCY room for count
 * nanoseconds from before the sending to after the receiving. Exits when some are lost.
 */
struct run traffic_run(struct traffic *traffic, struct datagrams *datagrams, uint64_t count,
	enum traffic_mode mode, uint64_t *latencies);
