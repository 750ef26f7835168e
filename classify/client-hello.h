/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What a TLS 1.3 ClientHello asks for: the server name (RFC 6066 section 3) and the application
 * protocols (RFC 7301). With Encrypted Client Hello this is the outer ClientHello, and its server
 * name is that of the public front; the real one can't be read without the server's key.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "classify/complaint.h"

#define CLIENT_HELLO_HEAD 4 /* type and length: from here on the length is known */
#define SERVER_NAME_MAX 255 /* RFC 1035 section 2.3.4 */

struct client_hello {
	size_t length;             /* of the whole message; 0: not known yet */
	size_t server_name;        /* offset in the message */
	size_t server_name_length; /* 0: it has none; else graphic ASCII, as the client wrote it */
	size_t protocols;          /* offset of the list of protocols */
	size_t protocols_length;   /* 0: it has none */
	bool encrypted; /* it has the extension encrypted_client_hello, maybe as GREASE */
};

/*
 * Reads a ClientHello of which the first available octets are there. Nothing is kept between calls:
 * call again from the beginning when there are more. Returns 0 when it is complete (what follows it
 * is not looked at), -EAGAIN when octets are missing (ret->length is set once it is known), or with
 * *ret_complaint -EBADMSG for what is wrong, -EMSGSIZE for one that a stream has no room for. What
 * is wrong is told as soon as it is there.
 */
int client_hello_read(const uint8_t *octets, size_t available, struct client_hello *ret,
	struct complaint *ret_complaint);

/*
 * The protocols of a complete ClientHello in the client's order: starting with *position = 0,
 * returns true with the next one (1 to 255 octets, any), false behind the last.
 */
bool client_hello_next_protocol(const uint8_t *octets, const struct client_hello *hello,
	size_t *position, const uint8_t **ret_protocol, size_t *ret_length);
