/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * CRYPTO frames put together: against a model that knows each octet by itself, and the frames
 * around them.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "classify/crypto-stream.h"
#include "classify/frames.h"

static struct crypto_stream stream;

/* The octet at an offset of the one true stream. */
static uint8_t octet_at(size_t offset)
{
	return (uint8_t)(offset * 7 + offset / 251);
}

static int add(size_t offset, size_t length)
{
	uint8_t *data = malloc(length ? length : 1);
	int r;

	assert_non_null(data);
	for (size_t i = 0; i < length; i++)
		data[i] = octet_at(offset + i);
	r = crypto_stream_add(&stream, offset, data, length);
	free(data);
	return r;
}

static void check_contiguous(size_t wanted)
{
	assert_int_equal(crypto_stream_contiguous(&stream), wanted);
	for (size_t i = 0; i < wanted; i++)
		assert_int_equal(stream.octets[i], octet_at(i));
}

static void test_tail_first(void **state)
{
	crypto_stream_init(&stream);
	check_contiguous(0);
	assert_int_equal(add(500, 500), 0);
	check_contiguous(0);
	assert_int_equal(add(0, 499), 0);
	check_contiguous(499);
	assert_int_equal(add(499, 1), 0);
	check_contiguous(1000);
	assert_int_equal(stream.n_ranges, 1);
}

static void test_overlaps_in_every_place(void **state)
{
	unsigned n = 0;

	/* Every range of 12 octets, beside two that are there. */
	for (size_t start = 0; start <= 12; start++) {
		for (size_t end = start; end <= 12; end++) {
			size_t covered = 0;

			crypto_stream_init(&stream);
			assert_int_equal(add(2, 3), 0);
			assert_int_equal(add(8, 2), 0);
			assert_int_equal(add(start, end - start), 0);
			for (size_t i = 0; i < 12; i++) {
				bool there = (i >= 2 && i < 5) || (i >= 8 && i < 10) ||
					     (i >= start && i < end);
				size_t from, to;

				/* An octet is there exactly when there is no gap in it. */
				assert_int_equal(
					crypto_stream_gap(&stream, i, i + 1, &from, &to), !there);
				covered += there;
			}
			for (unsigned i = 0; i < stream.n_ranges; i++)
				covered -= stream.ranges[i].end - stream.ranges[i].start;
			assert_int_equal(covered, 0);
			n++;
		}
	}
	assert_int_equal(n, 91);
}

/* One octet that differs, at each place of an overlap, is told, and changes nothing. */
static void test_contradictions_change_nothing(void **state)
{
	unsigned contradicted = 0;

	for (size_t wrong = 0; wrong < 100; wrong++) {
		struct crypto_stream before;
		uint8_t data[100];
		int r;

		crypto_stream_init(&stream);
		memset(stream.octets, 0, sizeof(stream.octets));
		assert_int_equal(add(0, 20), 0);
		assert_int_equal(add(40, 20), 0);
		before = stream;
		for (size_t i = 0; i < sizeof(data); i++)
			data[i] = octet_at(i) ^ (i == wrong);
		r = crypto_stream_add(&stream, 0, data, sizeof(data));
		if (wrong < 20 || (wrong >= 40 && wrong < 60)) {
			assert_int_equal(r, -EILSEQ);
			assert_memory_equal(&stream, &before, sizeof(stream));
			contradicted++;
		} else {
			assert_int_equal(r, 0);
		}
	}
	assert_int_equal(contradicted, 40);
}

static void test_bounds(void **state)
{
	crypto_stream_init(&stream);
	assert_int_equal(add(CRYPTO_STREAM_OCTETS, 0), 0);
	assert_int_equal(stream.n_ranges, 0);
	assert_int_equal(add(CRYPTO_STREAM_OCTETS - 1, 1), 0);
	assert_int_equal(
		crypto_stream_add(&stream, CRYPTO_STREAM_OCTETS, (uint8_t[1]){}, 1), -EMSGSIZE);
	assert_int_equal(
		crypto_stream_add(&stream, CRYPTO_STREAM_OCTETS - 1, (uint8_t[2]){}, 2), -EMSGSIZE);
	assert_int_equal(
		crypto_stream_add(&stream, (1ULL << 62) - 1, (uint8_t[1]){}, 1), -EMSGSIZE);
	assert_int_equal(crypto_stream_add(&stream, UINT64_MAX, (uint8_t[1]){}, 1), -EMSGSIZE);

	crypto_stream_init(&stream);
	for (size_t i = 0; i < CRYPTO_STREAM_RANGES; i++)
		assert_int_equal(add(2 * i, 1), 0);
	assert_int_equal(stream.n_ranges, CRYPTO_STREAM_RANGES);
	assert_int_equal(add(2 * CRYPTO_STREAM_RANGES, 1), -ENOBUFS);
	/* What closes gaps is still taken. */
	assert_int_equal(add(0, 2 * CRYPTO_STREAM_RANGES + 1), 0);
	check_contiguous(2 * CRYPTO_STREAM_RANGES + 1);
	assert_int_equal(stream.n_ranges, 1);
}

/* Pieces in random order, with overlaps, until all is there; each octet once as the model has it.
 */
static void test_random_pieces(void **state)
{
	bool *there = malloc(CRYPTO_STREAM_OCTETS);

	assert_non_null(there);
	srand(1);
	for (unsigned round = 0; round < 200; round++) {
		size_t total = 1 + (size_t)rand() % 4000, contiguous = 0;

		crypto_stream_init(&stream);
		memset(there, 0, CRYPTO_STREAM_OCTETS);
		for (unsigned i = 0; i < 10000 && contiguous < total; i++) {
			size_t offset = (size_t)rand() % (total + 64),
			       length = (size_t)rand() % 600;
			int r;

			/* The first octet gets its chance. */
			offset -= offset < 64 ? offset : 64;
			if (length > total - offset)
				length = total - offset;
			r = add(offset, length);
			if (r == -ENOBUFS)
				continue;
			assert_int_equal(r, 0);
			memset(there + offset, 1, length);
			for (contiguous = 0; contiguous < total && there[contiguous];)
				contiguous++;
			assert_int_equal(crypto_stream_contiguous(&stream), contiguous);
		}
		check_contiguous(total);
		assert_int_equal(stream.n_ranges, 1);
	}
	free(there);
}

static int read_frames(const char *payload, size_t length, struct complaint *ret)
{
	/* Of exactly its size, so that a sanitizer sees a look beyond the end. */
	uint8_t *copy = malloc(length ? length : 1);
	int r;

	assert_non_null(copy);
	memcpy(copy, payload, length);
	r = frames_read(&stream, copy, length, ret);
	free(copy);
	return r;
}

#define FRAMES(octets) read_frames(octets, sizeof(octets) - 1, &complaint)

static void test_frames_that_an_initial_may_have(void **state)
{
	struct complaint complaint = {};

	crypto_stream_init(&stream);
	assert_int_equal(FRAMES("\0\0\1\0"), 0);
	assert_int_equal(FRAMES("\2\0\0\0\0"), 0);
	assert_int_equal(FRAMES("\2\x40\x10\x50\0\2\1\1\1\1\1\1"), 0);
	assert_int_equal(FRAMES("\3\0\0\0\0\1\2\3\1"), 0);
	assert_int_equal(crypto_stream_contiguous(&stream), 0);
	/* Two pieces out of order, with each other kind between them. */
	assert_int_equal(FRAMES("\6\3\3def\1\0\2\0\0\0\0\6\0\3abc\0"), 0);
	assert_int_equal(FRAMES("\6\6\0"), 0);
	assert_int_equal(FRAMES("\6\x80\0\0\6\x40\1g"), 0);
	assert_int_equal(FRAMES("\6\xc0\0\0\0\0\0\0\7\1h"), 0);
	assert_int_equal(crypto_stream_contiguous(&stream), 8);
	assert_memory_equal(stream.octets, "abcdefgh", 8);
	assert_null(complaint.subject);
}

static void test_every_other_frame_is_a_mistake(void **state)
{
	unsigned allowed = 0;

	for (unsigned type = 0; type <= 255; type++) {
		char payload[] = {1, (char)type, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
		struct complaint complaint = {};

		crypto_stream_init(&stream);
		if (read_frames(payload, sizeof(payload), &complaint) == 0) {
			assert_true(type <= 3 || type == 6);
			allowed++;
		} else {
			assert_int_equal(complaint.octet, 1);
			assert_non_null(complaint.subject);
			assert_non_null(complaint.problem);
			assert_non_null(complaint.where);
		}
	}
	assert_int_equal(allowed, 5);
}

static void test_frames_that_are_cut_off(void **state)
{
	static const struct {
		const char *octets;
		size_t length;
	} whole[] = {
		{"\6\x40\1\x40\2ab", 7},
		{"\2\x40\x10\x50\0\2\1\1\1\1\1", 11},
		{"\3\0\0\0\0\1\2\3", 8},
	};
	struct complaint complaint = {};
	unsigned cut = 0;

	for (size_t i = 0; i < sizeof(whole) / sizeof(whole[0]); i++) {
		for (size_t length = 0; length <= whole[i].length; length++) {
			crypto_stream_init(&stream);
			if (length == whole[i].length) {
				assert_int_equal(
					read_frames(whole[i].octets, length, &complaint), 0);
			} else {
				assert_int_equal(
					read_frames(whole[i].octets, length, &complaint), -EBADMSG);
				assert_int_equal(stream.n_ranges, 0);
				cut++;
			}
		}
	}
	assert_int_equal(cut, 7 + 11 + 8);
}

static void test_what_is_wrong_with_a_crypto_frame(void **state)
{
	struct complaint complaint = {};

	crypto_stream_init(&stream);
	assert_int_equal(FRAMES("\6\0\3abc\1\6\2\2Xd"), -EBADMSG);
	assert_string_equal(complaint.problem, "contradicts what another one has at the offset");
	assert_int_equal(complaint.octet, 7);
	assert_int_equal(FRAMES("\6\xff\xff\xff\xff\xff\xff\xff\xff\1a"), -EBADMSG);
	assert_string_equal(complaint.problem, "goes beyond what an offset can be");
	assert_int_equal(FRAMES("\6\0\xff\xff\xff\xff\xff\xff\xff\xff"), -EBADMSG);
	assert_string_equal(complaint.problem, "is cut off");
}

static void test_more_than_there_is_room_for(void **state)
{
	struct complaint complaint = {};
	char pieces[5 * (CRYPTO_STREAM_RANGES + 1)];

	crypto_stream_init(&stream);
	assert_int_equal(FRAMES("\1\6\x80\0\x40\0\1a\6\x80\1\x40\0\1a\1"), -ENOBUFS);
	assert_string_equal(complaint.problem, "goes beyond octet 16384 of the handshake");
	assert_int_equal(complaint.octet, 1);
	/* The last offset that there is. */
	assert_int_equal(FRAMES("\6\xff\xff\xff\xff\xff\xff\xff\xfe\1a"), -ENOBUFS);
	/* What is malformed behind it counts for more. */
	assert_int_equal(FRAMES("\1\6\x80\0\x40\0\1a\1\x08"), -EBADMSG);
	assert_string_equal(complaint.problem, "has a type that no Initial may have");
	assert_int_equal(complaint.octet, 9);

	crypto_stream_init(&stream);
	for (unsigned i = 0; i <= CRYPTO_STREAM_RANGES; i++) {
		char frame[] = {6, 0x40, (char)(2 * i), 1, 'a'};

		memcpy(pieces + sizeof(frame) * i, frame, sizeof(frame));
	}
	complaint = (struct complaint){};
	assert_int_equal(read_frames(pieces, sizeof(pieces), &complaint), -ENOBUFS);
	assert_string_equal(complaint.problem, "is one piece too many, with gaps between them");
	assert_int_equal(complaint.octet, 5 * CRYPTO_STREAM_RANGES);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_tail_first),
		cmocka_unit_test(test_overlaps_in_every_place),
		cmocka_unit_test(test_contradictions_change_nothing),
		cmocka_unit_test(test_bounds),
		cmocka_unit_test(test_random_pieces),
		cmocka_unit_test(test_frames_that_an_initial_may_have),
		cmocka_unit_test(test_every_other_frame_is_a_mistake),
		cmocka_unit_test(test_frames_that_are_cut_off),
		cmocka_unit_test(test_what_is_wrong_with_a_crypto_frame),
		cmocka_unit_test(test_more_than_there_is_room_for),
	};

	return cmocka_run_group_tests_name("crypto-stream", tests, NULL, NULL);
}
