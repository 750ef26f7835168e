/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A connection on worker.sock, as the files that answer its requests see it: client.c has the
 * connection itself, client-register.c what leads to sockets and keys, client-request.c the rest.
 */
#pragma once

#include "daemon/foreign.h"
#include "daemon/manager.h"
#include "daemon/peer.h"
#include "proto/message.h"

struct client {
	struct client *next;
	struct manager *manager;
	uint32_t id; /* unique in the daemon's life, which is longer than this process's */
	int socket;
	uint32_t entry; /* of the socket in the store; 0: it ends with this process */
	sd_event_source *source;
	struct peer peer;
	uint32_t peer_entry; /* of peer.pidfd in the store, while no registration has it; 0: none */
	bool greeted;
	struct registration *registration;
	uint32_t granting;           /* worker whose GRANT is unacknowledged, n_workers: none */
	uint32_t sequence;           /* of the request that GRANTs answer */
	uint64_t answer_before_usec; /* CLOCK_MONOTONIC, 0: nothing is awaited */
	bool held;                   /* not read from until a takeover is done */
	uint32_t n_again;            /* RESUMEs of a registration that this daemon knew */
	uint32_t resumed_untold;     /* so many of its workers, the last ones, wait for a GRANT */
	bool keys_untold;            /* KEYS_ROTATED waits until it reads */
	struct account *account;
	struct turn turn;         /* while its user has to wait, it is not read from */
	struct foreign_look look; /* nor while its next message is looked at */
	uint32_t look_sequence;   /* of that message */
	/* The one being handled. It is large, and one at a time is: all clients have the same. */
	struct message *message;
};

/* From now on an answer is awaited: AnswerTimeoutSec=. */
void client_await_answer(struct client *client);
/* Whether an event can be sent that leaves room for answers. */
bool client_has_room(const struct client *client);
int client_send_ok(struct client *client, uint32_t sequence);
#define client_refuse(client, error, ...) \
	message_send_error((client)->socket, (client)->message->header.sequence, error, __VA_ARGS__)
/* What must be there for the next process to go on with this client and its registration. */
void client_keep(struct client *client, bool here_only);
/* To one that brings its own sockets: listeners that a reload has added since. */
void client_tell_listeners(struct client *client);
/* The listener that the client means by its index in the GRANT; NULL: a reload has closed it. */
struct listener *client_granted_listener(const struct registration *registration, uint32_t index);

/* What a worker must know of its listener: connection IDs and tokens, where it is QUIC. 0, or the
 * error of taking a nonce prefix. */
int client_describe_listener(
	struct protocol_grant_listener *entry, const struct listener *listener, uint16_t slot);
/* An event: a socket that it brought is at the slot of the worker. */
void client_send_adopted(
	struct client *client, const struct worker *worker, uint32_t listener, uint64_t cookie);
/* The GRANT of a registration that brings its own sockets. The error of sending. */
int client_send_listeners(struct client *client, uint32_t sequence);
/* REGISTER and RESUME: 1: it may, *ret is the service. n_slots: that it takes, at least. */
int client_check_registration(struct client *client, const char *service_name, const char *instance,
	uint32_t n_workers, uint32_t weight, uint32_t n_slots, struct service **ret);
/* A launcher names the process that it started. 1: it is the registration's; *pidfd was taken. */
int client_take_process(struct client *client, int *pidfd);

/*
 * One for each request in client->message. 0: the client was answered. Negative errno: it has
 * gone or does not read, and is to be freed.
 */
int client_handle_register(struct client *client);
int client_handle_ack(struct client *client);
int client_handle_registration(struct client *client, uint16_t type);
int client_handle_cids(struct client *client, uint16_t type);
int client_handle_adopt(struct client *client);
int client_handle_load(struct client *client);
int client_handle_resume(struct client *client);
