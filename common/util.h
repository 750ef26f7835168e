/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The few lines that every part of the project would otherwise write again: cleanup attributes,
 * descriptors that close themselves, arithmetic on arrays. Header only, no state, never prints.
 */
#pragma once

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#define _cleanup_(function) __attribute__((cleanup(function)))
#define _printf_(string, first) __attribute__((format(printf, string, first)))
#define _public_ __attribute__((visibility("default")))
#define _unused_ __attribute__((unused))

#define ARRAY_SIZE(array) (sizeof(array) / sizeof((array)[0]))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

#define USEC_PER_SEC 1000000ULL
#define USEC_PER_MSEC 1000ULL
#define NSEC_PER_USEC 1000ULL

/* Closes *fd unless it is negative; errno stays as it was. */
static inline void close_fd(int *fd)
{
	int saved = errno;

	if (*fd >= 0)
		close(*fd);
	*fd = -1;
	errno = saved;
}

/* Gives the descriptor away: returns *fd and leaves -1 in its place. */
static inline int take_fd(int *fd)
{
	int taken = *fd;

	*fd = -1;
	return taken;
}

static inline void free_pointer(void *pointer)
{
	free(*(void **)pointer);
}

#define _cleanup_close_ _cleanup_(close_fd)
#define _cleanup_free_ _cleanup_(free_pointer)

#define take_pointer(pointer)                           \
	({                                              \
		__typeof__(pointer) _taken = (pointer); \
		(pointer) = NULL;                       \
		_taken;                                 \
	})
