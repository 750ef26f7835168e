/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What `reuseportctl explain --offline --initial` says of the beginning of a connection.
 */
#pragma once

#include <jansson.h>

#include "classify/flow.h"

/* A new object, the caller's; NULL when there is not enough memory. */
json_t *offline_initial_answer(const struct flow *flow);
