/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What is sent. Each datagram has a head of its own of 64 octets: the QUIC header, random octets,
 * and at the end its number, so that the receiver can say whether it came to the right socket.
 */
#include "bench.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>

#include "bpf/quic_layout.h"
#include "client-lib/reuseport.h"

#define NUMBER_OFFSET (HEAD_OCTETS - 4)
#define SHORT_FIRST 0x40
#define INITIAL_FIRST 0xc0
#define INITIAL_OCTETS 1200

static const struct {
	const char *name;
	enum datagram_kind kind;
	bool fresh;
	bool introduced;
} kinds[] = {
	{"short", DATAGRAM_SHORT, false, false},
	{"short-fresh", DATAGRAM_SHORT, true, false},
	{"introduced", DATAGRAM_SHORT, false, true},
	{"initial", DATAGRAM_INITIAL, true, false},
	{"initial-known", DATAGRAM_INITIAL, false, false},
	{"generated", DATAGRAM_GENERATED, false, false},
	{"generated-fresh", DATAGRAM_GENERATED, true, false},
	{"registered", DATAGRAM_REGISTERED, false, false},
	{"cookie", DATAGRAM_COOKIE, false, false},
};

static void random_octets(void *octets, size_t length)
{
	uint8_t *p = octets;

	while (length) {
		ssize_t got = getrandom(p, length, 0);

		if (got < 0)
			fail(errno, "cannot get random octets");
		p += got;
		length -= (size_t)got;
	}
}

/* v1 Initial: an ID of 8 octets for each side; the rest is noise, as ciphertext is. */
static void make_initial(uint8_t *head)
{
	head[0] = INITIAL_FIRST | (head[0] & 0x0f);
	head[1] = head[2] = head[3] = 0;
	head[4] = 1;
	head[5] = 8;
	head[14] = 8;
	head[23] = 0;
}

static void make_cookie_id(const struct group *group, unsigned owner, uint8_t *id)
{
	uint64_t cookie;
	socklen_t length = sizeof(cookie);

	if (getsockopt(group->sockets[owner], SOL_SOCKET, SO_COOKIE, &cookie, &length) < 0)
		fail(errno, "cannot get the cookie of a socket");
	for (int i = 0; i < 8; i++)
		id[i] = (uint8_t)(cookie >> (56 - 8 * i));
}

/* Of a group of our own whose program decrypts: made once, and told it. */
static const struct quic_lb_config *own_config(const struct group *group)
{
	static struct quic_lb_config config;
	const uint32_t zero = 0;
	uint8_t key[AES128_OCTETS];
	int map;

	if (config.encrypted)
		return &config;
	map = group->object ? bpf_object__find_map_fd_by_name(group->object, "config") : -1;
	random_octets(key, sizeof(key));
	quic_lb_configure(&config, 0, QUIC_SERVER_ID_LENGTH, QUIC_NONCE_LENGTH, key);
	if (map < 0 || bpf_map_update_elem(map, &zero, &config, BPF_ANY) < 0)
		fail(errno, "no program that decrypts connection IDs, and no daemon to make them");
	return &config;
}

static void make_generated_id(const struct group *group, unsigned owner, uint8_t *id)
{
	unsigned worker;
	struct reuseport *client = group_client(group, owner, &worker);
	int length = reuseport_cid_generate(client, worker, 0, id, REUSEPORT_CID_OCTETS);

	if (length < 0)
		fail(-length, "cannot generate a connection ID");
}

/* As the library makes them, for the program of our own that decrypts each: its key is random and
 * stands in its data. */
static void make_encrypted_id(const struct quic_lb_config *config, unsigned owner, uint8_t *id)
{
	uint8_t server_id[QUIC_SERVER_ID_LENGTH], nonce[QUIC_NONCE_LENGTH];

	quic_server_id(0, (uint16_t)owner, server_id);
	random_octets(nonce, sizeof(nonce));
	quic_lb_encode(config, server_id, nonce, 0, id);
}

static void make_head(struct datagrams *datagrams, const struct group *group, size_t i)
{
	unsigned owner = i % group->n_sockets;
	uint8_t *head = datagrams->heads[i];

	datagrams->owners[i] = OWNER_UNKNOWN;
	if (datagrams->kind == DATAGRAM_INITIAL) {
		make_initial(head);
		return;
	}
	head[0] = SHORT_FIRST | (head[0] & 0x3f);
	if (datagrams->kind == DATAGRAM_SHORT)
		return;
	datagrams->owners[i] = (uint16_t)owner;
	if (datagrams->kind == DATAGRAM_COOKIE)
		make_cookie_id(group, owner, head + 1);
	else if (datagrams->kind == DATAGRAM_GENERATED && group->clients[0])
		make_generated_id(group, owner, head + 1);
	else if (datagrams->kind == DATAGRAM_GENERATED)
		make_encrypted_id(own_config(group), owner, head + 1);
}

static void put_number(uint8_t *head, uint32_t number)
{
	memcpy(head + NUMBER_OFFSET, &number, sizeof(number));
}

uint32_t datagram_number(const uint8_t *octets, size_t length)
{
	uint32_t number = UINT32_MAX;

	if (length >= HEAD_OCTETS)
		memcpy(&number, octets + NUMBER_OFFSET, sizeof(number));
	return number;
}

static void make_all(struct datagrams *datagrams, const struct group *group)
{
	random_octets(datagrams->heads, datagrams->n * HEAD_OCTETS);
	for (size_t i = 0; i < datagrams->n; i++) {
		make_head(datagrams, group, i);
		put_number(datagrams->heads[i], (uint32_t)i);
		datagrams->lengths[i] = (uint16_t)datagrams->octets;
	}
}

/* Each ID, or each socket's cookie, is a key of the SOCKHASH. */
static void add_to_sockhash(const struct datagrams *datagrams, const struct group *group)
{
	int map = bpf_object__find_map_fd_by_name(group->object, "socket_map");
	size_t n = datagrams->kind == DATAGRAM_COOKIE ? group->n_sockets : datagrams->n;

	for (size_t i = 0; i < n; i++) {
		uint64_t value = (uint64_t)group->sockets[datagrams->owners[i]];

		if (bpf_map_update_elem(map, datagrams->heads[i] + 1, &value, BPF_ANY) < 0)
			fail(errno, "cannot put connection ID %zu into the SOCKHASH", i);
	}
}

static void add_to_daemon(const struct datagrams *datagrams, const struct group *group)
{
	struct reuseport_cid *ids = calloc(datagrams->n, sizeof(*ids));
	int error;

	if (!ids)
		fail(ENOMEM, "cannot register connection IDs");
	for (unsigned owner = 0; owner < group->n_sockets; owner++) {
		unsigned worker;
		struct reuseport *client = group_client(group, owner, &worker);
		size_t n = 0;

		for (size_t i = owner; i < datagrams->n; i += group->n_sockets) {
			ids[n].length = REUSEPORT_CID_OCTETS;
			memcpy(ids[n++].id, datagrams->heads[i] + 1, REUSEPORT_CID_OCTETS);
		}
		error = reuseport_cid_add(client, worker, 0, ids, n, TIMEOUT_MSEC);
		if (error < 0)
			fail(-error, "cannot register %zu connection IDs: %s", n,
				reuseport_error(client));
	}
	free(ids);
}

static void allocate(struct datagrams *datagrams)
{
	datagrams->heads = calloc(datagrams->n, sizeof(*datagrams->heads));
	datagrams->lengths = calloc(datagrams->n, sizeof(*datagrams->lengths));
	datagrams->owners = calloc(datagrams->n, sizeof(*datagrams->owners));
	if (!datagrams->n || !datagrams->heads || !datagrams->lengths || !datagrams->owners)
		fail(ENOMEM, "no room for %zu datagrams", datagrams->n);
	for (size_t i = 0; i < datagrams->n; i++)
		datagrams->owners[i] = OWNER_UNKNOWN;
}

/* One datagram a line, in hexadecimal, at most 64 octets each; the program reads no further. */
static void read_file(struct datagrams *datagrams, const char *path)
{
	FILE *file = fopen(path, "re");
	char line[2 * HEAD_OCTETS + 3];
	size_t n = 0;

	if (!file)
		fail(errno, "cannot open %s", path);
	datagrams->n = 0;
	for (int c; (c = getc(file)) != EOF;)
		datagrams->n += c == '\n';
	rewind(file);
	allocate(datagrams);
	while (n < datagrams->n && fgets(line, sizeof(line), file)) {
		size_t length = 0;
		unsigned octet;

		while (length < HEAD_OCTETS && sscanf(line + 2 * length, "%2x", &octet) == 1)
			datagrams->heads[n][length++] = (uint8_t)octet;
		if (length == 0 || line[2 * length] != '\n')
			fail(EINVAL, "%s:%zu: not 1 to %d octets in hexadecimal", path, n + 1,
				HEAD_OCTETS);
		if (length < datagrams->octets) /* what the program does not read follows */
			length = datagrams->octets;
		datagrams->lengths[n++] = (uint16_t)length;
	}
	fclose(file);
}

static bool has_sockhash(const struct group *group)
{
	const struct bpf_map *map =
		group->object ? bpf_object__find_map_by_name(group->object, "socket_map") : NULL;

	return map && bpf_map__type(map) == BPF_MAP_TYPE_SOCKHASH;
}

void datagrams_open(struct datagrams *datagrams, const char *kind, struct group *group)
{
	size_t i;

	random_octets(datagrams->tail, sizeof(datagrams->tail));
	if (strncmp(kind, "file:", 5) == 0) {
		datagrams->kind = DATAGRAM_FILE;
		read_file(datagrams, kind + 5);
		return;
	}
	for (i = 0; i < sizeof(kinds) / sizeof(*kinds) && strcmp(kinds[i].name, kind) != 0; i++)
		;
	if (i == sizeof(kinds) / sizeof(*kinds))
		fail(EINVAL, "no kind of datagram is called %s", kind);
	datagrams->kind = kinds[i].kind;
	datagrams->fresh = kinds[i].fresh;
	datagrams->introduced = kinds[i].introduced;
	allocate(datagrams);
	make_all(datagrams, group);
	if (has_sockhash(group))
		add_to_sockhash(datagrams, group);
	else if (datagrams->kind == DATAGRAM_REGISTERED && group->clients[0])
		add_to_daemon(datagrams, group);
	else if (datagrams->kind == DATAGRAM_REGISTERED)
		fail(EINVAL, "no map and no daemon to register connection IDs with");
}

void datagrams_prepare(struct datagrams *datagrams, struct group *group)
{
	if (!datagrams->fresh)
		return;
	datagrams->first_source += (uint32_t)datagrams->n;
	make_all(datagrams, group);
}

struct datagrams datagrams_introductions(const struct datagrams *datagrams)
{
	struct datagrams introductions = {
		.kind = DATAGRAM_INITIAL,
		.n = datagrams->n,
		.octets = INITIAL_OCTETS,
		.first_source = datagrams->first_source,
	};

	allocate(&introductions);
	memcpy(introductions.tail, datagrams->tail, sizeof(introductions.tail));
	make_all(&introductions, &(struct group){.n_sockets = 1});
	return introductions;
}
