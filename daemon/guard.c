/* SPDX-License-Identifier: BSD-2-Clause */
#include "daemon/guard.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "common/util.h"
#include "daemon/privileges.h"
#include "daemon/store.h"
#include "guard.skel.h"

#define LINKS 3

static const struct {
	const char *program;
	enum bpf_attach_type type;
} hooks[LINKS] = {
	{"guard_setsockopt", BPF_CGROUP_SETSOCKOPT},
	{"guard_connect4", BPF_CGROUP_INET4_CONNECT},
	{"guard_connect6", BPF_CGROUP_INET6_CONNECT},
};

struct guard {
	struct store *store;
	int map;
	int link[LINKS]; /* the programs are attached as long as these are open */
	uint32_t map_entry, link_entry[LINKS];
};

/* Line by line, the rest of the first line of file after the last occurrence of mark; or NULL. */
static char *find_line(const char *file, bool (*parse)(const char *line, char *ret))
{
	FILE *stream = fopen(file, "re");
	char line[2 * PATH_MAX], found[PATH_MAX] = "";

	while (stream && fgets(line, sizeof(line), stream)) {
		line[strcspn(line, "\n")] = '\0';
		if (parse(line, found))
			break;
	}
	if (stream)
		fclose(stream);
	return *found ? strdup(found) : NULL;
}

/* /proc/self/cgroup: "0::/system.slice/reuseportd.service" */
static bool parse_cgroup(const char *line, char *ret)
{
	if (strncmp(line, "0::/", 4) != 0)
		return false;
	snprintf(ret, PATH_MAX, "%s", line + 3);
	return true;
}

/* /proc/self/mountinfo: "... ROOT MOUNTPOINT OPTIONS [FIELDS] - cgroup2 ...", proc(5) */
static bool parse_mount(const char *line, char *ret)
{
	char root[PATH_MAX], point[PATH_MAX];

	if (!strstr(line, " - cgroup2 ") ||
		sscanf(line, "%*s %*s %*s %4095s %4095s", root, point) != 2 ||
		strcmp(root, "/") != 0)
		return false;
	snprintf(ret, PATH_MAX, "%s", point);
	return true;
}

/* The directory of this process's cgroup. */
static int open_cgroup(void)
{
	_cleanup_free_ char *path = find_line("/proc/self/cgroup", parse_cgroup);
	_cleanup_free_ char *point = find_line("/proc/self/mountinfo", parse_mount);
	_cleanup_free_ char *directory = NULL;
	int fd;

	if (!path || !point)
		return -ENOENT;
	if (asprintf(&directory, "%s%s", point, path) < 0) {
		directory = NULL;
		return -ENOMEM;
	}
	fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

static struct guard *allocate(struct store *store)
{
	struct guard *guard = calloc(1, sizeof(*guard));

	if (!guard)
		return NULL;
	guard->store = store;
	guard->map = -1;
	for (int i = 0; i < LINKS; i++)
		guard->link[i] = -1;
	return guard;
}

static int attach(
	struct guard *guard, const struct bpf_object *object, int cgroup, const char **ret_step)
{
	*ret_step = "attach a program to the daemon's cgroup";
	for (int i = 0; i < LINKS; i++) {
		const struct bpf_program *program =
			bpf_object__find_program_by_name(object, hooks[i].program);

		guard->link[i] =
			bpf_link_create(bpf_program__fd(program), cgroup, hooks[i].type, NULL);
		if (guard->link[i] < 0)
			return -errno;
	}
	guard->map = fcntl(bpf_object__find_map_fd_by_name(object, "guarded"), F_DUPFD_CLOEXEC, 3);
	return guard->map < 0 ? -errno : 0;
}

static int load(struct guard *guard, const char **ret_step)
{
	_cleanup_close_ int cgroup = -1;
	struct bpf_object *object;
	const void *bytes;
	size_t size;
	int result;

	*ret_step = "find the daemon's cgroup";
	cgroup = open_cgroup();
	if (cgroup < 0)
		return cgroup;
	bytes = guard_bpf__elf_bytes(&size);
	*ret_step = "load a program for the daemon's cgroup";
	object = bpf_object__open_mem(bytes, size, NULL);
	if (!object)
		return -errno;
	privileges_set_perfmon(true);
	result = bpf_object__load(object);
	privileges_set_perfmon(false);
	if (result >= 0)
		result = attach(guard, object, cgroup, ret_step);
	bpf_object__close(object);
	return result;
}

int guard_new(struct guard **ret, struct store *store, char **ret_error)
{
	struct guard *guard = allocate(store);
	const char *step = "";
	int result = guard ? load(guard, &step) : -ENOMEM;

	if (result < 0) {
		guard_free(guard);
		if (asprintf(ret_error, "cannot %s: %s%s", step, strerror(-result),
			    result == -EPERM || result == -EACCES
				    ? " (needs CAP_NET_ADMIN: see net-admin.conf)"
			    : result == -ENOENT ? " (needs a cgroup of version 2)"
						: "") < 0)
			*ret_error = NULL;
		return result;
	}
	guard->map_entry = store_put(store, STORE_MAP, guard->map, false);
	for (int i = 0; i < LINKS; i++)
		guard->link_entry[i] = store_put(store, STORE_MAP, guard->link[i], false);
	*ret = guard;
	return 0;
}

json_t *guard_to_json(const struct guard *guard)
{
	json_t *links;

	if (!guard)
		return json_null();
	links = json_array();
	for (int i = 0; i < LINKS; i++)
		json_array_append_new(links, json_integer(guard->link_entry[i]));
	return json_pack("{s:I, s:o}", "map", (json_int_t)guard->map_entry, "links", links);
}

struct guard *guard_resume(struct store *store, const json_t *json)
{
	struct guard *guard = json_is_object(json) ? allocate(store) : NULL;
	bool all = true;

	if (!guard)
		return NULL;
	guard->map_entry = (uint32_t)json_integer_value(json_object_get(json, "map"));
	guard->map = store_take(store, STORE_MAP, guard->map_entry);
	all = guard->map >= 0;
	for (size_t i = 0; i < LINKS; i++) {
		guard->link_entry[i] = (uint32_t)json_integer_value(
			json_array_get(json_object_get(json, "links"), i));
		guard->link[i] = store_take(store, STORE_MAP, guard->link_entry[i]);
		all &= guard->link[i] >= 0;
	}
	return all ? guard : guard_free(guard);
}

struct guard *guard_free(struct guard *guard)
{
	if (!guard)
		return NULL;
	for (int i = 0; i < LINKS; i++)
		if (guard->link[i] >= 0)
			store_drop(guard->store, guard->link_entry[i], guard->link[i]);
	if (guard->map >= 0)
		store_drop(guard->store, guard->map_entry, guard->map);
	free(guard);
	return NULL;
}

int guard_map(const struct guard *guard)
{
	return guard ? guard->map : -1;
}

int guard_socket(int map, int fd)
{
	const uint32_t mark = 1;

	if (map < 0)
		return 0;
	return bpf_map_update_elem(map, &fd, &mark, BPF_ANY) < 0 ? -errno : 0;
}
