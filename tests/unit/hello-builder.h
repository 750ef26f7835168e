/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Writes ClientHellos for tests: octets one behind the other, and vectors whose length is filled in
 * when they end.
 */
#pragma once

#include <assert.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define BUILDER_MAX 20000

struct builder {
	uint8_t octets[BUILDER_MAX];
	size_t length;
};

static inline void put_octets(struct builder *builder, const void *octets, size_t n)
{
	assert(n <= sizeof(builder->octets) - builder->length);
	memcpy(builder->octets + builder->length, octets, n);
	builder->length += n;
}

static inline void put_number(struct builder *builder, size_t value, unsigned n)
{
	for (unsigned i = n; i-- > 0;)
		put_octets(builder, &(uint8_t){(uint8_t)(value >> (8 * i))}, 1);
}

/* Returns the beginning of a vector with n octets of length, for end_vector(). */
static inline size_t begin_vector(struct builder *builder, unsigned n)
{
	put_number(builder, 0, n);
	return builder->length;
}

static inline void end_vector(struct builder *builder, size_t begin, unsigned n)
{
	size_t end = builder->length;

	builder->length = begin - n;
	put_number(builder, end - begin, n);
	builder->length = end;
}

static inline void put_extension(struct builder *builder, unsigned type, const void *data, size_t n)
{
	put_number(builder, type, 2);
	put_number(builder, n, 2);
	put_octets(builder, data, n);
}

static inline void put_server_name(struct builder *builder, const void *name, size_t n)
{
	size_t extension, list;

	put_number(builder, 0, 2);
	extension = begin_vector(builder, 2);
	list = begin_vector(builder, 2);
	put_number(builder, 0, 1);
	put_number(builder, n, 2);
	put_octets(builder, name, n);
	end_vector(builder, list, 2);
	end_vector(builder, extension, 2);
}

/* What stands before the extensions; returns the beginning of their list. */
static inline size_t begin_hello(struct builder *builder)
{
	builder->length = 0;
	put_number(builder, 1, 1);
	put_number(builder, 0, 3);
	put_number(builder, 0x0303, 2);
	for (unsigned i = 0; i < 32; i++)
		put_number(builder, 0xa0 + i, 1);
	put_number(builder, 0, 1);
	put_number(builder, 2, 2);
	put_number(builder, 0x1301, 2);
	put_number(builder, 1, 1);
	put_number(builder, 0, 1);
	return begin_vector(builder, 2);
}

static inline void end_hello(struct builder *builder, size_t extensions)
{
	end_vector(builder, extensions, 2);
	end_vector(builder, 4, 3);
}
