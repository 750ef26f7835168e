/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What the programs and the daemon must agree on: indexes of the socket map, layout of the listener
 * map, the flow map and the counters. Compiled on both sides.
 */
#pragma once

#include <linux/types.h>

/*
 * What lies in each map. A daemon that starts again takes a map over if it has the same number and
 * shape; another one is made anew, and filled before the new program takes the group. Count up what
 * you change.
 */
#ifndef LAYOUT_LISTENER_MAP
#define LAYOUT_LISTENER_MAP 2
#endif
#ifndef LAYOUT_FLOW_MAP
#define LAYOUT_FLOW_MAP 1
#endif
#ifndef LAYOUT_COUNTERS
#define LAYOUT_COUNTERS 2
#endif
#ifndef LAYOUT_QUIC
#define LAYOUT_QUIC 1
#endif
#ifndef LAYOUT_SHARE
#define LAYOUT_SHARE 1
#endif

#define SLOT_COUNT 4096    /* slots of the daemon: 0 .. 4095 */
#define INDEX_STANDBY 4096 /* socket_map: standby of a TCP listener */
#define INDEX_SINK 4097    /* socket_map: the socket whose filter drops everything */
#define INDEX_COUNT 4098
#define INDEX_KEYS 8192 /* power of two above INDEX_COUNT */
#define INDEX_NONE 0xffffffffu

/* Room for entries of a Maglev table: prime, the largest that leaves indexes in 16 bits. */
#define TABLE_SIZE 65521
#define TABLE_ROOM 65536
/* Workers tried, in this run of the program, when the chosen one's socket is gone. */
#define FALLBACK_TRIES 64

struct listener_table {
	__u32 n_active;            /* 0: nobody, the standby takes it */
	__u32 n_entries;           /* prime, at most TABLE_SIZE; few are few cache lines */
	__u16 active[SLOT_COUNT];  /* the n_active slots, in order: where fallback looks */
	__u16 entries[TABLE_ROOM]; /* Maglev: hash -> slot */
};

/* What a group has once, however many listener maps there are. */
struct group_head {
	__u32 flow_mask;    /* sets of the flow map less one */
	__u32 flow_timeout; /* ticks */
	__u32 group;        /* number of the group, for events */
	__u32 reported;     /* 1: an event is on its way that the daemon has not handled yet */
};

/*
 * Written by the daemon through its mapping, read by the program. The table that is not current is
 * filled, then `current` is switched: one word, so a reader sees the old table or the new one.
 */
struct listener_map {
	__u32 current;          /* 0 or 1: a table; and LISTENER_LOADS */
	__u32 standby;          /* index in socket_map, or INDEX_NONE: refuse */
	struct group_head head; /* of a group that has one listener map; else unused */
	struct listener_table tables[2];
	__u16 load[SLOT_COUNT]; /* 0 .. 1000, with LISTENER_LOADS */
};

/* Bit of listener_map.current: workers say how loaded they are, and of two candidates the less
 * loaded one is chosen. Here, in a word that is read anyway, it costs those nothing who don't. */
#define LISTENER_LOADS 2

/* Hash of the second candidate. Entries go by the upper bits, on which after this all lower ones
 * bear; the hash being keyed, the two candidates are as good as independent. */
#define SECOND_HASH(hash) ((__u32)(hash)*0x9e3779b1u)

/*
 * Flow map: sets of eight words in one cache line. A word is tag << 32 | slot << 16 | tick; 0 is
 * free. One aligned 64-bit store changes it: no lock, no torn entry. Entries that live are never
 * pushed out by others: a full set remembers no newcomer, which then goes by the listener map.
 */
#define FLOW_WAYS 8
#define FLOW_TICK_SHIFT 28 /* a tick is 2^28 ns, 0.268 s; 16 bits of it wrap after 4.9 hours */
#define FLOW_TIMEOUT_MAX 0x7fff

struct flow_set {
	__u64 word[FLOW_WAYS];
};

/* Age in ticks; 16 bits, modular. */
static inline __attribute__((always_inline)) __u32 flow_age(__u64 word, __u32 now)
{
	return (now - (__u32)word) & 0xffff;
}

static inline __attribute__((always_inline)) __u64 flow_word(__u32 tag, __u32 slot, __u32 now)
{
	return (__u64)tag << 32 | (slot & 0xffff) << 16 | (now & 0xffff);
}

enum verdict {
	VERDICT_CONNECTION_ID, /* QUIC: by a connection ID that names its worker */
	VERDICT_FLOW,          /* an existing flow or handshake, by the flow map */
	VERDICT_LISTENER,      /* by the listener map */
	VERDICT_FALLBACK,      /* the chosen socket was gone, another active worker got it */
	VERDICT_MIGRATED,      /* TCP connection taken over from a socket that closed */
	VERDICT_STANDBY,       /* nobody active: the standby holds it */
	VERDICT_STRAY,   /* opens nothing and belongs to nobody here: TCP SYN cookie's ACK or late
			  * RST; QUIC packet of a connection that nobody has */
	VERDICT_DROPPED, /* refused: no worker and no standby */
	VERDICT_INVALID, /* QUIC: no packet header, dropped in silence */
	/* Of a shared listener, in the row that belongs to no service: */
	VERDICT_CLASSIFIER, /* to the classifier, and so not decided yet */
	VERDICT_UNREAD,     /* would have gone there, but it is not there or can't follow: to the
			     * default service, or dropped; counted there as well */
	VERDICT_COUNT,
};

/*
 * Per CPU, one a group: its counters, and room for a run of the program outside the stack, which
 * costs a barrier for each new place (group.bpf.h).
 */
struct group_cpu {
	__u64 verdict[VERDICT_COUNT];
	__u32 key;      /* a map key */
	__u32 flow_tag; /* of the hash that was looked up last: flow.bpf.h */
	__u32 flow_now;
	__u32 flow_way;
	__u64 room[32];
};

/* Per CPU, one a slot. */
struct slot_counters {
	__u64 packets;
	__u64 new_connections;
};

/* In the ring buffer that all groups share: the socket of a slot was found missing. */
struct slot_event {
	__u32 group;
	__u32 slot;
};
