/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The clients of Monitor. The events of late are kept once for all of them, and each has its place
 * among these: what a client costs does not grow with what it leaves unread. One whose place was
 * overwritten is told "overrun" and gets a snapshot, as at its beginning.
 */
#pragma once

#include <stdbool.h>

#include <jansson.h>

struct control_stream;
struct monitor;

/* Events that a client may be behind. */
#define MONITOR_EVENTS 1024

int monitor_new(struct monitor **ret);
/* After control_free(), which ends the clients. NULL is allowed. */
struct monitor *monitor_free(struct monitor *monitor);
/* Nobody needs an event to be made. NULL: false. */
bool monitor_has_clients(const struct monitor *monitor);
/* event: of type Event, taken over. */
void monitor_tell(struct monitor *monitor, json_t *event);

/* The method: a control_opener. */
int monitor_open(void *user_data, const json_t *parameters, struct control_stream **ret,
	json_t **ret_parameters, const char **ret_error);
