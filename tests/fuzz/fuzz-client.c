/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What a client says to the daemon on worker.sock, message after message, with descriptors: the
 * daemon's side with its registrations, over a kernel that is made of arrays. Slots and accounts
 * balance after every message, and nothing is left when the client has gone.
 *
 * Input: messages, each an octet that says how many descriptors go along (pidfds of this process,
 * or sockets), two octets of length, and the octets; those that begin with 0xff get a valid header.
 */
#include <stdarg.h>
#include <sys/syscall.h>

#include "proto/message.c"

#include "daemon/account.c"
#include "daemon/client.c"
#include "daemon/client-register.c"
#include "daemon/client-request.c"
#include "daemon/client-resume.c"
#include "daemon/event.c"
#include "daemon/load.c"
#include "daemon/peer.c"
#include "daemon/registration.c"
#include "daemon/state.c"
#include "daemon/state-text.c"
#include "daemon/store.c"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define LISTENERS 3

/* The kernel's part */

static bool socket_there[LISTENERS][SLOT_COUNT];
static struct group groups[LISTENERS];
static struct group_quic quic;

static size_t group_index(const struct group *group)
{
	return (size_t)(group - groups);
}

int group_add_socket(struct group *group, const struct listener_config *config, uint16_t slot,
	const char **ret_step)
{
	if (socket_there[group_index(group)][slot])
		abort();
	socket_there[group_index(group)][slot] = true;
	return socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
}

void group_set_load(struct group *group, uint16_t slot, uint16_t load)
{
	if (slot >= SLOT_COUNT || load > PROTOCOL_LOAD_MAX)
		abort();
}

void group_use_loads(struct group *group, bool use)
{
}

void group_open_slot(struct group *group, uint16_t slot, bool open)
{
}

void group_remove_socket(struct group *group, uint16_t slot)
{
	socket_there[group_index(group)][slot] = false;
}

bool group_has_socket(const struct group *group, uint16_t slot, uint64_t *ret_cookie)
{
	if (ret_cookie)
		*ret_cookie = slot % 2;
	return socket_there[group_index(group)][slot];
}

void group_reset_slot(const struct group *group, uint16_t slot)
{
}

int group_quic_add_cids(struct group_quic *q, uint16_t slot, const struct protocol_cid *cids,
	size_t n_cids, size_t *ret_failed)
{
	static const int errors[] = {0, -EEXIST, -EDQUOT, -ENOSPC, -EMLINK, -EINVAL, -EIO};

	*ret_failed = n_cids - 1;
	return errors[cids[n_cids - 1].length % ARRAY_SIZE(errors)];
}

size_t group_quic_retire_cids(
	struct group_quic *q, uint16_t slot, const struct protocol_cid *cids, size_t n_cids)
{
	return cids[0].length % (n_cids + 1);
}

/* Refused by what the backlog says, else as the real one does with its slots. */
int adopt_socket(struct registration *registration, struct listener *listener, int fd,
	enum protocol_adopt_step step, uint32_t backlog, struct worker **ret_worker, char *text)
{
	const char *reason = "refused";
	struct worker *worker;
	int error = -EINVAL;

	*ret_worker = NULL;
	worker = backlog % 4 ? registration_take_worker(registration, listener, &error, &reason)
			     : NULL;
	snprintf(text, PROTOCOL_TEXT_MAX, "%s", reason);
	if (!worker)
		return error;
	if (backlog % 4 == 1) {
		registration_drop_worker(worker, listener);
		return -EIO;
	}
	socket_there[listener->index][worker->slot] = true;
	registration_joined(worker, listener);
	*ret_worker = worker;
	if (backlog % 4 == 3) /* the server closes it, and the kernel takes it out */
		socket_there[listener->index][worker->slot] = false;
	return 0;
}

uint64_t socket_cookie(int fd)
{
	return (uint64_t)fd % 2;
}

bool takeover_runs(const struct manager *manager)
{
	return manager->next_slot % 7 == 6;
}

int claim_socket(struct registration *registration, uint32_t worker, uint16_t slot,
	uint32_t granted, struct listener *listener, int fd, const char **ret_reason)
{
	close_fd(&fd);
	*ret_reason = "refused";
	if (granted >= registration->n_granted ||
		(slot == PROTOCOL_NO_SLOT ? !registration->max_workers
					  : worker != registration->n_workers - 1))
		abort();
	return slot % 5 == 4 ? -EBADF : 0;
}

void claims_free(struct registration *registration)
{
}

/* At once, where the real one waits for the kernel. */
int claims_complete(struct registration *registration)
{
	struct client *client = registration->client;

	if (registration->n_came != registration->n_expected ||
		registration->n_workers > registration->n_came ||
		(registration->n_workers != registration->n_came && !registration->max_workers))
		abort();
	for (uint32_t i = 0; i < registration->n_workers; i++)
		for (uint32_t k = 0; k < LISTENERS; k++)
			if (client_granted_listener(registration, k) ==
				registration->service->listeners[k]) {
				socket_there[k][registration->workers[i].slot] = true;
				registration->workers[i].present |= 1ULL << k;
			}
	registration_resumed(registration);
	client->resumed_untold = registration->max_workers ? 1 : registration->n_workers;
	client_keep(client, false);
	client_send_resumed(client);
	return 0;
}

int keys_next_nonce_prefix(struct keys *keys, uint8_t prefix[4])
{
	return 0;
}

/* The rest of the daemon */

static uint8_t verdict; /* on the next message with descriptors */

ssize_t foreign_peek(int socket, void *octets, size_t length, bool *ret_descriptors)
{
	ssize_t n = recv(socket, octets, length, MSG_PEEK | MSG_DONTWAIT);

	*ret_descriptors = n > 0 && verdict;
	return n;
}

int foreign_look(struct foreign *foreign, struct foreign_look *look, int socket, uid_t uid,
	void (*done)(struct foreign_look *look, enum foreign_verdict verdict))
{
	char octet;

	if (verdict == 1)
		return -EBUSY;
	if (verdict == 2)
		recv(socket, &octet, 1, MSG_DONTWAIT);
	done(look, verdict == 2 ? FOREIGN_TAKEN : verdict == 3 ? FOREIGN_FAILED : FOREIGN_WANTED);
	return 0;
}

bool foreign_is_looking(const struct foreign_look *look)
{
	return false;
}

void foreign_cancel(struct foreign_look *look)
{
}

void foreign_close(struct foreign *foreign, int *socket)
{
	close_fd(socket);
}

bool monitor_has_clients(const struct monitor *monitor)
{
	return true;
}

/* Nothing that clients name makes a field that JSON can't hold. */
void monitor_tell(struct monitor *monitor, json_t *event)
{
	if (json_object_size(event) != 9)
		abort();
	json_decref(event);
}

void log_entry(
	int priority, const char *event, const struct log_about *about, const char *format, ...)
{
	char line[2048];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(line, sizeof(line), format, arguments);
	va_end(arguments);
	/* What clients name can't make a second line. */
	if (strchr(line, '\n'))
		abort();
}

void service_update(struct service *service)
{
}

struct service *manager_find_service(struct manager *manager, const char *name)
{
	return strcmp(name, manager->services->config->name) == 0 ? manager->services : NULL;
}

struct account *manager_account(struct manager *manager, uid_t uid)
{
	return accounts_get(manager->accounts, uid);
}

uint32_t manager_count_cids(const struct manager *manager, uid_t uid)
{
	return 0;
}

int32_t manager_reserve_slot(struct manager *manager)
{
	uint32_t slot = manager->next_slot;

	manager->next_slot = (slot + 1) % SLOT_COUNT;
	if (manager->slots[slot])
		return -1;
	manager->reserved[slot] = 1;
	return (int32_t)slot;
}

const char *transport_name(enum transport transport)
{
	return "tcp";
}

const char *cid_mode_name(enum cid_mode mode)
{
	return "registered";
}

bool service_config_allows(
	const struct service_config *service, uid_t uid, const gid_t *gids, size_t n_gids)
{
	return true;
}

uint64_t now_realtime(void)
{
	return 1;
}

uint64_t now_monotonic(void)
{
	return 1;
}

/* The world that a client meets */

static struct keys keys[LISTENERS];
static struct listener_config listener_configs[LISTENERS] = {
	{.name = "http", .address_text = "127.0.0.1:80", .transport = TRANSPORT_TCP},
	{.name = "quic",
		.address_text = "127.0.0.1:443",
		.transport = TRANSPORT_QUIC,
		.cid_mode = CID_REGISTERED},
	{.name = "lb",
		.address_text = "127.0.0.1:444",
		.transport = TRANSPORT_QUIC,
		.cid_mode = CID_QUIC_LB},
};
static struct listener listeners[LISTENERS];
static struct listener *listener_list[LISTENERS];
static struct service_config service_config = {.name = "web", .max_workers = 40};
static struct service service = {
	.config = &service_config, .listeners = listener_list, .n_listeners = LISTENERS};
static struct config config = {
	.max_connections = 10, .max_slots = 30, .max_cids = 1000, .answer_timeout_usec = 1000};
static struct manager manager = {.config = &config, .services = &service};

static int write_nothing(void *user_data)
{
	return 0;
}

static void make_world(void)
{
	service.manager = &manager;
	if (store_new(&manager.store) < 0 || state_new(&manager.state) < 0)
		abort();
	store_set_writer(manager.store, write_nothing, NULL);
	if (sd_event_new(&manager.event) < 0 || accounts_new(&manager.accounts, manager.event) < 0)
		abort();
	for (uint32_t i = 0; i < LISTENERS; i++) {
		listeners[i] = (struct listener){.service = &service,
			.config = &listener_configs[i],
			.group = &groups[i],
			.number = i,
			.index = i,
			.keys = i ? &keys[i] : NULL};
		groups[i].quic = i ? &quic : NULL;
		listener_list[i] = &listeners[i];
	}
}

static void check_balance(void)
{
	uint32_t n = 0, taken = 0;

	for (struct registration *r = service.registrations; r; r = r->next)
		n += r->n_workers;
	for (uint32_t i = 0; i < SLOT_COUNT; i++)
		taken += manager.slots[i] != NULL;
	if (n != taken || n > config.max_slots ||
		manager_account(&manager, geteuid())->n_slots != n)
		abort();
}

/* One message of the input; what was read of it. */
static size_t send_one(int socket, const uint8_t *data, size_t size)
{
	uint8_t octets[sizeof(struct protocol_header) + 2048];
	struct protocol_header *header = (struct protocol_header *)octets;
	size_t length = data[1] | (size_t)data[2] << 8, n_fds = data[0] % 5;
	union {
		struct cmsghdr align;
		char octets[CMSG_SPACE(4 * sizeof(int))];
	} control = {};
	struct iovec part = {.iov_base = octets};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
	int fds[4] = {-1, -1, -1, -1};

	length = MIN(MIN(length, size - 3), 2048);
	if (length >= 2 && data[3] == 0xff) {
		*header = (struct protocol_header){.magic = htole32(PROTOCOL_MAGIC),
			.version = htole16(PROTOCOL_VERSION),
			.type = htole16(data[4]),
			.sequence = htole32(1),
			.length = htole32((uint32_t)length - 2),
			.n_descriptors = htole16((uint16_t)n_fds)};
		memcpy(octets + sizeof(*header), data + 5, length - 2);
		part.iov_len = sizeof(*header) + length - 2;
	} else {
		memcpy(octets, data + 3, length);
		part.iov_len = length;
	}
	for (size_t i = 0; i < n_fds; i++)
		fds[i] = data[0] & 0x80 ? dup(socket) : (int)syscall(SYS_pidfd_open, getpid(), 0);
	if (n_fds) {
		struct cmsghdr *c;

		message.msg_control = &control;
		message.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
		c = CMSG_FIRSTHDR(&message);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
		memcpy(CMSG_DATA(c), fds, n_fds * sizeof(int));
	}
	if (part.iov_len)
		sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
	for (size_t i = 0; i < n_fds; i++)
		close_fd(&fds[i]);
	return 3 + length;
}

static void read_answers(int socket)
{
	static struct message message;

	while (message_receive(socket, &message, NULL) == 1)
		message_done(&message);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	int pair[2], before, after;

	if (size > 16384)
		return 0;
	if (!manager.event)
		make_world();
	before = dup(0);
	close(before);
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
		abort();
	manager.next_registration = 0;
	if (client_new(&manager, pair[0]) < 0)
		abort();
	while (size > 3 && manager.clients) {
		size_t n = send_one(pair[1], data, size);

		verdict = data[0] % 5 ? (data[0] >> 3) & 7 : 0;
		receive_one(manager.clients);
		store_commit(manager.store);
		check_balance();
		read_answers(pair[1]);
		data += n;
		size -= n;
	}
	close(pair[1]);
	clients_tick(&manager);
	while (manager.clients)
		client_free(manager.clients);
	/* What was READY outlives its connection: its process ends. */
	while (service.registrations) {
		struct registration *r = service.registrations;

		r->exited = true;
		for (uint32_t i = 0; i < r->n_workers; i++)
			for (size_t k = 0; k < LISTENERS; k++)
				socket_there[k][r->workers[i].slot] = false;
		registration_check(r);
	}
	store_commit(manager.store);
	check_balance();
	if (manager_account(&manager, geteuid())->n_connections)
		abort();
	after = dup(0);
	close(after);
	if (before != after)
		abort();
	return 0;
}
