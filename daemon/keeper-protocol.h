/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What daemon and keeper say to each other: SOCK_SEQPACKET, one message a packet, descriptors in
 * the order of the entries. Both are of one machine, so the byte order is the machine's; they may
 * be of two builds, since a keeper outlives the daemon that started it: hence the version.
 */
#pragma once

#include <stdint.h>

#define KEEPER_FILE "keeper.sock" /* in the runtime directory */
#define KEEPER_SOCKET 3           /* the keeper's, bound but not listening yet, when it starts */

#define KEEPER_MAGIC 0x504b5052 /* "RPKP" */
#define KEEPER_VERSION 1

#define KEEPER_BATCH 253 /* descriptors a message (SCM_MAX_FD, Linux) */
#define KEEPER_ENTRIES_MAX 65536

enum keeper_type {
	/* from the daemon */
	KEEPER_PUT = 1, /* entries, each with its descriptor; an entry of the same number goes */
	KEEPER_REMOVE,  /* entries; one that has gone already is no mistake */
	KEEPER_GIVE,    /* what has a number above that of the one entry; answered by ENTRIES */
	KEEPER_SYNC,    /* answered by DONE when all that came before is done */
	KEEPER_LEAVE,   /* the daemon ends in order: nothing is to be waited for but workers */
	KEEPER_FORGET,  /* somebody else has everything: end */
	/* to the daemon */
	KEEPER_ENTRIES, /* with their descriptors, upwards; none: those were all */
	KEEPER_DONE,
	KEEPER_BUSY, /* there is another daemon, which lives */
};

struct keeper_header {
	uint32_t magic;
	uint16_t version;
	uint16_t type;
	uint32_t n; /* entries that follow */
};

enum keeper_watch {
	KEEPER_NEVER = 0,
	KEEPER_HANGUP = 1, /* it goes when its peer has gone */
	KEEPER_PROCESS =
		2, /* a pidfd: it goes with the process, and is what is worth keeping for */
};

struct keeper_entry {
	uint32_t number; /* 1 and above, given once */
	uint8_t kind;    /* enum store_kind, for the daemon alone */
	uint8_t watch;
	uint16_t reserved;
};

struct keeper_message {
	struct keeper_header header;
	struct keeper_entry entries[KEEPER_BATCH];
	/* Beside the octets, not part of them: */
	int fds[KEEPER_BATCH];
	uint32_t n_fds;
};

/*
 * Nothing blocks. Receive: 1: a message, whose descriptors the caller closes; 0: the other side has
 * ended; -EAGAIN: nothing is there; -EBADMSG: not a message of this protocol.
 */
int keeper_receive(int socket, struct keeper_message *ret);
/* header.type, header.n, entries, and n_fds descriptors, which stay the caller's. -EAGAIN, -EPIPE.
 */
int keeper_send(int socket, struct keeper_message *message);
