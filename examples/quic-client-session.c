/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Session tickets and address-validation tokens from one run to the next: a line a connection, with
 * the ticket, the server's transport parameters and the token in hexadecimal.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/util.h"
#include "examples/quic-client.h"

#define HEX_MAX (2 * SESSION_OCTETS_MAX)

static int from_hex(const char *text, uint8_t *ret, size_t size, size_t *ret_length)
{
	size_t n = strlen(text) / 2;

	if (strlen(text) % 2 || n > size)
		return -EINVAL;
	for (size_t i = 0; i < n; i++)
		if (sscanf(text + 2 * i, "%2hhx", &ret[i]) != 1)
			return -EINVAL;
	*ret_length = n;
	return 0;
}

static int parse_session(struct session *ret, char *line)
{
	char *ticket = strtok(line, " \n"), *params = strtok(NULL, " \n"),
	     *token = strtok(NULL, " \n");

	if (!ticket || !params || !token)
		return -EINVAL;
	ret->ticket = malloc(strlen(ticket) / 2 + 1);
	if (!ret->ticket)
		return -ENOMEM;
	if (from_hex(ticket, ret->ticket, strlen(ticket) / 2, &ret->ticket_length) < 0 ||
		from_hex(params, ret->params, sizeof(ret->params), &ret->params_length) < 0 ||
		from_hex(token, ret->token, sizeof(ret->token), &ret->token_length) < 0)
		return -EINVAL;
	return 0;
}

int sessions_load(struct client *client, const char *path)
{
	_cleanup_free_ char *line = NULL;
	FILE *file = fopen(path, "re");
	size_t room = 0;
	int result = 0;

	if (!file) {
		fprintf(stderr, "quic-client: cannot read %s: %s\n", path, strerror(errno));
		return -errno;
	}
	while (result == 0 && client->n_sessions < client->options.connections &&
		getline(&line, &room, file) > 0)
		result = parse_session(&client->sessions[client->n_sessions++], line);
	fclose(file);
	if (result == 0 && !client->n_sessions)
		result = -ENODATA;
	if (result < 0)
		fprintf(stderr, "quic-client: %s has no sessions that --save-session wrote\n",
			path);
	return result;
}

static void write_hex(FILE *file, const uint8_t *data, size_t length, char end)
{
	for (size_t i = 0; i < length; i++)
		fprintf(file, "%02x", data[i]);
	fputc(end, file);
}

int sessions_save(struct client *client, const char *path)
{
	FILE *file = fopen(path, "we");

	if (!file) {
		fprintf(stderr, "quic-client: cannot write %s: %s\n", path, strerror(errno));
		return -errno;
	}
	for (unsigned i = 0; i < client->options.connections; i++) {
		const struct session *s = &client->sessions[i];

		if (!s->ticket_length || !s->token_length)
			continue;
		write_hex(file, s->ticket, s->ticket_length, ' ');
		write_hex(file, s->params, s->params_length, ' ');
		write_hex(file, s->token, s->token_length, '\n');
		client->account.sessions_saved++;
	}
	if (fclose(file) != 0) {
		fprintf(stderr, "quic-client: cannot write %s: %s\n", path, strerror(errno));
		return -errno;
	}
	return 0;
}

void sessions_free(struct client *client)
{
	for (unsigned i = 0; client->sessions && i < client->options.connections; i++)
		free(client->sessions[i].ticket);
	free(client->sessions);
}

int session_keep_ticket(struct connection *c)
{
	struct session *s = &c->client->sessions[c->index];
	gnutls_datum_t ticket;
	ngtcp2_ssize n;

	if (gnutls_session_get_data2(c->tls, &ticket) < 0)
		return -1;
	free(s->ticket);
	s->ticket = malloc(ticket.size);
	if (s->ticket) {
		memcpy(s->ticket, ticket.data, ticket.size);
		s->ticket_length = ticket.size;
	}
	gnutls_free(ticket.data);
	n = ngtcp2_encode_transport_params(s->params, sizeof(s->params),
		NGTCP2_TRANSPORT_PARAMS_TYPE_ENCRYPTED_EXTENSIONS,
		ngtcp2_conn_get_remote_transport_params(c->quic));
	if (!s->ticket || n < 0)
		return -1;
	s->params_length = (size_t)n;
	c->ticket_saved = true;
	return 0;
}

void session_keep_token(struct connection *c, const uint8_t *token, size_t length)
{
	struct session *s = &c->client->sessions[c->index];

	if (length > sizeof(s->token))
		return;
	memcpy(s->token, token, length);
	s->token_length = length;
	c->token_saved = true;
}

const struct session *session_of(const struct connection *c)
{
	const struct client *client = c->client;

	if (!client->options.resume || !client->n_sessions)
		return NULL;
	return &client->sessions[c->index % client->n_sessions];
}

int session_resume(struct connection *c, ngtcp2_transport_params *ret_params, bool *ret_early_data)
{
	const struct session *s = session_of(c);

	*ret_early_data = false;
	if (!s)
		return 0;
	if (gnutls_session_set_data(c->tls, s->ticket, s->ticket_length) < 0)
		return -1;
	if (!c->client->options.early_data)
		return 0;
	if (ngtcp2_decode_transport_params(ret_params,
		    NGTCP2_TRANSPORT_PARAMS_TYPE_ENCRYPTED_EXTENSIONS, s->params,
		    s->params_length) != 0)
		return -1;
	*ret_early_data = true;
	return 0;
}
