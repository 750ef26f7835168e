/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The keys of the configuration's files: a table of what each is called, where it stands, what it
 * takes and which field it sets, and for each kind of value the sentence that says what is wrong
 * with one. A new key is a line in keys[].
 */
#include "daemon/config-parser.h"

#include <grp.h>
#include <net/if.h>
#include <pwd.h>
#include <stddef.h>
#include <string.h>
#include <strings.h>

#include "common/util.h"
#include "daemon/config-value.h"

#define IDENTITIES_MAX 256
#define SLOTS_MAX 32000

struct config_key {
	enum section section;
	const char *name;
	/* Returns 0, -EINVAL with the reason reported, or -ENOMEM. */
	int (*parse)(struct config_parser *parser, const struct config_key *key, const char *value,
		void *field);
	size_t offset;
	uint64_t min, max;
	bool repeats;
	unsigned transports; /* bits 1 << TRANSPORT_...; 0: every one */
};

static int key_boolean(
	struct config_parser *parser, const struct config_key *key, const char *value, void *field)
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

static int number(struct config_parser *parser, const struct config_key *key, const char *value,
	uint64_t *ret)
{
	if (parse_unsigned(value, key->max, ret) < 0 || *ret < key->min)
		return mistake(parser, "%s= is '%s', not a number from %llu to %llu", key->name,
			value, (unsigned long long)key->min, (unsigned long long)key->max);
	return 0;
}

/* A field of type int or unsigned. */
static int key_number(
	struct config_parser *parser, const struct config_key *key, const char *value, void *field)
{
	uint64_t result = 0;
	int r = number(parser, key, value, &result);

	if (r < 0)
		return r;
	*(unsigned *)field = (unsigned)result;
	return 0;
}

static int key_number16(
	struct config_parser *parser, const struct config_key *key, const char *value, void *field)
{
	uint64_t result = 0;
	int r = number(parser, key, value, &result);

	if (r < 0)
		return r;
	*(uint16_t *)field = (uint16_t)result;
	return 0;
}

static int key_mark(
	struct config_parser *parser, const struct config_key *key, const char *value, void *field)
{
	uint64_t result = 0;
	int r = number(parser, key, value, &result);

	if (r < 0)
		return r;
	*(int64_t *)field = (int64_t)result;
	return 0;
}

static int key_flows(
	struct config_parser *parser, const struct config_key *key, const char *value, void *field)
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

static int key_size(
	struct config_parser *parser, const struct config_key *key, const char *value, void *field)
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
static int key_time(
	struct config_parser *parser, const struct config_key *key, const char *value, void *field)
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
	struct config_parser *parser, const struct config_key *key, const char *value, void *field)
{
	if (strcmp(value, "both") && strcmp(value, "ipv6-only"))
		return mistake(parser, "%s= is '%s', not both or ipv6-only", key->name, value);
	*(bool *)field = !strcmp(value, "ipv6-only");
	return 0;
}

static int key_standby(
	struct config_parser *parser, const struct config_key *key, const char *value, void *field)
{
	if (strcmp(value, "hold") && strcmp(value, "refuse"))
		return mistake(parser, "%s= is '%s', not hold or refuse", key->name, value);
	*(bool *)field = !strcmp(value, "hold");
	return 0;
}

static int key_cid_mode(
	struct config_parser *parser, const struct config_key *key, const char *value, void *field)
{
	for (enum cid_mode mode = CID_QUIC_LB; mode <= CID_OPAQUE; mode++) {
		if (!strcmp(value, cid_mode_name(mode))) {
			*(enum cid_mode *)field = mode;
			return 0;
		}
	}
	return mistake(parser,
		"%s= is '%s', not quic-lb, quic-lb-plain, registered, nginx or opaque", key->name,
		value);
}

static int key_device(
	struct config_parser *parser, const struct config_key *key, const char *value, void *field)
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

/* The file is read when the listener is opened, by the daemon's user. */
static int key_key_file(
	struct config_parser *parser, const struct config_key *key, const char *value, void *field)
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
	struct config_parser *parser, const struct config_key *key, const char *value, void *field)
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

static int key_user(
	struct config_parser *parser, const struct config_key *key, const char *value, void *field)
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
static int parse_identity(struct config_parser *parser, const struct config_key *key,
	const char *text, bool group, uint32_t *ret)
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

static int key_group(
	struct config_parser *parser, const struct config_key *key, const char *value, void *field)
{
	return parse_identity(parser, key, value, true, field);
}

static int key_allow(
	struct config_parser *parser, const struct config_key *key, const char *value, void *field)
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

static int key_listen(
	struct config_parser *parser, const struct config_key *key, const char *value, void *field)
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

static int key_share(
	struct config_parser *parser, const struct config_key *key, const char *value, void *field)
{
	return parser_set_share(parser, key->name, value);
}

static int key_match(
	struct config_parser *parser, const struct config_key *key, const char *value, void *field)
{
	return parser_set_match(parser, key->name, value);
}

static int key_match_default(
	struct config_parser *parser, const struct config_key *key, const char *value, void *field)
{
	parser->listener->match_line = parser->line;
	return key_boolean(parser, key, value, field);
}

static int key_percent(
	struct config_parser *parser, const struct config_key *key, const char *value, void *field)
{
	return parser_set_percent(parser, key->name, value, field);
}

static int key_overflow(
	struct config_parser *parser, const struct config_key *key, const char *value, void *field)
{
	if (strcmp(value, "default") && strcmp(value, "drop"))
		return mistake(parser, "%s= is '%s', not default or drop", key->name, value);
	*(bool *)field = !strcmp(value, "drop");
	return 0;
}

static int key_stall_action(
	struct config_parser *parser, const struct config_key *key, const char *value, void *field)
{
	if (strcmp(value, "keep") && strcmp(value, "kick"))
		return mistake(parser, "%s= is '%s', not keep or kick", key->name, value);
	*(bool *)field = !strcmp(value, "kick");
	return 0;
}

static int key_path(
	struct config_parser *parser, const struct config_key *key, const char *value, void *field)
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
	return 0;
}

static int key_state_directory(
	struct config_parser *parser, const struct config_key *key, const char *value, void *field)
{
	int r = key_path(parser, key, value, field);

	parser->config->state_directory_set = r >= 0;
	return r;
}

#define TCP (1u << TRANSPORT_TCP)
#define UDP (1u << TRANSPORT_UDP)
#define QUIC (1u << TRANSPORT_QUIC)
#define DAEMON(member) .offset = offsetof(struct config, member)
#define SERVICE(member) .offset = offsetof(struct service_config, member)
#define LISTENER(member) .offset = offsetof(struct listener_config, member)

static const struct config_key keys[] = {
	{SECTION_DAEMON, "User", key_user, DAEMON(user)},
	{SECTION_DAEMON, "StatusGroup", key_group, DAEMON(status_group)},
	{SECTION_DAEMON, "AdminGroup", key_group, DAEMON(admin_group)},
	{SECTION_DAEMON, "HostID", key_number16, DAEMON(host_id), .min = 0, .max = UINT16_MAX},
	{SECTION_DAEMON, "MaxConnectionsPerUser", key_number, DAEMON(max_connections), .min = 1,
		.max = 65535},
	{SECTION_DAEMON, "MaxSlotsPerUser", key_number, DAEMON(max_slots), .min = 1,
		.max = SLOTS_MAX},
	{SECTION_DAEMON, "MaxConnectionIDsPerUser", key_number, DAEMON(max_cids), .min = 1,
		.max = INT32_MAX},
	{SECTION_DAEMON, "MessagesPerSecondPerUser", key_number, DAEMON(max_messages), .min = 10,
		.max = USEC_PER_SEC},
	{SECTION_DAEMON, "AnswerTimeoutSec", key_time, DAEMON(answer_timeout_usec),
		.min = USEC_PER_MSEC, .max = 3600 * USEC_PER_SEC},
	{SECTION_DAEMON, "ResumeGraceSec", key_time, DAEMON(resume_grace_usec),
		.min = USEC_PER_MSEC, .max = 3600 * USEC_PER_SEC},
	{SECTION_DAEMON, "StateDirectory", key_state_directory, DAEMON(state_directory)},
	{SECTION_DAEMON, "Classifier", key_path, DAEMON(classifier)},
	{SECTION_DAEMON, "ClassifierShare", key_percent, DAEMON(classifier_percent)},
	{SECTION_DAEMON, "ClassifierOverflow", key_overflow, DAEMON(classifier_drop)},
	{SECTION_SERVICE, "Name", key_service_name, SERVICE(name)},
	{SECTION_SERVICE, "AllowUser", key_allow, .repeats = true},
	{SECTION_SERVICE, "AllowGroup", key_allow, .repeats = true},
	{SECTION_SERVICE, "MaxWorkers", key_number, SERVICE(max_workers), .min = 1,
		.max = SLOTS_MAX},
	{SECTION_SERVICE, "DrainTimeoutSec", key_time, SERVICE(drain_timeout_usec)},
	{SECTION_SERVICE, "StallTimeoutSec", key_time, SERVICE(stall_timeout_usec)},
	{SECTION_SERVICE, "StallAction", key_stall_action, SERVICE(stall_kick)},
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
	{SECTION_LISTENER, "Flows", key_flows, LISTENER(n_flows), .min = LISTENER_FLOWS_MIN,
		.max = 1 << 24, .transports = UDP | QUIC},
	{SECTION_LISTENER, "ConnectionID", key_cid_mode, LISTENER(cid_mode), .transports = QUIC},
	{SECTION_LISTENER, "ConnectionIDKeyFile", key_key_file, LISTENER(key_file),
		.transports = QUIC},
	{SECTION_LISTENER, "Share", key_share, .transports = QUIC},
	{SECTION_LISTENER, "MatchServerName", key_match, .repeats = true, .transports = QUIC},
	{SECTION_LISTENER, "MatchALPN", key_match, .repeats = true, .transports = QUIC},
	{SECTION_LISTENER, "MatchDefault", key_match_default, LISTENER(match_default),
		.transports = QUIC},
};

_Static_assert(ARRAY_SIZE(keys) <= ARRAY_SIZE(((struct config_parser *)NULL)->key_lines),
	"a line for every key");
_Static_assert(sizeof(uid_t) == sizeof(uint32_t) && sizeof(gid_t) == sizeof(uint32_t),
	"identities are 32 bits wide");
_Static_assert(sizeof(int) == sizeof(unsigned), "key_number() writes both");

static void unknown_key(struct config_parser *parser, const char *name)
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

void parser_set_key(struct config_parser *parser, const char *name, const char *value)
{
	const struct config_key *key = NULL;
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

void parser_check_listener_keys(struct config_parser *parser)
{
	const struct listener_config *listener = parser->listener;

	for (size_t i = 0; i < ARRAY_SIZE(keys); i++) {
		unsigned line = parser->key_lines[i], transports = keys[i].transports;

		if (keys[i].section != SECTION_LISTENER || !line)
			continue;
		if (transports && !(transports & (1u << listener->transport)))
			parser_mistake(parser, line,
				"%s= is not for %s; it is for %s%s%s listeners", keys[i].name,
				transport_name(listener->transport), transports & TCP ? "tcp" : "",
				transports & UDP ? "udp and " : "",
				transports & QUIC ? "quic" : "");
		if (keys[i].parse == key_ipv6_only && listener->address.ss_family == AF_INET)
			parser_mistake(parser, line, "%s= is not for the IPv4 address %s",
				keys[i].name, listener->address_text);
		if (keys[i].parse == key_key_file && listener->transport == TRANSPORT_QUIC &&
			listener->cid_mode != CID_NONE && listener->cid_mode != CID_QUIC_LB)
			parser_mistake(parser, line,
				"%s= is not for ConnectionID=%s; it is for quic-lb, whose IDs are "
				"encrypted",
				keys[i].name, cid_mode_name(listener->cid_mode));
	}
	if (listener->transport == TRANSPORT_QUIC)
		parser_check_share(parser);
}
