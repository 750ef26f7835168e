/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What the classifier gives up before it reads the first octet of a stranger: capabilities, files,
 * new sockets, other processes. What is left is what its descriptors can do, by the few system
 * calls of its loop.
 */
#pragma once

/*
 * From here on: no capability, no_new_privs, not dumpable, no core, and a seccomp filter; any other
 * system call ends the process (SIGSYS). Receiving is allowed on socket and control alone, sending
 * on the raw sockets alone and without an address, so that the address they are connected to is the
 * only one (docs/sni-routing.md).
 *
 * Returns 0, or a negative errno with *ret_step, which is what could not be done.
 */
int confine(int socket, int control, const int raw[2], const char **ret_step);
