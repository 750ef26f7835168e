/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Reads the configuration's files: lines, sections, services, the directory.
 *
 * WHY: whoever edits a file that decides where all traffic goes must learn of every mistake at
 * once, with file, line and what would be right, before anything changes. So nothing is guessed: a
 * section or key that is not known, given twice, or without effect for the listener's transport is
 * a mistake like a malformed value, and all of them are collected.
 *
 * inih splits the lines into keys and values. It tells neither the line nor an empty section, and
 * it cuts long lines and section names short; therefore read_line(), which feeds it, counts the
 * lines, handles the section headers itself and lets through only what inih reads as it stands.
 */
#include "daemon/config-parser.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>

#include <ini.h>

#include "common/util.h"
#include "daemon/config-value.h"
#include "proto/protocol.h"

int parser_mistake(struct config_parser *parser, unsigned line, const char *format, ...)
{
	va_list arguments;

	parser->failed = true;
	if (parser->file && line)
		fprintf(parser->errors, "%s:%u: ", parser->file, line);
	else if (parser->file)
		fprintf(parser->errors, "%s: ", parser->file);
	va_start(arguments, format);
	vfprintf(parser->errors, format, arguments);
	va_end(arguments);
	fputc('\n', parser->errors);
	return -EINVAL;
}

/* A listener's section ends: what can be judged only when all its keys are known. */
static void end_listener(struct config_parser *parser)
{
	struct listener_config *listener = parser->listener;

	if (!listener->transport)
		parser_mistake(parser, listener->line,
			"%s has no address: ListenStream=, ListenDatagram= or ListenQUIC= is needed",
			parser->section_text);
	else
		parser_check_listener_keys(parser);
	parser->listener = NULL;
	if (listener->transport == TRANSPORT_QUIC && listener->cid_mode == CID_NONE)
		listener->cid_mode = CID_QUIC_LB;

	for (size_t i = 0; i < parser->service->n_listeners; i++) {
		if (!strcmp(parser->service->listeners[i]->name, listener->name)) {
			parser_mistake(parser, listener->line,
				"a listener '%s' is on line %u already", listener->name,
				parser->service->listeners[i]->line);
			break;
		}
	}
	if (parser->service->n_listeners == PROTOCOL_LISTENERS_MAX) {
		parser_mistake(parser, listener->line, "a service has at most %d listeners",
			PROTOCOL_LISTENERS_MAX);
		listener_config_free(listener);
	} else if (service_config_add_listener(parser->service, listener) < 0) {
		parser->no_memory = true;
		listener_config_free(listener);
	}
}

static void end_section(struct config_parser *parser)
{
	if (parser->section == SECTION_LISTENER)
		end_listener(parser);
	parser->section = SECTION_NONE;
	memset(parser->key_lines, 0, sizeof(parser->key_lines));
}

/* Needs the service, which a file may also begin with its listeners. */
static bool need_service(struct config_parser *parser)
{
	if (!parser->service)
		parser->service = service_config_new(parser->file);
	if (!parser->service)
		parser->no_memory = true;
	return parser->service;
}

/* text: what stands between the brackets. */
static void begin_section(struct config_parser *parser, const char *text)
{
	static const char listener[] = "Listener";
	char *header;

	end_section(parser);
	parser->section_line = parser->line;
	if (asprintf(&header, "[%s]", text) < 0) {
		parser->no_memory = true;
		return;
	}
	free(parser->section_text);
	parser->section_text = header;

	if (parser->daemon_file && !strcmp(text, "Daemon")) {
		if (parser->daemon_line)
			mistake(parser, "a second [Daemon]; the first is on line %u",
				parser->daemon_line);
		else
			parser->section = SECTION_DAEMON;
		parser->daemon_line = parser->daemon_line ? parser->daemon_line : parser->line;
	} else if (!parser->daemon_file && !strcmp(text, "Service")) {
		if (parser->service_line)
			mistake(parser,
				"a second [Service]; the first is on line %u: a file has one "
				"service",
				parser->service_line);
		else if (need_service(parser))
			parser->section = SECTION_SERVICE;
		parser->service_line = parser->service_line ? parser->service_line : parser->line;
	} else if (!parser->daemon_file && !strncmp(text, listener, strlen(listener)) &&
		   (!text[strlen(listener)] || text[strlen(listener)] == ' ' ||
			   text[strlen(listener)] == '\t')) {
		text += strlen(listener);
		text += strspn(text, " \t");
		/* Names stand in LISTEN_FDNAMES, which ':' separates (sd_listen_fds(3)). */
		if (!name_valid(text, false)) {
			mistake(parser,
				"%s needs a name of 1 to 63 letters, digits and _.@-, as in "
				"[Listener http]",
				header);
			return;
		}
		if (!need_service(parser))
			return;
		parser->listener = listener_config_new(text, parser->file, parser->line);
		if (parser->listener)
			parser->section = SECTION_LISTENER;
		else
			parser->no_memory = true;
	} else {
		mistake(parser, "unknown section %s; known here %s", header,
			parser->daemon_file ? "is [Daemon]" : "are [Service] and [Listener NAME]");
	}
}

static void read_section(struct config_parser *parser, char *line)
{
	char *end = strchr(line, ']'), *rest, *text = line + 1;

	if (!end) {
		end_section(parser);
		mistake(parser, "section header without ]");
		return;
	}
	rest = end + 1 + strspn(end + 1, " \t\r\n");
	if (*rest && *rest != ';' && *rest != '#')
		mistake(parser, "text after the section header");
	*end = '\0';
	text += strspn(text, " \t");
	for (char *last = text + strlen(text); last > text && isspace((unsigned char)last[-1]);)
		*--last = '\0';
	begin_section(parser, text);
}

/*
 * Reader for inih, like fgets(3). Gives it each line that holds a key and its value, without
 * leading white space (which inih would take for a continued value), and nothing of the others.
 */
static char *read_line(char *buffer, int size, void *data)
{
	struct config_parser *parser = data;
	_cleanup_free_ char *line = NULL;
	size_t allocated = 0, length;
	ssize_t n;
	char *text;

	buffer[0] = '\0';
	errno = 0;
	n = getline(&line, &allocated, parser->stream);
	if (n < 0) {
		if (errno == ENOMEM)
			parser->no_memory = true;
		else if (ferror(parser->stream))
			parser_mistake(parser, 0, "cannot read: %s", strerror(errno));
		return NULL;
	}
	parser->line++;
	strcpy(buffer, "\n");
	if (strlen(line) != (size_t)n) {
		mistake(parser, "line contains a NUL octet");
		return buffer;
	}
	text = line;
	if (parser->line == 1 && !strncmp(text, "\xef\xbb\xbf", 3))
		text += 3;
	text += strspn(text, " \t\r\n\v\f");
	length = strlen(text);
	if (!length || *text == '#' || *text == ';')
		return buffer;
	if (length + 2 > (size_t)size) {
		mistake(parser, "line is longer than %d octets", size - 2);
		return buffer;
	}
	if (*text == '[') {
		read_section(parser, text);
		return buffer;
	}
	if (text[strcspn(text, "=:;")] != '=' || *text == '=') {
		mistake(parser, "not a comment, a [Section] or KEY=VALUE");
		return buffer;
	}
	memcpy(buffer, text, length + 1);
	return buffer;
}

static int handle_key(void *user, const char *section, const char *name, const char *value)
{
	struct config_parser *parser = user;

	if (parser->section != SECTION_NONE)
		parser_set_key(parser, name, value);
	else if (!parser->section_line)
		mistake(parser, "'%s=' stands before the first section", name);
	return 1;
}

/* Whether they may have one address; what else is wrong with it, parser_check_shares() says. */
static bool in_one_share(const struct listener_config *a, const struct listener_config *b)
{
	return a->share && b->share && !strcmp(a->share, b->share);
}

/* Reports a listener whose address an earlier one has. */
static void check_address(struct config_parser *parser, const struct service_config *service,
	const struct listener_config *listener)
{
	const struct listener_config *other;
	const char *owner = service->name;

	if (!listener->address_text)
		return;
	other = service_config_find_address(service, listener);
	if (other && in_one_share(other, listener))
		other = NULL;
	/* The later of two in the same file is the one to report. */
	if (other && other->line > listener->line)
		other = NULL;
	for (size_t i = 0; !other && i < parser->config->n_services; i++) {
		owner = parser->config->services[i]->name;
		other = service_config_find_address(parser->config->services[i], listener);
		if (other && in_one_share(other, listener))
			other = NULL;
	}
	if (other)
		parser_mistake(parser, listener->line,
			"the address %s://%s is that of the listener '%s' of the service '%s' "
			"(%s:%u) already",
			transport_name(listener->transport), listener->address_text, other->name,
			owner, other->file, other->line);
}

/* "web" of ".../web.conf". */
static char *name_of_file(const char *file)
{
	const char *slash = strrchr(file, '/');
	const char *base = slash ? slash + 1 : file;
	const char *dot = strrchr(base, '.');

	return dot ? strndup(base, (size_t)(dot - base)) : strdup(base);
}

static void end_service(struct config_parser *parser)
{
	struct service_config *service = parser->service;

	if (!parser->service_line) {
		parser_mistake(parser, parser->line, "the file has no [Service] section");
		return;
	}
	if (!service)
		return;
	if (!service->name) {
		service->name = name_of_file(parser->file);
		if (!service->name) {
			parser->no_memory = true;
			return;
		}
		if (!name_valid(service->name, true))
			parser_mistake(parser, parser->service_line,
				"the file's name gives '%s', not a name of 1 to 63 letters, digits "
				"and _.@:-; set Name=",
				service->name);
	}
	if (!service->n_listeners)
		parser_mistake(parser, parser->service_line,
			"the service '%s' has no listener: a [Listener NAME] section is needed",
			service->name);
	for (size_t i = 0; i < service->n_listeners; i++)
		check_address(parser, service, service->listeners[i]);
	for (size_t i = 0; i < parser->config->n_services; i++) {
		if (!strcmp(parser->config->services[i]->name, service->name))
			parser_mistake(parser, parser->service_line,
				"the service '%s' is defined by %s already", service->name,
				parser->config->services[i]->file);
	}
	if (parser->config->n_services == CONFIG_SERVICES_MAX) {
		parser_mistake(
			parser, parser->service_line, "more than %d services", CONFIG_SERVICES_MAX);
		return;
	}
	if (config_add_service(parser->config, service) < 0)
		parser->no_memory = true;
	else
		parser->service = NULL;
}

/* Reads one file. Mistakes are in the parser; only what makes it pointless to go on is returned. */
static int parse_stream(
	struct config_parser *parser, FILE *stream, const char *file, bool daemon_file)
{
	int r;

	parser->stream = stream;
	parser->file = file;
	parser->daemon_file = daemon_file;
	parser->line = 0;
	parser->section = SECTION_NONE;
	parser->section_line = 0;
	parser->daemon_line = 0;
	parser->service_line = 0;

	r = ini_parse_stream(read_line, parser, handle_key, parser);
	if (r == -2)
		parser->no_memory = true;
	end_section(parser);
	if (!daemon_file)
		end_service(parser);
	parser->service = service_config_free(parser->service);
	free(parser->section_text);
	parser->section_text = NULL;
	parser->file = NULL;
	return parser->no_memory ? -ENOMEM : 0;
}

static void close_file(FILE **file)
{
	if (*file)
		fclose(*file);
}

static int parse_file(struct config_parser *parser, const char *file, bool daemon_file)
{
	_cleanup_(close_file) FILE *stream = fopen(file, "re");

	if (!stream) {
		int saved = errno;

		if (saved == ENOENT && daemon_file)
			return 0;
		parser_mistake(parser, 0, "%s: cannot open: %s", file, strerror(saved));
		return saved == ENOMEM ? -ENOMEM : saved == EACCES ? -EACCES : 0;
	}
	return parse_stream(parser, stream, file, daemon_file);
}

static int filter_files(const struct dirent *entry)
{
	size_t length = strlen(entry->d_name);

	return entry->d_name[0] != '.' && length > 5 &&
	       !strcmp(entry->d_name + length - 5, ".conf");
}

static int compare_files(const struct dirent **a, const struct dirent **b)
{
	return strcmp((*a)->d_name, (*b)->d_name);
}

static int parse_services(struct config_parser *parser, const char *directory)
{
	_cleanup_free_ char *path = NULL;
	struct dirent **entries = NULL;
	int n, denied = 0, r = 0;

	if (asprintf(&path, "%s/services.d", directory) < 0) {
		path = NULL;
		return -ENOMEM;
	}
	n = scandir(path, &entries, filter_files, compare_files);
	if (n < 0) {
		int saved = errno;

		if (saved == ENOENT)
			return 0;
		parser_mistake(
			parser, 0, "%s: cannot read the directory: %s", path, strerror(saved));
		return saved == ENOMEM || saved == EACCES ? -saved : 0;
	}
	for (int i = 0; i < n; i++) {
		_cleanup_free_ char *file = NULL;

		if (r != -ENOMEM) {
			if (asprintf(&file, "%s/%s", path, entries[i]->d_name) < 0) {
				file = NULL;
				r = -ENOMEM;
			} else {
				r = parse_file(parser, file, false);
			}
		}
		if (r == -EACCES)
			denied = r;
		free(entries[i]);
	}
	free(entries);
	return r == -ENOMEM ? r : denied;
}

static int parse_directory(struct config_parser *parser, const char *directory)
{
	_cleanup_free_ char *path = NULL;
	_cleanup_close_ int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int r, s;

	if (fd < 0) {
		int saved = errno;

		parser_mistake(parser, 0, "%s: cannot open the configuration directory: %s",
			directory, strerror(saved));
		return -saved;
	}
	if (asprintf(&path, "%s/reuseportd.conf", directory) < 0) {
		path = NULL;
		return -ENOMEM;
	}
	r = parse_file(parser, path, true);
	if (r == -ENOMEM)
		return r;
	s = parse_services(parser, directory);
	return s < 0 ? s : r;
}

int config_load(struct config **ret, const char *directory, char **ret_error)
{
	_cleanup_(config_freep) struct config *config = NULL;
	_cleanup_free_ char *errors = NULL;
	struct config_parser parser = {};
	size_t size;
	int r;

	r = config_new(&config);
	if (r < 0)
		return r;
	parser.config = config;
	parser.errors = open_memstream(&errors, &size);
	if (!parser.errors)
		return -ENOMEM;
	r = parse_directory(&parser, directory);
	parser_check_shares(&parser);
	if (parser.no_memory)
		r = -ENOMEM;
	if (fclose(parser.errors) != 0)
		return -ENOMEM;
	if (r == -ENOMEM)
		return r;
	if (r >= 0 && parser.failed)
		r = -EINVAL;
	if (r < 0) {
		size_t length = strlen(errors);

		/* Lines are separated, not ended, by newlines. */
		if (length && errors[length - 1] == '\n')
			errors[length - 1] = '\0';
		if (ret_error)
			*ret_error = take_pointer(errors);
		return r;
	}
	for (size_t i = 0; i < config->n_services; i++) {
		for (size_t j = 0; j < config->services[i]->n_listeners; j++)
			config->services[i]->listeners[j]->host_id = config->host_id;
	}
	*ret = take_pointer(config);
	return 0;
}
