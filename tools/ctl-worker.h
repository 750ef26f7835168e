/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A worker as the daemon describes it, for every command that shows or names one.
 */
#pragma once

#include <stdbool.h>

#include <jansson.h>

#include "tools/ctl.h"

/* Which workers the command line names: by slot or instance, --instance and --service. */
struct ctl_selection {
	json_int_t slot;      /* -1: any */
	const char *instance; /* NULL: any */
	const char *service;  /* NULL: any */
	char *name;           /* who is meant, for messages: "worker 3"; ctl_selection_done() */
};

void ctl_selection_done(struct ctl_selection *selection);

/*
 * Takes the WORKER of a command, which options may name instead; n_others arguments follow it.
 * Returns how many arguments it was, 0 or 1, or a negative errno after a message.
 */
int ctl_select(
	const struct ctl *ctl, int argc, char **argv, int n_others, struct ctl_selection *ret);

/* The parameters of a method that changes workers; NULL after a message. */
json_t *ctl_selection_parameters(const struct ctl_selection *selection);

bool ctl_selects(
	const struct ctl_selection *selection, const json_t *service, const json_t *worker);

/*
 * The workers of a reply to Status that are selected (NULL: all), each with a field "service" more.
 * New reference.
 */
json_t *ctl_flat_workers(const json_t *status, const struct ctl_selection *selection);

/* "active", "active (stalled)", "draining (exited)": free(); and its colour. */
char *ctl_worker_state(const json_t *worker, const char **ret_colour);

/* How full a socket's queue is: 0 to 1 and more, -1 where that isn't known. */
double ctl_queue_fill(const json_t *socket);

/*
 * "3/511" connections, "12.3kB/213kB" of datagrams, NULL where it isn't known. free(). service: the
 * one that the worker belongs to, which says what the listener's transport is.
 */
char *ctl_queue_text(const json_t *service, const json_t *socket);

/* The socket with the fullest queue, NULL when there is none that is known. */
const json_t *ctl_fullest_socket(const json_t *worker);

/* Drops of all its sockets; -1 where none is known. */
json_int_t ctl_worker_drops(const json_t *worker);

/* The listener of a service by its name, NULL when it has none. */
const json_t *ctl_find_listener(const json_t *service, const char *name);

/* Workers of a service in a state; NULL: in any. */
size_t ctl_count_workers(const json_t *service, const char *state);
