/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A daemon that follows a script, for tests of what talks to the real one: each test says message
 * by message what it receives and answers. It runs in a child process, so that descriptors are
 * counted apart and a failed expectation ends the child with the line that failed; the test then
 * sees its status.
 */
#pragma once

#include <arpa/inet.h>
#include <dirent.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/util.h"
#include "proto/message.h"

#define FAKE_WAIT_MSEC 60000

/* An expectation of the script; ends the child. */
#define EXPECT(condition)                                                                          \
	do {                                                                                       \
		if (!(condition)) {                                                                \
			fprintf(stderr, "fake daemon, %s:%d: %s (errno %d)\n", __FILE__, __LINE__, \
				#condition, errno);                                                \
			_exit(1);                                                                  \
		}                                                                                  \
	} while (0)

struct fake {
	int connection;
	struct message message; /* received last */
	uint32_t n_listeners;   /* of the service: 1 or 2 */
	uint32_t registration;
	uint8_t transport;
	uint8_t cid_mode;
	uint8_t config_rotation;
	int sync[2]; /* the test writes an octet to [1] when the script may go on */
};

/* Receives one message and expects its type. */
_unused_ static void fake_receive(struct fake *d, uint16_t type)
{
	struct pollfd p = {.fd = d->connection, .events = POLLIN};
	const char *reason = "";
	int result;

	message_done(&d->message);
	EXPECT(poll(&p, 1, FAKE_WAIT_MSEC) == 1);
	result = message_receive(d->connection, &d->message, &reason);
	if (result != 1 || d->message.header.type != type) {
		fprintf(stderr, "fake daemon: expected %s, got %s (%d %s)\n",
			message_type_name(type), message_type_name(d->message.header.type), result,
			reason);
		_exit(1);
	}
}

_unused_ static void fake_receive_end(struct fake *d)
{
	struct pollfd p = {.fd = d->connection, .events = POLLIN};

	EXPECT(poll(&p, 1, FAKE_WAIT_MSEC) == 1);
	EXPECT(message_receive(d->connection, &d->message, NULL) == 0);
}

/* Waits until the test has called fake_continue(). */
_unused_ static void fake_wait(struct fake *d)
{
	struct pollfd p = {.fd = d->sync[0], .events = POLLIN};
	char octet;

	EXPECT(poll(&p, 1, FAKE_WAIT_MSEC) == 1);
	EXPECT(read(d->sync[0], &octet, 1) == 1);
}

_unused_ static void fake_continue(struct fake *d)
{
	if (write(d->sync[1], "", 1) != 1)
		abort();
}

/* Answers the message received last. */
_unused_ static void fake_ok(struct fake *d)
{
	struct protocol_ok body = {};

	EXPECT(message_send(d->connection, PROTOCOL_OK, d->message.header.sequence, &body,
		       sizeof(body), NULL, 0) == 0);
}

_unused_ static void fake_error(struct fake *d, int error, const char *text)
{
	EXPECT(message_send_error(d->connection, d->message.header.sequence, error, "%s", text) ==
		0);
}

_unused_ static void fake_event(struct fake *d, uint16_t type, const void *body, size_t size)
{
	EXPECT(message_send(d->connection, type, 0, body, size, NULL, 0) == 0);
}

_unused_ static void fake_request_drain(struct fake *d, uint32_t reason, uint64_t deadline_usec)
{
	struct protocol_drain_requested body = {
		.registration = htole32(d->registration),
		.reason = htole32(reason),
		.deadline_usec = htole64(deadline_usec),
	};

	fake_event(d, PROTOCOL_DRAIN_REQUESTED, &body, sizeof(body));
}

_unused_ static void fake_goodbye(struct fake *d, int error, const char *text)
{
	struct protocol_goodbye body = {.error = htole32((uint32_t)error)};

	snprintf(body.text, sizeof(body.text), "%s", text);
	fake_event(d, PROTOCOL_GOODBYE, &body, sizeof(body));
}

/* Process that a pidfd stands for. */
_unused_ static pid_t fake_pid_of(int pidfd)
{
	char path[64], line[128];
	int pid = -1;
	FILE *info;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", pidfd);
	info = fopen(path, "re");
	EXPECT(info);
	while (fgets(line, sizeof(line), info))
		if (sscanf(line, "Pid: %d", &pid) == 1)
			break;
	fclose(info);
	return pid;
}

_unused_ static void fake_welcome(struct fake *d)
{
	struct protocol_welcome body = {
		.version = htole16(PROTOCOL_VERSION),
		.message_max = htole32(PROTOCOL_MESSAGE_MAX),
		.workers_max = htole32(64),
		.answer_msec = htole32(10000),
		.daemon_version = "fake",
	};

	fake_receive(d, PROTOCOL_HELLO);
	EXPECT(d->message.n_fds == 1);
	EXPECT(le16toh(d->message.hello.version_min) == 1);
	EXPECT(le16toh(d->message.hello.version_max) == 1);
	EXPECT(message_send(d->connection, PROTOCOL_WELCOME, d->message.header.sequence, &body,
		       sizeof(body), NULL, 0) == 0);
}

/* A socket like those of the daemon. */
_unused_ static int fake_make_socket(uint8_t transport)
{
	struct sockaddr_in address = {
		.sin_family = AF_INET,
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};
	int fd = socket(AF_INET,
		(transport == PROTOCOL_TCP ? SOCK_STREAM : SOCK_DGRAM) | SOCK_CLOEXEC |
			SOCK_NONBLOCK,
		0);

	EXPECT(fd >= 0);
	EXPECT(bind(fd, (struct sockaddr *)&address, sizeof(address)) == 0);
	if (transport == PROTOCOL_TCP)
		EXPECT(listen(fd, 16) == 0);
	return fd;
}

/* Grants worker number `worker`, answering `sequence`. Its slot is 100 + worker; listeners are
 * called http and admin; descriptors come in the reverse order of the listeners. n_workers 0: as to
 * a client that adopts, without descriptors. */
_unused_ static void fake_grant(
	struct fake *d, uint32_t sequence, uint32_t worker, uint32_t n_workers)
{
	struct {
		struct protocol_grant fixed;
		struct protocol_grant_listener listeners[2];
	} __attribute__((packed)) body = {};
	int fds[2];

	body.fixed.registration = htole32(d->registration);
	body.fixed.worker = htole32(worker);
	body.fixed.n_workers = htole32(n_workers);
	body.fixed.slot = htole16(n_workers ? (uint16_t)(100 + worker) : 0);
	body.fixed.n_listeners = htole16((uint16_t)d->n_listeners);
	strcpy(body.fixed.instance, "made-up");
	for (uint32_t i = 0; i < d->n_listeners; i++) {
		struct protocol_grant_listener *l = &body.listeners[i];
		uint32_t descriptor = d->n_listeners - 1 - i;
		struct sockaddr_in address;
		socklen_t size = sizeof(address);

		fds[descriptor] = fake_make_socket(d->transport);
		EXPECT(getsockname(fds[descriptor], (struct sockaddr *)&address, &size) == 0);
		strcpy(l->name, i ? "admin" : "http");
		snprintf(l->address, sizeof(l->address), "127.0.0.1:%u", ntohs(address.sin_port));
		l->transport = d->transport;
		l->cid_mode = d->cid_mode;
		l->descriptor = htole16(n_workers ? (uint16_t)descriptor : PROTOCOL_NO_DESCRIPTOR);
		memset(l->token_secret, (int)(i + 1), sizeof(l->token_secret));
		if (d->cid_mode == PROTOCOL_CID_QUIC_LB ||
			d->cid_mode == PROTOCOL_CID_QUIC_LB_PLAIN) {
			l->config_rotation = d->config_rotation;
			l->server_id_length = 6;
			l->nonce_length = 10;
			l->server_id[5] = (uint8_t)(100 + worker);
			if (d->cid_mode == PROTOCOL_CID_QUIC_LB)
				memset(l->key, 0x2b, sizeof(l->key));
			l->nonce_prefix[3] = (uint8_t)(worker * 2 + i);
		}
	}
	EXPECT(message_send(d->connection, PROTOCOL_GRANT, sequence, &body,
		       sizeof(body.fixed) + d->n_listeners * sizeof(body.listeners[0]), fds,
		       n_workers ? d->n_listeners : 0) == 0);
	for (uint32_t i = 0; i < d->n_listeners; i++)
		close(fds[i]);
}

/* From REGISTER to the OK of the last ACK, whose message is left to look at in d->message. */
_unused_ static void fake_register(struct fake *d, uint32_t n_workers)
{
	fake_receive(d, PROTOCOL_REGISTER);
	EXPECT(le32toh(d->message.reg.n_workers) == n_workers);
	for (uint32_t worker = 0; worker < n_workers; worker++) {
		fake_grant(d, d->message.header.sequence, worker, n_workers);
		fake_receive(d, PROTOCOL_ACK);
		EXPECT(le32toh(d->message.ack.registration) == d->registration);
		EXPECT(le32toh(d->message.ack.worker) == worker);
	}
	fake_ok(d);
}

struct fake_daemon {
	struct fake fake;
	pid_t pid;
	int listener;
	char path[64]; /* abstract name, as reuseport_open() takes it */
};

/* Starts a daemon that accepts one connection and follows the script. 0 or -1. */
_unused_ static int fake_start(struct fake_daemon *d, void (*script)(struct fake *d))
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	static unsigned counter;
	size_t length;

	snprintf(d->path, sizeof(d->path), "@reuseport-test/%d/%u", getpid(), counter++);
	length = strlen(d->path);
	memcpy(address.sun_path + 1, d->path + 1, length - 1);
	d->listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (d->listener < 0 ||
		bind(d->listener, (struct sockaddr *)&address,
			(socklen_t)(offsetof(struct sockaddr_un, sun_path) + length)) < 0 ||
		listen(d->listener, 8) < 0 || pipe2(d->fake.sync, O_CLOEXEC) < 0)
		return -1;
	if (!d->fake.n_listeners)
		d->fake.n_listeners = 2;
	if (!d->fake.transport)
		d->fake.transport = PROTOCOL_TCP;
	d->fake.registration = 77;
	d->fake.config_rotation = 1;
	fflush(NULL);
	d->pid = fork();
	if (d->pid < 0)
		return -1;
	if (d->pid == 0) {
		struct pollfd p = {.fd = d->listener, .events = POLLIN};

		alarm(120);
		close(d->fake.sync[1]);
		EXPECT(poll(&p, 1, FAKE_WAIT_MSEC) == 1);
		d->fake.connection = accept4(d->listener, NULL, NULL, SOCK_CLOEXEC);
		EXPECT(d->fake.connection >= 0);
		script(&d->fake);
		_exit(0);
	}
	/* Only the child has it: a test that connects after the script's end is refused. */
	close_fd(&d->listener);
	close_fd(&d->fake.sync[0]);
	return 0;
}

/* The status with which the script ended; 0 when all went as expected. */
_unused_ static int fake_end(struct fake_daemon *d)
{
	int status = -1;

	close_fd(&d->fake.sync[1]);
	while (waitpid(d->pid, &status, 0) < 0 && errno == EINTR)
		;
	return status;
}

_unused_ static int count_descriptors(void)
{
	DIR *directory = opendir("/proc/self/fd");
	int n = 0;

	while (readdir(directory))
		n++;
	closedir(directory);
	return n;
}
