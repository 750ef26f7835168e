/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What is in a store, for the two files that it is made of: store.c, and store-keeper.c where the
 * descriptors are held by the daemon's own keeper.
 */
#pragma once

#include "daemon/store.h"

struct keeper;

struct entry {
	uint32_t number; /* 0: not ours: a socket unit's */
	char kind;
	bool here_only;
	bool inherited; /* and not taken yet */
	bool dropped;   /* store_settle() removes it */
	int fd;
	char foreign[32]; /* name of one that is not ours */
};

/* How the keeper is kept alive. */
struct store_keeper {
	sd_event *event; /* NULL: it isn't */
	sd_event_source *source;
	const char *directory, *program;
	uint64_t started_usec; /* CLOCK_MONOTONIC */
	pid_t ended;           /* to be reaped, if it was this process's child */
	bool said;             /* that it can't be started */
};

struct store {
	struct entry *entries; /* by number, upwards; those without one first */
	size_t n, room;
	uint32_t next;
	size_t name_octets;
	bool systemd, frozen, said_full;
	struct keeper *keeper; /* NULL: there is none */
	struct store_keeper guard;
	bool touched;
	store_writer writer;
	void *writer_data;
};

/* An entry of an earlier process. -ENOMEM, and fd is the caller's still. */
int store_inherit(struct store *store, struct entry entry);
void store_sort(struct store *store);
/* Tells the keeper, where there is one; frees it when that fails. */
void store_keeper_put(struct store *store, const struct entry *entry);
void store_keeper_remove(struct store *store, const struct entry *entry);
void store_keeper_lost(struct store *store);
/* The process ends in order: its two doors are not to be waited at. */
void store_keeper_leave(struct store *store);
/* Everything, to whoever keeps it. */
void store_tell_again(struct store *store);
