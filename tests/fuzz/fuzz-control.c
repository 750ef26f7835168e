/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Calls to the control socket, through its reader, its checks and every method: each call gets one
 * answer that is JSON, or ends its connection; Monitor gets answers until it has nothing to say.
 * The services are plain memory.
 */
#include "daemon/account.c"
#include "daemon/control.c"
#include "daemon/event.c"
#include "daemon/group.h"
#include "daemon/explain-method.c"
#include "daemon/kick.c"
#include "daemon/methods.c"
#include "daemon/monitor.c"
#include "daemon/parameters.c"
#include "daemon/peer.c"
#include "daemon/store.h"
#include "proto/varlink.c"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What the methods stand on */

static struct listener_map listener_map;
static struct group group = {.listener_map = &listener_map};
static struct keys keys = {.current = 2, .valid = {[2] = true}};
static struct listener_config listener_config = {.name = "quic",
	.address_text = "127.0.0.1:443",
	.transport = TRANSPORT_QUIC,
	.cid_mode = CID_QUIC_LB};
static struct listener_config tcp_config = {
	.name = "tcp", .address_text = "127.0.0.1:80", .transport = TRANSPORT_TCP};
static struct listener tcp_listener = {.config = &tcp_config, .group = &group};
static struct listener listener = {.config = &listener_config, .group = &group, .keys = &keys};
static struct listener *listeners[] = {&listener, &tcp_listener};
static struct service_config service_config = {.name = "web"};
static struct worker worker = {.slot = 7, .weight = 100, .state = WORKER_ACTIVE, .granted = true};
static struct registration registration = {
	.instance = "web@1", .workers = &worker, .n_workers = 1, .pid = 1};
static struct service service = {.config = &service_config,
	.listeners = listeners,
	.n_listeners = 2,
	.registrations = &registration};
static struct manager manager = {.services = &service, .program = "reuseportd"};

void log_entry(
	int priority, const char *event, const struct log_about *about, const char *format, ...)
{
}

uint64_t now_realtime(void)
{
	return 1;
}

json_t *status_daemon(const struct manager *m)
{
	return json_object();
}

json_t *status_services(struct manager *m, const char *name)
{
	return json_pack("[{s:s}]", "name", service_config.name);
}

json_t *shares_status(const struct manager *m)
{
	return json_array();
}

bool privileges_may(int capability)
{
	return true;
}

bool group_has_socket(const struct group *g, uint16_t slot, uint64_t *ret_cookie)
{
	*ret_cookie = 1;
	return true;
}

int sockdiag_destroy(const struct listener_config *config, uint64_t cookie, size_t n_members)
{
	return -ENOENT;
}

const char *worker_state_name(enum worker_state state)
{
	return "active";
}

struct service *manager_find_service(struct manager *m, const char *name)
{
	return strcmp(name, "web") == 0 ? &service : NULL;
}

unsigned registration_drain(struct registration *r, int32_t slot, enum protocol_drain_reason reason)
{
	return slot == 7;
}

unsigned registration_undrain(struct registration *r, int32_t slot)
{
	return slot == 7;
}

void service_update(struct service *s)
{
	if (worker.weight < 1 || worker.weight > 1000)
		abort();
}

int service_rotate_keys(struct service *s, const char *name, unsigned *ret_n, char **ret_error)
{
	if (name && strcmp(name, "quic") != 0)
		return -ENOENT;
	*ret_n = 1;
	return 0;
}

int manager_reload_files(struct manager *m, char **ret_error)
{
	return 0;
}

int manager_reexec(struct manager *m, int caller)
{
	return -ENOENT;
}

void store_commit(struct store *store)
{
}

/* The packet is what the call said, whatever that was: read it as the real one does. */
void explain_packet(struct explanation *e)
{
	e->packet = quic_read_packet(e->datagram, e->length, 17);
	e->step = "listener";
	e->slot = 7;
}

void explanation_done(struct explanation *e)
{
	free(e->datagram);
	free(e->reason);
}

static void check_answers(int socket)
{
	static struct varlink_buffer answers;
	json_t *message;
	int result;

	while (varlink_fill(&answers, socket, 1 << 24) == 1)
		;
	while ((result = varlink_next(&answers, &message, NULL)) == 1) {
		const json_t *error = json_object_get(message, "error");

		if (!json_is_object(json_object_get(message, "parameters")) ||
			(error && !json_is_string(error)))
			abort();
		json_decref(message);
	}
	if (result < 0 || answers.length != answers.consumed)
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct control *control;
	struct connection *connection;
	sd_event *event;
	int pair[2];

	if (size > 65536)
		return 0;
	if (!control) {
		service.manager = &manager;
		listener.service = tcp_listener.service = &service;
		registration.service = &service;
		worker.registration = &registration;
		manager.slots[7] = &worker;
		if (sd_event_new(&event) < 0 ||
			control_new(&control, event, socket(AF_UNIX, SOCK_STREAM, 0),
				manager_methods, &manager) < 0)
			abort();
		manager.control = control;
		if (monitor_new(&manager.monitor) < 0)
			abort();
	}
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
		abort();
	add_connection(control, pair[0]);
	connection = control->connections;
	if (send(pair[1], data, size, MSG_NOSIGNAL) != (ssize_t)size)
		abort();
	shutdown(pair[1], SHUT_WR);
	/* Each serve() answers a call of two octets at least, or reads, or is the end. */
	for (size_t i = 0; control->connections; i++) {
		/* Another client changes something: once more than are kept. */
		for (size_t k = 0; k < (i == 1 ? MONITOR_EVENTS + 1 : i % 2); k++)
			event_tell(&manager, EVENT_KEY_ROTATED,
				&(struct event_about){.listener = &listener}, "rotated");

		if (i > size + 10)
			abort();
		serve(connection);
		check_answers(pair[1]);
		if (control->connections && connection->stream && !connection->output_length &&
			i > size)
			connection_free(connection);
	}
	close(pair[1]);
	return 0;
}
