/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Datagrams that belong to no connection of this process: a client's first one, one of a version
 * that we don't speak, one of a connection that is gone. Each is answered from the datagram alone,
 * without memory of it.
 *
 * A draining worker goes on accepting what reaches it. It is the kernel that sends it nothing new;
 * what comes all the same was chosen for it before the switch: a datagram that waited in the
 * socket, a handshake's second Initial, a client back from a Retry. To refuse it would break it.
 */
#include <string.h>

#include "common/util.h"
#include "examples/quic-server.h"

#define RETRY_TOKEN_LIFETIME (10 * NGTCP2_SECONDS)
#define TOKEN_LIFETIME (3600 * NGTCP2_SECONDS)
#define INITIAL_DATAGRAM_MIN 1200 /* RFC 9000 section 14.1 */

static void answer(struct server *server, const struct datagram *to, const uint8_t *packet,
	ngtcp2_ssize length)
{
	if (length > 0)
		udp_send(server, &to->local.any, &to->remote.any, to->remote.length, packet,
			(size_t)length);
}

static void send_version_negotiation(
	struct server *server, const struct datagram *datagram, const ngtcp2_version_cid *header)
{
	const uint32_t versions[] = {NGTCP2_PROTO_VER_V1};
	uint8_t packet[QUIC_PAYLOAD_MAX], random;
	ngtcp2_ssize n;

	if (datagram->length < INITIAL_DATAGRAM_MIN)
		return; /* RFC 9000 section 6.1 */
	random_octets(&random, sizeof(random));
	n = ngtcp2_pkt_write_version_negotiation(packet, sizeof(packet), random, header->scid,
		header->scidlen, header->dcid, header->dcidlen, versions, ARRAY_SIZE(versions));
	answer(server, datagram, packet, n);
	server->counters.version_negotiations_sent++;
}

/* The ID that a Retry gives the client names us, so that it comes back here. */
static void send_retry(
	struct server *server, const struct datagram *datagram, const ngtcp2_pkt_hd *header)
{
	uint8_t token[NGTCP2_CRYPTO_MAX_RETRY_TOKENLEN], packet[QUIC_PAYLOAD_MAX];
	ngtcp2_ssize n;
	ngtcp2_cid cid;

	if (ids_generate(server, &cid) != 0)
		return;
	n = ngtcp2_crypto_generate_retry_token(token, server->token_secret,
		sizeof(server->token_secret), header->version, &datagram->remote.any,
		datagram->remote.length, &cid, &header->dcid, wall_clock_nsec());
	if (n < 0)
		return;
	n = ngtcp2_crypto_write_retry(packet, sizeof(packet), header->version, &header->scid, &cid,
		&header->dcid, token, (size_t)n);
	answer(server, datagram, packet, n);
	server->counters.retries_sent++;
}

static void send_invalid_token(
	struct server *server, const struct datagram *datagram, const ngtcp2_pkt_hd *header)
{
	uint8_t packet[QUIC_PAYLOAD_MAX];

	answer(server, datagram, packet,
		ngtcp2_crypto_write_connection_close(packet, sizeof(packet), header->version,
			&header->scid, &header->dcid, NGTCP2_INVALID_TOKEN, NULL, 0));
}

/*
 * Whether the client showed that it is where it says (RFC 9000 section 8.1): 1 by a token of ours
 * or of another worker, 0 not, -1 by a Retry token that is none, which must end the connection.
 * *ret_original: the ID that the client began with, when the token is a Retry's.
 */
static int check_token(struct server *server, const struct datagram *datagram,
	const ngtcp2_pkt_hd *header, ngtcp2_cid *ret_original)
{
	const ngtcp2_vec *token = &header->token;

	if (!token->len)
		return 0;
	if (token->base[0] == NGTCP2_CRYPTO_TOKEN_MAGIC_RETRY)
		return ngtcp2_crypto_verify_retry_token(ret_original, token->base, token->len,
			       server->token_secret, sizeof(server->token_secret), header->version,
			       &datagram->remote.any, datagram->remote.length, &header->dcid,
			       RETRY_TOKEN_LIFETIME, wall_clock_nsec()) == 0
			       ? 1
			       : -1;
	return ngtcp2_crypto_verify_regular_token(token->base, token->len, server->token_secret,
		       sizeof(server->token_secret), &datagram->remote.any, datagram->remote.length,
		       TOKEN_LIFETIME, wall_clock_nsec()) == 0;
}

static void accept_initial(struct server *server, const struct datagram *datagram)
{
	ngtcp2_cid original = {};
	struct connection *connection;
	ngtcp2_pkt_hd header;
	int valid;

	if (ngtcp2_accept(&header, datagram->data, datagram->length) != 0)
		return; /* of a connection that is gone, or nothing at all */
	valid = check_token(server, datagram, &header, &original);
	if (valid < 0) {
		send_invalid_token(server, datagram, &header);
		return;
	}
	if (valid == 0 && server->require_retry) {
		send_retry(server, datagram, &header);
		return;
	}
	connection = connection_new(server, datagram, &header, original.datalen ? &original : NULL);
	if (connection)
		connection_receive(connection, datagram);
}

void accept_datagram(struct server *server, const struct datagram *datagram)
{
	struct connection *connection;
	ngtcp2_version_cid header;
	int result;

	if (!datagram->length)
		return;
	result = ngtcp2_pkt_decode_version_cid(
		&header, datagram->data, datagram->length, server->cid_length);
	if (result == NGTCP2_ERR_VERSION_NEGOTIATION) {
		send_version_negotiation(server, datagram, &header);
		return;
	}
	if (result != 0)
		return;
	connection = ids_find(server, header.dcid, header.dcidlen);
	if (connection)
		connection_receive(connection, datagram);
	else if (datagram->data[0] & 0x80) /* long header */
		accept_initial(server, datagram);
	else
		ids_send_reset(server, datagram, header.dcid);
}
