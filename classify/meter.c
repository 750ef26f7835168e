/* SPDX-License-Identifier: BSD-2-Clause */
#include "classify/meter.h"

#include "common/util.h"

static int64_t capacity(const struct meter *meter)
{
	return METER_WINDOW_NSEC * meter->percent / 100;
}

void meter_init(struct meter *meter, unsigned percent, uint64_t wall_nsec, uint64_t cpu_nsec)
{
	*meter = (struct meter){.percent = percent, .wall_nsec = wall_nsec, .cpu_nsec = cpu_nsec};
	meter->left = capacity(meter);
}

bool meter_update(struct meter *meter, uint64_t wall_nsec, uint64_t cpu_nsec)
{
	/* After a long sleep the bucket is full, whatever was in it; and no product is too large.
	 */
	uint64_t passed = MIN(wall_nsec - meter->wall_nsec, 100ULL * METER_WINDOW_NSEC);
	uint64_t used = cpu_nsec - meter->cpu_nsec;

	meter->wall_nsec = wall_nsec;
	meter->cpu_nsec = cpu_nsec;
	if (meter->percent == 0)
		return false;
	meter->left += (int64_t)(passed * meter->percent / 100) - (int64_t)used;
	meter->left = MIN(meter->left, capacity(meter));
	if (meter->left < 0)
		meter->over = true;
	else if (meter->left >= capacity(meter) / 2)
		meter->over = false;
	return meter->over;
}

uint64_t meter_wait_nsec(const struct meter *meter)
{
	if (!meter->over)
		return 0;
	return (uint64_t)(capacity(meter) * 5 / 8 - meter->left) * 100 / meter->percent;
}
