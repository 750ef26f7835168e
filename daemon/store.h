/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Descriptors that outlive this process: what the next one, be it after a crash, a restart or an
 * upgrade, takes over under the same numbers.
 *
 * Three ways lead there. systemd's file descriptor store keeps a duplicate of each from the moment
 * that it is put (sd_pid_notify_with_fds(3)), and hands all of them to the next start as
 * LISTEN_FDS. Where there is no such store, a small process of the daemon's own does the same
 * (keeper.h). And store_exec() replaces the program of this process, which keeps its descriptors
 * by itself; their numbers and names go along in a memfd, so that nothing has to be moved and an
 * exec that fails leaves all as it was.
 *
 * An entry's number is new each time, never that of another one before: names can be written into
 * the state before or after, and mean what they meant.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include <systemd/sd-event.h>

struct store;

enum store_kind { /* the letter before the number in the entry's name */
	STORE_MAP = 'm',
	STORE_SOCKET = 's', /* of a group: sink, standby */
	STORE_STATE = 't',
	STORE_DOOR = 'd', /* worker.sock and control.sock */
	STORE_PIDFD = 'p',
	STORE_CLIENT = 'c',
	STORE_LOADS = 'l',  /* memory of a registration: load.h */
	STORE_CALLER = 'r', /* who waits for the answer to Reexec */
};

/* Takes what this process inherited, and nothing twice: the environment is cleaned. -ENOMEM. */
int store_new(struct store **ret);
/*
 * Where nothing was inherited: what a keeper in the runtime directory has, which is uid's. It goes
 * on as this process's. *ret_error (free()): a sentence. 0 also when there is none; -EBUSY: another
 * daemon lives.
 */
int store_find_keeper(struct store *store, const char *directory, uid_t uid, char **ret_error);
/*
 * Where systemd keeps nothing: makes sure, now and from now on, that a keeper does; program: the
 * daemon's own path. wanted false: none any more. Both strings must stay. Failures are said in the
 * log.
 */
void store_guard(struct store *store, sd_event *event, const char *directory, const char *program,
	bool wanted);
/* Once a second: a keeper that has ended is replaced. */
void store_tick(struct store *store);
/* Closes what nobody took. NULL is fine. */
struct store *store_free(struct store *store);

/*
 * Keeps fd, which stays the caller's and must stay open until store_drop(). Returns the entry's
 * number, 0: it can't be kept (no memory, or more names than systemd can hand over): said in the
 * log once, and the next process will lack it. here_only: not for systemd, only for store_exec().
 */
uint32_t store_put(struct store *store, enum store_kind kind, int fd, bool here_only);
/* The same for one that may be kept already, be it here only. */
uint32_t store_keep(
	struct store *store, uint32_t number, enum store_kind kind, int fd, bool here_only);
/* The descriptor of an entry is another one now (a duplicate). */
void store_move(struct store *store, uint32_t number, int fd);
/*
 * No longer kept, and closed, but only by the next store_settle(): until the state that does not
 * name it is written, a crash still finds it. number 0 is fine.
 */
void store_drop(struct store *store, uint32_t number, int fd);
void store_settle(struct store *store);
/* Waits until the keeper has done what it was told. */
void store_sync(struct store *store);

/*
 * Who writes the state, and when. store_put() and store_drop() count as a change, store_touch()
 * tells of others. store_commit() has the state written if anything changed, then settles.
 */
typedef int (*store_writer)(void *user_data);
void store_set_writer(struct store *store, store_writer writer, void *user_data);
void store_touch(struct store *store);
void store_commit(struct store *store);

/* An inherited descriptor, which is the caller's from here, and kept as before. -ENOENT. */
int store_take(struct store *store, enum store_kind kind, uint32_t number);
/* One of a kind of which there is one at most. */
int store_take_only(struct store *store, enum store_kind kind, uint32_t *ret_number);
/* What a socket unit passed under this name; else a listening Unix socket of an earlier process,
 * whose path ends with file and is still there. */
int store_take_door(struct store *store, const char *name, const char *file);
/*
 * Ends what was inherited and nobody took; a TCP listener gives its queue to the others first.
 * Where systemd has duplicates, waits until they are gone: an address may be free only then.
 */
void store_forget_rest(struct store *store, bool doors_too);

/* Whether somebody else has them: so an end of this process is not the end of what it holds. */
bool store_outlives(const struct store *store);
bool store_has_keeper(const struct store *store);
/* From here nothing is stored or removed any more: this process ends, and what is, stays. */
void store_freeze(struct store *store);
bool store_is_frozen(const struct store *store);
/* Replaces this process by the program. Returns only on failure: negative errno. */
int store_exec(struct store *store, const char *program, char **argv);
