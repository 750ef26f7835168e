/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Services, listeners and workers for people.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

#include "tools/ctl-table.h"
#include "tools/ctl.h"

/* A map or a queue that is this full is shown in red, and is what "check" warns of. */
#define CTL_MAP_FULL 0.9
#define CTL_QUEUE_FULL 0.9

/* The reply to Status as tables on stdout. */
void ctl_print_status(const struct ctl *ctl, const json_t *status);

/* The line on the daemon. */
void ctl_print_daemon(const json_t *daemon);

/* How full the fullest map of a listener is, 0 to 1; -1 where that isn't known. */
double ctl_fullest_map(const json_t *listener);

/* Green, yellow (somebody is stalled), red (nobody is active) or grey (removed). */
const char *ctl_service_colour(const json_t *service);

/* Who has a socket at an address of ours. free(). */
char *ctl_stranger_text(const json_t *stranger);

/* A table of workers: which columns there are beside those that are always there. */
struct ctl_worker_columns {
	bool service;
	bool sockets; /* some worker has figures of its sockets */
	bool load;    /* some worker publishes its load */
};

void ctl_find_worker_columns(const json_t *workers, struct ctl_worker_columns *columns);
void ctl_add_worker_columns(struct ctl_table *table, const struct ctl_worker_columns *columns);
void ctl_add_worker(struct ctl_table *table, const struct ctl_worker_columns *columns,
	const json_t *service, const json_t *worker, int64_t now);
