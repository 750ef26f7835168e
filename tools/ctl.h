/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What the parts of reuseportctl share: one call to the daemon, and how replies are told to people.
 * Errors are told to the person on stderr where they are found; what comes back is an exit status.
 */
#pragma once

#include <stdbool.h>

#include <jansson.h>

/* Exit status; documented in reuseportctl(1). */
enum {
	CTL_OK = 0,
	CTL_FAILED = 1,
	CTL_USAGE = 2,
	CTL_UNREACHABLE = 3,
	CTL_DENIED = 4,
};

/* Says "reuseportctl: ..." on stderr. */
void ctl_error(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Whether text may go to a terminal as it is; what others named must not steer it. */
static inline bool ctl_is_plain(const char *text)
{
	for (; *text; text++)
		if ((unsigned char)*text < ' ' || *text == 0x7f)
			return false;
	return true;
}

/*
 * Calls a method of io.reuseport.Control on the daemon at the socket path. parameters is stolen.
 * what says what is being tried ("drain worker 3") for messages. May block for 90 seconds at most.
 * On CTL_OK the parameters of the reply are in *ret (new reference, an object); else a sentence was
 * printed.
 */
int ctl_call(
	const char *path, const char *method, json_t *parameters, const char *what, json_t **ret);

/* The reply to Status as tables on stdout. legend: with headings and the line on the daemon. */
int ctl_print_status(const json_t *status, bool legend, bool colour);

/* The reply to Explain as a sentence on stdout. */
int ctl_print_explanation(const json_t *reply);
