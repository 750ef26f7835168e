/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The secrets of a QUIC listener: keys of connection IDs (QUIC-LB), the prefixes of their nonces,
 * and the secret of tokens.
 *
 * WHY: a connection ID outlives the process that made it, and a nonce must not be used twice under
 * a key (draft-ietf-quic-load-balancers-21, section 5.4). So both live on disk, in a file for each
 * listener, and what is on disk is always ahead of what was given out: a crash loses numbers, it
 * never repeats them.
 *
 * Keys come from one of two places:
 * - made here at random, kept in the state file, and rotated by keys_rotate();
 * - given in a file (ConnectionIDKeyFile=) that hosts and balancers share. The state file then
 *   holds nonce prefixes only.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

#define KEYS_MAX 7 /* config rotations 0 .. 6 */

struct keys {
	uint8_t current;           /* config rotation of new IDs */
	bool valid[KEYS_MAX];      /* IDs of this rotation are still decoded */
	uint8_t key[KEYS_MAX][16]; /* AES-128; zeros where not valid */
	uint8_t token_secret[32];  /* for reset and address-validation tokens */
	bool given;                /* by a file */
	uint32_t foreign; /* bit i: a new key gets another rotation than i, which is another
			   * service's on a shared listener. Set by the owner; 0 at first. */

	/* Private from here. */
	char *directory;     /* NULL: in memory only */
	char *name;          /* of the state file */
	uint64_t next;       /* nonce prefix */
	uint64_t next_block; /* end of those that are reserved; at most 2^32 */
};

/*
 * Reads STATE_DIRECTORY/SERVICE:LISTENER.keys, or makes it (mode 0600) with a random key under
 * rotation 0 and a random token secret. (A listener's name has no colon, so the last one separates
 * the two.) The keys of key_file (NULL: none), where given, come before those of the state, which
 * stay there for the day that the file is given no more.
 *
 * state_directory NULL: nothing is kept; connection IDs and tokens are void with this process, and
 * with a key_file the clock alone keeps nonces apart (see keys_next_nonce_prefix()). The caller
 * should warn.
 *
 * A file that can't be understood, belongs to another user, or could be read by others is an error:
 * never replaced, since connections may hang on it. On failure negative errno and *ret_error a
 * sentence to free(), NULL with -ENOMEM; -EBADMSG: a file's contents are wrong; -EPERM: its owner
 * or mode is. Blocks for disk only.
 */
int keys_open(struct keys **ret, const char *state_directory, const char *service,
	const char *listener, const char *key_file, char **ret_error);

/* Wipes and frees; NULL is fine. Returns NULL. What is on disk stays. */
struct keys *keys_free(struct keys *keys);
void keys_freep(struct keys **keys);

/*
 * Four octets (a number, big-endian) that no grant under the current key had before, also across
 * restarts and crashes, and also if two daemons use one state file: blocks of 1,024 are reserved by
 * a write that is on disk before the first of them is given out.
 *
 * A block begins at what is stored for the key, or at the lower 32 bits of time(2) where that is
 * more. So a state that was lost or restored from an old copy repeats nothing either, as long as
 * grants came slower than one a second on average and the clock is right; with an intact state the
 * clock does not matter.
 *
 * -EOVERFLOW: the key has given out all; rotate it. Else the error of reading or writing the state
 * file (-EBADMSG: it can't be understood, -EPERM, -ENOSPC ...): nothing is given out.
 */
int keys_next_nonce_prefix(struct keys *keys, uint8_t ret_prefix[4]);

/*
 * Makes a new key under the next free rotation after the current one, and makes it the current one;
 * on disk before it returns. The old one stays valid. Unchanged on failure: -EBUSY: every rotation
 * is still valid. -EOPNOTSUPP: keys come from a file. -ESTALE: somebody else changed the keys of
 * the state file. Else an error of reading or writing it.
 */
int keys_rotate(struct keys *keys);

/*
 * Forgets the keys of the rotations in keys->foreign: their IDs can't be told from those of another
 * service. If the current one is among them, a new key is made as by keys_rotate(). 0, also if none
 * was; else as keys_rotate(), and nothing is changed.
 */
int keys_avoid_foreign(struct keys *keys);

/*
 * The IDs of this rotation are gone: forgets its key. 0 also if it was not valid; -EINVAL: it is
 * the current one, or none. If it can't be taken off the disk it is forgotten in memory all the
 * same, and the error returned: the next start would decode it again. Keys of a file: in memory
 * only.
 */
int keys_retire(struct keys *keys, uint8_t rotation);

/*
 * For the next process of this daemon: all that keys_open() can't read again where there is no
 * state directory, or where the files can't be read any more. NULL without memory. A block of nonce
 * prefixes is not gone on with. -EBADMSG: it is not what keys_to_json() made.
 */
json_t *keys_to_json(const struct keys *keys);
int keys_from_json(struct keys **ret, const json_t *json, const char *state_directory,
	const char *service, const char *listener);
