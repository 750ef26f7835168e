/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Reassembly in one buffer of fixed size, with a short ordered list of what is there.
 */
#include "classify/crypto-stream.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "common/util.h"

void crypto_stream_init(struct crypto_stream *stream)
{
	stream->n_ranges = 0;
}

static bool contradicts(const struct crypto_stream *stream, const struct crypto_range *range,
	size_t start, size_t end, const uint8_t *data)
{
	size_t from = MAX(start, range->start), to = MIN(end, range->end);

	return from < to && memcmp(stream->octets + from, data + (from - start), to - from) != 0;
}

int crypto_stream_add(
	struct crypto_stream *stream, uint64_t offset, const uint8_t *data, size_t length)
{
	struct crypto_range *ranges = stream->ranges, merged;
	unsigned first = 0, behind;
	size_t start, end;

	if (offset > CRYPTO_STREAM_OCTETS || length > CRYPTO_STREAM_OCTETS - offset)
		return -EMSGSIZE;
	if (length == 0)
		return 0;
	start = offset;
	end = start + length;
	merged = (struct crypto_range){.start = start, .end = end};

	/* Ranges first .. behind - 1 touch or overlap the new one and become one with it. */
	while (first < stream->n_ranges && ranges[first].end < start)
		first++;
	for (behind = first; behind < stream->n_ranges && ranges[behind].start <= end; behind++) {
		if (contradicts(stream, &ranges[behind], start, end, data))
			return -EILSEQ;
		merged.start = MIN(merged.start, ranges[behind].start);
		merged.end = MAX(merged.end, ranges[behind].end);
	}
	if (first == behind && stream->n_ranges == CRYPTO_STREAM_RANGES)
		return -ENOBUFS;

	memmove(ranges + first + 1, ranges + behind, (stream->n_ranges - behind) * sizeof(*ranges));
	stream->n_ranges = stream->n_ranges - (behind - first) + 1;
	ranges[first] = merged;
	memcpy(stream->octets + start, data, length);
	return 0;
}

size_t crypto_stream_contiguous(const struct crypto_stream *stream)
{
	return stream->n_ranges && stream->ranges[0].start == 0 ? stream->ranges[0].end : 0;
}

int crypto_stream_gap(const struct crypto_stream *stream, size_t from, size_t end,
	size_t *ret_start, size_t *ret_end)
{
	size_t start = from;

	for (unsigned i = 0; i < stream->n_ranges; i++) {
		if (start < stream->ranges[i].start) {
			end = MIN(end, stream->ranges[i].start);
			break;
		}
		start = MAX(start, stream->ranges[i].end);
	}
	if (start >= end)
		return 0;
	*ret_start = start;
	*ret_end = end;
	return 1;
}
