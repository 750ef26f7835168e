/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What the readers of files share (config-file.c: lines, sections and files; config-keys.c: keys
 * and their values): where the parser is, what it fills, and how it reports. Nobody else needs it.
 */
#pragma once

#include <stdio.h>

#include "common/util.h"
#include "daemon/config.h"

#define CONFIG_KEYS_MAX 48

enum section {
	SECTION_NONE, /* before the first header, or in a section that was refused */
	SECTION_DAEMON,
	SECTION_SERVICE,
	SECTION_LISTENER,
};

struct config_parser {
	struct config *config;
	FILE *errors;
	bool failed; /* a mistake was reported */
	bool no_memory;

	FILE *stream;
	const char *file;
	bool daemon_file; /* reuseportd.conf; else a file of services.d */
	unsigned line;
	enum section section;
	unsigned section_line;
	char *section_text; /* "[Listener http]" */
	unsigned daemon_line;
	unsigned service_line;
	struct service_config *service; /* of this file; owned here until the file ends */
	struct listener_config *listener;
	unsigned key_lines[CONFIG_KEYS_MAX]; /* of the current section: where each key of keys[] was
						set */
};

/* Reports a mistake at a line of the current file; line 0: at the file as a whole. -EINVAL. */
int parser_mistake(struct config_parser *parser, unsigned line, const char *format, ...)
	_printf_(3, 4);
/* At the line that is being read. */
#define mistake(parser, ...) parser_mistake((parser), (parser)->line, __VA_ARGS__)

/* A key of the current section: sets its field, or reports what is wrong. */
void parser_set_key(struct config_parser *parser, const char *name, const char *value);

/* The listener's section has ended: reports the keys that have no meaning for what it is. */
void parser_check_listener_keys(struct config_parser *parser);

/* config-share.c */
int parser_set_share(struct config_parser *parser, const char *key, const char *value);
/* MatchServerName= and MatchALPN=. */
int parser_set_match(struct config_parser *parser, const char *key, const char *value);
int parser_set_percent(
	struct config_parser *parser, const char *key, const char *value, unsigned *ret);
void parser_check_share(struct config_parser *parser);
/* When all files are read: listeners of one share. */
void parser_check_shares(struct config_parser *parser);
