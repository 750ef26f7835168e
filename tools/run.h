/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What the parts of reuseport-run share: the one server that it runs, from the command line to the
 * exit status. Each part knows one thing: run-options.c the command line, run-pass.c the ways in
 * which servers take sockets, run-adopt.c how the sockets of those that take none are had,
 * run-wait.c when these serve, run-after.c what becomes of them after the launcher,
 * run-server.c the server's process, run-notify.c what the server says to its service manager, and
 * reuseport-run.c the order of it all.
 */
#pragma once

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "client-lib/reuseport.h"
#include "common/util.h"

#define RUN_REQUEST_MSEC 10000 /* deadline of each request to the daemon */

enum { EXIT_USAGE = 2, EXIT_LAUNCHER = 125, EXIT_NOT_EXECUTABLE = 126, EXIT_NOT_FOUND = 127 };

enum pass { PASS_LISTEN_FDS, PASS_NGINX, PASS_ARGS };
enum ready { READY_EXEC, READY_NOTIFY, READY_DELAY };

struct run {
	/* from the command line */
	const char *service;
	const char *instance;
	const char *socket_path;
	unsigned n_workers;
	unsigned weight;
	enum pass pass;
	bool adopt;
	enum ready ready;
	uint64_t ready_usec; /* READY_DELAY */
	int drain_signal;    /* 0: the default of the way to pass sockets */
	uint64_t drain_delay_usec;
	char **server; /* argv of the server */

	/* while it runs */
	struct reuseport *context;
	int signal_fd;
	int notify_fd;
	char notify_name[64]; /* as in NOTIFY_SOCKET */
	int start_fd;         /* our end of the pair at which the child waits */
	int server_pidfd;
	int adopt_fd;       /* where the kernel asks about the server's bind() and listen() */
	int after_fd;       /* run-after.c: its end is the launcher's */
	uint64_t *adopt_id; /* the last question that was read; shared with run-after.c; may be NULL
			     */
	uint64_t adopt_unanswered; /* SO_COOKIE of a socket whose bind() was not answered yet */
	bool any_adopted;
	bool away;               /* there is no daemon, perhaps for a while */
	uint64_t *inodes;        /* of the sockets that were passed, by worker and listener */
	struct awaited *awaited; /* run-wait.c: bound, but nobody was seen to wait there yet */
	uint64_t look_at_usec;   /* CLOCK_MONOTONIC; 0: none is awaited */
	uint64_t look_interval_usec;
	pid_t server_pid;
	sigset_t original_mask;
	bool arguments_wrong; /* and already said so */
	bool executed;
	bool ready_done;
	bool stopping;
	bool drain_pending;     /* came before the server was executed */
	uint64_t ready_at_usec; /* CLOCK_MONOTONIC; 0: no timer */
	uint64_t drain_at_usec; /* the same */
};

/* To stderr, with the program's name and the end of the line. */
void run_complain(const char *format, ...) _printf_(1, 2);
/* CLOCK_MONOTONIC. */
uint64_t now_usec(void);
/* Tells the daemon, and the service manager once the daemon has agreed. */
void run_become_ready(struct run *run);

/* run-options.c: 1: go on, 0: done (help, version), -EINVAL: wrong, and it has been said. */
int options_parse(struct run *run, int argc, char **argv);

/* run-pass.c */

/*
 * The server's arguments with each {fd:NAME} replaced; pass_free_arguments() frees them. -EINVAL
 * when one can't be, or the server can't serve one of the listeners, and it has been said.
 */
int pass_expand_arguments(const struct run *run, char ***ret);
void pass_free_arguments(char ***arguments);
/* In the server's process: descriptors from 3 on are the sockets. *start_fd is moved behind. */
int pass_place_sockets(struct run *run, int *start_fd);
/* In the server's process: the variables that tell it of its sockets and of NOTIFY_SOCKET. */
int pass_set_environment(struct run *run);

/* run-adopt.c */

/* Whether the kernel can; if not, it has been said. */
int adopt_check(void);
/* In the server's process, before it is executed: the filter; its listener goes to the launcher. */
int adopt_install(int start_fd);
/*
 * Reads run->start_fd. 0: the listener has come and is run->adopt_fd. -EAGAIN: there is nothing.
 * Else the error that kept the server from being executed.
 */
int adopt_take(struct run *run);
/* One system call of the server. */
void adopt_read(struct run *run);
/* A socket has its slot: the server is ready, unless it says so itself. */
void adopt_became_active(struct run *run);
/* A duplicate of a descriptor of the server's; a negative errno. */
int adopt_fetch(pid_t thread, int fd);

/* run-after.c */

/* Once there is run->adopt_fd: whoever has the filter may go on after the launcher. A negative
 * errno: it may not. */
int after_start(struct run *run);

/* run-wait.c */

/* The UDP socket gets its slot when the server is seen to wait for it. fd stays the caller's.
 * -ENOMEM. */
int wait_add(struct run *run, int fd, unsigned listener);
/* At run->look_at_usec. */
void wait_look(struct run *run);
/* The server says that it is ready: all of them. */
void wait_join_all(struct run *run);
/* There is a daemon again. */
void wait_again(struct run *run);
void wait_done(struct run *run);
/* A duplicate of a socket that the server, or a process that it made, has; -ENOENT: none has it. */
int wait_find_socket(struct run *run, uint64_t inode);

/* run-server.c */

/*
 * For reuseport_register_for(), user_data is the struct run: makes the process, which waits at the
 * other end of run->start_fd for an octet. Returns its pidfd, to be taken, or a negative errno.
 */
int server_start(struct reuseport *context, void *user_data);
/* Instead of the octet: the process ends without having been the server. */
void server_abandon(struct run *run);
void server_signal(struct run *run, int signal);
/* Exit status, 128 + N for signal N; -EAGAIN while it runs. */
int server_reap(struct run *run);

/* run-notify.c */

int notify_open(struct run *run);
/* 1: a message was read (and perhaps ignored), 0: there is none. */
int notify_read(struct run *run);
