/* SPDX-License-Identifier: BSD-2-Clause */
#pragma once

#include <jansson.h>

struct manager;

/* Of type Daemon. A new reference, NULL without memory. */
json_t *status_daemon(const struct manager *manager);
/* Of type []Service, sorted by name: all, or the one named. A new reference. */
json_t *status_services(struct manager *manager, const char *name);
