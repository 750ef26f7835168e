/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Becoming the daemon's own user, with the few capabilities that it uses. A user of its own is what
 * keeps other processes, root's included, out of its groups: the kernel lets only sockets of one
 * uid share an address.
 */
#pragma once

#include <stdbool.h>

#define PRIVILEGE_ADOPT (1u << 0)     /* CAP_CHOWN, CAP_NET_RAW */
#define PRIVILEGE_SHARE (1u << 2)     /* CAP_NET_RAW */
#define PRIVILEGE_NET_ADMIN (1u << 1) /* CAP_NET_ADMIN: Kick, SO_MARK, IP_TRANSPARENT */

/*
 * Started as root: becomes `user`, keeping CAP_BPF and CAP_NET_BIND_SERVICE, and what `wanted`
 * asks for: PRIVILEGE_... . Started as another user (systemd's User=): changes nothing.
 * -ENOENT: no such user; other negative errno with *ret_step a static name of what failed.
 */
int privileges_drop(const char *user, unsigned wanted, const char **ret_step);
/*
 * CAP_PERFMON, where it was granted, in effect or not: it lets programs past the verifier that an
 * older kernel refuses otherwise, and reads the kernel's memory. So for the moment of loading only.
 */
void privileges_set_perfmon(bool on);

/* CAP_CHOWN, likewise: for the moment in which a socket changes hands. */
void privileges_set_chown(bool on);

/* CAP_NET_RAW, likewise: for the moment in which redeliver.c opens a socket. */
void privileges_set_raw(bool on);

/* Whether a capability (CAP_...) was granted, in effect or not. */
bool privileges_may(int capability);
