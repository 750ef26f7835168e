/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Framing of the worker protocol. Daemon and library read through the same code, so that a message
 * that one of them takes for well-formed is never malformed to the other; and what a peer can get
 * wrong without knowing any state (sizes, reserved fields, unterminated strings, descriptors that
 * nobody named) is refused here, once, before anything else looks at it.
 *
 * No state, no allocation. A struct message is large (16 KiB): callers keep one, not one a peer.
 */
#include <endian.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "common/util.h"
#include "proto/message.h"

#ifndef SCM_PIDFD
#define SCM_PIDFD 0x04 /* Linux 6.5, SO_PASSPIDFD */
#endif

#define BODY_MAX (PROTOCOL_MESSAGE_MAX - sizeof(struct protocol_header))

_Static_assert(sizeof(struct protocol_header) == 24, "header as on the wire");
_Static_assert(sizeof(struct protocol_grant) +
			       PROTOCOL_LISTENERS_MAX * sizeof(struct protocol_grant_listener) <=
		       BODY_MAX,
	"a GRANT of the most listeners fits");
_Static_assert(sizeof(struct protocol_resume) +
			       PROTOCOL_LISTENERS_MAX * sizeof(struct protocol_resume_listener) <=
		       BODY_MAX,
	"a RESUME of the most listeners fits");
_Static_assert(
	sizeof(struct protocol_cids) + PROTOCOL_CIDS_MAX * sizeof(struct protocol_cid) <= BODY_MAX,
	"a batch of the most connection IDs fits");

static const struct {
	const char *name;
	size_t size;  /* octets of the fixed part of the body */
	size_t entry; /* octets of each entry that follows, 0: none does */
} types[] = {
	[PROTOCOL_HELLO] = {"HELLO", sizeof(struct protocol_hello), 0},
	[PROTOCOL_REGISTER] = {"REGISTER", sizeof(struct protocol_register), 0},
	[PROTOCOL_ACK] = {"ACK", sizeof(struct protocol_ack), 0},
	[PROTOCOL_READY] = {"READY", sizeof(struct protocol_registration), 0},
	[PROTOCOL_DRAIN] = {"DRAIN", sizeof(struct protocol_registration), 0},
	[PROTOCOL_UNREGISTER] = {"UNREGISTER", sizeof(struct protocol_registration), 0},
	[PROTOCOL_CID_ADD] = {"CID_ADD", sizeof(struct protocol_cids), sizeof(struct protocol_cid)},
	[PROTOCOL_CID_RETIRE] = {"CID_RETIRE", sizeof(struct protocol_cids),
		sizeof(struct protocol_cid)},
	[PROTOCOL_ADOPT] = {"ADOPT", sizeof(struct protocol_adopt), 0},
	[PROTOCOL_RESUME] = {"RESUME", sizeof(struct protocol_resume),
		sizeof(struct protocol_resume_listener)},
	[PROTOCOL_LOAD] = {"LOAD", sizeof(struct protocol_registration), 0},
	[PROTOCOL_WELCOME] = {"WELCOME", sizeof(struct protocol_welcome), 0},
	[PROTOCOL_GRANT] = {"GRANT", sizeof(struct protocol_grant),
		sizeof(struct protocol_grant_listener)},
	[PROTOCOL_OK] = {"OK", sizeof(struct protocol_ok), 0},
	[PROTOCOL_ERROR] = {"ERROR", sizeof(struct protocol_error), 0},
	[PROTOCOL_LOADS] = {"LOADS", sizeof(struct protocol_loads), 0},
	[PROTOCOL_DRAIN_REQUESTED] = {"DRAIN_REQUESTED", sizeof(struct protocol_drain_requested),
		0},
	[PROTOCOL_KEYS_ROTATED] = {"KEYS_ROTATED", sizeof(struct protocol_keys_rotated), 0},
	[PROTOCOL_GOODBYE] = {"GOODBYE", sizeof(struct protocol_goodbye), 0},
	[PROTOCOL_STALLED] = {"STALLED", sizeof(struct protocol_stalled), 0},
	[PROTOCOL_ADOPTED] = {"ADOPTED", sizeof(struct protocol_adopted), 0},
};

static bool type_known(uint16_t type)
{
	return type < ARRAY_SIZE(types) && types[type].name;
}

const char *message_type_name(uint16_t type)
{
	return type_known(type) ? types[type].name : "unknown";
}

static bool terminated(const char *string, size_t size)
{
	return memchr(string, '\0', size) != NULL;
}

static const char *check_grant(const struct message *m)
{
	const struct protocol_grant *grant = &m->grant;
	uint8_t seen[PROTOCOL_LISTENERS_MAX] = {};
	size_t n = le16toh(grant->n_listeners);
	/* An event tells of sockets that are there already. */
	bool brings = grant->n_workers && m->header.sequence;

	if (n < 1 || n > PROTOCOL_LISTENERS_MAX)
		return "GRANT: number of listeners out of range";
	if (m->header.length != sizeof(*grant) + n * sizeof(struct protocol_grant_listener))
		return "GRANT: length does not fit the number of listeners";
	if (m->n_fds != (brings ? n : 0))
		return "GRANT: not one descriptor for each listener";
	if (!terminated(grant->instance, sizeof(grant->instance)))
		return "GRANT: instance is not NUL-terminated";
	for (size_t i = 0; i < n; i++) {
		const struct protocol_grant_listener *l =
			(const void *)(m->body + sizeof(*grant) + i * sizeof(*l));
		uint16_t descriptor = le16toh(l->descriptor);

		if (!terminated(l->name, sizeof(l->name)))
			return "GRANT: name of a listener is not NUL-terminated";
		if (!terminated(l->address, sizeof(l->address)))
			return "GRANT: address of a listener is not NUL-terminated";
		if (l->reserved)
			return "GRANT: reserved field is not zero";
		if (!brings && descriptor == PROTOCOL_NO_DESCRIPTOR)
			continue;
		if (!brings || descriptor >= n)
			return "GRANT: index of a descriptor out of range";
		if (seen[descriptor]++)
			return "GRANT: two listeners name the same descriptor";
	}
	return NULL;
}

static const char *check_cids(const struct message *m)
{
	size_t n = le16toh(m->cids.count);

	if (n < 1 || n > PROTOCOL_CIDS_MAX)
		return "number of connection IDs out of range";
	if (m->header.length != sizeof(m->cids) + n * sizeof(struct protocol_cid))
		return "length does not fit the number of connection IDs";
	for (size_t i = 0; i < n; i++) {
		const struct protocol_cid *cid =
			(const void *)(m->body + sizeof(m->cids) + i * sizeof(*cid));

		if (cid->length < 1 || cid->length > PROTOCOL_CID_OCTETS)
			return "length of a connection ID out of range";
		if (cid->reserved[0] || cid->reserved[1] || cid->reserved[2])
			return "reserved field of a connection ID is not zero";
	}
	return NULL;
}

static const char *check_ack(const struct message *m)
{
	uint32_t flags = le32toh(m->ack.flags);

	if (flags & ~PROTOCOL_ACK_PROCESS)
		return "ACK: unknown flag";
	if (m->ack.reserved)
		return "ACK: reserved field is not zero";
	if (m->n_fds != (flags & PROTOCOL_ACK_PROCESS ? 1 : 0))
		return "ACK: number of descriptors does not fit the flags";
	return NULL;
}

static const char *check_adopt(const struct message *m)
{
	uint16_t step = le16toh(m->adopt.step);

	if (m->n_fds != 1)
		return "ADOPT: without a socket";
	if (step != PROTOCOL_ADOPT_BIND && step != PROTOCOL_ADOPT_LISTEN)
		return "ADOPT: unknown step";
	if (step == PROTOCOL_ADOPT_BIND && m->adopt.backlog)
		return "ADOPT: backlog of a socket that is to be bound";
	return m->adopt.flags ? "ADOPT: unknown flag" : NULL;
}

static const char *check_resume_listeners(const struct message *m, size_t n_sockets)
{
	uint8_t seen[PROTOCOL_LISTENERS_MAX] = {};
	size_t named = 0;

	for (size_t i = 0; i < le16toh(m->resume.n_listeners); i++) {
		const struct protocol_resume_listener *l =
			(const void *)(m->body + sizeof(m->resume) + i * sizeof(*l));
		uint16_t descriptor = le16toh(l->descriptor);

		if (!terminated(l->name, sizeof(l->name)) ||
			!terminated(l->address, sizeof(l->address)))
			return "RESUME: name or address of a listener is not NUL-terminated";
		if (le32toh(l->flags) & ~PROTOCOL_RESUME_BOUND ||
			(l->flags && !m->resume.max_workers))
			return "RESUME: unknown flag of a listener";
		if (descriptor == PROTOCOL_NO_DESCRIPTOR)
			continue;
		if (!l->flags && le16toh(m->resume.slot) == PROTOCOL_NO_SLOT)
			return "RESUME: a socket that has a slot, without it";
		if (descriptor >= n_sockets || seen[descriptor]++)
			return "RESUME: index of a descriptor out of range, or named twice";
		named++;
	}
	return named == n_sockets ? NULL : "RESUME: a descriptor that no listener names";
}

static const char *check_resume(const struct message *m)
{
	const struct protocol_resume *resume = &m->resume;
	uint32_t flags = le32toh(resume->flags);
	size_t n = le16toh(resume->n_listeners), others = flags & PROTOCOL_RESUME_PROCESS ? 1 : 0;

	if (n < 1 || n > PROTOCOL_LISTENERS_MAX)
		return "RESUME: number of listeners out of range";
	if (m->header.length != sizeof(*resume) + n * sizeof(struct protocol_resume_listener))
		return "RESUME: length does not fit the number of listeners";
	if (!terminated(resume->service, sizeof(resume->service)) ||
		!terminated(resume->instance, sizeof(resume->instance)))
		return "RESUME: service or instance is not NUL-terminated";
	if (flags & ~(PROTOCOL_RESUME_READY | PROTOCOL_RESUME_DRAINING | PROTOCOL_RESUME_PROCESS))
		return "RESUME: unknown flag";
	if (m->n_fds < others || m->n_fds - others > n)
		return "RESUME: number of descriptors does not fit flags and listeners";
	return check_resume_listeners(m, m->n_fds - others);
}

/* The rules of one type. Header, lengths of fixed bodies and unexpected descriptors were checked.
 */
static const char *check_body(const struct message *m)
{
	switch (m->header.type) {
	case PROTOCOL_HELLO:
		return m->hello.flags ? "HELLO: unknown flag" : NULL;
	case PROTOCOL_REGISTER:
		if (!terminated(m->reg.service, sizeof(m->reg.service)))
			return "REGISTER: service is not NUL-terminated";
		if (!terminated(m->reg.instance, sizeof(m->reg.instance)))
			return "REGISTER: instance is not NUL-terminated";
		return le32toh(m->reg.flags) & ~PROTOCOL_REGISTER_ADOPT ? "REGISTER: unknown flag"
									: NULL;
	case PROTOCOL_ACK:
		return check_ack(m);
	case PROTOCOL_READY:
	case PROTOCOL_DRAIN:
	case PROTOCOL_UNREGISTER:
	case PROTOCOL_LOAD:
		return m->registration.flags ? "unknown flag" : NULL;
	case PROTOCOL_CID_ADD:
	case PROTOCOL_CID_RETIRE:
		return check_cids(m);
	case PROTOCOL_ADOPT:
		return check_adopt(m);
	case PROTOCOL_RESUME:
		return check_resume(m);
	case PROTOCOL_WELCOME:
		if (!terminated(m->welcome.daemon_version, sizeof(m->welcome.daemon_version)))
			return "WELCOME: version of the daemon is not NUL-terminated";
		if (m->welcome.reserved)
			return "WELCOME: reserved field is not zero";
		return m->welcome.flags ? "WELCOME: unknown flag" : NULL;
	case PROTOCOL_GRANT:
		return check_grant(m);
	case PROTOCOL_OK:
		for (size_t i = 0; i < sizeof(struct protocol_ok); i++)
			if (m->body[i])
				return "OK: reserved field is not zero";
		return NULL;
	case PROTOCOL_LOADS:
		return m->n_fds == 1 ? NULL : "LOADS: without the memory";
	case PROTOCOL_ERROR:
		return terminated(m->error.text, sizeof(m->error.text))
			       ? NULL
			       : "ERROR: text is not NUL-terminated";
	case PROTOCOL_KEYS_ROTATED:
		return m->keys_rotated.reserved || m->keys_rotated.reserved2
			       ? "KEYS_ROTATED: reserved field is not zero"
			       : NULL;
	case PROTOCOL_GOODBYE:
		return terminated(m->goodbye.text, sizeof(m->goodbye.text))
			       ? NULL
			       : "GOODBYE: text is not NUL-terminated";
	case PROTOCOL_STALLED:
		if (le32toh(m->stalled.stalled) > 1)
			return "STALLED: neither 0 nor 1";
		return m->stalled.reserved ? "STALLED: reserved field is not zero" : NULL;
	default:
		return NULL;
	}
}

static size_t descriptors_max(uint16_t type)
{
	switch (type) {
	case PROTOCOL_HELLO:
	case PROTOCOL_ACK:
	case PROTOCOL_ADOPT:
	case PROTOCOL_LOADS:
		return 1;
	case PROTOCOL_GRANT:
		return PROTOCOL_LISTENERS_MAX;
	case PROTOCOL_RESUME:
		return PROTOCOL_LISTENERS_MAX + 1;
	default:
		/* What an unknown type carries is its own affair: it is answered with ERROR. */
		return type_known(type) ? 0 : PROTOCOL_DESCRIPTORS_MAX;
	}
}

/* NULL or what is wrong with a message of `size` octets; the header is in host byte order already.
 */
static const char *check(const struct message *m, size_t size)
{
	const struct protocol_header *h = &m->header;

	if (h->version != PROTOCOL_VERSION && h->type != PROTOCOL_HELLO)
		return "version of the protocol was not agreed on";
	if (h->reserved || h->reserved2)
		return "reserved field of the header is not zero";
	if (h->length != size - sizeof(*h))
		return "length in the header is not that of the message";
	if (h->n_descriptors != m->n_fds)
		return "number of descriptors in the header is not that of the message";
	if (m->n_fds > descriptors_max(h->type))
		return "descriptors where the type has none";
	if (!type_known(h->type))
		return NULL;
	if (types[h->type].entry ? h->length < types[h->type].size
				 : h->length != types[h->type].size)
		return "length of the body is not that of its type";
	return check_body(m);
}

/* Collects what came beside the data. Descriptors beyond the limit can't come (SCM_MAX_FD), and are
 * closed if they do. */
static void read_control(struct message *m, struct msghdr *header)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(header); c; c = CMSG_NXTHDR(header, c)) {
		if (c->cmsg_level != SOL_SOCKET)
			continue;
		if (c->cmsg_type == SCM_CREDENTIALS &&
			c->cmsg_len == CMSG_LEN(sizeof(m->credentials))) {
			memcpy(&m->credentials, CMSG_DATA(c), sizeof(m->credentials));
			m->has_credentials = true;
		} else if (c->cmsg_type == SCM_RIGHTS || c->cmsg_type == SCM_PIDFD) {
			size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);

			for (size_t i = 0; i < n; i++) {
				int fd;

				memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
				if (c->cmsg_type == SCM_RIGHTS &&
					m->n_fds < PROTOCOL_DESCRIPTORS_MAX)
					m->fds[m->n_fds++] = fd;
				else
					close_fd(&fd);
			}
		}
	}
}

static void header_to_host(struct protocol_header *h)
{
	h->magic = le32toh(h->magic);
	h->version = le16toh(h->version);
	h->type = le16toh(h->type);
	h->sequence = le32toh(h->sequence);
	h->length = le32toh(h->length);
	h->n_descriptors = le16toh(h->n_descriptors);
	h->reserved = le16toh(h->reserved);
	h->reserved2 = le32toh(h->reserved2);
}

static int refuse(struct message *m, int error, const char *reason, const char **ret_reason)
{
	message_done(m);
	if (ret_reason)
		*ret_reason = reason;
	return error;
}

int message_receive(int socket, struct message *m, const char **ret_reason)
{
	union {
		struct cmsghdr align;
		uint8_t octets[CMSG_SPACE(PROTOCOL_DESCRIPTORS_MAX * sizeof(int)) +
			       CMSG_SPACE(sizeof(struct ucred)) + CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec parts[] = {
		{.iov_base = &m->header, .iov_len = sizeof(m->header)},
		{.iov_base = m->body, .iov_len = BODY_MAX},
	};
	struct msghdr header = {
		.msg_iov = parts,
		.msg_iovlen = ARRAY_SIZE(parts),
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	const char *reason;
	ssize_t size;

	m->n_fds = 0;
	m->has_credentials = false;
	memset(&m->header, 0, sizeof(m->header));
	do
		size = recvmsg(socket, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	while (size < 0 && errno == EINTR);
	if (size < 0)
		return errno == EWOULDBLOCK ? -EAGAIN : -errno;

	read_control(m, &header);
	if (size == 0) {
		/* An empty packet looks like the end of the connection; what came with it tells. */
		if (m->n_fds || m->has_credentials)
			return refuse(m, -EBADMSG, "empty message", ret_reason);
		return 0;
	}
	header_to_host(&m->header);
	if ((size_t)size < sizeof(m->header) || m->header.magic != PROTOCOL_MAGIC) {
		memset(&m->header, 0, sizeof(m->header));
		return refuse(m, -EBADMSG,
			(size_t)size < sizeof(m->header)
				? "message is shorter than its header"
				: "message does not start with the protocol's magic number",
			ret_reason);
	}
	if (header.msg_flags & MSG_TRUNC)
		return refuse(m, -EBADMSG, "message is too long", ret_reason);
	if (header.msg_flags & MSG_CTRUNC)
		return refuse(m, -EMFILE,
			"descriptors were lost: the receiving process has no room for them (RLIMIT_NOFILE)",
			ret_reason);
	reason = check(m, (size_t)size);
	if (reason)
		return refuse(m, -EBADMSG, reason, ret_reason);
	return 1;
}

void message_done(struct message *m)
{
	for (size_t i = 0; i < m->n_fds; i++)
		close_fd(&m->fds[i]);
	m->n_fds = 0;
}

/*
 * The kernel adds them by itself only if the receiver has set SO_PASSCRED, which the daemon can't
 * do before it has accepted the connection; a HELLO may be faster (unix_maybe_add_creds,
 * Linux 6.1).
 */
static void add_credentials(struct msghdr *header)
{
	const struct ucred credentials = {.pid = getpid(), .uid = geteuid(), .gid = getegid()};
	struct cmsghdr *c =
		(struct cmsghdr *)((uint8_t *)header->msg_control + header->msg_controllen);

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_CREDENTIALS;
	c->cmsg_len = CMSG_LEN(sizeof(credentials));
	memcpy(CMSG_DATA(c), &credentials, sizeof(credentials));
	header->msg_controllen += CMSG_SPACE(sizeof(credentials));
}

int message_send(int socket, uint16_t type, uint32_t sequence, const void *body, size_t length,
	const int *fds, size_t n_fds)
{
	union {
		struct cmsghdr align;
		uint8_t octets[CMSG_SPACE(PROTOCOL_DESCRIPTORS_MAX * sizeof(int)) +
			       CMSG_SPACE(sizeof(struct ucred))];
	} control;
	struct protocol_header wire = {
		.magic = htole32(PROTOCOL_MAGIC),
		.version = htole16(PROTOCOL_VERSION),
		.type = htole16(type),
		.sequence = htole32(sequence),
		.length = htole32((uint32_t)length),
		.n_descriptors = htole16((uint16_t)n_fds),
	};
	struct iovec parts[] = {
		{.iov_base = &wire, .iov_len = sizeof(wire)},
		{.iov_base = (void *)body, .iov_len = length},
	};
	struct msghdr header = {.msg_iov = parts, .msg_iovlen = ARRAY_SIZE(parts)};
	ssize_t sent;

	if (length > BODY_MAX || n_fds > PROTOCOL_DESCRIPTORS_MAX)
		return -EMSGSIZE;
	if (n_fds) {
		struct cmsghdr *c;

		memset(&control, 0, sizeof(control));
		header.msg_control = &control;
		header.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
		c = CMSG_FIRSTHDR(&header);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
		memcpy(CMSG_DATA(c), fds, n_fds * sizeof(int));
		if (type == PROTOCOL_HELLO)
			add_credentials(&header);
	}
	do
		sent = sendmsg(socket, &header, MSG_DONTWAIT | MSG_NOSIGNAL);
	while (sent < 0 && errno == EINTR);
	if (sent < 0)
		return errno == EWOULDBLOCK ? -EAGAIN : -errno;
	return 0;
}

int message_send_error(int socket, uint32_t sequence, int error, const char *format, ...)
{
	struct protocol_error body = {.error = htole32((uint32_t)error)};
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(body.text, sizeof(body.text), format, arguments);
	va_end(arguments);
	return message_send(socket, PROTOCOL_ERROR, sequence, &body, sizeof(body), NULL, 0);
}
