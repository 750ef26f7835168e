/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * How full a group's maps and queues are: figures for people, read when somebody asks.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "bpf/layout.h"
#include "daemon/config.h"

struct group;

struct fill {
	uint64_t used, size;
};

/*
 * Connections or datagrams in the standby now. verdicts: group_read_counters(). UDP and QUIC: at
 * most so many, since the kernel counts octets.
 */
uint64_t group_waiting(const struct group *group, const struct listener_config *config,
	const uint64_t verdicts[VERDICT_COUNT]);
/*
 * Entries of the flow map that are no older than its time. Reads it all, some 2 ns an entry; of one
 * with more than GROUP_FLOWS_READ entries as many, spread evenly, and multiplies. False: it has
 * none.
 */
#define GROUP_FLOWS_READ (1u << 20)
bool group_flow_fill(const struct group *group, struct fill *ret);
/* Registered connection IDs; false: the listener takes none. */
bool group_cid_fill(const struct group *group, struct fill *ret);
/* Cookies of sockets; false: the listener does not use them. */
bool group_cookie_fill(const struct group *group, struct fill *ret);
