/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Any octets as what a server says to its NOTIFY_SOCKET: read through a real socket, it makes the
 * server ready only by READY=1 in a line of its own, and what goes on to the service manager has no
 * line that would speak for the launcher.
 */
#include <sys/un.h>

#include "tools/run-notify.c"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static bool became_ready, drained;

void wait_join_all(struct run *run)
{
}

void run_become_ready(struct run *run)
{
	became_ready = true;
}

int reuseport_drain(struct reuseport *context, int timeout_msec)
{
	drained = true;
	return 0;
}

int sd_notify(int unset_environment, const char *state)
{
	static const char *const own[] = {"READY=", "MAINPID=", "FDSTORE=", "FDNAME=", "BARRIER="};

	if (state[strlen(state) - 1] != '\n')
		abort();
	for (size_t i = 0; i < ARRAY_SIZE(own); i++) {
		char line[32] = "\n";

		strcat(line, own[i]);
		if (!strncmp(state, own[i], strlen(own[i])) || strstr(state, line))
			abort();
	}
	return 1;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct run run = {.notify_fd = -1};
	static int sender = -1;
	char text[4096] = "\n";

	if (size > 8192)
		return 0;
	if (sender < 0) {
		struct sockaddr_un address = {.sun_family = AF_UNIX};

		if (notify_open(&run) < 0)
			abort();
		memcpy(address.sun_path + 1, run.notify_name + 1, strlen(run.notify_name) - 1);
		sender = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
		if (sender < 0 || connect(sender, (struct sockaddr *)&address,
					  (socklen_t)(offsetof(struct sockaddr_un, sun_path) +
						      strlen(run.notify_name))) < 0)
			abort();
	}
	became_ready = drained = run.stopping = false;
	if (send(sender, data, size, MSG_DONTWAIT) != (ssize_t)size)
		abort();
	if (notify_read(&run) != 1 || notify_read(&run) != 0)
		abort();
	size = MIN(size, 4000u);
	memcpy(text + 1, data, size);
	memcpy(text + 1 + strnlen(text + 1, size), "\n", 2);
	if (size < 4000 && became_ready != (strstr(text, "\nREADY=1\n") != NULL))
		abort();
	if (size < 4000 && drained != (strstr(text, "\nSTOPPING=1\n") != NULL))
		abort();
	return 0;
}
