/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What the daemon says to people. When standard error is the journal, as an entry with fields that
 * one can search for (SERVICE=, LISTENER=, INSTANCE=, SLOT=) and the MESSAGE_ID of an event, which
 * systemd/reuseportd.catalog explains; else as a plain line. A thing is logged once, where it is
 * handled.
 *
 * What is no event is written to standard error always: the journal looks up the sender of an entry
 * in /proc, so the last words of a process that ends would belong to no unit, and "systemctl
 * status" would not have them. Of the stream it knows the unit from the start.
 */
#pragma once

#include <sys/types.h>
#include <syslog.h>

#include "common/util.h"

/* What an entry is about; a NULL is left out. */
struct log_about {
	const char *service;
	const char *listener;
	const char *instance;
	const uint16_t *slot; /* the first one of a registration with several workers */
	pid_t pid;            /* 0: left out */
};

/* priority: LOG_ERR ... LOG_INFO. message_id: of an event, or NULL. about: may be NULL. */
void log_entry(int priority, const char *message_id, const struct log_about *about,
	const char *format, ...) _printf_(4, 5);

#define log_error(...) log_entry(LOG_ERR, NULL, NULL, __VA_ARGS__)
#define log_warning(...) log_entry(LOG_WARNING, NULL, NULL, __VA_ARGS__)
#define log_info(...) log_entry(LOG_INFO, NULL, NULL, __VA_ARGS__)
