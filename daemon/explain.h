/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The method Explain of io.reuseport.Control: where a QUIC packet would go now, and why.
 */
#pragma once

#include "daemon/control.h"
#include "daemon/manager.h"

/* A control_handler; user_data is the manager. */
int explain_method(void *user_data, const json_t *parameters, json_t **ret, const char **ret_error);
