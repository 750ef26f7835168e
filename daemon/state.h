/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The state as octets: where the JSON lies from which the next process goes on.
 *
 * WHY a memfd with two halves: a process may die between any two instructions. The half that is
 * not current is written, then one word of the mapped first page is switched; whatever was written
 * before is whole, with its length and a checksum. It needs no disk and no directory, and nobody
 * but this user can open it.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

struct state;
struct text;

#define STATE_FORMAT 1
#define STATE_NOTE_MAX 16384
#define STATE_SIZE_MAX (64u << 20)

/* An empty one. */
int state_new(struct state **ret);
/* One of an earlier process; fd is taken over, also on failure. -EBADMSG: it is none, or damaged.
 * -EPROTONOSUPPORT: of a format that this version does not know. */
int state_open(struct state **ret, int fd);
struct state *state_free(struct state *state);
int state_fd(const struct state *state);

/* On failure (-ENOMEM, -ENOSPC, -EFBIG) what was written before stays current. */
int state_write(struct state *state, json_t *json);
/* The same, of the JSON object that add() adds to the text. It is called again, and has to add the
 * same, when there was too little room. */
int state_write_by(
	struct state *state, void (*add)(struct text *text, void *user_data), void *user_data);
/* The current one, a new reference. -ENODATA: nothing was written yet. -EBADMSG: both halves are
 * damaged, or it is no JSON. */
int state_read(const struct state *state, json_t **ret);

/*
 * The client whose message is being handled, 0: none; and how many octets of the note are that
 * message as it came, so that the next process can do it again. Stores to mapped memory: the next
 * process sees that an answer may be missing, however this one ended.
 */
void state_set_answering(struct state *state, uint32_t client, size_t note_length);
uint32_t state_answering(const struct state *state);
/* STATE_NOTE_MAX octets. */
void *state_note(struct state *state);
size_t state_note_length(const struct state *state);
