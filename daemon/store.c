/* SPDX-License-Identifier: BSD-2-Clause */
#include "daemon/store.h"

#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <systemd/sd-daemon.h>

#include "common/util.h"
#include "daemon/keeper.h"
#include "daemon/linger.h"
#include "daemon/log.h"
#include "daemon/store-entry.h"

#define ENVIRONMENT "REUSEPORTD_DESCRIPTORS"

/* All names come back in one string of the environment, of which execve(2) allows 128 KiB. */
#define NAME_OCTETS_MAX 120000

#define NAME_ROOM 32
#define KEEPER_NAME "keeper" /* its connection, in the table of store_exec() */
#define BARRIER_USEC (2 * USEC_PER_SEC)

static void entry_name(const struct entry *entry, char ret[NAME_ROOM])
{
	if (!entry->number) {
		snprintf(ret, NAME_ROOM, "%s", entry->foreign);
		return;
	}
	snprintf(ret, NAME_ROOM, "%c%u", entry->kind, entry->number);
}

static size_t name_length(const struct entry *entry)
{
	char name[NAME_ROOM];

	entry_name(entry, name);
	return strlen(name) + 1;
}

static struct entry *find(struct store *store, uint32_t number)
{
	size_t low = 0, high = store->n;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (store->entries[middle].number < number)
			low = middle + 1;
		else
			high = middle;
	}
	if (!number || low == store->n || store->entries[low].number != number)
		return NULL;
	return &store->entries[low];
}

static int append(struct store *store, struct entry entry)
{
	if (store->n == store->room) {
		size_t room = store->room ? 2 * store->room : 64;
		struct entry *more = reallocarray(store->entries, room, sizeof(*more));

		if (!more)
			return -ENOMEM;
		store->entries = more;
		store->room = room;
	}
	store->entries[store->n++] = entry;
	if (!entry.here_only)
		store->name_octets += name_length(&entry);
	if (entry.number >= store->next)
		store->next = entry.number + 1;
	return 0;
}

int store_inherit(struct store *store, struct entry entry)
{
	entry.inherited = true;
	fcntl(entry.fd, F_SETFD, FD_CLOEXEC);
	return append(store, entry);
}

/* Ours are a letter and a number; every other name is a socket unit's. */
static int inherit(struct store *store, int fd, const char *name, bool here_only)
{
	struct entry entry = {.fd = fd, .here_only = here_only};
	unsigned number;
	char kind, end;

	if (here_only && strcmp(name, KEEPER_NAME) == 0) {
		fcntl(fd, F_SETFD, FD_CLOEXEC);
		return keeper_inherit(&store->keeper, fd);
	}
	if (sscanf(name, "%c%u%c", &kind, &number, &end) == 2 && number > 0 &&
		number < UINT32_MAX && strchr("mstdpclr", kind)) {
		entry.kind = kind;
		entry.number = number;
	} else {
		/* systemd makes them blocking unless NonBlocking= is set (systemd.service(5)). */
		fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
		snprintf(entry.foreign, sizeof(entry.foreign), "%s", name);
	}
	return store_inherit(store, entry);
}

static int inherit_from_systemd(struct store *store)
{
	char **names = NULL;
	int n = sd_listen_fds_with_names(1, &names), result = 0;

	for (int i = 0; i < n; i++) {
		if (result >= 0)
			result = inherit(store, SD_LISTEN_FDS_START + i, names[i], false);
		free(names[i]);
	}
	free(names);
	return n < 0 ? n : result;
}

/* Lines of "descriptor name here_only". */
static int inherit_from_exec(struct store *store)
{
	const char *value = getenv(ENVIRONMENT);
	FILE *table;
	char name[NAME_ROOM];
	int fd, here_only, result = 0;

	if (!value)
		return 0;
	fd = atoi(value);
	unsetenv(ENVIRONMENT);
	if (fd <= STDERR_FILENO || lseek(fd, 0, SEEK_SET) < 0)
		return -EBADF;
	table = fdopen(fd, "re");
	if (!table)
		return -errno;
	while (result >= 0 && fscanf(table, "%d %31s %d\n", &fd, name, &here_only) == 3)
		result = fd > STDERR_FILENO ? inherit(store, fd, name, here_only) : -EBADF;
	fclose(table);
	return result;
}

static int compare(const void *a, const void *b)
{
	uint32_t left = ((const struct entry *)a)->number;
	uint32_t right = ((const struct entry *)b)->number;

	return left < right ? -1 : left > right;
}

void store_sort(struct store *store)
{
	if (store->n)
		qsort(store->entries, store->n, sizeof(*store->entries), compare);
}

int store_new(struct store **ret)
{
	struct store *store = calloc(1, sizeof(*store));
	const char *notify = getenv("NOTIFY_SOCKET"), *room = getenv("FDSTORE");
	int result;

	if (!store)
		return -ENOMEM;
	store->next = 1;
	/* Set by systemd 254 and newer; for older ones the unit sets it. Whoever else may be at the
	 * other end keeps nothing, and may not even read. */
	store->systemd = notify && *notify && room && atoi(room) > 0;
	result = inherit_from_systemd(store);
	if (result >= 0)
		result = inherit_from_exec(store);
	if (result < 0) {
		store_free(store);
		return result;
	}
	store_sort(store);
	*ret = store;
	return 0;
}

struct store *store_free(struct store *store)
{
	if (!store)
		return NULL;
	for (size_t i = 0; i < store->n; i++)
		if (store->entries[i].inherited || store->entries[i].dropped)
			close_fd(&store->entries[i].fd);
	sd_event_source_disable_unref(store->guard.source);
	sd_event_unref(store->guard.event);
	keeper_free(store->keeper);
	free(store->entries);
	free(store);
	return NULL;
}

/* pidfds and connections are polled: when their process or peer has gone, systemd forgets them. */
static void tell_systemd(const struct entry *entry)
{
	bool polled = entry->kind == STORE_PIDFD || entry->kind == STORE_CLIENT;
	char name[NAME_ROOM], message[96];

	entry_name(entry, name);
	snprintf(message, sizeof(message), "FDSTORE=1\nFDNAME=%s%s", name,
		polled ? "" : "\nFDPOLL=0");
	sd_pid_notify_with_fds(0, 0, message, &entry->fd, 1);
}

static void hand_over(struct store *store, const struct entry *entry)
{
	if (store->systemd)
		tell_systemd(entry);
	else if (store->keeper)
		store_keeper_put(store, entry);
}

void store_tell_again(struct store *store)
{
	for (size_t i = 0; i < store->n; i++)
		if (store->entries[i].number && !store->entries[i].here_only)
			hand_over(store, &store->entries[i]);
}

uint32_t store_put(struct store *store, enum store_kind kind, int fd, bool here_only)
{
	struct entry entry = {
		.kind = (char)kind,
		.number = store->next,
		.here_only = here_only,
		.fd = fd,
	};

	if (store->frozen)
		return 0;
	if ((!here_only && store->systemd && store->name_octets + 16 > NAME_OCTETS_MAX) ||
		store->next == UINT32_MAX || append(store, entry) < 0) {
		if (!store->said_full)
			log_warning("no further descriptor can be kept for the next start of the "
				    "daemon (%zu are): connections of workers that come now end "
				    "with this process",
				store->n);
		store->said_full = true;
		return 0;
	}
	if (!here_only)
		hand_over(store, &entry);
	store->touched = true;
	return entry.number;
}

uint32_t store_keep(
	struct store *store, uint32_t number, enum store_kind kind, int fd, bool here_only)
{
	const struct entry *entry = find(store, number);

	if (!entry || (entry->here_only && !here_only)) {
		store_drop(store, number, -1);
		return store_put(store, kind, fd, here_only);
	}
	return number;
}

void store_move(struct store *store, uint32_t number, int fd)
{
	struct entry *entry = find(store, number);

	if (entry)
		entry->fd = fd;
}

void store_drop(struct store *store, uint32_t number, int fd)
{
	struct entry *entry = store->frozen ? NULL : find(store, number);

	if (!entry) {
		close_fd(&fd);
		return;
	}
	entry->fd = fd;
	entry->dropped = true;
	store->touched = true;
}

static void remove_entry(struct store *store, struct entry *entry)
{
	char name[NAME_ROOM];

	entry_name(entry, name);
	if (!entry->here_only)
		store->name_octets -= name_length(entry);
	if (store->systemd && !entry->here_only && entry->number)
		sd_notifyf(0, "FDSTOREREMOVE=1\nFDNAME=%s", name);
	else if (store->keeper && !entry->here_only && entry->number)
		store_keeper_remove(store, entry);
	close_fd(&entry->fd);
}

void store_settle(struct store *store)
{
	size_t n = 0;

	if (store->frozen)
		return;
	for (size_t i = 0; i < store->n; i++) {
		if (store->entries[i].dropped)
			remove_entry(store, &store->entries[i]);
		else
			store->entries[n++] = store->entries[i];
	}
	store->n = n;
}

void store_sync(struct store *store)
{
	if (store->keeper && keeper_sync(store->keeper) < 0)
		store_keeper_lost(store);
}

void store_set_writer(struct store *store, store_writer writer, void *user_data)
{
	store->writer = writer;
	store->writer_data = user_data;
}

void store_touch(struct store *store)
{
	store->touched = true;
}

void store_commit(struct store *store)
{
	if (!store->touched || store->frozen || !store->writer)
		return;
	/* What can't be written is tried again with the next change. */
	if (store->writer(store->writer_data) < 0)
		return;
	store->touched = false;
	store_settle(store);
}

static int take(struct entry *entry)
{
	entry->inherited = false;
	return entry->fd;
}

int store_take(struct store *store, enum store_kind kind, uint32_t number)
{
	struct entry *entry = find(store, number);

	if (!entry || !entry->inherited || entry->kind != (char)kind)
		return -ENOENT;
	return take(entry);
}

int store_take_only(struct store *store, enum store_kind kind, uint32_t *ret_number)
{
	for (size_t i = 0; i < store->n; i++)
		if (store->entries[i].inherited && store->entries[i].kind == (char)kind) {
			*ret_number = store->entries[i].number;
			return take(&store->entries[i]);
		}
	return -ENOENT;
}

/* Still to be found at its path: a directory that was removed and made again has another one. */
static bool is_door(int fd, const char *file)
{
	struct sockaddr_un address;
	socklen_t length = sizeof(address), size = sizeof(int);
	const char *last;
	int listens = 0;

	memset(&address, 0, sizeof(address));
	if (getsockname(fd, (struct sockaddr *)&address, &length) < 0 ||
		address.sun_family != AF_UNIX ||
		!memchr(address.sun_path, 0, sizeof(address.sun_path)))
		return false;
	if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) < 0 || !listens)
		return false;
	last = strrchr(address.sun_path, '/');
	return last && strcmp(last + 1, file) == 0 && access(address.sun_path, F_OK) == 0;
}

int store_take_door(struct store *store, const char *name, const char *file)
{
	for (size_t i = 0; i < store->n; i++) {
		struct entry *entry = &store->entries[i];

		if (!entry->inherited || (entry->number && entry->kind != STORE_DOOR))
			continue;
		if (entry->number ? is_door(entry->fd, file) : strcmp(entry->foreign, name) == 0)
			return take(entry);
	}
	return -ENOENT;
}

/*
 * A standby that stood for a moment, before the state named it, has what came in that moment. Not
 * a UDP socket: that may be a worker's by now, and be shut for it as well.
 */
static void hand_over_queue(int fd)
{
	socklen_t length = sizeof(int);
	int listens = 0, protocol = 0;

	if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &length) == 0 && listens &&
		getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &length) == 0 &&
		protocol == IPPROTO_TCP)
		shutdown(fd, SHUT_RD);
}

void store_forget_rest(struct store *store, bool doors_too)
{
	bool any = false;

	for (size_t i = 0; i < store->n; i++) {
		struct entry *entry = &store->entries[i];

		if (!entry->inherited ||
			(!doors_too && (!entry->number || entry->kind == STORE_DOOR)))
			continue;
		entry->inherited = false;
		entry->dropped = true;
		hand_over_queue(entry->fd);
		any |= entry->number && !entry->here_only;
	}
	store_settle(store);
	if (!any || store->frozen)
		return;
	if (store->systemd)
		sd_notify_barrier(0, BARRIER_USEC);
	else
		store_sync(store);
}

bool store_outlives(const struct store *store)
{
	return store->systemd || store->keeper;
}

bool store_has_keeper(const struct store *store)
{
	return store->keeper;
}

void store_freeze(struct store *store)
{
	if (store->keeper && !store->frozen)
		store_keeper_leave(store);
	store->frozen = true;
}

bool store_is_frozen(const struct store *store)
{
	return store->frozen;
}

/* The table for inherit_from_exec(). */
static int write_table(const struct store *store)
{
	_cleanup_close_ int fd = memfd_create("reuseportd-descriptors", 0);
	FILE *table;
	int copy;

	if (fd < 0)
		return -errno;
	copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	table = copy < 0 ? NULL : fdopen(copy, "we");
	if (!table) {
		close_fd(&copy);
		return -errno;
	}
	for (size_t i = 0; i < store->n; i++) {
		const struct entry *entry = &store->entries[i];
		char name[NAME_ROOM];

		if (entry->dropped)
			continue;
		entry_name(entry, name);
		fprintf(table, "%d %s %d\n", entry->fd, name, entry->here_only);
	}
	if (store->keeper)
		fprintf(table, "%d " KEEPER_NAME " 1\n", keeper_fd(store->keeper));
	if (fclose(table) != 0)
		return -errno;
	return take_fd(&fd);
}

static void set_cloexec(const struct store *store, bool cloexec)
{
	for (size_t i = 0; i < store->n; i++)
		if (!store->entries[i].dropped)
			fcntl(store->entries[i].fd, F_SETFD, cloexec ? FD_CLOEXEC : 0);
	if (store->keeper)
		fcntl(keeper_fd(store->keeper), F_SETFD, cloexec ? FD_CLOEXEC : 0);
}

int store_exec(struct store *store, const char *program, char **argv)
{
	_cleanup_close_ int table = write_table(store);
	char text[16];
	int error;

	if (table < 0)
		return table;
	snprintf(text, sizeof(text), "%d", table);
	if (setenv(ENVIRONMENT, text, 1) < 0)
		return -errno;
	set_cloexec(store, false);
	linger_stop();
	execv(program, argv);
	error = errno;
	set_cloexec(store, true);
	unsetenv(ENVIRONMENT);
	return -error;
}
