/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Servers that can only bind() for themselves: a seccomp filter, installed in the server's process
 * before it is executed, makes the kernel ask the launcher about each bind() and listen(). For an
 * address of the service the very socket (pidfd_getfd(2)) goes to the daemon, which binds it; the
 * system call then returns 0 without having been carried out. Everything else goes on as if nobody
 * had asked.
 *
 * The filter is no sandbox. Between our look at an address and the kernel's own another thread of
 * the server may change it (seccomp_unotify(2)); what the server wins by that is a bind() that
 * fails, as the kernel keeps others out of the daemon's groups. What is acted on is only what was
 * fetched: the address is read once, the socket that is bound is the one that was checked, and the
 * process is named by a pidfd that was opened while its system call was waiting.
 *
 * Nothing is remembered of a socket, and no copy is kept: with one here, the kernel would not see
 * that the server has closed its own.
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <seccomp.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include "common/pass-fd.h"
#include "tools/run.h"

#ifndef SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
#define SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV (1UL << 5) /* Linux 5.19 */
#endif
#ifndef PIDFD_THREAD
#define PIDFD_THREAD O_EXCL /* Linux 6.9 */
#endif
#define FILTER_MAX 64 /* instructions; two system calls take about ten */
#define PASS 1        /* let the kernel do it */

/* In the server's process */

/* libseccomp knows the architecture and writes the program; what it can't do (2.5) is ask for
 * waits that only a fatal signal ends, so the loading is done here. */
static int write_filter(struct sock_filter *code, struct sock_fprog *ret)
{
	_cleanup_close_ int file = memfd_create("filter", MFD_CLOEXEC);
	scmp_filter_ctx context = seccomp_init(SCMP_ACT_ALLOW);
	ssize_t size = 0;
	int result = context && file >= 0 ? 0 : -ENOMEM;

	/* Of another architecture (a 32-bit server): not seen, and so not adopted; no reason to
	 * kill it. */
	if (result >= 0)
		result = seccomp_attr_set(context, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_ALLOW);
	if (result >= 0)
		result = seccomp_rule_add(context, SCMP_ACT_NOTIFY, SCMP_SYS(bind), 0);
	if (result >= 0)
		result = seccomp_rule_add(context, SCMP_ACT_NOTIFY, SCMP_SYS(listen), 0);
	if (result >= 0)
		result = seccomp_export_bpf(context, file);
	if (result >= 0)
		size = pread(file, code, FILTER_MAX * sizeof(*code), 0);
	if (result >= 0 && (size <= 0 || (size_t)size % sizeof(*code)))
		result = -EIO;
	seccomp_release(context);
	*ret = (struct sock_fprog){
		.len = (unsigned short)((size_t)size / sizeof(*code)),
		.filter = code,
	};
	return result;
}

/* SPEC_ALLOW: before Linux 5.16 a filter slows the whole process down (Speculative Store Bypass,
 * indirect branches), which is for sandboxes. */
static int load_filter(const struct sock_fprog *program)
{
	const unsigned long flags[] = {
		SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_SPEC_ALLOW |
			SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
		SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_SPEC_ALLOW,
	};
	int fd = -1;

	for (size_t i = 0; i < ARRAY_SIZE(flags); i++) {
		fd = (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags[i], program);
		if (fd >= 0 || errno != EINVAL)
			break;
	}
	return fd < 0 ? -errno : fd;
}

int adopt_install(int start_fd)
{
	struct sock_filter code[FILTER_MAX];
	struct sock_fprog program;
	_cleanup_close_ int fd = -1;
	int result = write_filter(code, &program);

	if (result < 0)
		return result;
	fd = load_filter(&program);
	/* Without CAP_SYS_ADMIN the kernel wants a promise: nothing that is executed from here gets
	 * more rights (setuid programs, file capabilities). */
	if (fd == -EACCES) {
		if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
			return -errno;
		fd = load_filter(&program);
	}
	if (fd < 0)
		return fd;
	return pass_fd(start_fd, fd);
}

/* In the launcher */

int adopt_check(void)
{
	struct seccomp_notif_sizes sizes;

	if (syscall(SYS_seccomp, SECCOMP_GET_NOTIF_SIZES, 0, &sizes) < 0) {
		run_complain("--adopt: this kernel does not notify of system calls (seccomp): %s",
			strerror(errno));
		return -errno;
	}
	return 0;
}

/* What an address of the service is to a socket. */
enum match { MATCH_NONE, MATCH_OVERLAPS, MATCH_SAME };

static bool parse_address(const char *text, struct sockaddr_storage *ret)
{
	struct sockaddr_in *ipv4 = (void *)ret;
	struct sockaddr_in6 *ipv6 = (void *)ret;
	const char *colon = strrchr(text, ':');
	char host[128];
	size_t length;

	memset(ret, 0, sizeof(*ret));
	if (!colon)
		return false;
	length = (size_t)(colon - text);
	if (*text == '[') {
		const char *end = text + 1 + strcspn(text + 1, "%]");

		length = (size_t)(end - text - 1);
		if (length >= sizeof(host))
			return false;
		memcpy(host, text + 1, length);
		host[length] = '\0';
		ipv6->sin6_family = AF_INET6;
		ipv6->sin6_port = htons((uint16_t)atoi(colon + 1));
		return inet_pton(AF_INET6, host, &ipv6->sin6_addr) == 1;
	}
	if (length >= sizeof(host))
		return false;
	memcpy(host, text, length);
	host[length] = '\0';
	ipv4->sin_family = AF_INET;
	ipv4->sin_port = htons((uint16_t)atoi(colon + 1));
	return inet_pton(AF_INET, host, &ipv4->sin_addr) == 1;
}

static bool is_wildcard(const struct sockaddr_storage *address)
{
	const struct sockaddr_in6 *ipv6 = (const void *)address;

	return address->ss_family == AF_INET
		       ? ((const struct sockaddr_in *)address)->sin_addr.s_addr == INADDR_ANY
		       : IN6_IS_ADDR_UNSPECIFIED(&ipv6->sin6_addr);
}

static enum match compare(const struct sockaddr_storage *a, const struct sockaddr_storage *b)
{
	/* Family and port stand at the same places in both. */
	if (((const struct sockaddr_in *)a)->sin_port != ((const struct sockaddr_in *)b)->sin_port)
		return MATCH_NONE;
	if (a->ss_family == b->ss_family) {
		const struct sockaddr_in *a4 = (const void *)a, *b4 = (const void *)b;
		const struct sockaddr_in6 *a6 = (const void *)a, *b6 = (const void *)b;

		if (a->ss_family == AF_INET ? a4->sin_addr.s_addr == b4->sin_addr.s_addr
					    : IN6_ARE_ADDR_EQUAL(&a6->sin6_addr, &b6->sin6_addr))
			return MATCH_SAME;
		return is_wildcard(a) || is_wildcard(b) ? MATCH_OVERLAPS : MATCH_NONE;
	}
	/* [::] takes IPv4 as well, unless it is told not to. */
	return is_wildcard(a->ss_family == AF_INET6 ? a : b) ? MATCH_OVERLAPS : MATCH_NONE;
}

/* Index of the listener, or -1. protocol 0: any. The newest first: one that a reload has closed
 * keeps its number. */
static int find_listener(const struct run *run, const struct sockaddr_storage *address,
	int protocol, enum match wanted)
{
	for (unsigned i = reuseport_n_listeners(run->context); i-- > 0;) {
		bool tcp = reuseport_listener_transport(run->context, i) == REUSEPORT_TCP;
		struct sockaddr_storage listener;

		if (protocol && protocol != (tcp ? IPPROTO_TCP : IPPROTO_UDP) &&
			!(tcp && protocol == IPPROTO_MPTCP))
			continue;
		if (parse_address(reuseport_listener_address(run->context, i), &listener) &&
			compare(address, &listener) == wanted)
			return (int)i;
	}
	return -1;
}

static bool id_is_valid(const struct run *run, const struct seccomp_notif *request)
{
	return ioctl(run->adopt_fd, SECCOMP_IOCTL_NOTIF_ID_VALID, &request->id) == 0;
}

static int open_thread(pid_t thread)
{
	int pidfd = (int)syscall(SYS_pidfd_open, thread, PIDFD_THREAD);

	if (pidfd < 0 && errno == EINVAL) {
		/* Before Linux 6.9 only a process has a pidfd: that of which this is a thread. */
		char path[64], line[128];
		int tgid = 0;
		FILE *file;

		snprintf(path, sizeof(path), "/proc/%d/status", thread);
		file = fopen(path, "re");
		while (file && fgets(line, sizeof(line), file))
			if (sscanf(line, "Tgid: %d", &tgid) == 1)
				break;
		if (file)
			fclose(file);
		errno = ESRCH;
		pidfd = tgid > 0 ? (int)syscall(SYS_pidfd_open, tgid, 0) : -1;
	}
	return pidfd < 0 ? -errno : pidfd;
}

int adopt_fetch(pid_t thread, int fd)
{
	_cleanup_close_ int pidfd = open_thread(thread);
	int result;

	if (pidfd < 0)
		return pidfd;
	result = (int)syscall(SYS_pidfd_getfd, pidfd, fd, 0);
	return result < 0 ? -errno : result;
}

/* The socket that the system call names by its first argument, or a negative errno: -ENOENT when
 * the call is over. */
static int fetch_socket(const struct run *run, const struct seccomp_notif *request)
{
	_cleanup_close_ int pidfd = open_thread((pid_t)request->pid);
	int fd;

	if (pidfd < 0)
		return pidfd;
	/* It waited then, so the number was still that process's when the pidfd was opened. */
	if (!id_is_valid(run, request))
		return -ENOENT;
	fd = (int)syscall(SYS_pidfd_getfd, pidfd, (int)request->data.args[0], 0);
	return fd < 0 ? -errno : fd;
}

/* The address, read once. false: the kernel would not like it either. */
static bool read_address(
	const struct run *run, const struct seccomp_notif *request, struct sockaddr_storage *ret)
{
	int length = (int)request->data.args[2]; /* of bind(2): socklen_t, taken as an int */
	struct iovec local = {.iov_base = ret};
	struct iovec remote = {.iov_base = (void *)(uintptr_t)request->data.args[1]};
	ssize_t size;

	if (length < 0 || (size_t)length > sizeof(*ret))
		return false;
	memset(ret, 0, sizeof(*ret));
	local.iov_len = remote.iov_len = (size_t)length;
	size = process_vm_readv((pid_t)request->pid, &local, 1, &remote, 1, 0);
	if (size < 0 && errno == EPERM)
		run_complain("--adopt: may not look into process %u (see ptrace(2) and "
			     "kernel.yama.ptrace_scope); its bind() is not adopted",
			request->pid);
	/* Shorter ones the kernel refuses (inet_bind, inet6_bind: SIN6_LEN_RFC2133). */
	return size == length && id_is_valid(run, request) &&
	       ((ret->ss_family == AF_INET && (size_t)length >= sizeof(struct sockaddr_in)) ||
		       (ret->ss_family == AF_INET6 && length >= 24));
}

static int socket_number(int fd, int option)
{
	int value = -1;
	socklen_t length = sizeof(value);

	return getsockopt(fd, SOL_SOCKET, option, &value, &length) < 0 ? -1 : value;
}

static uint64_t socket_cookie(int fd)
{
	uint64_t cookie = 0;
	socklen_t length = sizeof(cookie);

	getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &length);
	return cookie;
}

static bool local_address(int fd, struct sockaddr_storage *ret)
{
	socklen_t length = sizeof(*ret);

	memset(ret, 0, sizeof(*ret));
	return getsockname(fd, (struct sockaddr *)ret, &length) == 0 &&
	       ((struct sockaddr_in *)ret)->sin_port;
}

/* What the server is told, as the kernel would have: its bind() or listen() may be denied, or the
 * address is taken, by a group that the socket is not in. */
static int errno_for_server(int error)
{
	return error == -EACCES || error == -EADDRNOTAVAIL ? error : -EADDRINUSE;
}

/* Unless the server says itself when it is ready. */
void adopt_became_active(struct run *run)
{
	if (run->ready == READY_EXEC && !run->ready_done)
		run_become_ready(run);
}

static int on_bind(struct run *run, const struct seccomp_notif *request)
{
	struct sockaddr_storage address, bound;
	_cleanup_close_ int fd = -1;
	int listener, result;

	if (!read_address(run, request, &address) ||
		(find_listener(run, &address, 0, MATCH_SAME) < 0 &&
			find_listener(run, &address, 0, MATCH_OVERLAPS) < 0))
		return PASS;
	fd = fetch_socket(run, request);
	if (fd < 0) {
		if (fd != -EBADF && fd != -ENOENT && fd != -ESRCH)
			run_complain("--adopt: cannot take the socket of process %u: %s%s",
				request->pid, strerror(-fd),
				fd == -EPERM
					? " (pidfd_getfd: see ptrace(2), kernel.yama.ptrace_scope, and the system call filter of the unit or container)"
					: "");
		return PASS;
	}
	if (socket_number(fd, SO_DOMAIN) != address.ss_family)
		return PASS;
	listener = find_listener(run, &address, socket_number(fd, SO_PROTOCOL), MATCH_SAME);
	if (listener < 0) {
		listener = find_listener(
			run, &address, socket_number(fd, SO_PROTOCOL), MATCH_OVERLAPS);
		if (listener >= 0)
			run_complain("process %u binds to an address that overlaps with listener "
				     "%s (%s) but is another one: not adopted; write the same "
				     "address in both",
				request->pid, reuseport_listener_name(run->context, listener),
				reuseport_listener_address(run->context, listener));
		return PASS;
	}
	if (local_address(fd, &bound)) {
		/* Asked again, as a signal came before our answer (before Linux 5.19). */
		return run->adopt_unanswered && socket_cookie(fd) == run->adopt_unanswered ? 0
											   : PASS;
	}
	result = reuseport_adopt(
		run->context, (unsigned)listener, fd, REUSEPORT_ADOPT_BIND, RUN_REQUEST_MSEC);
	run->adopt_unanswered = result == 0 ? socket_cookie(fd) : 0;
	if (result == 0 && reuseport_listener_transport(run->context, listener) != REUSEPORT_TCP)
		result = wait_add(run, fd, (unsigned)listener);
	close_fd(&fd);
	if (result == -EXDEV || result == -ENOENT) /* ENOENT: a reload has closed the listener */
		return PASS;
	if (result < 0) {
		run_complain("bind() of process %u fails: %s", request->pid,
			reuseport_error(run->context));
		return errno_for_server(result);
	}
	run->any_adopted = true;
	return 0;
}

static int on_listen(struct run *run, const struct seccomp_notif *request)
{
	struct sockaddr_storage address;
	_cleanup_close_ int fd = -1;
	int backlog = (int)request->data.args[1], listener, result;
	bool listens;

	if (!run->any_adopted)
		return PASS;
	fd = fetch_socket(run, request);
	if (fd < 0 || !local_address(fd, &address))
		return PASS;
	listener = find_listener(run, &address, socket_number(fd, SO_PROTOCOL), MATCH_SAME);
	if (listener < 0 || reuseport_listener_transport(run->context, listener) != REUSEPORT_TCP)
		return PASS;
	listens = socket_number(fd, SO_ACCEPTCONN) == 1;
	/* As unsigned as the kernel takes it: listen(fd, -1) means the most there may be. */
	result = reuseport_adopt(run->context, (unsigned)listener, fd,
		backlog < 0 ? INT32_MAX : backlog, RUN_REQUEST_MSEC);
	close_fd(&fd);
	/* Once more, for another backlog: no daemon is needed for that. */
	if (result == -ENOENT || result == -EXDEV || (result < 0 && listens))
		return PASS;
	if (result < 0) {
		run_complain("listen() of process %u fails: %s", request->pid,
			reuseport_error(run->context));
		return errno_for_server(result);
	}
	adopt_became_active(run);
	return 0;
}

static void answer(struct run *run, const struct seccomp_notif *request, int result)
{
	struct seccomp_notif_resp response = {.id = request->id};

	if (result == PASS)
		response.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
	else
		response.error = result;
	if (ioctl(run->adopt_fd, SECCOMP_IOCTL_NOTIF_SEND, &response) < 0) {
		if (errno != ENOENT) /* it is gone, or was interrupted */
			run_complain("cannot answer process %u: %s", request->pid, strerror(errno));
	} else {
		run->adopt_unanswered = 0;
	}
}

void adopt_read(struct run *run)
{
	/* The kernel's may be larger than that of our headers, and wants to be told no less. */
	union {
		struct seccomp_notif request;
		char octets[1024];
	} buffer = {};
	struct seccomp_notif *request = &buffer.request;
	int result = PASS;

	if (ioctl(run->adopt_fd, SECCOMP_IOCTL_NOTIF_RECV, request) < 0) {
		if (errno != EINTR && errno != ENOENT)
			run_complain("cannot read what the server asks: %s", strerror(errno));
		return;
	}
	if (run->adopt_id)
		*run->adopt_id = request->id;
	/* 0: a process in a PID namespace that is not below ours. */
	if (request->pid && request->data.nr == SCMP_SYS(bind))
		result = on_bind(run, request);
	else if (request->pid && request->data.nr == SCMP_SYS(listen))
		result = on_listen(run, request);
	answer(run, request, result);
}

int adopt_take(struct run *run)
{
	union {
		struct cmsghdr align;
		char octets[CMSG_SPACE(sizeof(int))];
	} control;
	int error = 0;
	struct iovec part = {.iov_base = &error, .iov_len = sizeof(error)};
	struct msghdr header = {
		.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	struct cmsghdr *c;
	ssize_t size = recvmsg(run->start_fd, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

	if (size < 0)
		return -EAGAIN;
	if (size == (ssize_t)sizeof(error))
		return error;
	c = CMSG_FIRSTHDR(&header);
	if (size != 1 || !c || c->cmsg_type != SCM_RIGHTS)
		return -EPROTO;
	memcpy(&run->adopt_fd, CMSG_DATA(c), sizeof(run->adopt_fd));
	return 0;
}
