/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What the files of a group (group.c, group-load.c, group-standby.c, group-share.c) have of each
 * other.
 */
#pragma once

#include "daemon/group.h"

/* Loads the program, makes the maps or goes on with those in saved (NULL: none), maps memory. */
int group_load(struct group *group, const struct listener_config *config,
	const struct group_place *place, const json_t *saved);
json_t *group_maps_to_json(const struct group *group);
/* NULL: errno says why. */
void *group_map_memory(const struct bpf_object *object, const char *name, size_t size);

int group_put_socket(const struct group *group, uint32_t index, int fd);
/* In place of the one before. */
int group_make_sink(
	struct group *group, const struct listener_config *config, const char **ret_step);

/* Tells the program of a change of the standby. */
void group_publish_standby(struct group *group);
void group_drop_standby(struct group *group);
void group_resume_standby(
	struct group *group, const struct listener_config *config, const json_t *saved);
json_t *group_standby_to_json(const struct group *group);
