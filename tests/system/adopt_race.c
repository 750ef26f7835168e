/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The holder of a socket that the daemon is about to bind, trying to be first, as fast as can be:
 * for test_adopt.py, loaded by ctypes.
 */
#include <errno.h>
#include <sys/socket.h>

/* 1: it is bound to that address now; 0: somebody else has bound it. */
int race(int fd, const void *address, unsigned length);

int race(int fd, const void *address, unsigned length)
{
	for (int i = 0; i < 10000000; i++) {
		if (bind(fd, address, length) == 0)
			return 1;
		if (errno != EADDRINUSE)
			return 0;
	}
	return -1;
}
