/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A flow that datagrams are fed into.
 */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "classify/flow.h"
#include "tests/unit/initial-seal.h"
#include "tests/unit/vectors.h"

#define DATAGRAM_MAX 2048
#define DATAGRAMS_MAX 64

struct datagram {
	uint8_t octets[DATAGRAM_MAX];
	size_t length;
};

static json_t *root;
static struct initial_crypto *crypto;
static struct flow flow;
static struct datagram datagrams[DATAGRAMS_MAX];

static inline int set_up(void **state)
{
	root = vector_load(VECTORS "/quic-initial-vectors.json");
	return initial_crypto_new(&crypto);
}

static inline int tear_down(void **state)
{
	json_decref(root);
	initial_crypto_free(crypto);
	return 0;
}

/* Of exactly its size, so that a sanitizer sees a look beyond the end. */
static inline enum flow_state feed(const uint8_t *octets, size_t length)
{
	uint8_t *copy = malloc(length ? length : 1);
	enum flow_state state;

	assert_non_null(copy);
	memcpy(copy, octets, length);
	state = flow_feed(&flow, crypto, copy, length);
	assert_int_equal(state, flow.state);
	free(copy);
	return state;
}

/* A flow that holds rubbish where it was not initialised. */
static inline void begin_flow(void)
{
	memset(&flow, 0xa5, sizeof(flow));
	flow_init(&flow);
	assert_int_equal(flow.state, FLOW_INCOMPLETE);
}

static inline void swap(unsigned *a, unsigned *b)
{
	unsigned other = *a;

	*a = *b;
	*b = other;
}
