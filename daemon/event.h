/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Changes of state, each told once, by one call, to everybody: as a line of the log with its
 * MESSAGE_ID and fields, and as an event to each client of Monitor.
 */
#pragma once

#include <stdint.h>
#include <sys/types.h>

#include "common/util.h"

struct listener;
struct manager;
struct registration;
struct service;

/*
 * X(name, kind, priority, MESSAGE_ID). kind: as io.reuseport.Control has it. The IDs stay as they
 * are for ever, others search for them; systemd/reuseportd.catalog explains each.
 */
/* clang-format off */
#define EVENTS(X) \
	X(READY, "started", LOG_INFO, "a11b2495b7f5460c98e2548f1ba14060") \
	X(RELOADED, "reloaded", LOG_INFO, "1281f04ccc8549c1b57a57b543c1c1c5") \
	X(RELOAD_REFUSED, "reload_refused", LOG_ERR, "b1a1b1b1847e4384948b467f39d608ff") \
	X(LISTENER_OPEN, "listener_opened", LOG_INFO, "d7c4955a07f14ea38517e5706a62e2de") \
	X(LISTENER_CLOSED, "listener_closed", LOG_INFO, "881b7d6030ad4e4fb0a73dc02bc0f195") \
	X(LISTENER_TROUBLE, "listener_trouble", LOG_WARNING, "ba468e50033e4c44afde228154d5f82c") \
	X(SERVICE_REMOVED, "service_removed", LOG_INFO, "3f45c619d990412fabd72c096ba496b1") \
	X(WORKER_REGISTERED, "registered", LOG_INFO, "50c796565fa04ff99b13895913c45401") \
	X(WORKER_ACTIVE, "ready", LOG_INFO, "5a5603ed77ef417fb83669c2fd9fd629") \
	X(WORKER_DRAINING, "draining", LOG_INFO, "ce6899607470418d9860561a0fec9759") \
	X(WORKER_UNDRAINED, "undrained", LOG_INFO, "3ec0687db6f64058857b00fc0de4e860") \
	X(WORKER_WEIGHT, "weight", LOG_INFO, "8862b3adebc04d1787d4ccab4bdeaf60") \
	X(WORKER_STALLED, "stalled", LOG_WARNING, "a8920d7cbf93448199cadb8755a1ca2d") \
	X(WORKER_RECOVERED, "recovered", LOG_NOTICE, "d96fc139ad574461a1f215ce09112e48") \
	X(WORKER_KICKED, "kicked", LOG_NOTICE, "cb0a9bf8ce0f463ab361421c50e26c54") \
	X(WORKER_GONE, "gone", LOG_INFO, "c4caf9bcc77a4d22b2d2f0471f1147c3") \
	X(GRANT_FAILED, "grant_failed", LOG_WARNING, "a06af43145034cbe97e430fdb0319165") \
	X(STANDBY_USED, "standby_used", LOG_NOTICE, "f2374d8456fb415a84eabf4479bdc383") \
	X(HEALED, "healed", LOG_WARNING, "b82293a66356438884e68500c23f0be4") \
	X(STRANGER, "stranger", LOG_WARNING, "ab23d38911914bf2b5ac29f6b931d00e") \
	X(KEY_ROTATED, "keys_rotated", LOG_INFO, "1e12169c699c42a987db2f47afc76260") \
	X(KEY_RETIRED, "key_retired", LOG_INFO, "eafb800cc4614b44a71d593a8a151083")
/* clang-format on */

enum event {
#define X(name, kind, priority, id) EVENT_##name,
	EVENTS(X)
#undef X
};

/* What a change is about; what is zero or NULL is left out. */
struct event_about {
	const struct service *service;
	const struct listener *listener;         /* of its service */
	const struct registration *registration; /* of its service */
	const uint16_t *slot;                    /* NULL: the registration's first */
	uint32_t n_slots;                        /* that changed; 0: all of the registration */
	pid_t pid;                               /* 0: the registration's */
	const char *reason;
	uint64_t served_usec; /* with WORKER_GONE, since it was ready; 0: it never was */
};

/*
 * The line is what about names, then the text, then the reason: "web: instance web@1 (pid 12, slot
 * 3) draining: an operator said so". manager: NULL while there is none, and so no client.
 */
void event_tell(struct manager *manager, enum event event, const struct event_about *about,
	const char *format, ...) _printf_(4, 5);

/* The reason may be NULL. */
#define event_listener(event, about_listener, about_reason, ...) \
	event_tell((about_listener)->service->manager, event,    \
		&(struct event_about){                           \
			.listener = (about_listener),            \
			.reason = (about_reason),                \
		},                                               \
		__VA_ARGS__)
