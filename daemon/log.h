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

#include <syslog.h>

#include "common/util.h"

/* MESSAGE_IDs, which stay as they are for ever: others search for them. */
#define EVENT_READY "a11b2495b7f5460c98e2548f1ba14060"
#define EVENT_RELOADED "1281f04ccc8549c1b57a57b543c1c1c5"
#define EVENT_RELOAD_REFUSED "b1a1b1b1847e4384948b467f39d608ff"
#define EVENT_LISTENER_OPEN "d7c4955a07f14ea38517e5706a62e2de"
#define EVENT_LISTENER_CLOSED "881b7d6030ad4e4fb0a73dc02bc0f195"
#define EVENT_LISTENER_TROUBLE "ba468e50033e4c44afde228154d5f82c"
#define EVENT_SERVICE_REMOVED "3f45c619d990412fabd72c096ba496b1"
#define EVENT_WORKER_ACTIVE "5a5603ed77ef417fb83669c2fd9fd629"
#define EVENT_WORKER_DRAINING "ce6899607470418d9860561a0fec9759"
#define EVENT_WORKER_GONE "c4caf9bcc77a4d22b2d2f0471f1147c3"
#define EVENT_GRANT_FAILED "a06af43145034cbe97e430fdb0319165"
#define EVENT_KEY_ROTATED "1e12169c699c42a987db2f47afc76260"
#define EVENT_KEY_RETIRED "eafb800cc4614b44a71d593a8a151083"

/* What an entry is about; a NULL is left out. */
struct log_about {
	const char *service;
	const char *listener;
	const char *instance;
	const uint16_t *slot; /* the first one of a registration with several workers */
};

/* priority: LOG_ERR ... LOG_INFO. event: one of the above or NULL. about: may be NULL. */
void log_entry(int priority, const char *event, const struct log_about *about, const char *format,
	...) _printf_(4, 5);

#define log_error(...) log_entry(LOG_ERR, NULL, NULL, __VA_ARGS__)
#define log_warning(...) log_entry(LOG_WARNING, NULL, NULL, __VA_ARGS__)
#define log_info(...) log_entry(LOG_INFO, NULL, NULL, __VA_ARGS__)
