/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The control socket: a Varlink server (NUL-terminated JSON on a Unix stream socket) in the event
 * loop. It frames, checks who may, answers org.varlink.service itself, and calls one handler for
 * each method of io.reuseport.Control. Knows nothing of services or workers.
 */
#pragma once

#include <stdbool.h>
#include <sys/types.h>

#include <jansson.h>
#include <systemd/sd-event.h>

struct accounts;
struct control;
struct foreign;

/* Errors of the interface, and the one of org.varlink.service for parameters. */
#define CONTROL_FAILED "io.reuseport.Control.Failed"
#define CONTROL_NO_SERVICE "io.reuseport.Control.NoSuchService"
#define CONTROL_NO_WORKER "io.reuseport.Control.NoSuchWorker"
#define CONTROL_INVALID_PARAMETER "org.varlink.service.InvalidParameter"

/*
 * A method's work. parameters is borrowed, an object with what the interface's text asks for, of
 * those types, and nothing else. On success returns 0 and the parameters of the reply in *ret (new
 * reference, an object). On failure returns a negative errno and either nothing, or in *ret_error a
 * Varlink error name (static, for instance "io.reuseport.Control.NoSuchWorker") with its parameters
 * in *ret (new reference or NULL).
 */
typedef int (*control_handler)(
	void *user_data, const json_t *parameters, json_t **ret, const char **ret_error);

/*
 * A call with many replies ("more"), for which they are made one by one, as the client reads: what
 * it does not read costs its sender nothing. Its owner embeds it in what it needs to make them.
 */
struct control_stream {
	/* 1: the parameters of the next reply are in *ret (new reference); 0: there is none until
	 * control_stream_wake(). Negative ends the connection. */
	int (*next)(struct control_stream *stream, json_t **ret);
	/* The connection is over, and with it the stream: frees it. */
	void (*end)(struct control_stream *stream);
	struct connection *connection; /* control.c's */
};

/* A method that answers by a stream. As control_handler; *ret: owned by the connection from here.
 */
typedef int (*control_opener)(void *user_data, const json_t *parameters,
	struct control_stream **ret, json_t **ret_parameters, const char **ret_error);

struct control_method {
	const char *name; /* "Status"; the interface is implied */
	bool changes;     /* needs root or the admin group; else the status group is enough */
	control_handler handler;
	control_opener opener; /* instead: needs "more" */
};

/* socket: bound, listening SOCK_STREAM; owned by the result. methods: static, ends with a NULL
 * name. */
int control_new(struct control **ret, sd_event *event, int socket,
	const struct control_method *methods, void *user_data);
struct control *control_free(struct control *control);
/* (gid_t)-1 for status: anyone; for admin: root only. The user of the daemon itself always may. */
void control_set_groups(struct control *control, gid_t status_group, gid_t admin_group);
/* The socket of the connection whose call is being handled: for a method that answers by itself. */
int control_caller(const struct control *control);
/* Connections of one uid at the same time. */
void control_set_max_connections(struct control *control, unsigned max_connections);
/* From the next connection on, users are slowed and their buffers bounded. NULL: nobody is. */
void control_set_accounts(struct control *control, struct accounts *accounts);
/* From the next connection on, those that bring descriptors are closed so. NULL: as any. */
void control_set_foreign(struct control *control, struct foreign *foreign);
/* There is a next reply. Safe in any place: what is sent is sent later, in the event loop. */
void control_stream_wake(struct control_stream *stream);
/* Copies of the numbers of its connections' sockets: control_count() of them. free(). NULL: no
 * memory. */
int *control_sockets(const struct control *control);
/* Connections that there are. NULL: none. */
unsigned control_count(const struct control *control);
/* Ends connections that left a call unfinished, or an answer unread, for so long. */
void control_tick(struct control *control, uint64_t timeout_usec);
