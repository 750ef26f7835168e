/* SPDX-License-Identifier: BSD-2-Clause */
#include "daemon/inherited.h"

#include <fcntl.h>
#include <string.h>
#include <systemd/sd-daemon.h>

#include "common/util.h"

int inherited_init(struct inherited *ret)
{
	char **names = NULL;
	int n = sd_listen_fds_with_names(1, &names);

	*ret = (struct inherited){0};
	if (n <= 0)
		return n;
	ret->entries = calloc((size_t)n, sizeof(*ret->entries));
	for (int i = 0; i < n; i++) {
		int fd = SD_LISTEN_FDS_START + i, flags = fcntl(fd, F_GETFL);

		/* systemd makes them blocking unless NonBlocking= is set (systemd.service(5)). */
		if (flags >= 0)
			fcntl(fd, F_SETFL, flags | O_NONBLOCK);
		if (!ret->entries) {
			close_fd(&fd);
			free(names[i]);
			continue;
		}
		ret->entries[i].name = names[i];
		ret->entries[i].fd = fd;
	}
	free(names);
	if (!ret->entries)
		return -ENOMEM;
	ret->n = (size_t)n;
	return 0;
}

int inherited_take(struct inherited *inherited, const char *name)
{
	for (size_t i = 0; i < inherited->n; i++)
		if (inherited->entries[i].fd >= 0 && strcmp(inherited->entries[i].name, name) == 0)
			return take_fd(&inherited->entries[i].fd);
	return -ENOENT;
}

void inherited_done(struct inherited *inherited)
{
	for (size_t i = 0; i < inherited->n; i++) {
		close_fd(&inherited->entries[i].fd);
		free(inherited->entries[i].name);
	}
	free(inherited->entries);
	*inherited = (struct inherited){0};
}
