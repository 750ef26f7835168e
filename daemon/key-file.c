/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Reads the file of ConnectionIDKeyFile=.
 *
 * WHY a format of its own: a person or a shell script writes it, on several hosts, and what is
 * wrong in it must be told by line. No more than lines of two words.
 */
#include "daemon/key-file.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "common/format.h"
#include "common/hex.h"
#include "common/hmac.h"
#include "common/util.h"

#define KEY_FILE_OCTETS_MAX 16384

struct key_file_parser {
	const char *path;
	unsigned line;
	bool any;
	bool secret;
	unsigned lines[KEYS_MAX]; /* where each rotation is */
	struct keys keys;
	char **error;
};

static int _printf_(2, 3) file_mistake(struct key_file_parser *parser, const char *format, ...)
{
	_cleanup_free_ char *what = NULL;
	va_list arguments;
	int n;

	va_start(arguments, format);
	what = format_list(format, arguments);
	va_end(arguments);
	if (!what)
		return -ENOMEM;
	if (parser->line)
		n = asprintf(parser->error, "%s:%u: %s", parser->path, parser->line, what);
	else
		n = asprintf(parser->error, "%s: %s", parser->path, what);
	if (n < 0) {
		*parser->error = NULL;
		return -ENOMEM;
	}
	return -EBADMSG;
}

/* Messages never repeat a secret, not even one that is too short. */
static int parse_secret(struct key_file_parser *parser, const char *digits)
{
	if (parser->secret)
		return file_mistake(parser, "a second secret");
	if (!hex_read(digits, parser->keys.token_secret, sizeof(parser->keys.token_secret)))
		return file_mistake(parser, "the secret has to be 64 hexadecimal digits");
	parser->secret = true;
	return 0;
}

static int parse_key(struct key_file_parser *parser, const char *number, const char *digits)
{
	struct keys *keys = &parser->keys;
	unsigned rotation = (unsigned)(number[0] - '0');

	if (number[1] || rotation >= KEYS_MAX)
		return file_mistake(parser,
			"begins with neither a config rotation from 0 to 6 nor with secret");
	if (keys->valid[rotation])
		return file_mistake(parser, "config rotation %u has a key on line %u already",
			rotation, parser->lines[rotation]);
	if (!hex_read(digits, keys->key[rotation], sizeof(keys->key[rotation])))
		return file_mistake(parser, "the key has to be 32 hexadecimal digits");
	for (unsigned i = 0; i < KEYS_MAX; i++) {
		if (keys->valid[i] && !memcmp(keys->key[i], keys->key[rotation], 16))
			return file_mistake(parser,
				"the key is that of config rotation %u (line %u) already; each "
				"needs a key of its own",
				i, parser->lines[i]);
	}
	keys->valid[rotation] = true;
	parser->lines[rotation] = parser->line;
	if (!parser->any)
		keys->current = (uint8_t)rotation;
	parser->any = true;
	return 0;
}

static int parse_line(struct key_file_parser *parser, char *line)
{
	static const char blanks[] = " \t\r";
	char *saved, *first, *second, *comment = strchr(line, '#');

	if (comment)
		*comment = '\0';
	first = strtok_r(line, blanks, &saved);
	if (!first)
		return 0;
	second = strtok_r(NULL, blanks, &saved);
	if (!second || strtok_r(NULL, blanks, &saved))
		return file_mistake(parser,
			"not two words: ROTATION and 32 hexadecimal digits, or secret and 64");
	if (!strcmp(first, "secret"))
		return parse_secret(parser, second);
	return parse_key(parser, first, second);
}

/* text: length octets and a NUL after them; destroyed. */
static int parse_text(struct key_file_parser *parser, char *text, size_t length)
{
	char *end = text + length;
	int r = 0;

	while (text < end && r >= 0) {
		char *newline = memchr(text, '\n', (size_t)(end - text));
		char *next = newline ? newline + 1 : end;

		parser->line++;
		if (newline)
			*newline = '\0';
		if (strlen(text) != (size_t)((newline ? newline : end) - text))
			r = file_mistake(parser, "the line contains a NUL octet");
		else
			r = parse_line(parser, text);
		text = next;
	}
	if (r < 0)
		return r;
	parser->line = 0;
	if (!parser->any)
		return file_mistake(parser,
			"no key in it; a line ROTATION and 32 hexadecimal digits is needed");
	if (!parser->secret)
		key_derive(parser->keys.key[parser->keys.current], "reuseportd token secret",
			parser->keys.token_secret);
	return 0;
}

/* With room for a NUL. */
static int read_text(struct key_file_parser *parser, char *text, size_t *ret_length)
{
	_cleanup_close_ int fd = open(parser->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	struct stat status;
	size_t length = 0;

	if (fd < 0 || fstat(fd, &status) < 0) {
		int error = errno;

		if (file_mistake(parser, "cannot open the key file: %s", strerror(error)) ==
			-ENOMEM)
			return -ENOMEM;
		return -error;
	}
	if (!S_ISREG(status.st_mode))
		return file_mistake(parser, "not a regular file");
	/* Its group may read it: credentials of systemd have an ACL, whose mask stands there. */
	if (status.st_mode & 0027)
		return file_mistake(parser,
			       "mode is %04o: keys must not be readable by others or writable by "
			       "the group; chmod 0640 or 0600",
			       (unsigned)(status.st_mode & 07777)) == -ENOMEM
			       ? -ENOMEM
			       : -EPERM;
	for (;;) {
		ssize_t n = read(fd, text + length, KEY_FILE_OCTETS_MAX + 1 - length);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0) {
			int error = errno;

			return file_mistake(parser, "cannot read: %s", strerror(error)) == -ENOMEM
				       ? -ENOMEM
				       : -error;
		}
		if (n == 0)
			break;
		length += (size_t)n;
		if (length > KEY_FILE_OCTETS_MAX)
			return file_mistake(parser, "longer than %d octets", KEY_FILE_OCTETS_MAX);
	}
	text[length] = '\0';
	*ret_length = length;
	return 0;
}

int key_file_read(struct keys *keys, const char *path, char **ret_error)
{
	_cleanup_free_ char *error = NULL;
	struct key_file_parser parser = {.path = path, .error = &error};
	char *text = malloc(KEY_FILE_OCTETS_MAX + 2);
	size_t length = 0;
	int r;

	if (!text)
		return -ENOMEM;
	r = read_text(&parser, text, &length);
	if (r >= 0)
		r = parse_text(&parser, text, length);
	if (r >= 0) {
		keys->current = parser.keys.current;
		memcpy(keys->valid, parser.keys.valid, sizeof(keys->valid));
		memcpy(keys->key, parser.keys.key, sizeof(keys->key));
		memcpy(keys->token_secret, parser.keys.token_secret, sizeof(keys->token_secret));
	} else {
		*ret_error = take_pointer(error);
	}
	explicit_bzero(text, KEY_FILE_OCTETS_MAX + 2);
	explicit_bzero(&parser.keys, sizeof(parser.keys));
	free(text);
	return r;
}

void key_derive(const uint8_t key[16], const char *label, uint8_t ret[32])
{
	hmac_sha256(key, 16, label, NULL, 0, ret);
}
