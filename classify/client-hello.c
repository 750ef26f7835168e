/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Reads a ClientHello (RFC 8446 section 4.1.2), as strictly as is needed for an answer that every
 * server would agree with: each vector inside the one around it, nothing left over, and the two
 * extensions that count at most once. What else is in there is for the server to judge; unknown
 * extensions, groups and suites (GREASE, RFC 8701) are passed over.
 */
#include "classify/client-hello.h"

#include <errno.h>

#include "classify/crypto-stream.h"

enum {
	TYPE_CLIENT_HELLO = 1,
	EXTENSION_SERVER_NAME = 0,
	EXTENSION_ALPN = 16,
	EXTENSION_ECH = 0xfe0d, /* RFC 9849 */
	NAME_TYPE_HOST = 0,
	RANDOM_OCTETS = 32,
};

/* All that is read, shared by the cursors in it. error stays what it became first. */
struct reading {
	const uint8_t *octets;
	size_t available;
	int error;
	struct client_hello hello;
	struct complaint complaint;
};

/* A place in one vector; end is where the vector ends, which may not be there yet. */
struct cursor {
	struct reading *reading;
	size_t offset, end;
};

static bool hello_error(
	struct reading *reading, int error, size_t octet, const char *subject, const char *problem)
{
	if (reading->error)
		return false;
	reading->error = error;
	reading->complaint = (struct complaint){
		.subject = subject,
		.problem = problem,
		.where = "the ClientHello",
		.octet = octet,
	};
	return false;
}

static bool hello_mistake(
	struct reading *reading, size_t octet, const char *subject, const char *problem)
{
	return hello_error(reading, -EBADMSG, octet, subject, problem);
}

/* Moves over n octets, which need not be there yet. */
static bool skip(struct cursor *cursor, size_t n, const char *subject)
{
	if (cursor->reading->error)
		return false;
	if (n > cursor->end - cursor->offset)
		return hello_mistake(cursor->reading, cursor->offset, subject,
			"does not fit into what is around it");
	cursor->offset += n;
	return true;
}

/* Moves over n octets that are looked at. */
static bool take(struct cursor *cursor, size_t n, const char *subject)
{
	if (!skip(cursor, n, subject))
		return false;
	if (cursor->offset > cursor->reading->available) {
		cursor->reading->error = -EAGAIN;
		return false;
	}
	return true;
}

static bool number(struct cursor *cursor, unsigned n, const char *subject, size_t *ret)
{
	size_t value = 0;

	if (!take(cursor, n, subject))
		return false;
	for (size_t i = cursor->offset - n; i < cursor->offset; i++)
		value = value << 8 | cursor->reading->octets[i];
	*ret = value;
	return true;
}

/* A vector with n octets of length in front: *ret_inner is what is in it. */
static bool vector(struct cursor *cursor, unsigned n, size_t minimum, size_t maximum,
	const char *subject, struct cursor *ret_inner)
{
	size_t start = cursor->offset, length;

	if (!number(cursor, n, subject, &length))
		return false;
	if (length < minimum || length > maximum)
		return hello_mistake(
			cursor->reading, start, subject, "has a length that TLS does not allow");
	*ret_inner = (struct cursor){cursor->reading, cursor->offset, cursor->offset + length};
	return skip(cursor, length, subject);
}

static bool at_end(const struct cursor *cursor)
{
	return cursor->reading->error || cursor->offset >= cursor->end;
}

static void read_host_name(struct cursor name)
{
	struct reading *reading = name.reading;
	size_t start = name.offset;

	if (reading->hello.server_name_length) {
		hello_mistake(reading, start, "the server name", "is there twice");
		return;
	}
	if (!take(&name, name.end - start, "the server name"))
		return;
	for (size_t i = start; i < name.end; i++) {
		/* Names are ASCII (RFC 6066 section 3); IDNA makes them so. */
		if (reading->octets[i] <= 0x20 || reading->octets[i] >= 0x7f) {
			hello_mistake(reading, i, "the server name",
				"has an octet that is not graphic ASCII");
			return;
		}
	}
	reading->hello.server_name = start;
	reading->hello.server_name_length = name.end - start;
}

static void read_server_names(struct cursor extension)
{
	struct cursor list, name;
	size_t type;

	if (!vector(&extension, 2, 1, 0xffff, "the list of server names", &list))
		return;
	if (!at_end(&extension)) {
		hello_mistake(extension.reading, extension.offset, "the list of server names",
			"has something behind it");
		return;
	}
	while (!at_end(&list)) {
		if (!number(&list, 1, "the type of a server name", &type))
			return;
		/* RFC 6066: any other type would begin with a length of two octets as well. */
		if (type != NAME_TYPE_HOST)
			vector(&list, 2, 0, 0xffff, "a server name of another type", &name);
		else if (vector(&list, 2, 1, SERVER_NAME_MAX, "the server name", &name))
			read_host_name(name);
	}
}

static void read_protocols(struct cursor extension)
{
	struct cursor list, protocol;
	size_t start;

	if (!vector(&extension, 2, 2, 0xffff, "the list of protocols", &list))
		return;
	if (!at_end(&extension)) {
		hello_mistake(extension.reading, extension.offset, "the list of protocols",
			"has something behind it");
		return;
	}
	start = list.offset;
	while (!at_end(&list))
		vector(&list, 1, 1, 0xff, "the name of a protocol", &protocol);
	extension.reading->hello.protocols = start;
	extension.reading->hello.protocols_length = list.end - start;
}

static void read_extensions(struct cursor extensions)
{
	struct reading *reading = extensions.reading;
	bool server_name = false, alpn = false, *seen;
	struct cursor extension;
	size_t start, type;

	while (!at_end(&extensions)) {
		start = extensions.offset;
		if (!number(&extensions, 2, "the type of an extension", &type) ||
			!vector(&extensions, 2, 0, 0xffff, "an extension", &extension))
			return;
		if (type == EXTENSION_ECH)
			reading->hello.encrypted = true;
		if (type != EXTENSION_SERVER_NAME && type != EXTENSION_ALPN)
			continue;
		seen = type == EXTENSION_ALPN ? &alpn : &server_name;
		if (*seen) {
			hello_mistake(reading, start,
				type == EXTENSION_ALPN ? "the extension for ALPN"
						       : "the extension for the server name",
				"is there twice");
			return;
		}
		*seen = true;
		if (type == EXTENSION_ALPN)
			read_protocols(extension);
		else
			read_server_names(extension);
	}
}

static void read_message(struct reading *reading)
{
	struct cursor message = {reading, 0, CRYPTO_STREAM_OCTETS}, inner, extensions;
	size_t type, length;

	if (!number(&message, 1, "the message", &type))
		return;
	if (type != TYPE_CLIENT_HELLO) {
		hello_mistake(reading, 0, "the first message", "is no ClientHello");
		return;
	}
	if (!number(&message, 3, "the message", &length))
		return;
	if (length > CRYPTO_STREAM_OCTETS - CLIENT_HELLO_HEAD) {
		hello_error(reading, -EMSGSIZE, 1, "the message", "is longer than 16384 octets");
		return;
	}
	message.end = CLIENT_HELLO_HEAD + length;
	reading->hello.length = message.end;

	if (!skip(&message, 2, "the legacy version") ||
		!skip(&message, RANDOM_OCTETS, "the random value") ||
		!vector(&message, 1, 0, 32, "the legacy session ID", &inner) ||
		!vector(&message, 2, 2, 0xfffe, "the list of cipher suites", &inner) ||
		!vector(&message, 1, 1, 0xff, "the list of compression methods", &inner) ||
		!vector(&message, 2, 8, 0xffff, "the list of extensions", &extensions))
		return;
	if (!at_end(&message)) {
		hello_mistake(reading, message.offset, "the list of extensions",
			"has something behind it");
		return;
	}
	read_extensions(extensions);
	/* What was passed over has to be there as well. */
	if (!reading->error && reading->available < message.end)
		reading->error = -EAGAIN;
}

int client_hello_read(const uint8_t *octets, size_t available, struct client_hello *ret,
	struct complaint *ret_complaint)
{
	struct reading reading = {.octets = octets, .available = available};

	_Static_assert(CRYPTO_STREAM_OCTETS == 16384, "a message to people says so");
	read_message(&reading);
	if (reading.error == -EBADMSG || reading.error == -EMSGSIZE)
		*ret_complaint = reading.complaint;
	*ret = reading.hello;
	return reading.error;
}

bool client_hello_next_protocol(const uint8_t *octets, const struct client_hello *hello,
	size_t *position, const uint8_t **ret_protocol, size_t *ret_length)
{
	if (*position >= hello->protocols_length)
		return false;
	*ret_length = octets[hello->protocols + *position];
	*ret_protocol = octets + hello->protocols + *position + 1;
	*position += 1 + *ret_length;
	return true;
}
