/* SPDX-License-Identifier: BSD-2-Clause */
#include "daemon/group-share.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <string.h>
#include <sys/mman.h>

#include "common/util.h"
#include "daemon/group-private.h"
#include "daemon/group-quic.h"

static size_t n_choice_sets(const struct listener_config *config)
{
	return MAX(config->n_flows / FLOW_WAYS, 1u);
}

int group_share_prepare(struct bpf_object *object, const struct listener_config *config)
{
	return bpf_map__set_max_entries(bpf_object__find_map_by_name(object, "choice_map"),
		(uint32_t)n_choice_sets(config));
}

int group_share_new(struct group_share **ret, struct group *group)
{
	struct bpf_object *object = group->object;
	struct group_share *share = calloc(1, sizeof(*share));

	if (!share)
		return -ENOMEM;
	share->n_cached = CID_CACHE_WAYS *
			  bpf_map__max_entries(bpf_object__find_map_by_name(object, "cid_cache"));
	share->n_choice_sets =
		bpf_map__max_entries(bpf_object__find_map_by_name(object, "choice_map"));
	share->page_map = bpf_object__find_map_fd_by_name(object, ".data.page");
	share->choice_map = bpf_object__find_map_fd_by_name(object, "choice_map");
	share->maps = group_map_memory(object, "listener_maps", SHARE_MAX * sizeof(*share->maps));
	share->slot_service = group_map_memory(object, ".data.services", INDEX_KEYS);
	share->state = group_map_memory(object, ".data.share", sizeof(*share->state));
	share->page = group_map_memory(object, ".data.page", sizeof(*share->page));
	share->cid_cache =
		group_map_memory(object, "cid_cache", share->n_cached * sizeof(*share->cid_cache));
	share->choices = group_map_memory(
		object, "choice_map", share->n_choice_sets * sizeof(*share->choices));
	if (!share->maps || !share->choices || !share->slot_service || !share->state ||
		!share->page || !share->cid_cache) {
		int error = -errno;

		group_share_free(share);
		return error;
	}
	for (uint32_t i = 0; i < SHARE_MAX && !group->inherited[GROUP_LISTENER_MAPS]; i++)
		share->maps[i].standby = INDEX_NONE;
	if (!group->inherited[GROUP_SLOT_SERVICES])
		memset(share->slot_service, SHARE_NONE, INDEX_KEYS);
	if (!group->inherited[GROUP_SHARE_STATE])
		memset(share->state->rotation_service, SHARE_NONE,
			sizeof(share->state->rotation_service));
	group->quic->rotation_service = share->state->rotation_service;
	group->quic->slot_service = share->slot_service;
	share->state->choice_mask = (uint32_t)share->n_choice_sets - 1;
	share->page->choice_mask = share->state->choice_mask;
	share->page->hash_key = group->quic->state->hash_key;
	group->slot_key[INDEX_CLASSIFIER] = INDEX_CLASSIFIER;
	group->number = SHARE_ROW;
	*ret = share;
	return 0;
}

struct group_share *group_share_free(struct group_share *share)
{
	if (!share)
		return NULL;
	if (share->maps)
		munmap(share->maps, SHARE_MAX * sizeof(*share->maps));
	if (share->slot_service)
		munmap(share->slot_service, INDEX_KEYS);
	if (share->state)
		munmap(share->state, sizeof(*share->state));
	if (share->page)
		munmap(share->page, sizeof(*share->page));
	if (share->choices)
		munmap(share->choices, share->n_choice_sets * sizeof(*share->choices));
	if (share->cid_cache)
		munmap(share->cid_cache, share->n_cached * sizeof(*share->cid_cache));
	free(share);
	return NULL;
}

static void forget_decrypted(struct group_share *share, uint16_t slot)
{
	for (size_t i = 0; i < share->n_cached; i++) {
		uint64_t seen = __atomic_load_n(&share->cid_cache[i], __ATOMIC_RELAXED);

		if (seen && (seen & CID_CACHE_SLOT) == slot)
			__atomic_compare_exchange_n(&share->cid_cache[i], &seen, 0, false,
				__ATOMIC_RELAXED, __ATOMIC_RELAXED);
	}
}

static void set_service(struct group_share *share, uint16_t slot, uint8_t service)
{
	if (share->slot_service[slot] == service)
		return;
	__atomic_store_n(&share->slot_service[slot], service, __ATOMIC_SEQ_CST);
	/* The program looks at the service before it remembers: what it remembered before goes. */
	forget_decrypted(share, slot);
}

void group_share_take_slot(struct group *group, uint16_t slot)
{
	if (group->share)
		set_service(group->share, slot, (uint8_t)group->number);
}

void group_share_leave_slot(struct group *group, uint16_t slot)
{
	if (group->share && group->share->slot_service[slot] == group->number)
		set_service(group->share, slot, SHARE_NONE);
}

bool group_share_retire(struct group *whole, uint32_t number)
{
	struct group_share *share = whole->share;

	for (uint32_t slot = 0; slot < SLOT_COUNT; slot++)
		if (share->slot_service[slot] == number &&
			group_has_socket(whole, (uint16_t)slot, NULL))
			return false;
	for (uint32_t slot = 0; slot < SLOT_COUNT; slot++)
		if (share->slot_service[slot] == number) {
			group_open_slot(whole, (uint16_t)slot, false);
			set_service(share, (uint16_t)slot, SHARE_NONE);
		}
	group_quic_forget_service(whole->quic, number);
	return true;
}

int group_share_set_classifier(struct group *whole, int fd)
{
	return group_put_socket(whole, INDEX_CLASSIFIER, fd);
}
