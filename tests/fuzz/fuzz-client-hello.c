/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Any octets as a ClientHello: what is found is inside, and no prefix says anything that the whole
 * contradicts.
 */
#include <stdlib.h>
#include <string.h>

#include "classify/client-hello.c"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool condition)
{
	if (!condition)
		abort();
}

static void check_complete(const uint8_t *octets, size_t size, const struct client_hello *hello)
{
	const uint8_t *protocol;
	size_t position = 0, length, total = 0;

	check(hello->length >= CLIENT_HELLO_HEAD && hello->length <= size);
	check(hello->length <= CRYPTO_STREAM_OCTETS);
	check(hello->server_name_length <= SERVER_NAME_MAX);
	check(hello->server_name + hello->server_name_length <= hello->length);
	for (size_t i = 0; i < hello->server_name_length; i++)
		check(octets[hello->server_name + i] > 0x20 &&
			octets[hello->server_name + i] < 0x7f);
	check(hello->protocols + hello->protocols_length <= hello->length);
	while (client_hello_next_protocol(octets, hello, &position, &protocol, &length)) {
		check(length >= 1 && length <= 255);
		check(protocol + length <= octets + hello->length);
		total += 1 + length;
	}
	check(total == hello->protocols_length);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct client_hello whole, part;
	struct complaint whole_complaint = {0}, part_complaint = {0};
	uint8_t *prefix;
	size_t n;
	int r, p;

	/* The first two octets say where it is cut. */
	if (size < 2)
		return 0;
	n = (size_t)data[0] << 8 | data[1];
	data += 2;
	size -= 2;
	r = client_hello_read(data, size, &whole, &whole_complaint);
	check(r == 0 || r == -EAGAIN || r == -EBADMSG || r == -EMSGSIZE);
	check((r == -EBADMSG || r == -EMSGSIZE) == (whole_complaint.subject != NULL));
	if (r == 0)
		check_complete(data, size, &whole);
	if (r == -EBADMSG)
		/* Lengths may contradict each other before the octets they speak of are there. */
		check(whole_complaint.octet <= CRYPTO_STREAM_OCTETS);

	n = size ? n % (size + 1) : 0;
	prefix = malloc(n ? n : 1);
	check(prefix != NULL);
	if (n)
		memcpy(prefix, data, n);
	p = client_hello_read(prefix, n, &part, &part_complaint);
	if (p != -EAGAIN)
		check(p == r && part.length == whole.length &&
			part.server_name == whole.server_name &&
			part.protocols == whole.protocols &&
			part_complaint.octet == whole_complaint.octet);
	free(prefix);
	return 0;
}
