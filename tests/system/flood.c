/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Many connections fast, so that a test can count where they go: flood SOURCE PORT N opens N of
 * them from one source address, says "open", and resets all when its standard input ends. The first
 * that fails ends it with status 1.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24
#endif

/* The descriptor is kept by the process until it exits, hence by nobody in particular. */
static int connect_once(const struct sockaddr_in *source, const struct sockaddr_in *target)
{
	static const struct linger reset = {.l_onoff = 1, .l_linger = 0};
	static const int on = 1;
	int fd;

	fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -1;
	if (setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset)) < 0)
		return -1;
	if (setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof(on)) < 0)
		return -1;
	if (bind(fd, (const struct sockaddr *)source, sizeof(*source)) < 0)
		return -1;
	return connect(fd, (const struct sockaddr *)target, sizeof(*target));
}

int main(int argc, char *argv[])
{
	struct sockaddr_in source = {.sin_family = AF_INET};
	struct sockaddr_in target = {.sin_family = AF_INET};

	if (argc != 4 || inet_pton(AF_INET, argv[1], &source.sin_addr) != 1)
		return 2;
	target.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	target.sin_port = htons((uint16_t)atoi(argv[2]));
	for (long n = atol(argv[3]); n > 0; n--) {
		if (connect_once(&source, &target) < 0) {
			perror("flood");
			return 1;
		}
	}
	puts("open");
	fflush(stdout);
	while (getchar() != EOF)
		;
	return 0;
}
