/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Datagrams faster than the tests can make them, from many source addresses of 127.0.0.0/8.
 *
 *	quic_flood PORT initial|short|empty|file PATH
 *
 * For each number read from a line of stdin it sends so many datagrams to 127.0.0.1:PORT and prints
 * "done". initial: Initials of version 1 with a random destination connection ID of 8 to 20 octets.
 * short: short headers with a random ID. empty: Initials with an ID of no octets. file: the packets
 * of PATH in turn, each its length in two octets, big-endian, and itself.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define N_SOCKETS 64
#define BATCH 64
#define OCTETS 64 /* of a packet that is made here */

static uint64_t state = 0x9e3779b97f4a7c15u;

/* xorshift64*: the same packets in every run. */
static uint64_t next_random(void)
{
	state ^= state >> 12;
	state ^= state << 25;
	state ^= state >> 27;
	return state * 0x2545f4914f6cdd1du;
}

static uint8_t *pool;
static size_t pool_size, pool_next;

static void read_pool(const char *path)
{
	FILE *file = fopen(path, "rb");

	pool = malloc(64 << 20);
	if (!file || !pool)
		exit(1);
	pool_size = fread(pool, 1, 64 << 20, file);
	fclose(file);
	if (pool_size < 2)
		exit(1);
}

static size_t make_packet(const char *kind, uint8_t *packet, uint8_t **ret)
{
	size_t length;

	if (pool) {
		if (pool_next >= pool_size)
			pool_next = 0;
		length = (size_t)pool[pool_next] << 8 | pool[pool_next + 1];
		*ret = pool + pool_next + 2;
		pool_next += 2 + length;
		return length;
	}
	*ret = packet;
	for (size_t i = 0; i < OCTETS; i += 8) {
		uint64_t random = next_random();

		memcpy(packet + i, &random, sizeof(random));
	}
	if (!strcmp(kind, "short")) {
		packet[0] = 0x40 | (packet[0] & 0x3f);
		return OCTETS;
	}
	packet[0] = 0xc0 | (packet[0] & 0x0f);
	memcpy(packet + 1, "\0\0\0\1", 4);
	packet[5] = !strcmp(kind, "empty") ? 0 : 8 + packet[5] % 13;
	packet[6 + packet[5]] = 8;
	return OCTETS;
}

static int make_socket(unsigned i, uint16_t port)
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	address.sin_addr.s_addr = htonl(0x7f010000 + (i << 8) + i + 1);
	if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		exit(1);
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	address.sin_port = htons(port);
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		exit(1);
	return fd;
}

static void send_batch(int fd, const char *kind, unsigned n)
{
	static uint8_t packets[BATCH][OCTETS];
	struct mmsghdr messages[BATCH] = {0};
	struct iovec parts[BATCH];
	unsigned sent = 0;

	for (unsigned i = 0; i < n; i++) {
		uint8_t *start;

		parts[i].iov_len = make_packet(kind, packets[i], &start);
		parts[i].iov_base = start;
		messages[i].msg_hdr.msg_iov = &parts[i];
		messages[i].msg_hdr.msg_iovlen = 1;
	}
	while (sent < n) {
		int result = sendmmsg(fd, messages + sent, n - sent, 0);

		if (result < 0 && errno != EINTR) {
			perror("quic_flood: sendmmsg");
			exit(1);
		}
		if (result > 0)
			sent += (unsigned)result;
	}
}

int main(int argc, char **argv)
{
	int sockets[N_SOCKETS];
	unsigned long total;
	unsigned at = 0;

	if (argc < 3)
		return 2;
	if (argc > 3)
		read_pool(argv[3]);
	for (unsigned i = 0; i < N_SOCKETS; i++)
		sockets[i] = make_socket(i, (uint16_t)atoi(argv[1]));
	while (scanf("%lu", &total) == 1) {
		while (total) {
			unsigned n = total < BATCH ? (unsigned)total : BATCH;

			send_batch(sockets[at++ % N_SOCKETS], argv[2], n);
			total -= n;
		}
		puts("done");
		fflush(stdout);
	}
	return 0;
}
