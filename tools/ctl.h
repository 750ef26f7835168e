/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What the commands of reuseportctl share: what was asked for, one call to the daemon, and the
 * exit status. Errors are told to the person on stderr where they are found; what comes back is an
 * exit status.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

#include "common/util.h"
#include "proto/varlink.h"
#include "tools/ctl-options.h"

/* Exit status; documented in reuseportctl(1). */
enum {
	CTL_OK = 0,
	CTL_FAILED = 1,
	CTL_USAGE = 2,
	CTL_UNREACHABLE = 3,
	CTL_DENIED = 4,
	CTL_TIMEOUT = 5,
};

enum ctl_json_mode {
	CTL_JSON_OFF,
	CTL_JSON_PRETTY,
	CTL_JSON_SHORT,
};

/* What the command line and the environment say. */
struct ctl {
	const char *socket;
	struct ctl_values values;
	enum ctl_json_mode json;
	bool legend; /* headings, and the line that counts */
	bool colour;
	int columns; /* of the terminal; 0: stdout is none */
};

/* The value of an option, "" for one that takes none, NULL when it was not given. */
static inline const char *ctl_get(const struct ctl *ctl, enum ctl_option_id id)
{
	return ctl->values.value[id];
}

/* Says "reuseportctl: ..." on stderr. */
void ctl_error(const char *format, ...) _printf_(1, 2);

/* Says what is wrong with the command line, and where help is; name may be NULL. Returns CTL_USAGE.
 */
int ctl_usage(const char *what, const char *name);

/* Prints JSON as --json says; with CTL_JSON_OFF on one line. */
void ctl_print_json(const struct ctl *ctl, const json_t *value);

/*
 * Calls a method of io.reuseport.Control on the daemon at the socket path. parameters is stolen.
 * what says what is being tried ("drain worker 3") for messages. May block for 90 seconds at most.
 * On CTL_OK the parameters of the reply are in *ret (new reference, an object); else a sentence was
 * printed.
 */
int ctl_call(
	const char *path, const char *method, json_t *parameters, const char *what, json_t **ret);

/* The same, for wait_msec at most, with the sentence in *ret_error (free(), NULL without memory).
 */
int ctl_try(const char *path, const char *method, json_t *parameters, const char *what,
	int wait_msec, json_t **ret, char **ret_error);

/* Status of all services, or of the one named; as ctl_call(). service may be NULL. */
int ctl_call_status(const struct ctl *ctl, const char *service, json_t **ret);

/* The same in parts, for those who wait for other things as well. */
struct ctl_connection {
	int fd;
	struct varlink_buffer received;
};

#define CTL_CONNECTION_INIT \
	{                   \
		.fd = -1    \
	}

/*
 * Connects and sends one call, with Varlink's "more" where wanted. parameters is stolen. Blocks for
 * wait_msec at most. On CTL_OK *ret is connected (ctl_end()); else *ret_error has a sentence
 * (free(), NULL without memory).
 */
int ctl_begin(const char *path, const char *method, json_t *parameters, bool more, int wait_msec,
	const char *what, struct ctl_connection *ret, char **ret_error);
void ctl_end(struct ctl_connection *connection);

/*
 * The next reply, without waiting: 1 and *ret (new reference, the whole message), 0 when none is
 * there yet, or a negative errno: -ECONNRESET when the daemon hung up, -EBADMSG, of recv(2).
 */
int ctl_next(struct ctl_connection *connection, json_t **ret);

/* CTL_OK and the parameters of a message in *ret (new reference), or what its error means. */
int ctl_judge(
	const char *path, const char *what, const json_t *message, json_t **ret, char **ret_error);

/* What it means that the connection ended with this negative errno; a sentence in *ret_error. */
int ctl_lost(const char *path, const char *what, int error, char **ret_error);

/*
 * Commands: each gets what stands behind its name, whose number and options are checked, and
 * returns the exit status.
 */
int ctl_run_status(const struct ctl *ctl, int argc, char **argv);
int ctl_run_list_services(const struct ctl *ctl, int argc, char **argv);
int ctl_run_list_workers(const struct ctl *ctl, int argc, char **argv);
int ctl_run_show(const struct ctl *ctl, int argc, char **argv);
int ctl_run_drain(const struct ctl *ctl, int argc, char **argv);
int ctl_run_undrain(const struct ctl *ctl, int argc, char **argv);
int ctl_run_weight(const struct ctl *ctl, int argc, char **argv);
int ctl_run_rotate_keys(const struct ctl *ctl, int argc, char **argv);
int ctl_run_reload(const struct ctl *ctl, int argc, char **argv);
int ctl_run_reexec(const struct ctl *ctl, int argc, char **argv);
int ctl_run_kick(const struct ctl *ctl, int argc, char **argv);
int ctl_run_top(const struct ctl *ctl, int argc, char **argv);
int ctl_run_monitor(const struct ctl *ctl, int argc, char **argv);
int ctl_run_metrics(const struct ctl *ctl, int argc, char **argv);
int ctl_run_check(const struct ctl *ctl, int argc, char **argv);
int ctl_run_explain(const struct ctl *ctl, int argc, char **argv);
