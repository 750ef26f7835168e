/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The store where the daemon's own keeper holds it: found at the start, told of every change, and
 * replaced when it ends.
 */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>

#include "common/util.h"
#include "daemon/keeper.h"
#include "daemon/log.h"
#include "daemon/store-entry.h"

#define PAUSE_USEC USEC_PER_SEC /* between two starts */

static uint64_t monotonic_usec(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * USEC_PER_SEC + (uint64_t)now.tv_nsec / NSEC_PER_USEC;
}

/* Asked again each second, since it may be a moment before it can be reaped. */
static void reap(struct store *store)
{
	if (store->guard.ended > 0 && waitpid(store->guard.ended, NULL, WNOHANG) != 0)
		store->guard.ended = 0;
}

static void let_go(struct store *store, struct keeper *(*end)(struct keeper *))
{
	store->guard.source = sd_event_source_disable_unref(store->guard.source);
	if (store->keeper)
		store->guard.ended = keeper_pid(store->keeper);
	store->keeper = end(store->keeper);
	reap(store);
}

void store_keeper_lost(struct store *store)
{
	if (store->guard.event)
		log_warning("the process that keeps descriptors for the next daemon has ended, or "
			    "does not answer; another one is started");
	let_go(store, keeper_end);
}

void store_keeper_put(struct store *store, const struct entry *entry)
{
	const struct keeper_entry kept = {
		.number = entry->number,
		.kind = (uint8_t)entry->kind,
		.watch = entry->kind == STORE_PIDFD    ? KEEPER_PROCESS
			 : entry->kind == STORE_CLIENT ? KEEPER_HANGUP
						       : KEEPER_NEVER,
	};

	if (keeper_put(store->keeper, &kept, entry->fd) < 0)
		store_keeper_lost(store);
}

void store_keeper_remove(struct store *store, const struct entry *entry)
{
	if (keeper_remove(store->keeper, entry->number) < 0)
		store_keeper_lost(store);
}

void store_keeper_leave(struct store *store)
{
	bool processes = false;

	for (size_t i = 0; i < store->n && store->keeper; i++) {
		processes |= store->entries[i].kind == STORE_PIDFD && !store->entries[i].here_only;
		if (store->entries[i].kind == STORE_DOOR)
			store_keeper_remove(store, &store->entries[i]);
	}
	if (!store->keeper)
		return;
	keeper_sync(store->keeper); /* when the process has ended, the doors have gone */
	keeper_leave(store->keeper, !processes);
}

/* Those of one batch; what can't be taken is closed. */
static int take_batch(struct store *store, struct keeper_message *message, uint32_t *after)
{
	int result = 0;

	for (uint32_t i = 0; i < message->header.n; i++) {
		const struct keeper_entry *kept = &message->entries[i];
		const struct entry entry = {
			.number = kept->number,
			.kind = (char)kept->kind,
			.fd = message->fds[i],
		};

		if (result >= 0 && kept->number <= *after)
			result = -EPROTO;
		if (result >= 0)
			result = store_inherit(store, entry);
		if (result < 0)
			close_fd(&message->fds[i]);
		*after = kept->number;
	}
	return result;
}

static int take_all(struct store *store)
{
	struct keeper_message *message = malloc(sizeof(*message));
	uint32_t after = 0;
	int result = message ? 0 : -ENOMEM;

	while (result >= 0) {
		result = keeper_take(store->keeper, after, message);
		if (result < 0 || !message->header.n)
			break;
		result = take_batch(store, message, &after);
	}
	free(message);
	return result;
}

int store_find_keeper(struct store *store, const char *directory, uid_t uid, char **ret_error)
{
	int result;

	if (store->keeper || (store->n && store->entries[store->n - 1].number))
		return 0; /* inherited from somebody else, who has the same or newer */
	result = keeper_find(&store->keeper, directory, uid);
	if (result == -ENOENT)
		return 0;
	if (result >= 0)
		result = take_all(store);
	store_sort(store);
	if (result >= 0)
		return 0;
	let_go(store, keeper_free);
	if (asprintf(ret_error, "cannot take over from %s/" KEEPER_FILE ": %s%s", directory,
		    strerror(-result),
		    result == -EBUSY
			    ? " (another reuseportd is at work there: stop it, or use another "
			      "--runtime-directory)"
		    : result == -EPERM || result == -EACCES
			    ? " (it is another user's: remove it, or use another "
			      "--runtime-directory)"
			    : "") < 0)
		*ret_error = NULL;
	return result;
}

static int on_end(sd_event_source *source, int fd, uint32_t events, void *user_data)
{
	struct store *store = user_data;

	store_keeper_lost(store);
	store_tick(store);
	return 0;
}

static void start(struct store *store)
{
	const char *step = "";
	int result;

	store->guard.started_usec = monotonic_usec();
	result = keeper_start(&store->keeper, store->guard.directory, store->guard.program, &step);
	if (result >= 0) {
		store->guard.said = false;
		store_tell_again(store);
		return;
	}
	if (!store->guard.said)
		log_warning("cannot keep descriptors for the next daemon in a process of their "
			    "own: %s: %s; tried again every second, and a daemon that is killed "
			    "meanwhile can't be gone on from",
			step, strerror(-result));
	store->guard.said = true;
}

void store_tick(struct store *store)
{
	reap(store);
	if (!store->guard.event || store->frozen)
		return;
	if (!store->keeper && monotonic_usec() - store->guard.started_usec >= PAUSE_USEC)
		start(store);
	if (store->keeper && !store->guard.source)
		sd_event_add_io(store->guard.event, &store->guard.source, keeper_fd(store->keeper),
			EPOLLIN, on_end, store);
}

void store_guard(struct store *store, sd_event *event, const char *directory, const char *program,
	bool wanted)
{
	if (store->keeper && (store->systemd || !wanted)) {
		/* systemd first, so that there is no moment in which nobody has them. */
		if (store->systemd)
			store_tell_again(store);
		keeper_forget(store->keeper);
		let_go(store, keeper_free);
	}
	if (store->systemd || !wanted)
		return;
	store->guard.event = sd_event_ref(event);
	store->guard.directory = directory;
	store->guard.program = program;
	store_tick(store);
}
