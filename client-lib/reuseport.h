/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * libreuseport: how a server gets its sockets from reuseportd and stays in touch with it.
 *
 * A context (struct reuseport) is one connection to the daemon. It starts no thread, installs no
 * signal handler, prints nothing and keeps no global state. A context may be used by one thread at
 * a time, except the functions marked "any thread". Errors are returned as negative errno values;
 * reuseport_error() has the sentence. Outputs are untouched on failure.
 *
 *	struct reuseport *r;
 *	reuseport_open(&r, NULL, 1000);
 *	reuseport_register(r, "web", NULL, 1, 0, 1000);
 *	serve(reuseport_socket(r, 0, 0));
 *	reuseport_ready(r, 1000);
 *	... poll reuseport_get_fd() for reuseport_get_events(), then reuseport_dispatch(r, 0) ...
 *	reuseport_close(r);
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Where the daemon listens unless told otherwise; the environment variable REUSEPORT_SOCKET
 * comes before it. */
#define REUSEPORT_SOCKET_PATH "/run/reuseportd/worker.sock"

#define REUSEPORT_CID_OCTETS 20   /* longest connection ID, RFC 9000 section 17.2 */
#define REUSEPORT_TOKEN_OCTETS 16 /* stateless reset token, RFC 9000 section 10.3 */
#define REUSEPORT_SECRET_OCTETS 32

struct reuseport;

enum reuseport_transport {
	REUSEPORT_TCP = 1,  /* the socket listens already */
	REUSEPORT_UDP = 2,  /* bound */
	REUSEPORT_QUIC = 3, /* bound UDP socket, steered by connection ID */
};

enum reuseport_cid_mode {
	REUSEPORT_CID_NONE = 0,
	REUSEPORT_CID_QUIC_LB = 1,
	REUSEPORT_CID_QUIC_LB_PLAIN = 2,
	REUSEPORT_CID_REGISTERED = 3,
	REUSEPORT_CID_NGINX = 4,
	REUSEPORT_CID_OPAQUE = 5,
};

enum reuseport_drain_reason {
	REUSEPORT_DRAIN_OPERATOR = 1, /* somebody asked for it */
	REUSEPORT_DRAIN_REPLACED = 2, /* a new worker has the instance's name */
	REUSEPORT_DRAIN_RELOAD = 3,   /* the service has left the configuration */
	REUSEPORT_DRAIN_SHUTDOWN = 4, /* the daemon stops; not sent so far, its workers go on */
	REUSEPORT_DRAIN_STALLED = 5,  /* its accept queue stood still and was taken away */
};

/*
 * Called from reuseport_dispatch() (or kept and called at the next dispatch, when the event arrives
 * during another call). A callback may call any function on the context but reuseport_close().
 */
struct reuseport_callbacks {
	/* No new connection comes from now on; finish what is under way, then exit or
	 * reuseport_close(). deadline_usec: microseconds from now until the daemon takes the slot
	 * back, 0 for never. */
	void (*drain)(struct reuseport *r, enum reuseport_drain_reason reason,
		uint64_t deadline_usec, void *user_data);
	/* reuseport_cid_generate() makes IDs under a new key from now on; IDs made before stay
	 * valid. A server may give its live connections new IDs now. */
	void (*keys_rotated)(struct reuseport *r, unsigned listener, void *user_data);
	/* The connection to the daemon ended (error: negative errno, 0 for an orderly stop).
	 * Sockets and traffic go on; only new requests fail. Where workers are registered,
	 * reuseport_dispatch() connects again, in steps of up to 2 s, and gives them to the next
	 * daemon if that does not know them: resumed. Called once more, with the reason, when that
	 * daemon refuses. */
	void (*disconnected)(struct reuseport *r, int error, const char *text, void *user_data);
	/* stalled 1: what waits for this worker stands still while others take theirs, so it gets
	 * no new connections from now on. 0: its queue has moved, it gets them again. */
	void (*stalled)(struct reuseport *r, unsigned worker, int stalled, void *user_data);
	/* After disconnected: the next daemon knows the workers again, with the sockets that they
	 * have had all the time. Slots may have changed. Requests work again; IDs given to
	 * reuseport_cid_add() and reuseport_share_load() are to be given once more. */
	void (*resumed)(struct reuseport *r, void *user_data);
	/* To come back to a daemon, the sockets are needed. One that was taken and is not in this
	 * process any more (it was passed on): returns a duplicate of it, which the library closes,
	 * or a negative errno: nobody has it. */
	int (*find_socket)(
		struct reuseport *r, unsigned worker, unsigned listener, void *user_data);
	/* The same for a socket that was given to reuseport_adopt(), by its inode (fstat(2)). */
	int (*find_adopted)(struct reuseport *r, uint64_t inode, void *user_data);
};

/*
 * Connects to the daemon and agrees on the protocol version.
 * path: socket of the daemon, NULL for $REUSEPORT_SOCKET or REUSEPORT_SOCKET_PATH.
 * timeout_msec, here and below: at most so long, in milliseconds; 0 not at all, -1 for ever.
 * Returns 0 and a context in *ret that the caller ends with reuseport_close(). When nobody listens
 * at the path (ENOENT, ECONNREFUSED) and the process was started with LISTEN_FDS for itself
 * (sd_listen_fds(3)), returns 1 and a context that stands for those descriptors: see
 * reuseport_register(). Blocks. Errors: -ENOENT, -ECONNREFUSED, -EACCES, -ETIMEDOUT,
 * -EPROTONOSUPPORT (no common version), -EPROTO, -ENOMEM.
 */
int reuseport_open(struct reuseport **ret, const char *path, int timeout_msec);

/*
 * Closes the connection and every socket that reuseport_take_socket() has not given away, and frees
 * the context. Its slots empty themselves as the sockets close; what waited in their accept queues
 * moves to other workers. NULL is allowed. Does not block.
 */
void reuseport_close(struct reuseport *r);

/* The sentence for the last error of this context; never NULL, valid until the next call. */
const char *reuseport_error(const struct reuseport *r);

/* callbacks is copied; NULL members are not called; NULL takes them all away. */
void reuseport_set_callbacks(
	struct reuseport *r, const struct reuseport_callbacks *callbacks, void *user_data);

/*
 * Asks for n_workers slots (1 or more) of a service, each with one socket for every listener.
 * instance: stable name of this server across restarts; NULL lets the daemon make one up. weight:
 * 1 .. 1000, share of new connections, 0 for the default (100).
 * The workers are "joining": they get nothing until reuseport_ready(). One registration a context.
 * Without a daemon (reuseport_open() returned 1): one worker whose listeners are the LISTEN_FDS,
 * named by LISTEN_FDNAMES; service, instance and weight are ignored, n_workers must be 1.
 * Returns 0. Blocks up to timeout_msec. Errors: -EACCES (this user may not), -ENOENT (no such
 * service), -EDQUOT (limit of this user), -EINVAL, -EALREADY (registered already), -ETIMEDOUT,
 * -ENOTCONN, -EMFILE (this process has no room for the descriptors), -EPROTO.
 */
int reuseport_register(struct reuseport *r, const char *service, const char *instance,
	unsigned n_workers, unsigned weight, int timeout_msec);

/*
 * As reuseport_register() but the process behind the workers is another one (a launcher's child):
 * when all sockets are here, start() is called and returns a pidfd of that process (closed by the
 * library) or a negative errno, which ends the registration and is returned. Its user must be the
 * caller's. NULL start: the calling process.
 */
int reuseport_register_for(struct reuseport *r, const char *service, const char *instance,
	unsigned n_workers, unsigned weight, int timeout_msec,
	int (*start)(struct reuseport *r, void *user_data), void *user_data);

/*
 * For launchers of servers that make and bind their sockets themselves: no worker and no socket at
 * first, reuseport_n_workers() is 0, the functions about listeners tell what there is to bind. Each
 * socket is brought by reuseport_adopt(). max_workers (1 or more): how many sockets of one listener
 * there may be at once. start as for reuseport_register_for(). After reuseport_ready() a worker is
 * active as soon as its socket can be. Listeners that are added to the service later are known
 * after reuseport_dispatch(), with the next numbers; those of the others stay. Its sockets come
 * back to another daemon as those of other registrations do, as far as they are found: among the
 * descriptors of this process, and by the find_adopted callback.
 * Results and errors as for reuseport_register(); -EOPNOTSUPP without a daemon.
 */
int reuseport_register_adopting(struct reuseport *r, const char *service, const char *instance,
	unsigned max_workers, unsigned weight, int timeout_msec,
	int (*start)(struct reuseport *r, void *user_data), void *user_data);

/* Takes the place of bind(2): the socket is unbound. Afterwards it is bound, and gets nothing yet.
 */
#define REUSEPORT_ADOPT_BIND (-1)

/*
 * Gives a socket to the daemon, to be bound to the listener's address within its group, or, with a
 * backlog (0 or more, in place of listen(2)) to listen there; for UDP and QUIC any backlog says
 * that the server has begun to wait for datagrams. Then it has its slot. fd stays the caller's, who
 * should close it soon: a copy keeps the kernel from seeing that the server has closed its own.
 * Returns 0. Blocks up to timeout_msec. Errors: -EXDEV (the socket belongs to another network
 * namespace), -ENOENT (backlog given, but the socket was not adopted before), -EINVAL (bound
 * already), -EOPNOTSUPP (not of the listener's kind), -EPERM (the daemon lacks CAP_CHOWN), -EDQUOT,
 * -ESHUTDOWN (the registration drains), -ETIMEDOUT, -ENOTCONN, and what bind(2) or listen(2) say.
 */
int reuseport_adopt(struct reuseport *r, unsigned listener, int fd, int backlog, int timeout_msec);

/* Makes the workers active: they get new connections when this returns 0. Blocks. An older
 * registration of the same instance is drained. Errors: -ENOTCONN, -ETIMEDOUT, -EINVAL (not
 * registered), -EPROTO. Without a daemon: 0. */
int reuseport_ready(struct reuseport *r, int timeout_msec);

/* No new connections from now on; those under way stay. Blocks. Errors as reuseport_ready(). */
int reuseport_drain(struct reuseport *r, int timeout_msec);

/* Gives the slots back. Sockets of the context that were not taken are closed. Blocks. Errors as
 * reuseport_ready(). */
int reuseport_unregister(struct reuseport *r, int timeout_msec);

/* What was granted; 0 before reuseport_register(). */
unsigned reuseport_n_workers(const struct reuseport *r);
unsigned reuseport_n_listeners(const struct reuseport *r);
const char *reuseport_instance(const struct reuseport *r);      /* valid while the context lives */
int reuseport_slot(const struct reuseport *r, unsigned worker); /* -ERANGE */

/* Of listener 0 .. n_listeners - 1; NULL or -ERANGE beyond. Strings live with the context. */
const char *reuseport_listener_name(const struct reuseport *r, unsigned listener);
const char *reuseport_listener_address(const struct reuseport *r, unsigned listener);
int reuseport_listener_transport(const struct reuseport *r, unsigned listener);
int reuseport_listener_cid_mode(const struct reuseport *r, unsigned listener);

/* The socket (close-on-exec, non-blocking) of a worker's listener. It stays the context's.
 * -ERANGE, -EBADF when taken. */
int reuseport_socket(const struct reuseport *r, unsigned worker, unsigned listener);

/* The same, and it is the caller's to close from now on. To come back to a daemon that died, it is
 * looked for among the descriptors of this process, and by the find_socket callback. */
int reuseport_take_socket(struct reuseport *r, unsigned worker, unsigned listener);

/* For the caller's own event loop: descriptor to poll (-ENOTCONN without a daemon) and the poll(2)
 * events to wait for. They stay the same while the connection lives, or another one is tried for
 * (the disconnected callback). */
int reuseport_get_fd(const struct reuseport *r);
int reuseport_get_events(const struct reuseport *r);

/*
 * Reads what the daemon has sent and calls the callbacks. timeout_msec: waits at most so long for a
 * first event, 0 not at all, -1 for ever. Returns the number of events, 0 when there was none.
 * Errors: -ENOTCONN (already reported by the disconnected callback, and no other connection is
 * tried for), -EPROTO.
 */
int reuseport_dispatch(struct reuseport *r, int timeout_msec);

/*
 * How loaded workers are: new connections then go to the less loaded of two workers that the
 * listener map names for each, as long as any active worker of the service says something. One
 * that says nothing counts for as loaded as those that do are on average.
 *
 * reuseport_share_load(): gets memory for it from the daemon, once after reuseport_register().
 * Blocks. Errors: -EINVAL (nothing is registered), -EOPNOTSUPP (no daemon, an older one, or the
 * registration adopts), -ENOMEM, -EPROTO, -ETIMEDOUT, -ENOTCONN.
 *
 * reuseport_set_load(): says it of one worker. load: 0 (idle) .. REUSEPORT_LOAD_MAX in a unit of
 * the server's own choice, the same in all servers of the service; REUSEPORT_LOAD_NONE: nothing any
 * more. In effect within some 0.1 s. Makes no system call; any thread, and forked children of the
 * process that registered. Goes on while the connection to the daemon is lost. Errors: -ERANGE (no
 * such worker or load), -EOPNOTSUPP (no memory for it).
 */
#define REUSEPORT_LOAD_MAX 1000
#define REUSEPORT_LOAD_NONE (-1)

int reuseport_share_load(struct reuseport *r, int timeout_msec);
int reuseport_set_load(struct reuseport *r, unsigned worker, int load);

/*
 * Connection IDs of QUIC listeners in mode quic-lb and quic-lb-plain.
 *
 * reuseport_cid_length(): octets of every ID (17 by default); -ERANGE, -EOPNOTSUPP in other modes.
 *
 * reuseport_cid_generate(): writes a new ID that names this worker. cid has room for size octets.
 * Returns its length. Makes no system call, allocates nothing, may be called from any thread, also
 * while another one is in reuseport_dispatch(). No ID is made twice, whichever worker of the
 * service makes it. Errors: -ERANGE, -EOPNOTSUPP (mode without generated IDs), -ENOBUFS (size too
 * small), -EOVERFLOW (2^48 IDs made under one key; asks for rotation).
 */
int reuseport_cid_length(const struct reuseport *r, unsigned listener);
int reuseport_cid_generate(
	struct reuseport *r, unsigned worker, unsigned listener, uint8_t *cid, size_t size);

struct reuseport_cid {
	uint8_t length; /* 1 .. REUSEPORT_CID_OCTETS */
	uint8_t id[REUSEPORT_CID_OCTETS];
};

/*
 * Mode registered: tells the daemon that packets with these IDs belong to this worker, or no
 * longer. Sent in batches; returns when all are in effect. IDs of a worker go with it. Blocks.
 * Errors: -EEXIST (an ID is another worker's; none of its batch was added), -EDQUOT, -EOPNOTSUPP
 * (other mode), -ERANGE, -EINVAL, -ETIMEDOUT, -ENOTCONN.
 */
int reuseport_cid_add(struct reuseport *r, unsigned worker, unsigned listener,
	const struct reuseport_cid *cids, size_t n_cids, int timeout_msec);
int reuseport_cid_retire(struct reuseport *r, unsigned worker, unsigned listener,
	const struct reuseport_cid *cids, size_t n_cids, int timeout_msec);

/*
 * Stateless reset token of a connection ID (RFC 9000 section 10.3.2): the first 16 octets of
 * HMAC-SHA256(secret of the listener, "reset" || ID), so that any worker of the listener can end a
 * connection of one that died. Any thread, no system call.
 * Errors: -ERANGE, -EOPNOTSUPP (not QUIC, or no daemon), -EINVAL (length 0 or above 20).
 */
int reuseport_reset_token(const struct reuseport *r, unsigned listener, const uint8_t *cid,
	size_t cid_length, uint8_t token[REUSEPORT_TOKEN_OCTETS]);

/*
 * Secret that all workers of the listener share, for the server's own address-validation tokens
 * (Retry and NEW_TOKEN, RFC 9000 section 8.1): HMAC-SHA256(secret of the listener, "token").
 * Errors: -ERANGE, -EOPNOTSUPP.
 */
int reuseport_token_secret(
	const struct reuseport *r, unsigned listener, uint8_t secret[REUSEPORT_SECRET_OCTETS]);

#ifdef __cplusplus
}
#endif
