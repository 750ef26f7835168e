/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A share: one address on which several services have a listener each (docs/sni-routing.md). It is
 * made by the first listener with its Share=, and goes with the last one.
 *
 * A listener that leaves a share that others are in keeps its number, and its connection IDs are
 * decoded, as long as a worker has a socket of it: new connections are refused, and no established
 * one is lost. That is so on a listener of its own as well, where program and maps outlive it.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

#include "bpf/share_layout.h"
#include "daemon/config.h"
#include "daemon/group.h"

struct classifier;
struct listener;
struct manager;
struct share_rules;

struct share {
	struct share *next;
	struct manager *manager;
	struct listener_config *config; /* what all its listeners have in common; a copy */
	struct group *group;            /* the whole */
	uint32_t number;                /* of the group, in events */
	struct listener *listeners[SHARE_MAX];
	bool leaving[SHARE_MAX];
	enum cid_mode mode[SHARE_MAX];
	struct share_rules *rules; /* as compiled last */
	struct classifier *classifier;
	bool goes_on; /* the daemon ends, and some worker has a socket still */
};

/*
 * Gives the listener its place and its group in the share that its configuration names, which is
 * opened where there is none on this address. On failure a negative errno and *ret_error (free()).
 */
int share_join(struct manager *manager, struct listener *listener, char **ret_error);
/* The listener is no longer in its share, and has no group. It may be the share's end. */
void share_leave(struct listener *listener);

/* The listeners are as they are to be: program, rules and classifier are told. */
void shares_update(struct manager *manager);
void shares_tick(struct manager *manager);
/* The daemon ends: whether a classifier goes on is decided while it is known who is there. */
void shares_stop(struct manager *manager);
struct share *share_find(const struct manager *manager, uint32_t number);

/* Which slots are somebody's, with all listeners of the share: as group_reconcile() wants them. */
void share_collect(const struct share *share, bool *open, bool *held);

/* share-status.c: for Status. */
json_t *shares_status(const struct manager *manager);

/* What an earlier process had; before its services. */
json_t *shares_to_json(const struct manager *manager);
int shares_resume(struct manager *manager, const json_t *json, char **ret_error);
/* A listener of an earlier process, with this number in its share. */
int share_resume_listener(
	struct listener *listener, uint32_t share, uint32_t place, const json_t *group);
