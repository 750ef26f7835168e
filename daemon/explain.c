/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Explain: where a packet to a QUIC listener would go, and why.
 *
 * The steps are those of bpf/quic.bpf.c, in its order, on its own maps, by the same header parser,
 * codec and hashes; but nothing is selected, remembered or counted. So the answer holds for the
 * moment in which it is given. Only what the program does with a packet is told: that a worker has
 * room in its socket's queue is another matter.
 */
#include "daemon/explain.h"

#include <bpf/bpf.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "bpf/quic_layout.h"
#include "common/format.h"
#include "common/util.h"
#include "daemon/group.h"
#include "daemon/group-quic.h"
#include "daemon/manager.h"

void explanation_done(struct explanation *e)
{
	free(e->datagram);
	free(e->protocols);
	free(e->reason);
}

static void conclude(struct explanation *e, const char *step, uint32_t slot, const char *format,
	...) _printf_(4, 5);
static void conclude(
	struct explanation *e, const char *step, uint32_t slot, const char *format, ...)
{
	va_list arguments;

	e->step = step;
	e->slot = slot;
	free(e->reason);
	va_start(arguments, format);
	e->reason = format_list(format, arguments);
	va_end(arguments);
}

static bool begins_connection(const struct explanation *e)
{
	return quic_begins_connection(e->packet.header.kind);
}

/* Whether the slot's socket can be selected for an ID that names the slot. */
static bool has_worker(const struct explanation *e, uint32_t slot)
{
	const struct group *group = e->listener->group;

	return slot < SLOT_COUNT && group->slot_key[slot] == slot &&
	       group_has_socket(group, (uint16_t)slot, NULL);
}

/* At most QUIC_CID_OCTETS octets as words in the order of memory, zero behind their end. */
static void load_words(const uint8_t *octets, size_t length, uint64_t words[3])
{
	memset(words, 0, 3 * sizeof(*words));
	if (length)
		memcpy(words, octets, MIN(length, (size_t)QUIC_CID_OCTETS));
}

static uint64_t hash_words(
	const struct explanation *e, const uint8_t *id, size_t length, size_t told_length)
{
	uint64_t words[3];

	load_words(id, length, words);
	return quic_hash(&e->listener->group->quic->state->hash_key, words[0], words[1],
		words[2] | QUIC_HASH_CID(told_length));
}

static uint64_t hash_id(const struct explanation *e, const uint8_t *id, size_t length)
{
	return hash_words(e, id, length, length);
}

/* Of a short header that does not tell how long its ID is, as much as is usual. */
static uint64_t hash_dcid(const struct explanation *e)
{
	const struct quic_header *header = &e->packet.header;

	if (header->long_header || header->dcid_length)
		return hash_id(e, e->packet.dcid, header->dcid_length);
	return hash_words(
		e, e->packet.dcid, MIN(e->length - 1, (size_t)QUIC_PREFIX_LONG), QUIC_PREFIX_LONG);
}

/* Of a long header: as far as it is there, and counted as empty near the end of the datagram. */
static uint64_t hash_scid(const struct explanation *e)
{
	size_t offset = (size_t)e->packet.header.dcid_offset + e->packet.header.dcid_length;

	if (offset + 1 + QUIC_CID_OCTETS > e->length)
		return hash_id(e, NULL, 0);
	return hash_id(
		e, e->datagram + offset + 1, MIN(e->datagram[offset], (size_t)QUIC_CID_OCTETS));
}

static uint64_t hash_address(const struct explanation *e)
{
	return quic_hash(&e->listener->group->quic->state->hash_key, e->address[0], e->address[1],
		QUIC_HASH_FLOW | e->port);
}

static uint64_t hash_prefix(const struct explanation *e, const uint8_t *id, uint32_t prefix)
{
	size_t length = (size_t)(e->datagram + e->length - id);
	uint64_t words[3];

	load_words(id, MIN(length, (size_t)prefix), words);
	return quic_hash(
		&e->listener->group->quic->state->hash_key, words[0], 0, QUIC_HASH_PREFIX(prefix));
}

/* The slot that the flow map has for a hash, if that has a socket; else INDEX_NONE. */
static uint32_t flow_slot(const struct explanation *e, uint64_t hash)
{
	const struct group *group = e->listener->group;
	const struct flow_set *set = &group->flows[quic_flow_set(hash) & group->head->flow_mask];
	struct timespec time;
	uint32_t now;

	/* bpf_ktime_get_coarse_ns() */
	clock_gettime(CLOCK_MONOTONIC_COARSE, &time);
	now = (uint32_t)(((uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec) >>
			 FLOW_TICK_SHIFT);
	for (unsigned i = 0; i < FLOW_WAYS; i++) {
		uint64_t word = __atomic_load_n(&set->word[i], __ATOMIC_RELAXED);
		uint32_t slot = word >> 16 & 0xffff;

		if (word >> 32 != quic_flow_tag(hash))
			continue;
		return flow_age(word, now) <= group->head->flow_timeout && has_worker(e, slot)
			       ? slot
			       : INDEX_NONE;
	}
	return INDEX_NONE;
}

static uint32_t candidate(const struct listener_table *table, uint32_t hash)
{
	return table->entries[((uint64_t)hash * table->n_entries) >> 32];
}

/* A new connection, or a packet of none; why is what led here, stolen. select_new() in BPF. */
static void conclude_by_listener_map(struct explanation *e, uint64_t hash, char *why)
{
	_cleanup_free_ char *led = why;
	const char *because = led ? led : "its connection ID names nobody";
	const struct listener_map *map = e->listener->group->listener_map;
	const struct listener_table *table = &map->tables[map->current & 1];
	uint32_t n = table->n_active, hash32 = quic_listener_hash(hash), slot;
	const char *what = begins_connection(e)
				   ? "it begins a connection"
				   : "an active worker answers it, with a stateless reset";

	if (n) {
		slot = candidate(table, hash32);
		if (map->current & LISTENER_LOADS) {
			uint32_t second = candidate(table, SECOND_HASH(hash32));

			if (map->load[second] < map->load[slot])
				slot = second;
		}
		if (group_has_socket(e->listener->group, (uint16_t)slot, NULL)) {
			conclude(e, begins_connection(e) ? "listener" : "stray", slot,
				"%s; %s: chosen by the listener map", because, what);
			return;
		}
	}
	for (uint32_t i = 0; i < FALLBACK_TRIES && i < n; i++) {
		slot = table->active[(hash32 % n + i) % n];
		if (!group_has_socket(e->listener->group, (uint16_t)slot, NULL))
			continue;
		conclude(e, "fallback", slot,
			"%s; %s: another active worker, since the socket of the listener map's "
			"choice is gone",
			because, what);
		return;
	}
	if (map->standby != INDEX_NONE)
		conclude(e, "standby", INDEX_NONE,
			"%s; no worker is active: it waits for the next one", because);
	else
		conclude(e, "dropped", INDEX_NONE,
			"%s; no worker is active, and the listener has no standby: refused",
			because);
}

/*
 * Modes quic-lb and quic-lb-plain. True: the ID decides. Else *ret_why may be why it does not, to
 * free.
 */
static bool explain_own_id(struct explanation *e, char **ret_why)
{
	const struct quic_state *state = e->listener->group->quic->state;
	const uint8_t *dcid = e->packet.dcid;
	uint8_t server_id[QUIC_SERVER_ID_LENGTH];
	uint32_t rotation, host, slot;

	if (e->packet.header.dcid_length == 0)
		return false;
	rotation = quic_lb_rotation(dcid[0]);
	if (!(state->rotations >> rotation & 1) ||
		quic_lb_decode(&state->config[rotation], dcid, e->packet.header.dcid_length,
			server_id, NULL) < 0 ||
		server_id[2] || server_id[3])
		return false;
	e->rotation = rotation;
	host = (uint32_t)server_id[0] << 8 | server_id[1];
	slot = (uint32_t)server_id[4] << 8 | server_id[5];
	if (host << 16 != state->server) {
		if (asprintf(ret_why, "its connection ID names slot %u of host %u, and this is %u",
			    slot, host, state->server >> 16) < 0)
			*ret_why = NULL;
		return false;
	}
	if (!explain_may_name(e, rotation, slot)) {
		if (asprintf(ret_why,
			    "its connection ID names slot %u, which is another service's than the "
			    "key",
			    slot) < 0)
			*ret_why = NULL;
		return false;
	}
	if (!has_worker(e, slot)) {
		if (asprintf(ret_why, "its connection ID names slot %u, where no worker is", slot) <
			0)
			*ret_why = NULL;
		return false;
	}
	conclude(e, "connection-id", slot, "its connection ID names slot %u", slot);
	return true;
}

static bool explain_registered_as(struct explanation *e, size_t length)
{
	const struct group_quic *quic = e->listener->group->quic;
	struct dcid_key key = {.length = (uint8_t)length};
	uint32_t slot;

	memcpy(key.octet, e->packet.dcid, MIN(length, sizeof(key.octet)));
	if (bpf_map_lookup_elem(quic->dcid_map, &key, &slot) < 0 || !has_worker(e, slot))
		return false;
	conclude(e, "connection-id", slot, "its connection ID was registered for slot %u", slot);
	return true;
}

static bool explain_registered_id(struct explanation *e)
{
	const struct quic_state *state = e->listener->group->quic->state;

	if (e->packet.header.long_header)
		return explain_registered_as(e, e->packet.header.dcid_length);
	for (unsigned i = 0; i < QUIC_CID_LENGTHS; i++) {
		size_t length = state->cid_length[i];

		if (length == 0 || e->length < 1 + length)
			continue;
		if (explain_registered_as(e, length))
			return true;
	}
	return false;
}

static bool explain_cookie(struct explanation *e)
{
	uint64_t words[3], cookie;
	uint32_t slot;

	load_words(e->packet.dcid, e->packet.header.dcid_length, words);
	cookie = be64toh(words[0]);
	if (bpf_map_lookup_elem(e->listener->group->quic->cookie_map, &cookie, &slot) < 0 ||
		!has_worker(e, slot))
		return false;
	conclude(e, "connection-id", slot,
		"its connection ID begins with the cookie of the socket of slot %u", slot);
	return true;
}

/* Opaque: a connection that is known by its address. */
static bool explain_known_address(struct explanation *e, uint64_t address)
{
	uint32_t slot = flow_slot(e, address);

	if (slot == INDEX_NONE)
		return false;
	conclude(
		e, "flow", slot, "what came from this address and port before is at slot %u", slot);
	return true;
}

/* Opaque: by so many octets of the connection ID. */
static bool explain_learned_id(struct explanation *e, uint32_t prefix)
{
	uint32_t slot = flow_slot(e, hash_prefix(e, e->packet.dcid, prefix));

	if (slot == INDEX_NONE)
		return false;
	conclude(e, "flow", slot,
		"its connection ID was seen to belong to slot %u (by %u octets of it)", slot,
		prefix);
	return true;
}

static bool explain_handshake(struct explanation *e, uint64_t address)
{
	uint32_t slot = flow_slot(e, quic_hash_handshake(address, hash_scid(e)));

	if (slot == INDEX_NONE)
		return false;
	conclude(e, "flow", slot,
		"this client's handshake with this source connection ID is at slot %u", slot);
	return true;
}

/* Opaque: what was learned of IDs and addresses. */
static void explain_opaque(struct explanation *e)
{
	uint64_t address = hash_address(e);

	if (e->packet.header.long_header ? explain_handshake(e, address)
					 : explain_learned_id(e, QUIC_PREFIX_LONG) ||
						   explain_known_address(e, address) ||
						   explain_learned_id(e, QUIC_PREFIX_SHORT))
		return;
	conclude_by_listener_map(
		e, address, strdup("nothing is known of this address and connection ID"));
}

static bool reads(const struct explanation *e, enum cid_mode mode)
{
	return explain_modes(e) & 1u << mode;
}

static bool explain_id(struct explanation *e, char **ret_why)
{
	if ((reads(e, CID_QUIC_LB) || reads(e, CID_QUIC_LB_PLAIN)) && explain_own_id(e, ret_why))
		return true;
	return (reads(e, CID_NGINX) && explain_cookie(e)) ||
	       (reads(e, CID_REGISTERED) && explain_registered_id(e));
}

/* As far as the program knows it. */
static uint8_t short_length(const struct explanation *e)
{
	if (e->listener->share)
		return reads(e, CID_NGINX) || reads(e, CID_REGISTERED) ? 0 : QUIC_CID_LENGTH;
	return quic_short_dcid_length(e->listener->config->cid_mode);
}

static void explain_unknown(struct explanation *e, char *why)
{
	uint32_t slot = begins_connection(e) ? flow_slot(e, e->hash) : INDEX_NONE;
	char *share = NULL;

	if (slot != INDEX_NONE) {
		free(why);
		conclude(e, "flow", slot, "the handshake with this connection ID is at slot %u",
			slot);
		return;
	}
	if (e->listener->share && !begins_connection(e))
		explain_stray_service(e, e->rotation);
	else if (e->listener->share && !explain_new_service(e, &share)) {
		conclude(e, "classifier", INDEX_NONE, "%s", share ? share : "");
		free(share);
		free(why);
		return;
	}
	if (share) {
		free(why);
		why = share;
	}
	conclude_by_listener_map(e, e->hash, why);
}

void explain_packet(struct explanation *e)
{
	char *why = NULL;

	e->rotation = UINT32_MAX;
	e->packet = quic_read_packet(e->datagram, e->length, short_length(e));
	if (e->packet.header.kind == QUIC_INVALID) {
		conclude(e, "invalid", INDEX_NONE,
			"it ends before its destination connection ID does: dropped in silence");
		return;
	}
	e->hash = hash_dcid(e);
	if (reads(e, CID_OPAQUE))
		explain_opaque(e);
	else if (!explain_id(e, &why))
		explain_unknown(e, why);
	explain_settle_service(e);
}
