/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * One worker-protocol message in and out of a SOCK_SEQPACKET socket, with its descriptors: the only
 * code that frames messages, used by the daemon and by libreuseport.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include "proto/protocol.h"

struct message {
	struct protocol_header header; /* in host byte order */
	union {                        /* little-endian, as on the wire; header.length octets */
		uint8_t body[PROTOCOL_MESSAGE_MAX];
		struct protocol_hello hello;
		struct protocol_welcome welcome;
		struct protocol_register reg;
		struct protocol_grant grant;
		struct protocol_ack ack;
		struct protocol_registration registration;
		struct protocol_cids cids;
		struct protocol_adopt adopt;
		struct protocol_resume resume;
		struct protocol_adopted adopted;
		struct protocol_loads loads;
		struct protocol_error error;
		struct protocol_drain_requested drain_requested;
		struct protocol_keys_rotated keys_rotated;
		struct protocol_goodbye goodbye;
		struct protocol_stalled stalled;
	};
	int fds[PROTOCOL_DESCRIPTORS_MAX]; /* owned; taken ones are replaced by -1 */
	size_t n_fds;
	bool has_credentials; /* the receiving socket has SO_PASSCRED */
	struct ucred credentials;
};

/*
 * Receives one message without blocking. Returns 1 and a message whose framing, length for its type
 * (if known), reserved fields, flags and string termination were checked; 0 at the end of the
 * connection; -EAGAIN when there is none; -EBADMSG for a malformed one with *ret_reason (may be
 * NULL) a static sentence and header.sequence/type filled as far as readable; -EMFILE when
 * descriptors were lost (MSG_CTRUNC); other negative errno of recvmsg(2). On every result but 1 no
 * descriptor stays open.
 */
int message_receive(int socket, struct message *message, const char **ret_reason);

/* Closes the descriptors that are left. */
void message_done(struct message *message);

/*
 * Sends one message without blocking. fds stay the caller's. Returns 0, -EAGAIN when the peer does
 * not read, -ETOOMANYREFS when too many descriptors of this user are in flight, -EPIPE, other
 * negative errno of sendmsg(2).
 */
int message_send(int socket, uint16_t type, uint32_t sequence, const void *body, size_t length,
	const int *fds, size_t n_fds);

/* Sends ERROR with a sentence; error is a positive errno. Results as message_send(). */
int message_send_error(int socket, uint32_t sequence, int error, const char *format, ...)
	__attribute__((format(printf, 4, 5)));

/* Name of a type for people ("REGISTER"), "unknown" for others; static. */
const char *message_type_name(uint16_t type);
