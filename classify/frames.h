/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The frames in the payload of a client's Initial. Only CRYPTO frames matter here; the others are
 * read as far as it takes to find the next one.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "classify/complaint.h"
#include "classify/crypto-stream.h"

/*
 * Reads all frames and adds what CRYPTO frames have to the stream. Returns 0, or with
 * *ret_complaint -EBADMSG  what a server has to end the connection for, or the client has ended it
 * itself -ENOBUFS  more than the stream has room for. The frames behind are still read, since one
 * that is malformed counts for more.
 */
int frames_read(struct crypto_stream *stream, const uint8_t *payload, size_t length,
	struct complaint *ret_complaint);
