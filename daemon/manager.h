/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Everything that the daemon holds, and who owns whom:
 *
 *	manager ── service ── listener ── group (kernel side)
 *	   │          │           └── share (of several services; manager owns it)
 *	   │          └────── registration ── worker (slot)
 *	   └───── client (connection on worker.sock) ── registration it made
 *
 * A registration outlives its client's connection: it ends when its process ends and its sockets
 *are closed, when it is given back, or when its time to drain is over.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include <jansson.h>
#include <systemd/sd-event.h>

#include "bpf/layout.h"
#include "daemon/account.h"
#include "daemon/config.h"
#include "daemon/control.h"
#include "daemon/health.h"
#include "daemon/keys.h"
#include "daemon/watch.h"
#include "daemon/state-text.h"
#include "proto/protocol.h"

struct claim;
struct client;
struct message;
struct group;
struct foreign;
struct monitor;
struct guard;
struct ring_buffer;
struct share;
struct state;
struct store;
struct strangers;
struct takeover;

enum worker_state {
	WORKER_JOINING,  /* has its sockets, gets nothing yet */
	WORKER_ACTIVE,   /* in the listener map */
	WORKER_DRAINING, /* gets no new connection, keeps those it has */
};

struct worker {
	struct registration *registration;
	uint16_t slot;
	uint16_t weight;
	enum worker_state state;
	uint64_t since_usec;        /* of the state, CLOCK_REALTIME */
	uint64_t drain_before_usec; /* CLOCK_MONOTONIC, 0: for ever */
	bool granted;               /* its sockets were made and sent */
	uint64_t present; /* bit i: its socket for listener i was there when last looked */
	uint64_t stalled; /* bit i: its queue at listener i stands still (health.h) */
};

struct registration {
	struct registration *next; /* of the service */
	struct service *service;
	struct client *client; /* NULL: the connection has ended */
	uint32_t id;
	char instance[PROTOCOL_NAME_MAX];
	uid_t uid;
	pid_t pid;
	int pidfd;            /* -1: it had ended when this daemon started */
	uint32_t pidfd_entry; /* in the store, once acked */
	sd_event_source *exit_source;
	bool exited;           /* its process is gone, others still hold its sockets */
	bool acked;            /* all workers are granted and acknowledged */
	uint32_t drain_untold; /* enum protocol_drain_reason: its client is still to be told */
	uint64_t ready_usec;   /* the first of its workers, CLOCK_MONOTONIC; 0: not yet */
	struct worker *workers;
	uint32_t n_workers;
	/* The rest with PROTOCOL_REGISTER_ADOPT only: workers come as they bring sockets. */
	uint32_t max_workers;  /* there is memory for so many; 0: all were made at once */
	bool ready;            /* what joins is active at once */
	bool drained;          /* as a whole: no more sockets */
	uint64_t adopted_usec; /* the last socket, CLOCK_MONOTONIC; 0: predecessors were told */
	/* Numbers of the listeners in the order of its GRANTs, by which the client names them. */
	uint32_t granted[PROTOCOL_LISTENERS_MAX];
	uint32_t n_granted;
	/* [worker * PROTOCOL_LISTENERS_MAX + index in granted]: listener.keys_version of the
	 * connection-ID configuration that the client was sent last. */
	uint32_t *told;
	/* Resumed, takeover.h: sockets that are to come to its slots, and until when that is tried;
	 * RESUMEs that are to come, 0: none, and that have. */
	struct claim *claims;
	uint64_t claims_before_usec;
	uint32_t n_expected, n_came;
	struct loads *loads; /* NULL: its workers don't say how loaded they are */
	struct piece saved;  /* last: of all that is before it, as it is in the state */
};

struct listener {
	struct service *service;
	struct listener_config *config; /* owned by the service's configuration */
	struct group *group;
	struct share *share;    /* NULL: the group is its own */
	struct keys *keys;      /* QUIC, else NULL */
	struct keys *next_keys; /* read by a reload that is not committed yet */
	uint32_t keys_version;  /* of the current key, counted up by each change */
	bool keys_ahead;        /* of the state, at the start: no worker was told of that change */
	/* For each rotation but the current one: no later registration had its key. */
	uint32_t last_registration[KEYS_MAX];
	uint32_t number;             /* unique in the daemon, in events */
	uint32_t index;              /* bit in worker.present; stays while the listener lives */
	struct strangers *strangers; /* NULL: none were seen */
	uint64_t looked_usec;        /* for strangers, CLOCK_MONOTONIC */
	struct watch watch;
	struct health health;
};

struct service {
	struct service *next;
	struct manager *manager;
	struct service_config *config; /* owned */
	struct listener **listeners;   /* by index; NULL: removed */
	size_t n_listeners;
	struct registration *registrations;
	int32_t reserved_slot; /* of the next worker, where UDP standbys stand; -1: none */
	uint32_t turn;         /* of the clock: whose sockets are looked at */
	bool removed;          /* left the configuration, workers drain */
};

struct manager {
	sd_event *event;
	struct config *config; /* its services are moved into the services below */
	char *state_directory; /* of the configuration at the start; NULL: nothing is kept */
	struct service *services;
	struct share *shares;
	struct guard *guard; /* NULL: sockets are not guarded */
	char *unguarded;     /* then, why: a sentence, or NULL */
	struct client *clients;
	struct message *message; /* of the client whose turn it is; client.c */
	struct accounts *accounts;
	struct store *store;
	struct state *state;
	uint32_t state_entry, ring_entry;
	bool orderly; /* the next process begins in this very moment: what is unfinished is kept */
	bool state_failed;
	bool starts;               /* what is opened may belong to workers of a daemon that died */
	struct takeover *takeover; /* NULL: none is under way */
	sd_event_source *claims_source; /* while a registration has claims */
	int caller;                     /* who waits for the answer to Reexec, -1: nobody */
	uint32_t caller_entry;
	uint32_t next_client;
	struct worker *slots[SLOT_COUNT];
	uint8_t reserved[SLOT_COUNT]; /* 1: some service's next */
	uint32_t next_slot;
	uint32_t next_registration;
	uint32_t next_listener;
	int ring_map;
	struct ring_buffer *ring;
	struct control *control;
	struct monitor *monitor;
	struct foreign *foreign;      /* what clients send beside messages */
	sd_event_source *load_source; /* while a registration has loads */
	uint64_t started_usec;        /* CLOCK_REALTIME */
	int (*load)(struct config **ret, char **ret_error, void *user_data); /* for reload */
	void *load_data;
	const char *program; /* what Reexec runs, with these arguments */
	char **arguments;
};

/* config is taken over, store as well. On failure *ret_error is a sentence (free()). */
int manager_new(struct manager **ret, sd_event *event, struct config *config, struct store *store,
	char **ret_error);
/* The process ends in order, manager_free() follows: who has closed connection and sockets, which
 * nobody has noticed yet, is not to be kept for. */
void manager_stop(struct manager *manager);
struct manager *manager_free(struct manager *manager);
/* Makes what runs be as config says, or changes nothing: *ret_error. config is taken over, always.
 */
int manager_reload(struct manager *manager, struct config *config, char **ret_error);
/* Reads the configuration again by manager->load and reloads; tells systemd. */
int manager_reload_files(struct manager *manager, char **ret_error);
struct service *manager_find_service(struct manager *manager, const char *name);
struct account *manager_account(struct manager *manager, uid_t uid);
/* Connection IDs that workers of this user have registered, with all listeners. */
uint32_t manager_count_cids(const struct manager *manager, uid_t uid);
/* A free slot, marked as reserved, or -1. Round robin: a slot rests as long as possible. */
int32_t manager_reserve_slot(struct manager *manager);

/* Guards sockets from here on, where that is possible and is not done yet. */
void manager_guard(struct manager *manager);
/* The ring buffer (manager->ring_map) and the clock. */
int manager_start(struct manager *manager);

/* resume.c */
/* Goes on from what an earlier process left. store and state are taken over, always; json: what is
 * in the state. On failure *ret_error is a sentence (free()). */
int manager_resume(struct manager **ret, sd_event *event, struct store *store, struct state *state,
	uint32_t state_entry, const json_t *json, char **ret_error);
/* From here every change is written into the state; what was inherited and belongs to nobody is
 * let go. */
int manager_keep_state(struct manager *manager);
/* Replaces this process; caller: the connection that waits for the answer, which the next process
 * gives, -1: none. Returns only on failure, and then all is as it was. */
int manager_reexec(struct manager *manager, int caller);
/* Who asked the earlier process for this one. */
void manager_answer_caller(struct manager *manager);

/* CLOCK_REALTIME and CLOCK_MONOTONIC in microseconds. */
uint64_t now_realtime(void);
uint64_t now_monotonic(void);

/* service.c */
int service_new(struct service **ret, struct manager *manager, struct service_config *config,
	char **ret_error);
struct service *service_free(struct service *service);
/* Opens what config has and service lacks; nothing is changed on failure. */
int service_prepare(struct service *service, struct service_config *config,
	struct listener ***ret_fresh, char **ret_error);
void service_commit(
	struct service *service, struct service_config *config, struct listener **fresh);
/* After any change of workers: tables, standbys, reserved slot. */
void service_update(struct service *service);
void service_remove(struct service *service);
/* For the listeners that are dormant (group_wake()). */
int service_wake(struct service *service, struct listener **ret_listener, const char **ret_step);
/* The sockets of those workers that came back are at their slots. */
void service_awake(struct service *service);
/* NULL is allowed. Returns NULL. */
struct listener *listener_free(struct listener *listener);
void service_tick(struct service *service);
const char *worker_state_name(enum worker_state state);

/* rotation.c */
/*
 * A new key for the listener, or with NULL for every one of the service that has keys. *ret_n: how
 * many. All are checked before one is rotated. On failure *ret_error a sentence (free()), and
 * negative errno; -ENOENT: no such listener.
 */
int service_rotate_keys(
	struct service *service, const char *name, unsigned *ret_n, char **ret_error);
/* Once a second: forgets the keys that no worker of the service can have made an ID with. */
void service_retire_keys(struct service *service);
/* A reload reads a key file again: changes nothing yet, then cannot fail. */
int listener_prepare_keys(
	struct listener *listener, const struct listener_config *config, char **ret_error);
void listener_commit_keys(struct listener *listener);
/* On a shared listener no two services may have one rotation: others for keys made here; for those
 * of a file an error. service: its name. */
int listener_settle_keys(
	const struct listener *listener, struct keys *keys, const char *service, char **ret_error);

/* A listener of an earlier process, as it is in the state; and back. */
int listener_resume(struct service *service, const json_t *json, char **ret_error);
json_t *listener_to_json(const struct listener *listener);
/* The maps are made to agree with the workers, then the program is attached. */
void service_reconcile(struct service *service);

/* registration.c */
int registration_new(struct registration **ret, struct service *service, struct client *client,
	const char *instance, uint32_t n_workers, uint32_t weight, const char **ret_reason);
/* One that adopts: no worker yet, at most max_workers. */
int registration_new_adopting(struct registration **ret, struct service *service,
	struct client *client, const char *instance, uint32_t max_workers, uint32_t weight,
	const char **ret_reason);
/*
 * The first of its workers that has no socket for the listener, or another one. NULL: *ret_error
 * and *ret_reason. Only registration_joined() or registration_drop_worker() may follow.
 */
struct worker *registration_take_worker(struct registration *registration,
	const struct listener *listener, int *ret_error, const char **ret_reason);
/* The worker's socket for the listener stands at its slot. */
void registration_joined(struct worker *worker, const struct listener *listener);
/* It could not be put there. */
void registration_drop_worker(struct worker *worker, const struct listener *listener);
/*
 * One that an earlier daemon made, without a worker yet; max_workers: of one that adopts, else 0.
 * -ENOMEM. They come one by one, n_expected in all; each at its slot, or at another one where that
 * is somebody else's. -EEXIST: it must be exactly that one. -ENOSPC: there is none.
 */
int registration_new_resumed(struct registration **ret, struct service *service,
	struct client *client, const char *instance, uint32_t n_workers, uint32_t max_workers,
	uint32_t weight);
int registration_resume_worker(
	struct registration *registration, uint16_t slot, bool exactly, struct worker **ret);
/* All sockets that were brought are at their slots: as ready and drained of the registration say.
 */
void registration_resumed(struct registration *registration);
void registration_free(struct registration *registration, const char *reason);
/* The process whose life is the registration's. pidfd is taken over, also on failure. */
int registration_set_process(struct registration *registration, pid_t pid, int pidfd);
void registration_ready(struct registration *registration);
/* Returns how many of its workers began to drain. slot -1: all. reason: what its client is told,
 * PROTOCOL_DRAIN_..., 0: nothing. */
unsigned registration_drain(struct registration *registration, int32_t slot, uint32_t reason);
/* Its client, if that is still to be told that all its workers drain. */
void registration_tell_drain(struct registration *registration);
unsigned registration_undrain(struct registration *registration, int32_t slot);
/* Looks which sockets are left; may free the registration. */
void registration_check(struct registration *registration);
/* Whether it may end, or others' may, with no other sign than that its sockets are gone, or that
 * time has passed. */
bool registration_is_awaited(const struct registration *registration);

/* As JSON; without memory text->failed is set. */
void registration_write(struct registration *registration, struct text *text);
/* client: NULL where its connection has ended. */
int registration_resume(struct service *service, struct client *client, const json_t *json);

/* adopt.c */
/*
 * Takes a socket that the server made into the listener's group (proto/protocol.h, ADOPT). fd stays
 * the caller's. *ret_worker: to whom it came, NULL: to none. Negative errno: text
 * (PROTOCOL_TEXT_MAX octets) says why.
 */
int adopt_socket(struct registration *registration, struct listener *listener, int fd,
	enum protocol_adopt_step step, uint32_t backlog, struct worker **ret_worker, char *text);

/* client.c */
/* Whether the next process is to go on with it. */
bool client_is_kept(const struct client *client);
void client_write(const struct client *client, struct text *text);
struct client *client_next(const struct client *client);
int client_resume(struct manager *manager, const json_t *json);
struct client *client_find(struct manager *manager, uint32_t id);
uint32_t client_id(const struct client *client);
void client_set_registration(struct client *client, struct registration *registration);
/* Does again what the earlier process may not have answered; false: that can't be. */
bool client_repeat(struct client *client, struct state *state);
/* All that are connected go over to the next program. */
void clients_keep(struct manager *manager);
/* Those that have closed their side are freed. */
void clients_let_go(struct manager *manager);
int client_listen(struct manager *manager, int socket);
struct client *client_free(struct client *client);
/* Its registration, which it resumed, is in effect: a GRANT for each worker, as far as it reads;
 * the rest later. */
void client_send_resumed(struct client *client);
/* What had to wait for the end of a takeover. */
void clients_release(struct manager *manager);
/* The client's registration is gone; it may make another. */
void client_forget(struct client *client);
void client_send_stalled(struct client *client, const struct registration *registration,
	uint32_t worker, bool stalled);
void client_send_drain(struct client *client, const struct registration *registration,
	enum protocol_drain_reason reason, uint64_t deadline_usec);
/*
 * Tells of the new connection-ID configuration of each worker and listener that it has not been
 * told yet, as far as it reads; the rest later.
 */
void client_send_keys(struct client *client);
void client_goodbye(struct client *client, int error, const char *text);
void clients_tick(struct manager *manager);
/* After a reload: to those that bring their own sockets, what more there is to bind. */
void clients_tell_listeners(struct manager *manager);

/* methods.c: methods of io.reuseport.Control; user_data is the manager. */
extern const struct control_method manager_methods[];
