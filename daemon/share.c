/* SPDX-License-Identifier: BSD-2-Clause */
#include "daemon/share.h"

#include <stdio.h>
#include <string.h>

#include "classify/share-rules.h"
#include "common/util.h"
#include "daemon/classifier.h"
#include "daemon/group-quic.h"
#include "daemon/group-share.h"
#include "daemon/guard.h"
#include "daemon/log.h"
#include "daemon/manager.h"
#include "daemon/share-compile.h"
#include "daemon/state-config.h"
#include "daemon/store.h"

static struct share *share_free(struct share *share)
{
	if (!share)
		return NULL;
	classifier_free(share->classifier);
	group_free(share->group);
	listener_config_free(share->config);
	free(share->rules);
	free(share);
	return NULL;
}

struct share *share_find(const struct manager *manager, uint32_t number)
{
	for (struct share *share = manager->shares; share; share = share->next)
		if (share->number == number)
			return share;
	return NULL;
}

static struct group_place place_of(const struct manager *manager, uint32_t number)
{
	return (struct group_place){
		.number = number,
		.ring = manager->ring_map,
		.store = manager->store,
		.guard = guard_map(manager->guard),
	};
}

static struct share *allocate(
	struct manager *manager, const struct listener_config *config, uint32_t number)
{
	struct share *share = calloc(1, sizeof(*share));

	if (!share)
		return NULL;
	share->manager = manager;
	share->number = number;
	share->config = listener_config_copy(config);
	return share->config ? share : share_free(share);
}

static int open_share(struct share **ret, struct manager *manager,
	const struct listener_config *config, char **ret_error)
{
	struct share *share = allocate(manager, config, manager->next_listener++);
	struct group_place place;
	int result;

	if (!share)
		return -ENOMEM;
	place = place_of(manager, share->number);
	result = group_new(&share->group, config, &place, ret_error);
	if (result < 0) {
		share_free(share);
		return result;
	}
	share->next = manager->shares;
	manager->shares = share;
	*ret = share;
	return 0;
}

static struct share *find_same(const struct manager *manager, const struct listener_config *config)
{
	for (struct share *share = manager->shares; share; share = share->next)
		if (strcmp(share->config->share, config->share) == 0 &&
			listener_config_same_socket(share->config, config))
			return share;
	return NULL;
}

/* Of a share that nobody is in any more: it ends. */
static void close_if_empty(struct share *share)
{
	struct share **link = &share->manager->shares;

	for (uint32_t i = 0; i < SHARE_MAX; i++)
		if (share->listeners[i])
			return;
	while (*link != share)
		link = &(*link)->next;
	*link = share->next;
	share_free(share);
}

static void take_place(struct share *share, struct listener *listener, uint32_t place)
{
	listener->share = share;
	share->listeners[place] = listener;
	share->mode[place] = listener->config->cid_mode;
}

int share_join(struct manager *manager, struct listener *listener, char **ret_error)
{
	const struct listener_config *config = listener->config;
	struct share *share = find_same(manager, config);
	uint32_t place = 0;
	int result;

	if (!share) {
		result = open_share(&share, manager, config, ret_error);
		if (result < 0)
			return result;
	}
	while (place < SHARE_MAX && (share->listeners[place] || share->leaving[place]))
		place++;
	if (place == SHARE_MAX) {
		if (asprintf(ret_error,
			    "listener %s has no place in the share %s: it has %d, those of "
			    "listeners that left it are free when the last of their workers has "
			    "ended",
			    config->name, config->share, SHARE_MAX) < 0)
			*ret_error = NULL;
		return -EBUSY;
	}
	result = group_join(&listener->group, share->group, place, config);
	if (result < 0) {
		close_if_empty(share);
		return result;
	}
	take_place(share, listener, place);
	return 0;
}

void share_leave(struct listener *listener)
{
	struct share *share = listener->share;
	uint32_t place = listener->group->number;

	listener->group = group_free(listener->group);
	listener->share = NULL;
	share->listeners[place] = NULL;
	/* When the daemon ends, all stays as it is. */
	if (!store_is_frozen(share->manager->store))
		share->leaving[place] = !group_share_retire(share->group, place);
	close_if_empty(share);
}

static void publish(struct share *share)
{
	struct share_state *state = share->group->share->state;
	uint32_t modes = 0;

	for (uint32_t i = 0; i < SHARE_MAX; i++) {
		if (share->listeners[i] || share->leaving[i])
			modes |= 1u << share->mode[i];
		if (share->listeners[i] && share->listeners[i]->config->match_default)
			__atomic_store_n(&state->default_service, i, __ATOMIC_RELAXED);
	}
	__atomic_store_n(&state->modes, modes, __ATOMIC_RELAXED);
}

static void update_rules(struct share *share)
{
	const struct listener_config *configs[SHARE_MAX] = {NULL};
	struct share_rules *rules = NULL;
	int result;

	for (uint32_t i = 0; i < SHARE_MAX; i++)
		if (share->listeners[i])
			configs[i] = share->listeners[i]->config;
	result = share_rules_compile(&rules, configs);
	if (result < 0) {
		log_warning("cannot compile the rules of the share %s: %s; those before hold",
			share->config->share, strerror(-result));
		return;
	}
	if (share->rules && share->rules->size == rules->size &&
		memcmp(share->rules, rules, rules->size) == 0) {
		free(rules);
		return;
	}
	free(share->rules);
	share->rules = rules;
	classifier_set_rules(share->classifier, rules);
}

void shares_update(struct manager *manager)
{
	for (struct share *share = manager->shares; share; share = share->next) {
		publish(share);
		update_rules(share);
		if (!share->classifier)
			classifier_new(&share->classifier, share);
	}
}

void shares_tick(struct manager *manager)
{
	for (struct share *share = manager->shares; share; share = share->next) {
		for (uint32_t i = 0; i < SHARE_MAX; i++)
			if (share->leaving[i] && group_share_retire(share->group, i)) {
				share->leaving[i] = false;
				publish(share);
				store_touch(manager->store);
			}
		if (share->classifier)
			classifier_tick(share->classifier);
	}
}

void shares_stop(struct manager *manager)
{
	for (struct share *share = manager->shares; share; share = share->next)
		for (uint32_t slot = 0; slot < SLOT_COUNT; slot++)
			share->goes_on = share->goes_on ||
					 (manager->slots[slot] && group_has_socket(share->group,
									  (uint16_t)slot, NULL));
}

static void collect_place(const struct share *share, uint32_t place, bool *open, bool *held)
{
	const struct listener *listener = share->listeners[place];
	const struct group *group = listener->group;

	for (uint32_t slot = 0; slot < SLOT_COUNT; slot++) {
		const struct worker *worker = share->manager->slots[slot];

		if (!worker || worker->registration->service != listener->service ||
			!(worker->present & 1ULL << listener->index))
			continue;
		held[slot] = true;
		open[slot] = worker->state != WORKER_JOINING;
	}
	if (group->standby >= 0 && group->standby_index < SLOT_COUNT) {
		held[group->standby_index] = true;
		open[group->standby_index] = group->standby_lent;
	}
}

void share_collect(const struct share *share, bool *open, bool *held)
{
	const uint8_t *service = share->group->share->slot_service;

	memset(open, 0, SLOT_COUNT * sizeof(*open));
	memset(held, 0, SLOT_COUNT * sizeof(*held));
	for (uint32_t i = 0; i < SHARE_MAX; i++)
		if (share->listeners[i])
			collect_place(share, i, open, held);
	for (uint32_t slot = 0; slot < SLOT_COUNT; slot++)
		if (service[slot] < SHARE_MAX && share->leaving[service[slot]])
			held[slot] = open[slot] = true;
}

json_t *shares_to_json(const struct manager *manager)
{
	json_t *json = json_array();

	for (const struct share *share = manager->shares; share; share = share->next) {
		json_t *leaving = json_array();

		for (uint32_t i = 0; i < SHARE_MAX; i++)
			json_array_append_new(
				leaving, json_integer(share->leaving[i] ? share->mode[i] : 0));
		json_array_append_new(
			json, json_pack("{s:I, s:o, s:o, s:o}", "number", (json_int_t)share->number,
				      "config", listener_config_to_json(share->config), "group",
				      group_to_json(share->group), "leaving", leaving));
	}
	return json;
}

static int resume_share(struct manager *manager, const json_t *json, char **ret_error)
{
	uint32_t number = (uint32_t)json_integer_value(json_object_get(json, "number"));
	const json_t *leaving = json_object_get(json, "leaving");
	struct group_place place = place_of(manager, number);
	struct listener_config *config = NULL;
	struct share *share;
	int result = listener_config_from_json(&config, json_object_get(json, "config"));

	if (result < 0)
		return result;
	share = config->share ? allocate(manager, config, number) : NULL;
	listener_config_free(config);
	if (!share)
		return -ENOMEM;
	result = group_resume(
		&share->group, share->config, &place, json_object_get(json, "group"), ret_error);
	if (result < 0) {
		share_free(share);
		return result;
	}
	for (uint32_t i = 0; i < SHARE_MAX; i++) {
		share->mode[i] = (enum cid_mode)json_integer_value(json_array_get(leaving, i));
		share->leaving[i] = share->mode[i] != CID_NONE;
	}
	share->next = manager->shares;
	manager->shares = share;
	return 0;
}

int shares_resume(struct manager *manager, const json_t *json, char **ret_error)
{
	const json_t *share;
	size_t i;

	json_array_foreach(json, i, share)
	{
		int result = resume_share(manager, share, ret_error);

		if (result < 0)
			return result;
	}
	return 0;
}

int share_resume_listener(
	struct listener *listener, uint32_t number, uint32_t place, const json_t *group)
{
	struct share *share = share_find(listener->service->manager, number);
	int result;

	if (!share || place >= SHARE_MAX || share->listeners[place])
		return -EBADMSG;
	result =
		group_resume_joined(&listener->group, share->group, place, listener->config, group);
	if (result >= 0)
		take_place(share, listener, place);
	return result;
}
