/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Reading of test vectors: JSON files with octets in hexadecimal. Fails the test that asks for what
 * is not there. Include after cmocka.h.
 */
#pragma once

#include <jansson.h>
#include <stdint.h>
#include <string.h>

/* Ends the test unless text is hexadecimal of at most size octets; returns how many. */
static inline size_t vector_hex(const char *text, uint8_t *octets, size_t size)
{
	size_t n;

	assert_non_null(text);
	n = strlen(text) / 2;
	assert_int_equal(strlen(text) % 2, 0);
	assert_true(n <= size);
	for (size_t i = 0; i < n; i++) {
		unsigned value = 0;

		for (unsigned j = 0; j < 2; j++) {
			char c = text[2 * i + j];

			assert_true((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'));
			value = value << 4 | (unsigned)(c <= '9' ? c - '0' : c - 'a' + 10);
		}
		octets[i] = value;
	}
	return n;
}

static inline json_t *vector_load(const char *path)
{
	json_error_t error;
	json_t *root = json_load_file(path, 0, &error);

	if (!root)
		fail_msg("cannot read %s, line %d: %s", path, error.line, error.text);
	return root;
}

static inline const char *vector_string(const json_t *object, const char *key)
{
	return json_string_value(json_object_get(object, key));
}

static inline unsigned vector_number(const json_t *object, const char *key)
{
	const json_t *value = json_object_get(object, key);

	if (!json_is_integer(value))
		fail_msg("no number '%s'", key);
	return json_integer_value(value);
}
