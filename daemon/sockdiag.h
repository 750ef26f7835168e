/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What the kernel knows of sockets that are not ours to hold, by sock_diag(7). Needs no capability.
 */
#pragma once

#include "daemon/config.h"

/*
 * Whether any socket is bound to exactly the listener's address, port and device: 1 or 0. Others
 * that merely overlap (a wildcard, a specific address) don't count. Negative errno when the kernel
 * doesn't tell (no inet_diag, tcp_diag or udp_diag).
 */
int sockdiag_is_bound(const struct listener_config *config);
