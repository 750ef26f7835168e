/* SPDX-License-Identifier: BSD-2-Clause */
#include "daemon/state-text.h"

#include <string.h>

#include "common/util.h"

static void leave(struct text *text)
{
	if (!text->failed && text->length &&
		text->leave(text->octets, text->length, text->user_data) < 0)
		text->failed = true;
	text->length = 0;
}

/* What is full leaves when there is more, not before: text_add_object_open() takes an octet back.
 */
void text_add(struct text *text, const char *octets, size_t length)
{
	while (length > 0) {
		size_t n;

		if (text->length == TEXT_ROOM)
			leave(text);
		n = MIN(length, TEXT_ROOM - text->length);
		memcpy(text->octets + text->length, octets, n);
		text->length += n;
		octets += n;
		length -= n;
	}
}

void text_add_string(struct text *text, const char *string)
{
	text_add(text, string, strlen(string));
}

void text_add_number(struct text *text, int64_t number)
{
	uint64_t rest = number < 0 ? -(uint64_t)number : (uint64_t)number;
	char digits[21];
	size_t at = sizeof(digits);

	do
		digits[--at] = (char)('0' + rest % 10);
	while (rest /= 10);
	if (number < 0)
		digits[--at] = '-';
	text_add(text, digits + at, sizeof(digits) - at);
}

static int add_some(const char *octets, size_t length, void *user_data)
{
	struct text *text = user_data;

	text_add(text, octets, length);
	return text->failed ? -1 : 0;
}

void text_add_json(struct text *text, json_t *json)
{
	if (!json || json_dump_callback(json, add_some, text, JSON_COMPACT) < 0)
		text->failed = true;
	json_decref(json);
}

void text_add_object_open(struct text *text, json_t *json)
{
	text_add_json(text, json);
	if (!text->failed)
		text->length--;
}

void text_end(struct text *text)
{
	leave(text);
	explicit_bzero(text->octets, sizeof(text->octets));
}

static size_t total(const struct iovec *parts, size_t n_parts)
{
	size_t length = 0;

	for (size_t i = 0; i < n_parts; i++)
		length += parts[i].iov_len;
	return length;
}

bool piece_is_of(const struct piece *piece, const struct iovec *parts, size_t n_parts)
{
	const char *of = piece->of;

	if (!piece->octets || piece->of_length != total(parts, n_parts))
		return false;
	for (size_t i = 0; i < n_parts; of += parts[i++].iov_len)
		if (parts[i].iov_len && memcmp(of, parts[i].iov_base, parts[i].iov_len) != 0)
			return false;
	return true;
}

void piece_set(struct piece *piece, const struct iovec *parts, size_t n_parts, json_t *json)
{
	size_t length = total(parts, n_parts);
	char *octets = json ? json_dumps(json, JSON_COMPACT) : NULL, *of = malloc(length + 1);

	json_decref(json);
	piece_done(piece);
	if (!octets || !of) {
		free(octets);
		free(of);
		return;
	}
	*piece = (struct piece){
		.of = of, .of_length = length, .octets = octets, .length = strlen(octets)};
	for (size_t i = 0; i < n_parts; of += parts[i++].iov_len)
		if (parts[i].iov_len)
			memcpy(of, parts[i].iov_base, parts[i].iov_len);
}

void piece_done(struct piece *piece)
{
	free(piece->of);
	free(piece->octets);
	*piece = (struct piece){0};
}
