/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The filter of sinks: drops everything, in silence, and counts what was for this host alone. An
 * eBPF filter, which CAP_BPF loads: no other capability is asked for, whatever a kernel wants for
 * classic ones.
 */
#pragma once

#include <stdint.h>

struct sink_filter {
	int program, counter; /* descriptors; 0: none */
};

int sink_filter_new(struct sink_filter *ret);
void sink_filter_done(struct sink_filter *filter);
int sink_filter_attach(const struct sink_filter *filter, int socket);
/* Datagrams and segments that it dropped, but for multicast and broadcast, of which every socket at
 * an address has a copy. */
uint64_t sink_filter_count(const struct sink_filter *filter);
