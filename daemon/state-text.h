/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The state's JSON as it is put together for writing.
 *
 * WHY not one tree of objects: the state is written after each change, and a change is of one
 * worker among thousands. What is said of a registration is kept as text with a copy of the memory
 * that it was made from, and made again only when that differs: nobody has to remember to tell of a
 * change, and what is forgotten can't be stale.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <sys/uio.h>

#include <jansson.h>

struct text {
	char *octets;
	size_t length, room;
	bool failed; /* there was no memory: what is there is incomplete */
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
/* The reference is taken over; NULL is lack of memory. */
void text_add_json(struct text *text, json_t *json);
/* An object without its closing brace, so that members can follow. */
void text_add_object_open(struct text *text, json_t *json);
/* Overwrites what is there, and frees it. */
void text_done(struct text *text);

bool piece_is_of(const struct piece *piece, const struct iovec *parts, size_t n_parts);
/* The JSON is taken over; made from these parts. Where there is no memory, none is there. */
void piece_set(struct piece *piece, const struct iovec *parts, size_t n_parts, json_t *json);
void piece_done(struct piece *piece);
