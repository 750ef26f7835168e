/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Sockets that a server made itself, and was about to bind: checked, made the daemon's own, bound
 * into the listener's group, and put at a slot once the server listens (TCP) or waits for datagrams
 * (UDP). Until then a UDP socket is a member of the group that the program never selects.
 *
 * Nothing is kept between the two steps. That it was bound here is to be seen at
 * the socket itself: it has the listener's address and the daemon's uid, which only this daemon
 * gives.
 *
 * The server still holds the socket, and other threads of it may do what they like meanwhile. What
 * matters is the moment between fchown() and bind(), in which a socket with the daemon's uid could
 * be bound into the group of another service. Then our own bind() fails, since a socket is bound
 * once, and the socket is silenced: it can take part in a group, and even get in front of it, but
 * gets nothing (the sink, in group.h, says how).
 */
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "common/util.h"
#include "daemon/group.h"
#include "daemon/log.h"
#include "daemon/manager.h"
#include "daemon/privileges.h"
#include "daemon/socket.h"
#include "daemon/store.h"

#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262 /* Linux 5.6 */
#endif

struct adoption {
	struct registration *registration;
	struct listener *listener;
	int fd;
	char *text;             /* why not, PROTOCOL_TEXT_MAX octets */
	struct worker **worker; /* to whom it comes */
};

static int refuse(const struct adoption *adoption, int error, const char *format, ...)
	_printf_(3, 4);

static int refuse(const struct adoption *adoption, int error, const char *format, ...)
{
	const struct listener_config *config = adoption->listener->config;
	va_list arguments;
	int n;

	n = snprintf(adoption->text, PROTOCOL_TEXT_MAX, "listener %s (%s://%s): ", config->name,
		transport_name(config->transport), config->address_text);
	va_start(arguments, format);
	vsnprintf(adoption->text + n, PROTOCOL_TEXT_MAX - (size_t)n, format, arguments);
	va_end(arguments);
	return error;
}

/* Family, type, protocol, network namespace and device: what no option of ours can make right. */
static int check_kind(const struct adoption *adoption)
{
	const struct listener_config *config = adoption->listener->config;
	const char *device = config->bind_to_device ? config->bind_to_device : "";
	int fd = adoption->fd, protocol = socket_option(fd, SO_PROTOCOL);
	char bound_device[32] = "";
	socklen_t length = sizeof(bound_device) - 1;

	if (protocol < 0)
		return refuse(adoption, -EOPNOTSUPP, "the descriptor is not a socket");
	if (config->cid_mode == CID_QUIC_LB || config->cid_mode == CID_QUIC_LB_PLAIN)
		return refuse(adoption, -EOPNOTSUPP,
			"ConnectionID=%s is for servers that use libreuseport; set it to nginx for "
			"nginx, else to opaque",
			cid_mode_name(config->cid_mode));
	if (socket_network(fd) != socket_network(adoption->listener->group->whole->sink))
		return refuse(adoption, -EXDEV,
			"the socket is of another network namespace than the daemon");
	if (protocol == IPPROTO_MPTCP)
		return refuse(adoption, -EOPNOTSUPP,
			"the socket is MPTCP, which has no reuseport groups: turn it off in the server "
			"(Go: GODEBUG=multipathtcp=0)");
	if (socket_option(fd, SO_DOMAIN) != config->address.ss_family)
		return refuse(adoption, -EOPNOTSUPP, "the socket is not IPv%d",
			config->address.ss_family == AF_INET ? 4 : 6);
	if (socket_option(fd, SO_TYPE) !=
		(config->transport == TRANSPORT_TCP ? SOCK_STREAM : SOCK_DGRAM))
		return refuse(adoption, -EOPNOTSUPP, "the socket has another type (%d)",
			socket_option(fd, SO_TYPE));
	if (protocol != (config->transport == TRANSPORT_TCP ? IPPROTO_TCP : IPPROTO_UDP))
		return refuse(
			adoption, -EOPNOTSUPP, "the socket has another protocol (%d)", protocol);
	if (getsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, bound_device, &length) >= 0 &&
		*bound_device && strcmp(bound_device, device) != 0)
		return refuse(adoption, -EOPNOTSUPP,
			"the socket is bound to device %s, the listener to %s", bound_device,
			*device ? device : "none");
	return 0;
}

static uint16_t local_port(int fd)
{
	struct sockaddr_storage address = {0};
	socklen_t length = sizeof(address);

	if (getsockname(fd, (struct sockaddr *)&address, &length) < 0)
		return 0;
	/* The port stands at the same place in both. */
	return ((const struct sockaddr_in *)&address)->sin_port;
}

static int check_unbound(const struct adoption *adoption)
{
	struct sockaddr_storage peer;
	socklen_t length = sizeof(peer);
	struct tcp_info info = {0};

	if (local_port(adoption->fd))
		return refuse(adoption, -EINVAL, "the socket is bound already");
	if (getpeername(adoption->fd, (struct sockaddr *)&peer, &length) == 0)
		return refuse(adoption, -EINVAL, "the socket is connected");
	length = sizeof(info);
	if (adoption->listener->config->transport == TRANSPORT_TCP &&
		(getsockopt(adoption->fd, IPPROTO_TCP, TCP_INFO, &info, &length) < 0 ||
			info.tcpi_state != TCP_CLOSE))
		return refuse(adoption, -EINVAL, "the socket is connected or listening");
	return 0;
}

static int explain_bind(const struct adoption *adoption, int error, const char *step)
{
	if (error == -EPERM)
		return refuse(adoption, error, "%s: %s (needs CAP_NET_ADMIN or CAP_NET_RAW)", step,
			strerror(-error));
	if (error == -EACCES)
		return refuse(adoption, error,
			"%s: %s (a port below 1024 needs CAP_NET_BIND_SERVICE)", step,
			strerror(-error));
	return refuse(adoption, error, "%s: %s", step, strerror(-error));
}

/*
 * Somebody bound the socket in the moment in which it was ours. It may be a member of any group
 * now. On a device that does not exist, which takes CAP_NET_RAW to change again, the kernel finds
 * it for no packet (SO_BINDTOIFINDEX does not look whether there is one). It stays the daemon's,
 * because a bound socket of another owner would keep the group from growing.
 */
static int condemn(const struct adoption *adoption)
{
	const struct registration *registration = adoption->registration;
	const int no_device = INT32_MAX;

	if (setsockopt(adoption->fd, SOL_SOCKET, SO_BINDTOIFINDEX, &no_device, sizeof(no_device)) <
			0 ||
		group_silence_socket(adoption->fd) < 0)
		log_error("cannot silence a socket of user %u: %s", registration->uid,
			strerror(errno));
	manager_account(registration->service->manager, registration->uid)->may_not_adopt = true;
	store_touch(registration->service->manager->store);
	log_error(
		"%s: instance %s (user %u, pid %d) bound a socket elsewhere while it was adopted; "
		"the socket gets nothing now, and no socket of this user is adopted any more",
		registration->service->config->name, registration->instance, registration->uid,
		(int)registration->pid);
	return refuse(adoption, -EINVAL, "the socket was bound by its holder meanwhile");
}

static int change_owner(int fd, uid_t uid)
{
	int result;

	privileges_set_chown(true);
	result = fchown(fd, uid, (gid_t)-1) < 0 ? -errno : 0;
	privileges_set_chown(false);
	return result;
}

static int own_and_bind(const struct adoption *adoption)
{
	const struct listener_config *config = adoption->listener->config;
	const char *step = "";
	struct stat before;
	int result, undone;

	if (fstat(adoption->fd, &before) < 0)
		return refuse(adoption, -errno, "fstat: %s", strerror(errno));
	result = before.st_uid != geteuid() ? change_owner(adoption->fd, geteuid()) : 0;
	if (result < 0)
		return refuse(adoption, result,
			"cannot become the owner of the socket: %s (needs CAP_CHOWN: install the "
			"drop-in chown.conf, or start reuseportd with --adopt)",
			strerror(-result));
	result = socket_adopt(adoption->fd, config, &step);
	if (result >= 0)
		return 0;
	if (local_port(adoption->fd))
		return condemn(adoption);
	undone = before.st_uid != geteuid() ? change_owner(adoption->fd, before.st_uid) : 0;
	if (undone < 0)
		log_warning("cannot give a socket back to user %u: %s", before.st_uid,
			strerror(-undone));
	return explain_bind(adoption, result, step);
}

static struct worker *take_worker(const struct adoption *adoption, int *ret_error)
{
	const char *reason = "";
	struct worker *worker = registration_take_worker(
		adoption->registration, adoption->listener, ret_error, &reason);

	if (!worker)
		refuse(adoption, *ret_error, "%s", reason);
	return worker;
}

static int put_at_slot(const struct adoption *adoption, struct worker *worker)
{
	struct listener *listener = adoption->listener;
	const char *step = "";
	int result;

	result = group_adopt_socket(
		listener->group, listener->config, worker->slot, adoption->fd, &step);
	if (result < 0) {
		registration_drop_worker(worker, listener);
		return refuse(adoption, result, "%s: %s", step, strerror(-result));
	}
	group_reset_slot(listener->group, worker->slot);
	registration_joined(worker, listener);
	return 0;
}

static int adopt_bind(const struct adoption *adoption)
{
	const char *step = "";
	int result = check_unbound(adoption);

	if (result < 0)
		return result;
	/* What can be refused is refused before the socket has the address. The kernel asks the
	 * cgroup of the process that made a socket what may be done to it, not ours. */
	if (adoption->listener->share)
		return refuse(adoption, -EOPNOTSUPP,
			"services share this listener, and a socket that a server made can't be "
			"guarded: take the daemon's (reuseport-run without --adopt)");
	if (adoption->registration->drained)
		return refuse(adoption, -ESHUTDOWN, "the instance drains, its server is to end");
	if (adoption->listener->config->transport != TRANSPORT_TCP) {
		struct worker *worker = take_worker(adoption, &result);

		if (!worker)
			return result;
		registration_drop_worker(worker, adoption->listener);
	}
	result = own_and_bind(adoption);
	if (result < 0 || adoption->listener->config->transport == TRANSPORT_TCP)
		return result;
	result = group_guard_socket(
		adoption->listener->group, adoption->listener->config, adoption->fd, &step);
	return result < 0 ? refuse(adoption, result, "%s: %s", step, strerror(-result)) : 0;
}

/* Whether the socket stands at the slot of one of the registration's workers. */
static bool stands_at_slot(const struct adoption *adoption)
{
	uint64_t cookie = 0, standing;
	socklen_t length = sizeof(cookie);

	if (getsockopt(adoption->fd, SOL_SOCKET, SO_COOKIE, &cookie, &length) < 0)
		return false;
	for (uint32_t i = 0; i < adoption->registration->n_workers; i++)
		if (group_has_socket(adoption->listener->group,
			    adoption->registration->workers[i].slot, &standing) &&
			standing == cookie)
			return true;
	return false;
}

/* TCP: it is to listen. UDP: its server waits for datagrams. */
static int adopt_listen(const struct adoption *adoption, uint32_t backlog)
{
	struct worker *worker;
	struct stat status;
	int result;

	if (fstat(adoption->fd, &status) < 0 || status.st_uid != geteuid() ||
		socket_option(adoption->fd, SO_REUSEPORT) != 1 ||
		!socket_has_address(adoption->fd, adoption->listener->config))
		return refuse(adoption, -ENOENT, "the socket was not adopted when it was bound");
	if (adoption->listener->config->transport == TRANSPORT_TCP &&
		listen(adoption->fd, (int)backlog) < 0) {
		int error = errno;

		return refuse(adoption, -error, "listen: %s", strerror(error));
	}
	if (stands_at_slot(adoption))
		return 0;
	worker = take_worker(adoption, &result);
	if (worker)
		result = put_at_slot(adoption, worker);
	if (result >= 0)
		*adoption->worker = worker;
	return result;
}

int adopt_socket(struct registration *registration, struct listener *listener, int fd,
	enum protocol_adopt_step step, uint32_t backlog, struct worker **ret_worker, char *text)
{
	const struct adoption adoption = {
		.registration = registration,
		.listener = listener,
		.fd = fd,
		.text = text,
		.worker = ret_worker,
	};
	int result;

	*ret_worker = NULL;
	*text = '\0';
	if (manager_account(registration->service->manager, registration->uid)->may_not_adopt)
		return refuse(&adoption, -EPERM,
			"user %u bound a socket elsewhere while it was adopted; restart reuseportd to "
			"allow it again",
			registration->uid);
	result = check_kind(&adoption);
	if (result < 0)
		return result;
	return step == PROTOCOL_ADOPT_BIND ? adopt_bind(&adoption)
					   : adopt_listen(&adoption, backlog);
}
