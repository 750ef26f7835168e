/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * One case of the benchmark: a reuseport group, the datagrams that are sent to it, and the traffic.
 * scripts/bench starts one process for each case and has them run in turn.
 */
#pragma once

#include <netinet/in.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct bpf_object;
struct reuseport;

#define SOCKETS_MAX 64
#define HEAD_OCTETS 64 /* of each datagram that are its own; what follows is the same in all */
#define DATAGRAM_OCTETS_MAX 1500
#define OWNER_UNKNOWN 0xff

/* Members of a group: our own with a program of ours, or those that the daemon gave. */
struct group {
	int sockets[SOCKETS_MAX];
	unsigned n_sockets;
	struct sockaddr_in address;
	int program;               /* -1: none, or the daemon's */
	struct bpf_object *object; /* NULL: none */
	struct reuseport *client;  /* NULL: not the daemon's */
};

/* object: file of the program, NULL to leave the choice to the kernel. These exit when they fail.
 */
void group_open_own(struct group *group, unsigned n_sockets, uint16_t port, const char *object,
	const char *program);
void group_open_daemon(
	struct group *group, unsigned n_sockets, const char *path, const char *service);

enum datagram_kind {
	DATAGRAM_SHORT,      /* short header, random ID that nobody knows */
	DATAGRAM_INITIAL,    /* Initial with a random ID */
	DATAGRAM_GENERATED,  /* short header, ID by reuseport_cid_generate() */
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
	uint8_t *owners; /* index of the socket where it must arrive, or OWNER_UNKNOWN */
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

struct run {
	uint64_t sent;
	uint64_t received;
	uint64_t misdelivered; /* arrived elsewhere than its owner, or than it did before */
	uint64_t nanoseconds;  /* from the first sending to the last receiving */
};

struct traffic;

struct traffic *traffic_new(
	const struct group *group, unsigned window, int send_cpu, int receive_cpu);
/*
 * Sends count datagrams, receives them all. alone: one thread does both in turn, so that no other
 * processor disturbs it. Exits when some are lost.
 */
struct run traffic_run(
	struct traffic *traffic, struct datagrams *datagrams, uint64_t count, bool alone);

/* Says what failed, and why, on stderr, and ends the process. */
__attribute__((noreturn, format(printf, 2, 3))) void fail(int error, const char *format, ...);
