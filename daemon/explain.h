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
	uint64_t hash;       /* private: by which a worker is found where the ID names nobody */

	const char *step;
	uint32_t slot; /* INDEX_NONE: no worker's */
	char *reason;
};

/*
 * Fills packet, step, slot and reason from listener, datagram and, for ConnectionID=opaque, the
 * client's address and port.
 */
void explain_packet(struct explanation *e);
/* Frees what it holds. */
void explanation_done(struct explanation *e);

/* A control_handler; user_data is the manager. */
int explain_method(void *user_data, const json_t *parameters, json_t **ret, const char **ret_error);
