/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The worker protocol's framing: what is sent arrives as it was, every way to break the framing is
 * refused with its own sentence, and no descriptor stays open that the caller did not get.
 */
#include <dirent.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/util.h"
#include "proto/message.h"

struct fixture {
	int pair[2];
	int n_descriptors; /* of the process before the test */
	struct message message;
};

static int count_descriptors(void)
{
	DIR *directory = opendir("/proc/self/fd");
	int n = 0;

	while (readdir(directory))
		n++;
	closedir(directory);
	return n;
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	*state = f;
	if (!f || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, f->pair) < 0)
		return -1;
	f->n_descriptors = count_descriptors();
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	int n = count_descriptors();

	if (n != f->n_descriptors)
		print_error("descriptors before: %d, after: %d\n", f->n_descriptors, n);
	n -= f->n_descriptors;
	close_fd(&f->pair[0]);
	close_fd(&f->pair[1]);
	free(f);
	return n ? -1 : 0;
}

/* One packet as it is, with n descriptors beside it. */
static void send_raw(int socket, const void *data, size_t size, int n)
{
	union {
		struct cmsghdr align;
		char octets[CMSG_SPACE(PROTOCOL_DESCRIPTORS_MAX * sizeof(int))];
	} control = {};
	struct iovec part = {.iov_base = (void *)data, .iov_len = size};
	struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1};

	if (n) {
		struct cmsghdr *c;
		int fds[PROTOCOL_DESCRIPTORS_MAX];

		for (int i = 0; i < n; i++)
			fds[i] = STDIN_FILENO;
		header.msg_control = &control;
		header.msg_controllen = CMSG_SPACE((size_t)n * sizeof(int));
		c = CMSG_FIRSTHDR(&header);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN((size_t)n * sizeof(int));
		memcpy(CMSG_DATA(c), fds, (size_t)n * sizeof(int));
	}
	assert_int_equal(sendmsg(socket, &header, MSG_NOSIGNAL), size);
}

struct packet {
	struct protocol_header header; /* host byte order */
	uint8_t body[PROTOCOL_MESSAGE_MAX];
	size_t size;       /* octets of the body that are sent */
	int n_descriptors; /* that are sent */
};

static void make_packet(struct packet *p, uint16_t type, const void *body, size_t size, int n)
{
	memset(p, 0, sizeof(*p));
	p->header.magic = PROTOCOL_MAGIC;
	p->header.version = PROTOCOL_VERSION;
	p->header.type = type;
	p->header.sequence = 7;
	p->header.length = (uint32_t)size;
	p->header.n_descriptors = (uint16_t)n;
	memcpy(p->body, body, size);
	p->size = size;
	p->n_descriptors = n;
}

static void send_packet(struct fixture *f, const struct packet *p)
{
	uint8_t data[sizeof(struct protocol_header) + PROTOCOL_MESSAGE_MAX];
	struct protocol_header wire = {
		.magic = htole32(p->header.magic),
		.version = htole16(p->header.version),
		.type = htole16(p->header.type),
		.sequence = htole32(p->header.sequence),
		.length = htole32(p->header.length),
		.n_descriptors = htole16(p->header.n_descriptors),
		.reserved = htole16(p->header.reserved),
		.reserved2 = htole32(p->header.reserved2),
	};

	memcpy(data, &wire, sizeof(wire));
	memcpy(data + sizeof(wire), p->body, p->size);
	send_raw(f->pair[0], data, sizeof(wire) + p->size, p->n_descriptors);
}

static void expect_refused(struct fixture *f, const struct packet *p, const char *sentence)
{
	const char *reason = NULL;

	send_packet(f, p);
	assert_int_equal(message_receive(f->pair[1], &f->message, &reason), -EBADMSG);
	assert_non_null(reason);
	if (!strstr(reason, sentence))
		fail_msg("refused as \"%s\", expected \"%s\"", reason, sentence);
	assert_int_equal(f->message.n_fds, 0);
	assert_int_equal(count_descriptors(), f->n_descriptors);
	assert_int_equal(f->message.header.sequence, 7);
	assert_int_equal(f->message.header.type, p->header.type);
}

static void expect_accepted(struct fixture *f, const struct packet *p)
{
	const char *reason = "";

	send_packet(f, p);
	if (message_receive(f->pair[1], &f->message, &reason) != 1)
		fail_msg("refused: %s", reason);
	assert_int_equal(f->message.n_fds, p->n_descriptors);
	assert_memory_equal(f->message.body, p->body, p->size);
	message_done(&f->message);
	assert_int_equal(count_descriptors(), f->n_descriptors);
}

/* A GRANT of n listeners, each with its own descriptor. */
static void make_grant(struct packet *p, unsigned n)
{
	uint8_t body[PROTOCOL_MESSAGE_MAX] = {};
	struct protocol_grant *grant = (void *)body;
	struct protocol_grant_listener *listeners = (void *)(body + sizeof(*grant));

	grant->n_workers = htole32(1);
	grant->n_listeners = htole16((uint16_t)n);
	for (unsigned i = 0; i < n; i++) {
		snprintf(listeners[i].name, sizeof(listeners[i].name), "listener%u", i);
		listeners[i].descriptor = htole16((uint16_t)(n - 1 - i));
	}
	make_packet(p, PROTOCOL_GRANT, body, sizeof(*grant) + n * sizeof(*listeners), (int)n);
}

static struct protocol_grant_listener *packet_listener(struct packet *p, unsigned i)
{
	return (void *)(p->body + sizeof(struct protocol_grant) +
			i * sizeof(struct protocol_grant_listener));
}

static void a_message_arrives_as_it_was_sent(void **state)
{
	struct fixture *f = *state;
	struct protocol_register body = {.n_workers = htole32(3), .weight = htole32(250)};

	strcpy(body.service, "web");
	strcpy(body.instance, "web@1");
	assert_int_equal(
		message_send(f->pair[0], PROTOCOL_REGISTER, 42, &body, sizeof(body), NULL, 0), 0);
	assert_int_equal(message_receive(f->pair[1], &f->message, NULL), 1);
	assert_int_equal(f->message.header.magic, PROTOCOL_MAGIC);
	assert_int_equal(f->message.header.version, PROTOCOL_VERSION);
	assert_int_equal(f->message.header.type, PROTOCOL_REGISTER);
	assert_int_equal(f->message.header.sequence, 42);
	assert_int_equal(f->message.header.length, sizeof(body));
	assert_memory_equal(&f->message.reg, &body, sizeof(body));
	assert_int_equal(f->message.n_fds, 0);
	assert_false(f->message.has_credentials);
	assert_int_equal(message_receive(f->pair[1], &f->message, NULL), -EAGAIN);
}

static void the_wire_is_little_endian(void **state)
{
	struct fixture *f = *state;
	const uint8_t expected[] = {'R', 'U', 'P', 'D', 1, 0, 4, 0, 4, 3, 2, 1, 8, 0, 0, 0, 0, 0, 0,
		0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0};
	struct protocol_registration body = {.registration = htole32(9)};
	uint8_t data[64];

	assert_int_equal(
		message_send(f->pair[0], PROTOCOL_READY, 0x01020304, &body, sizeof(body), NULL, 0),
		0);
	assert_int_equal(recv(f->pair[1], data, sizeof(data), 0), sizeof(expected));
	assert_memory_equal(data, expected, sizeof(expected));
}

static void descriptors_arrive_and_can_be_taken(void **state)
{
	struct fixture *f = *state;
	struct packet p;
	int fds[PROTOCOL_LISTENERS_MAX], taken;

	make_grant(&p, PROTOCOL_LISTENERS_MAX);
	for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
		fds[i] = STDIN_FILENO;
	assert_int_equal(
		message_send(f->pair[0], PROTOCOL_GRANT, 1, p.body, p.size, fds, ARRAY_SIZE(fds)),
		0);
	assert_int_equal(message_receive(f->pair[1], &f->message, NULL), 1);
	assert_int_equal(f->message.n_fds, PROTOCOL_LISTENERS_MAX);
	for (size_t i = 0; i < f->message.n_fds; i++)
		assert_int_equal(fcntl(f->message.fds[i], F_GETFD), FD_CLOEXEC);
	taken = take_fd(&f->message.fds[5]);
	message_done(&f->message);
	assert_int_equal(count_descriptors(), f->n_descriptors + 1);
	assert_int_equal(close(taken), 0);
}

static void the_sender_is_known_by_its_credentials(void **state)
{
	struct fixture *f = *state;
	struct protocol_registration body = {};
	const int one = 1;

	assert_int_equal(setsockopt(f->pair[1], SOL_SOCKET, SO_PASSCRED, &one, sizeof(one)), 0);
	assert_int_equal(
		message_send(f->pair[0], PROTOCOL_READY, 1, &body, sizeof(body), NULL, 0), 0);
	assert_int_equal(message_receive(f->pair[1], &f->message, NULL), 1);
	assert_true(f->message.has_credentials);
	assert_int_equal(f->message.credentials.pid, getpid());
	assert_int_equal(f->message.credentials.uid, getuid());
}

static void every_type_is_accepted_in_its_plain_form(void **state)
{
	static const struct {
		uint16_t type;
		size_t size;
	} plain[] = {
		{PROTOCOL_HELLO, sizeof(struct protocol_hello)},
		{PROTOCOL_REGISTER, sizeof(struct protocol_register)},
		{PROTOCOL_ACK, sizeof(struct protocol_ack)},
		{PROTOCOL_READY, sizeof(struct protocol_registration)},
		{PROTOCOL_DRAIN, sizeof(struct protocol_registration)},
		{PROTOCOL_UNREGISTER, sizeof(struct protocol_registration)},
		{PROTOCOL_LOAD, sizeof(struct protocol_registration)},
		{PROTOCOL_WELCOME, sizeof(struct protocol_welcome)},
		{PROTOCOL_OK, sizeof(struct protocol_ok)},
		{PROTOCOL_ERROR, sizeof(struct protocol_error)},
		{PROTOCOL_DRAIN_REQUESTED, sizeof(struct protocol_drain_requested)},
		{PROTOCOL_KEYS_ROTATED, sizeof(struct protocol_keys_rotated)},
		{PROTOCOL_GOODBYE, sizeof(struct protocol_goodbye)},
		{PROTOCOL_STALLED, sizeof(struct protocol_stalled)},
		{PROTOCOL_ADOPTED, sizeof(struct protocol_adopted)},
	};
	struct fixture *f = *state;
	uint8_t zeros[1024] = {};
	struct packet p;

	for (size_t i = 0; i < ARRAY_SIZE(plain); i++) {
		make_packet(&p, plain[i].type, zeros, plain[i].size, 0);
		expect_accepted(f, &p);
		/* one octet more or less is another message */
		make_packet(&p, plain[i].type, zeros, plain[i].size + 1, 0);
		expect_refused(f, &p, "length of the body");
		make_packet(&p, plain[i].type, zeros, plain[i].size - 1, 0);
		expect_refused(f, &p, "length of the body");
		make_packet(&p, plain[i].type, zeros, 0, 0);
		expect_refused(f, &p, "length of the body");
		if (plain[i].type == PROTOCOL_HELLO || plain[i].type == PROTOCOL_ACK)
			continue;
		make_packet(&p, plain[i].type, zeros, plain[i].size, 1);
		expect_refused(f, &p, "descriptors where the type has none");
	}
	make_packet(&p, PROTOCOL_HELLO, zeros, sizeof(struct protocol_hello), 1);
	expect_accepted(f, &p);
	make_packet(&p, PROTOCOL_HELLO, zeros, sizeof(struct protocol_hello), 2);
	expect_refused(f, &p, "descriptors where the type has none");
}

static void adopt_brings_one_socket(void **state)
{
	struct protocol_adopt bind = {.step = htole16(PROTOCOL_ADOPT_BIND)};
	struct protocol_adopt listening = {
		.step = htole16(PROTOCOL_ADOPT_LISTEN), .backlog = htole32(128)};
	struct fixture *f = *state;
	struct protocol_adopt wrong;
	struct packet p;

	make_packet(&p, PROTOCOL_ADOPT, &bind, sizeof(bind), 1);
	expect_accepted(f, &p);
	make_packet(&p, PROTOCOL_ADOPT, &listening, sizeof(listening), 1);
	expect_accepted(f, &p);
	make_packet(&p, PROTOCOL_ADOPT, &bind, sizeof(bind), 0);
	expect_refused(f, &p, "without a socket");
	make_packet(&p, PROTOCOL_ADOPT, &bind, sizeof(bind), 2);
	expect_refused(f, &p, "descriptors where the type has none");
	make_packet(&p, PROTOCOL_ADOPT, &bind, sizeof(bind) - 1, 1);
	expect_refused(f, &p, "length of the body");
	wrong = bind, wrong.step = htole16(3);
	make_packet(&p, PROTOCOL_ADOPT, &wrong, sizeof(wrong), 1);
	expect_refused(f, &p, "unknown step");
	wrong = bind, wrong.backlog = htole32(1);
	make_packet(&p, PROTOCOL_ADOPT, &wrong, sizeof(wrong), 1);
	expect_refused(f, &p, "backlog");
	wrong = bind, wrong.flags = htole32(1);
	make_packet(&p, PROTOCOL_ADOPT, &wrong, sizeof(wrong), 1);
	expect_refused(f, &p, "unknown flag");
	make_packet(&p, PROTOCOL_REGISTER,
		&(struct protocol_register){.flags = htole32(PROTOCOL_REGISTER_ADOPT)},
		sizeof(struct protocol_register), 0);
	expect_accepted(f, &p);
	make_packet(&p, PROTOCOL_REGISTER, &(struct protocol_register){.flags = htole32(2)},
		sizeof(struct protocol_register), 0);
	expect_refused(f, &p, "unknown flag");
}

static void grant_of_no_worker_has_no_descriptor(void **state)
{
	struct {
		struct protocol_grant fixed;
		struct protocol_grant_listener listener;
	} body = {
		.fixed.n_listeners = htole16(1),
		.listener.descriptor = htole16(PROTOCOL_NO_DESCRIPTOR),
	};
	struct fixture *f = *state;
	struct packet p;

	make_packet(&p, PROTOCOL_GRANT, &body, sizeof(body), 0);
	expect_accepted(f, &p);
	make_packet(&p, PROTOCOL_GRANT, &body, sizeof(body), 1);
	expect_refused(f, &p, "not one descriptor for each listener");
	body.listener.descriptor = 0;
	make_packet(&p, PROTOCOL_GRANT, &body, sizeof(body), 0);
	expect_refused(f, &p, "index of a descriptor");
	body.fixed.n_workers = htole32(1);
	body.listener.descriptor = htole16(PROTOCOL_NO_DESCRIPTOR);
	make_packet(&p, PROTOCOL_GRANT, &body, sizeof(body), 1);
	expect_refused(f, &p, "index of a descriptor");
}

static void grant_that_is_an_event_has_no_descriptor(void **state)
{
	struct {
		struct protocol_grant fixed;
		struct protocol_grant_listener listener;
	} body = {
		.fixed.n_listeners = htole16(1),
		.fixed.n_workers = htole32(1),
		.listener.descriptor = htole16(PROTOCOL_NO_DESCRIPTOR),
	};
	struct fixture *f = *state;
	struct packet p;

	make_packet(&p, PROTOCOL_GRANT, &body, sizeof(body), 0);
	p.header.sequence = 0;
	expect_accepted(f, &p);
	make_packet(&p, PROTOCOL_GRANT, &body, sizeof(body), 0);
	expect_refused(f, &p, "not one descriptor for each listener");
}

static void resume_brings_sockets_and_names_each(void **state)
{
	struct body {
		struct protocol_resume fixed;
		struct protocol_resume_listener listeners[2];
	} good = {
		.fixed.n_workers = htole32(1),
		.fixed.n_listeners = htole16(2),
		.listeners[0].descriptor = htole16(1),
		.listeners[1].descriptor = htole16(0),
	};
	const size_t size = sizeof(good);
	struct fixture *f = *state;
	struct body wrong;
	struct packet p;

	make_packet(&p, PROTOCOL_RESUME, &good, size, 2);
	expect_accepted(f, &p);
	make_packet(&p, PROTOCOL_RESUME, &good, size, 1);
	expect_refused(f, &p, "index of a descriptor");
	make_packet(&p, PROTOCOL_RESUME, &good, size, 3);
	expect_refused(f, &p, "number of descriptors does not fit");
	make_packet(&p, PROTOCOL_RESUME, &good, size - 1, 2);
	expect_refused(f, &p, "length does not fit");
	wrong = good, wrong.fixed.flags = htole32(PROTOCOL_RESUME_PROCESS);
	make_packet(&p, PROTOCOL_RESUME, &wrong, size, 3);
	expect_accepted(f, &p);
	make_packet(&p, PROTOCOL_RESUME, &wrong, size, 2);
	expect_refused(f, &p, "index of a descriptor");
	make_packet(&p, PROTOCOL_RESUME, &wrong, size, 0);
	expect_refused(f, &p, "number of descriptors does not fit");
	wrong = good, wrong.listeners[0].descriptor = htole16(PROTOCOL_NO_DESCRIPTOR);
	make_packet(&p, PROTOCOL_RESUME, &wrong, size, 1);
	expect_accepted(f, &p);
	make_packet(&p, PROTOCOL_RESUME, &wrong, size, 2);
	expect_refused(f, &p, "that no listener names");
	wrong = good, wrong.listeners[0].descriptor = 0;
	make_packet(&p, PROTOCOL_RESUME, &wrong, size, 2);
	expect_refused(f, &p, "named twice");
	wrong = good, wrong.fixed.flags = htole32(8);
	make_packet(&p, PROTOCOL_RESUME, &wrong, size, 2);
	expect_refused(f, &p, "unknown flag");
	wrong = good, wrong.listeners[1].flags = htole32(PROTOCOL_RESUME_BOUND);
	make_packet(&p, PROTOCOL_RESUME, &wrong, size, 2);
	expect_refused(f, &p, "unknown flag of a listener");
	wrong.fixed.max_workers = htole32(1);
	make_packet(&p, PROTOCOL_RESUME, &wrong, size, 2);
	expect_accepted(f, &p);
	wrong.listeners[1].flags = htole32(2);
	make_packet(&p, PROTOCOL_RESUME, &wrong, size, 2);
	expect_refused(f, &p, "unknown flag of a listener");
	wrong.listeners[1].flags = htole32(PROTOCOL_RESUME_BOUND);
	wrong.fixed.slot = htole16(PROTOCOL_NO_SLOT);
	make_packet(&p, PROTOCOL_RESUME, &wrong, size, 2);
	expect_refused(f, &p, "a socket that has a slot, without it");
	wrong.listeners[0].descriptor = htole16(PROTOCOL_NO_DESCRIPTOR);
	make_packet(&p, PROTOCOL_RESUME, &wrong, size, 1);
	expect_accepted(f, &p);
	wrong = good, memset(wrong.fixed.service, 'x', sizeof(wrong.fixed.service));
	make_packet(&p, PROTOCOL_RESUME, &wrong, size, 2);
	expect_refused(f, &p, "not NUL-terminated");
	wrong = good, memset(wrong.listeners[1].name, 'x', sizeof(wrong.listeners[1].name));
	make_packet(&p, PROTOCOL_RESUME, &wrong, size, 2);
	expect_refused(f, &p, "not NUL-terminated");
	wrong = good, wrong.fixed.n_listeners = 0;
	make_packet(&p, PROTOCOL_RESUME, &wrong, size, 2);
	expect_refused(f, &p, "number of listeners");
	wrong = good, wrong.fixed.n_listeners = htole16(3);
	make_packet(&p, PROTOCOL_RESUME, &wrong, size, 2);
	expect_refused(f, &p, "length does not fit");
}

static void unknown_types_pass_with_whatever_they_carry(void **state)
{
	static const uint16_t unknown[] = {0, 12, 63, 69, 133, 1000, 65535};
	struct fixture *f = *state;
	uint8_t body[100];
	struct packet p;

	memset(body, 0xa5, sizeof(body));
	for (size_t i = 0; i < ARRAY_SIZE(unknown); i++) {
		make_packet(&p, unknown[i], body, sizeof(body), 3);
		expect_accepted(f, &p);
		make_packet(&p, unknown[i], body, 0, PROTOCOL_DESCRIPTORS_MAX);
		expect_accepted(f, &p);
	}
}

static void a_broken_header_is_refused(void **state)
{
	struct fixture *f = *state;
	struct protocol_registration body = {};
	const char *reason = NULL;
	struct packet good, p;

	make_packet(&good, PROTOCOL_READY, &body, sizeof(body), 0);

	p = good, p.header.version = 2;
	expect_refused(f, &p, "version");
	p = good, p.header.reserved = 1;
	expect_refused(f, &p, "reserved field of the header");
	p = good, p.header.reserved2 = 1;
	expect_refused(f, &p, "reserved field of the header");
	p = good, p.header.length++;
	expect_refused(f, &p, "length in the header");
	p = good, p.header.length = UINT32_MAX;
	expect_refused(f, &p, "length in the header");
	p = good, p.header.length = 0;
	expect_refused(f, &p, "length in the header");
	p = good, p.header.n_descriptors = 1;
	expect_refused(f, &p, "number of descriptors in the header");
	p = good, p.n_descriptors = 2;
	expect_refused(f, &p, "number of descriptors in the header");
	p = good, p.header.n_descriptors = 1, p.n_descriptors = 2;
	expect_refused(f, &p, "number of descriptors in the header");

	/* Nothing of these can be trusted, the sequence number neither. */
	p = good, p.header.magic ^= 1, p.n_descriptors = 2;
	send_packet(f, &p);
	assert_int_equal(message_receive(f->pair[1], &f->message, &reason), -EBADMSG);
	assert_string_equal(reason, "message does not start with the protocol's magic number");
	assert_int_equal(f->message.header.sequence, 0);
	for (size_t size = 1; size < sizeof(struct protocol_header); size++) {
		send_raw(f->pair[0], "RUPD\1\0\4\0aaaabbbbccccdddd", size, 1);
		assert_int_equal(message_receive(f->pair[1], &f->message, &reason), -EBADMSG);
		assert_string_equal(reason, "message is shorter than its header");
		assert_int_equal(f->message.header.sequence, 0);
	}
	assert_int_equal(count_descriptors(), f->n_descriptors);

	/* HELLO may speak for a version that is not ours. */
	make_packet(
		&p, PROTOCOL_HELLO, &(struct protocol_hello){}, sizeof(struct protocol_hello), 0);
	p.header.version = 9;
	expect_accepted(f, &p);
}

static void a_message_too_long_is_refused(void **state)
{
	struct fixture *f = *state;
	uint8_t body[PROTOCOL_MESSAGE_MAX] = {};
	const size_t most = PROTOCOL_MESSAGE_MAX - sizeof(struct protocol_header);
	struct packet p;

	make_packet(&p, 1000, body, most, 0);
	expect_accepted(f, &p);
	make_packet(&p, 1000, body, most + 1, 4);
	expect_refused(f, &p, "too long");
	assert_int_equal(message_send(f->pair[0], 1000, 1, body, most + 1, NULL, 0), -EMSGSIZE);
	assert_int_equal(message_send(f->pair[0], 1000, 1, body, most, NULL, 0), 0);
	assert_int_equal(message_send(f->pair[0], 1000, 1, body, 0, (int[254]){0}, 254), -EMSGSIZE);
}

static void flags_and_reserved_fields_are_refused(void **state)
{
	struct fixture *f = *state;
	struct packet p;

	make_packet(&p, PROTOCOL_HELLO, &(struct protocol_hello){.flags = htole32(1)},
		sizeof(struct protocol_hello), 0);
	expect_refused(f, &p, "unknown flag");
	make_packet(&p, PROTOCOL_REGISTER, &(struct protocol_register){.flags = htole32(1u << 31)},
		sizeof(struct protocol_register), 0);
	expect_refused(f, &p, "unknown flag");
	make_packet(&p, PROTOCOL_UNREGISTER, &(struct protocol_registration){.flags = htole32(2)},
		sizeof(struct protocol_registration), 0);
	expect_refused(f, &p, "unknown flag");
	make_packet(&p, PROTOCOL_WELCOME, &(struct protocol_welcome){.reserved = 1},
		sizeof(struct protocol_welcome), 0);
	expect_refused(f, &p, "reserved field");
	make_packet(&p, PROTOCOL_WELCOME, &(struct protocol_welcome){.flags = 1},
		sizeof(struct protocol_welcome), 0);
	expect_refused(f, &p, "unknown flag");
	make_packet(&p, PROTOCOL_OK, &(struct protocol_ok){.reserved = htole32(1u << 24)},
		sizeof(struct protocol_ok), 0);
	expect_refused(f, &p, "reserved field");
	make_packet(&p, PROTOCOL_KEYS_ROTATED, &(struct protocol_keys_rotated){.reserved2 = 1},
		sizeof(struct protocol_keys_rotated), 0);
	expect_refused(f, &p, "reserved field");
	make_packet(&p, PROTOCOL_STALLED, &(struct protocol_stalled){.reserved = htole32(1)},
		sizeof(struct protocol_stalled), 0);
	expect_refused(f, &p, "reserved field");
	make_packet(&p, PROTOCOL_STALLED, &(struct protocol_stalled){.stalled = htole32(2)},
		sizeof(struct protocol_stalled), 0);
	expect_refused(f, &p, "neither 0 nor 1");
	make_packet(&p, PROTOCOL_ACK, &(struct protocol_ack){.reserved = htole32(1)},
		sizeof(struct protocol_ack), 0);
	expect_refused(f, &p, "reserved field");
	make_packet(&p, PROTOCOL_ACK, &(struct protocol_ack){.flags = htole32(2)},
		sizeof(struct protocol_ack), 0);
	expect_refused(f, &p, "unknown flag");
}

static void an_acknowledgement_carries_the_pidfd_that_its_flag_says(void **state)
{
	struct fixture *f = *state;
	struct protocol_ack with = {.flags = htole32(PROTOCOL_ACK_PROCESS)}, without = {};
	struct packet p;

	make_packet(&p, PROTOCOL_ACK, &with, sizeof(with), 1);
	expect_accepted(f, &p);
	make_packet(&p, PROTOCOL_ACK, &with, sizeof(with), 0);
	expect_refused(f, &p, "does not fit the flags");
	make_packet(&p, PROTOCOL_ACK, &without, sizeof(without), 1);
	expect_refused(f, &p, "does not fit the flags");
}

static void unterminated_strings_are_refused(void **state)
{
	struct fixture *f = *state;
	struct protocol_register reg = {};
	struct protocol_welcome welcome = {};
	struct protocol_error error = {};
	struct protocol_goodbye goodbye = {};
	struct packet p;

	memset(reg.service, 'a', sizeof(reg.service));
	make_packet(&p, PROTOCOL_REGISTER, &reg, sizeof(reg), 0);
	expect_refused(f, &p, "service is not NUL-terminated");
	reg.service[sizeof(reg.service) - 1] = '\0';
	make_packet(&p, PROTOCOL_REGISTER, &reg, sizeof(reg), 0);
	expect_accepted(f, &p);
	memset(reg.instance, 'a', sizeof(reg.instance));
	make_packet(&p, PROTOCOL_REGISTER, &reg, sizeof(reg), 0);
	expect_refused(f, &p, "instance is not NUL-terminated");
	memset(welcome.daemon_version, 'a', sizeof(welcome.daemon_version));
	make_packet(&p, PROTOCOL_WELCOME, &welcome, sizeof(welcome), 0);
	expect_refused(f, &p, "not NUL-terminated");
	memset(error.text, 'a', sizeof(error.text));
	make_packet(&p, PROTOCOL_ERROR, &error, sizeof(error), 0);
	expect_refused(f, &p, "not NUL-terminated");
	memset(goodbye.text, 'a', sizeof(goodbye.text));
	make_packet(&p, PROTOCOL_GOODBYE, &goodbye, sizeof(goodbye), 0);
	expect_refused(f, &p, "not NUL-terminated");
}

static void a_grant_names_each_descriptor_once(void **state)
{
	struct fixture *f = *state;
	struct protocol_grant *grant;
	struct packet good, p;

	make_grant(&good, 3);
	expect_accepted(f, &good);
	make_grant(&p, PROTOCOL_LISTENERS_MAX);
	expect_accepted(f, &p);

	p = good, grant = (void *)p.body, grant->n_listeners = 0;
	expect_refused(f, &p, "number of listeners out of range");
	p = good, grant = (void *)p.body, grant->n_listeners = htole16(PROTOCOL_LISTENERS_MAX + 1);
	expect_refused(f, &p, "number of listeners out of range");
	p = good, grant = (void *)p.body, grant->n_listeners = htole16(2);
	expect_refused(f, &p, "length does not fit");
	p = good, grant = (void *)p.body, grant->n_listeners = htole16(4);
	expect_refused(f, &p, "length does not fit");
	p = good, p.size--, p.header.length--;
	expect_refused(f, &p, "length does not fit");
	p = good, p.n_descriptors = 2, p.header.n_descriptors = 2;
	expect_refused(f, &p, "not one descriptor for each listener");
	p = good, p.n_descriptors = 4, p.header.n_descriptors = 4;
	expect_refused(f, &p, "not one descriptor for each listener");
	p = good, p.n_descriptors = 65, p.header.n_descriptors = 65;
	expect_refused(f, &p, "descriptors where the type has none");
	p = good, packet_listener(&p, 1)->descriptor = htole16(3);
	expect_refused(f, &p, "index of a descriptor out of range");
	p = good, packet_listener(&p, 1)->descriptor = packet_listener(&p, 0)->descriptor;
	expect_refused(f, &p, "two listeners name the same descriptor");
	p = good, packet_listener(&p, 2)->reserved = 1;
	expect_refused(f, &p, "reserved field");
	p = good, memset(packet_listener(&p, 2)->name, 'a', PROTOCOL_NAME_MAX);
	expect_refused(f, &p, "name of a listener is not NUL-terminated");
	p = good, memset(packet_listener(&p, 2)->address, 'a', PROTOCOL_NAME_MAX);
	expect_refused(f, &p, "address of a listener is not NUL-terminated");
	p = good, grant = (void *)p.body, memset(grant->instance, 'a', PROTOCOL_NAME_MAX);
	expect_refused(f, &p, "instance is not NUL-terminated");
}

static void connection_ids_have_legal_lengths(void **state)
{
	struct fixture *f = *state;
	uint8_t body[PROTOCOL_MESSAGE_MAX] = {};
	struct protocol_cids *cids = (void *)body;
	struct protocol_cid *cid = (void *)(body + sizeof(*cids));
	const size_t one = sizeof(*cids) + sizeof(*cid);
	struct packet p;

	for (size_t i = 0; i < PROTOCOL_CIDS_MAX; i++)
		cid[i].length = (uint8_t)(1 + i % PROTOCOL_CID_OCTETS);
	cids->count = htole16(PROTOCOL_CIDS_MAX);
	make_packet(
		&p, PROTOCOL_CID_ADD, body, sizeof(*cids) + PROTOCOL_CIDS_MAX * sizeof(*cid), 0);
	expect_accepted(f, &p);
	cids->count = htole16(PROTOCOL_CIDS_MAX + 1);
	make_packet(&p, PROTOCOL_CID_ADD, body,
		sizeof(*cids) + (PROTOCOL_CIDS_MAX + 1) * sizeof(*cid), 0);
	expect_refused(f, &p, "number of connection IDs out of range");
	cids->count = 0;
	make_packet(&p, PROTOCOL_CID_RETIRE, body, sizeof(*cids), 0);
	expect_refused(f, &p, "number of connection IDs out of range");
	cids->count = htole16(1);
	make_packet(&p, PROTOCOL_CID_RETIRE, body, one, 0);
	expect_accepted(f, &p);
	make_packet(&p, PROTOCOL_CID_RETIRE, body, one + 1, 0);
	expect_refused(f, &p, "length does not fit");
	make_packet(&p, PROTOCOL_CID_RETIRE, body, one - 1, 0);
	expect_refused(f, &p, "length does not fit");
	make_packet(&p, PROTOCOL_CID_RETIRE, body, sizeof(*cids) - 1, 0);
	expect_refused(f, &p, "length of the body");
	cid->length = 0;
	make_packet(&p, PROTOCOL_CID_ADD, body, one, 0);
	expect_refused(f, &p, "length of a connection ID out of range");
	cid->length = PROTOCOL_CID_OCTETS + 1;
	make_packet(&p, PROTOCOL_CID_ADD, body, one, 0);
	expect_refused(f, &p, "length of a connection ID out of range");
	cid->length = 8, cid->reserved[2] = 1;
	make_packet(&p, PROTOCOL_CID_ADD, body, one, 0);
	expect_refused(f, &p, "reserved field");
}

static void lost_descriptors_are_an_error_and_none_stays(void **state)
{
	struct fixture *f = *state;
	struct rlimit limit, low;
	const char *reason = NULL;
	int filled[64], n = 0, result, sequence;
	struct packet p;

	make_grant(&p, 3);
	send_packet(f, &p);
	send_packet(f, &p);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
	low = limit, low.rlim_cur = 64;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &low), 0);
	while (n < 64 && (filled[n] = dup(STDIN_FILENO)) >= 0)
		n++;
	result = message_receive(f->pair[1], &f->message, &reason); /* room for none */
	sequence = (int)f->message.header.sequence;
	assert_true(n > 2);
	close_fd(&filled[--n]);
	if (result == -EMFILE) /* room for one of three */
		result = message_receive(f->pair[1], &f->message, &reason);
	while (n)
		close_fd(&filled[--n]);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
	assert_int_equal(result, -EMFILE);
	assert_int_equal(sequence, 7);
	assert_non_null(strstr(reason, "RLIMIT_NOFILE"));
	assert_int_equal(f->message.n_fds, 0);
	assert_int_equal(count_descriptors(), f->n_descriptors);
}

static void the_end_of_the_connection_is_told(void **state)
{
	struct fixture *f = *state;
	struct protocol_registration body = {};

	assert_int_equal(
		message_send(f->pair[0], PROTOCOL_READY, 1, &body, sizeof(body), NULL, 0), 0);
	assert_int_equal(shutdown(f->pair[0], SHUT_RDWR), 0);
	assert_int_equal(message_receive(f->pair[1], &f->message, NULL), 1);
	assert_int_equal(message_receive(f->pair[1], &f->message, NULL), 0);
	assert_int_equal(
		message_send(f->pair[1], PROTOCOL_READY, 1, &body, sizeof(body), NULL, 0), -EPIPE);
}

static void an_empty_message_leaves_no_descriptor(void **state)
{
	struct fixture *f = *state;
	const char *reason = NULL;

	send_raw(f->pair[0], "", 0, 3);
	assert_int_equal(message_receive(f->pair[1], &f->message, &reason), -EBADMSG);
	assert_string_equal(reason, "empty message");
	assert_int_equal(count_descriptors(), f->n_descriptors);
}

static void a_peer_that_does_not_read_gives_eagain(void **state)
{
	struct fixture *f = *state;
	struct protocol_registration body = {};
	int result, sent = 0, received = 0;

	while ((result = message_send(
			f->pair[0], PROTOCOL_READY, 1, &body, sizeof(body), NULL, 0)) == 0)
		sent++;
	assert_int_equal(result, -EAGAIN);
	while (message_receive(f->pair[1], &f->message, NULL) == 1)
		received++;
	assert_int_equal(received, sent);
}

static void an_error_has_its_sentence(void **state)
{
	struct fixture *f = *state;
	char long_text[2 * PROTOCOL_TEXT_MAX];

	assert_int_equal(
		message_send_error(f->pair[0], 5, EACCES, "user %d may not use %s", 7, "web"), 0);
	assert_int_equal(message_receive(f->pair[1], &f->message, NULL), 1);
	assert_int_equal(f->message.header.type, PROTOCOL_ERROR);
	assert_int_equal(f->message.header.sequence, 5);
	assert_int_equal(le32toh(f->message.error.error), EACCES);
	assert_string_equal(f->message.error.text, "user 7 may not use web");

	memset(long_text, 'x', sizeof(long_text) - 1);
	long_text[sizeof(long_text) - 1] = '\0';
	assert_int_equal(message_send_error(f->pair[0], 6, EINVAL, "%s", long_text), 0);
	assert_int_equal(message_receive(f->pair[1], &f->message, NULL), 1);
	assert_int_equal(strlen(f->message.error.text), PROTOCOL_TEXT_MAX - 1);
}

static void types_have_names(void **state)
{
	assert_string_equal(message_type_name(PROTOCOL_REGISTER), "REGISTER");
	assert_string_equal(message_type_name(PROTOCOL_GOODBYE), "GOODBYE");
	assert_string_equal(message_type_name(0), "unknown");
	assert_string_equal(message_type_name(63), "unknown");
	assert_string_equal(message_type_name(65535), "unknown");
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(a_message_arrives_as_it_was_sent),
		TEST(the_wire_is_little_endian),
		TEST(descriptors_arrive_and_can_be_taken),
		TEST(the_sender_is_known_by_its_credentials),
		TEST(every_type_is_accepted_in_its_plain_form),
		TEST(adopt_brings_one_socket),
		TEST(grant_of_no_worker_has_no_descriptor),
		TEST(grant_that_is_an_event_has_no_descriptor),
		TEST(resume_brings_sockets_and_names_each),
		TEST(unknown_types_pass_with_whatever_they_carry),
		TEST(a_broken_header_is_refused),
		TEST(a_message_too_long_is_refused),
		TEST(flags_and_reserved_fields_are_refused),
		TEST(an_acknowledgement_carries_the_pidfd_that_its_flag_says),
		TEST(unterminated_strings_are_refused),
		TEST(a_grant_names_each_descriptor_once),
		TEST(connection_ids_have_legal_lengths),
		TEST(lost_descriptors_are_an_error_and_none_stays),
		TEST(the_end_of_the_connection_is_told),
		TEST(an_empty_message_leaves_no_descriptor),
		TEST(a_peer_that_does_not_read_gives_eagain),
		TEST(an_error_has_its_sentence),
		TEST(types_have_names),
	};

	alarm(120);
	return cmocka_run_group_tests_name("message", tests, NULL, NULL);
}
