/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * A listener that several services share (docs/sni-routing.md): what the program, the daemon and
 * the classifier must agree on, beside layout.h and quic_layout.h. Compiled on all sides.
 *
 * The classifier reads what a new connection asks for and writes here which service it is for;
 * which worker of that service, the program decides. Nothing in these two maps names a worker or a
 * key, so whoever takes over the classifier can do no more than send new connections to the wrong
 * service.
 */
#pragma once

#include "layout.h"
#include "quic_layout.h"

/* Services of one shared listener. One rotation of seven is left for whoever changes its key. */
#define SHARE_MAX 6
#define SHARE_KEYS 8        /* power of two above it */
#define SHARE_NONE 0xff     /* no service */
#define SHARE_ROW SHARE_MAX /* counters of packets that are no service's */
/* Index in socket_map of the classifier's socket. Empty: the default service. */
#define INDEX_CLASSIFIER INDEX_COUNT

/* What the program alone reads, written by the daemon. */
struct share_state {
	__u32 default_service;
	__u32 choice_mask; /* sets of choice_map less one */
	__u32 modes;       /* bit 1 << QUIC_MODE_...: of a service that is there */
	__u8 rotation_service[QUIC_ROTATIONS]; /* whose the rotation's key is; valid as in
						  quic_state.rotations */
};

/*
 * choice_map: an array of struct flow_set (layout.h), share_page.choice_mask + 1 of them. A word is
 * flow_word(tag, service, tick), with the number of the service where the flow map has a slot, and
 * 0 is free. Set and tag are those of quic_cid_hash() of the client's first destination connection
 * ID, in the same way as in the flow map: quic_flow_set() & choice_mask, quic_flow_tag().
 *
 * The classifier alone writes, one aligned 64-bit store a choice. A set that is full loses its
 * oldest word: what was chosen is asked for only until the first datagram that came again has made
 * an entry in the flow map.
 */
#define CHOICE_TICKS 56 /* a choice is valid so long: 15 s, as a handshake in the flow map */

/* What the program does with what it would send to the classifier; share_page.follow. */
enum share_follow {
	SHARE_FOLLOW,         /* sends it */
	SHARE_FOLLOW_DEFAULT, /* gives it to the default service */
	SHARE_FOLLOW_DROP,    /* drops it in silence: the client sends it again */
};

/* Written by the classifier, of all that it gets since the share is there. */
enum share_counter {
	SHARE_DATAGRAMS,       /* received */
	SHARE_NO_INITIAL,      /* of these: with nothing that could begin a connection; dropped */
	SHARE_TOO_SHORT,       /* with an Initial in less than 1200 octets; dropped */
	SHARE_BY_NAME,         /* connections chosen by an exact name */
	SHARE_BY_SUFFIX,       /* by *.suffix */
	SHARE_BY_PROTOCOL,     /* by ALPN alone */
	SHARE_NO_NAME,         /* given to the default: no server name */
	SHARE_NO_MATCH,        /* no rule for its name and protocols */
	SHARE_MALFORMED,       /* datagrams of connections that break the rules; dropped */
	SHARE_TOO_SLOW,        /* given to the default: not complete in time */
	SHARE_TOO_MANY,        /* pushed out, or more than is kept of one */
	SHARE_UNAUTHENTICATED, /* Initials whose tag no key matches */
	SHARE_RESENT,          /* datagrams given back to the kernel */
	SHARE_LOST,            /* that could not be given back */
	SHARE_LOOPED,          /* that came a third time; dropped */
	SHARE_OVERLOADS,       /* how often it began to say that it can't follow */
	SHARE_COUNTERS = 32,   /* with room for others */
};

/*
 * One page, mapped by all three. The daemon writes what is above the line before the classifier
 * starts, and counts `owner` up for each whose socket it has put into the group.
 */
struct share_page {
	struct quic_hash_key hash_key; /* a copy; the program has its own */
	__u32 choice_mask;             /* sets of choice_map less one */
	__u32 cpu_percent;             /* ClassifierShare=, of one core; 0: no bound */
	__u32 overflow;                /* enum share_follow, to be said beyond that bound */
	__u32 owner;
	/* ---- by the classifier ---- */
	__u32 follow; /* enum share_follow, read by the program. The daemon clears it at a start. */
	__u32 alive;  /* counted up at least once a second; one that stands still is replaced */
	__u64 counter[SHARE_COUNTERS];
};
