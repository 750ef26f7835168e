/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What the files of the example QUIC client share. One process, one thread, N connections at once,
 * each with a socket of its own, so that each can move to another port or address:
 *
 *	quic-client.c             options, the loop, the account in JSON
 *	quic-client-script.c      what the connections do, and the phases that the caller controls
 *	quic-client-connection.c  a connection
 *	quic-client-session.c     session tickets and tokens, kept between runs
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include <gnutls/gnutls.h>
#include <ngtcp2/ngtcp2.h>
#include <ngtcp2/ngtcp2_crypto.h>

#include "examples/quic-common.h"
#include "examples/quic-tls.h"

#define STEPS_MAX 64
#define LOCAL_ADDRESSES_MAX 16
#define SESSION_OCTETS_MAX 8192

enum step_kind {
	STEP_REQUEST, /* count requests, each answered */
	STEP_FOREVER, /* requests until a line is read */
	STEP_WAIT,    /* until a line is read */
	STEP_SLEEP,   /* count milliseconds */
	STEP_REBIND,  /* another local port, and the other side isn't told: a NAT that forgot */
	STEP_MIGRATE, /* another local address and port and another connection ID: RFC 9000 9 */
	STEP_AGAIN,   /* from the start with a new connection, until a line is read */
	STEP_END,
};

struct step {
	enum step_kind kind;
	unsigned count;
	unsigned line; /* number of the line that it waits for, 0: none */
};

struct session {
	uint8_t *ticket; /* gnutls_session_get_data2() */
	size_t ticket_length;
	uint8_t params[256]; /* transport parameters of the server, encoded */
	size_t params_length;
	uint8_t token[256]; /* of NEW_TOKEN */
	size_t token_length;
};

struct options {
	struct address server;
	struct address local[LOCAL_ADDRESSES_MAX];
	unsigned n_local;
	unsigned connections, streams, parallel;
	unsigned interval_msec, timeout_sec, delay_second_msec;
	uint32_t version;
	const char *server_name; /* NULL: none */
	bool early_data, split_initial, hold_second;
	const char *resume, *save_session;
	struct step steps[STEPS_MAX];
	unsigned n_lines; /* that the script reads */
};

/* What the run came to. Connections are counted once; attempts after "again" are new ones. */
struct account {
	uint64_t connections, handshakes_completed, handshakes_failed;
	uint64_t requests_sent, answered, wrong_worker, wrong_answers;
	uint64_t connections_lost;    /* with a completed handshake, before the script was done */
	uint64_t stateless_resets;    /* so many of them by that */
	uint64_t resets_before_probe; /* that came before anything had to be sent again */
	uint64_t refused;             /* ICMP port unreachable */
	uint64_t resumed, early_data_accepted, early_data_rejected;
	uint64_t retries, version_negotiations;
	uint64_t rebindings, migrations_completed, migrations_failed;
	uint64_t sessions_saved;
};

struct worker {
	int slot, pid;
	uint64_t connections; /* whose first answer was its */
};

struct client {
	struct options options;
	struct tls tls;
	int epoll_fd;
	struct timers timers;
	struct account account;
	struct worker *workers;
	size_t n_workers;
	struct connection *connections; /* options.connections of them */
	unsigned n_started;             /* of these, at least once */
	unsigned n_shaking;             /* in their handshake, and not held */
	unsigned n_finished;
	unsigned lines_read;
	unsigned phases_told; /* lines for which "ready" was said */
	bool input_ended;
	struct session *sessions; /* of the file, or to be saved: one a connection */
	size_t n_sessions;
};

struct connection_socket {
	struct connection *connection;
	int fd;
	struct address local;
};

struct held {
	struct held *next;
	size_t length;
	uint8_t data[QUIC_PAYLOAD_MAX];
};

enum connection_state { NOT_STARTED, SHAKING, RUNNING, FINISHED };

struct request {
	int64_t id;
	uint64_t number;
	char line[64];
	size_t length, sent;
	char answer[QUIC_LINE_MAX];
	size_t answer_length;
	bool answered;
	struct request *next;
};

struct connection {
	struct client *client;
	unsigned index;
	enum connection_state state;
	struct connection_socket sockets[2]; /* the one in use, and the one before */
	unsigned local;                      /* index of the address in use */
	ngtcp2_conn *quic;
	gnutls_session_t tls;
	ngtcp2_crypto_conn_ref ref;
	struct timer timer;
	ngtcp2_tstamp wake; /* for the script, UINT64_MAX: never */
	ngtcp2_tstamp next_request;
	int slot, pid; /* of the first answer; pid 0: there was none yet */
	uint32_t version;
	bool counted_as_shaking, early_data, confirmed, reset;
	bool ticket_saved, token_saved;
	bool migrating, slept;
	uint64_t next_number;

	unsigned step, step_sent, step_answered;
	unsigned line_reached;    /* the latest of the script's lines that it got to */
	struct request *requests; /* whose streams are not closed yet */
	unsigned n_requests;      /* of these, not answered */

	unsigned datagrams_sent;
	bool released; /* nothing is held back any more */
	struct held *held, **held_end;
	unsigned n_held;
	ngtcp2_tstamp hold_until; /* UINT64_MAX: until a line is read */
};

/* quic-client-connection.c */

/* Begins, or begins again. version: 0 for the one of the options. */
void connection_start(struct connection *c, uint32_t version);
void connection_receive(struct connection *c, struct connection_socket *from);
void connection_expire(struct connection *c);

/* Goes on with the script, sends what there is, sets the timer. Not from within a callback. */
void connection_proceed(struct connection *c);

/* Puts a request on a stream of its own. 0, or NGTCP2_ERR_STREAM_ID_BLOCKED: later. */
int connection_request(struct connection *c);
void connection_rebind(struct connection *c);

/* 1: under way (connection.migrating), 0: not possible yet, -1: failed. */
int connection_migrate(struct connection *c);

/* Whether what it sends now is held back. */
bool connection_holds(const struct connection *c);

/* Sends what was held back. */
void connection_release(struct connection *c);

/* With CONNECTION_CLOSE; the script is done. */
void connection_finish(struct connection *c);

/* It is over before the script is. */
void connection_lose(struct connection *c, const char *reason);
void connection_free(struct connection *c);

/* quic-client-script.c */

int script_parse(struct options *options, const char *text);

/* Does what the script has for the connection now. */
void script_advance(struct connection *c);

/* A line was read, or the input has ended: all connections that waited for it go on. */
void script_line(struct client *client);

/* Says "ready" once all connections are where they wait for the next line. */
void script_tell(struct client *client);

/* quic-client-session.c: 0, or a negative errno with a message on stderr. */
int sessions_load(struct client *client, const char *path);
int sessions_save(struct client *client, const char *path);
void sessions_free(struct client *client);

/* Keeps the ticket of a connection that has just got one. */
int session_keep_ticket(struct connection *c);
void session_keep_token(struct connection *c, const uint8_t *token, size_t length);

/* For the ClientHello of a new connection; *ret_params: set when early data can be sent. */
int session_resume(struct connection *c, ngtcp2_transport_params *ret_params, bool *ret_early_data);
const struct session *session_of(const struct connection *c);

/* quic-client.c */
void print_account(struct client *client, const char *event);
