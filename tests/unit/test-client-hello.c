/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The ClientHellos of the vectors and of a builder: read whole, in every prefix, and with every
 * kind of mistake, which is told at the octet where it is.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "classify/client-hello.h"
#include "classify/crypto-stream.h"
#include "tests/unit/hello-builder.h"
#include "tests/unit/vectors.h"

#define HELLO_MAX 4096
/* Where the extensions of a built ClientHello begin: 4 + 2 + 32 + 1 + 4 + 2 + 2. */
#define EXTENSIONS 47

static struct builder built;
static struct client_hello hello;
static struct complaint complaint;

static int read_hello(const uint8_t *octets, size_t length)
{
	/* Of exactly its size, so that a sanitizer sees a look beyond the end. */
	uint8_t *copy = malloc(length ? length : 1);
	int r;

	assert_non_null(copy);
	memcpy(copy, octets, length);
	complaint = (struct complaint){};
	r = client_hello_read(copy, length, &hello, &complaint);
	free(copy);
	return r;
}

static void check_name(const uint8_t *octets, const char *name)
{
	assert_int_equal(hello.server_name_length, strlen(name));
	assert_memory_equal(octets + hello.server_name, name, strlen(name));
}

static void check_protocols(const uint8_t *octets, const json_t *protocols)
{
	const uint8_t *protocol;
	size_t position = 0, length, n = 0;

	while (client_hello_next_protocol(octets, &hello, &position, &protocol, &length)) {
		const char *wanted = json_string_value(json_array_get(protocols, n++));

		assert_non_null(wanted);
		assert_int_equal(length, strlen(wanted));
		assert_memory_equal(protocol, wanted, length);
	}
	assert_int_equal(n, json_array_size(protocols));
}

/* In every prefix octets are missing, and how many there are to be is known from the fourth on. */
static void check_prefixes(const uint8_t *octets, size_t length)
{
	for (size_t n = 0; n < length; n++) {
		assert_int_equal(read_hello(octets, n), -EAGAIN);
		assert_int_equal(hello.length, n < CLIENT_HELLO_HEAD ? 0 : length);
	}
	assert_int_equal(read_hello(octets, length), 0);
	assert_int_equal(hello.length, length);
}

static void check_vector(const json_t *vector)
{
	uint8_t octets[HELLO_MAX];
	size_t n = vector_hex(vector_string(vector, "client_hello"), octets, sizeof(octets));

	check_prefixes(octets, n);
	check_name(octets, vector_string(vector, "sni"));
	if (json_object_get(vector, "sni_offset"))
		assert_int_equal(hello.server_name, vector_number(vector, "sni_offset"));
	check_protocols(octets, json_object_get(vector, "alpn"));
	assert_int_equal(hello.encrypted, json_is_true(json_object_get(vector, "ech_extension")));
	/* What comes behind it is another message. */
	assert_int_equal(read_hello(octets, n + 1), 0);
}

static void test_every_vector_in_every_prefix(void **state)
{
	json_t *root = vector_load(VECTORS "/quic-initial-vectors.json"), *vector;
	unsigned n = 0;
	size_t i;

	json_array_foreach(json_object_get(root, "rfc_vectors"), i, vector)
	{
		check_vector(json_object_get(vector, "client_initial"));
		n++;
	}
	json_array_foreach(json_object_get(json_object_get(root, "synthetic"), "flows"), i, vector)
	{
		if (!vector_string(vector, "client_hello"))
			continue;
		check_vector(vector);
		n++;
	}
	assert_int_equal(n, 2 + 10);
	json_decref(root);
}

static void test_without_name_and_protocols(void **state)
{
	size_t list = begin_hello(&built), position = 0, length;
	const uint8_t *protocol;

	put_extension(&built, 0x2b, "\2\3\4", 3);
	put_extension(&built, 0x39, "", 0);
	end_hello(&built, list);
	check_prefixes(built.octets, built.length);
	assert_int_equal(hello.server_name_length, 0);
	assert_int_equal(hello.protocols_length, 0);
	assert_false(
		client_hello_next_protocol(built.octets, &hello, &position, &protocol, &length));
	assert_false(hello.encrypted);
}

/* RFC 8701: in suites, extensions and protocols; and ECH, whose outer name is what is read. */
static void test_grease_and_ech_are_passed_over(void **state)
{
	static const char protocols[] = "\0\7\2\xba\xba\2h3\0";
	size_t list = begin_hello(&built), position = 0, length;
	const uint8_t *protocol;

	put_extension(&built, 0x6a6a, "", 0);
	put_extension(&built, 0xfe0d, "\0outer", 6);
	put_server_name(&built, "front.example", 13);
	put_extension(&built, 16, "\0\6\2\xba\xba\2h3", 8);
	put_extension(&built, 0xdada, "\0", 1);
	end_hello(&built, list);
	check_prefixes(built.octets, built.length);
	check_name(built.octets, "front.example");
	assert_true(hello.encrypted);
	assert_true(
		client_hello_next_protocol(built.octets, &hello, &position, &protocol, &length));
	assert_int_equal(length, 2);
	assert_memory_equal(protocol, "\xba\xba", 2);
	assert_true(
		client_hello_next_protocol(built.octets, &hello, &position, &protocol, &length));
	assert_int_equal(length, 2);
	assert_memory_equal(protocol, "h3", 2);
	assert_false(
		client_hello_next_protocol(built.octets, &hello, &position, &protocol, &length));

	/* A list that says more than it has. */
	list = begin_hello(&built);
	put_extension(&built, 16, protocols, sizeof(protocols) - 1);
	end_hello(&built, list);
	assert_int_equal(read_hello(built.octets, built.length), -EBADMSG);
}

static void test_the_largest_that_there_can_be(void **state)
{
	size_t list = begin_hello(&built);
	static const uint8_t share[BUILDER_MAX];

	put_extension(&built, 0x33, share, CRYPTO_STREAM_OCTETS - EXTENSIONS - 4 - (9 + 1));
	put_server_name(&built, "a", 1);
	end_hello(&built, list);
	assert_int_equal(built.length, CRYPTO_STREAM_OCTETS);
	assert_int_equal(read_hello(built.octets, built.length), 0);
	check_name(built.octets, "a");
	assert_int_equal(read_hello(built.octets, built.length - 1), -EAGAIN);

	/* 256 octets more, and 64 KiB. */
	for (unsigned octet = 2; octet >= 1; octet--) {
		built.octets[octet]++;
		complaint.subject = NULL;
		assert_int_equal(read_hello(built.octets, 4), -EMSGSIZE);
		assert_string_equal(complaint.subject, "the message");
		assert_int_equal(complaint.octet, 1);
	}
}

/* Builds with one server name extension that has these octets, and reads it. */
static int read_with(unsigned type, const void *data, size_t n)
{
	size_t list = begin_hello(&built);

	put_extension(&built, type, data, n);
	put_extension(&built, 0x2b, "\2\3\4", 3);
	end_hello(&built, list);
	return read_hello(built.octets, built.length);
}

static void check_mistake(int r, size_t octet, const char *subject)
{
	bool told = false;

	assert_int_equal(r, -EBADMSG);
	assert_string_equal(complaint.subject, subject);
	assert_int_equal(complaint.octet, octet);
	assert_string_equal(complaint.where, "the ClientHello");
	/* From some prefix on it is told of every longer one; before, octets are missing. */
	for (size_t n = 0; n <= built.length; n++) {
		r = read_hello(built.octets, n);
		assert_int_equal(r, told || r == -EBADMSG ? -EBADMSG : -EAGAIN);
		told = r == -EBADMSG;
		if (told)
			assert_int_equal(complaint.octet, octet);
	}
	assert_true(told);
}

#define WITH(type, octets) read_with(type, octets, sizeof(octets) - 1)

static void test_mistakes_in_server_names(void **state)
{
	static const char list[] = "the list of server names", name[] = "the server name";
	const size_t data = EXTENSIONS + 4;
	char longest[5 + SERVER_NAME_MAX + 1];

	check_mistake(WITH(0, ""), data, list);
	check_mistake(WITH(0, "\0"), data, list);
	check_mistake(WITH(0, "\0\0"), data, list);
	check_mistake(WITH(0, "\0\5\0\0\1a"), data + 2, list);
	check_mistake(WITH(0, "\0\4\0\0\1aX"), data + 6, list);
	check_mistake(WITH(0, "\0\3\0\0\0"), data + 3, name);
	check_mistake(WITH(0, "\0\4\0\0\2a"), data + 5, name);
	check_mistake(WITH(0, "\0\2\0\0"), data + 3, name);
	check_mistake(WITH(0, "\0\6\0\0\3a\0b"), data + 6, name);
	check_mistake(WITH(0, "\0\6\0\0\3a b"), data + 6, name);
	check_mistake(WITH(0, "\0\6\0\0\3ab\x7f"), data + 7, name);
	check_mistake(WITH(0, "\0\6\0\0\3\xc3\xa4z"), data + 5, name);
	check_mistake(WITH(0, "\0\10\0\0\1a\0\0\1b"), data + 9, name);
	check_mistake(WITH(0, "\0\1\5"), data + 3, "a server name of another type");

	/* Names of other types are passed over. */
	assert_int_equal(WITH(0, "\0\11\5\0\2\0\0\0\0\1b"), 0);
	check_name(built.octets, "b");
	assert_int_equal(WITH(0, "\0\4\5\0\1b"), 0);
	assert_int_equal(hello.server_name_length, 0);

	memset(longest, 'a', sizeof(longest));
	memcpy(longest, "\1\2\0\0\xff", 5);
	assert_int_equal(read_with(0, longest, sizeof(longest) - 1), 0);
	assert_int_equal(hello.server_name_length, SERVER_NAME_MAX);
	memcpy(longest, "\1\3\0\1\0", 5);
	check_mistake(read_with(0, longest, sizeof(longest)), data + 3, name);
}

static void test_mistakes_in_protocols(void **state)
{
	static const char list[] = "the list of protocols", name[] = "the name of a protocol";
	const size_t data = EXTENSIONS + 4;

	check_mistake(WITH(16, ""), data, list);
	check_mistake(WITH(16, "\0\0"), data, list);
	check_mistake(WITH(16, "\0\1\0"), data, list);
	check_mistake(WITH(16, "\0\4\2h3"), data + 2, list);
	check_mistake(WITH(16, "\0\2\2h3"), data + 4, list);
	check_mistake(WITH(16, "\0\2\2h"), data + 3, name);
	check_mistake(WITH(16, "\0\3\2h3X"), data + 5, list);
	check_mistake(WITH(16, "\0\3\0h3"), data + 2, name);
}

static void test_extensions_that_are_there_twice(void **state)
{
	size_t list = begin_hello(&built);

	put_server_name(&built, "a", 1);
	put_server_name(&built, "a", 1);
	end_hello(&built, list);
	check_mistake(read_hello(built.octets, built.length), EXTENSIONS + 10,
		"the extension for the server name");

	list = begin_hello(&built);
	put_extension(&built, 16, "\0\3\2h3", 5);
	put_extension(&built, 16, "\0\3\2h3", 5);
	end_hello(&built, list);
	check_mistake(
		read_hello(built.octets, built.length), EXTENSIONS + 9, "the extension for ALPN");
}

/* One octet of a good ClientHello at a time set to a wrong value. */
static void test_mistakes_in_the_message(void **state)
{
	static const struct {
		size_t octet, value, where;
		const char *subject;
	} mistakes[] = {
		{0, 0, 0, "the first message"},
		{0, 2, 0, "the first message"},
		{3, 1, 4, "the legacy version"},
		{3, 20, 6, "the random value"},
		{38, 33, 38, "the legacy session ID"},
		{40, 0, 39, "the list of cipher suites"},
		{39, 0xff, 41, "the list of cipher suites"},
		{43, 0, 43, "the list of compression methods"},
		{43, 200, 44, "the list of compression methods"},
		{46, 7, 45, "the list of extensions"},
		{46, 16, 63, "the list of extensions"},
		{46, 18, 47, "the list of extensions"},
		{50, 14, 51, "an extension"},
		{50, 12, 63, "the type of an extension"},
	};

	for (size_t i = 0; i < sizeof(mistakes) / sizeof(mistakes[0]); i++) {
		size_t list = begin_hello(&built);

		put_extension(&built, 0x39, "0123456789abc", 13);
		end_hello(&built, list);
		assert_int_equal(read_hello(built.octets, built.length), 0);
		built.octets[mistakes[i].octet] = (uint8_t)mistakes[i].value;
		assert_int_equal(read_hello(built.octets, built.length), -EBADMSG);
		assert_string_equal(complaint.subject, mistakes[i].subject);
		assert_int_equal(complaint.octet, mistakes[i].where);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_every_vector_in_every_prefix),
		cmocka_unit_test(test_without_name_and_protocols),
		cmocka_unit_test(test_grease_and_ech_are_passed_over),
		cmocka_unit_test(test_the_largest_that_there_can_be),
		cmocka_unit_test(test_mistakes_in_server_names),
		cmocka_unit_test(test_mistakes_in_protocols),
		cmocka_unit_test(test_extensions_that_are_there_twice),
		cmocka_unit_test(test_mistakes_in_the_message),
	};

	return cmocka_run_group_tests_name("client-hello", tests, NULL, NULL);
}
