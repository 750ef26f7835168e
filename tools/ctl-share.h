/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Addresses that several services share, and the process that reads for whom a new connection is.
 */
#pragma once

#include "tools/ctl.h"

/* Whether the service is one of those of the share; name NULL: any. */
bool ctl_share_has(const json_t *share, const char *name);

/* A table of those shares of a reply to Status that the service has (NULL: all), if there are any.
 */
void ctl_print_shares(const struct ctl *ctl, const json_t *status, const char *service);
