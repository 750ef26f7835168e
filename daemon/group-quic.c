/* SPDX-License-Identifier: BSD-2-Clause */
#include "daemon/group-quic.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>

#include "bpf/share_layout.h"
#include "common/util.h"

#ifndef SO_COOKIE
#define SO_COOKIE 57
#endif

#define NO_ROTATION 0xff

static int set_entries(struct bpf_object *object, const char *name, uint32_t entries)
{
	return bpf_map__set_max_entries(bpf_object__find_map_by_name(object, name), entries);
}

/* Of the programs of the object, the one for the mode. */
static int choose_program(struct bpf_object *object, enum cid_mode mode)
{
	static const char *const names[] = {
		[CID_QUIC_LB] = "quic_lb",
		[CID_QUIC_LB_PLAIN] = "quic_lb_plain",
		[CID_REGISTERED] = "registered",
		[CID_NGINX] = "nginx",
		[CID_OPAQUE] = "opaque",
	};
	struct bpf_program *program;
	bool found = false;

	bpf_object__for_each_program(program, object)
	{
		bool wanted = strcmp(bpf_program__name(program), names[mode]) == 0;

		bpf_program__set_autoload(program, wanted);
		found |= wanted;
	}
	return found ? 0 : -EINVAL;
}

/* Two places for each ID there may be: nearly all find room in their set. */
static uint32_t n_dcid_sets(const struct listener_config *config)
{
	if (config->cid_mode != CID_REGISTERED && !config->share)
		return 1;
	return MAX(config->n_flows / DCID_CACHE_WAYS, 1u) * 2;
}

/* Half as many IDs as Flows=, two a set. */
static uint32_t n_cid_sets(const struct listener_config *config)
{
	return MAX(config->n_flows / 2, LISTENER_FLOWS_MIN) / CID_CACHE_WAYS;
}

int group_quic_prepare(struct bpf_object *object, const struct listener_config *config)
{
	struct bpf_map *map = bpf_object__find_map_by_name(object, ".rodata.settings");
	struct quic_settings *settings;
	bool all = config->share;
	uint32_t n_cached = all || config->cid_mode == CID_QUIC_LB ? n_cid_sets(config) : 1;
	size_t size;
	int result;

	settings = (struct quic_settings *)bpf_map__initial_value(map, &size);
	if (!settings || size < sizeof(*settings))
		return -EINVAL;
	settings->cid_cache_mask = n_cached - 1;
	settings->dcid_cache_mask = n_dcid_sets(config) - 1;
	result = all ? 0 : choose_program(object, config->cid_mode);
	if (result >= 0)
		result = set_entries(object, "cid_cache", n_cached);
	if (result >= 0 && (all || config->cid_mode == CID_REGISTERED))
		result = set_entries(object, "dcid_map", config->n_flows);
	/* Whether there will be any is not known yet: memory for those that are. */
	if (result >= 0 && all)
		result = bpf_map__set_map_flags(
			bpf_object__find_map_by_name(object, "dcid_map"), BPF_F_NO_PREALLOC);
	if (result >= 0)
		result = set_entries(object, "dcid_cache", n_dcid_sets(config));
	if (result >= 0 && (all || config->cid_mode == CID_NGINX))
		result = set_entries(object, "cookie_map", SLOT_COUNT);
	return result;
}

int group_quic_new(struct group_quic **ret, struct bpf_object *object,
	const struct listener_config *config, bool inherited)
{
	struct group_quic *quic = calloc(1, sizeof(*quic));
	void *memory;

	if (!quic)
		return -ENOMEM;
	memory = mmap(NULL, sizeof(*quic->state), PROT_READ | PROT_WRITE, MAP_SHARED,
		bpf_object__find_map_fd_by_name(object, ".data.quic"), 0);
	if (memory == MAP_FAILED) {
		free(quic);
		return -errno;
	}
	quic->state = memory;
	if (config->share || config->cid_mode == CID_REGISTERED) {
		quic->n_sets = n_dcid_sets(config);
		memory = mmap(NULL, quic->n_sets * sizeof(*quic->sets), PROT_READ | PROT_WRITE,
			MAP_SHARED, bpf_object__find_map_fd_by_name(object, "dcid_cache"), 0);
		if (memory == MAP_FAILED) {
			int error = -errno;

			group_quic_free(quic);
			return error;
		}
		quic->sets = memory;
	}
	quic->dcid_map = bpf_object__find_map_fd_by_name(object, "dcid_map");
	quic->cookie_map = bpf_object__find_map_fd_by_name(object, "cookie_map");
	quic->mode = config->share ? CID_NONE : config->cid_mode;
	quic->max_cids = quic->sets ? config->n_flows : 0;
	quic->state->server = (uint32_t)config->host_id << 16;
	/* What is hashed under the key must be found again. */
	if (!inherited && getrandom(&quic->state->hash_key, sizeof(quic->state->hash_key), 0) !=
				  (ssize_t)sizeof(quic->state->hash_key)) {
		group_quic_free(quic);
		return -EIO;
	}
	*ret = quic;
	return 0;
}

struct group_quic *group_quic_free(struct group_quic *quic)
{
	if (quic)
		munmap(quic->state, sizeof(*quic->state));
	if (quic && quic->sets)
		munmap(quic->sets, quic->n_sets * sizeof(*quic->sets));
	free(quic);
	return NULL;
}

static bool is_of(const struct group_quic *quic, unsigned rotation, uint32_t number)
{
	return !quic->rotation_service || quic->rotation_service[rotation] == number;
}

uint32_t group_quic_foreign_rotations(const struct group_quic *quic, uint32_t number)
{
	uint32_t rotations = 0;

	for (unsigned i = 0; i < KEYS_MAX; i++)
		if (quic->state->rotations & 1u << i && !is_of(quic, i, number))
			rotations |= 1u << i;
	return rotations;
}

void group_quic_set_keys(
	struct group_quic *quic, uint32_t number, enum cid_mode mode, const struct keys *keys)
{
	struct quic_state *state = quic->state;
	uint32_t rotations = group_quic_foreign_rotations(quic, number);

	if (quic->rotation_service && mode != CID_QUIC_LB)
		return;
	for (unsigned i = 0; i < KEYS_MAX; i++)
		if (keys->valid[i])
			rotations |= 1u << i;
	/* What is no longer valid goes first, and what is new comes when its key is there: a packet
	 * in between finds an old key, a new one, or none. A key in use is not written to. */
	__atomic_and_fetch(&state->rotations, rotations, __ATOMIC_SEQ_CST);
	for (unsigned i = 0; i < KEYS_MAX; i++) {
		struct quic_lb_config config;

		if (!keys->valid[i] || state->rotations & 1u << i)
			continue;
		quic_lb_configure(&config, i, QUIC_SERVER_ID_LENGTH, QUIC_NONCE_LENGTH,
			mode == CID_QUIC_LB ? keys->key[i] : NULL);
		state->config[i] = config;
		if (quic->rotation_service)
			quic->rotation_service[i] = (uint8_t)number;
	}
	__atomic_store_n(&state->rotations, rotations, __ATOMIC_SEQ_CST);
}

void group_quic_forget_service(struct group_quic *quic, uint32_t number)
{
	__atomic_and_fetch(&quic->state->rotations, group_quic_foreign_rotations(quic, number),
		__ATOMIC_SEQ_CST);
}

int group_quic_add_socket(struct group_quic *quic, enum cid_mode mode, int fd, uint16_t slot)
{
	uint32_t value = slot;
	uint64_t cookie;
	socklen_t length = sizeof(cookie);

	if (mode != CID_NGINX)
		return 0;
	if (getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &length) < 0)
		return -errno;
	return bpf_map_update_elem(quic->cookie_map, &cookie, &value, BPF_ANY) < 0 ? -errno : 0;
}

static int length_index(const struct group_quic *quic, uint8_t length)
{
	for (int i = 0; i < QUIC_CID_LENGTHS; i++)
		if (quic->state->cid_length[i] == length)
			return i;
	return -1;
}

static void set_length(struct group_quic *quic, int index, uint8_t length)
{
	uint8_t octets[3 * sizeof(uint64_t)] = {0};
	uint32_t last;

	quic->state->cid_length[index] = length;
	if (index)
		return;
	memset(octets, 0xff, length);
	memcpy(quic->state->dcid_mask, octets, 2 * sizeof(uint64_t));
	memcpy(&last, octets + 2 * sizeof(uint64_t), sizeof(last));
	quic->state->dcid_mask[2] = last;
}

/* The word in the set of this hash that has its check, or is free when hash is 0; else NULL. */
static __u64 *find_word(const struct group_quic *quic, uint64_t place, uint64_t hash)
{
	struct dcid_set *set = &quic->sets[place & (quic->n_sets - 1)];

	for (size_t way = 0; way < DCID_CACHE_WAYS; way++)
		if (hash ? (set->word[way] ^ hash) <= CID_CACHE_SLOT : set->word[way] == 0)
			return &set->word[way];
	return NULL;
}

static uint64_t hash_of(const struct group_quic *quic, const struct dcid_key *key)
{
	uint64_t word[2];
	uint32_t last;

	memcpy(word, key->octet, sizeof(word));
	memcpy(&last, key->octet + sizeof(word), sizeof(last));
	return quic_hash(
		&quic->state->hash_key, word[0], word[1], last | QUIC_HASH_CID(key->length));
}

/* Two IDs that can't be told apart there, once in 2^32 pairs at most, are left to the map. */
static void cache_one(const struct group_quic *quic, const struct dcid_key *key, uint16_t slot)
{
	uint64_t hash = hash_of(quic, key);
	__u64 *word = find_word(quic, hash, hash);

	if (word) {
		__atomic_store_n(word, 0, __ATOMIC_RELAXED);
		return;
	}
	word = find_word(quic, hash, 0);
	if (word)
		__atomic_store_n(word, (hash & ~CID_CACHE_SLOT) | slot, __ATOMIC_RELAXED);
}

static void forget_one(struct group_quic *quic, uint16_t slot, const struct dcid_key *key)
{
	uint64_t hash = hash_of(quic, key);
	__u64 *word = find_word(quic, hash, hash);
	int i = length_index(quic, key->length);

	if (word)
		__atomic_store_n(word, 0, __ATOMIC_RELAXED);
	quic->n_cids--;
	quic->n_of_slot[slot]--;
	if (quic->slot_service)
		quic->n_of_service[quic->slot_service[slot]]--;
	if (i >= 0 && --quic->n_of_length[i] == 0)
		set_length(quic, i, 0);
}

/* Deletes the entries of a hash map whose value is slot. key_size is at most that of dcid_key. */
static void delete_slot(struct group_quic *quic, int map, uint16_t slot)
{
	struct dcid_key key, next;
	bool more = bpf_map_get_next_key(map, NULL, &key) == 0;

	while (more) {
		uint32_t value;

		more = bpf_map_get_next_key(map, &key, &next) == 0;
		if (bpf_map_lookup_elem(map, &key, &value) == 0 && value == slot &&
			bpf_map_delete_elem(map, &key) == 0 && map == quic->dcid_map)
			forget_one(quic, slot, &key);
		key = next;
	}
}

void group_quic_remove_slot(struct group_quic *quic, uint16_t slot)
{
	if (quic->mode == CID_NGINX || quic->mode == CID_NONE)
		delete_slot(quic, quic->cookie_map, slot);
	if (quic->n_cids)
		delete_slot(quic, quic->dcid_map, slot);
}

static struct dcid_key key_of(const struct protocol_cid *cid)
{
	struct dcid_key key = {.length = cid->length};

	memcpy(key.octet, cid->id, MIN(cid->length, QUIC_CID_OCTETS));
	return key;
}

static void count_service(struct group_quic *quic, uint16_t slot, uint8_t length)
{
	if (!quic->slot_service)
		return;
	quic->n_of_service[quic->slot_service[slot]]++;
	quic->length_of_service[quic->slot_service[slot]] = length;
}

/* 1: added; 0: it was the slot's already. */
static int add_one(struct group_quic *quic, uint16_t slot, const struct protocol_cid *cid)
{
	const struct dcid_key key = key_of(cid);
	const uint8_t *service = quic->slot_service ? &quic->slot_service[slot] : NULL;
	uint32_t value = slot, holder;
	int index;

	if (cid->length < 1 || cid->length > QUIC_CID_OCTETS)
		return -EINVAL;
	if (bpf_map_lookup_elem(quic->dcid_map, &key, &holder) == 0)
		return holder == slot ? 0 : -EEXIST;
	if (quic->n_cids >= quic->max_cids)
		return -EDQUOT;
	if (quic->n_of_slot[slot] >= quic->max_cids / 2)
		return -ENOSPC;
	index = length_index(quic, cid->length);
	if (index < 0)
		index = length_index(quic, 0);
	if (index < 0)
		return -EMLINK;
	if (service && quic->n_of_service[*service] >= quic->max_cids / SHARE_MAX)
		return -ENOSPC;
	if (service && quic->n_of_service[*service] &&
		quic->length_of_service[*service] != cid->length)
		return -EMLINK;
	if (bpf_map_update_elem(quic->dcid_map, &key, &value, BPF_NOEXIST) < 0)
		return errno == E2BIG ? -EDQUOT : -errno;
	set_length(quic, index, cid->length);
	quic->n_of_length[index]++;
	quic->n_cids++;
	cache_one(quic, &key, slot);
	quic->n_of_slot[slot]++;
	count_service(quic, slot, cid->length);
	return 1;
}

int group_quic_add_cids(struct group_quic *quic, uint16_t slot, const struct protocol_cid *cids,
	size_t n_cids, size_t *ret_failed)
{
	uint8_t added[PROTOCOL_CIDS_MAX] = {0};

	for (size_t i = 0; i < n_cids; i++) {
		int result = add_one(quic, slot, &cids[i]);

		if (result < 0) {
			for (size_t k = 0; k < i; k++)
				if (added[k])
					group_quic_retire_cids(quic, slot, &cids[k], 1);
			*ret_failed = i;
			return result;
		}
		added[i] = (uint8_t)result;
	}
	return 0;
}

size_t group_quic_retire_cids(
	struct group_quic *quic, uint16_t slot, const struct protocol_cid *cids, size_t n_cids)
{
	size_t n = 0;

	for (size_t i = 0; i < n_cids; i++) {
		const struct dcid_key key = key_of(&cids[i]);
		uint32_t holder;

		if (bpf_map_lookup_elem(quic->dcid_map, &key, &holder) < 0 || holder != slot ||
			bpf_map_delete_elem(quic->dcid_map, &key) < 0)
			continue;
		forget_one(quic, slot, &key);
		n++;
	}
	return n;
}

/* The entries that name a slot which nobody has. */
static void delete_unheld(struct group_quic *quic, int map, const bool *held)
{
	struct dcid_key key, next;
	bool more = bpf_map_get_next_key(map, NULL, &key) == 0;

	while (more) {
		uint32_t value;

		more = bpf_map_get_next_key(map, &key, &next) == 0;
		if (bpf_map_lookup_elem(map, &key, &value) == 0 &&
			(value >= SLOT_COUNT || !held[value]))
			bpf_map_delete_elem(map, &key);
		key = next;
	}
}

/* Counts, lengths and the cache say again what the map does. */
static void count_cids(struct group_quic *quic)
{
	struct dcid_key key, next;
	bool more = bpf_map_get_next_key(quic->dcid_map, NULL, &key) == 0;

	for (uint32_t i = 0; i < quic->n_sets; i++)
		for (size_t way = 0; way < DCID_CACHE_WAYS; way++)
			__atomic_store_n(&quic->sets[i].word[way], 0, __ATOMIC_RELAXED);
	quic->n_cids = 0;
	memset(quic->n_of_length, 0, sizeof(quic->n_of_length));
	memset(quic->n_of_slot, 0, sizeof(quic->n_of_slot));
	memset(quic->n_of_service, 0, sizeof(quic->n_of_service));
	while (more) {
		uint32_t slot;
		int index = length_index(quic, key.length);

		if (index < 0)
			index = length_index(quic, 0);
		if (index >= 0 && bpf_map_lookup_elem(quic->dcid_map, &key, &slot) == 0) {
			set_length(quic, index, key.length);
			quic->n_of_length[index]++;
			quic->n_cids++;
			quic->n_of_slot[slot]++;
			count_service(quic, (uint16_t)slot, key.length);
			cache_one(quic, &key, (uint16_t)slot);
		}
		more = bpf_map_get_next_key(quic->dcid_map, &key, &next) == 0;
		key = next;
	}
	for (int i = 0; i < QUIC_CID_LENGTHS; i++)
		if (!quic->n_of_length[i])
			set_length(quic, i, 0);
}

void group_quic_reconcile(struct group_quic *quic, const bool *held)
{
	if (quic->mode == CID_NGINX || quic->mode == CID_NONE)
		delete_unheld(quic, quic->cookie_map, held);
	if (quic->mode != CID_REGISTERED && quic->mode != CID_NONE)
		return;
	delete_unheld(quic, quic->dcid_map, held);
	count_cids(quic);
}
