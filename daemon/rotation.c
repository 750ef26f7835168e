/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Keys of connection IDs change while workers run.
 *
 * WHY the order: the program in the kernel knows a new key before any worker does, and forgets an
 * old one only when no worker is left that could have made an ID with it. A worker that is never
 * told (its connection has ended, or it does not read) goes on making IDs under the old key, and
 * they are decoded as long as it lives. What is kept for that is a number for each rotation: IDs of
 * registrations only grow, so one that came later than the rotation never had the key before it.
 */
#include <stdio.h>
#include <string.h>

#include "common/format.h"
#include "common/util.h"
#include "daemon/event.h"
#include "daemon/group.h"
#include "daemon/event.h"
#include "daemon/group-quic.h"
#include "daemon/log.h"
#include "daemon/manager.h"
#include "daemon/share.h"
#include "daemon/store.h"

static bool same_key(const struct keys *a, const struct keys *b, unsigned rotation)
{
	return a->valid[rotation] && b->valid[rotation] &&
	       !memcmp(a->key[rotation], b->key[rotation], sizeof(a->key[rotation]));
}

static void set_keys(const struct listener *listener, const struct keys *keys)
{
	group_quic_set_keys(
		listener->group->quic, listener->group->number, listener->config->cid_mode, keys);
}

static void tell_workers(struct listener *listener)
{
	for (struct registration *r = listener->service->registrations; r; r = r->next)
		if (r->client)
			client_send_keys(r->client);
}

static uint32_t foreign_rotations(const struct listener *listener)
{
	const struct share *share = listener->share;
	uint32_t rotations =
		group_quic_foreign_rotations(listener->group->quic, listener->group->number);

	/* The first octet of nginx's IDs, of a socket cookie, is 0: they would all be decrypted. */
	for (uint32_t i = 0; share && i < SHARE_MAX; i++)
		if ((share->listeners[i] || share->leaving[i]) && share->mode[i] == CID_NGINX)
			rotations |= 1;
	return rotations;
}

int listener_settle_keys(
	const struct listener *listener, struct keys *keys, const char *service, char **ret_error)
{
	const char *name = listener->config->name, *share = listener->config->share;
	int result;

	if (!share || listener->config->cid_mode != CID_QUIC_LB)
		return 0;
	keys->foreign = foreign_rotations(listener);
	if (!keys->given) {
		result = keys_avoid_foreign(keys);
		if (result == -EBUSY)
			return format_error(ret_error, result,
				"no rotation of connection IDs is free for listener '%s' of service "
				"'%s': the other services of the share %s have all %d; one that "
				"changes its key needs two until the workers that had the old one "
				"have ended",
				name, service, share, KEYS_MAX);
		return result < 0
			       ? format_error(ret_error, result,
					 "cannot keep the key of listener '%s' of service '%s': %s",
					 name, service, strerror(-result))
			       : 0;
	}
	for (unsigned i = 0; i < KEYS_MAX; i++)
		if (keys->valid[i] && keys->foreign & 1u << i)
			return format_error(ret_error, -EEXIST,
				"rotation %u in %s (listener '%s' of service '%s') is in use by "
				"another service of the share %s: each needs rotations of its own",
				i,
				listener->config->key_file ? listener->config->key_file
							   : "the key file",
				name, service, share);
	return 0;
}

/* 0 also for a listener that is passed over since nobody named it. */
static int check_rotation(const struct listener *listener, bool named, char **ret_error)
{
	const char *name = listener->config->name, *service = listener->service->config->name;
	unsigned n_valid = 0;

	if (listener->config->cid_mode != CID_QUIC_LB)
		return named ? format_error(ret_error, -EOPNOTSUPP,
				       "listener '%s' of service '%s' has no key to rotate: it is "
				       "not ConnectionID=quic-lb",
				       name, service)
			     : 0;
	if (listener->keys->given)
		return format_error(ret_error, -EOPNOTSUPP,
			"the keys of listener '%s' of service '%s' come from %s: change them there "
			"and reload",
			name, service,
			listener->config->key_file ? listener->config->key_file : "a file");
	listener->keys->foreign = foreign_rotations(listener);
	for (unsigned i = 0; i < KEYS_MAX; i++)
		n_valid += listener->keys->valid[i] || listener->keys->foreign & 1u << i;
	if (n_valid == KEYS_MAX && listener->keys->foreign)
		return format_error(ret_error, -EBUSY,
			"all %d rotations of the share %s are in use, so listener '%s' of service "
			"'%s' can't change its key now: some are of keys that workers still have; "
			"replace or drain those first",
			KEYS_MAX, listener->config->share, name, service);
	if (n_valid == KEYS_MAX)
		return format_error(ret_error, -EBUSY,
			"all %d rotations of listener '%s' of service '%s' are in use, since "
			"workers live that had the oldest key; replace or drain them first",
			KEYS_MAX, name, service);
	return 1;
}

static void tell_rotated(const struct listener *listener)
{
	event_listener(EVENT_KEY_ROTATED, listener, NULL,
		"connection IDs are made under rotation %u from now on", listener->keys->current);
}

static int rotate(struct listener *listener, char **ret_error)
{
	uint8_t before = listener->keys->current;
	int result = keys_rotate(listener->keys);

	if (result < 0)
		return format_error(ret_error, result,
			"cannot keep a new key for listener '%s' of service '%s': %s%s",
			listener->config->name, listener->service->config->name, strerror(-result),
			result == -ESTALE ? " (its file was changed by another process; restart "
					    "the daemon)"
					  : "");
	listener->last_registration[before] = listener->service->manager->next_registration;
	set_keys(listener, listener->keys);
	listener->keys_version++;
	store_touch(listener->service->manager->store);
	store_commit(listener->service->manager->store);
	tell_rotated(listener);
	tell_workers(listener);
	return 0;
}

int service_rotate_keys(
	struct service *service, const char *name, unsigned *ret_n, char **ret_error)
{
	unsigned n = 0;
	bool found = false;

	service_retire_keys(service);
	for (size_t i = 0; i < service->n_listeners; i++) {
		const struct listener *listener = service->listeners[i];
		int result;

		if (!listener || (name && strcmp(listener->config->name, name) != 0))
			continue;
		found = true;
		result = check_rotation(listener, name != NULL, ret_error);
		if (result < 0)
			return result;
		n += (unsigned)result;
	}
	if (name && !found)
		return format_error(ret_error, -ENOENT, "service '%s' has no listener '%s'",
			service->config->name, name);
	if (!n)
		return format_error(ret_error, -EOPNOTSUPP,
			"service '%s' has no listener with ConnectionID=quic-lb",
			service->config->name);
	for (size_t i = 0; i < service->n_listeners; i++) {
		struct listener *listener = service->listeners[i];
		int result;

		if (!listener || (name && strcmp(listener->config->name, name) != 0) ||
			listener->config->cid_mode != CID_QUIC_LB)
			continue;
		result = rotate(listener, ret_error);
		if (result < 0)
			return result;
	}
	*ret_n = n;
	return 0;
}

/* The oldest registration of the service; UINT32_MAX: none. */
static uint32_t oldest_registration(const struct service *service)
{
	uint32_t oldest = UINT32_MAX;

	for (const struct registration *r = service->registrations; r; r = r->next)
		oldest = MIN(oldest, r->id);
	return oldest;
}

static void retire(struct listener *listener, uint8_t rotation)
{
	int result = keys_retire(listener->keys, rotation);

	store_touch(listener->service->manager->store);
	set_keys(listener, listener->keys);
	event_listener(EVENT_KEY_RETIRED, listener, NULL,
		"the key of rotation %u is gone with the last worker that had it", rotation);
	if (result < 0)
		log_warning(
			"%s: listener %s: cannot take that key off the disk: %s; the next start "
			"tries again",
			listener->service->config->name, listener->config->name, strerror(-result));
}

void service_retire_keys(struct service *service)
{
	uint32_t oldest = oldest_registration(service);

	for (size_t i = 0; i < service->n_listeners; i++) {
		struct listener *listener = service->listeners[i];

		/* Those of a file are decoded as long as the file says so: other hosts' workers
		 * may have them. */
		if (!listener || !listener->keys || listener->keys->given)
			continue;
		for (uint8_t k = 0; k < KEYS_MAX; k++)
			if (listener->keys->valid[k] && k != listener->keys->current &&
				listener->last_registration[k] < oldest)
				retire(listener, k);
	}
}

int listener_prepare_keys(
	struct listener *listener, const struct listener_config *config, char **ret_error)
{
	int result;

	listener->next_keys = keys_free(listener->next_keys);
	if (!listener->keys || (!config->key_file && !listener->keys->given))
		return 0;
	result = keys_open(&listener->next_keys, listener->service->manager->state_directory,
		listener->service->config->name, config->name, config->key_file, ret_error);
	return result < 0 ? result
			  : listener_settle_keys(listener, listener->next_keys,
				    listener->service->config->name, ret_error);
}

void listener_commit_keys(struct listener *listener)
{
	struct keys *keys = take_pointer(listener->next_keys), *old = listener->keys;
	struct keys kept;
	bool current;

	if (!keys)
		return;
	/* A rotation whose key is another one is forgotten before it is learned again. */
	kept = *keys;
	for (unsigned i = 0; i < KEYS_MAX; i++)
		kept.valid[i] = same_key(keys, old, i);
	set_keys(listener, &kept);
	set_keys(listener, keys);
	explicit_bzero(&kept, sizeof(kept));
	current = keys->current == old->current && same_key(keys, old, old->current);
	listener->keys = keys;
	keys_free(old);
	for (unsigned i = 0; i < KEYS_MAX; i++)
		listener->last_registration[i] = listener->service->manager->next_registration;
	store_touch(listener->service->manager->store);
	if (current)
		return;
	listener->keys_version++;
	tell_rotated(listener);
	tell_workers(listener);
}
