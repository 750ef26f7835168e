/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The configuration that runs, as part of the state: a daemon that starts again must be able to
 * serve what it served even if the files have become wrong or are gone.
 */
#pragma once

#include <jansson.h>

#include "daemon/config.h"

/* New references; NULL without memory. Services and listeners are not part of the daemon's. */
json_t *config_to_json(const struct config *config);
json_t *service_config_to_json(const struct service_config *service);
json_t *listener_config_to_json(const struct listener_config *listener);

/* -EBADMSG: a field is missing, of the wrong type or out of range. -ENOMEM. What is returned is
 * the caller's; a service comes without listeners. */
int config_from_json(struct config **ret, const json_t *json);
int service_config_from_json(struct service_config **ret, const json_t *json);
int listener_config_from_json(struct listener_config **ret, const json_t *json);
