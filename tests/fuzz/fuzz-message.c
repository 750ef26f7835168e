/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Feeds message_receive() arbitrary packets through a real socket pair. The first octet of the
 * input says how many descriptors go along; a message that is accepted must keep its own promises,
 * and no descriptor may be left.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "common/util.h"
#include "proto/message.c"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void send_packet(int socket, const uint8_t *data, size_t size, size_t n)
{
	union {
		struct cmsghdr align;
		char octets[CMSG_SPACE(8 * sizeof(int))];
	} control = {};
	struct iovec part = {.iov_base = (void *)data, .iov_len = size};
	struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1};
	int fds[8] = {socket, socket, socket, socket, socket, socket, socket, socket};

	if (n) {
		struct cmsghdr *c;

		header.msg_control = &control;
		header.msg_controllen = CMSG_SPACE(n * sizeof(int));
		c = CMSG_FIRSTHDR(&header);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(n * sizeof(int));
		memcpy(CMSG_DATA(c), fds, n * sizeof(int));
	}
	if (sendmsg(socket, &header, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		abort();
}

static void check_accepted(const struct message *m)
{
	if (m->header.magic != PROTOCOL_MAGIC || m->header.n_descriptors != m->n_fds ||
		m->header.length > PROTOCOL_MESSAGE_MAX - sizeof(m->header))
		abort();
	if (m->header.type == PROTOCOL_REGISTER &&
		strlen(m->reg.service) + strlen(m->reg.instance) >= 2 * PROTOCOL_NAME_MAX)
		abort();
	if (m->header.type == PROTOCOL_GRANT && m->n_fds == 0)
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct message message;
	const char *reason = NULL;
	int pair[2], before, after, result;

	if (size < 2 || size > 32768)
		return 0;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		abort();
	before = dup(pair[0]); /* the lowest free number tells whether one is left open */
	close(before);
	send_packet(pair[0], data + 1, size - 1, data[0] % 9);
	result = message_receive(pair[1], &message, &reason);
	if (result == 1) {
		check_accepted(&message);
		message_done(&message);
	} else if (result != -EBADMSG || !reason || message.n_fds) {
		abort();
	}
	after = dup(pair[0]);
	close(after);
	if (before != after)
		abort();
	close(pair[0]);
	close(pair[1]);
	return 0;
}
