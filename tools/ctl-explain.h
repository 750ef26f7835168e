/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The reply to Explain for people.
 */
#pragma once

#include <jansson.h>

#include "tools/ctl.h"

/* On stdout. */
int ctl_print_explanation(const json_t *reply);
