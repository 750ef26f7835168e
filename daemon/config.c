/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Reads the configuration.
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
#include "daemon/config.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <grp.h>
#include <net/if.h>
#include <netinet/in.h>
#include <pwd.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include <ini.h>

#include "common/util.h"
#include "proto/protocol.h"

#define SERVICES_MAX 1024
#define IDENTITIES_MAX 256
#define SLOTS_MAX 32000

enum section {
	SECTION_NONE, /* before the first header, or in a section that was refused */
	SECTION_DAEMON,
	SECTION_SERVICE,
	SECTION_LISTENER,
};

struct parser {
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
	unsigned key_lines[32]; /* of the current section: where each key of keys[] was set */
};

struct key {
	enum section section;
	const char *name;
	/* Returns 0, -EINVAL with the reason reported, or -ENOMEM. */
	int (*parse)(struct parser *parser, const struct key *key, const char *value, void *field);
	size_t offset;
	uint64_t min, max;
	bool repeats;
	unsigned transports; /* bits 1 << TRANSPORT_...; 0: every one */
};

const char *transport_name(enum transport transport)
{
	switch (transport) {
	case TRANSPORT_TCP:
		return "tcp";
	case TRANSPORT_UDP:
		return "udp";
	case TRANSPORT_QUIC:
		return "quic";
	}
	return "unknown";
}

static const char *const cid_mode_names[] = {
	[CID_NONE] = "none",
	[CID_QUIC_LB] = "quic-lb",
	[CID_QUIC_LB_PLAIN] = "quic-lb-plain",
	[CID_REGISTERED] = "registered",
	[CID_NGINX] = "nginx",
	[CID_OPAQUE] = "opaque",
};

const char *cid_mode_name(enum cid_mode mode)
{
	return (size_t)mode < ARRAY_SIZE(cid_mode_names) ? cid_mode_names[mode] : "unknown";
}

static struct listener_config *listener_free(struct listener_config *listener)
{
	if (!listener)
		return NULL;
	free(listener->name);
	free(listener->file);
	free(listener->address_text);
	free(listener->bind_to_device);
	free(listener->key_file);
	free(listener);
	return NULL;
}

static struct service_config *service_free(struct service_config *service)
{
	if (!service)
		return NULL;
	for (size_t i = 0; i < service->n_listeners; i++)
		listener_free(service->listeners[i]);
	free(service->listeners);
	free(service->allow_uids);
	free(service->allow_gids);
	free(service->name);
	free(service->file);
	free(service);
	return NULL;
}

void config_free(struct config *config)
{
	if (!config)
		return;
	for (size_t i = 0; i < config->n_services; i++)
		service_free(config->services[i]);
	free(config->services);
	free(config->user);
	free(config->state_directory);
	free(config);
}

void config_freep(struct config **config)
{
	config_free(*config);
	*config = NULL;
}

/* systemd sets $STATE_DIRECTORY for StateDirectory=; several are separated by ':'. */
static char *default_state_directory(void)
{
	const char *directory = getenv("STATE_DIRECTORY");

	if (!directory || directory[0] != '/')
		return strdup("/var/lib/reuseportd");
	return strndup(directory, strcspn(directory, ":"));
}

int config_new(struct config **ret)
{
	struct config *config = calloc(1, sizeof(*config));

	if (!config)
		return -ENOMEM;
	config->user = strdup("reuseport");
	config->state_directory = default_state_directory();
	if (!config->user || !config->state_directory) {
		config_free(config);
		return -ENOMEM;
	}
	config->status_group = (gid_t)-1;
	config->admin_group = (gid_t)-1;
	config->max_connections = 512;
	config->max_slots = 4096;
	config->answer_timeout_usec = 10 * USEC_PER_SEC;
	*ret = config;
	return 0;
}

static struct service_config *service_new(const char *file)
{
	struct service_config *service = calloc(1, sizeof(*service));

	if (!service)
		return NULL;
	service->max_workers = 1024;
	service->drain_timeout_usec = 5 * 60 * USEC_PER_SEC;
	service->file = strdup(file);
	return service->file ? service : service_free(service);
}

static struct listener_config *listener_new(const char *name, const char *file, unsigned line)
{
	struct listener_config *listener = calloc(1, sizeof(*listener));

	if (!listener)
		return NULL;
	listener->line = line;
	listener->backlog = 4096;
	listener->mark = -1;
	listener->lock_filter = true;
	listener->standby_hold = true;
	listener->standby_timeout_usec = 30 * USEC_PER_SEC;
	listener->flow_timeout_usec = 60 * USEC_PER_SEC;
	listener->n_flows = 65536;
	listener->name = strdup(name);
	listener->file = strdup(file);
	return listener->name && listener->file ? listener : listener_free(listener);
}

static int config_append(struct config *config, struct service_config *service)
{
	struct service_config **services =
		reallocarray(config->services, config->n_services + 1, sizeof(*services));

	if (!services)
		return -ENOMEM;
	config->services = services;
	services[config->n_services++] = service;
	return 0;
}

static int service_append(struct service_config *service, struct listener_config *listener)
{
	struct listener_config **listeners =
		reallocarray(service->listeners, service->n_listeners + 1, sizeof(*listeners));

	if (!listeners)
		return -ENOMEM;
	service->listeners = listeners;
	listeners[service->n_listeners++] = listener;
	return 0;
}

/* Reports a mistake at a line of the current file; line 0: at the file as a whole. */
static int _printf_(3, 4) mistake_at(struct parser *parser, unsigned line, const char *format, ...)
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

#define mistake(parser, ...) mistake_at((parser), (parser)->line, __VA_ARGS__)

static bool name_valid(const char *name, bool colon)
{
	size_t length = strlen(name);

	if (!length || length >= PROTOCOL_NAME_MAX)
		return false;
	for (const char *c = name; *c; c++) {
		if ((*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') ||
			(*c >= '0' && *c <= '9'))
			continue;
		if (!strchr("_.@-", *c) && !(colon && *c == ':'))
			return false;
	}
	return true;
}

/* Decimal digits only, or 0x and hexadecimal ones. */
static int parse_unsigned(const char *text, uint64_t max, uint64_t *ret)
{
	int base = !strncmp(text, "0x", 2) ? 16 : 10;
	uint64_t value = 0;

	if (base == 16)
		text += 2;
	if (!*text)
		return -EINVAL;
	for (; *text; text++) {
		unsigned digit;

		if (*text >= '0' && *text <= '9')
			digit = (unsigned)(*text - '0');
		else if (base == 16 && isxdigit((unsigned char)*text))
			digit = (unsigned)(tolower((unsigned char)*text) - 'a') + 10;
		else
			return -EINVAL;
		if (value > (max - MIN(digit, max)) / (unsigned)base)
			return -ERANGE;
		value = value * (unsigned)base + digit;
	}
	if (value > max)
		return -ERANGE;
	*ret = value;
	return 0;
}

static const struct {
	const char *name;
	uint64_t usec;
} time_units[] = {
	{"us", 1},
	{"usec", 1},
	{"ms", USEC_PER_MSEC},
	{"msec", USEC_PER_MSEC},
	{"s", USEC_PER_SEC},
	{"sec", USEC_PER_SEC},
	{"second", USEC_PER_SEC},
	{"seconds", USEC_PER_SEC},
	{"m", 60 * USEC_PER_SEC},
	{"min", 60 * USEC_PER_SEC},
	{"minute", 60 * USEC_PER_SEC},
	{"minutes", 60 * USEC_PER_SEC},
	{"h", 3600 * USEC_PER_SEC},
	{"hr", 3600 * USEC_PER_SEC},
	{"hour", 3600 * USEC_PER_SEC},
	{"hours", 3600 * USEC_PER_SEC},
	{"d", 86400 * USEC_PER_SEC},
	{"day", 86400 * USEC_PER_SEC},
	{"days", 86400 * USEC_PER_SEC},
	{"w", 604800 * USEC_PER_SEC},
	{"week", 604800 * USEC_PER_SEC},
	{"weeks", 604800 * USEC_PER_SEC},
};

static uint64_t time_unit(const char *name, size_t length)
{
	if (!length)
		return USEC_PER_SEC;
	for (size_t i = 0; i < ARRAY_SIZE(time_units); i++) {
		if (strlen(time_units[i].name) == length &&
			!memcmp(time_units[i].name, name, length))
			return time_units[i].usec;
	}
	return 0;
}

#define TIME_MAX (36500 * 86400ULL * USEC_PER_SEC)

/* "30", "1.5s", "1h 30min", as in systemd.time(7); "infinity" is 0. */
static int parse_time(const char *text, uint64_t *ret)
{
	uint64_t sum = 0;

	if (!strcmp(text, "infinity")) {
		*ret = 0;
		return 0;
	}
	text += strspn(text, " \t");
	if (!*text)
		return -EINVAL;
	while (*text) {
		size_t digits = strspn(text, "0123456789"), length;
		uint64_t value = 0, unit, part = 0, scale = 1;

		if (!digits || digits > 18)
			return -EINVAL;
		for (; digits; digits--, text++)
			value = value * 10 + (uint64_t)(*text - '0');
		if (*text == '.') {
			text++;
			digits = strspn(text, "0123456789");
			if (!digits || digits > 6)
				return -EINVAL;
			for (; digits; digits--, text++, scale *= 10)
				part = part * 10 + (uint64_t)(*text - '0');
		}
		text += strspn(text, " \t");
		length = strcspn(text, "0123456789. \t");
		unit = time_unit(text, length);
		if (!unit)
			return -EINVAL;
		if (value > TIME_MAX / unit)
			return -ERANGE;
		sum += value * unit + part * unit / scale;
		if (sum > TIME_MAX)
			return -ERANGE;
		text += length;
		text += strspn(text, " \t");
	}
	*ret = sum;
	return 0;
}

static int parse_size(const char *text, uint64_t max, uint64_t *ret)
{
	char digits[32];
	size_t length = strlen(text);
	uint64_t value, factor = 1;
	int r;

	if (!length || length >= sizeof(digits))
		return -EINVAL;
	memcpy(digits, text, length + 1);
	switch (digits[length - 1]) {
	case 'K':
		factor = 1ULL << 10;
		break;
	case 'M':
		factor = 1ULL << 20;
		break;
	case 'G':
		factor = 1ULL << 30;
		break;
	}
	if (factor > 1)
		digits[length - 1] = '\0';
	r = parse_unsigned(digits, max / factor, &value);
	if (r < 0)
		return r;
	*ret = value * factor;
	return 0;
}

/* PORT, A.B.C.D:PORT or [IPV6]:PORT, as in systemd.socket(5). text: NULL with -ENOMEM only. */
static int parse_address(const char *text, struct sockaddr_storage *ret_address,
	socklen_t *ret_length, char **ret_text)
{
	struct sockaddr_storage address = {};
	struct sockaddr_in *in = (struct sockaddr_in *)&address;
	struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)&address;
	const char *port_text, *colon = strrchr(text, ':');
	char host[INET6_ADDRSTRLEN + IF_NAMESIZE + 1], normal[INET6_ADDRSTRLEN];
	char device[IF_NAMESIZE] = "", *zone, *result;
	uint64_t port;
	bool brackets = text[0] == '[';
	size_t length;

	port_text = colon ? colon + 1 : text;
	if (!*port_text || strspn(port_text, "0123456789") != strlen(port_text) ||
		parse_unsigned(port_text, UINT16_MAX, &port) < 0 || !port)
		return -EINVAL;
	if (!colon) {
		strcpy(host, "::");
		brackets = true;
	} else {
		length = (size_t)(colon - text);
		if (brackets && (length < 3 || text[length - 1] != ']'))
			return -EINVAL;
		if (brackets) {
			text++;
			length -= 2;
		}
		if (length >= sizeof(host))
			return -EINVAL;
		memcpy(host, text, length);
		host[length] = '\0';
	}
	if (!brackets) {
		if (inet_pton(AF_INET, host, &in->sin_addr) != 1)
			return -EINVAL;
		in->sin_family = AF_INET;
		in->sin_port = htons((uint16_t)port);
		inet_ntop(AF_INET, &in->sin_addr, normal, sizeof(normal));
		if (asprintf(&result, "%s:%u", normal, (unsigned)port) < 0)
			return -ENOMEM;
		*ret_length = sizeof(*in);
	} else {
		zone = strchr(host, '%');
		if (zone) {
			*zone++ = '\0';
			in6->sin6_scope_id = if_nametoindex(zone);
			if (!in6->sin6_scope_id || strlen(zone) >= sizeof(device))
				return -EINVAL;
			strcpy(device, zone);
		}
		if (inet_pton(AF_INET6, host, &in6->sin6_addr) != 1)
			return -EINVAL;
		in6->sin6_family = AF_INET6;
		in6->sin6_port = htons((uint16_t)port);
		inet_ntop(AF_INET6, &in6->sin6_addr, normal, sizeof(normal));
		if (asprintf(&result, "[%s%s%s]:%u", normal, zone ? "%" : "", device,
			    (unsigned)port) < 0)
			return -ENOMEM;
		*ret_length = sizeof(*in6);
	}
	*ret_address = address;
	*ret_text = result;
	return 0;
}

static int key_boolean(struct parser *parser, const struct key *key, const char *value, void *field)
{
	static const char *const yes[] = {"yes", "true", "1", "on"};
	static const char *const no[] = {"no", "false", "0", "off"};

	for (size_t i = 0; i < ARRAY_SIZE(yes); i++) {
		if (!strcasecmp(value, yes[i]) || !strcasecmp(value, no[i])) {
			*(bool *)field = !strcasecmp(value, yes[i]);
			return 0;
		}
	}
	return mistake(parser, "%s= is '%s', not yes or no", key->name, value);
}

static int number(struct parser *parser, const struct key *key, const char *value, uint64_t *ret)
{
	if (parse_unsigned(value, key->max, ret) < 0 || *ret < key->min)
		return mistake(parser, "%s= is '%s', not a number from %llu to %llu", key->name,
			value, (unsigned long long)key->min, (unsigned long long)key->max);
	return 0;
}

/* A field of type int or unsigned. */
static int key_number(struct parser *parser, const struct key *key, const char *value, void *field)
{
	uint64_t result = 0;
	int r = number(parser, key, value, &result);

	if (r < 0)
		return r;
	*(unsigned *)field = (unsigned)result;
	return 0;
}

static int key_number16(
	struct parser *parser, const struct key *key, const char *value, void *field)
{
	uint64_t result = 0;
	int r = number(parser, key, value, &result);

	if (r < 0)
		return r;
	*(uint16_t *)field = (uint16_t)result;
	return 0;
}

static int key_mark(struct parser *parser, const struct key *key, const char *value, void *field)
{
	uint64_t result = 0;
	int r = number(parser, key, value, &result);

	if (r < 0)
		return r;
	*(int64_t *)field = (int64_t)result;
	return 0;
}

static int key_flows(struct parser *parser, const struct key *key, const char *value, void *field)
{
	uint64_t result = 0;

	if (parse_size(value, key->max, &result) < 0 || result < key->min ||
		(result & (result - 1)))
		return mistake(parser, "%s= is '%s', not a power of two from %llu to %llu",
			key->name, value, (unsigned long long)key->min,
			(unsigned long long)key->max);
	*(uint32_t *)field = (uint32_t)result;
	return 0;
}

static int key_size(struct parser *parser, const struct key *key, const char *value, void *field)
{
	uint64_t result = 0;

	if (parse_size(value, key->max, &result) < 0 || result < key->min)
		return mistake(parser,
			"%s= is '%s', not a size from %llu octets to 1G (a number, which K, M or G "
			"may follow)",
			key->name, value, (unsigned long long)key->min);
	*(size_t *)field = (size_t)result;
	return 0;
}

/* min > 0: there must be an end to it. */
static int key_time(struct parser *parser, const struct key *key, const char *value, void *field)
{
	uint64_t result = 0;

	if (parse_time(value, &result) < 0)
		return mistake(parser,
			"%s= is '%s', not a time span (a number of seconds, or for instance 500ms, "
			"30s, 5min, 1h 30min%s)",
			key->name, value, key->min ? "" : ", infinity");
	if (key->min && (result < key->min || result > key->max))
		return mistake(parser, "%s= is '%s', but must be from %llums to %llus", key->name,
			value, (unsigned long long)(key->min / USEC_PER_MSEC),
			(unsigned long long)(key->max / USEC_PER_SEC));
	*(uint64_t *)field = result;
	return 0;
}

static int key_ipv6_only(
	struct parser *parser, const struct key *key, const char *value, void *field)
{
	if (strcmp(value, "both") && strcmp(value, "ipv6-only"))
		return mistake(parser, "%s= is '%s', not both or ipv6-only", key->name, value);
	*(bool *)field = !strcmp(value, "ipv6-only");
	return 0;
}

static int key_standby(struct parser *parser, const struct key *key, const char *value, void *field)
{
	if (strcmp(value, "hold") && strcmp(value, "refuse"))
		return mistake(parser, "%s= is '%s', not hold or refuse", key->name, value);
	*(bool *)field = !strcmp(value, "hold");
	return 0;
}

static int key_cid_mode(
	struct parser *parser, const struct key *key, const char *value, void *field)
{
	for (size_t i = CID_QUIC_LB; i < ARRAY_SIZE(cid_mode_names); i++) {
		if (!strcmp(value, cid_mode_names[i])) {
			*(enum cid_mode *)field = (enum cid_mode)i;
			return 0;
		}
	}
	return mistake(parser,
		"%s= is '%s', not quic-lb, quic-lb-plain, registered, nginx or opaque", key->name,
		value);
}

static int key_device(struct parser *parser, const struct key *key, const char *value, void *field)
{
	char *copy;

	if (strlen(value) >= IF_NAMESIZE || strpbrk(value, "/ \t"))
		return mistake(parser,
			"%s= is '%s', not the name of a network interface (at most "
			"15 characters)",
			key->name, value);
	copy = strdup(value);
	if (!copy)
		return -ENOMEM;
	free(*(char **)field);
	*(char **)field = copy;
	return 0;
}

static int key_state_directory(
	struct parser *parser, const struct key *key, const char *value, void *field)
{
	char *copy;

	if (value[0] != '/')
		return mistake(
			parser, "%s= is '%s', not a path that begins with /", key->name, value);
	copy = strdup(value);
	if (!copy)
		return -ENOMEM;
	free(*(char **)field);
	*(char **)field = copy;
	parser->config->state_directory_set = true;
	return 0;
}

/* The file is read when the listener is opened, by the daemon's user. */
static int key_key_file(
	struct parser *parser, const struct key *key, const char *value, void *field)
{
	const char *credentials = getenv("CREDENTIALS_DIRECTORY");
	char *path;

	if (value[0] != '/' && !credentials)
		return mistake(parser,
			"%s= is '%s', neither a path that begins with / nor (as "
			"$CREDENTIALS_DIRECTORY is not set) the name of a credential",
			key->name, value);
	if (value[0] == '/')
		path = strdup(value);
	else if (asprintf(&path, "%s/%s", credentials, value) < 0)
		path = NULL;
	if (!path)
		return -ENOMEM;
	free(*(char **)field);
	*(char **)field = path;
	return 0;
}

static int key_service_name(
	struct parser *parser, const struct key *key, const char *value, void *field)
{
	char *copy;

	if (!name_valid(value, true))
		return mistake(parser,
			"%s= is '%s', not a name of 1 to 63 letters, digits and _.@:-", key->name,
			value);
	copy = strdup(value);
	if (!copy)
		return -ENOMEM;
	free(*(char **)field);
	*(char **)field = copy;
	return 0;
}

static int key_user(struct parser *parser, const struct key *key, const char *value, void *field)
{
	char *copy;

	if (!getpwnam(value))
		return mistake(
			parser, "%s= names the user '%s', which does not exist", key->name, value);
	copy = strdup(value);
	if (!copy)
		return -ENOMEM;
	free(*(char **)field);
	*(char **)field = copy;
	return 0;
}

/* A user's or group's name or number. uid_t and gid_t are both uint32_t on Linux. */
static int parse_identity(
	struct parser *parser, const struct key *key, const char *text, bool group, uint32_t *ret)
{
	uint64_t value;

	if (strspn(text, "0123456789") == strlen(text)) {
		if (parse_unsigned(text, UINT32_MAX - 1, &value) < 0)
			return mistake(parser, "%s= is '%s', not a number from 0 to 4294967294",
				key->name, text);
		*ret = (uint32_t)value;
		return 0;
	}
	if (group) {
		struct group *entry = getgrnam(text);

		if (!entry)
			return mistake(parser, "%s= names the group '%s', which does not exist",
				key->name, text);
		*ret = entry->gr_gid;
	} else {
		struct passwd *entry = getpwnam(text);

		if (!entry)
			return mistake(parser, "%s= names the user '%s', which does not exist",
				key->name, text);
		*ret = entry->pw_uid;
	}
	return 0;
}

static int key_group(struct parser *parser, const struct key *key, const char *value, void *field)
{
	return parse_identity(parser, key, value, true, field);
}

static int key_allow(struct parser *parser, const struct key *key, const char *value, void *field)
{
	struct service_config *service = field;
	bool group = !strcmp(key->name, "AllowGroup");
	uint32_t **list = group ? &service->allow_gids : &service->allow_uids;
	size_t *n_list = group ? &service->n_allow_gids : &service->n_allow_uids;
	_cleanup_free_ char *copy = strdup(value);
	char *saved, *word;
	int r = 0;

	if (!copy)
		return -ENOMEM;
	for (word = strtok_r(copy, " \t", &saved); word; word = strtok_r(NULL, " \t", &saved)) {
		uint32_t identity, *grown;

		if (parse_identity(parser, key, word, group, &identity) < 0) {
			r = -EINVAL;
			continue;
		}
		if (*n_list == IDENTITIES_MAX)
			return mistake(
				parser, "%s= has more than %d entries", key->name, IDENTITIES_MAX);
		grown = reallocarray(*list, *n_list + 1, sizeof(*grown));
		if (!grown)
			return -ENOMEM;
		*list = grown;
		grown[(*n_list)++] = identity;
	}
	return r;
}

static int key_listen(struct parser *parser, const struct key *key, const char *value, void *field)
{
	struct listener_config *listener = field;
	enum transport transport = (enum transport)key->min;
	int r;

	if (listener->transport)
		return mistake(parser,
			"%s= is a second address; a listener has one: begin another "
			"[Listener NAME]",
			key->name);
	listener->transport = transport;
	r = parse_address(
		value, &listener->address, &listener->address_length, &listener->address_text);
	if (r == -EINVAL)
		return mistake(parser,
			"%s= is '%s', not an address: PORT, A.B.C.D:PORT or [IPV6]:PORT with a port "
			"from 1 to 65535",
			key->name, value);
	return r;
}

#define TCP (1u << TRANSPORT_TCP)
#define UDP (1u << TRANSPORT_UDP)
#define QUIC (1u << TRANSPORT_QUIC)
#define DAEMON(member) .offset = offsetof(struct config, member)
#define SERVICE(member) .offset = offsetof(struct service_config, member)
#define LISTENER(member) .offset = offsetof(struct listener_config, member)

static const struct key keys[] = {
	{SECTION_DAEMON, "User", key_user, DAEMON(user)},
	{SECTION_DAEMON, "StatusGroup", key_group, DAEMON(status_group)},
	{SECTION_DAEMON, "AdminGroup", key_group, DAEMON(admin_group)},
	{SECTION_DAEMON, "HostID", key_number16, DAEMON(host_id), .min = 0, .max = UINT16_MAX},
	{SECTION_DAEMON, "MaxConnectionsPerUser", key_number, DAEMON(max_connections), .min = 1,
		.max = 65535},
	{SECTION_DAEMON, "MaxSlotsPerUser", key_number, DAEMON(max_slots), .min = 1,
		.max = SLOTS_MAX},
	{SECTION_DAEMON, "AnswerTimeoutSec", key_time, DAEMON(answer_timeout_usec),
		.min = USEC_PER_MSEC, .max = 3600 * USEC_PER_SEC},
	{SECTION_DAEMON, "StateDirectory", key_state_directory, DAEMON(state_directory)},
	{SECTION_SERVICE, "Name", key_service_name, SERVICE(name)},
	{SECTION_SERVICE, "AllowUser", key_allow, .repeats = true},
	{SECTION_SERVICE, "AllowGroup", key_allow, .repeats = true},
	{SECTION_SERVICE, "MaxWorkers", key_number, SERVICE(max_workers), .min = 1,
		.max = SLOTS_MAX},
	{SECTION_SERVICE, "DrainTimeoutSec", key_time, SERVICE(drain_timeout_usec)},
	{SECTION_LISTENER, "ListenStream", key_listen, .min = TRANSPORT_TCP, .repeats = true},
	{SECTION_LISTENER, "ListenDatagram", key_listen, .min = TRANSPORT_UDP, .repeats = true},
	{SECTION_LISTENER, "ListenQUIC", key_listen, .min = TRANSPORT_QUIC, .repeats = true},
	{SECTION_LISTENER, "Backlog", key_number, LISTENER(backlog), .min = 1, .max = INT32_MAX,
		.transports = TCP},
	{SECTION_LISTENER, "ReceiveBuffer", key_size, LISTENER(receive_buffer), .min = 1024,
		.max = 1ULL << 30},
	{SECTION_LISTENER, "SendBuffer", key_size, LISTENER(send_buffer), .min = 1024,
		.max = 1ULL << 30},
	{SECTION_LISTENER, "BindIPv6Only", key_ipv6_only, LISTENER(ipv6_only)},
	{SECTION_LISTENER, "BindToDevice", key_device, LISTENER(bind_to_device)},
	{SECTION_LISTENER, "FreeBind", key_boolean, LISTENER(free_bind)},
	{SECTION_LISTENER, "Transparent", key_boolean, LISTENER(transparent)},
	{SECTION_LISTENER, "Mark", key_mark, LISTENER(mark), .min = 0, .max = UINT32_MAX},
	{SECTION_LISTENER, "LockFilter", key_boolean, LISTENER(lock_filter)},
	{SECTION_LISTENER, "Standby", key_standby, LISTENER(standby_hold)},
	{SECTION_LISTENER, "StandbyTimeoutSec", key_time, LISTENER(standby_timeout_usec)},
	{SECTION_LISTENER, "FlowTimeoutSec", key_time, LISTENER(flow_timeout_usec),
		.min = USEC_PER_MSEC, .max = 86400 * USEC_PER_SEC, .transports = UDP | QUIC},
	{SECTION_LISTENER, "Flows", key_flows, LISTENER(n_flows), .min = 256, .max = 1 << 24,
		.transports = UDP | QUIC},
	{SECTION_LISTENER, "ConnectionID", key_cid_mode, LISTENER(cid_mode), .transports = QUIC},
	{SECTION_LISTENER, "ConnectionIDKeyFile", key_key_file, LISTENER(key_file),
		.transports = QUIC},
};

_Static_assert(
	ARRAY_SIZE(keys) <= ARRAY_SIZE(((struct parser *)NULL)->key_lines), "a line for every key");
_Static_assert(sizeof(uid_t) == sizeof(uint32_t) && sizeof(gid_t) == sizeof(uint32_t),
	"identities are 32 bits wide");
_Static_assert(sizeof(int) == sizeof(unsigned), "key_number() writes both");

static void unknown_key(struct parser *parser, const char *name)
{
	const char *separator = "";

	parser->failed = true;
	fprintf(parser->errors, "%s:%u: unknown key '%s' in %s; known are ", parser->file,
		parser->line, name, parser->section_text);
	for (size_t i = 0; i < ARRAY_SIZE(keys); i++) {
		if (keys[i].section != parser->section)
			continue;
		fprintf(parser->errors, "%s%s", separator, keys[i].name);
		separator = ", ";
	}
	fputc('\n', parser->errors);
}

static void set_key(struct parser *parser, const char *name, const char *value)
{
	const struct key *key = NULL;
	size_t i;
	char *object;

	for (i = 0; i < ARRAY_SIZE(keys); i++) {
		if (keys[i].section == parser->section && !strcmp(keys[i].name, name)) {
			key = &keys[i];
			break;
		}
	}
	if (!key) {
		unknown_key(parser, name);
		return;
	}
	if (!*value) {
		mistake(parser, "%s= has no value", name);
		return;
	}
	if (parser->key_lines[i] && !key->repeats) {
		mistake(parser, "%s= was set on line %u already", name, parser->key_lines[i]);
		return;
	}
	parser->key_lines[i] = parser->line;
	switch (parser->section) {
	case SECTION_DAEMON:
		object = (char *)parser->config;
		break;
	case SECTION_SERVICE:
		object = (char *)parser->service;
		break;
	default:
		object = (char *)parser->listener;
		break;
	}
	if (key->parse(parser, key, value, object + key->offset) == -ENOMEM)
		parser->no_memory = true;
}

/* A listener's section ends: what can be judged only when all its keys are known. */
static void end_listener(struct parser *parser)
{
	struct listener_config *listener = parser->listener;

	parser->listener = NULL;
	if (!listener->transport)
		mistake_at(parser, listener->line,
			"%s has no address: ListenStream=, ListenDatagram= or ListenQUIC= is needed",
			parser->section_text);
	for (size_t i = 0; listener->transport && i < ARRAY_SIZE(keys); i++) {
		unsigned line = parser->key_lines[i], transports = keys[i].transports;

		if (keys[i].section != SECTION_LISTENER || !line)
			continue;
		if (transports && !(transports & (1u << listener->transport)))
			mistake_at(parser, line, "%s= is not for %s; it is for %s%s%s listeners",
				keys[i].name, transport_name(listener->transport),
				transports & TCP ? "tcp" : "", transports & UDP ? "udp and " : "",
				transports & QUIC ? "quic" : "");
		if (keys[i].parse == key_ipv6_only && listener->address.ss_family == AF_INET)
			mistake_at(parser, line, "%s= is not for the IPv4 address %s", keys[i].name,
				listener->address_text);
		if (keys[i].parse == key_key_file && listener->transport == TRANSPORT_QUIC &&
			listener->cid_mode != CID_NONE && listener->cid_mode != CID_QUIC_LB)
			mistake_at(parser, line,
				"%s= is not for ConnectionID=%s; it is for quic-lb, whose IDs are "
				"encrypted",
				keys[i].name, cid_mode_name(listener->cid_mode));
	}
	if (listener->transport == TRANSPORT_QUIC && listener->cid_mode == CID_NONE)
		listener->cid_mode = CID_QUIC_LB;

	for (size_t i = 0; i < parser->service->n_listeners; i++) {
		if (!strcmp(parser->service->listeners[i]->name, listener->name)) {
			mistake_at(parser, listener->line, "a listener '%s' is on line %u already",
				listener->name, parser->service->listeners[i]->line);
			break;
		}
	}
	if (parser->service->n_listeners == PROTOCOL_LISTENERS_MAX) {
		mistake_at(parser, listener->line, "a service has at most %d listeners",
			PROTOCOL_LISTENERS_MAX);
		listener_free(listener);
	} else if (service_append(parser->service, listener) < 0) {
		parser->no_memory = true;
		listener_free(listener);
	}
}

static void end_section(struct parser *parser)
{
	if (parser->section == SECTION_LISTENER)
		end_listener(parser);
	parser->section = SECTION_NONE;
	memset(parser->key_lines, 0, sizeof(parser->key_lines));
}

/* Needs the service, which a file may also begin with its listeners. */
static bool need_service(struct parser *parser)
{
	if (!parser->service)
		parser->service = service_new(parser->file);
	if (!parser->service)
		parser->no_memory = true;
	return parser->service;
}

/* text: what stands between the brackets. */
static void begin_section(struct parser *parser, const char *text)
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
		parser->listener = listener_new(text, parser->file, parser->line);
		if (parser->listener)
			parser->section = SECTION_LISTENER;
		else
			parser->no_memory = true;
	} else {
		mistake(parser, "unknown section %s; known here %s", header,
			parser->daemon_file ? "is [Daemon]" : "are [Service] and [Listener NAME]");
	}
}

static void read_section(struct parser *parser, char *line)
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
	struct parser *parser = data;
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
			mistake_at(parser, 0, "cannot read: %s", strerror(errno));
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
	struct parser *parser = user;

	if (parser->section != SECTION_NONE)
		set_key(parser, name, value);
	else if (!parser->section_line)
		mistake(parser, "'%s=' stands before the first section", name);
	return 1;
}

static bool same_address(const struct listener_config *a, const struct listener_config *b)
{
	if ((a->transport == TRANSPORT_TCP) != (b->transport == TRANSPORT_TCP))
		return false;
	if (a->address_length != b->address_length ||
		memcmp(&a->address, &b->address, a->address_length))
		return false;
	if (!a->bind_to_device || !b->bind_to_device)
		return a->bind_to_device == b->bind_to_device;
	return !strcmp(a->bind_to_device, b->bind_to_device);
}

static const struct listener_config *find_address(
	const struct service_config *service, const struct listener_config *listener)
{
	for (size_t i = 0; i < service->n_listeners; i++) {
		const struct listener_config *other = service->listeners[i];

		if (other != listener && other->address_text && same_address(other, listener))
			return other;
	}
	return NULL;
}

/* Reports a listener whose address an earlier one has. */
static void check_address(struct parser *parser, const struct service_config *service,
	const struct listener_config *listener)
{
	const struct listener_config *other;
	const char *owner = service->name;

	if (!listener->address_text)
		return;
	other = find_address(service, listener);
	/* The later of two in the same file is the one to report. */
	if (other && other->line > listener->line)
		other = NULL;
	for (size_t i = 0; !other && i < parser->config->n_services; i++) {
		owner = parser->config->services[i]->name;
		other = find_address(parser->config->services[i], listener);
	}
	if (other)
		mistake_at(parser, listener->line,
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

static void end_service(struct parser *parser)
{
	struct service_config *service = parser->service;

	if (!parser->service_line) {
		mistake_at(parser, parser->line, "the file has no [Service] section");
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
			mistake_at(parser, parser->service_line,
				"the file's name gives '%s', not a name of 1 to 63 letters, digits "
				"and _.@:-; set Name=",
				service->name);
	}
	if (!service->n_listeners)
		mistake_at(parser, parser->service_line,
			"the service '%s' has no listener: a [Listener NAME] section is needed",
			service->name);
	for (size_t i = 0; i < service->n_listeners; i++)
		check_address(parser, service, service->listeners[i]);
	for (size_t i = 0; i < parser->config->n_services; i++) {
		if (!strcmp(parser->config->services[i]->name, service->name))
			mistake_at(parser, parser->service_line,
				"the service '%s' is defined by %s already", service->name,
				parser->config->services[i]->file);
	}
	if (parser->config->n_services == SERVICES_MAX) {
		mistake_at(parser, parser->service_line, "more than %d services", SERVICES_MAX);
		return;
	}
	if (config_append(parser->config, service) < 0)
		parser->no_memory = true;
	else
		parser->service = NULL;
}

/* Reads one file. Mistakes are in the parser; only what makes it pointless to go on is returned. */
static int parse_stream(struct parser *parser, FILE *stream, const char *file, bool daemon_file)
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
	parser->service = service_free(parser->service);
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

static int parse_file(struct parser *parser, const char *file, bool daemon_file)
{
	_cleanup_(close_file) FILE *stream = fopen(file, "re");

	if (!stream) {
		int saved = errno;

		if (saved == ENOENT && daemon_file)
			return 0;
		mistake_at(parser, 0, "%s: cannot open: %s", file, strerror(saved));
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

static int parse_services(struct parser *parser, const char *directory)
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
		mistake_at(parser, 0, "%s: cannot read the directory: %s", path, strerror(saved));
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

static int parse_directory(struct parser *parser, const char *directory)
{
	_cleanup_free_ char *path = NULL;
	_cleanup_close_ int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int r, s;

	if (fd < 0) {
		int saved = errno;

		mistake_at(parser, 0, "%s: cannot open the configuration directory: %s", directory,
			strerror(saved));
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
	struct parser parser = {};
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

static int _printf_(2, 3) listen_mistake(char **ret_error, const char *format, ...)
{
	va_list arguments;
	char *text;
	int n;

	va_start(arguments, format);
	n = vasprintf(&text, format, arguments);
	va_end(arguments);
	if (n < 0)
		return -ENOMEM;
	if (ret_error)
		*ret_error = text;
	else
		free(text);
	return -EINVAL;
}

/* "tcp", then "tcp-2", "tcp-3": the first that the service does not have. */
static void name_listener(const struct service_config *service, enum transport transport,
	char name[PROTOCOL_NAME_MAX])
{
	bool taken = true;

	for (unsigned k = 1; taken; k++) {
		if (k == 1)
			snprintf(name, PROTOCOL_NAME_MAX, "%s", transport_name(transport));
		else
			snprintf(name, PROTOCOL_NAME_MAX, "%s-%u", transport_name(transport), k);
		taken = false;
		for (size_t i = 0; service && i < service->n_listeners; i++)
			taken = taken || !strcmp(service->listeners[i]->name, name);
	}
}

static int parse_url(const char *url, enum transport *ret_transport, const char **ret_address)
{
	for (enum transport t = TRANSPORT_TCP; t <= TRANSPORT_QUIC; t++) {
		size_t length = strlen(transport_name(t));

		if (!strncmp(url, transport_name(t), length) && !strncmp(url + length, "://", 3)) {
			*ret_transport = t;
			*ret_address = url + length + 3;
			return 0;
		}
	}
	return -EINVAL;
}

static void listener_freep(struct listener_config **listener)
{
	listener_free(*listener);
}

static int check_listen(const struct config *config, const struct service_config *service,
	const struct listener_config *listener, const char *argument, char **ret_error)
{
	if (service && !service->allow_all)
		return listen_mistake(ret_error,
			"--listen %s: the service '%s' is defined by %s already", argument,
			service->name, service->file);
	if (service && service->n_listeners == PROTOCOL_LISTENERS_MAX)
		return listen_mistake(ret_error, "--listen %s: a service has at most %d listeners",
			argument, PROTOCOL_LISTENERS_MAX);
	for (size_t i = 0; i < config->n_services; i++) {
		const struct listener_config *other = find_address(config->services[i], listener);

		if (other)
			return listen_mistake(ret_error,
				"--listen %s: the address is that of the listener '%s' of the "
				"service '%s' already",
				argument, other->name, config->services[i]->name);
	}
	if (!service && config->n_services == SERVICES_MAX)
		return listen_mistake(
			ret_error, "--listen %s: more than %d services", argument, SERVICES_MAX);
	return 0;
}

/* Appends the listener to the service of this name, which is made if there is none. */
static int add_listener(struct config *config, struct service_config *service, const char *name,
	struct listener_config *listener)
{
	struct service_config *created = NULL;
	int r;

	if (!service) {
		created = service_new("--listen");
		if (!created)
			return -ENOMEM;
		created->allow_all = true;
		created->name = strdup(name);
		if (!created->name) {
			service_free(created);
			return -ENOMEM;
		}
		service = created;
	}
	r = service_append(service, listener);
	if (r >= 0 && created) {
		r = config_append(config, created);
		if (r < 0)
			created->n_listeners = 0; /* stays the caller's */
	}
	if (r < 0)
		service_free(created);
	return r;
}

int config_add_listen(struct config *config, const char *argument, char **ret_error)
{
	static const char form[] = "NAME=tcp://ADDRESS:PORT, udp:// or quic://";
	_cleanup_(listener_freep) struct listener_config *listener = NULL;
	_cleanup_free_ char *name = NULL;
	struct service_config *service = NULL;
	const char *equals = strchr(argument, '='), *address;
	char listener_name[PROTOCOL_NAME_MAX];
	enum transport transport;
	int r;

	if (!equals)
		return listen_mistake(ret_error, "--listen %s: not %s", argument, form);
	name = strndup(argument, (size_t)(equals - argument));
	if (!name)
		return -ENOMEM;
	if (!name_valid(name, true))
		return listen_mistake(ret_error,
			"--listen %s: '%s' is not a name of 1 to 63 letters, digits and _.@:-",
			argument, name);
	if (parse_url(equals + 1, &transport, &address) < 0)
		return listen_mistake(ret_error, "--listen %s: not %s", argument, form);

	for (size_t i = 0; i < config->n_services; i++) {
		if (!strcmp(config->services[i]->name, name))
			service = config->services[i];
	}
	name_listener(service, transport, listener_name);
	listener = listener_new(listener_name, "--listen", 0);
	if (!listener)
		return -ENOMEM;
	listener->transport = transport;
	listener->cid_mode = transport == TRANSPORT_QUIC ? CID_QUIC_LB : CID_NONE;
	listener->host_id = config->host_id;
	r = parse_address(
		address, &listener->address, &listener->address_length, &listener->address_text);
	if (r == -EINVAL)
		return listen_mistake(ret_error,
			"--listen %s: '%s' is not PORT, A.B.C.D:PORT or [IPV6]:PORT with a port from "
			"1 to 65535",
			argument, address);
	if (r < 0)
		return r;
	r = check_listen(config, service, listener, argument, ret_error);
	if (r < 0)
		return r;
	r = add_listener(config, service, name, listener);
	if (r < 0)
		return r;
	listener = NULL;
	return 0;
}

bool service_config_allows(
	const struct service_config *service, uid_t uid, const gid_t *gids, size_t n_gids)
{
	if (service->allow_all || uid == 0)
		return true;
	for (size_t i = 0; i < service->n_allow_uids; i++) {
		if (service->allow_uids[i] == uid)
			return true;
	}
	for (size_t i = 0; i < service->n_allow_gids; i++) {
		for (size_t j = 0; j < n_gids; j++) {
			if (service->allow_gids[i] == gids[j])
				return true;
		}
	}
	return false;
}
