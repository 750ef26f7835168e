/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Where an ngtcp2 server meets libreuseport. Three things make packets arrive where they belong,
 * through scaling, restarts, new client ports and crashes:
 *
 * 1. Every connection ID that we hand out comes from reuseport_cid_generate(). It names our slot,
 *    and the program in the kernel reads it from every packet. In ngtcp2 that is the first source
 *    connection ID (ngtcp2_conn_server_new) and the callback get_new_connection_id; see
 *    connection_new() and new_connection_id() in quic-server-connection.c.
 * 2. The stateless reset token of an ID comes from reuseport_reset_token(), which gives the same at
 *    every worker: when we die, whoever gets the packets of our connections can end them at once.
 * 3. What we seal for clients to bring back (Retry and NEW_TOKEN tokens, session tickets) is sealed
 *    with keys from reuseport_token_secret(), since they bring it to any worker.
 *
 * Where the listener has ConnectionID=registered, IDs may be of any kind, and the daemon is told of
 * each: reuseport_cid_add() before the packet that gives it to the client, reuseport_cid_retire()
 * when the client has given it back; both in batches.
 *
 * A server that is not started under the daemon (LISTEN_FDS) makes random ones of the same size.
 *
 * The table of IDs is the other half: which connection of this process a packet is for.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/util.h"
#include "examples/quic-server.h"

#define FALLBACK_CID_OCTETS 17
#define ANNOUNCE_TIMEOUT_MSEC 10000

/* RFC 9000 section 10.3: 5 octets of random at least, and the token. */
#define RESET_MIN (NGTCP2_MIN_STATELESS_RESET_RANDLEN + NGTCP2_STATELESS_RESET_TOKENLEN)
#define RESET_MAX 42

void ids_init(struct server *server, unsigned foreign)
{
	int length = reuseport_cid_length(server->reuseport, server->listener);

	random_octets(&server->ids.seed, sizeof(server->ids.seed));
	server->generated_ids = length > 0 && !foreign;
	server->registered_ids = reuseport_listener_cid_mode(server->reuseport, server->listener) ==
				 REUSEPORT_CID_REGISTERED;
	server->cid_length = foreign ? foreign : length > 0 ? (size_t)length : FALLBACK_CID_OCTETS;
	if (reuseport_token_secret(server->reuseport, server->listener, server->token_secret) == 0)
		return;
	random_octets(server->token_secret, sizeof(server->token_secret));
	random_octets(server->reset_secret, sizeof(server->reset_secret));
}

int ids_generate(struct server *server, ngtcp2_cid *cid)
{
	int length;

	if (!server->generated_ids) {
		cid->datalen = server->cid_length;
		random_octets(cid->data, cid->datalen);
		return 0;
	}
	length = reuseport_cid_generate(
		server->reuseport, 0, server->listener, cid->data, sizeof(cid->data));
	if (length < 0) {
		fprintf(stderr, "quic-server: cannot make a connection ID: %s\n",
			strerror(-length));
		return -1;
	}
	cid->datalen = (size_t)length;
	return 0;
}

static void put(struct batch *batch, const ngtcp2_cid *cid)
{
	if (batch->n == batch->room) {
		size_t room = batch->room ? 2 * batch->room : 64;
		struct reuseport_cid *cids = realloc(batch->cids, room * sizeof(*cids));

		if (!cids)
			return;
		batch->cids = cids;
		batch->room = room;
	}
	batch->cids[batch->n].length = (uint8_t)cid->datalen;
	memcpy(batch->cids[batch->n++].id, cid->data, cid->datalen);
}

int ids_issue(
	struct server *server, ngtcp2_cid *cid, struct connection *connection, struct id **list)
{
	if (ids_generate(server, cid) != 0 || ids_add(server, cid, connection, list) != 0)
		return -1;
	(*list)->ours = true;
	if (server->registered_ids)
		put(&server->added, cid);
	return 0;
}

static void announce(struct server *server, struct batch *batch,
	int (*tell)(
		struct reuseport *, unsigned, unsigned, const struct reuseport_cid *, size_t, int))
{
	if (!batch->n)
		return;
	if (tell(server->reuseport, 0, server->listener, batch->cids, batch->n,
		    ANNOUNCE_TIMEOUT_MSEC) < 0)
		fprintf(stderr, "quic-server: %s\n", reuseport_error(server->reuseport));
	batch->n = 0;
}

void ids_announce(struct server *server)
{
	announce(server, &server->added, reuseport_cid_add);
	announce(server, &server->retired, reuseport_cid_retire);
}

int ids_reset_token(struct server *server, const uint8_t *cid, size_t length, uint8_t *token)
{
	int result = reuseport_reset_token(server->reuseport, server->listener, cid, length, token);
	ngtcp2_cid copy;

	if (result != -EOPNOTSUPP)
		return result;
	ngtcp2_cid_init(&copy, cid, length);
	return ngtcp2_crypto_generate_stateless_reset_token(
		token, server->reset_secret, sizeof(server->reset_secret), &copy);
}

/*
 * The reset looks like any packet with a short header, and is smaller than the one it answers, so
 * that two endpoints that know nothing of each other do not go on for ever (section 10.3.3).
 */
void ids_send_reset(struct server *server, const struct datagram *datagram, const uint8_t *cid)
{
	uint8_t token[NGTCP2_STATELESS_RESET_TOKENLEN], random[RESET_MAX], packet[RESET_MAX];
	size_t length = MIN(datagram->length - 1, (size_t)RESET_MAX);
	ngtcp2_ssize n;

	if (length < RESET_MIN || ids_reset_token(server, cid, server->cid_length, token) != 0)
		return;
	random_octets(random, sizeof(random));
	n = ngtcp2_pkt_write_stateless_reset(
		packet, sizeof(packet), token, random, length - sizeof(token));
	if (n < 0)
		return;
	udp_send(server, &datagram->local.any, &datagram->remote.any, datagram->remote.length,
		packet, (size_t)n);
	server->counters.resets_sent++;
}

/* Clients choose the first ID: a seed that they don't know keeps them from choosing one bucket. */
static size_t bucket_of(const struct ids *ids, const uint8_t *cid, size_t length)
{
	uint64_t hash = ids->seed ^ length, word;

	for (size_t i = 0; i < length; i += sizeof(word)) {
		word = 0;
		memcpy(&word, cid + i, MIN(sizeof(word), length - i));
		hash = (hash ^ word) * UINT64_C(0x9e3779b97f4a7c15);
		hash ^= hash >> 29 ^ ids->seed << 7;
	}
	return hash & (ids->n_buckets - 1);
}

static int grow(struct ids *ids)
{
	struct ids larger = {
		.n = ids->n,
		.n_buckets = ids->n_buckets ? 2 * ids->n_buckets : 1024,
		.seed = ids->seed,
	};

	larger.buckets = calloc(larger.n_buckets, sizeof(struct id *));
	if (!larger.buckets)
		return -ENOMEM;
	for (size_t i = 0; i < ids->n_buckets; i++)
		for (struct id *id = ids->buckets[i], *next; id; id = next) {
			size_t bucket = bucket_of(&larger, id->cid.data, id->cid.datalen);

			next = id->next_in_bucket;
			id->next_in_bucket = larger.buckets[bucket];
			larger.buckets[bucket] = id;
		}
	free(ids->buckets);
	*ids = larger;
	return 0;
}

struct connection *ids_find(const struct server *server, const uint8_t *cid, size_t length)
{
	const struct ids *ids = &server->ids;

	if (!ids->n_buckets)
		return NULL;
	for (struct id *id = ids->buckets[bucket_of(ids, cid, length)]; id; id = id->next_in_bucket)
		if (id->cid.datalen == length && !memcmp(id->cid.data, cid, length))
			return id->connection;
	return NULL;
}

int ids_add(struct server *server, const ngtcp2_cid *cid, struct connection *connection,
	struct id **list)
{
	struct ids *ids = &server->ids;
	struct id *id;
	size_t bucket;

	if (ids->n >= ids->n_buckets && grow(ids) < 0)
		return -ENOMEM;
	id = malloc(sizeof(*id));
	if (!id)
		return -ENOMEM;
	bucket = bucket_of(ids, cid->data, cid->datalen);
	*id = (struct id){
		.cid = *cid,
		.connection = connection,
		.next_in_bucket = ids->buckets[bucket],
		.next_of_connection = *list,
	};
	ids->buckets[bucket] = id;
	ids->n++;
	*list = id;
	return 0;
}

void ids_remove(struct server *server, const ngtcp2_cid *cid, struct id **list)
{
	struct ids *ids = &server->ids;
	struct id *id;

	while (*list && !ngtcp2_cid_eq(&(*list)->cid, cid))
		list = &(*list)->next_of_connection;
	id = *list;
	if (!id)
		return;
	*list = id->next_of_connection;
	if (server->registered_ids && id->ours)
		put(&server->retired, cid);
	for (struct id **i = &ids->buckets[bucket_of(ids, cid->data, cid->datalen)]; *i;
		i = &(*i)->next_in_bucket)
		if (*i == id) {
			*i = id->next_in_bucket;
			break;
		}
	ids->n--;
	free(id);
}

void ids_deinit(struct server *server)
{
	free(server->ids.buckets);
	free(server->added.cids);
	free(server->retired.cids);
	explicit_bzero(server->token_secret, sizeof(server->token_secret));
	explicit_bzero(server->reset_secret, sizeof(server->reset_secret));
}
