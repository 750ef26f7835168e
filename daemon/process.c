/* SPDX-License-Identifier: BSD-2-Clause */
#include "daemon/process.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <time.h>

#include "common/util.h"
#include "daemon/manager.h"

#define CGROUPS_MAX 20000 /* that are looked at */
#define CGROUP_DEPTH 8

/* The first line of the file, "" when it can't be read. */
static void read_line(const char *path, char *ret, size_t size)
{
	FILE *file = fopen(path, "re");

	*ret = 0;
	if (!file)
		return;
	if (!fgets(ret, (int)size, file))
		*ret = 0;
	ret[strcspn(ret, "\n")] = 0;
	fclose(file);
}

/* The last part of the path that is a unit: what is below a unit is its own affair. */
static void unit_of_path(const char *path, char *ret, size_t size)
{
	static const char *const suffixes[] = {".service", ".scope"};

	*ret = 0;
	for (const char *part = path, *end; *part; part = end) {
		size_t length;

		part += strspn(part, "/");
		end = part + strcspn(part, "/");
		length = (size_t)(end - part);
		for (size_t i = 0; i < ARRAY_SIZE(suffixes); i++) {
			size_t n = strlen(suffixes[i]);

			if (length > n && memcmp(end - n, suffixes[i], n) == 0)
				snprintf(ret, size, "%.*s", (int)length, part);
		}
	}
}

/* The hierarchy that systemd uses: the unified one, or beside it one of that name. */
static void unit_of_process(pid_t pid, char *ret, size_t size)
{
	char path[64], line[1024];
	FILE *file;

	*ret = 0;
	snprintf(path, sizeof(path), "/proc/%d/cgroup", (int)pid);
	file = fopen(path, "re");
	if (!file)
		return;
	while (!*ret && fgets(line, sizeof(line), file)) {
		const char *unified = strncmp(line, "0::", 3) == 0 ? line + 3 : NULL;
		const char *named = strstr(line, ":name=systemd:");

		line[strcspn(line, "\n")] = 0;
		if (unified || named)
			unit_of_path(unified ? unified : strrchr(line, ':') + 1, ret, size);
	}
	fclose(file);
}

static void describe(struct process *process, pid_t pid)
{
	char path[64];

	process->pid = pid;
	snprintf(path, sizeof(path), "/proc/%d/comm", (int)pid);
	read_line(path, process->command, sizeof(process->command));
	/* Any octet can stand there; JSON wants UTF-8. */
	for (char *c = process->command; *c; c++)
		if (!isprint((unsigned char)*c))
			*c = '?';
	unit_of_process(pid, process->unit, sizeof(process->unit));
}

/* Returns how many were found. */
static size_t look_at_process(pid_t pid, const uint32_t *inodes, size_t n, struct process *ret)
{
	char path[64], target[64];
	const struct dirent *entry;
	size_t found = 0;
	DIR *directory;

	snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
	directory = opendir(path);
	if (!directory)
		return 0;
	while (found < n && (entry = readdir(directory))) {
		ssize_t length =
			readlinkat(dirfd(directory), entry->d_name, target, sizeof(target) - 1);
		unsigned inode;

		if (length <= 0)
			continue;
		target[length] = 0;
		if (sscanf(target, "socket:[%u]", &inode) != 1)
			continue;
		for (size_t i = 0; i < n; i++)
			if (inodes[i] == inode && !ret[i].pid) {
				describe(&ret[i], pid);
				found++;
			}
	}
	closedir(directory);
	return found;
}

static uint64_t own_usec(void)
{
	struct timespec time;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
	return (uint64_t)time.tv_sec * USEC_PER_SEC + (uint64_t)time.tv_nsec / NSEC_PER_USEC;
}

void process_find_holders(const uint32_t *inodes, size_t n, struct process *ret)
{
	uint64_t end = own_usec() + PROCESS_SEARCH_USEC;
	const struct dirent *entry;
	size_t found = 0;
	DIR *directory = opendir("/proc");

	memset(ret, 0, n * sizeof(*ret));
	while (directory && found < n && own_usec() < end && (entry = readdir(directory))) {
		pid_t pid = (pid_t)strtol(entry->d_name, NULL, 10);

		if (pid > 0 && pid != getpid())
			found += look_at_process(pid, inodes, n, ret);
	}
	if (directory)
		closedir(directory);
}

/* Below the directory, whose descriptor is taken over. path: its own, and then that of what was
 * found. */
static bool find_cgroup(
	int fd, uint64_t inode, char *path, size_t size, int depth, unsigned *budget)
{
	size_t length = strlen(path);
	const struct dirent *entry;
	bool found = false;
	DIR *directory = fdopendir(fd);

	if (!directory) {
		close_fd(&fd);
		return false;
	}
	while (!found && *budget && (entry = readdir(directory))) {
		int below;

		if (entry->d_type != DT_DIR || entry->d_name[0] == '.')
			continue;
		--*budget;
		snprintf(path + length, size - length, "/%s", entry->d_name);
		found = entry->d_ino == inode;
		if (found || depth == CGROUP_DEPTH)
			continue;
		below = openat(dirfd(directory), entry->d_name,
			O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
		if (below >= 0)
			found = find_cgroup(below, inode, path, size, depth + 1, budget);
	}
	closedir(directory);
	if (!found)
		path[length] = 0;
	return found;
}

void process_unit_of_cgroup(uint64_t cgroup, char *ret, size_t size)
{
	static const char *const roots[] = {"/sys/fs/cgroup", "/sys/fs/cgroup/unified"};
	unsigned budget = CGROUPS_MAX;
	char path[4096] = "", own[256];
	struct statfs filesystem;

	*ret = 0;
	for (size_t i = 0; cgroup && i < ARRAY_SIZE(roots) && !*path; i++) {
		int fd;

		if (statfs(roots[i], &filesystem) < 0 || filesystem.f_type != CGROUP2_SUPER_MAGIC)
			continue;
		fd = open(roots[i], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (fd >= 0 && find_cgroup(fd, cgroup, path, sizeof(path), 0, &budget))
			unit_of_path(path, ret, size);
	}
	/* What the daemon made itself and somebody else holds. */
	unit_of_process(getpid(), own, sizeof(own));
	if (strcmp(own, ret) == 0)
		*ret = 0;
}
