/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What a group has more when its listener is QUIC: the keys by which its program reads connection
 * IDs, the IDs that servers registered, the cookies of their sockets.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "bpf/layout.h"
#include "bpf/quic_layout.h"
#include "daemon/config.h"
#include "daemon/keys.h"
#include "proto/protocol.h"

struct bpf_object;

struct group_quic {
	struct quic_state *state; /* mapped, shared with the program */
	int dcid_map;             /* registered */
	struct dcid_set *sets;    /* what stands before it: mapped, NULL in other modes */
	size_t n_sets;
	int cookie_map;     /* nginx */
	enum cid_mode mode; /* CID_NONE: the listener is shared, and each service has its own */
	/* Then, mapped: whose each rotation and each slot is. */
	uint8_t *rotation_service, *slot_service;
	uint32_t max_cids;                      /* entries of dcid_map */
	uint32_t n_cids;                        /* of these, registered now */
	uint32_t n_of_length[QUIC_CID_LENGTHS]; /* by the index of state->cid_length */
	uint32_t n_of_slot[SLOT_COUNT];         /* of n_cids */
	uint32_t n_of_service[UINT8_MAX + 1];   /* the same, shared */
	uint8_t length_of_service[UINT8_MAX + 1];
};

/* Sets sizes and mode before the object is loaded. */
int group_quic_prepare(struct bpf_object *object, const struct listener_config *config);
/* Afterwards: maps what is shared. inherited: an earlier daemon's is gone on with. */
int group_quic_new(struct group_quic **ret, struct bpf_object *object,
	const struct listener_config *config, bool inherited);
/* Forgets what names slots that nobody has, and counts what is left. */
void group_quic_reconcile(struct group_quic *quic, const bool *held);
/* NULL is allowed. */
struct group_quic *group_quic_free(struct group_quic *quic);

/*
 * The program decodes the IDs of every valid key from now on, and no others; on a shared listener:
 * of the service with this number. mode is that of its IDs. No rotation may be another's:
 * group_quic_foreign_rotations().
 */
void group_quic_set_keys(
	struct group_quic *quic, uint32_t number, enum cid_mode mode, const struct keys *keys);
/* Shared: bit i: rotation i is another service's, or of no use on this listener. Else 0. */
uint32_t group_quic_foreign_rotations(const struct group_quic *quic, uint32_t number);
/* Shared: none of its rotations is decoded any more. */
void group_quic_forget_service(struct group_quic *quic, uint32_t number);

/* nginx: IDs with this socket's cookie are the slot's. */
int group_quic_add_socket(struct group_quic *quic, enum cid_mode mode, int fd, uint16_t slot);
/* Forgets all that names the slot. */
void group_quic_remove_slot(struct group_quic *quic, uint16_t slot);

/*
 * Registers IDs for a slot, all or none. One that it has already is no error. -EEXIST: another
 * slot has one of them; -EDQUOT: the map is full (Flows=); -ENOSPC: the slot has half of the map,
 * or its service the share of it that is its own, and the rest is for others; -EINVAL: a length of
 * 0 or above 20; -EMLINK: a further length of ID, beside QUIC_CID_LENGTHS others. *ret_failed is
 * the index of the one that failed.
 */
int group_quic_add_cids(struct group_quic *quic, uint16_t slot, const struct protocol_cid *cids,
	size_t n_cids, size_t *ret_failed);
/* Takes them away, as far as they are the slot's. Returns how many were. */
size_t group_quic_retire_cids(
	struct group_quic *quic, uint16_t slot, const struct protocol_cid *cids, size_t n_cids);
