/* SPDX-License-Identifier: BSD-2-Clause */
#include "daemon/keys-disk.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "common/format.h"
#include "common/util.h"

#define FILE_OCTETS_MAX 65536

int keys_disk_lock(const struct keys *keys, char **ret_error)
{
	_cleanup_close_ int fd = open(keys->directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	struct stat status;
	int r;

	if (fd < 0 || fstat(fd, &status) < 0) {
		r = -errno;
		return format_error(ret_error, r, "cannot open the state directory %s: %s",
			keys->directory, strerror(-r));
	}
	if (status.st_mode & 0022)
		return format_error(ret_error, -EPERM,
			"the state directory %s has mode %04o: others could replace the keys in "
			"it; chmod 0700",
			keys->directory, (unsigned)(status.st_mode & 07777));
	while (flock(fd, LOCK_EX) < 0) {
		r = -errno;
		if (r != -EINTR)
			return format_error(ret_error, r, "cannot lock the state directory %s: %s",
				keys->directory, strerror(-r));
	}
	return take_fd(&fd);
}

static int check_file(const struct keys *keys, const struct stat *status, char **ret_error)
{
	if (!S_ISREG(status->st_mode))
		return format_error(ret_error, -EPERM, "%s/%s is not a regular file",
			keys->directory, keys->name);
	if (status->st_uid != geteuid())
		return format_error(ret_error, -EPERM,
			"%s/%s belongs to user %u, not to the daemon's (%u); chown it, or move it "
			"away to begin with a new key",
			keys->directory, keys->name, (unsigned)status->st_uid, (unsigned)geteuid());
	if (status->st_mode & 0077)
		return format_error(ret_error, -EPERM,
			"%s/%s has mode %04o: others may have read its keys; chmod 0600, or move "
			"it away to begin with a new key",
			keys->directory, keys->name, (unsigned)(status->st_mode & 07777));
	return 0;
}

int keys_disk_read(const struct keys *keys, int directory, json_t **ret, char **ret_error)
{
	_cleanup_close_ int fd =
		openat(directory, keys->name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	char *text;
	json_error_t error;
	struct stat status;
	ssize_t n;
	int r;

	if (fd < 0 || fstat(fd, &status) < 0) {
		r = -errno;
		if (r == -ENOENT)
			return r;
		return format_error(ret_error, r, "cannot open %s/%s: %s", keys->directory,
			keys->name, strerror(-r));
	}
	r = check_file(keys, &status, ret_error);
	if (r < 0)
		return r;
	text = malloc(FILE_OCTETS_MAX);
	if (!text)
		return -ENOMEM;
	n = read(fd, text, FILE_OCTETS_MAX);
	r = n < 0 ? -errno : 0;
	if (n >= 0 && n < FILE_OCTETS_MAX)
		*ret = json_loadb(text, (size_t)n, JSON_REJECT_DUPLICATES, &error);
	else
		*ret = NULL;
	explicit_bzero(text, FILE_OCTETS_MAX);
	free(text);
	if (r < 0)
		return format_error(ret_error, r, "cannot read %s/%s: %s", keys->directory,
			keys->name, strerror(-r));
	if (n == FILE_OCTETS_MAX)
		return format_error(ret_error, -EBADMSG, "%s/%s is longer than any state of keys",
			keys->directory, keys->name);
	if (!*ret)
		return format_error(ret_error, -EBADMSG,
			"%s/%s:%d: %s; restore it, or move it away to begin with a new key",
			keys->directory, keys->name, error.line, error.text);
	return 0;
}

static int write_octets(int fd, const char *text, size_t length)
{
	while (length) {
		ssize_t n = write(fd, text, length);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		text += n;
		length -= (size_t)n;
	}
	return fsync(fd) < 0 ? -errno : 0;
}

int keys_disk_write(const struct keys *keys, int directory, const json_t *root)
{
	char temporary[256];
	_cleanup_close_ int fd = -1;
	char *text;
	int r;

	/* The lock is ours: what has this name is left from a crash. */
	snprintf(temporary, sizeof(temporary), ".%s.new", keys->name);
	if (unlinkat(directory, temporary, 0) < 0 && errno != ENOENT)
		return -errno;
	text = json_dumps(root, JSON_INDENT(2));
	if (!text)
		return -ENOMEM;
	fd = openat(
		directory, temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	r = fd < 0 ? -errno : write_octets(fd, text, strlen(text));
	explicit_bzero(text, strlen(text));
	free(text);
	if (r >= 0 && renameat(directory, temporary, directory, keys->name) < 0)
		r = -errno;
	if (r >= 0 && fsync(directory) < 0)
		r = -errno;
	if (r < 0)
		unlinkat(directory, temporary, 0);
	return r;
}
