/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The octets of a client's CRYPTO frames, put together: in any order, over packets and datagrams,
 * with gaps and overlaps. What came first stays; octets that come again must be the same, since a
 * classifier and a server that disagree on which count would send a connection to the wrong place.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

/*
 * RFC 9000 section 7.5 asks a server for room for 4096 octets. A ClientHello with post-quantum key
 * shares has 1.5 to 2 KiB; tickets that carry client certificates make it some KiB longer.
 */
#define CRYPTO_STREAM_OCTETS 16384
/*
 * Pieces with gaps between them. Clients that shuffle their frames on purpose (Chromium: at most
 * about ten frames a packet) stay well below it.
 */
#define CRYPTO_STREAM_RANGES 64

struct crypto_range {
	uint16_t start, end;
};

struct crypto_stream {
	unsigned n_ranges;
	struct crypto_range ranges[CRYPTO_STREAM_RANGES]; /* in order, with gaps between them */
	uint8_t octets[CRYPTO_STREAM_OCTETS];             /* set only where a range says so */
};

void crypto_stream_init(struct crypto_stream *stream);

/*
 * Adds what a frame has. Returns 0, or, with nothing changed,
 *   -EMSGSIZE  it goes beyond CRYPTO_STREAM_OCTETS
 *   -ENOBUFS   there would be more than CRYPTO_STREAM_RANGES pieces
 *   -EILSEQ    it contradicts octets that came before
 */
int crypto_stream_add(
	struct crypto_stream *stream, uint64_t offset, const uint8_t *data, size_t length);

/* How many octets from the beginning of the stream are there without a gap. */
size_t crypto_stream_contiguous(const struct crypto_stream *stream);

/*
 * The first gap at or after from, before end: returns 1 with it, or 0 when there is none.
 */
int crypto_stream_gap(const struct crypto_stream *stream, size_t from, size_t end,
	size_t *ret_start, size_t *ret_end);
