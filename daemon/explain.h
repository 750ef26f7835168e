/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Where a packet to a QUIC listener would go now, and why: the steps, and the method Explain of
 * io.reuseport.Control.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include "bpf/quic_header.h"

struct listener;

/* What is asked, and the answer as it is found. */
struct explanation {
	const struct listener *listener;
	uint8_t *datagram;
	size_t length;
	struct quic_packet packet;
	bool has_from;
	uint64_t address[2]; /* of the client, as the program reads it */
	uint16_t port;       /* in network order */
	/* On a shared listener: what the client asks for, where that is known. */
	const char *server_name;
	uint8_t *protocols; /* as the extension has them; NULL: not known */
	size_t protocols_length;
	uint32_t rotation; /* private: of an ID of ours, UINT32_MAX: it is none */
	uint64_t hash;     /* private: by which a worker is found where the ID names nobody */

	const char *step;
	uint32_t slot; /* INDEX_NONE: no worker's */
	char *reason;
};

/*
 * Fills packet, step, slot and reason from listener, datagram and, for ConnectionID=opaque, the
 * client's address and port. listener may be another one of the same share afterwards: whose it is.
 */
void explain_packet(struct explanation *e);
/* Frees what it holds. */
void explanation_done(struct explanation *e);

/* explain-share.c */
/* Modes of connection IDs that are read: bits 1 << QUIC_MODE_.... */
uint32_t explain_modes(const struct explanation *e);
/* Whether a key of this rotation may name this slot. */
bool explain_may_name(const struct explanation *e, uint32_t rotation, uint32_t slot);
/* The packet is of no connection: whose it is by what its ID's rotation says, UINT32_MAX: nothing.
 */
void explain_stray_service(struct explanation *e, uint32_t rotation);
/*
 * Whose a new connection is: sets listener, and *ret_why to a sentence (free()). False: that can't
 * be told before the classifier has read it; ret_why says so.
 */
bool explain_new_service(struct explanation *e, char **ret_why);
/* The listener is that of the slot's service. */
void explain_settle_service(struct explanation *e);

/* A control_handler; user_data is the manager. */
int explain_method(void *user_data, const json_t *parameters, json_t **ret, const char **ret_error);
