/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Datagrams that wait in a UDP standby come to workers whose sockets exist already (adopted ones,
 * which the standby can't become): they are read and given to the kernel again, as if their clients
 * had sent them only now (common/raw-datagram.h).
 */
#pragma once

#include "daemon/config.h"

/*
 * Takes everything out of the standby, and has it delivered once more. Returns how many datagrams
 * could not be (they are gone), or a negative errno with nothing taken: -EPERM (needs CAP_NET_RAW),
 * -EOPNOTSUPP (the listener is bound to a device, which is not the loopback one).
 */
int redeliver(int standby, const struct listener_config *config);

/* The raw socket for a family, or a negative errno: -EPERM (needs CAP_NET_RAW). */
int redeliver_open(int family);
