/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * When does a server that has bound a UDP socket serve it? It may read files for a minute yet, or
 * find that they are wrong and end. There is no call like listen(2) that says so, and a filter on
 * recvmsg() and the like would be asked for ever: seccomp filters can't be taken off. So the
 * launcher looks at the server's processes for a while: one of them sleeps in a system call that
 * waits for this socket (proc_pid_syscall(5)), and then the socket gets its slot. Nobody waits for
 * it meanwhile: datagrams go to the workers that there are, or to the standby.
 *
 * A look costs some microseconds for each thread of the server. The first ones follow at short
 * intervals, as most servers wait at once. A thread that is at work is not seen to wait, but those
 * of a server that has nothing else to do sleep nearly all the time. What is never seen (io_uring,
 * a loop that never sleeps, epoll in epoll) is taken to be ready in the end.
 */
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>

#include "tools/run.h"

#define FIRST_LOOK_USEC (1 * USEC_PER_MSEC)
#define LAST_INTERVAL_USEC (100 * USEC_PER_MSEC)
#define LOOK_SHARE 20 /* of the time, one part at most goes into looking */
#define GIVE_UP_USEC (30 * USEC_PER_SEC)
#define PROCESSES_MAX 4096 /* of one server, at which is looked */
#define POLL_MAX 4096      /* entries of one poll(), at which is looked */

struct awaited {
	struct awaited *next;
	uint64_t inode; /* of the socket; its name, whatever descriptors it has */
	unsigned listener;
	uint64_t since_usec;
};

/* A thread of the server. */
struct thread {
	pid_t process, thread;
};

/* May be called for the same thread and socket more than once. */
typedef void (*found_socket)(struct run *run, const struct thread *thread, uint64_t inode);

/* From /proc */

static FILE *open_file(const struct thread *thread, const char *name)
{
	char path[96];

	snprintf(path, sizeof(path), "/proc/%d/task/%d/%s", thread->process, thread->thread, name);
	return fopen(path, "re");
}

/* The socket that a descriptor of the thread is, 0: none. */
static uint64_t inode_of(const struct thread *thread, int fd)
{
	char path[96], link[64];
	unsigned long long inode = 0;
	ssize_t length;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/fd/%d", thread->process, thread->thread, fd);
	length = readlink(path, link, sizeof(link) - 1);
	if (length < 0)
		return 0;
	link[length] = '\0';
	return sscanf(link, "socket:[%llu]", &inode) == 1 ? inode : 0;
}

static bool read_memory(const struct thread *thread, uint64_t address, void *ret, size_t length)
{
	struct iovec local = {.iov_base = ret, .iov_len = length};
	struct iovec remote = {.iov_base = (void *)(uintptr_t)address, .iov_len = length};

	return process_vm_readv(thread->process, &local, 1, &remote, 1, 0) == (ssize_t)length;
}

/* What a thread waits for */

static void in_poll(struct run *run, const struct thread *thread, uint64_t address, uint64_t n,
	found_socket found)
{
	_cleanup_free_ struct pollfd *fds = NULL;

	n = MIN(n, POLL_MAX);
	fds = calloc(n ? n : 1, sizeof(*fds));
	if (!fds || !n || !read_memory(thread, address, fds, n * sizeof(*fds)))
		return;
	for (uint64_t i = 0; i < n; i++)
		if (fds[i].fd >= 0 && fds[i].events & POLLIN)
			found(run, thread, inode_of(thread, fds[i].fd));
}

static void in_select(struct run *run, const struct thread *thread, uint64_t n, uint64_t address,
	found_socket found)
{
	fd_set fds = {0};

	n = MIN(n, FD_SETSIZE);
	/* As much as the kernel reads: whole words. */
	if (!n || !address ||
		!read_memory(
			thread, address, &fds, (n + __NFDBITS - 1) / __NFDBITS * sizeof(fd_mask)))
		return;
	for (uint64_t i = 0; i < n; i++)
		if (FD_ISSET(i, &fds))
			found(run, thread, inode_of(thread, (int)i));
}

/* Its fdinfo has a line "tfd: ... events: ... data: ... pos:... ino:... sdev:..." for each
 * (Linux 4.13). */
static void in_epoll(struct run *run, const struct thread *thread, int fd, found_socket found)
{
	char name[32], line[256];
	FILE *file;

	snprintf(name, sizeof(name), "fdinfo/%d", fd);
	file = open_file(thread, name);
	while (file && fgets(line, sizeof(line), file)) {
		const char *inode = strstr(line, "ino:"), *events = strstr(line, "events:");

		if (!strncmp(line, "tfd:", 4) && inode && events &&
			strtoul(events + 7, NULL, 16) & EPOLLIN)
			found(run, thread, strtoull(inode + 4, NULL, 16));
	}
	if (file)
		fclose(file);
}

/* "running", or number and arguments of the system call in which it sleeps; -1: in none. */
static void look_at_thread(struct run *run, const struct thread *thread, found_socket found)
{
	FILE *file = open_file(thread, "syscall");
	unsigned long long a[3];
	int number, n;

	if (!file)
		return;
	n = fscanf(file, "%d %llx %llx %llx", &number, &a[0], &a[1], &a[2]);
	fclose(file);
	if (n != 4)
		return;
	switch (number) {
	case SYS_read:
	case SYS_readv:
	case SYS_recvfrom:
	case SYS_recvmsg:
	case SYS_recvmmsg:
		found(run, thread, inode_of(thread, (int)a[0]));
		break;
#ifdef SYS_poll
	case SYS_poll:
#endif
	case SYS_ppoll:
		in_poll(run, thread, a[0], a[1], found);
		break;
#ifdef SYS_select
	case SYS_select:
#endif
	case SYS_pselect6:
		in_select(run, thread, a[0], a[1], found);
		break;
#ifdef SYS_epoll_wait
	case SYS_epoll_wait:
#endif
	case SYS_epoll_pwait:
#ifdef SYS_epoll_pwait2
	case SYS_epoll_pwait2:
#endif
		in_epoll(run, thread, (int)a[0], found);
		break;
	}
}

/* The server's processes */

struct processes {
	pid_t pid[PROCESSES_MAX];
	size_t n;
};

static void add_process(struct processes *processes, pid_t pid)
{
	if (processes->n < PROCESSES_MAX)
		processes->pid[processes->n++] = pid;
}

static void add_children(struct processes *processes, const struct thread *thread)
{
	FILE *file = open_file(thread, "children");
	pid_t child;

	while (file && fscanf(file, "%d", &child) == 1)
		add_process(processes, child);
	if (file)
		fclose(file);
}

typedef void (*each_thread)(struct run *run, const struct thread *thread, void *data);

/* All threads of the server and of its descendants. One whose parent has ended is not seen. */
static void for_each_thread(struct run *run, each_thread function, void *data)
{
	_cleanup_free_ struct processes *processes = calloc(1, sizeof(*processes));

	if (!processes)
		return;
	add_process(processes, run->server_pid);
	for (size_t i = 0; i < processes->n; i++) {
		struct thread thread = {.process = processes->pid[i]};
		const struct dirent *entry;
		char path[64];
		DIR *tasks;

		snprintf(path, sizeof(path), "/proc/%d/task", thread.process);
		tasks = opendir(path);
		while (tasks && (entry = readdir(tasks))) {
			thread.thread = atoi(entry->d_name);
			if (thread.thread <= 0)
				continue;
			add_children(processes, &thread);
			function(run, &thread, data);
		}
		if (tasks)
			closedir(tasks);
	}
}

/* Sockets that are awaited */

static struct awaited **find_awaited(struct run *run, uint64_t inode)
{
	struct awaited **link = &run->awaited;

	while (*link && (*link)->inode != inode)
		link = &(*link)->next;
	return link;
}

/* A duplicate of the thread's socket of this inode; -1: it has none. */
static int take_socket(const struct thread *thread, uint64_t inode)
{
	const struct dirent *entry;
	struct stat status;
	char path[64];
	DIR *fds;
	int fd = -1;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/fd", thread->process, thread->thread);
	fds = opendir(path);
	while (fd < 0 && fds && (entry = readdir(fds))) {
		int number = atoi(entry->d_name);

		if (entry->d_name[0] == '.' || inode_of(thread, number) != inode)
			continue;
		fd = adopt_fetch(thread->thread, number);
		/* Another has the number by now. */
		if (fd >= 0 && (fstat(fd, &status) < 0 || status.st_ino != inode))
			close_fd(&fd);
	}
	if (fds)
		closedir(fds);
	return fd;
}

/* The socket gets its slot, and is awaited no more; without a daemon it goes on to be. */
static void join(struct run *run, struct awaited **link, int fd)
{
	struct awaited *awaited = *link;
	int result = reuseport_adopt(run->context, awaited->listener, fd, 0, RUN_REQUEST_MSEC);

	close_fd(&fd);
	if (result == -ENOTCONN) {
		run->away = true;
		return;
	}
	if (result < 0)
		run_complain("%s", reuseport_error(run->context));
	*link = awaited->next;
	free(awaited);
	if (result == 0)
		adopt_became_active(run);
}

static void on_waits(struct run *run, const struct thread *thread, uint64_t inode)
{
	struct awaited **link;
	int fd;

	if (!inode)
		return;
	link = find_awaited(run, inode);
	if (!*link)
		return;
	fd = take_socket(thread, inode);
	if (fd >= 0)
		join(run, link, fd);
}

static void look(struct run *run, const struct thread *thread, void *data)
{
	if (run->awaited)
		look_at_thread(run, thread, on_waits);
}

/* data: to this moment, those that were bound before it. */
static void join_old(struct run *run, const struct thread *thread, void *data)
{
	const uint64_t *before_usec = data;

	for (struct awaited **link = &run->awaited; *link;) {
		struct awaited *awaited = *link;
		int fd = awaited->since_usec <= *before_usec ? take_socket(thread, awaited->inode)
							     : -1;

		if (fd >= 0)
			join(run, link, fd);
		if (*link == awaited)
			link = &awaited->next;
	}
}

struct search {
	uint64_t inode;
	int fd;
};

static void search_thread(struct run *run, const struct thread *thread, void *data)
{
	struct search *search = data;

	if (search->fd < 0)
		search->fd = take_socket(thread, search->inode);
}

int wait_find_socket(struct run *run, uint64_t inode)
{
	struct search search = {.inode = inode, .fd = -1};

	for_each_thread(run, search_thread, &search);
	return search.fd < 0 ? -ENOENT : search.fd;
}

/* Whoever has them, if anybody: they are awaited no more. */
static void join_bound_before(struct run *run, uint64_t before_usec)
{
	for_each_thread(run, join_old, &before_usec);
	for (struct awaited **link = &run->awaited; *link && !run->away;) {
		struct awaited *awaited = *link;

		if (awaited->since_usec > before_usec) {
			link = &awaited->next;
			continue;
		}
		*link = awaited->next;
		free(awaited);
	}
}

int wait_add(struct run *run, int fd, unsigned listener)
{
	struct awaited *awaited = malloc(sizeof(*awaited));
	struct stat status;

	if (!awaited || fstat(fd, &status) < 0) {
		free(awaited);
		return -ENOMEM;
	}
	*awaited = (struct awaited){
		.next = run->awaited,
		.inode = status.st_ino,
		.listener = listener,
		.since_usec = now_usec(),
	};
	run->awaited = awaited;
	run->look_interval_usec = FIRST_LOOK_USEC;
	run->look_at_usec = awaited->since_usec + FIRST_LOOK_USEC;
	return 0;
}

void wait_look(struct run *run)
{
	uint64_t now = now_usec();

	if (run->away) {
		run->look_at_usec = 0;
		return;
	}
	for_each_thread(run, look, NULL);
	for (const struct awaited *a = run->awaited; a; a = a->next)
		if (now >= a->since_usec + GIVE_UP_USEC) {
			join_bound_before(run, now - GIVE_UP_USEC);
			break;
		}
	run->look_interval_usec = MIN(2 * run->look_interval_usec, LAST_INTERVAL_USEC);
	/* A server of ten thousand threads makes nobody look all the time. */
	run->look_at_usec =
		run->awaited && !run->away
			? now_usec() + MAX(run->look_interval_usec, LOOK_SHARE * (now_usec() - now))
			: 0;
}

void wait_join_all(struct run *run)
{
	if (run->awaited && !run->away)
		join_bound_before(run, UINT64_MAX);
	run->look_at_usec = 0;
}

void wait_again(struct run *run)
{
	run->look_interval_usec = FIRST_LOOK_USEC;
	run->look_at_usec = run->awaited ? now_usec() : 0;
}

void wait_done(struct run *run)
{
	while (run->awaited) {
		struct awaited *awaited = run->awaited;

		run->awaited = awaited->next;
		free(awaited);
	}
}
