/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * TLS 1.3 for the QUIC examples, by GnuTLS. The one thing of interest for a group of workers is the
 * key of session tickets: it is derived from the secret that all workers of a listener share, so
 * that a client may resume, and send early data, at whichever worker it meets.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <gnutls/gnutls.h>
#include <ngtcp2/ngtcp2_crypto.h>

struct tls {
	gnutls_certificate_credentials_t credentials;
	gnutls_priority_t priority;
	uint8_t ticket_key[64]; /* what GnuTLS calls the master key; it derives keys by the hour */
	gnutls_anti_replay_t anti_replay;
	bool early_data;
	bool large_hello; /* the ClientHello takes two datagrams */
};

/* cert, key: PEM files. secret: shared by the workers. 0, or a GnuTLS error. */
int tls_server_init(struct tls *tls, const char *cert, const char *key, const uint8_t *secret,
	size_t secret_size, bool early_data);

/* The client believes every certificate: it is there to test where packets go. */
int tls_client_init(struct tls *tls, bool early_data, bool large_hello);

void tls_deinit(struct tls *tls);

/* A session for one connection; connection stays the caller's and outlives it. */
int tls_server_session(
	const struct tls *tls, ngtcp2_crypto_conn_ref *connection, gnutls_session_t *ret);
int tls_client_session(
	const struct tls *tls, ngtcp2_crypto_conn_ref *connection, gnutls_session_t *ret);
