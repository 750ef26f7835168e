/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Connection IDs and the secrets around them: what a QUIC server needs for each connection, made
 * locally, without the daemon, an allocation or a system call.
 *
 * Threads: a configuration never changes once it is published. A rotation publishes a new one by an
 * atomic pointer and keeps the old one until the context ends, since a thread may be in the middle
 * of reading it. So the memory of a context grows by one small object for each worker, listener and
 * rotation, and by nothing else.
 *
 * Nonces: four octets that the daemon makes unique to the grant and key, then a counter that only
 * goes up. The counters live in memory shared with forked children, because a server that forks its
 * processes after registering has every one of them make IDs for the same worker.
 */
#include <endian.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>

#include "bpf/quic_lb.h"
#include "client-lib/context.h"
#include "common/hmac.h"

#define NONCE_PREFIX_OCTETS 4
#define COUNTER_BITS_MAX 48

struct cid_config {
	struct cid_config *next_retired;
	struct quic_lb_config lb;
	uint8_t server_id[QUIC_LB_SERVER_ID_MAX];
	uint8_t nonce_prefix[NONCE_PREFIX_OCTETS];
	uint64_t first;      /* value of the counter when this configuration began */
	uint64_t shuffle[4]; /* for IDs in the clear: see shuffle() */
};

int cid_prepare(struct reuseport *r)
{
	/* Room for one where there is none: mmap(2) of nothing fails. */
	size_t n = MAX((size_t)r->n_workers * r->n_listeners, 1u);
	void *counters;

	r->cids = calloc(n, sizeof(*r->cids));
	if (!r->cids)
		return context_error(r, -ENOMEM, "not enough memory");
	counters = mmap(NULL, n * sizeof(*r->counters), PROT_READ | PROT_WRITE,
		MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (counters == MAP_FAILED)
		return context_error(r, -ENOMEM, "not enough memory");
	r->counters = counters;
	r->counters_size = n * sizeof(*r->counters);
	return 0;
}

static void free_config(struct cid_config *config)
{
	if (config)
		explicit_bzero(config, sizeof(*config));
	free(config);
}

void cid_clear(struct reuseport *r)
{
	if (r->cids)
		for (size_t i = 0; i < (size_t)r->n_workers * r->n_listeners; i++)
			free_config(atomic_load(&r->cids[i]));
	free(take_pointer(r->cids));
	while (r->retired) {
		struct cid_config *next = r->retired->next_retired;

		free_config(r->retired);
		r->retired = next;
	}
	if (r->counters)
		munmap((void *)r->counters, r->counters_size);
	r->counters = NULL;
}

int cid_configure(struct reuseport *r, unsigned worker, unsigned listener, uint8_t config_rotation,
	uint8_t server_id_length, uint8_t nonce_length, const uint8_t *server_id,
	const uint8_t *key, const uint8_t *nonce_prefix)
{
	uint8_t mode = r->listeners[listener].cid_mode;
	size_t i = (size_t)worker * r->n_listeners + listener;
	struct cid_config *config, *old;

	if (mode != PROTOCOL_CID_QUIC_LB && mode != PROTOCOL_CID_QUIC_LB_PLAIN)
		return context_error(r, -EPROTO,
			"reuseportd sent a connection-ID configuration for listener %s, which has none",
			r->listeners[listener].name);
	config = calloc(1, sizeof(*config));
	if (!config)
		return context_error(r, -ENOMEM, "not enough memory");
	if (quic_lb_configure(&config->lb, config_rotation, server_id_length, nonce_length,
		    mode == PROTOCOL_CID_QUIC_LB ? key : NULL) < 0) {
		free_config(config);
		return context_error(r, -EPROTO,
			"reuseportd sent an impossible connection-ID configuration for listener %s",
			r->listeners[listener].name);
	}
	if (!config->lb.encrypted && getrandom(config->shuffle, sizeof(config->shuffle), 0) !=
					     (ssize_t)sizeof(config->shuffle)) {
		free_config(config);
		return context_error(r, -EIO, "cannot get random octets");
	}
	memcpy(config->server_id, server_id, server_id_length);
	memcpy(config->nonce_prefix, nonce_prefix, sizeof(config->nonce_prefix));
	config->first = atomic_load(&r->counters[i]);

	old = atomic_exchange_explicit(&r->cids[i], config, memory_order_acq_rel);
	if (old) {
		old->next_retired = r->retired;
		r->retired = old;
	}
	return 0;
}

/* NULL with *ret_error for listeners whose connection IDs are not generated. */
static const struct cid_config *find_config(
	const struct reuseport *r, unsigned worker, unsigned listener, int *ret_error)
{
	const struct cid_config *config;

	if (worker >= r->n_workers || listener >= r->n_listeners) {
		*ret_error = -ERANGE;
		return NULL;
	}
	config = r->cids ? atomic_load_explicit(&r->cids[worker * r->n_listeners + listener],
				   memory_order_acquire)
			 : NULL;
	if (!config)
		*ret_error = -EOPNOTSUPP;
	return config;
}

_public_ int reuseport_cid_length(const struct reuseport *r, unsigned listener)
{
	const struct cid_config *config;
	int error;

	config = find_config(r, 0, listener, &error);
	return config ? (int)quic_lb_cid_length(&config->lb) : error;
}

/*
 * Connection IDs must not show which of them belong together (RFC 9000 section 5.1), and numbers
 * that count up do. Encryption hides that; in the clear, the counter goes through a permutation of
 * its range (a Feistel network over two halves of `half` bits) under numbers drawn at random for
 * each configuration. It keeps no secret, it only takes the order away.
 */
static uint64_t shuffle(const struct cid_config *config, uint64_t value, unsigned half)
{
	const uint64_t mask = (UINT64_C(1) << half) - 1;
	uint64_t left = value >> half, right = value & mask;

	for (size_t i = 0; i < ARRAY_SIZE(config->shuffle); i++) {
		uint64_t mixed = (right ^ config->shuffle[i]) * (config->shuffle[i] | 1), next;

		mixed = (mixed ^ mixed >> 29) * UINT64_C(0x9e3779b97f4a7c15);
		next = left ^ (mixed >> 37 & mask);
		left = right;
		right = next;
	}
	return left << half | right;
}

/* Puts prefix and counter into the nonce; -EOVERFLOW when the counter is through. */
static int next_nonce(const struct cid_config *config, _Atomic uint64_t *counter, uint8_t *nonce)
{
	unsigned length = config->lb.nonce_length;
	unsigned octets = MIN(length - NONCE_PREFIX_OCTETS, COUNTER_BITS_MAX / 8);
	uint64_t value;

	/* 64 bits never come round, so that past the end every further call fails as well. */
	value = atomic_fetch_add_explicit(counter, 1, memory_order_relaxed) - config->first;
	if (value >> (octets * 8))
		return -EOVERFLOW;
	if (!config->lb.encrypted)
		value = shuffle(config, value, octets * 4);
	memset(nonce, 0, length);
	memcpy(nonce, config->nonce_prefix, NONCE_PREFIX_OCTETS);
	for (unsigned i = 0; i < octets; i++, value >>= 8)
		nonce[length - 1 - i] = (uint8_t)value;
	return 0;
}

_public_ int reuseport_cid_generate(
	struct reuseport *r, unsigned worker, unsigned listener, uint8_t *cid, size_t size)
{
	uint8_t nonce[QUIC_LB_NONCE_MAX], made[QUIC_LB_CID_MAX];
	const struct cid_config *config;
	size_t length;
	int result;

	config = find_config(r, worker, listener, &result);
	if (!config)
		return result;
	if (size < quic_lb_cid_length(&config->lb))
		return -ENOBUFS;
	result = next_nonce(config, &r->counters[worker * r->n_listeners + listener], nonce);
	if (result < 0)
		return result;
	length = quic_lb_encode(
		&config->lb, config->server_id, nonce, QUIC_LB_SELF_ENCODE_LENGTH, made);
	memcpy(cid, made, length);
	return (int)length;
}

/* One batch, as large as a message takes. */
static int send_cids(struct reuseport *r, uint16_t type, unsigned worker, unsigned listener,
	const struct reuseport_cid *cids, size_t n_cids, uint64_t deadline)
{
	struct {
		struct protocol_cids fixed;
		struct protocol_cid cids[PROTOCOL_CIDS_MAX];
	} __attribute__((packed)) body;
	int result;

	memset(&body, 0, sizeof(body.fixed) + n_cids * sizeof(body.cids[0]));
	body.fixed.registration = htole32(r->registration);
	body.fixed.worker = htole32(worker);
	body.fixed.listener = htole16((uint16_t)listener);
	body.fixed.count = htole16((uint16_t)n_cids);
	for (size_t i = 0; i < n_cids; i++) {
		body.cids[i].length = cids[i].length;
		memcpy(body.cids[i].id, cids[i].id, cids[i].length);
	}
	result = connection_send(
		r, type, &body, sizeof(body.fixed) + n_cids * sizeof(body.cids[0]), -1, deadline);
	if (result < 0)
		return result;
	return connection_wait(r, PROTOCOL_OK, PROTOCOL_OK,
		type == PROTOCOL_CID_ADD ? "cannot register connection IDs"
					 : "cannot retire connection IDs",
		deadline);
}

static int change_cids(struct reuseport *r, uint16_t type, unsigned worker, unsigned listener,
	const struct reuseport_cid *cids, size_t n_cids, int timeout_msec)
{
	uint64_t deadline = deadline_after(timeout_msec);

	if (!r->registered || worker >= r->n_workers || listener >= r->n_listeners)
		return context_error(
			r, -ERANGE, "there is no worker %u with a listener %u", worker, listener);
	if (r->listeners[listener].cid_mode != PROTOCOL_CID_REGISTERED)
		return context_error(r, -EOPNOTSUPP,
			"listener %s does not take registered connection IDs",
			r->listeners[listener].name);
	for (size_t i = 0; i < n_cids; i++)
		if (cids[i].length < 1 || cids[i].length > REUSEPORT_CID_OCTETS)
			return context_error(r, -EINVAL,
				"connection ID %zu has %u octets, it can have 1 to %u", i,
				cids[i].length, REUSEPORT_CID_OCTETS);
	for (size_t i = 0; i < n_cids; i += PROTOCOL_CIDS_MAX) {
		int result = send_cids(r, type, worker, listener, cids + i,
			MIN(n_cids - i, PROTOCOL_CIDS_MAX), deadline);

		if (result < 0)
			return result;
	}
	return 0;
}

_public_ int reuseport_cid_add(struct reuseport *r, unsigned worker, unsigned listener,
	const struct reuseport_cid *cids, size_t n_cids, int timeout_msec)
{
	return change_cids(r, PROTOCOL_CID_ADD, worker, listener, cids, n_cids, timeout_msec);
}

_public_ int reuseport_cid_retire(struct reuseport *r, unsigned worker, unsigned listener,
	const struct reuseport_cid *cids, size_t n_cids, int timeout_msec)
{
	return change_cids(r, PROTOCOL_CID_RETIRE, worker, listener, cids, n_cids, timeout_msec);
}

static int find_secret(const struct reuseport *r, unsigned listener, const uint8_t **ret)
{
	if (listener >= r->n_listeners)
		return -ERANGE;
	if (r->fallback || r->listeners[listener].transport != PROTOCOL_QUIC)
		return -EOPNOTSUPP;
	*ret = r->listeners[listener].token_secret;
	return 0;
}

_public_ int reuseport_reset_token(const struct reuseport *r, unsigned listener, const uint8_t *cid,
	size_t cid_length, uint8_t token[REUSEPORT_TOKEN_OCTETS])
{
	uint8_t digest[SHA256_DIGEST_LENGTH];
	const uint8_t *secret;
	int result;

	result = find_secret(r, listener, &secret);
	if (result < 0)
		return result;
	if (cid_length < 1 || cid_length > REUSEPORT_CID_OCTETS)
		return -EINVAL;
	hmac_sha256(secret, REUSEPORT_SECRET_OCTETS, "reset", cid, cid_length, digest);
	memcpy(token, digest, REUSEPORT_TOKEN_OCTETS);
	explicit_bzero(digest, sizeof(digest));
	return 0;
}

_public_ int reuseport_token_secret(
	const struct reuseport *r, unsigned listener, uint8_t secret[REUSEPORT_SECRET_OCTETS])
{
	const uint8_t *shared;
	int result;

	result = find_secret(r, listener, &shared);
	if (result < 0)
		return result;
	hmac_sha256(shared, REUSEPORT_SECRET_OCTETS, "token", (const uint8_t *)"", 0, secret);
	return 0;
}
