/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What each user of the machine has of the daemon: connections, slots, octets that are kept for its
 * connections, and the daemon's time.
 *
 * Time: a message is paid with a part of a second, the rate's, or with twice the time that handling
 * it took, whichever is more; a second's worth may be spent in advance. So a user gets
 * MessagesPerSecondPerUser= and half of the daemon's time at most, and whoever wants more waits:
 * its connections stand in a queue, the kernel keeps what they send, and nothing is lost or
 * refused. Root may stop the daemon anyway and is not slowed.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include <jansson.h>
#include <systemd/sd-event.h>

struct accounts;

/* One of a user's connections, which may have to wait for its turn. Zero when it does not. */
struct turn {
	struct turn *next;
	struct account *account; /* in whose queue it stands; NULL: none */
	void (*resume)(struct turn *turn);
};

struct account {
	struct account *next;
	struct accounts *accounts;
	uid_t uid;
	unsigned n_holders;     /* pointers to it that are kept */
	unsigned n_connections; /* on worker.sock */
	unsigned n_slots;
	bool may_not_adopt;  /* by that it has tried to get into the group of another service */
	size_t n_octets;     /* buffers of control connections */
	uint64_t spent_usec; /* CLOCK_MONOTONIC until which its time is spent */
	uint64_t told_usec;  /* when the log was last told that it waits */
	struct turn *first, *last;
	sd_event_source *timer;
};

int accounts_new(struct accounts **ret, sd_event *event);
struct accounts *accounts_free(struct accounts *accounts);
/*
 * A user's account, made when there is none. It stays while it is held, has anything, waits or has
 * to wait: one user can have the IDs of very many (user namespaces), so those of which nothing is
 * to be remembered are forgotten once there are too many of them.
 */
struct account *accounts_get(struct accounts *accounts, uid_t uid);
void account_hold(struct account *account);
void account_release(struct account *account);
/* The users that may not adopt any more: an array of their numbers; and back. A new reference. */
json_t *accounts_to_json(const struct accounts *accounts);
void accounts_resume(struct accounts *accounts, const json_t *json);
/* 0: unlimited, as at the start. */
void accounts_set_rate(struct accounts *accounts, unsigned messages_per_second);

/*
 * Whether the user may have something done now. If not, turn->resume(turn) is called when it may;
 * until then, or turn_cancel(), the turn must stay where it is.
 */
bool account_may(struct account *account, struct turn *turn);
/* What was done since started_usec (CLOCK_MONOTONIC) counts as that many messages at least. */
void account_charge(struct account *account, uint64_t started_usec, unsigned n_messages);
/* Out of the queue, if it is in one. */
void turn_cancel(struct turn *turn);
