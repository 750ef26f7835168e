/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The share of a core that the classifier takes, as a bucket of CPU time: it fills with the clock,
 * up to what may be used in METER_WINDOW_NSEC, and is emptied by what was used. Empty: it can't
 * follow, until the bucket is half full again.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define METER_WINDOW_NSEC 100000000LL

struct meter {
	unsigned percent; /* of one core; 0: no bound */
	int64_t left;     /* nanoseconds of CPU time; below 0: used in advance */
	uint64_t wall_nsec, cpu_nsec;
	bool over;
};

/* The bucket is full. The clocks are CLOCK_MONOTONIC and CLOCK_PROCESS_CPUTIME_ID. */
void meter_init(struct meter *meter, unsigned percent, uint64_t wall_nsec, uint64_t cpu_nsec);
/* Returns whether it is over now. */
bool meter_update(struct meter *meter, uint64_t wall_nsec, uint64_t cpu_nsec);
/*
 * How long until it is not over any more, whatever waking up costs: the bucket is then five eighths
 * full. At half, waking would take the last drop again, which fills within microseconds, and so on
 * for ever: over, and all of the share spent on waking. 0: it is not over.
 */
uint64_t meter_wait_nsec(const struct meter *meter);
