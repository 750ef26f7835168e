/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Any octets as the payloads of Initials that a client sent one after another, in the clear: frames
 * and stream agree with a model that knows each octet by itself, and the ClientHello in it is read.
 */
#include <stdlib.h>
#include <string.h>

#include "classify/client-hello.c"
#include "classify/crypto-stream.c"
#include "classify/frames.c"
#include "classify/packet.c"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool condition)
{
	if (!condition)
		abort();
}

static void check_stream(const struct crypto_stream *stream)
{
	size_t from, to;

	check(stream->n_ranges <= CRYPTO_STREAM_RANGES);
	for (unsigned i = 0; i < stream->n_ranges; i++) {
		const struct crypto_range *range = &stream->ranges[i];

		check(range->start < range->end && range->end <= CRYPTO_STREAM_OCTETS);
		check(i == 0 || stream->ranges[i - 1].end < range->start);
		check(!crypto_stream_gap(stream, range->start, range->end, &from, &to));
	}
	if (crypto_stream_gap(stream, 0, CRYPTO_STREAM_OCTETS, &from, &to))
		check(from == crypto_stream_contiguous(stream) && from < to);
	else
		check(crypto_stream_contiguous(stream) == CRYPTO_STREAM_OCTETS);
}

/* What was there before is there after, unchanged. */
static void check_kept(const struct crypto_stream *before, const struct crypto_stream *after)
{
	size_t from, to;

	for (unsigned i = 0; i < before->n_ranges; i++) {
		size_t start = before->ranges[i].start, end = before->ranges[i].end;

		check(!crypto_stream_gap(after, start, end, &from, &to));
		check(memcmp(before->octets + start, after->octets + start, end - start) == 0);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct crypto_stream stream, before;
	size_t contiguous = 0;

	crypto_stream_init(&stream);
	while (size >= 2) {
		size_t length = (size_t)data[0] << 8 | data[1];
		struct complaint complaint = {0};
		struct client_hello hello;
		uint8_t *payload;
		int r;

		data += 2;
		size -= 2;
		length = length < size ? length : size;
		payload = malloc(length ? length : 1);
		check(payload != NULL);
		memcpy(payload, data, length);
		before = stream;
		r = frames_read(&stream, payload, length, &complaint);
		check((r < 0) == (complaint.subject != NULL));
		free(payload);
		check_stream(&stream);
		check_kept(&before, &stream);
		check(crypto_stream_contiguous(&stream) >= contiguous);
		contiguous = crypto_stream_contiguous(&stream);
		client_hello_read(stream.octets, contiguous, &hello, &complaint);
		if (r < 0)
			break;
		data += length;
		size -= length;
	}
	return 0;
}
