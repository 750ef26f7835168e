/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Every metric, once: what it is called and where it comes from.
 */
#pragma once

#include <stdio.h>

#include "tools/ctl-worker.h"

enum ctl_metric_type {
	METRIC_GAUGE,
	METRIC_COUNTER,
	METRIC_INFO, /* labels whose value is always 1 */
};

/* What has one of it each, and which labels say so. */
enum ctl_metric_level {
	LEVEL_UP,       /* none: also without an answer */
	LEVEL_DAEMON,   /* none */
	LEVEL_SHARE,    /* share */
	LEVEL_SERVICE,  /* service */
	LEVEL_LISTENER, /* service, listener, transport */
	LEVEL_WORKER,   /* service, instance_name, slot */
	LEVEL_SOCKET,   /* all of them */
};

/* How the value is made out of the field. */
enum ctl_metric_value {
	VALUE_ONE,
	VALUE_NUMBER,
	VALUE_TRUE,     /* 0 or 1 */
	VALUE_PRESENT,  /* 1 when it is not null, else 0 */
	VALUE_COUNT,    /* elements of an array */
	VALUE_USEC,     /* in seconds; none for 0 */
	VALUE_PERMILLE, /* 0 to 1 */
	VALUE_INFO,     /* the fields are labels */
	VALUE_STATES,   /* one for each state of workers */
	VALUE_VERDICTS, /* one for each verdict */
	VALUE_CHOICES,  /* one for each way in which the classifier chose a service */
	VALUE_DISCARDS, /* one for each reason why it discarded a datagram */
	VALUE_FEATURES, /* one for each that there is */
};

#define METRIC_KEYS_MAX 3

struct ctl_metric {
	const char *name; /* without the prefix and the type's suffix; NULL ends the table */
	enum ctl_metric_type type;
	enum ctl_metric_level level;
	enum ctl_metric_value value;
	const char *keys[METRIC_KEYS_MAX]; /* the field, and the field in it; of an info: labels */
	const char *transport;             /* "tcp", "udp" (QUIC as well) or NULL: all */
	const char *help;
};

extern const struct ctl_metric ctl_metrics[];

/* States that workers have. */
extern const char *const ctl_worker_states[3];

/* "_total" of counters, "_info" of infos. */
const char *ctl_metric_suffix(enum ctl_metric_type type);

/* A reply to Status as metrics; status NULL: there was no reply. */
void ctl_write_metrics(FILE *file, bool openmetrics, const json_t *status);
