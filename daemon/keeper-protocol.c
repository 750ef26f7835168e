/* SPDX-License-Identifier: BSD-2-Clause */
#include "daemon/keeper-protocol.h"

#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>

#include "common/util.h"

union control {
	struct cmsghdr align;
	uint8_t octets[CMSG_SPACE(KEEPER_BATCH * sizeof(int))];
};

static void take_descriptors(struct keeper_message *message, struct msghdr *header)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(header); c; c = CMSG_NXTHDR(header, c)) {
		size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t i = 0; i < n; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
			if (message->n_fds < KEEPER_BATCH)
				message->fds[message->n_fds++] = fd;
			else
				close_fd(&fd);
		}
	}
}

static bool is_sane(const struct keeper_message *message, size_t size)
{
	const struct keeper_header *header = &message->header;

	return size >= sizeof(*header) && header->magic == KEEPER_MAGIC &&
	       header->version == KEEPER_VERSION && header->n <= KEEPER_BATCH &&
	       size == sizeof(*header) + header->n * sizeof(struct keeper_entry) &&
	       message->n_fds <= header->n;
}

int keeper_receive(int socket, struct keeper_message *ret)
{
	union control control;
	struct iovec part = {
		.iov_base = ret,
		.iov_len = offsetof(struct keeper_message, fds),
	};
	struct msghdr header = {
		.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	ssize_t size;
	int reset = 0;

	ret->n_fds = 0;
	/* That the other side left something unread is said once, before what it had sent. */
	do
		size = recvmsg(socket, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	while (size < 0 && (errno == EINTR || (errno == ECONNRESET && !reset++)));
	if (size < 0)
		return errno == EWOULDBLOCK ? -EAGAIN : errno == ECONNRESET ? 0 : -errno;
	take_descriptors(ret, &header);
	if (size == 0 && !ret->n_fds)
		return 0;
	if (is_sane(ret, (size_t)size) && !(header.msg_flags & MSG_TRUNC))
		return 1;
	while (ret->n_fds)
		close_fd(&ret->fds[--ret->n_fds]);
	return -EBADMSG;
}

int keeper_send(int socket, struct keeper_message *message)
{
	union control control;
	struct iovec part = {
		.iov_base = message,
		.iov_len =
			sizeof(message->header) + message->header.n * sizeof(struct keeper_entry),
	};
	struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1};
	ssize_t sent;

	message->header.magic = KEEPER_MAGIC;
	message->header.version = KEEPER_VERSION;
	if (message->n_fds) {
		struct cmsghdr *c;

		memset(&control, 0, sizeof(control));
		header.msg_control = &control;
		header.msg_controllen = CMSG_SPACE(message->n_fds * sizeof(int));
		c = CMSG_FIRSTHDR(&header);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(message->n_fds * sizeof(int));
		memcpy(CMSG_DATA(c), message->fds, message->n_fds * sizeof(int));
	}
	do
		sent = sendmsg(socket, &header, MSG_DONTWAIT | MSG_NOSIGNAL);
	while (sent < 0 && errno == EINTR);
	if (sent < 0)
		return errno == EWOULDBLOCK ? -EAGAIN : -errno;
	return 0;
}
