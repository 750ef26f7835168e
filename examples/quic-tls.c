/* SPDX-License-Identifier: BSD-2-Clause */
/* See quic-tls.h. */
#include <limits.h>
#include <string.h>

#include <gnutls/crypto.h>
#include <ngtcp2/ngtcp2_crypto_gnutls.h>

#include "examples/quic-common.h"
#include "examples/quic-tls.h"

/* QUIC has TLS 1.3 and nothing of its disguise as TLS 1.2 (RFC 9001 section 8.4). */
#define PRIORITY                                                              \
	"NORMAL:-VERS-ALL:+VERS-TLS1.3:-CIPHER-ALL:+AES-128-GCM:+AES-256-GCM" \
	":+CHACHA20-POLY1305:%DISABLE_TLS13_COMPAT_MODE"

#define PADDING_EXTENSION 65400 /* of no meaning, in the range for private use (RFC 8446 11) */
#define PADDING_OCTETS 1300

static int tls_init(struct tls *tls)
{
	int result = gnutls_certificate_allocate_credentials(&tls->credentials);

	if (result < 0)
		return result;
	return gnutls_priority_init(&tls->priority, PRIORITY, NULL);
}

static int never_seen(
	void *data, time_t expires, const gnutls_datum_t *key, const gnutls_datum_t *value)
{
	return 0;
}

/*
 * GnuTLS takes early data only with a memory of what it has taken, and none from before that memory
 * began: so a worker refuses the early data of tickets that are older than itself, and the client
 * sends it again after the handshake. An echo does not mind a replay, so this memory remembers
 * nothing; a server that does mind needs one that all workers share, or --no-early-data.
 */
static int init_anti_replay(struct tls *tls)
{
	int result = gnutls_anti_replay_init(&tls->anti_replay);

	if (result < 0)
		return result;
	gnutls_anti_replay_set_add_function(tls->anti_replay, never_seen);
	gnutls_anti_replay_set_window(tls->anti_replay, UINT_MAX); /* it never begins anew */
	return 0;
}

int tls_server_init(struct tls *tls, const char *cert, const char *key, const uint8_t *secret,
	size_t secret_size, bool early_data)
{
	int result = tls_init(tls);

	if (result < 0)
		return result;
	tls->early_data = early_data;
	result = init_anti_replay(tls);
	if (result < 0)
		return result;
	result = gnutls_certificate_set_x509_key_file(
		tls->credentials, cert, key, GNUTLS_X509_FMT_PEM);
	if (result < 0)
		return result;
	return gnutls_hmac_fast(GNUTLS_MAC_SHA512, secret, secret_size, "session tickets",
		strlen("session tickets"), tls->ticket_key);
}

int tls_client_init(struct tls *tls, bool early_data, bool large_hello)
{
	tls->early_data = early_data;
	tls->large_hello = large_hello;
	return tls_init(tls);
}

void tls_deinit(struct tls *tls)
{
	if (tls->credentials)
		gnutls_certificate_free_credentials(tls->credentials);
	if (tls->priority)
		gnutls_priority_deinit(tls->priority);
	if (tls->anti_replay)
		gnutls_anti_replay_deinit(tls->anti_replay);
	gnutls_memset(tls->ticket_key, 0, sizeof(tls->ticket_key));
}

static int session_init(const struct tls *tls, unsigned flags, ngtcp2_crypto_conn_ref *connection,
	gnutls_session_t *ret)
{
	gnutls_datum_t protocol = {(unsigned char *)QUIC_ALPN, strlen(QUIC_ALPN)};
	gnutls_session_t session;
	int result;

	result = gnutls_init(&session, flags | GNUTLS_NO_END_OF_EARLY_DATA |
					       (tls->early_data ? GNUTLS_ENABLE_EARLY_DATA : 0));
	if (result < 0)
		return result;
	result = gnutls_priority_set(session, tls->priority);
	if (result >= 0)
		result = gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE, tls->credentials);
	if (result >= 0)
		result = gnutls_alpn_set_protocols(session, &protocol, 1, GNUTLS_ALPN_MANDATORY);
	if (result < 0) {
		gnutls_deinit(session);
		return result;
	}
	gnutls_session_set_ptr(session, connection);
	*ret = session;
	return 0;
}

int tls_server_session(
	const struct tls *tls, ngtcp2_crypto_conn_ref *connection, gnutls_session_t *ret)
{
	gnutls_datum_t ticket_key = {(unsigned char *)tls->ticket_key, sizeof(tls->ticket_key)};
	gnutls_session_t session;
	int result;

	result =
		session_init(tls, GNUTLS_SERVER | GNUTLS_NO_AUTO_SEND_TICKET, connection, &session);
	if (result < 0)
		return result;
	result = gnutls_session_ticket_enable_server(session, &ticket_key);
	if (result < 0 || ngtcp2_crypto_gnutls_configure_server_session(session) != 0) {
		gnutls_deinit(session);
		return result < 0 ? result : GNUTLS_E_INTERNAL_ERROR;
	}
	/* QUIC wants this value and no other (RFC 9001 section 4.6.1). */
	if (tls->early_data) {
		gnutls_record_set_max_early_data_size(session, UINT32_MAX);
		gnutls_anti_replay_enable(session, tls->anti_replay);
	}
	*ret = session;
	return 0;
}

static int send_padding(gnutls_session_t session, gnutls_buffer_t data)
{
	static const uint8_t padding[PADDING_OCTETS];
	int result = gnutls_buffer_append_data(data, padding, sizeof(padding));

	return result < 0 ? result : PADDING_OCTETS;
}

static int receive_padding(gnutls_session_t session, const unsigned char *data, size_t size)
{
	return 0; /* no server sends it */
}

int tls_client_session(
	const struct tls *tls, ngtcp2_crypto_conn_ref *connection, gnutls_session_t *ret)
{
	gnutls_session_t session;
	int result;

	result = session_init(tls, GNUTLS_CLIENT, connection, &session);
	if (result < 0)
		return result;
	if (ngtcp2_crypto_gnutls_configure_client_session(session) != 0)
		result = GNUTLS_E_INTERNAL_ERROR;
	else if (tls->large_hello)
		result = gnutls_session_ext_register(session, "padding", PADDING_EXTENSION,
			GNUTLS_EXT_TLS, receive_padding, send_padding, NULL, NULL, NULL,
			GNUTLS_EXT_FLAG_TLS | GNUTLS_EXT_FLAG_CLIENT_HELLO);
	if (result < 0) {
		gnutls_deinit(session);
		return result;
	}
	*ret = session;
	return 0;
}
