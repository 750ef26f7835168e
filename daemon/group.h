/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A group: the kernel's reuseport group of one listener, with its program, its maps and the two
 * sockets that the daemon keeps in it.
 *
 * The sink is the socket that the kernel meets first when it looks for the address, and it must be
 * ours: whatever a worker does to its own socket (SO_REUSEPORT cleared, program detached), the
 * kernel starts from the sink's view of the group. IPv4 meets the newest member first, IPv6 the
 * oldest (udp_lib_get_port, __inet_hash: hlist_add_tail_rcu for IPv6 with SO_REUSEPORT;
 * Linux 6.18), so the IPv4 sink is made anew after every worker socket. It is never selected for
 * traffic.
 *
 * The standby holds what no worker can take. TCP: a listening socket at INDEX_STANDBY; replacing it
 * by a new one and closing it moves what waits to a worker. UDP: a socket that stands at the slot
 * of the next worker, and becomes that worker's socket with all that waits in it.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

#include "bpf/layout.h"
#include "daemon/config.h"
#include "daemon/maglev.h"
#include "daemon/sink.h"

struct bpf_object;
struct group_quic;
struct group_share;
struct store;

/* Maps that outlive the daemon; those that a program does not have stay unused. */
enum group_map {
	GROUP_SOCKETS,
	GROUP_COUNTERS,
	GROUP_SLOT_COUNTERS,
	GROUP_LISTENER_MAP,
	GROUP_SLOT_KEYS,
	GROUP_FLOWS,
	GROUP_QUIC_STATE,
	GROUP_DCIDS,
	GROUP_DCID_CACHE,
	GROUP_COOKIES,
	GROUP_CID_CACHE,
	GROUP_LISTENER_MAPS, /* from here: of a shared listener */
	GROUP_SLOT_SERVICES,
	GROUP_SHARE_STATE,
	GROUP_SHARE_PAGE,
	GROUP_CHOICES,
	GROUP_MAPS,
};

struct group {
	/* Of a listener that services share: what they have in common, which is no listener's. The
	 * group of each has its listener map and standby, and reaches the rest by the fields up to
	 * n_flow_sets, which are the whole's. Otherwise itself. */
	struct group *whole;
	uint32_t number; /* of the service on a shared listener; of the whole: SHARE_ROW */
	struct group_share *share;         /* NULL where nothing is shared */
	struct listener_map *listener_map; /* mapped, shared with the program */
	struct group_head *head;           /* mapped */
	int socket_map;
	int group_cpu;
	int slot_counters;
	uint32_t *slot_key;      /* mapped: which slots are open */
	struct flow_set *flows;  /* mapped; NULL for TCP */
	struct group_quic *quic; /* NULL for others */
	size_t n_flow_sets;
	struct bpf_object *object;
	int program;
	int guard; /* of the daemon, -1: none */
	void *bss; /* mapped */
	size_t bss_size;
	bool dormant; /* others' program has the group: see group_wake() */
	int sink;
	struct sink_filter sink_filter; /* its counter goes on when the sink is made anew */
	int standby;                    /* -1: none */
	uint32_t standby_index;         /* where it stands, INDEX_NONE without */
	bool standby_lent;              /* UDP: a joining worker has it as its socket */
	bool told_of_waiting;           /* UDP: that what waits there can't be delivered again */
	uint64_t *waiting; /* ring of samples, for StandbyTimeoutSec: group_expire_standby() */
	size_t n_waiting, next_waiting;
	uint64_t left;    /* of those that came to the standby: how many are no longer there */
	uint64_t expired; /* connections or datagrams that waited too long, in all */
	uint64_t generation;
	uint64_t members_hash;  /* of those that the current table is made for; 0: not known */
	uint64_t switched_usec; /* of the last switch of tables, CLOCK_REALTIME; 0: never */
	struct store *store;
	uint32_t map_entry[GROUP_MAPS]; /* in the store; 0: none */
	bool inherited[GROUP_MAPS];     /* taken over, with what is in it */
	uint32_t sink_entry, standby_entry;
};

/* Where a group belongs: its number in events, the ring buffer that all groups share, the store
 * that keeps what outlives the daemon. */
struct group_place {
	uint32_t number;
	int ring;
	struct store *store;
	int guard;       /* guard_map(), -1: none */
	bool takes_over; /* workers of an earlier daemon may have the address */
};

/*
 * Makes the group with its sink and attaches the program. On failure a negative errno and
 * *ret_error a sentence that the caller frees. Where the sockets of an earlier daemon's workers
 * have the address, and place->takes_over: dormant, nothing is bound and attached yet.
 */
int group_new(struct group **ret, const struct listener_config *config,
	const struct group_place *place, char **ret_error);
/*
 * The daemon's sockets join a dormant group, where the earlier program gives them nothing; UDP: the
 * standby at slot. There is one in any case. Then group_heal() switches to this program, and what
 * comes waits in the standby until the workers' sockets are at their slots. The group stays dormant
 * until group_awake().
 */
int group_wake(struct group *group, const struct listener_config *config, uint16_t slot,
	const char **ret_step);
void group_awake(struct group *group, const struct listener_config *config);
/*
 * What an earlier daemon had, as group_to_json() said: the same maps, sink and standby, the program
 * of this build. It is not attached yet: first comes what group_reconcile() and
 * group_set_members() put into the maps, then group_heal().
 */
int group_resume(struct group **ret, const struct listener_config *config,
	const struct group_place *place, const json_t *saved, char **ret_error);
/* The group of a service that shares the listener of whole, under a number that nobody has. whole
 * must outlive it. -ENOMEM. */
int group_join(struct group **ret, struct group *whole, uint32_t number,
	const struct listener_config *config);
int group_resume_joined(struct group **ret, struct group *whole, uint32_t number,
	const struct listener_config *config, const json_t *saved);
/* A new reference. */
json_t *group_to_json(const struct group *group);
/*
 * Makes the maps agree with the workers. open[slot]: packets may go there; held[slot]: somebody has
 * it. Takes out what nobody has, and puts the daemon's own sockets where they are missing.
 */
void group_reconcile(struct group *group, const struct listener_config *config, const bool *open,
	const bool *held);
/* The listener is closed: new connections are refused from now on, workers keep those they have. */
void group_refuse(struct group *group);
/* Lets go. The program, its maps and the workers' sockets live on as they are. NULL is allowed. */
struct group *group_free(struct group *group);

/*
 * Makes a worker's socket and puts it at slot. Where the UDP standby stands at that slot, it is
 * that socket (a duplicate, until group_settle_standby()). Returns the descriptor, to be closed by
 * the caller once it is sent, or a negative errno with *ret_step as socket_new().
 */
int group_add_socket(struct group *group, const struct listener_config *config, uint16_t slot,
	const char **ret_step);
/*
 * Puts a socket at slot that a server made and socket_adopt() bound; TCP: it listens. fd stays the
 * caller's. A negative errno with *ret_step: take it out again by group_remove_socket(). -EBUSY: it
 * stands at a slot already.
 */
int group_adopt_socket(struct group *group, const struct listener_config *config, uint16_t slot,
	int fd, const char **ret_step);
/*
 * Once a UDP socket is bound into the group, at a slot or not: its holder can attach nothing to it,
 * and the kernel meets the sink first.
 */
int group_guard_socket(
	struct group *group, const struct listener_config *config, int fd, const char **ret_step);
/* The socket gets nothing any more, whatever its holders do. */
int group_silence_socket(int fd);
/* Whether packets may go to the slot: not before its worker is past joining. */
void group_open_slot(struct group *group, uint16_t slot, bool open);
/* Takes the slot out of the map, if it stands there, and forgets its flows. */
void group_remove_socket(struct group *group, uint16_t slot);
/* Whether the slot has a socket; *ret_cookie (may be NULL) is its SO_COOKIE. */
bool group_has_socket(const struct group *group, uint16_t slot, uint64_t *ret_cookie);

/* Fills the spare table and switches to it, unless it says the same. n_members 0: nobody is active.
 * -ENOMEM. */
int group_set_members(struct group *group, const struct maglev_member *members, size_t n_members);

/* What the worker at slot says of itself, 0 .. 1000; and whether that counts for new connections.
 */
void group_set_load(struct group *group, uint16_t slot, uint16_t load);
void group_use_loads(struct group *group, bool use);

/* A standby where there is none and one is wanted; UDP: at slot. */
int group_make_standby(struct group *group, const struct listener_config *config, uint16_t slot,
	const char **ret_step);
/* A worker is active: TCP: what waits moves to it. UDP: the lent standby is the worker's now, and
 * what waits in one that is not lent is delivered again (redeliver.h). */
void group_settle_standby(struct group *group, const struct listener_config *config);
/* Once a second: nothing waits in the standby while somebody is active. The kernel puts a
 * connection there by its hash in the moment for which a worker has detached the program; and a
 * datagram comes there in the moment in which the last worker but one has ended. */
void group_empty_standby(struct group *group, const struct listener_config *config);
/* Connections that wait in the TCP standby; 0 when that can't be told. */
uint32_t group_standby_queue(const struct group *group);
/* Once a second: resets or drops what has waited longer than the listener allows. */
void group_expire_standby(struct group *group, const struct listener_config *config);

/* Attaches the program again: heals a group whose program a worker detached. */
int group_heal(struct group *group);

void group_read_counters(const struct group *group, uint64_t verdicts[VERDICT_COUNT]);
void group_read_slot(const struct group *group, uint16_t slot, struct slot_counters *ret);
/* A slot that changes hands starts at zero. */
void group_reset_slot(const struct group *group, uint16_t slot);
