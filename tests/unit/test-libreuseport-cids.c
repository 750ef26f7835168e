/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Connection IDs: each names its worker and none comes twice, whatever thread or process makes it;
 * those that a server registers, stateless reset tokens, and keys that change.
 */
#include <pthread.h>
#include <sys/mman.h>

#include "bpf/quic_lb.h"
#include "tests/unit/libreuseport-fixture.h"

static void receive_cids(struct fake *d, uint16_t type, unsigned n, uint8_t first)
{
	const struct protocol_cid *cid;

	fake_receive(d, type);
	EXPECT(le32toh(d->message.cids.registration) == d->registration);
	EXPECT(le32toh(d->message.cids.worker) == 1);
	EXPECT(le16toh(d->message.cids.listener) == 1);
	EXPECT(le16toh(d->message.cids.count) == n);
	cid = (const void *)(d->message.body + sizeof(d->message.cids));
	EXPECT(cid->length == 8 && cid->id[0] == first);
}

static void serve_registered_ids(struct fake *d)
{
	fake_welcome(d);
	fake_register(d, 2);
	receive_cids(d, PROTOCOL_CID_ADD, 512, 0);
	fake_ok(d);
	receive_cids(d, PROTOCOL_CID_ADD, 512, 2); /* 512 / 256 */
	fake_ok(d);
	receive_cids(d, PROTOCOL_CID_ADD, 76, 4);
	fake_ok(d);
	receive_cids(d, PROTOCOL_CID_RETIRE, 2, 0);
	fake_ok(d);
	receive_cids(d, PROTOCOL_CID_ADD, 1, 0);
	fake_error(d, EEXIST, "connection ID 00 is worker 0's");
	fake_receive_end(d);
}

static void registered_ids_are_sent_in_batches(void **state)
{
	static struct reuseport_cid cids[1100];
	struct fixture *f = *state;
	uint8_t id[20];

	for (size_t i = 0; i < ARRAY_SIZE(cids); i++) {
		cids[i].length = 8;
		cids[i].id[0] = (uint8_t)(i >> 8);
		cids[i].id[1] = (uint8_t)i;
	}
	f->daemon.fake.transport = PROTOCOL_QUIC;
	f->daemon.fake.cid_mode = PROTOCOL_CID_REGISTERED;
	start(f, serve_registered_ids);
	CHECK(reuseport_cid_add(f->r, 0, 0, cids, 1, WAIT_MSEC), -ERANGE);
	CHECK(reuseport_register(f->r, "quic", NULL, 2, 0, WAIT_MSEC), 0);
	CHECK(reuseport_cid_add(f->r, 1, 1, cids, ARRAY_SIZE(cids), WAIT_MSEC), 0);
	CHECK(reuseport_cid_add(f->r, 1, 1, cids, 0, WAIT_MSEC), 0);
	CHECK(reuseport_cid_retire(f->r, 1, 1, cids, 2, WAIT_MSEC), 0);
	CHECK(reuseport_cid_add(f->r, 1, 1, cids, 1, WAIT_MSEC), -EEXIST);
	CHECK_ERROR("connection ID 00 is worker 0's");
	cids[1].length = 21;
	CHECK(reuseport_cid_add(f->r, 1, 1, cids, 2, WAIT_MSEC), -EINVAL);
	cids[1].length = 0;
	CHECK(reuseport_cid_add(f->r, 1, 1, cids, 2, WAIT_MSEC), -EINVAL);
	CHECK(reuseport_cid_add(f->r, 2, 1, cids, 1, WAIT_MSEC), -ERANGE);
	CHECK(reuseport_cid_add(f->r, 1, 2, cids, 1, WAIT_MSEC), -ERANGE);
	assert_int_equal(reuseport_cid_length(f->r, 0), -EOPNOTSUPP);
	assert_int_equal(reuseport_cid_generate(f->r, 0, 0, id, sizeof(id)), -EOPNOTSUPP);
}

static void the_reset_token_is_the_documented_hmac(void **state)
{
	/* HMAC-SHA256 with 32 octets 02 as the key, worked out with another implementation. */
	static const uint8_t reset[REUSEPORT_TOKEN_OCTETS] = {0x79, 0x2c, 0x64, 0xc1, 0x12, 0xcb,
		0x53, 0x20, 0x03, 0x8a, 0xcb, 0xb3, 0x17, 0xe5, 0x51, 0xd6};
	static const uint8_t secret[REUSEPORT_SECRET_OCTETS] = {0x8c, 0xd5, 0x4d, 0x6d, 0xcf, 0x0d,
		0x8f, 0x9e, 0xfc, 0xdb, 0x6f, 0x8c, 0x97, 0x10, 0x29, 0x40, 0x2f, 0xf1, 0x9a, 0xa3,
		0x10, 0x8f, 0xca, 0x9b, 0x9f, 0x76, 0x31, 0x1e, 0x7a, 0xaf, 0xa6, 0xa3};
	static const uint8_t cid[] = {1, 2, 3, 4, 5, 6, 7, 8};
	struct fixture *f = *state;
	uint8_t token[REUSEPORT_TOKEN_OCTETS], shared[REUSEPORT_SECRET_OCTETS];

	f->daemon.fake.transport = PROTOCOL_QUIC;
	f->daemon.fake.cid_mode = PROTOCOL_CID_OPAQUE;
	start(f, serve_one_worker);
	CHECK(reuseport_register(f->r, "quic", NULL, 1, 0, WAIT_MSEC), 0);
	CHECK(reuseport_reset_token(f->r, 1, cid, sizeof(cid), token), 0);
	assert_memory_equal(token, reset, sizeof(reset));
	CHECK(reuseport_token_secret(f->r, 1, shared), 0);
	assert_memory_equal(shared, secret, sizeof(secret));
	assert_int_equal(reuseport_reset_token(f->r, 1, cid, 0, token), -EINVAL);
	assert_int_equal(reuseport_reset_token(f->r, 1, cid, 21, token), -EINVAL);
	assert_int_equal(reuseport_reset_token(f->r, 2, cid, 8, token), -ERANGE);
	assert_int_equal(reuseport_token_secret(f->r, 2, shared), -ERANGE);
}

static void a_tcp_listener_has_no_tokens(void **state)
{
	struct fixture *f = *state;
	uint8_t octets[REUSEPORT_SECRET_OCTETS];

	start(f, serve_one_worker);
	CHECK(reuseport_register(f->r, "web", NULL, 1, 0, WAIT_MSEC), 0);
	assert_int_equal(reuseport_token_secret(f->r, 0, octets), -EOPNOTSUPP);
	assert_int_equal(reuseport_reset_token(f->r, 0, octets, 8, octets), -EOPNOTSUPP);
	assert_int_equal(reuseport_cid_length(f->r, 0), -EOPNOTSUPP);
	assert_int_equal(reuseport_cid_length(f->r, 2), -ERANGE);
}

static int compare_ids(const void *a, const void *b)
{
	return memcmp(a, b, sizeof(struct reuseport_cid));
}

#define N_IDS 1000

/* Every ID names its worker, and no nonce comes twice. */
static void check_generated_ids(struct fixture *f, bool encrypted)
{
	static struct reuseport_cid cids[3 * N_IDS];
	static const uint8_t key[16] = {0x2b, 0x2b, 0x2b, 0x2b, 0x2b, 0x2b, 0x2b, 0x2b, 0x2b, 0x2b,
		0x2b, 0x2b, 0x2b, 0x2b, 0x2b, 0x2b};
	struct quic_lb_config config;
	unsigned n_steps_of_one = 0;

	assert_int_equal(quic_lb_configure(&config, 1, 6, 10, encrypted ? key : NULL), 0);
	for (unsigned w = 0; w < 3; w++) {
		uint64_t last = 0;

		for (unsigned i = 0; i < N_IDS; i++) {
			uint8_t server_id[6], nonce[10];
			uint64_t counter = 0;
			struct reuseport_cid *cid = &cids[w * N_IDS + i];

			cid->length = 17;
			assert_int_equal(reuseport_cid_generate(f->r, w, 1, cid->id, 20), 17);
			assert_int_equal(cid->id[0], 1 << 5 | 16);
			assert_int_equal(quic_lb_decode(&config, cid->id, 17, server_id, nonce), 0);
			assert_memory_equal(server_id, "\0\0\0\0\0", 5);
			assert_int_equal(server_id[5], 100 + w);
			assert_int_equal(nonce[3], w * 2 + 1); /* the grant's prefix */
			for (unsigned o = 4; o < 10; o++)
				counter = counter << 8 | nonce[o];
			n_steps_of_one += i > 0 && counter == last + 1;
			last = counter;
		}
	}
	/* In the clear the order must not show; one step by chance is possible, all aren't. */
	if (encrypted)
		assert_int_equal(n_steps_of_one, 3 * (N_IDS - 1));
	else
		assert_in_range(n_steps_of_one, 0, 3);
	qsort(cids, 3 * N_IDS, sizeof(cids[0]), compare_ids);
	for (unsigned i = 1; i < 3 * N_IDS; i++)
		assert_int_not_equal(compare_ids(&cids[i - 1], &cids[i]), 0);
}

static void serve_quic(struct fake *d)
{
	fake_welcome(d);
	fake_register(d, 3);
	fake_receive_end(d);
}

static void encrypted_ids_name_their_worker_and_never_repeat(void **state)
{
	struct fixture *f = *state;
	uint8_t id[20];

	f->daemon.fake.transport = PROTOCOL_QUIC;
	f->daemon.fake.cid_mode = PROTOCOL_CID_QUIC_LB;
	start(f, serve_quic);
	CHECK(reuseport_register(f->r, "quic", NULL, 3, 0, WAIT_MSEC), 0);
	assert_int_equal(reuseport_cid_length(f->r, 0), 17);
	assert_int_equal(reuseport_cid_length(f->r, 2), -ERANGE);
	assert_int_equal(reuseport_cid_generate(f->r, 0, 0, id, 16), -ENOBUFS);
	assert_int_equal(reuseport_cid_generate(f->r, 3, 0, id, 20), -ERANGE);
	assert_int_equal(reuseport_cid_generate(f->r, 0, 2, id, 20), -ERANGE);
	check_generated_ids(f, true);
}

static void plain_ids_name_their_worker_and_show_no_order(void **state)
{
	struct fixture *f = *state;

	f->daemon.fake.transport = PROTOCOL_QUIC;
	f->daemon.fake.cid_mode = PROTOCOL_CID_QUIC_LB_PLAIN;
	start(f, serve_quic);
	CHECK(reuseport_register(f->r, "quic", NULL, 3, 0, WAIT_MSEC), 0);
	check_generated_ids(f, false);
}

struct generator {
	struct reuseport *r;
	struct reuseport_cid *cids;
};

static void *generate_ids(void *argument)
{
	struct generator *g = argument;

	for (unsigned i = 0; i < N_IDS; i++) {
		g->cids[i].length = 17;
		if (reuseport_cid_generate(g->r, 0, 0, g->cids[i].id, 20) != 17)
			return NULL;
	}
	return g;
}

static void threads_and_forked_children_never_make_the_same_id(void **state)
{
	struct fixture *f = *state;
	struct reuseport_cid *cids;
	const size_t size = 5 * N_IDS * sizeof(*cids);
	struct generator generators[5];
	pthread_t threads[4];
	int status = -1;
	pid_t pid;

	f->daemon.fake.transport = PROTOCOL_QUIC;
	f->daemon.fake.cid_mode = PROTOCOL_CID_QUIC_LB;
	start(f, serve_quic);
	CHECK(reuseport_register(f->r, "quic", NULL, 3, 0, WAIT_MSEC), 0);
	cids = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(cids, MAP_FAILED);
	for (unsigned i = 0; i < 5; i++)
		generators[i] = (struct generator){.r = f->r, .cids = cids + i * N_IDS};
	fflush(NULL);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0)
		_exit(generate_ids(&generators[4]) ? 0 : 1);
	for (unsigned i = 0; i < 4; i++)
		assert_int_equal(
			pthread_create(&threads[i], NULL, generate_ids, &generators[i]), 0);
	for (unsigned i = 0; i < 4; i++) {
		void *result = NULL;

		assert_int_equal(pthread_join(threads[i], &result), 0);
		assert_non_null(result);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	qsort(cids, 5 * N_IDS, sizeof(*cids), compare_ids);
	for (unsigned i = 1; i < 5 * N_IDS; i++)
		assert_int_not_equal(compare_ids(&cids[i - 1], &cids[i]), 0);
	munmap(cids, size);
}

static void rotate(struct fake *d, uint32_t worker, uint16_t listener, uint8_t nonce_length)
{
	struct protocol_keys_rotated body = {
		.registration = htole32(d->registration),
		.worker = htole32(worker),
		.listener = htole16(listener),
		.config_rotation = 2,
		.server_id_length = 2,
		.nonce_length = nonce_length,
		.server_id = {0xaa, (uint8_t)worker},
		.nonce_prefix = {9, 9, 9, 9},
	};

	fake_event(d, PROTOCOL_KEYS_ROTATED, &body, sizeof(body));
}

static void serve_rotation(struct fake *d)
{
	fake_welcome(d);
	fake_register(d, 2);
	fake_receive(d, PROTOCOL_READY);
	for (uint32_t worker = 0; worker < 2; worker++)
		rotate(d, worker, 1, 5);
	rotate(d, 0, 7, 5); /* no such listener */
	rotate(d, 0, 0, 3); /* no such nonce */
	fake_ok(d);
	fake_receive_end(d);
}

static void rotated_keys_are_in_effect_at_once_and_told_once(void **state)
{
	struct fixture *f = *state;
	uint8_t id[20];

	f->daemon.fake.transport = PROTOCOL_QUIC;
	f->daemon.fake.cid_mode = PROTOCOL_CID_QUIC_LB;
	start(f, serve_rotation);
	CHECK(reuseport_register(f->r, "quic", NULL, 2, 0, WAIT_MSEC), 0);
	for (unsigned i = 0; i < 300; i++)
		assert_int_equal(reuseport_cid_generate(f->r, 1, 1, id, sizeof(id)), 17);
	CHECK(reuseport_ready(f->r, WAIT_MSEC), 0);
	assert_int_equal(reuseport_cid_length(f->r, 1), 8);
	assert_int_equal(reuseport_cid_length(f->r, 0), 17);
	/* One octet of counter, from its beginning: 256 IDs and no more. */
	for (unsigned i = 0; i < 256; i++)
		assert_int_equal(reuseport_cid_generate(f->r, 1, 1, id, sizeof(id)), 8);
	assert_int_equal(id[0], 2 << 5 | 7);
	assert_int_equal(reuseport_cid_generate(f->r, 1, 1, id, sizeof(id)), -EOVERFLOW);
	assert_int_equal(reuseport_cid_generate(f->r, 1, 1, id, sizeof(id)), -EOVERFLOW);
	assert_int_equal(reuseport_cid_generate(f->r, 0, 1, id, sizeof(id)), 8);
	assert_int_equal(f->n_rotations, 0);
	CHECK(reuseport_dispatch(f->r, 0), 1);
	assert_int_equal(f->n_rotations, 1); /* for both workers */
	assert_int_equal(f->rotated_listeners, 1u << 1);
}

static void grant_an_impossible_configuration(struct fake *d)
{
	fake_welcome(d);
	fake_receive(d, PROTOCOL_REGISTER);
	d->config_rotation = 7; /* means: names no server */
	fake_grant(d, d->message.header.sequence, 0, 1);
	fake_receive(d, PROTOCOL_UNREGISTER);
	fake_receive_end(d);
}

static void an_impossible_configuration_is_refused(void **state)
{
	struct fixture *f = *state;

	f->daemon.fake.transport = PROTOCOL_QUIC;
	f->daemon.fake.cid_mode = PROTOCOL_CID_QUIC_LB;
	start(f, grant_an_impossible_configuration);
	CHECK(reuseport_register(f->r, "quic", NULL, 1, 0, WAIT_MSEC), -EPROTO);
	CHECK_ERROR("impossible connection-ID configuration for listener http");
	assert_int_equal(count_descriptors(), f->n_descriptors + 4);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(registered_ids_are_sent_in_batches),
		TEST(the_reset_token_is_the_documented_hmac),
		TEST(a_tcp_listener_has_no_tokens),
		TEST(encrypted_ids_name_their_worker_and_never_repeat),
		TEST(plain_ids_name_their_worker_and_show_no_order),
		TEST(threads_and_forked_children_never_make_the_same_id),
		TEST(rotated_keys_are_in_effect_at_once_and_told_once),
		TEST(an_impossible_configuration_is_refused),
	};

	unsetenv("REUSEPORT_SOCKET");
	unsetenv("LISTEN_FDS");
	alarm(300);
	return cmocka_run_group_tests_name("libreuseport", tests, NULL, NULL);
}
