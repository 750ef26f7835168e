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

/*
 * A method's work. parameters is borrowed, an object. On success returns 0 and the parameters of
 * the reply in *ret (new reference, an object). On failure returns a negative errno and either
 * nothing, or in *ret_error a Varlink error name (static, for instance
 * "io.reuseport.Control.NoSuchWorker") with its parameters in *ret (new reference or NULL).
 */
typedef int (*control_handler)(
	void *user_data, const json_t *parameters, json_t **ret, const char **ret_error);

struct control_method {
	const char *name; /* "Status"; the interface is implied */
	bool changes;     /* needs root or the admin group; else the status group is enough */
	control_handler handler;
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
/* Connections that there are. NULL: none. */
unsigned control_count(const struct control *control);
/* Ends connections that left a call unfinished, or an answer unread, for so long. */
void control_tick(struct control *control, uint64_t timeout_usec);
