/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * One connection, from its first Initial to the end of its closing period, and its requests: a line
 * on a bidirectional stream, answered by "SLOT PID LINE" on the same.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/util.h"
#include "examples/quic-server.h"

enum state {
	OPEN,
	CLOSING,  /* we said so: packets are answered with the same once more */
	DRAINING, /* the peer said so: silence */
	DEAD,     /* to be freed by connections_flush() */
};

struct stream {
	int64_t id;
	size_t length; /* of the line so far */
	char line[QUIC_LINE_MAX];
	char answer[QUIC_LINE_MAX + 32];
	size_t answer_length, sent;
	struct stream *previous, *next; /* of the connection */
	struct stream *next_pending;
	bool pending;
};

struct connection {
	struct server *server;
	struct connection *previous, *next, *next_changed;
	bool changed;
	enum state state;
	ngtcp2_conn *quic;
	gnutls_session_t tls;
	ngtcp2_crypto_conn_ref ref;
	struct id *ids;
	struct timer timer;
	struct stream *streams;
	struct stream *pending, **pending_end;
	bool early_data_seen;

	uint8_t close_packet[QUIC_PAYLOAD_MAX];
	size_t close_length;
	unsigned closing_received, closing_answered;
};

static ngtcp2_conn *get_quic(ngtcp2_crypto_conn_ref *ref)
{
	return ((struct connection *)ref->user_data)->quic;
}

static void set_changed(struct connection *c)
{
	if (c->changed)
		return;
	c->changed = true;
	c->next_changed = c->server->changed;
	c->server->changed = c;
}

/* Streams */

static int stream_open(ngtcp2_conn *quic, int64_t id, void *user_data)
{
	struct connection *c = user_data;
	struct stream *stream;

	if (!ngtcp2_is_bidi_stream(id))
		return 0;
	stream = calloc(1, sizeof(*stream));
	if (!stream)
		return NGTCP2_ERR_CALLBACK_FAILURE;
	stream->id = id;
	stream->next = c->streams;
	if (c->streams)
		c->streams->previous = stream;
	c->streams = stream;
	ngtcp2_conn_set_stream_user_data(quic, id, stream);
	return 0;
}

static void remove_pending(struct connection *c, struct stream *stream)
{
	for (struct stream **i = &c->pending; *i; i = &(*i)->next_pending)
		if (*i == stream) {
			*i = stream->next_pending;
			if (c->pending_end == &stream->next_pending)
				c->pending_end = i;
			break;
		}
	stream->pending = false;
}

static void free_stream(struct connection *c, struct stream *stream)
{
	if (stream->pending)
		remove_pending(c, stream);
	if (stream->previous)
		stream->previous->next = stream->next;
	else
		c->streams = stream->next;
	if (stream->next)
		stream->next->previous = stream->previous;
	free(stream);
}

static int stream_close(ngtcp2_conn *quic, uint32_t flags, int64_t id, uint64_t error,
	void *user_data, void *stream_user_data)
{
	struct connection *c = user_data;

	if (stream_user_data)
		free_stream(c, stream_user_data);
	if (ngtcp2_is_bidi_stream(id))
		ngtcp2_conn_extend_max_streams_bidi(quic, 1);
	return 0;
}

static void answer_stream(struct connection *c, struct stream *stream)
{
	stream->answer_length = (size_t)snprintf(stream->answer, sizeof(stream->answer),
		"%d %d %.*s\n", c->server->slot, (int)getpid(), (int)stream->length, stream->line);
	stream->pending = true;
	*c->pending_end = stream;
	c->pending_end = &stream->next_pending;
	c->server->counters.requests++;
}

static int receive_stream_data(ngtcp2_conn *quic, uint32_t flags, int64_t id, uint64_t offset,
	const uint8_t *data, size_t length, void *user_data, void *stream_user_data)
{
	struct connection *c = user_data;
	struct stream *stream = stream_user_data;
	const uint8_t *end = length ? memchr(data, '\n', length) : NULL;
	size_t line = end ? (size_t)(end - data) : length;

	ngtcp2_conn_extend_max_stream_offset(quic, id, length);
	ngtcp2_conn_extend_max_offset(quic, length);
	if (!stream || stream->answer_length)
		return 0;
	if (stream->length + line > sizeof(stream->line) - 1) {
		ngtcp2_conn_shutdown_stream(quic, id, 1);
		return 0;
	}
	if (line)
		memcpy(stream->line + stream->length, data, line);
	stream->length += line;
	if ((flags & NGTCP2_STREAM_DATA_FLAG_EARLY) && !c->early_data_seen) {
		c->early_data_seen = true;
		c->server->counters.early_data++;
	}
	if (end || (flags & NGTCP2_STREAM_DATA_FLAG_FIN))
		answer_stream(c, stream);
	return 0;
}

/* Other callbacks */

/*
 * ngtcp2 asks for the next connection ID that the client may use, on a new path for instance. This
 * is all that a server on ngtcp2 has to write to be steered by reuseportd.
 */
static int new_connection_id(
	ngtcp2_conn *quic, ngtcp2_cid *cid, uint8_t *token, size_t length, void *user_data)
{
	struct connection *c = user_data;

	if (ids_issue(c->server, cid, c, &c->ids) != 0 || cid->datalen != length ||
		ids_reset_token(c->server, cid->data, cid->datalen, token) != 0)
		return NGTCP2_ERR_CALLBACK_FAILURE;
	return 0;
}

static int remove_connection_id(ngtcp2_conn *quic, const ngtcp2_cid *cid, void *user_data)
{
	struct connection *c = user_data;

	ids_remove(c->server, cid, &c->ids);
	return 0;
}

static int handshake_completed(ngtcp2_conn *quic, void *user_data)
{
	struct connection *c = user_data;
	const ngtcp2_path *path = ngtcp2_conn_get_path(quic);
	uint8_t token[NGTCP2_CRYPTO_MAX_REGULAR_TOKENLEN];
	ngtcp2_ssize n;

	c->server->counters.handshakes++;
	if (gnutls_session_ticket_send(c->tls, 1, 0) != 0)
		return NGTCP2_ERR_CALLBACK_FAILURE;
	n = ngtcp2_crypto_generate_regular_token(token, c->server->token_secret,
		sizeof(c->server->token_secret), path->remote.addr, path->remote.addrlen,
		wall_clock_nsec());
	if (n < 0 || ngtcp2_conn_submit_new_token(quic, token, (size_t)n) != 0)
		return NGTCP2_ERR_CALLBACK_FAILURE;
	return 0;
}

static int path_validation(ngtcp2_conn *quic, uint32_t flags, const ngtcp2_path *path,
	ngtcp2_path_validation_result result, void *user_data)
{
	struct connection *c = user_data;

	if (result == NGTCP2_PATH_VALIDATION_RESULT_SUCCESS)
		c->server->counters.path_changes++;
	return 0;
}

static const ngtcp2_callbacks callbacks = {
	.recv_client_initial = ngtcp2_crypto_recv_client_initial_cb,
	.recv_crypto_data = ngtcp2_crypto_recv_crypto_data_cb,
	.encrypt = ngtcp2_crypto_encrypt_cb,
	.decrypt = ngtcp2_crypto_decrypt_cb,
	.hp_mask = ngtcp2_crypto_hp_mask_cb,
	.update_key = ngtcp2_crypto_update_key_cb,
	.delete_crypto_aead_ctx = ngtcp2_crypto_delete_crypto_aead_ctx_cb,
	.delete_crypto_cipher_ctx = ngtcp2_crypto_delete_crypto_cipher_ctx_cb,
	.get_path_challenge_data = ngtcp2_crypto_get_path_challenge_data_cb,
	.version_negotiation = ngtcp2_crypto_version_negotiation_cb,
	.rand = random_callback,
	.get_new_connection_id = new_connection_id,
	.remove_connection_id = remove_connection_id,
	.handshake_completed = handshake_completed,
	.stream_open = stream_open,
	.stream_close = stream_close,
	.recv_stream_data = receive_stream_data,
	.path_validation = path_validation,
};

/* Life */

static void free_connection(struct connection *c)
{
	struct server *server = c->server;

	while (c->ids)
		ids_remove(server, &c->ids->cid, &c->ids);
	timers_set(&server->timers, &c->timer, UINT64_MAX);
	ngtcp2_conn_del(c->quic);
	if (c->tls)
		gnutls_deinit(c->tls);
	while (c->streams)
		free_stream(c, c->streams);
	if (c->previous)
		c->previous->next = c->next;
	else
		server->connections = c->next;
	if (c->next)
		c->next->previous = c->previous;
	server->n_connections--;
	free(c);
}

static int start_quic(struct connection *c, const struct datagram *datagram,
	const ngtcp2_pkt_hd *header, const ngtcp2_cid *original)
{
	struct server *server = c->server;
	ngtcp2_path path = address_path(&datagram->local, &datagram->remote);
	ngtcp2_transport_params params;
	ngtcp2_settings settings;
	ngtcp2_cid cid;

	common_settings(&settings);
	settings.token = header->token;
	common_transport_params(&params, server->idle_timeout);
	params.original_dcid = original ? *original : header->dcid;
	if (original) {
		params.retry_scid = header->dcid;
		params.retry_scid_present = 1;
	}
	/* Packets come by the client's own choice of an ID until it has seen ours. */
	if (ids_add(server, &header->dcid, c, &c->ids) != 0 ||
		ids_issue(server, &cid, c, &c->ids) != 0 ||
		ids_reset_token(server, cid.data, cid.datalen, params.stateless_reset_token) != 0)
		return -1;
	params.stateless_reset_token_present = 1;
	if (ngtcp2_conn_server_new(&c->quic, &header->scid, &cid, &path, header->version,
		    &callbacks, &settings, &params, NULL, c) != 0)
		return -1;
	c->ref = (ngtcp2_crypto_conn_ref){get_quic, c};
	if (tls_server_session(&server->tls, &c->ref, &c->tls) < 0)
		return -1;
	ngtcp2_conn_set_tls_native_handle(c->quic, c->tls);
	return 0;
}

struct connection *connection_new(struct server *server, const struct datagram *datagram,
	const ngtcp2_pkt_hd *header, const ngtcp2_cid *original)
{
	struct connection *c = calloc(1, sizeof(*c));

	if (!c)
		return NULL;
	c->server = server;
	c->pending_end = &c->pending;
	c->next = server->connections;
	if (c->next)
		c->next->previous = c;
	server->connections = c;
	server->n_connections++;
	if (start_quic(c, datagram, header, original) != 0) {
		free_connection(c);
		return NULL;
	}
	server->counters.connections++;
	return c;
}

static void set_dead(struct connection *c)
{
	c->state = DEAD;
	set_changed(c);
}

/* Closing and draining last three probe timeouts (RFC 9000 section 10.2). */
static void linger(struct connection *c, enum state state)
{
	c->state = state;
	timers_set(&c->server->timers, &c->timer, now_nsec() + 3 * ngtcp2_conn_get_pto(c->quic));
}

static void send_close(struct connection *c)
{
	const ngtcp2_path *path = ngtcp2_conn_get_path(c->quic);

	udp_send(c->server, path->local.addr, path->remote.addr, path->remote.addrlen,
		c->close_packet, c->close_length);
}

static void close_connection(struct connection *c, ngtcp2_connection_close_error *reason)
{
	ngtcp2_ssize n = ngtcp2_conn_write_connection_close(
		c->quic, NULL, NULL, c->close_packet, sizeof(c->close_packet), reason, now_nsec());

	if (n <= 0) {
		set_dead(c);
		return;
	}
	c->close_length = (size_t)n;
	send_close(c);
	linger(c, CLOSING);
}

static void close_for_error(struct connection *c, int error)
{
	ngtcp2_connection_close_error reason;

	ngtcp2_connection_close_error_default(&reason);
	if (error == NGTCP2_ERR_CRYPTO)
		ngtcp2_connection_close_error_set_transport_error_tls_alert(
			&reason, ngtcp2_conn_get_tls_alert(c->quic), NULL, 0);
	else
		ngtcp2_connection_close_error_set_transport_error_liberr(&reason, error, NULL, 0);
	close_connection(c, &reason);
}

/* Packets in and out */

static void handle_result(struct connection *c, int result)
{
	switch (result) {
	case 0:
		set_changed(c);
		break;
	case NGTCP2_ERR_DRAINING:
		linger(c, DRAINING);
		break;
	case NGTCP2_ERR_RETRY:
	case NGTCP2_ERR_DROP_CONN:
	case NGTCP2_ERR_IDLE_CLOSE:
	case NGTCP2_ERR_HANDSHAKE_TIMEOUT:
		set_dead(c);
		break;
	default:
		close_for_error(c, result);
	}
}

void connection_receive(struct connection *c, const struct datagram *datagram)
{
	ngtcp2_path path = address_path(&datagram->local, &datagram->remote);

	if (c->state == CLOSING && ++c->closing_received >= 1U << c->closing_answered) {
		c->closing_answered++; /* ever more rarely: section 10.2.1 */
		send_close(c);
	}
	if (c->state == OPEN)
		handle_result(c, ngtcp2_conn_read_pkt(c->quic, &path, &datagram->info,
					 datagram->data, datagram->length, now_nsec()));
}

static void advance(struct connection *c, struct stream *stream, ngtcp2_ssize n)
{
	if (n < 0)
		return;
	stream->sent += (size_t)n;
	if (stream->sent == stream->answer_length)
		remove_pending(c, stream);
}

/* One packet with as many answers as go into it. What ngtcp2_conn_writev_stream() returns. */
static ngtcp2_ssize write_packet(
	struct connection *c, ngtcp2_path *path, uint8_t *packet, ngtcp2_tstamp now)
{
	ngtcp2_pkt_info info = {};
	bool blocked = false;

	for (;;) {
		struct stream *stream = blocked ? NULL : c->pending;
		ngtcp2_vec rest = {};
		ngtcp2_ssize taken = -1, n;

		if (stream)
			rest = (ngtcp2_vec){(uint8_t *)stream->answer + stream->sent,
				stream->answer_length - stream->sent};
		n = ngtcp2_conn_writev_stream(c->quic, path, &info, packet, QUIC_PAYLOAD_MAX,
			&taken,
			stream ? NGTCP2_WRITE_STREAM_FLAG_MORE | NGTCP2_WRITE_STREAM_FLAG_FIN : 0,
			stream ? stream->id : -1, &rest, stream ? 1 : 0, now);
		if (stream)
			advance(c, stream, taken);
		if (n == NGTCP2_ERR_STREAM_DATA_BLOCKED)
			blocked = true;
		else if (n == NGTCP2_ERR_STREAM_SHUT_WR || n == NGTCP2_ERR_STREAM_NOT_FOUND)
			remove_pending(c, stream);
		else if (n != NGTCP2_ERR_WRITE_MORE)
			return n;
	}
}

static void flush(struct connection *c)
{
	uint8_t packet[QUIC_PAYLOAD_MAX];
	ngtcp2_tstamp now = now_nsec();
	ngtcp2_path_storage storage;
	ngtcp2_path *path = &storage.path;

	ngtcp2_path_storage_zero(&storage);
	for (;;) {
		ngtcp2_ssize n = write_packet(c, path, packet, now);

		if (n < 0) {
			close_for_error(c, (int)n);
			return;
		}
		if (n == 0)
			break;
		ids_announce(c->server); /* the packet may have new IDs in it */
		udp_send(c->server, path->local.addr, path->remote.addr, path->remote.addrlen,
			packet, (size_t)n);
	}
	ngtcp2_conn_update_pkt_tx_time(c->quic, now);
	timers_set(&c->server->timers, &c->timer, ngtcp2_conn_get_expiry(c->quic));
}

void connections_flush(struct server *server)
{
	ids_announce(server); /* of all connections at once */
	while (server->changed) {
		struct connection *c = server->changed;

		server->changed = c->next_changed;
		c->changed = false;
		if (c->state == OPEN)
			flush(c);
		if (c->state == DEAD && !c->changed)
			free_connection(c);
	}
}

void connections_expire(struct server *server)
{
	ngtcp2_tstamp now = now_nsec();
	struct timer *timer;

	while ((timer = timers_take_due(&server->timers, now))) {
		struct connection *c =
			(struct connection *)((char *)timer - offsetof(struct connection, timer));

		if (c->state == OPEN)
			handle_result(c, ngtcp2_conn_handle_expiry(c->quic, now));
		else
			set_dead(c);
	}
}

void connections_close(struct server *server)
{
	ngtcp2_connection_close_error reason;

	ngtcp2_connection_close_error_default(&reason);
	while (server->connections) {
		struct connection *c = server->connections;

		if (c->state == OPEN)
			close_connection(c, &reason);
		free_connection(c);
	}
	server->changed = NULL;
}
