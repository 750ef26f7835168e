/* SPDX-License-Identifier: BSD-2-Clause */
#include "daemon/group-figures.h"

#include <bpf/bpf.h>
#include <linux/sock_diag.h>
#include <sys/socket.h>
#include <time.h>

#include "daemon/group.h"
#include "daemon/group-quic.h"

uint64_t group_waiting(const struct group *group, const struct listener_config *config,
	const uint64_t verdicts[VERDICT_COUNT])
{
	uint32_t memory[SK_MEMINFO_VARS] = {0};
	socklen_t length = sizeof(memory);
	uint64_t gone;

	if (group->standby < 0)
		return 0;
	if (config->transport == TRANSPORT_TCP)
		return group_standby_queue(group);
	if (getsockopt(group->standby, SOL_SOCKET, SO_MEMINFO, memory, &length) < 0 ||
		!memory[SK_MEMINFO_RMEM_ALLOC])
		return 0;
	gone = group->left + memory[SK_MEMINFO_DROPS];
	return verdicts[VERDICT_STANDBY] > gone ? verdicts[VERDICT_STANDBY] - gone : 0;
}

/* As the programs have it: bpf_ktime_get_ns() is CLOCK_MONOTONIC. */
static uint32_t flow_tick(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint32_t)(((uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec) >>
			  FLOW_TICK_SHIFT);
}

bool group_flow_fill(const struct group *group, struct fill *ret)
{
	size_t step = group->n_flow_sets * FLOW_WAYS / GROUP_FLOWS_READ;
	uint32_t now = flow_tick();
	uint64_t used = 0;

	if (!group->flows)
		return false;
	step = step ? step : 1;
	for (size_t i = 0; i < group->n_flow_sets; i += step)
		for (size_t way = 0; way < FLOW_WAYS; way++) {
			uint64_t word =
				__atomic_load_n(&group->flows[i].word[way], __ATOMIC_RELAXED);

			used += word && flow_age(word, now) <= group->head->flow_timeout;
		}
	*ret = (struct fill){.used = used * step, .size = group->n_flow_sets * FLOW_WAYS};
	return true;
}

bool group_cid_fill(const struct group *group, struct fill *ret)
{
	if (!group->quic || group->quic->mode != CID_REGISTERED)
		return false;
	*ret = (struct fill){.used = group->quic->n_cids, .size = group->quic->max_cids};
	return true;
}

bool group_cookie_fill(const struct group *group, struct fill *ret)
{
	uint64_t key, next;
	bool more;

	if (!group->quic || group->quic->mode != CID_NGINX)
		return false;
	*ret = (struct fill){.size = SLOT_COUNT};
	more = bpf_map_get_next_key(group->quic->cookie_map, NULL, &key) == 0;
	while (more && ret->used < ret->size) {
		ret->used++;
		more = bpf_map_get_next_key(group->quic->cookie_map, &key, &next) == 0;
		key = next;
	}
	return true;
}
