/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What happened in the kernel without anybody saying so: seen once a second by counters, and told
 * once.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct listener;

/* Of a listener. */
struct watch {
	uint64_t packets;    /* that the program had seen at the last look */
	uint64_t standby;    /* what had come to it at the last look */
	bool told_standby;   /* of those that come now */
	uint64_t sunk;       /* what had come to the sink */
	uint64_t invalid[2]; /* that the program sent to the sink: at the last look, and at the one
				before */
};

/* The program is attached: what has happened in the group before is no news. */
void watch_begin(struct listener *listener);
/* Tells when something came to the standby, or past the program. */
void watch_tick(struct listener *listener);
