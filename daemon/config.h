/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The configuration as read from files or the command line: plain data, checked as a whole, that
 * the manager compares with what runs. Knows nothing of sockets or BPF.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/types.h>

#define CONFIG_SERVICES_MAX 1024

enum transport {
	TRANSPORT_TCP = 1,  /* ListenStream= */
	TRANSPORT_UDP = 2,  /* ListenDatagram= */
	TRANSPORT_QUIC = 3, /* ListenQUIC= */
};

enum cid_mode { /* ConnectionID=; values as in proto/protocol.h */
	CID_NONE = 0,
	CID_QUIC_LB = 1,
	CID_QUIC_LB_PLAIN = 2,
	CID_REGISTERED = 3,
	CID_NGINX = 4,
	CID_OPAQUE = 5,
};

#define LISTENER_FLOWS_MIN 256 /* Flows= */

struct config_words {
	char **word;
	size_t n;
};

struct listener_config {
	char *name; /* unique in its service */
	char *file; /* where it was defined, for messages */
	unsigned line;
	enum transport transport;
	struct sockaddr_storage address;
	socklen_t address_length;
	char *address_text;    /* "127.0.0.1:80", "[::]:443" */
	int backlog;           /* Backlog=, default 4096 (the kernel caps it at somaxconn) */
	size_t receive_buffer; /* ReceiveBuffer=, octets, 0: kernel's */
	size_t send_buffer;    /* SendBuffer=, octets, 0: kernel's */
	bool ipv6_only;        /* BindIPv6Only=ipv6-only; default false (both) */
	char *bind_to_device;  /* BindToDevice=, NULL: none */
	bool free_bind;        /* FreeBind= */
	bool transparent;      /* Transparent= */
	int64_t mark;          /* Mark=, -1: none */
	bool lock_filter;      /* LockFilter=, default true */
	bool standby_hold;     /* Standby=hold (default) or refuse */
	uint64_t standby_timeout_usec; /* StandbyTimeoutSec=, default 30 s, 0: for ever */
	uint64_t flow_timeout_usec;    /* FlowTimeoutSec=, UDP and QUIC, default 60 s */
	uint32_t n_flows;              /* Flows=, default 65536, a power of two */
	enum cid_mode cid_mode;        /* ConnectionID=, QUIC only, default quic-lb */
	uint16_t host_id;              /* HostID= of the daemon */
	char *key_file; /* ConnectionIDKeyFile=, quic-lb only, a full path; NULL: keys are made */
	char *share;    /* Share=, QUIC only; NULL: the listener is its service's alone */
	struct config_words server_names; /* MatchServerName=, lower case, no dot at the end */
	struct config_words protocols;    /* MatchALPN= */
	bool match_default;               /* MatchDefault= */
	unsigned share_line, match_line;  /* of these keys, the last one; 0: none */
};

struct service_config {
	char *name;
	char *file;
	uid_t *allow_uids; /* AllowUser=; root may always */
	size_t n_allow_uids;
	gid_t *allow_gids; /* AllowGroup= */
	size_t n_allow_gids;
	bool allow_all;              /* --listen only */
	unsigned max_workers;        /* MaxWorkers=, default 1024 */
	uint64_t drain_timeout_usec; /* DrainTimeoutSec=, default 5 min, 0: for ever */
	uint64_t stall_timeout_usec; /* StallTimeoutSec=, default 10 s, 0: never */
	bool stall_kick;             /* StallAction=kick */
	struct listener_config **listeners;
	size_t n_listeners; /* 1 .. PROTOCOL_LISTENERS_MAX */
};

struct config {
	struct service_config **services;
	size_t n_services;
	char *user;               /* User=, default "reuseport" */
	gid_t status_group;       /* StatusGroup=: may read the control socket; (gid_t)-1: anyone */
	gid_t admin_group;        /* AdminGroup=: may change things; (gid_t)-1: root only */
	uint16_t host_id;         /* HostID=, default 0 */
	unsigned max_connections; /* MaxConnectionsPerUser=, worker and control connections, default
				     512 */
	unsigned max_slots;       /* MaxSlotsPerUser=, default 2048, half of what there is */
	unsigned max_cids;        /* MaxConnectionIDsPerUser=, registered, default 1048576 */
	unsigned max_messages;    /* MessagesPerSecondPerUser=, default 10000 */
	uint64_t answer_timeout_usec; /* AnswerTimeoutSec=, for ACK, default 10 s */
	uint64_t resume_grace_usec;   /* ResumeGraceSec=, for workers of a daemon that died; 10 s */
	/* StateDirectory=, default $STATE_DIRECTORY or /var/lib/reuseportd. NULL: there is none. */
	char *state_directory;
	char *classifier;            /* Classifier=, the program for shared listeners */
	unsigned classifier_percent; /* ClassifierShare=, of one core, for each share; default 50 */
	bool classifier_drop; /* ClassifierOverflow=; false: to the default service; default true */
	bool state_directory_set; /* by StateDirectory=, so it must be there */
};

/* Defaults (one of them by $STATE_DIRECTORY), no service. -ENOMEM. */
int config_new(struct config **ret);
void config_free(struct config *config);
void config_freep(struct config **config);

/*
 * Reads DIRECTORY/reuseportd.conf ([Daemon] section; may be absent) and DIRECTORY/services.d/
 * *.conf in the order of their names, and checks the whole. The first [Service] section of a file
 * names the service by Name= or else by the file's name without .conf; every [Listener NAME]
 * section belongs to it. On a mistake returns -EINVAL and *ret_error: every mistake, one a line,
 * "FILE:LINE: what is wrong and what is allowed" (free()). A missing directory is -ENOENT with its
 * sentence. Errors also -EACCES, -ENOMEM.
 */
int config_load(struct config **ret, const char *directory, char **ret_error);

/* Adds one --listen argument: NAME=tcp://ADDR:PORT, udp:// or quic://. Several with one NAME make
 * several listeners ("tcp", "udp", "quic", then "tcp-2" ...) of one service that every user may
 * use. -EINVAL with *ret_error. */
int config_add_listen(struct config *config, const char *argument, char **ret_error);

/*
 * For those that fill a configuration. What is added belongs to what it is added to; on failure
 * (-ENOMEM, or NULL) it stays the caller's. The free functions take NULL, and return it.
 */
struct service_config *service_config_new(const char *file);
struct service_config *service_config_free(struct service_config *service);
struct listener_config *listener_config_new(const char *name, const char *file, unsigned line);
struct listener_config *listener_config_free(struct listener_config *listener);
/* NULL: no memory. */
struct listener_config *listener_config_copy(const struct listener_config *listener);
int config_words_add(struct config_words *words, const char *word);
void config_words_clear(struct config_words *words);
bool config_words_have(const struct config_words *words, const char *word);
int config_add_service(struct config *config, struct service_config *service);
int service_config_add_listener(struct service_config *service, struct listener_config *listener);
/* Another listener of the service that has the same protocol, address and device, or NULL. */
const struct listener_config *service_config_find_address(
	const struct service_config *service, const struct listener_config *listener);

/* Protocol, address and device; UDP and QUIC are one protocol. */
bool listener_config_same_address(const struct listener_config *a, const struct listener_config *b);
/* One of a share whose services allow different users, or NULL. */
const struct listener_config *config_shared_by_users(const struct config *config);
/* Whether sockets of both can be in one group, under one program. */
bool listener_config_same_socket(const struct listener_config *a, const struct listener_config *b);

/* Whether some listener has Share=. */
bool config_shares(const struct config *config);

/* "tcp", "udp", "quic". */
const char *transport_name(enum transport transport);
/* "quic-lb", ...; "none" for CID_NONE. */
const char *cid_mode_name(enum cid_mode mode);
/* Whether a process of this user (with all its groups) may register with the service. */
bool service_config_allows(
	const struct service_config *service, uid_t uid, const gid_t *gids, size_t n_gids);
