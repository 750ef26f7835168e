/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Descriptors that the service manager passed by LISTEN_FDS: the sockets of .socket units and what
 * stands in its descriptor store come in one list, and each is asked for by its name.
 */
#pragma once

#include <stddef.h>

struct inherited {
	struct {
		char *name;
		int fd; /* -1: taken */
	} * entries;
	size_t n;
};

/* Takes all there are, close-on-exec and non-blocking. They are ours from now on, no child's. */
int inherited_init(struct inherited *ret);
/* The next one of that name, owned by the caller; -ENOENT: no more. */
int inherited_take(struct inherited *inherited, const char *name);
/* Closes what nobody took. */
void inherited_done(struct inherited *inherited);
