/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What system calls cost a process, in nanoseconds of its own processor time: the cheapest one that
 * there is, and what a server does all day. For test_adopt.py, with and without --adopt.
 */
#include <arpa/inet.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static double now(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1e9 +
	       (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e3;
}

int main(void)
{
	struct sockaddr_in address = {
		.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t length = sizeof(address);
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	enum { CHEAP = 1000000, DATAGRAMS = 50000 };
	double start, cheap;
	char octets[100] = "";

	if (bind(fd, (struct sockaddr *)&address, length) < 0 ||
		getsockname(fd, (struct sockaddr *)&address, &length) < 0)
		return 1;
	start = now();
	for (int i = 0; i < CHEAP; i++)
		syscall(SYS_getppid);
	cheap = (now() - start) / CHEAP;
	start = now();
	for (int i = 0; i < DATAGRAMS; i++)
		if (sendto(fd, octets, sizeof(octets), 0, (struct sockaddr *)&address, length) !=
				sizeof(octets) ||
			recv(fd, octets, sizeof(octets), 0) != sizeof(octets))
			return 1;
	printf("%.1f %.1f\n", cheap, (now() - start) / DATAGRAMS / 2);
	return 0;
}
