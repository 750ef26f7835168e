/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Varlink's framing: JSON objects on a stream socket, each ended by a NUL octet. One reader and one
 * writer for the daemon, which must never block, and for reuseportctl.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include <jansson.h>

/* Octets that have come and wait to be whole messages. Zero-initialised; end with varlink_done().
 */
struct varlink_buffer {
	char *octets;
	size_t length;   /* that are there */
	size_t consumed; /* of these, by messages already returned */
	size_t searched; /* where the search for the next NUL goes on */
	size_t allocated;
};

void varlink_done(struct varlink_buffer *buffer);

/*
 * Reads what a non-blocking socket has, up to 64 KiB. Returns 1 when something came, 0 at the end
 * of the connection, -EAGAIN when there was nothing, -EBADF when descriptors come, which no message
 * has and which are not taken, -ENOBUFS when an unfinished message is longer
 * than limit octets, other negative errno of recv(2), -ENOMEM.
 */
int varlink_fill(struct varlink_buffer *buffer, int socket, size_t limit);

/*
 * Takes the next whole message out. Returns 1 and a new reference to an object, 0 when none is
 * whole, -EBADMSG with *ret_reason (free(), may be NULL) when it is not a JSON object in UTF-8.
 */
int varlink_next(struct varlink_buffer *buffer, json_t **ret, char **ret_reason);

/* The message as octets with its final NUL: *ret is the caller's to free(). -ENOMEM. */
int varlink_encode(const json_t *message, char **ret, size_t *ret_length);
