/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What a group has more when services share its listener (docs/sni-routing.md): a listener map for
 * each, whose each slot and each rotation of connection IDs is, and what it has in common with the
 * classifier.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "bpf/share_layout.h"
#include "daemon/config.h"

struct bpf_object;
struct group;

struct group_share {
	struct listener_map *maps; /* SHARE_MAX of them; mapped, as all here */
	uint8_t *slot_service;
	struct share_state *state;
	struct share_page *page;
	uint64_t *cid_cache;
	size_t n_cached;
	struct flow_set *choices;
	size_t n_choice_sets;
	int page_map, choice_map;
};

/* Sets sizes before the object is loaded; then maps what is shared. */
int group_share_prepare(struct bpf_object *object, const struct listener_config *config);
int group_share_new(struct group_share **ret, struct group *group);
/* NULL is allowed. */
struct group_share *group_share_free(struct group_share *share);

/*
 * The slot is this group's service's from now on, or nobody's. Connection IDs that name it and are
 * remembered of another service are forgotten. Nothing happens where no service shares the
 * listener.
 */
void group_share_take_slot(struct group *group, uint16_t slot);
void group_share_leave_slot(struct group *group, uint16_t slot);

/* The service with this number is no longer there, if no slot of its has a socket. False: one has.
 */
bool group_share_retire(struct group *whole, uint32_t number);
/* Puts the classifier's socket at its place. */
int group_share_set_classifier(struct group *whole, int fd);
