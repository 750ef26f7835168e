/* SPDX-License-Identifier: BSD-2-Clause */
#include "daemon/watch.h"

#include "daemon/event.h"
#include "daemon/group.h"
#include "daemon/manager.h"

/* Datagrams that one run of the program may stand for: a train of UDP GRO (UDP_GRO_CNT_MAX, Linux).
 */
#define TRAIN_MAX 64

void watch_begin(struct listener *listener)
{
	struct watch *watch = &listener->watch;
	uint64_t verdicts[VERDICT_COUNT];

	group_read_counters(listener->group, verdicts);
	watch->standby = verdicts[VERDICT_STANDBY];
	group_read_counters(listener->group->whole, verdicts);
	watch->invalid[0] = watch->invalid[1] = verdicts[VERDICT_INVALID];
	watch->sunk = sink_filter_count(&listener->group->whole->sink_filter);
}

/* Told when it begins, and again when somebody was active in between. */
static void watch_standby(struct listener *listener, uint64_t standby)
{
	const struct listener_map *map = listener->group->listener_map;
	struct watch *watch = &listener->watch;
	bool grew = standby > watch->standby;

	watch->standby = standby;
	if (grew && !watch->told_standby)
		event_listener(EVENT_STANDBY_USED, listener, NULL,
			"nobody is active, what comes waits in the standby");
	if (grew)
		watch->told_standby = true;
	else if (map->tables[map->current & 1].n_active)
		watch->told_standby = false;
}

/*
 * The sink drops what the program sends there, QUIC that is none, and counts; and what the kernel's
 * own hash sends there while the program is not attached, which is the sign. Whatever of the former
 * was dropped since the last look was counted since the look before it at the latest.
 */
static void watch_sink(struct listener *listener, uint64_t invalid_before)
{
	const struct group *whole = listener->group->whole;
	struct watch *watch = &listener->watch;
	uint64_t verdicts[VERDICT_COUNT], sunk;

	sunk = sink_filter_count(&whole->sink_filter);
	if (sunk != watch->sunk)
		group_read_counters(whole, verdicts);
	if (sunk != watch->sunk &&
		sunk - watch->sunk > TRAIN_MAX * (verdicts[VERDICT_INVALID] - watch->invalid[1]))
		event_listener(EVENT_HEALED, listener, NULL,
			"a worker had taken its program from the group: %llu packets that came to the "
			"daemon's own socket are lost; it is attached again",
			(unsigned long long)(sunk - watch->sunk));
	watch->sunk = sunk;
	watch->invalid[1] = watch->invalid[0];
	watch->invalid[0] = invalid_before;
}

void watch_tick(struct listener *listener)
{
	uint64_t verdicts[VERDICT_COUNT];

	group_read_counters(listener->group, verdicts);
	listener->watch.packets = 0;
	for (int i = 0; i < VERDICT_COUNT; i++)
		listener->watch.packets += verdicts[i];
	watch_standby(listener, verdicts[VERDICT_STANDBY]);
	if (listener->group->whole != listener->group)
		group_read_counters(listener->group->whole, verdicts);
	watch_sink(listener, verdicts[VERDICT_INVALID]);
}
