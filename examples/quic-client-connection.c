/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * One connection of the example client: its sockets, its QUIC, its requests and what came of them.
 * What it is to do next, quic-client-script.c knows.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "common/util.h"
#include "examples/quic-client.h"

#define CID_OCTETS 8
#define FIRST_DCID_OCTETS 18
#define HELD_MAX 32
#define DATAGRAMS_AT_ONCE 32
#define REASONS_TOLD_MAX 20

static ngtcp2_conn *get_quic(ngtcp2_crypto_conn_ref *ref)
{
	return ((struct connection *)ref->user_data)->quic;
}

static struct account *account(struct connection *c)
{
	return &c->client->account;
}

/* Sockets */

static void close_socket(struct connection_socket *s)
{
	close_fd(&s->fd); /* which ends its registration with epoll */
}

/* Bound to this address and a port that the kernel chooses. */
static int open_socket(struct connection *c, struct connection_socket *ret, unsigned local)
{
	const struct options *options = &c->client->options;
	struct connection_socket s = {.connection = c};
	struct epoll_event event = {.events = EPOLLIN, .data.ptr = ret};
	const struct address *to = &options->server;

	s.fd = socket(to->any.sa_family, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	s.local.length = sizeof(s.local.storage);
	if (s.fd < 0 ||
		(options->n_local &&
			bind(s.fd, &options->local[local].any, options->local[local].length) < 0) ||
		connect(s.fd, &to->any, to->length) < 0 ||
		getsockname(s.fd, &s.local.any, &s.local.length) < 0 ||
		epoll_ctl(c->client->epoll_fd, EPOLL_CTL_ADD, s.fd, &event) < 0) {
		perror("quic-client: cannot open a socket");
		close_fd(&s.fd);
		return -1;
	}
	*ret = s;
	return 0;
}

/* epoll knows a socket by its place in the connection. */
static void move_socket(
	struct connection *c, struct connection_socket *to, struct connection_socket *from)
{
	struct epoll_event event = {.events = EPOLLIN, .data.ptr = to};

	close_socket(to);
	*to = *from;
	from->fd = -1;
	if (to->fd >= 0)
		epoll_ctl(c->client->epoll_fd, EPOLL_CTL_MOD, to->fd, &event);
}

static bool same_address(const struct address *a, const ngtcp2_addr *b)
{
	return a->length == b->addrlen && !memcmp(&a->storage, b->addr, a->length);
}

static void send_from(struct connection *c, int fd, const uint8_t *data, size_t length)
{
	while (send(fd, data, length, MSG_DONTWAIT) < 0) {
		if (errno == ECONNREFUSED)
			account(c)->refused++; /* an earlier one was */
		else if (errno != EINTR)
			break;
	}
}

bool connection_holds(const struct connection *c)
{
	const struct options *options = &c->client->options;

	return !c->released && c->datagrams_sent > 0 &&
	       (options->hold_second || options->delay_second_msec);
}

static void uncount_shaking(struct connection *c)
{
	if (c->counted_as_shaking)
		c->client->n_shaking--;
	c->counted_as_shaking = false;
}

static void hold(struct connection *c, const uint8_t *data, size_t length)
{
	const struct options *options = &c->client->options;
	struct held *held;

	if (!c->n_held) {
		c->hold_until = options->hold_second ? UINT64_MAX
						     : now_nsec() + options->delay_second_msec *
									    NGTCP2_MILLISECONDS;
		if (options->hold_second)
			c->line_reached = MAX(c->line_reached, 1U);
		uncount_shaking(c);
	}
	held = c->n_held < HELD_MAX ? malloc(sizeof(*held)) : NULL;
	if (!held)
		return; /* lost, like any datagram may be */
	held->next = NULL;
	held->length = length;
	memcpy(held->data, data, length);
	*c->held_end = held;
	c->held_end = &held->next;
	c->n_held++;
}

void connection_release(struct connection *c)
{
	struct held *held;

	c->released = true;
	c->hold_until = UINT64_MAX;
	while ((held = c->held)) {
		c->held = held->next;
		if (c->sockets[0].fd >= 0)
			send_from(c, c->sockets[0].fd, held->data, held->length);
		free(held);
	}
	c->held_end = &c->held;
	c->n_held = 0;
}

static void transmit(
	struct connection *c, const ngtcp2_path *path, const uint8_t *data, size_t length)
{
	if (connection_holds(c)) {
		hold(c, data, length);
		return;
	}
	for (size_t i = 0; i < ARRAY_SIZE(c->sockets); i++)
		if (c->sockets[i].fd >= 0 && same_address(&c->sockets[i].local, &path->local)) {
			send_from(c, c->sockets[i].fd, data, length);
			c->datagrams_sent++;
			return;
		}
}

/* Requests */

static int open_stream(struct connection *c, struct request *request)
{
	int result = ngtcp2_conn_open_bidi_stream(c->quic, &request->id, request);

	if (result == 0)
		account(c)->requests_sent++;
	return result;
}

int connection_request(struct connection *c)
{
	struct request *request = calloc(1, sizeof(*request));
	int result;

	if (!request)
		return NGTCP2_ERR_NOMEM;
	request->number = c->next_number;
	request->length = (size_t)snprintf(request->line, sizeof(request->line), "hello %u %llu\n",
		c->index, (unsigned long long)request->number);
	result = open_stream(c, request);
	if (result != 0) {
		free(request);
		return result;
	}
	c->next_number++;
	request->next = c->requests;
	c->requests = request;
	c->n_requests++;
	return 0;
}

static void count_worker(struct connection *c)
{
	struct client *client = c->client;
	struct worker *w;

	for (size_t i = 0; i < client->n_workers; i++)
		if (client->workers[i].pid == c->pid && client->workers[i].slot == c->slot) {
			client->workers[i].connections++;
			return;
		}
	w = realloc(client->workers, (client->n_workers + 1) * sizeof(*w));
	if (!w)
		return;
	client->workers = w;
	w[client->n_workers++] = (struct worker){c->slot, c->pid, 1};
}

static void check_answer(struct connection *c, struct request *request)
{
	int slot, pid, begin = 0;

	request->answered = true;
	c->n_requests--;
	c->step_answered++;
	request->answer[request->answer_length] = '\0';
	if (sscanf(request->answer, "%d %d %n", &slot, &pid, &begin) != 2 ||
		strcmp(request->answer + begin, request->line) != 0) {
		account(c)->wrong_answers++;
		return;
	}
	account(c)->answered++;
	if (!c->pid) {
		c->slot = slot;
		c->pid = pid;
		count_worker(c);
	} else if (c->slot != slot || c->pid != pid)
		account(c)->wrong_worker++;
}

static int receive_stream_data(ngtcp2_conn *quic, uint32_t flags, int64_t id, uint64_t offset,
	const uint8_t *data, size_t length, void *user_data, void *stream_user_data)
{
	struct connection *c = user_data;
	struct request *request = stream_user_data;
	size_t room;

	ngtcp2_conn_extend_max_stream_offset(quic, id, length);
	ngtcp2_conn_extend_max_offset(quic, length);
	if (!request || request->answered)
		return 0;
	room = sizeof(request->answer) - 1 - request->answer_length;
	if (length)
		memcpy(request->answer + request->answer_length, data, MIN(length, room));
	request->answer_length += MIN(length, room);
	if (flags & NGTCP2_STREAM_DATA_FLAG_FIN)
		check_answer(c, request);
	return 0;
}

static int stream_close(ngtcp2_conn *quic, uint32_t flags, int64_t id, uint64_t error,
	void *user_data, void *stream_user_data)
{
	struct connection *c = user_data;
	struct request *request = stream_user_data;

	if (!request)
		return 0;
	if (!request->answered) {
		account(c)->wrong_answers++;
		c->n_requests--;
	}
	for (struct request **i = &c->requests; *i; i = &(*i)->next)
		if (*i == request) {
			*i = request->next;
			break;
		}
	free(request);
	return 0;
}

/* The server would not read them so early: once more, when the handshake is done. */
static int early_data_rejected(ngtcp2_conn *quic, void *user_data)
{
	struct connection *c = user_data;

	account(c)->early_data_rejected++;
	for (struct request *r = c->requests; r; r = r->next) {
		r->id = -1;
		r->sent = r->answer_length = 0;
		account(c)->requests_sent--;
	}
	return 0;
}

/* Other callbacks */

static int handshake_completed(ngtcp2_conn *quic, void *user_data)
{
	struct connection *c = user_data;

	account(c)->handshakes_completed++;
	account(c)->resumed += gnutls_session_is_resumed(c->tls) != 0;
	uncount_shaking(c);
	c->state = RUNNING;
	if (!c->early_data)
		return 0;
	if (gnutls_session_get_flags(c->tls) & GNUTLS_SFLAGS_EARLY_DATA) {
		account(c)->early_data_accepted++;
		return 0;
	}
	return ngtcp2_conn_early_data_rejected(quic) == 0 ? 0 : NGTCP2_ERR_CALLBACK_FAILURE;
}

static int handshake_confirmed(ngtcp2_conn *quic, void *user_data)
{
	struct connection *c = user_data;

	c->confirmed = true;
	return 0;
}

static int new_connection_id(
	ngtcp2_conn *quic, ngtcp2_cid *cid, uint8_t *token, size_t length, void *user_data)
{
	cid->datalen = length;
	random_octets(cid->data, length);
	random_octets(token, NGTCP2_STATELESS_RESET_TOKENLEN);
	return 0;
}

static int receive_retry(ngtcp2_conn *quic, const ngtcp2_pkt_hd *header, void *user_data)
{
	struct connection *c = user_data;

	account(c)->retries++;
	return ngtcp2_crypto_recv_retry_cb(quic, header, user_data);
}

static int receive_version_negotiation(ngtcp2_conn *quic, const ngtcp2_pkt_hd *header,
	const uint32_t *versions, size_t n_versions, void *user_data)
{
	struct connection *c = user_data;

	account(c)->version_negotiations++;
	c->version = 0;
	for (size_t i = 0; i < n_versions; i++)
		if (versions[i] == NGTCP2_PROTO_VER_V1)
			c->version = versions[i];
	return 0;
}

static int receive_reset(
	ngtcp2_conn *quic, const ngtcp2_pkt_stateless_reset *reset, void *user_data)
{
	struct connection *c = user_data;
	ngtcp2_conn_stat stat;

	ngtcp2_conn_get_conn_stat(quic, &stat);
	account(c)->stateless_resets++;
	if (stat.pto_count == 0)
		account(c)->resets_before_probe++;
	c->reset = true;
	return 0;
}

static int path_validation(ngtcp2_conn *quic, uint32_t flags, const ngtcp2_path *path,
	ngtcp2_path_validation_result result, void *user_data)
{
	struct connection *c = user_data;

	if (!c->migrating || !same_address(&c->sockets[0].local, &path->local))
		return 0;
	c->migrating = false;
	if (result == NGTCP2_PATH_VALIDATION_RESULT_SUCCESS)
		account(c)->migrations_completed++;
	else
		account(c)->migrations_failed++;
	return 0;
}

static int receive_token(ngtcp2_conn *quic, const ngtcp2_vec *token, void *user_data)
{
	struct connection *c = user_data;

	if (c->client->options.save_session)
		session_keep_token(c, token->base, token->len);
	return 0;
}

static int receive_ticket(gnutls_session_t tls, unsigned type, unsigned when, unsigned incoming,
	const gnutls_datum_t *message)
{
	ngtcp2_crypto_conn_ref *ref = gnutls_session_get_ptr(tls);
	struct connection *c = ref->user_data;

	return c->client->options.save_session && incoming ? session_keep_ticket(c) : 0;
}

static const ngtcp2_callbacks callbacks = {
	.client_initial = ngtcp2_crypto_client_initial_cb,
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
	.handshake_completed = handshake_completed,
	.handshake_confirmed = handshake_confirmed,
	.recv_retry = receive_retry,
	.recv_version_negotiation = receive_version_negotiation,
	.recv_stateless_reset = receive_reset,
	.recv_stream_data = receive_stream_data,
	.stream_close = stream_close,
	.early_data_rejected = early_data_rejected,
	.path_validation = path_validation,
	.recv_new_token = receive_token,
};

/* Life */

/* All but what belongs to its place: index, script lines reached. */
static void clear(struct connection *c)
{
	timers_set(&c->client->timers, &c->timer, UINT64_MAX);
	uncount_shaking(c);
	close_socket(&c->sockets[0]);
	close_socket(&c->sockets[1]);
	ngtcp2_conn_del(c->quic);
	c->quic = NULL;
	if (c->tls)
		gnutls_deinit(c->tls);
	c->tls = NULL;
	while (c->requests) {
		struct request *next = c->requests->next;

		free(c->requests);
		c->requests = next;
	}
	while (c->held) {
		struct held *next = c->held->next;

		free(c->held);
		c->held = next;
	}
}

void connection_free(struct connection *c)
{
	clear(c);
}

static int start_tls(struct connection *c)
{
	struct client *client = c->client;
	const char *name = client->options.server_name;

	c->ref = (ngtcp2_crypto_conn_ref){get_quic, c};
	if (tls_client_session(&client->tls, &c->ref, &c->tls) < 0)
		return -1;
	if (name && gnutls_server_name_set(c->tls, GNUTLS_NAME_DNS, name, strlen(name)) < 0)
		return -1;
	gnutls_handshake_set_hook_function(
		c->tls, GNUTLS_HANDSHAKE_NEW_SESSION_TICKET, GNUTLS_HOOK_POST, receive_ticket);
	return 0;
}

static int start_quic(struct connection *c, uint32_t version)
{
	const struct options *options = &c->client->options;
	const struct session *session = session_of(c);
	ngtcp2_transport_params params, early;
	ngtcp2_cid dcid = {FIRST_DCID_OCTETS, {}}, scid = {CID_OCTETS, {}};
	ngtcp2_settings settings;
	ngtcp2_path path = address_path(&c->sockets[0].local, &options->server);

	common_settings(&settings);
	if (session)
		settings.token = (ngtcp2_vec){(uint8_t *)session->token, session->token_length};
	if (version != options->version)
		settings.original_version = options->version;
	common_transport_params(&params, options->timeout_sec * NGTCP2_SECONDS);
	random_octets(dcid.data, dcid.datalen);
	random_octets(scid.data, scid.datalen);
	if (ngtcp2_conn_client_new(&c->quic, &dcid, &scid, &path, version, &callbacks, &settings,
		    &params, NULL, c) != 0)
		return -1;
	ngtcp2_conn_set_tls_native_handle(c->quic, c->tls);
	if (session_resume(c, &early, &c->early_data) != 0)
		return -1;
	if (c->early_data)
		ngtcp2_conn_set_early_remote_transport_params(c->quic, &early);
	return 0;
}

void connection_start(struct connection *c, uint32_t version)
{
	struct client *client = c->client;
	unsigned index = c->index, reached = c->line_reached;
	bool again = version != 0;

	if (c->state == FINISHED)
		client->n_finished--;
	if (!again)
		account(c)->connections++;
	*c = (struct connection){
		.client = client,
		.index = index,
		.line_reached = reached,
		.state = SHAKING,
		.sockets = {{.fd = -1}, {.fd = -1}},
		.wake = UINT64_MAX,
		.hold_until = UINT64_MAX,
		.counted_as_shaking = true,
		.released = client->options.hold_second &&
			    (client->lines_read > 0 || client->input_ended),
	};
	c->held_end = &c->held;
	client->n_shaking++;
	if (open_socket(c, &c->sockets[0], 0) != 0 || start_tls(c) != 0 ||
		start_quic(c, again ? version : client->options.version) != 0)
		connection_lose(c, "cannot be set up");
}

static void finish(struct connection *c)
{
	clear(c);
	c->state = FINISHED;
	c->client->n_finished++;
}

void connection_lose(struct connection *c, const char *reason)
{
	struct account *a = account(c);

	if (c->state == SHAKING)
		a->handshakes_failed++;
	else
		a->connections_lost++;
	if (a->handshakes_failed + a->connections_lost <= REASONS_TOLD_MAX)
		fprintf(stderr, "quic-client: connection %u %s: %s\n", c->index,
			c->state == SHAKING ? "failed" : "was lost", reason);
	finish(c);
}

void connection_finish(struct connection *c)
{
	ngtcp2_connection_close_error reason;
	uint8_t packet[QUIC_PAYLOAD_MAX];
	ngtcp2_path_storage storage;
	ngtcp2_ssize n;

	ngtcp2_path_storage_zero(&storage);
	ngtcp2_connection_close_error_default(&reason);
	n = ngtcp2_conn_write_connection_close(
		c->quic, &storage.path, NULL, packet, sizeof(packet), &reason, now_nsec());
	if (n > 0)
		transmit(c, &storage.path, packet, (size_t)n);
	finish(c);
}

/* Moving */

void connection_rebind(struct connection *c)
{
	struct connection_socket s;
	ngtcp2_addr local;

	if (open_socket(c, &s, c->local) != 0)
		return;
	move_socket(c, &c->sockets[0], &s);
	local = (ngtcp2_addr){&c->sockets[0].local.any, c->sockets[0].local.length};
	ngtcp2_conn_set_local_addr(c->quic, &local);
	account(c)->rebindings++;
}

int connection_migrate(struct connection *c)
{
	const struct options *options = &c->client->options;
	unsigned local = options->n_local ? (c->local + 1) % options->n_local : 0;
	struct connection_socket s;
	ngtcp2_path path;
	int result;

	if (!c->confirmed)
		return 0;
	if (open_socket(c, &s, local) != 0)
		return -1;
	path = address_path(&s.local, &options->server);
	result = ngtcp2_conn_initiate_immediate_migration(c->quic, &path, now_nsec());
	if (result != 0) {
		close_socket(&s);
		return result == NGTCP2_ERR_CONN_ID_BLOCKED ? 0 : -1;
	}
	move_socket(c, &c->sockets[1], &c->sockets[0]);
	move_socket(c, &c->sockets[0], &s);
	c->local = local;
	c->migrating = true;
	return 1;
}

/* Packets */

static void handle_error(struct connection *c, int error)
{
	char text[96];

	if (error == NGTCP2_ERR_RECV_VERSION_NEGOTIATION && c->version) {
		uint32_t version = c->version;

		clear(c);
		connection_start(c, version);
		connection_proceed(c);
	} else if (c->reset) {
		connection_lose(c, "stateless reset");
	} else if (error == NGTCP2_ERR_DRAINING) {
		ngtcp2_connection_close_error reason;

		ngtcp2_conn_get_connection_close_error(c->quic, &reason);
		snprintf(text, sizeof(text), "closed by the server with error 0x%llx",
			(unsigned long long)reason.error_code);
		connection_lose(c, text);
	} else {
		connection_lose(c, ngtcp2_strerror(error));
	}
}

static struct request *next_to_send(struct connection *c)
{
	for (struct request *r = c->requests; r; r = r->next) {
		if (r->id < 0 && open_stream(c, r) != 0)
			continue;
		if (r->sent < r->length)
			return r;
	}
	return NULL;
}

static ngtcp2_ssize write_packet(
	struct connection *c, ngtcp2_path *path, uint8_t *packet, ngtcp2_tstamp now)
{
	bool blocked = false;

	for (;;) {
		struct request *r = blocked ? NULL : next_to_send(c);
		ngtcp2_vec rest = {};
		ngtcp2_ssize taken = -1, n;

		if (r)
			rest = (ngtcp2_vec){(uint8_t *)r->line + r->sent, r->length - r->sent};
		n = ngtcp2_conn_writev_stream(c->quic, path, NULL, packet, QUIC_PAYLOAD_MAX, &taken,
			r ? NGTCP2_WRITE_STREAM_FLAG_MORE | NGTCP2_WRITE_STREAM_FLAG_FIN : 0,
			r ? r->id : -1, &rest, r ? 1 : 0, now);
		if (r && taken > 0)
			r->sent += (size_t)taken;
		if (n == NGTCP2_ERR_STREAM_DATA_BLOCKED)
			blocked = true;
		else if (n == NGTCP2_ERR_STREAM_SHUT_WR || n == NGTCP2_ERR_STREAM_NOT_FOUND)
			r->sent = r->length;
		else if (n != NGTCP2_ERR_WRITE_MORE)
			return n;
	}
}

static void flush(struct connection *c)
{
	uint8_t packet[QUIC_PAYLOAD_MAX];
	ngtcp2_tstamp now = now_nsec(), when;
	ngtcp2_path_storage storage;

	ngtcp2_path_storage_zero(&storage);
	for (;;) {
		ngtcp2_ssize n = write_packet(c, &storage.path, packet, now);

		if (n < 0) {
			handle_error(c, (int)n);
			return;
		}
		if (n == 0)
			break;
		transmit(c, &storage.path, packet, (size_t)n);
	}
	ngtcp2_conn_update_pkt_tx_time(c->quic, now);
	when = MIN(MIN(ngtcp2_conn_get_expiry(c->quic), c->wake), c->hold_until);
	/* Later than now, so that one connection alone does not keep expire() busy. */
	timers_set(&c->client->timers, &c->timer, MAX(when, now + NGTCP2_MICROSECONDS));
}

void connection_proceed(struct connection *c)
{
	script_advance(c);
	if (c->quic)
		flush(c);
}

void connection_expire(struct connection *c)
{
	ngtcp2_tstamp now = now_nsec();
	int result = 0;

	if (now >= c->hold_until)
		connection_release(c);
	if (ngtcp2_conn_get_expiry(c->quic) <= now)
		result = ngtcp2_conn_handle_expiry(c->quic, now);
	if (result != 0)
		handle_error(c, result);
	else
		connection_proceed(c);
}

void connection_receive(struct connection *c, struct connection_socket *from)
{
	uint8_t data[QUIC_RECEIVE_MAX];

	for (unsigned i = 0; i < DATAGRAMS_AT_ONCE && from->fd >= 0; i++) {
		ngtcp2_path path = address_path(&from->local, &c->client->options.server);
		ssize_t n = recv(from->fd, data, sizeof(data), MSG_DONTWAIT);
		int result;

		if (n < 0 && errno == ECONNREFUSED) {
			account(c)->refused++;
			continue;
		}
		if (n < 0)
			break;
		result = ngtcp2_conn_read_pkt(c->quic, &path, NULL, data, (size_t)n, now_nsec());
		if (result != 0) {
			handle_error(c, result);
			return;
		}
	}
	connection_proceed(c);
}
