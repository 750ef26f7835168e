/* SPDX-License-Identifier: BSD-2-Clause */
#include "daemon/state.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "common/util.h"
#include "daemon/state-text.h"

#define PAGE_OCTETS 4096
#define HEADER_OCTETS (PAGE_OCTETS + STATE_NOTE_MAX)
#define ROOM_MIN 16384

static const char state_magic[8] = "RPSTATE";

struct half {
	uint64_t offset, room;
	uint64_t generation; /* 0: never written */
	uint64_t length;
	uint64_t checksum;
};

/* In the byte order of the machine: no other one ever reads it. */
struct header {
	char magic[8];
	uint32_t format;
	uint32_t current; /* 0 or 1 */
	uint32_t answering;
	uint32_t note_length; /* of the message behind the first page; 0: none */
	struct half half[2];
};

struct state {
	int fd;
	struct header *header; /* mapped */
};

/*
 * Against what was torn or overwritten, not against anybody's intention. Of parts one after the
 * other, of which all but the last have a multiple of 8 octets.
 */
static uint64_t checksum(uint64_t sum, const char *octets, size_t n)
{
	for (; n >= 8; n -= 8, octets += 8) {
		uint64_t word;

		memcpy(&word, octets, 8);
		sum = (sum ^ word) * 0x9e3779b97f4a7c15ULL;
		sum ^= sum >> 29;
	}
	for (; n > 0; n--)
		sum = (sum ^ (uint8_t)*octets++) * 0x100000001b3ULL;
	return sum;
}

static uint64_t checksum_begin(uint64_t generation)
{
	return 0xcbf29ce484222325ULL ^ generation;
}

static int map_header(struct state *state)
{
	void *memory = mmap(NULL, HEADER_OCTETS, PROT_READ | PROT_WRITE, MAP_SHARED, state->fd, 0);

	if (memory == MAP_FAILED)
		return -errno;
	state->header = memory;
	return 0;
}

int state_new(struct state **ret)
{
	struct state *state = calloc(1, sizeof(*state));
	const char zero[HEADER_OCTETS] = {0};
	int result = 0;

	if (!state)
		return -ENOMEM;
	state->fd = memfd_create("reuseportd-state", MFD_CLOEXEC);
	/* Written, not only sized: a page that can't be had is an error here, and a signal later.
	 */
	if (state->fd < 0 || pwrite(state->fd, zero, sizeof(zero), 0) != (ssize_t)sizeof(zero))
		result = errno ? -errno : -ENOSPC;
	if (result >= 0)
		result = map_header(state);
	if (result < 0) {
		state_free(state);
		return result;
	}
	memcpy(state->header->magic, state_magic, sizeof(state_magic));
	state->header->format = STATE_FORMAT;
	*ret = state;
	return 0;
}

static bool is_sane(const struct half *half, uint64_t size)
{
	if (half->generation == 0)
		return true;
	return half->offset >= HEADER_OCTETS && half->offset <= size &&
	       half->room <= size - half->offset && half->length <= half->room &&
	       half->length <= STATE_SIZE_MAX;
}

int state_open(struct state **ret, int fd)
{
	struct state *state = calloc(1, sizeof(*state));
	const struct header *header;
	struct stat status;
	int result = 0;

	if (!state) {
		close_fd(&fd);
		return -ENOMEM;
	}
	state->fd = fd;
	if (fstat(fd, &status) < 0)
		result = -errno;
	else if (!S_ISREG(status.st_mode) || status.st_size < HEADER_OCTETS)
		result = -EBADMSG;
	if (result >= 0)
		result = map_header(state);
	header = state->header;
	if (result >= 0 && memcmp(header->magic, state_magic, sizeof(state_magic)) != 0)
		result = -EBADMSG;
	else if (result >= 0 && header->format != STATE_FORMAT)
		result = -EPROTONOSUPPORT;
	if (result >= 0 &&
		(header->current > 1 || !is_sane(&header->half[0], (uint64_t)status.st_size) ||
			!is_sane(&header->half[1], (uint64_t)status.st_size)))
		result = -EBADMSG;
	if (result < 0) {
		state_free(state);
		return result;
	}
	*ret = state;
	return 0;
}

struct state *state_free(struct state *state)
{
	if (!state)
		return NULL;
	if (state->header)
		munmap(state->header, HEADER_OCTETS);
	close_fd(&state->fd);
	free(state);
	return NULL;
}

int state_fd(const struct state *state)
{
	return state->fd;
}

/* A half that has grown too small moves behind the end, with room to grow. */
static int make_room(struct state *state, struct half *half, size_t length)
{
	uint64_t room = ROOM_MIN;
	struct stat status;
	struct half moved = {0};

	if (length <= half->room)
		return 0;
	if (length > STATE_SIZE_MAX)
		return -EFBIG;
	while (room < length)
		room *= 2;
	if (fstat(state->fd, &status) < 0)
		return -errno;
	moved.offset = ((uint64_t)status.st_size + PAGE_OCTETS - 1) / PAGE_OCTETS * PAGE_OCTETS;
	moved.room = room;
	if (ftruncate(state->fd, (off_t)(moved.offset + room)) < 0)
		return -errno;
	if (half->room)
		fallocate(state->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			(off_t)half->offset, (off_t)half->room);
	*half = moved;
	return 0;
}

static int write_all(int fd, const char *octets, size_t n, uint64_t offset)
{
	while (n > 0) {
		ssize_t written = pwrite(fd, octets, n, (off_t)offset);

		if (written < 0 && errno == EINTR)
			continue;
		if (written <= 0)
			return written < 0 ? -errno : -ENOSPC;
		octets += written;
		n -= (size_t)written;
		offset += (uint64_t)written;
	}
	return 0;
}

/* A text on its way to the half that is not current. */
struct write {
	struct state *state;
	struct half *half;
	uint64_t length, checksum;
	int result;
};

/* Where there is too little room the rest is only counted. */
static int take_part(const char *octets, size_t n, void *user_data)
{
	struct write *write = user_data;
	uint64_t offset = write->half->offset + write->length;

	write->length += n;
	if (write->length > write->half->room) {
		write->result = -ENOBUFS;
		return 0;
	}
	write->checksum = checksum(write->checksum, octets, n);
	write->result = write_all(write->state->fd, octets, n, offset);
	return write->result;
}

/* -ENOBUFS: it needs more room than there is, write->length. */
static int write_half(struct write *write, uint64_t generation,
	void (*add)(struct text *text, void *user_data), void *user_data)
{
	struct text text = {.leave = take_part, .user_data = write};

	write->length = 0;
	write->checksum = checksum_begin(generation);
	write->result = 0;
	add(&text, user_data);
	text_end(&text);
	if (text.failed && (write->result >= 0 || write->result == -ENOBUFS))
		return -ENOMEM;
	return write->result;
}

int state_write_by(
	struct state *state, void (*add)(struct text *text, void *user_data), void *user_data)
{
	struct header *header = state->header;
	uint32_t spare = !header->current;
	struct half *half = &header->half[spare];
	uint64_t generation = header->half[header->current].generation + 1;
	struct write write = {.state = state, .half = half};
	int result;

	half->generation = 0; /* what stands there is nothing until it is whole */
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	result = make_room(state, half, 1);
	if (result >= 0)
		result = write_half(&write, generation, add, user_data);
	while (result == -ENOBUFS) {
		result = make_room(state, half, write.length);
		if (result >= 0)
			result = write_half(&write, generation, add, user_data);
	}
	if (result < 0) {
		if (half->room)
			fallocate(state->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				(off_t)half->offset, (off_t)half->room);
		return result;
	}
	half->length = write.length;
	half->checksum = write.checksum;
	half->generation = generation;
	__atomic_store_n(&header->current, spare, __ATOMIC_SEQ_CST);
	return 0;
}

static void add_object(struct text *text, void *user_data)
{
	text_add_json(text, json_incref(user_data));
}

int state_write(struct state *state, json_t *json)
{
	return state_write_by(state, add_object, json);
}

static int read_half(const struct state *state, const struct half *half, json_t **ret)
{
	_cleanup_free_ char *text = NULL;
	json_error_t error;
	json_t *json;
	size_t n = 0;

	if (!half->generation)
		return -ENODATA;
	text = malloc(half->length + 1);
	if (!text)
		return -ENOMEM;
	while (n < half->length) {
		ssize_t got =
			pread(state->fd, text + n, half->length - n, (off_t)(half->offset + n));

		if (got <= 0)
			return -EBADMSG;
		n += (size_t)got;
	}
	if (checksum(checksum_begin(half->generation), text, n) != half->checksum)
		return -EBADMSG;
	json = json_loadb(text, n, JSON_REJECT_DUPLICATES, &error);
	explicit_bzero(text, n);
	if (!json_is_object(json)) {
		json_decref(json);
		return -EBADMSG;
	}
	*ret = json;
	return 0;
}

int state_read(const struct state *state, json_t **ret)
{
	const struct header *header = state->header;
	int result = read_half(state, &header->half[header->current], ret);

	/* Never seen to be needed: the word is switched when all is there. */
	if (result == -EBADMSG && read_half(state, &header->half[!header->current], ret) >= 0)
		return 0;
	return result;
}

void state_set_answering(struct state *state, uint32_t client, size_t note_length)
{
	__atomic_store_n(&state->header->answering, 0, __ATOMIC_SEQ_CST);
	__atomic_store_n(&state->header->note_length, (uint32_t)note_length, __ATOMIC_SEQ_CST);
	__atomic_store_n(&state->header->answering, client, __ATOMIC_SEQ_CST);
}

void *state_note(struct state *state)
{
	return (char *)state->header + PAGE_OCTETS;
}

size_t state_note_length(const struct state *state)
{
	return MIN(state->header->note_length, STATE_NOTE_MAX);
}

uint32_t state_answering(const struct state *state)
{
	return state->header->answering;
}
