/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Whether a state can be gone on from: types, ranges, and that no slot is anybody's twice. What
 * passes can be read without further looks. The configurations in it are checked by those who read
 * them (state-config.h).
 */
#pragma once

#include <jansson.h>

/* NULL: it can. Else what is wrong (static). */
const char *state_check(const json_t *json);
