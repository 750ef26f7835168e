/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What clients send beside their messages, and the daemon must not touch.
 *
 * WHY: a descriptor may be of any file, also of one whose close waits for somebody: a FUSE file
 * system asks its server, which need not answer, and not even SIGKILL ends that
 * (request_wait_answer, state D). close(2) asks (->flush), and so may the end of the last reference
 * (->release, where pages are still to be written; fuse_release), which is wherever a message that
 * nobody reads is thrown away: in recvmsg(2), in the close of the connection, in the end of the
 * process. So no message with descriptors is taken, and no connection closed with such a message in
 * it, before a child of the daemon has looked: it alone has copies, and says whether all are what
 * the protocol has a use for, sockets of IPv4 and IPv6, and pidfds. If not, it takes the message
 * away, and it is the child that waits for ever. The event loop goes on meanwhile.
 *
 * No other kind of socket: a Unix socket has messages in it, with descriptors. SO_PASSRIGHTS
 * (Linux 6.16) refuses all or none, to the sender, and not what was sent before it was set.
 *
 * A child that does not end has a few KiB of the kernel's, and the files. There are
 * FOREIGN_PER_USER of one user at most, and FOREIGN_MAX in all. Beyond it nothing is looked at, and
 * connections that were ended stay open, shut down, until a child can have them.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include <systemd/sd-event.h>

#define FOREIGN_PER_USER 4
#define FOREIGN_MAX 256

struct foreign;
struct foreign_child;

enum foreign_verdict {
	FOREIGN_WANTED, /* the message is there still, and may be received */
	FOREIGN_TAKEN,  /* it is gone */
	FOREIGN_BUSY,   /* it is there still: as many children as may be stand still */
	FOREIGN_FAILED, /* it may be there still: no verdict came in time */
};

/* A message that is looked at, as a part of what waits for it. Zero when there is none. */
struct foreign_look {
	struct foreign_look *next; /* of those that wait for a child */
	struct foreign *foreign;   /* NULL: nothing is looked at */
	struct foreign_child *child;
	int socket;
	uid_t uid;
	/* Once, and never out of foreign_look(): the look is over, its owner may go. */
	void (*done)(struct foreign_look *look, enum foreign_verdict verdict);
};

int foreign_new(struct foreign **ret, sd_event *event);
/* Connections that wait to be closed go to a last child. NULL is fine. Returns NULL. */
struct foreign *foreign_free(struct foreign *foreign);

/*
 * The start of the next message, as recv(2) with MSG_PEEK, and whether it brings descriptors, none
 * of which is taken. -1: there is none; errno EPIPE: nor will there be. With SO_PASSCRED an empty
 * message is 0.
 */
ssize_t foreign_peek(int socket, void *octets, size_t length, bool *ret_descriptors);

/*
 * Has the next message of the socket looked at, which uid has sent. Until done() is called, or
 * foreign_cancel(), nobody may receive from the socket. -EBUSY: FOREIGN_BUSY at once; other
 * negative errno: there can be no child.
 */
int foreign_look(struct foreign *foreign, struct foreign_look *look, int socket, uid_t uid,
	void (*done)(struct foreign_look *look, enum foreign_verdict verdict));
bool foreign_is_looking(const struct foreign_look *look);
void foreign_cancel(struct foreign_look *look);

/*
 * Ends a connection of a Unix socket, for all who have it, and closes it, here or in a child.
 * foreign NULL: here.
 */
void foreign_close(struct foreign *foreign, int *socket);

/*
 * Before execve(2), which closes these sockets and what waits to be closed: so that it isn't the
 * last close. If this process goes on after all, foreign_stay() with what was returned: -1 or a
 * descriptor.
 */
int foreign_leave(struct foreign *foreign, const int *sockets, size_t n);
void foreign_stay(int fd);

/* Once a second. */
void foreign_tick(struct foreign *foreign);
