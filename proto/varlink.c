/* SPDX-License-Identifier: BSD-2-Clause */
#include "proto/varlink.h"

#include <string.h>
#include <sys/socket.h>

#include "common/util.h"

#define READ_OCTETS 65536

void varlink_done(struct varlink_buffer *buffer)
{
	free(buffer->octets);
	*buffer = (struct varlink_buffer){0};
}

/* Whoever has said all and waits costs no memory. */
static void release_empty(struct varlink_buffer *buffer)
{
	if (buffer->consumed == buffer->length)
		varlink_done(buffer);
}

/* Room for READ_OCTETS more; what was consumed makes place first. */
static int make_room(struct varlink_buffer *buffer)
{
	size_t wanted;
	char *octets;

	if (buffer->consumed) {
		memmove(buffer->octets, buffer->octets + buffer->consumed,
			buffer->length - buffer->consumed);
		buffer->length -= buffer->consumed;
		buffer->searched -= buffer->consumed;
		buffer->consumed = 0;
	}
	wanted = buffer->length + READ_OCTETS;
	if (wanted <= buffer->allocated)
		return 0;
	octets = realloc(buffer->octets, wanted);
	if (!octets)
		return -ENOMEM;
	buffer->octets = octets;
	buffer->allocated = wanted;
	return 0;
}

int varlink_fill(struct varlink_buffer *buffer, int socket, size_t limit)
{
	struct iovec part = {.iov_len = READ_OCTETS};
	struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1};
	ssize_t n;
	int result;

	if (buffer->length - buffer->consumed > limit)
		return -ENOBUFS;
	result = make_room(buffer);
	if (result < 0)
		return result;
	part.iov_base = buffer->octets + buffer->length;
	n = recvmsg(socket, &header, MSG_PEEK | MSG_DONTWAIT);
	/* The kernel would throw them away here and now, which may take for ever (foreign.h). */
	if (n >= 0 && header.msg_flags & MSG_CTRUNC)
		return -EBADF;
	/* These, and none that came since. */
	if (n > 0)
		n = recv(socket, part.iov_base, (size_t)n, MSG_DONTWAIT);
	if (n > 0) {
		buffer->length += (size_t)n;
		return 1;
	}
	result = n == 0 ? 0 : errno == EINTR ? -EAGAIN : -errno;
	release_empty(buffer);
	return result;
}

int varlink_next(struct varlink_buffer *buffer, json_t **ret, char **ret_reason)
{
	const char *start, *end;
	json_error_t error;
	json_t *message;

	if (buffer->searched == buffer->length)
		return 0;
	end = memchr(buffer->octets + buffer->searched, '\0', buffer->length - buffer->searched);
	if (!end) {
		buffer->searched = buffer->length;
		return 0;
	}
	start = buffer->octets + buffer->consumed;
	buffer->consumed = buffer->searched = (size_t)(end - buffer->octets) + 1;
	message = json_loadb(start, (size_t)(end - start), JSON_REJECT_DUPLICATES, &error);
	release_empty(buffer);
	if (json_is_object(message)) {
		*ret = message;
		return 1;
	}
	if (ret_reason) {
		if (message)
			*ret_reason = strdup("the message is not a JSON object");
		else if (asprintf(ret_reason, "octet %d: %s", error.position, error.text) < 0)
			*ret_reason = NULL;
	}
	json_decref(message);
	return -EBADMSG;
}

int varlink_encode(const json_t *message, char **ret, size_t *ret_length)
{
	char *text = json_dumps(message, JSON_COMPACT);

	if (!text)
		return -ENOMEM;
	*ret_length = strlen(text) + 1;
	*ret = text;
	return 0;
}
