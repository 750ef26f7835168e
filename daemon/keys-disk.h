/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The state file of a listener's keys, as a whole: locked, read and replaced. What is in it is
 * keys-state.h's.
 */
#pragma once

#include "daemon/keys.h"

/* Opens and locks the directory; closing unlocks. Negative errno with a sentence, as below. */
int keys_disk_lock(const struct keys *keys, char **ret_error);

/* *ret is the caller's. -ENOENT without a sentence if there is no file. */
int keys_disk_read(const struct keys *keys, int directory, json_t **ret, char **ret_error);

/* Replaces the file; on disk when it returns 0. */
int keys_disk_write(const struct keys *keys, int directory, const json_t *root);
