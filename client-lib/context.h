/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What the files of libreuseport share: the context behind struct reuseport.
 *
 * Events never need a queue that grows: of each kind only the latest matters, so each is a flag
 * with its last arguments (drain, disconnected) or a flag for each listener (keys) or worker
 * (stalled). They are noted whenever they arrive and delivered by reuseport_dispatch().
 *
 * The descriptor that the application polls is an epoll descriptor over the connection and an
 * eventfd: an event that was read during a synchronous call is no longer in the connection, and the
 * eventfd is what still wakes the application up.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/un.h>

#include "client-lib/reuseport.h"
#include "common/util.h"
#include "proto/message.h"

struct cid_config; /* cid.c */

struct listener {
	char name[PROTOCOL_NAME_MAX];
	char address[PROTOCOL_NAME_MAX];
	uint8_t transport;
	uint8_t cid_mode;
	uint8_t token_secret[REUSEPORT_SECRET_OCTETS];
	bool keys_rotated; /* to be delivered */
};

enum {
	STALLED_NOW = 1,  /* what the daemon said last */
	STALLED_TOLD = 2, /* what the application was told last */
};

/* After the connection ended, for a registration that is to go on (resume.c). */
enum resume {
	RESUME_NONE,  /* nothing to be done */
	RESUME_WAIT,  /* for the time of the next try */
	RESUME_HELLO, /* for WELCOME */
	RESUME_SENT,  /* for OK, to the worker that was sent last */
	RESUME_GRANT, /* for the GRANT of every worker */
};

/* A socket that the daemon has adopted. */
struct adopted {
	uint64_t cookie, inode;
	uint16_t listener, slot; /* PROTOCOL_NO_SLOT: bound only */
	uint16_t row;            /* the worker as which it is brought back */
};

struct reuseport {
	int socket;   /* to the daemon, -1: none (any more) */
	int epoll_fd; /* of socket and wake_fd; -1 without a daemon */
	int wake_fd;  /* readable while an event is to be delivered */
	bool fallback;
	bool dispatching;
	uint32_t sequence; /* of the last request */
	uint32_t workers_max;
	char error[PROTOCOL_TEXT_MAX + 128];

	struct reuseport_callbacks callbacks;
	void *user_data;

	/* Events that wait for reuseport_dispatch(). */
	bool drain_requested;
	enum reuseport_drain_reason drain_reason;
	uint64_t drain_deadline_usec; /* CLOCK_MONOTONIC; 0: none */
	bool disconnected;
	int disconnected_error;
	char disconnected_text[PROTOCOL_TEXT_MAX];
	bool resumed; /* to be delivered */

	/* What it takes to come back. */
	enum resume resume;
	char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
	char service[PROTOCOL_NAME_MAX];
	unsigned weight;
	bool ready, draining;
	int server_pidfd;       /* of the process behind the workers, -1: this one */
	int timer_fd;           /* of the next try; -1: not made yet */
	unsigned resume_tries;  /* since the connection ended */
	unsigned resume_worker; /* that is to be sent, or granted, next */
	uint64_t *cookies;      /* of each socket */
	int *numbers;           /* of each socket that was taken: where it was */
	unsigned max_workers;   /* of a registration that adopts; else 0 */
	struct adopted *adopted;
	unsigned n_adopted;
	unsigned n_rows;
	struct protocol_adopted last_adopted; /* of which the daemon has told */

	/* The registration. Arrays are indexed [worker] or [worker * n_listeners + listener]. */
	bool registered;
	uint32_t registration;
	char instance[PROTOCOL_NAME_MAX];
	unsigned n_workers;
	unsigned n_listeners;
	struct listener *listeners;
	uint16_t *slots;
	uint8_t *stalled; /* of each worker, STALLED_ bits; NULL in the fallback */
	int *sockets;
	_Atomic(struct cid_config *) *cids; /* NULL for listeners without generated IDs */
	_Atomic uint64_t *counters;         /* of each, in memory shared with forked children */
	size_t counters_size;               /* octets of that mapping */
	struct cid_config *retired;         /* configurations that a thread may still be reading */

	_Atomic uint32_t *loads; /* mapped, PROTOCOL_LOAD_OCTETS of each worker; NULL: not shared */
	size_t loads_size;
	bool loads_stale; /* of a daemon that has gone */

	struct message message; /* the one being read */
};

/* Sets the sentence of reuseport_error() and returns error. */
int context_error(struct reuseport *r, int error, const char *format, ...) _printf_(3, 4);

/* connection.c */

uint64_t now_usec(void);

/* Monotonic microseconds for a timeout in milliseconds; UINT64_MAX: for ever. */
uint64_t deadline_after(int timeout_msec);

/* Connects and exchanges HELLO and WELCOME. */
int connection_open(struct reuseport *r, const char *path, uint64_t deadline);

/* Sends a request; its sequence number is r->sequence then. Waits while the daemon does not read.
 */
int connection_send(struct reuseport *r, uint16_t type, const void *body, size_t length, int fd,
	uint64_t deadline);

/* Sends a request whose answer nobody waits for; it is dropped when it comes. */
void connection_send_forget(struct reuseport *r, uint16_t type, const void *body, size_t length);

/*
 * Reads until the answer to r->sequence is in r->message, noting events and dropping answers to
 * older requests. An answer ERROR becomes its errno and sentence, any other but `expected` or
 * `also_expected` -EPROTO. The caller ends r->message with message_done().
 */
int connection_wait(struct reuseport *r, uint16_t expected, uint16_t also_expected,
	const char *what, uint64_t deadline);

/* It is over: the application is told, unless another try follows. */
void connection_lost(struct reuseport *r, int error, const char *text);
/* A non-blocking socket to the daemon. -EAGAIN: too many wait at its door. */
int connection_try(struct reuseport *r);
int connection_send_hello(struct reuseport *r);
void connection_wake(struct reuseport *r);

/* resume.c */

/* The connection has ended. Whether it is to be tried to go on with another one. */
bool resume_begin(struct reuseport *r, int error);
/* At each dispatch. */
void resume_tick(struct reuseport *r);
/* While r->resume is not RESUME_NONE: what the daemon has sent. */
void resume_message(struct reuseport *r);
/* Of the sockets that were granted. -ENOMEM. */
int resume_prepare(struct reuseport *r);
void resume_clear(struct reuseport *r);
/* The daemon has adopted it: bound it, or, as r->last_adopted may say, given it a slot. */
void resume_note_adopted(struct reuseport *r, unsigned listener, int fd);

/* register.c */

void registration_clear(struct reuseport *r);
/* Entry i of the GRANT in the message. */
const struct protocol_grant_listener *grant_listener(const struct message *m, unsigned i);

/* fallback.c */

/* How many sockets this process was given by LISTEN_FDS; 0 when it was not. */
unsigned fallback_n_sockets(void);
int fallback_register(struct reuseport *r);

/* load.c */

void load_clear(struct reuseport *r);

/* cid.c */

/* Takes over the connection-ID configuration of a worker's listener. key and server_id: 16 octets,
 * nonce_prefix: 4. -EPROTO when it isn't legal. */
int cid_configure(struct reuseport *r, unsigned worker, unsigned listener, uint8_t config_rotation,
	uint8_t server_id_length, uint8_t nonce_length, const uint8_t *server_id,
	const uint8_t *key, const uint8_t *nonce_prefix);
/* In r->message is a GRANT that came by itself: listeners that were added. */
void registration_add_listeners(struct reuseport *r);
int cid_prepare(struct reuseport *r); /* makes room for n_workers * n_listeners configurations */
void cid_clear(struct reuseport *r);
