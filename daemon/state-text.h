/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The state's JSON as it is put together for writing.
 *
 * WHY not one tree of objects: the state is written after each change, and a change is of one
 * worker among thousands. What is said of a registration is kept as text with a copy of the memory
 * that it was made from, and made again only when that differs: nobody has to remember to tell of a
 * change, and what is forgotten can't be stale.
 *
 * WHY not one text either: megabytes that are there for a millisecond are pages that the kernel
 * clears for each write. It leaves a part at a time, from memory that is at hand.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include <jansson.h>

#define TEXT_ROOM 16384 /* octets; a multiple of 8 */

struct text {
	char octets[TEXT_ROOM]; /* what has not left yet */
	size_t length;
	bool failed; /* there was no memory, or it could not leave: it is incomplete */
	/* Takes TEXT_ROOM octets, in the end what is left. Negative errno. */
	int (*leave)(const char *octets, size_t length, void *user_data);
	void *user_data;
};

/* Text that was made from some octets, which may stand in several places. Zero: none. */
struct piece {
	char *of;
	size_t of_length;
	char *octets;
	size_t length;
};

void text_add(struct text *text, const char *octets, size_t length);
/* A string that ends with NUL. */
void text_add_string(struct text *text, const char *string);
void text_add_number(struct text *text, int64_t number);
/* The reference is taken over; NULL is lack of memory. */
void text_add_json(struct text *text, json_t *json);
/* An object without its closing brace, so that members can follow. */
void text_add_object_open(struct text *text, json_t *json);
/* The rest leaves, and is overwritten: there are keys in it. */
void text_end(struct text *text);

bool piece_is_of(const struct piece *piece, const struct iovec *parts, size_t n_parts);
/* The JSON is taken over; made from these parts. Where there is no memory, none is there. */
void piece_set(struct piece *piece, const struct iovec *parts, size_t n_parts, json_t *json);
void piece_done(struct piece *piece);
