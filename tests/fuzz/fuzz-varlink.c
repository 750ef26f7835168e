/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Feeds the reader of the control socket an arbitrary stream, cut into arbitrary pieces, through a
 * real socket pair: each message that comes out is an object that can be encoded, and the buffer
 * stays within its bound. The first octet says how long the pieces are.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "common/util.h"
#include "proto/varlink.c"

#define LIMIT 4096

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_message(json_t *message)
{
	size_t length = 0;
	char *text = NULL;

	if (!json_is_object(message) || varlink_encode(message, &text, &length) < 0 ||
		length != strlen(text) + 1)
		abort();
	free(text);
	json_decref(message);
}

static void drain(struct varlink_buffer *buffer)
{
	json_t *message = NULL;
	char *reason = NULL;
	int result;

	while ((result = varlink_next(buffer, &message, &reason)) != 0) {
		if (result == 1)
			check_message(message);
		else if (result != -EBADMSG)
			abort();
		free(take_pointer(reason));
	}
	if (buffer->consumed > buffer->length || buffer->searched > buffer->length ||
		buffer->length > buffer->allocated)
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct varlink_buffer buffer = {0};
	size_t piece;
	int pair[2], result = 1;

	if (size < 2 || size > 32768)
		return 0;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		abort();
	piece = 1 + (size_t)data[0] * 8;
	for (size_t at = 1; at < size && result == 1; at += piece) {
		size_t n = MIN(piece, size - at);

		if (send(pair[0], data + at, n, MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t)n)
			abort();
		result = varlink_fill(&buffer, pair[1], LIMIT);
		if (result == 1)
			drain(&buffer);
		else if (result != -ENOBUFS)
			abort();
	}
	varlink_done(&buffer);
	close(pair[0]);
	close(pair[1]);
	return 0;
}
