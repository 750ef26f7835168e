/* SPDX-License-Identifier: BSD-2-Clause */
/* What runs, as JSON: Status and the snapshots of Monitor. The interface file documents the fields.
 */
#include "daemon/status.h"

#include <dirent.h>
#include <string.h>
#include <sys/capability.h>
#include <sys/stat.h>
#include <sys/utsname.h>

#include "common/util.h"
#include "daemon/control.h"
#include "daemon/group.h"
#include "daemon/group-figures.h"
#include "daemon/load.h"
#include "daemon/manager.h"
#include "daemon/peer.h"
#include "daemon/privileges.h"
#include "daemon/sockdiag.h"
#include "daemon/store.h"
#include "daemon/stranger.h"

/* null: the listener has none that anybody could rotate. */
static json_t *keys_status(const struct listener *listener)
{
	const struct keys *keys = listener->keys;
	json_t *rotations;

	if (listener->config->cid_mode != CID_QUIC_LB)
		return json_null();
	rotations = json_array();
	for (int i = 0; i < KEYS_MAX; i++)
		if (keys->valid[i])
			json_array_append_new(rotations, json_integer(i));
	return json_pack("{s:i, s:o, s:b}", "rotation", keys->current, "rotations", rotations,
		"given", keys->given);
}

static void set_int(json_t *json, const char *name, uint64_t value)
{
	json_object_set_new(json, name, json_integer((json_int_t)value));
}

static void set_string(json_t *json, const char *name, const char *value)
{
	json_object_set_new(json, name, json_string(value));
}

/* null, where there is none. */
static void set_fill(json_t *json, const char *name, bool there, const struct fill *fill)
{
	json_object_set_new(json, name,
		there ? json_pack("{s:I, s:I}", "used", (json_int_t)fill->used, "size",
				(json_int_t)fill->size)
		      : json_null());
}

static void set_verdicts(json_t *json, const uint64_t verdicts[VERDICT_COUNT])
{
	static const struct {
		const char *name;
		enum verdict verdict;
	} fields[] = {
		{"by_connection_id", VERDICT_CONNECTION_ID},
		{"by_flow", VERDICT_FLOW},
		{"migrated", VERDICT_MIGRATED},
		{"fallback", VERDICT_FALLBACK},
		{"standby", VERDICT_STANDBY},
		{"stray", VERDICT_STRAY},
		{"dropped", VERDICT_DROPPED},
		{"invalid", VERDICT_INVALID},
	};
	uint64_t packets = 0;

	for (int i = 0; i < VERDICT_COUNT; i++)
		packets += verdicts[i];
	set_int(json, "packets", packets);
	set_int(json, "new_connections", verdicts[VERDICT_LISTENER] + verdicts[VERDICT_FALLBACK]);
	for (size_t i = 0; i < ARRAY_SIZE(fields); i++)
		set_int(json, fields[i].name, verdicts[fields[i].verdict]);
}

static json_t *listener_status(struct listener *listener, const struct sockdiag_list *sockets)
{
	const struct group *group = listener->group;
	const struct listener_config *config = listener->config;
	const struct listener_map *map = group->listener_map;
	uint64_t verdicts[VERDICT_COUNT];
	json_t *json = json_object();
	struct fill fill = {0};

	group_read_counters(group, verdicts);
	set_string(json, "name", config->name);
	set_string(json, "transport", transport_name(config->transport));
	set_string(json, "address", config->address_text);
	set_string(json, "connection_id", cid_mode_name(config->cid_mode));
	json_object_set_new(
		json, "share", config->share ? json_string(config->share) : json_null());
	set_verdicts(json, verdicts);
	set_int(json, "expired", group->expired);
	set_int(json, "active", map->tables[map->current & 1].n_active);
	set_int(json, "generation", group->generation);
	set_int(json, "switched", group->switched_usec);
	set_int(json, "waiting", group_waiting(group, config, verdicts));
	set_fill(json, "flows", group_flow_fill(group, &fill), &fill);
	set_fill(json, "connection_ids", group_cid_fill(group, &fill), &fill);
	set_fill(json, "cookies", group_cookie_fill(group, &fill), &fill);
	json_object_set_new(json, "keys", keys_status(listener));
	json_object_set_new(json, "strangers", strangers_status(listener, sockets));
	return json;
}

static void set_known(json_t *json, const char *name, bool known, uint64_t value)
{
	json_object_set_new(json, name, known ? json_integer((json_int_t)value) : json_null());
}

static json_t *socket_status(const struct worker *worker, const struct listener *listener,
	const struct sockdiag_list *sockets, struct slot_counters *total)
{
	const struct sockdiag_socket *socket = NULL;
	struct slot_counters counters = {0};
	json_t *json = json_object();
	uint64_t cookie;

	group_read_slot(listener->group, worker->slot, &counters);
	total->packets += counters.packets;
	total->new_connections += counters.new_connections;
	set_string(json, "listener", listener->config->name);
	set_int(json, "packets", counters.packets);
	set_int(json, "new_connections", counters.new_connections);
	if (sockets->n && group_has_socket(listener->group, worker->slot, &cookie))
		socket = sockdiag_find(sockets, cookie);
	set_known(json, "queue", socket, socket ? socket->queue : 0);
	set_known(json, "queue_limit", socket, socket ? socket->queue_limit : 0);
	set_known(json, "drops", socket, socket ? socket->drops : 0);
	return json;
}

static json_t *worker_status(const struct worker *worker, const struct sockdiag_list *sockets)
{
	const struct registration *registration = worker->registration;
	const struct service *service = registration->service;
	json_t *json = json_object(), *entries = json_array();
	struct slot_counters total = {0};
	int load;

	for (size_t i = 0; i < service->n_listeners; i++)
		if (service->listeners[i] && worker->granted)
			json_array_append_new(entries,
				socket_status(worker, service->listeners[i], &sockets[i], &total));
	set_int(json, "slot", worker->slot);
	set_string(json, "instance", registration->instance);
	set_int(json, "pid", (uint64_t)registration->pid);
	set_int(json, "uid", registration->uid);
	set_string(json, "state", worker_state_name(worker->state));
	set_int(json, "weight", worker->weight);
	set_int(json, "packets", total.packets);
	set_int(json, "new_connections", total.new_connections);
	set_int(json, "since", worker->since_usec);
	json_object_set_new(json, "exited", json_boolean(registration->exited));
	json_object_set_new(json, "connected", json_boolean(registration->client != NULL));
	json_object_set_new(json, "stalled", json_boolean(worker->stalled != 0));
	load = load_of(worker);
	json_object_set_new(json, "load", load < 0 ? json_null() : json_integer(load));
	json_object_set_new(json, "sockets", entries);
	return json;
}

static json_t *service_status(const struct service *service)
{
	json_t *listeners = json_array(), *workers = json_array();
	_cleanup_free_ struct sockdiag_list *sockets =
		calloc(service->n_listeners + 1, sizeof(*sockets));

	for (size_t i = 0; sockets && i < service->n_listeners; i++) {
		if (!service->listeners[i])
			continue;
		/* What the kernel does not tell is null. */
		sockdiag_read(service->listeners[i]->config, &sockets[i]);
		json_array_append_new(
			listeners, listener_status(service->listeners[i], &sockets[i]));
	}
	for (uint32_t slot = 0; sockets && slot < SLOT_COUNT; slot++) {
		const struct worker *worker = service->manager->slots[slot];

		if (worker && worker->registration->service == service)
			json_array_append_new(workers, worker_status(worker, sockets));
	}
	for (size_t i = 0; sockets && i < service->n_listeners; i++)
		sockdiag_done(&sockets[i]);
	return json_pack("{s:s, s:b, s:o, s:o}", "name", service->config->name, "removed",
		service->removed, "listeners", listeners, "workers", workers);
}

static int compare_names(const void *a, const void *b)
{
	const struct service *const *left = a, *const *right = b;

	return strcmp((*left)->config->name, (*right)->config->name);
}

json_t *status_services(struct manager *manager, const char *name)
{
	_cleanup_free_ struct service **sorted = NULL;
	json_t *services = json_array();
	size_t n = 0;

	for (struct service *s = manager->services; s; s = s->next)
		n++;
	sorted = calloc(n + 1, sizeof(*sorted));
	if (!sorted)
		return services;
	n = 0;
	for (struct service *s = manager->services; s; s = s->next)
		if (!name || strcmp(s->config->name, name) == 0)
			sorted[n++] = s;
	qsort(sorted, n, sizeof(*sorted), compare_names);
	for (size_t i = 0; i < n; i++)
		json_array_append_new(services, service_status(sorted[i]));
	return services;
}

static unsigned count_descriptors(void)
{
	struct stat status;
	unsigned n = 0;
	DIR *directory;

	/* Linux 6.2 and newer: the number of entries. Before, it is 0. */
	if (stat("/proc/self/fd", &status) == 0 && status.st_size > 0)
		return (unsigned)status.st_size;
	directory = opendir("/proc/self/fd");
	if (!directory)
		return 0;
	while (readdir(directory))
		n++;
	closedir(directory);
	return n < 3 ? 0 : n - 3; /* ".", "..", and the one that reads */
}

/* What this kernel and these privileges allow. The programs load with "migrate" alone. */
static json_t *features(const struct manager *manager)
{
	json_t *json = json_pack("[s]", "migrate");

	if (store_outlives(manager->store))
		json_array_append_new(json,
			json_string(store_has_keeper(manager->store) ? "keeper" : "fd-store"));
	if (privileges_may(CAP_PERFMON))
		json_array_append_new(json, json_string("perfmon"));
	if (privileges_may(CAP_NET_ADMIN))
		json_array_append_new(json, json_string("net-admin"));
	if (privileges_may(CAP_CHOWN))
		json_array_append_new(json, json_string("chown"));
	return json;
}

/* What newer kernels have and this one has not, where somebody may notice. */
static json_t *missing(void)
{
	json_t *json = json_array();

	if (!peer_has_pidfd())
		json_array_append_new(json, json_string("peer-pidfd"));
	if (!thread_has_pidfd())
		json_array_append_new(json, json_string("thread-pidfd"));
	return json;
}

json_t *status_daemon(const struct manager *manager)
{
	json_t *json = json_object();
	struct utsname name;
	unsigned n = 0;

	for (const struct client *c = manager->clients; c; c = client_next(c))
		n++;
	set_string(json, "version", VERSION);
	set_int(json, "pid", (uint64_t)getpid());
	set_int(json, "since", manager->started_usec);
	set_int(json, "uptime", now_realtime() - manager->started_usec);
	set_string(json, "kernel", uname(&name) < 0 ? "" : name.release);
	json_object_set_new(json, "features", features(manager));
	json_object_set_new(json, "missing", missing());
	set_int(json, "control_clients", control_count(manager->control));
	set_int(json, "worker_clients", n);
	set_int(json, "descriptors", count_descriptors());
	return json;
}
