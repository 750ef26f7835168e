/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The worker protocol: what a server process (through libreuseport or reuseport-run) and the daemon
 * say to each other over worker.sock.
 *
 * Transport: AF_UNIX SOCK_SEQPACKET. One packet is one message with one set of descriptors
 * (SCM_RIGHTS); descriptors of different messages never mix, as they may on SOCK_STREAM. Those of
 * clients are sockets of IPv4 and IPv6 and pidfds; a message with others is answered with ERROR
 * EBADF, and the connection stays.
 *
 * All integers are little-endian. A message is a header and a body of the size that its type fixes
 * (types with entries: a fixed part and `count` entries of fixed size). Bodies contain no padding
 * that carries meaning; reserved fields and unknown flags must be zero and are refused otherwise.
 *
 * Every request carries a sequence number of the client's choice; its answer (OK, WELCOME, GRANT or
 * ERROR) repeats it. Events have sequence 0 and may arrive at any time, between a request and its
 * answer as well. An unknown type is answered with ERROR, the connection stays. A message that
 * breaks the framing (size, magic, version, length, number of descriptors) gets ERROR and GOODBYE
 * and the connection ends; workers registered through it keep their slots while their process
 * lives.
 *
 *   client                         daemon
 *   HELLO [pidfd of itself]   ->
 *                             <-   WELCOME
 *   REGISTER                  ->
 *                             <-   GRANT (first worker)  [one descriptor a listener]
 *   ACK                       ->
 *                             <-   GRANT (second worker), ... one unacknowledged GRANT at a time
 *   ACK [pidfd of the server] ->
 *                             <-   OK, answer to the last ACK
 *   READY                     ->
 *                             <-   OK: the workers are active
 *   ...                       <-   DRAIN_REQUESTED (event)
 *   UNREGISTER or exit        ->
 *
 * A server that binds for itself is registered with PROTOCOL_REGISTER_ADOPT. It has no worker at
 * first; each socket that it is about to bind is brought, and gets a slot once packets can reach
 * it:
 *
 *   REGISTER (adopt)          ->
 *                             <-   GRANT of 0 workers: the listeners  [no descriptor]
 *   ACK [pidfd of the server] ->
 *                             <-   OK
 *   ADOPT (bind) [socket]     ->   unbound: bound into the listener's group
 *                             <-   OK
 *   ADOPT (listen) [socket]   ->   TCP: listens; UDP: its server waits for datagrams; has a slot
 *                             <-   OK
 *   READY                     ->   workers are active as soon as they have a slot, from now on
 *                             <-   OK
 *                             <-   GRANT (event): listeners were added to the service, behind the
 *                                  others; of those that were removed name and address are empty
 *
 * When the connection ended because the daemon did, and the next one knows nothing of the workers,
 * they come back with the sockets that they have:
 *
 *   RESUME (first worker) [its sockets, pidfd of the server]  ->
 *                             <-   OK: noted
 *   RESUME (second worker) [its sockets], ... ->
 *                             <-   OK
 *                             <-   GRANT (event), for each worker, without descriptors: it is
 *                                  in effect; slot, registration and keys may be others
 *
 * States of a worker: joining (from GRANT), active (from READY), draining, gone.
 */
#pragma once

#include <stdint.h>

#define PROTOCOL_MAGIC 0x44505552u   /* "RUPD" */
#define PROTOCOL_VERSION 1           /* the only one so far */
#define PROTOCOL_MESSAGE_MAX 16384   /* octets, header included */
#define PROTOCOL_DESCRIPTORS_MAX 253 /* SCM_MAX_FD, Linux */
#define PROTOCOL_NAME_MAX 64         /* octets of a name, terminating NUL included */
#define PROTOCOL_TEXT_MAX 512        /* octets of an error text, terminating NUL included */
#define PROTOCOL_LISTENERS_MAX 64    /* listeners of one service */
#define PROTOCOL_WORKERS_MAX 1024    /* workers of one REGISTER */
#define PROTOCOL_CIDS_MAX 512        /* connection IDs in one CID_ADD or CID_RETIRE */
#define PROTOCOL_CID_OCTETS 20       /* longest connection ID, RFC 9000 section 17.2 */

enum protocol_type {
	/* client to daemon */
	PROTOCOL_HELLO = 1,
	PROTOCOL_REGISTER = 2,
	PROTOCOL_ACK = 3,
	PROTOCOL_READY = 4,
	PROTOCOL_DRAIN = 5,
	PROTOCOL_UNREGISTER = 6,
	PROTOCOL_CID_ADD = 7,
	PROTOCOL_CID_RETIRE = 8,
	PROTOCOL_ADOPT = 9,
	PROTOCOL_RESUME = 10,
	PROTOCOL_LOAD = 11,
	/* daemon to client: answers */
	PROTOCOL_WELCOME = 64,
	PROTOCOL_GRANT = 65,
	PROTOCOL_OK = 66,
	PROTOCOL_ERROR = 67,
	PROTOCOL_LOADS = 68,
	/* daemon to client: events, sequence 0 */
	PROTOCOL_DRAIN_REQUESTED = 128,
	PROTOCOL_KEYS_ROTATED = 129,
	PROTOCOL_GOODBYE = 130,
	PROTOCOL_STALLED = 131,
	PROTOCOL_ADOPTED = 132,
};

enum protocol_transport {
	PROTOCOL_TCP = 1,
	PROTOCOL_UDP = 2,
	PROTOCOL_QUIC = 3,
};

/* How the connection IDs of a QUIC listener name their worker; 0 for TCP and UDP. */
enum protocol_cid_mode {
	PROTOCOL_CID_NONE = 0,
	PROTOCOL_CID_QUIC_LB = 1, /* encrypted, draft-ietf-quic-load-balancers-21 section 5.4 */
	PROTOCOL_CID_QUIC_LB_PLAIN = 2, /* unencrypted, same draft section 5.2 */
	PROTOCOL_CID_REGISTERED = 3,    /* the server tells each ID with CID_ADD */
	PROTOCOL_CID_NGINX = 4,  /* SO_COOKIE of the socket in the first 8 octets, big-endian */
	PROTOCOL_CID_OPAQUE = 5, /* nothing is known of them */
};

struct protocol_header {
	uint32_t magic;    /* PROTOCOL_MAGIC */
	uint16_t version;  /* PROTOCOL_VERSION; in HELLO: any, the range is in its body */
	uint16_t type;     /* enum protocol_type */
	uint32_t sequence; /* of the request; events: 0 */
	uint32_t length;   /* octets of the body that follows */
	uint16_t n_descriptors;
	uint16_t reserved;
	uint32_t reserved2;
} __attribute__((packed));

/* What a descriptor is for; descriptor i of a message is described by roles of its body. */
struct protocol_hello {
	uint16_t version_min;
	uint16_t version_max;
	uint32_t flags; /* 0 */
	/* 0 or 1 descriptor: a pidfd of the client itself, for kernels without SO_PEERPIDFD (before
	 * Linux 6.5). Its pid is checked against SCM_CREDENTIALS, which the client sends with it:
	 * the kernel adds none if the message is there before the daemon asks for them. */
} __attribute__((packed));

struct protocol_welcome {
	uint16_t version; /* chosen; every later header carries it */
	uint16_t reserved;
	uint32_t message_max;    /* octets */
	uint32_t workers_max;    /* in one REGISTER */
	uint32_t answer_msec;    /* deadline for each ACK, milliseconds */
	uint32_t flags;          /* 0 */
	char daemon_version[32]; /* NUL terminated */
} __attribute__((packed));

/*
 * The workers bring their sockets with ADOPT. n_workers is how many there may be at once: a slot is
 * taken when a socket needs one. Sockets of different listeners share a slot, in the order in which
 * they come: the third of each is the third worker's. Slots whose sockets were closed are used
 * again.
 */
#define PROTOCOL_REGISTER_ADOPT 1u

struct protocol_register {
	char service[PROTOCOL_NAME_MAX];  /* NUL terminated */
	char instance[PROTOCOL_NAME_MAX]; /* NUL terminated; empty: the daemon makes one up */
	uint32_t n_workers;               /* 1 .. workers_max: a slot and a set of sockets each */
	uint32_t weight;                  /* 1 .. 1000, 0 means the default, 100 */
	uint32_t flags;                   /* PROTOCOL_REGISTER_ADOPT */
} __attribute__((packed));

#define PROTOCOL_NO_DESCRIPTOR 0xffffu

/* One listener of a granted worker. Descriptor `descriptor` of the message is its socket; where
 * n_workers is 0 (PROTOCOL_REGISTER_ADOPT), and in an event, there is none, and it is
 * PROTOCOL_NO_DESCRIPTOR. */
struct protocol_grant_listener {
	char name[PROTOCOL_NAME_MAX];
	char address[PROTOCOL_NAME_MAX]; /* "192.0.2.1:443" or "[2001:db8::1]:443" */
	uint8_t transport;               /* enum protocol_transport */
	uint8_t cid_mode;                /* enum protocol_cid_mode */
	uint16_t descriptor;             /* index into the descriptors of this message */
	/* Connection-ID configuration, for PROTOCOL_CID_QUIC_LB and _PLAIN; else zero. */
	uint8_t config_rotation; /* 0 .. 6 */
	uint8_t server_id_length;
	uint8_t nonce_length;
	uint8_t reserved;
	uint8_t server_id[16];   /* of this worker */
	uint8_t key[16];         /* AES-128; zero for _PLAIN */
	uint8_t nonce_prefix[4]; /* the first octets of every nonce: unique to this grant and key */
	/* QUIC, every mode: secret that all workers of the listener share, for stateless reset
	 * tokens (RFC 9000 section 10.3.2) and address-validation tokens (section 8.1.3). */
	uint8_t token_secret[32];
} __attribute__((packed));

struct protocol_grant {
	uint32_t registration; /* names this REGISTER in READY, DRAIN, UNREGISTER; never reused */
	uint32_t worker;       /* 0 .. n_workers - 1 */
	uint32_t n_workers;    /* 0: the workers bring their sockets, `worker` and `slot` are 0 */
	uint16_t slot;
	uint16_t n_listeners;
	char instance[PROTOCOL_NAME_MAX];
	/* followed by n_listeners of struct protocol_grant_listener */
} __attribute__((packed));

#define PROTOCOL_ACK_PROCESS \
	1u /* descriptor 0: pidfd of the server process, same user as the client */

struct protocol_ack {
	uint32_t registration;
	uint32_t worker;
	uint32_t flags;
	uint32_t reserved;
} __attribute__((packed));

/* READY, DRAIN, UNREGISTER, LOAD: all workers of the registration. */
struct protocol_registration {
	uint32_t registration;
	uint32_t flags; /* 0 */
} __attribute__((packed));

enum protocol_adopt_step {
	/*
	 * The socket is unbound. The daemon checks it, makes it its own (fchown(2), CAP_CHOWN),
	 * sets SO_REUSEPORT and what the listener's configuration says, and binds it to the
	 * listener's address. It gets nothing yet. On an ERROR it is unbound still, and its owner
	 * the one before.
	 */
	PROTOCOL_ADOPT_BIND = 1,
	/*
	 * The socket was bound so. TCP: it is to listen with `backlog`. UDP and QUIC: its server
	 * has begun to wait for datagrams; `backlog` means nothing. It has a slot then. Again for
	 * one that has: the backlog is changed. ENOENT: it was never adopted.
	 */
	PROTOCOL_ADOPT_LISTEN = 2,
};

/*
 * 1 descriptor: the socket. Answered with OK when all was done. ERROR: EXDEV: the socket belongs to
 * another network namespace than the listener; EINVAL: it is bound already; EOPNOTSUPP: not of the
 * listener's type, protocol or family; EPERM: the daemon lacks CAP_CHOWN; EDQUOT: too many workers;
 * ESHUTDOWN: the registration drains; else what the system said.
 */
struct protocol_adopt {
	uint32_t registration;
	uint16_t listener; /* index in the GRANT */
	uint16_t step;     /* enum protocol_adopt_step */
	uint32_t backlog;  /* LISTEN: of listen(2); else 0 */
	uint32_t flags;    /* 0 */
} __attribute__((packed));

/* Event, before the OK to ADOPT, and before the GRANT after a RESUME where it is another than was
 * asked for: the socket has this slot. */
struct protocol_adopted {
	uint32_t registration;
	uint16_t listener; /* index in the GRANT */
	uint16_t slot;
	uint64_t cookie; /* SO_COOKIE of the socket */
} __attribute__((packed));

#define PROTOCOL_RESUME_READY 1u    /* it was READY */
#define PROTOCOL_RESUME_DRAINING 2u /* it drains; with READY */
#define PROTOCOL_RESUME_PROCESS 4u  /* the last descriptor: pidfd of the server, as in ACK */

#define PROTOCOL_RESUME_BOUND 1u /* of a listener: ADOPT has bound its socket, no more */
#define PROTOCOL_NO_SLOT 0xffffu

/* A listener as it was granted. */
struct protocol_resume_listener {
	char name[PROTOCOL_NAME_MAX];
	char address[PROTOCOL_NAME_MAX];
	uint8_t transport;   /* enum protocol_transport */
	uint8_t cid_mode;    /* enum protocol_cid_mode */
	uint16_t descriptor; /* its socket, or PROTOCOL_NO_DESCRIPTOR: it was closed */
	uint32_t flags;      /* PROTOCOL_RESUME_BOUND */
} __attribute__((packed));

/*
 * One worker of a registration that an earlier daemon made; the first one is worker 0. OK: noted,
 * and in effect with the GRANT that follows as an event. ERROR: the registration is not resumed,
 * the connection stays: EACCES, ENOENT and EDQUOT as for REGISTER; EINVAL: not in order, or not as
 * the RESUME before; EBADF: a descriptor is not the socket that it should be; EEXIST: the slot is
 * another's, and a QUIC listener's connection IDs name it.
 *
 * One that adopts (max_workers) comes back with what it has: workers with sockets of one slot each,
 * sockets that have none yet in the places where these have none, and what is left, or nothing at
 * all, in workers of PROTOCOL_NO_SLOT. n_workers is the number of these messages, 1 at least. One
 * GRANT follows, as after REGISTER.
 */
struct protocol_resume {
	char service[PROTOCOL_NAME_MAX];
	char instance[PROTOCOL_NAME_MAX];
	uint32_t worker;
	uint32_t n_workers;
	uint32_t weight; /* as in REGISTER */
	uint32_t flags;  /* PROTOCOL_RESUME_... */
	uint16_t slot;   /* of its GRANT, or PROTOCOL_NO_SLOT */
	uint16_t n_listeners;
	/* n_workers of REGISTER with PROTOCOL_REGISTER_ADOPT, else 0 */
	uint32_t max_workers;
	/* followed by n_listeners of struct protocol_resume_listener */
} __attribute__((packed));

struct protocol_cid {
	uint8_t length; /* 1 .. 20 */
	uint8_t id[PROTOCOL_CID_OCTETS];
	uint8_t reserved[3];
} __attribute__((packed));

/* CID_ADD, CID_RETIRE: answered with OK when all were carried out; else ERROR, and none was. */
struct protocol_cids {
	uint32_t registration;
	uint32_t worker;
	uint16_t listener; /* index in the GRANT; its mode must be PROTOCOL_CID_REGISTERED */
	uint16_t count;    /* 1 .. PROTOCOL_CIDS_MAX */
			   /* followed by count of struct protocol_cid */
} __attribute__((packed));

struct protocol_ok {
	uint32_t reserved;
} __attribute__((packed));

#define PROTOCOL_LOAD_OCTETS 64 /* of a worker: a cache line, so that no two meet in one */
#define PROTOCOL_LOAD_MAX 1000

/*
 * Answer to LOAD. Descriptor 0: memory (memfd_create(2)) to map shared, of n_workers times
 * PROTOCOL_LOAD_OCTETS, sealed against growing and shrinking. Where the part of a worker begins
 * there is a uint32_t, little-endian: its load plus 1, load 0 .. PROTOCOL_LOAD_MAX; 0: it says
 * nothing. What is more counts as PROTOCOL_LOAD_MAX. LOAD again gives the same memory.
 */
struct protocol_loads {
	uint32_t registration;
	uint32_t n_workers;
} __attribute__((packed));

struct protocol_error {
	uint32_t error;               /* errno of Linux, positive */
	char text[PROTOCOL_TEXT_MAX]; /* what was wrong, for a person; NUL terminated */
} __attribute__((packed));

enum protocol_drain_reason {
	PROTOCOL_DRAIN_OPERATOR = 1, /* asked for over the control socket */
	PROTOCOL_DRAIN_REPLACED = 2, /* a new worker of the same instance is ready */
	PROTOCOL_DRAIN_RELOAD = 3,   /* the service left the configuration */
	PROTOCOL_DRAIN_SHUTDOWN = 4, /* the daemon stops for good; none does so yet */
	PROTOCOL_DRAIN_STALLED = 5,  /* its accept queue stood still and was taken away */
};

/* Event: the workers of the registration got no new connection from now on: finish and exit. */
struct protocol_drain_requested {
	uint32_t registration;
	uint32_t reason;        /* enum protocol_drain_reason */
	uint64_t deadline_usec; /* from now, microseconds; 0: none */
} __attribute__((packed));

/* Event: new connection IDs are to be made with this configuration; the old one stays readable.
 * One event for each worker and listener. */
struct protocol_keys_rotated {
	uint32_t registration;
	uint32_t worker;
	uint16_t listener;
	uint16_t reserved;
	uint8_t config_rotation;
	uint8_t server_id_length;
	uint8_t nonce_length;
	uint8_t reserved2;
	uint8_t server_id[16];
	uint8_t key[16];
	uint8_t nonce_prefix[4];
} __attribute__((packed));

/*
 * Event: what waits for the worker stands still while other workers of the service take theirs. It
 * gets no new connections until its queue moves again, which is the event with stalled 0.
 */
struct protocol_stalled {
	uint32_t registration;
	uint32_t worker;
	uint32_t stalled; /* 1: from now on; 0: no longer */
	uint32_t reserved;
} __attribute__((packed));

/* Event: the daemon closes this connection after it. */
struct protocol_goodbye {
	uint32_t error; /* errno of Linux, positive; 0: the daemon stops in an orderly way */
	char text[PROTOCOL_TEXT_MAX];
} __attribute__((packed));
