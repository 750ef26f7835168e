/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What the files of the example QUIC server share. One process, one thread, one socket, any number
 * of connections:
 *
 *	quic-server.c             options, the loop, signals, draining
 *	quic-server-ids.c         where it meets libreuseport: connection IDs, tokens, resets
 *	quic-server-accept.c      datagrams that belong to no connection
 *	quic-server-connection.c  a connection and its requests
 *	quic-server-udp.c         datagrams in and out, with the address they came to
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include <gnutls/gnutls.h>
#include <ngtcp2/ngtcp2.h>
#include <ngtcp2/ngtcp2_crypto.h>

#include "client-lib/reuseport.h"
#include "examples/quic-common.h"
#include "examples/quic-tls.h"

struct connection;

struct counters {
	uint64_t handshakes; /* completed */
	uint64_t connections;
	uint64_t requests;
	uint64_t resets_sent;
	uint64_t retries_sent;
	uint64_t version_negotiations_sent;
	uint64_t early_data; /* connections that sent a request as early data */
	uint64_t path_changes;
};

struct datagram {
	struct address local, remote;
	ngtcp2_pkt_info info;
	const uint8_t *data;
	size_t length;
};

/* Connection ID → connection, chained; see quic-server-ids.c. */
struct id {
	ngtcp2_cid cid;
	bool ours; /* not the client's choice */
	struct connection *connection;
	struct id *next_in_bucket;
	struct id *next_of_connection;
};

struct ids {
	struct id **buckets;
	size_t n, n_buckets; /* a power of two */
	uint64_t seed;
};

/* Connection IDs that the daemon is to be told of, where it wants that. */
struct batch {
	struct reuseport_cid *cids;
	size_t n, room;
};

struct server {
	struct reuseport *reuseport;
	unsigned listener;
	int fd;
	uint16_t port; /* network order */
	int slot;      /* -1 without a daemon */

	bool generated_ids;  /* reuseport_cid_generate() makes them */
	bool registered_ids; /* the daemon has to be told of each, ConnectionID=registered */
	struct batch added, retired;
	size_t cid_length;
	uint8_t token_secret[REUSEPORT_SECRET_OCTETS];
	uint8_t reset_secret[REUSEPORT_SECRET_OCTETS]; /* without a daemon */

	bool require_retry;
	ngtcp2_duration idle_timeout;
	struct tls tls;

	struct ids ids;
	struct timers timers;
	struct connection *connections; /* all */
	size_t n_connections;
	struct connection *changed; /* those that may have something to send */
	bool draining;
	struct counters counters;
};

/* quic-server-ids.c */

/* After reuseport_register(): how IDs and tokens are made. foreign: 0, or the octets of IDs that
 * have nothing to do with the library. */
void ids_init(struct server *server, unsigned foreign);
void ids_deinit(struct server *server);

/* A connection ID that leads to this worker, for a Retry: nothing is remembered. 0 or -1. */
int ids_generate(struct server *server, ngtcp2_cid *cid);

/* A new connection ID that leads every packet to this connection; *list holds those of it. 0 or -1.
 */
int ids_issue(
	struct server *server, ngtcp2_cid *cid, struct connection *connection, struct id **list);

/* ConnectionID=registered: tells the daemon what was issued and retired since, before any packet
 * goes out that mentions it. Waits for it. */
void ids_announce(struct server *server);

/* Token by which any worker may end a connection with this ID. 0 or -1. */
int ids_reset_token(struct server *server, const uint8_t *cid, size_t length, uint8_t *token);

/* A packet of no connection that we know, with a short header: ends it (RFC 9000 section 10.3). */
void ids_send_reset(struct server *server, const struct datagram *datagram, const uint8_t *cid);

/* The table; ids_add() is for the ID that the client began with. */
struct connection *ids_find(const struct server *server, const uint8_t *cid, size_t length);
int ids_add(struct server *server, const ngtcp2_cid *cid, struct connection *connection,
	struct id **list);
void ids_remove(struct server *server, const ngtcp2_cid *cid, struct id **list);

/* quic-server-accept.c */

void accept_datagram(struct server *server, const struct datagram *datagram);

/* quic-server-connection.c */

/* header: of the client's first Initial packet. original: its first destination connection ID when
 * a Retry changed it, else NULL. NULL when there can be no connection. */
struct connection *connection_new(struct server *server, const struct datagram *datagram,
	const ngtcp2_pkt_hd *header, const ngtcp2_cid *original);
void connection_receive(struct connection *connection, const struct datagram *datagram);

/* Sends what there is to send, for all connections in server->changed. */
void connections_flush(struct server *server);
void connections_expire(struct server *server);

/* Tells every peer that the connection ends, and frees all. */
void connections_close(struct server *server);

/* quic-server-udp.c */

int udp_prepare(struct server *server);

/* One datagram into buffer (QUIC_RECEIVE_MAX octets); false: there is none. */
bool udp_receive(struct server *server, struct datagram *ret, uint8_t *buffer);

/* What the socket doesn't take now is lost, as any datagram may be, and sent again by QUIC. */
void udp_send(struct server *server, const struct sockaddr *local, const struct sockaddr *remote,
	socklen_t remote_length, const uint8_t *data, size_t length);
