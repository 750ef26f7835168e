/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A single descriptor between processes of one program, with one octet, since a stream carries
 * none without (unix(7)). Header only.
 */
#pragma once

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

/* fd stays the caller's. Returns 0 or what sendmsg(2) said. */
static inline int pass_fd(int socket, int fd)
{
	union {
		struct cmsghdr align;
		char octets[CMSG_SPACE(sizeof(int))];
	} control = {};
	struct iovec part = {.iov_base = "", .iov_len = 1};
	const struct msghdr header = {
		.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};

	control.align = (struct cmsghdr){
		.cmsg_len = CMSG_LEN(sizeof(int)),
		.cmsg_level = SOL_SOCKET,
		.cmsg_type = SCM_RIGHTS,
	};
	memcpy(CMSG_DATA(&control.align), &fd, sizeof(fd));
	return sendmsg(socket, &header, MSG_NOSIGNAL) == 1 ? 0 : -errno;
}
