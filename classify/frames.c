/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Frames of Initial packets: RFC 9000 section 12.4 says which there may be, section 19 how they
 * look. What an ACK says is the server's business.
 */
#include "classify/frames.h"

#include <errno.h>
#include <stdbool.h>

#include "classify/packet.h"

#define VARINT_MAX ((1ULL << 62) - 1)

enum frame_type {
	FRAME_PADDING = 0x00,
	FRAME_PING = 0x01,
	FRAME_ACK = 0x02,
	FRAME_ACK_ECN = 0x03,
	FRAME_CRYPTO = 0x06,
	FRAME_CONNECTION_CLOSE = 0x1c,
};

struct frames {
	const uint8_t *payload;
	size_t length, offset;
	size_t frame; /* where the present one begins */
	struct complaint complaint;
};

static int frame_error(struct frames *frames, int error, const char *subject, const char *problem)
{
	/* The first one beyond a bound, unless there is something worse. */
	if (error == -EBADMSG || !frames->complaint.subject)
		frames->complaint = (struct complaint){
			.subject = subject,
			.problem = problem,
			.where = "the payload of the Initial",
			.octet = frames->frame,
		};
	return error;
}

static int frame_mistake(struct frames *frames, const char *subject, const char *problem)
{
	return frame_error(frames, -EBADMSG, subject, problem);
}

static int read_varints(struct frames *frames, unsigned n, uint64_t *ret)
{
	for (unsigned i = 0; i < n; i++)
		if (packet_varint(frames->payload, frames->length, &frames->offset, &ret[i]) < 0)
			return -EBADMSG;
	return 0;
}

static int skip_ack(struct frames *frames, bool ecn)
{
	uint64_t head[4], pair[2], counts[3]; /* head: largest, delay, number of ranges, first */

	if (read_varints(frames, 4, head) < 0)
		return frame_mistake(frames, "an ACK frame", "is cut off");
	/* Each range takes two octets at least, so the payload bounds this. */
	for (uint64_t i = 0; i < head[2]; i++)
		if (read_varints(frames, 2, pair) < 0)
			return frame_mistake(frames, "an ACK frame", "is cut off");
	if (ecn && read_varints(frames, 3, counts) < 0)
		return frame_mistake(frames, "an ACK frame", "is cut off");
	return 0;
}

static int read_crypto(struct frames *frames, struct crypto_stream *stream)
{
	static const char subject[] = "a CRYPTO frame";
	uint64_t head[2]; /* offset, length */
	int r;

	if (read_varints(frames, 2, head) < 0 || head[1] > frames->length - frames->offset)
		return frame_mistake(frames, subject, "is cut off");
	/* RFC 9000 section 19.6. */
	if (head[0] + head[1] > VARINT_MAX)
		return frame_mistake(frames, subject, "goes beyond what an offset can be");
	r = crypto_stream_add(stream, head[0], frames->payload + frames->offset, head[1]);
	frames->offset += head[1];
	switch (r) {
	case 0:
		return 0;
	case -EILSEQ:
		return frame_mistake(
			frames, subject, "contradicts what another one has at the offset");
	case -ENOBUFS:
		return frame_error(
			frames, -ENOBUFS, subject, "is one piece too many, with gaps between them");
	default:
		return frame_error(
			frames, -ENOBUFS, subject, "goes beyond octet 16384 of the handshake");
	}
}

static int read_frame(struct frames *frames, struct crypto_stream *stream)
{
	frames->frame = frames->offset;
	/* All of these types have one octet; a longer form of one is not allowed (section 12.4). */
	switch (frames->payload[frames->offset++]) {
	case FRAME_PADDING:
	case FRAME_PING:
		return 0;
	case FRAME_ACK:
		return skip_ack(frames, false);
	case FRAME_ACK_ECN:
		return skip_ack(frames, true);
	case FRAME_CRYPTO:
		return read_crypto(frames, stream);
	case FRAME_CONNECTION_CLOSE:
		return frame_mistake(frames, "the client", "has closed the connection");
	default:
		return frame_mistake(frames, "a frame", "has a type that no Initial may have");
	}
}

int frames_read(struct crypto_stream *stream, const uint8_t *payload, size_t length,
	struct complaint *ret_complaint)
{
	struct frames frames = {.payload = payload, .length = length};
	int r = 0, result = 0;

	if (length == 0)
		r = frame_mistake(&frames, "the packet", "has no frame");
	while (r != -EBADMSG && frames.offset < length) {
		r = read_frame(&frames, stream);
		if (r < 0)
			result = r;
	}
	if (r == -EBADMSG)
		result = r;
	if (result < 0)
		*ret_complaint = frames.complaint;
	return result;
}
