/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Any octets as a file of keys: either it gives a current key that is valid, or a sentence that
 * says what is wrong.
 */
#include "daemon/key-file.c"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	_cleanup_free_ char *error = NULL, *text = malloc(size + 1);
	struct key_file_parser parser = {.path = "fuzz/keys", .error = &error};
	int r;

	if (!text || size > KEY_FILE_OCTETS_MAX)
		return 0;
	memcpy(text, data, size);
	text[size] = '\0';
	r = parse_text(&parser, text, size);
	if ((r < 0) != (error != NULL))
		abort();
	if (r >= 0 && (parser.keys.current >= KEYS_MAX || !parser.keys.valid[parser.keys.current]))
		abort();
	return 0;
}
