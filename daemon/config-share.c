/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Share= and Match...=: their values, and what the listeners of a share must have in common and
 * must not. All of it is known before anything is opened, so nothing of it is left to run time.
 */
#include <ctype.h>
#include <string.h>
#include <strings.h>

#include "bpf/quic_layout.h"
#include "daemon/config-parser.h"
#include "daemon/config-value.h"
#include "daemon/share-compile.h"

#define NAME_OCTETS_MAX 253 /* without the dot at the end, RFC 1035 section 2.3.4 */
#define LABEL_OCTETS_MAX 63

/* Labels of letters, digits, - and _, with dots between them. */
static bool is_name(const char *name)
{
	size_t label = 0;

	if (!*name || strlen(name) > NAME_OCTETS_MAX)
		return false;
	for (const char *c = name; *c; c++) {
		bool dot = *c == '.';

		if (dot ? !label || !c[1] : !isalnum((unsigned char)*c) && *c != '-' && *c != '_')
			return false;
		label = dot ? 0 : label + 1;
		if (label > LABEL_OCTETS_MAX)
			return false;
	}
	return true;
}

static int parse_name(struct config_parser *parser, const char *key, char *word)
{
	const char *name = strncmp(word, "*.", 2) == 0 ? word + 2 : word;
	size_t length = strlen(word);

	if (length > 1 && word[length - 1] == '.')
		word[length - 1] = '\0';
	for (char *c = word; *c; c++)
		*c = (char)tolower((unsigned char)*c);
	if (!is_name(name))
		return mistake(parser,
			"%s= has '%s', not a name like shop.example or *.shop.example (one with "
			"other letters is written as clients send it, xn--...)",
			key, word);
	if (config_words_have(&parser->listener->server_names, word))
		return mistake(parser, "%s= has '%s' twice", key, word);
	return config_words_add(&parser->listener->server_names, word);
}

static int parse_protocol(struct config_parser *parser, const char *key, char *word)
{
	bool good = strlen(word) <= UINT8_MAX; /* RFC 7301 section 3.1 */

	for (const char *c = word; *c; c++)
		good &= isgraph((unsigned char)*c) != 0;
	if (!good)
		return mistake(parser, "%s= has '%s', not a protocol like h3 of at most 255 octets",
			key, word);
	if (config_words_have(&parser->listener->protocols, word))
		return mistake(parser, "%s= has '%s' twice", key, word);
	return config_words_add(&parser->listener->protocols, word);
}

static int for_each_word(struct config_parser *parser, const char *key, const char *value,
	int (*parse)(struct config_parser *parser, const char *key, char *word))
{
	_cleanup_free_ char *copy = strdup(value);
	char *saved, *word;
	int r = 0;

	if (!copy)
		return -ENOMEM;
	for (word = strtok_r(copy, " \t", &saved); word; word = strtok_r(NULL, " \t", &saved)) {
		int result = parse(parser, key, word);

		if (result == -ENOMEM)
			return result;
		r = result < 0 ? result : r;
	}
	return r;
}

int parser_set_match(struct config_parser *parser, const char *key, const char *value)
{
	bool names = strcmp(key, "MatchServerName") == 0;

	parser->listener->match_line = parser->line;
	return for_each_word(parser, key, value, names ? parse_name : parse_protocol);
}

int parser_set_share(struct config_parser *parser, const char *key, const char *value)
{
	struct listener_config *listener = parser->listener;

	listener->share_line = parser->line;
	if (!name_valid(value, false))
		return mistake(parser,
			"%s= is '%s', not a name of 1 to 63 letters, digits and _.@-", key, value);
	listener->share = strdup(value);
	return listener->share ? 0 : -ENOMEM;
}

/* "50%", or 50; from 1 to 100. */
int parser_set_percent(
	struct config_parser *parser, const char *key, const char *value, unsigned *ret)
{
	size_t length = strlen(value);
	_cleanup_free_ char *number =
		strndup(value, length && value[length - 1] == '%' ? length - 1 : length);
	uint64_t result;

	if (!number)
		return -ENOMEM;
	if (parse_unsigned(number, 100, &result) < 0 || result < 1)
		return mistake(parser, "%s= is '%s', not a share from 1%% to 100%%", key, value);
	*ret = (unsigned)result;
	return 0;
}

/* A listener's section has ended. */
void parser_check_share(struct config_parser *parser)
{
	const struct listener_config *listener = parser->listener;
	enum cid_mode mode = listener->cid_mode;

	if (!listener->share) {
		if (listener->match_line && !listener->share_line)
			parser_mistake(parser, listener->match_line,
				"MatchServerName=, MatchALPN= and MatchDefault= are for a listener "
				"with Share=");
		return;
	}
	if (listener->transport != TRANSPORT_QUIC)
		return; /* said already */
	if (mode == CID_QUIC_LB_PLAIN || mode == CID_OPAQUE)
		parser_mistake(parser, listener->share_line,
			"Share= is not for ConnectionID=%s, which has nothing that keeps services "
			"apart; it is for quic-lb, registered and nginx",
			cid_mode_name(mode));
	if (listener->bind_to_device)
		parser_mistake(parser, listener->share_line,
			"Share= is not possible with BindToDevice=: what the classifier has read "
			"comes again by the loopback interface");
	if (!listener->lock_filter)
		parser_mistake(parser, listener->share_line,
			"Share= is not possible with LockFilter=no: a worker could put a program of "
			"its own in the place of the one that all share");
	/* Not if it has some that were refused. */
	if (!listener->match_default && !listener->server_names.n && !listener->protocols.n &&
		!(listener->match_line && parser->failed))
		parser_mistake(parser, listener->share_line,
			"a listener with Share= needs MatchServerName=, MatchALPN= or "
			"MatchDefault=yes: nothing would come to it");
}

/* One listener of a share, and whose it is. */
struct place {
	const struct listener_config *listener;
	const struct service_config *service;
};

struct places {
	struct place place[SHARE_MAX];
	size_t n;
};

static void check_alike(
	struct config_parser *parser, const struct place *first, const struct place *other)
{
	const struct listener_config *a = first->listener, *b = other->listener;

	if (first->service == other->service)
		parser_mistake(parser, b->share_line,
			"the listener '%s' of the same service is in the share %s already (line "
			"%u)",
			a->name, b->share, a->share_line);
	if (!listener_config_same_socket(a, b))
		parser_mistake(parser, b->share_line,
			"the listener '%s' of the service '%s' (%s:%u) is in the share %s with "
			"another address, BindIPv6Only=, FreeBind=, Transparent=, Flows= or "
			"FlowTimeoutSec=: these have to be equal",
			a->name, first->service->name, a->file, a->share_line, b->share);
}

/* Whether two listeners have a name (NULL: any) in common, and a protocol for it. */
static void check_name(struct config_parser *parser, const struct place *first,
	const struct place *other, const char *name)
{
	const struct listener_config *a = first->listener, *b = other->listener;
	const char *any = name ? name : "any server name";

	if (!a->protocols.n && !b->protocols.n) {
		parser_mistake(parser, b->match_line,
			"'%s' is that of the listener '%s' of the service '%s' (%s:%u) already",
			any, a->name, first->service->name, a->file, a->match_line);
		return;
	}
	for (size_t i = 0; i < b->protocols.n; i++)
		if (config_words_have(&a->protocols, b->protocols.word[i]))
			parser_mistake(parser, b->match_line,
				"'%s' with the protocol '%s' is that of the listener '%s' of the "
				"service '%s' (%s:%u) already",
				any, b->protocols.word[i], a->name, first->service->name, a->file,
				a->match_line);
}

static void check_match(
	struct config_parser *parser, const struct place *first, const struct place *other)
{
	const struct listener_config *a = first->listener, *b = other->listener;

	for (size_t i = 0; i < b->server_names.n; i++)
		if (config_words_have(&a->server_names, b->server_names.word[i]))
			check_name(parser, first, other, b->server_names.word[i]);
	if (!a->server_names.n && !b->server_names.n && a->protocols.n && b->protocols.n)
		check_name(parser, first, other, NULL);
	if (a->match_default && b->match_default)
		parser_mistake(parser, b->match_line,
			"the share %s has its MatchDefault=yes in the listener '%s' of the service "
			"'%s' (%s:%u) already",
			b->share, a->name, first->service->name, a->file, a->match_line);
}

static void check_rules(struct config_parser *parser, const struct places *places)
{
	const struct listener_config *configs[SHARE_MAX] = {NULL};
	const struct listener_config *last = places->place[places->n - 1].listener;
	struct share_rules *rules = NULL;
	size_t n_default = 0, n_registered = 0;
	int result;

	for (size_t i = 0; i < places->n; i++) {
		configs[i] = places->place[i].listener;
		n_default += configs[i]->match_default;
		n_registered += configs[i]->cid_mode == CID_REGISTERED;
	}
	if (!n_default)
		parser_mistake(parser, last->share_line,
			"no listener of the share %s has MatchDefault=yes: one has to take what "
			"nobody else does",
			last->share);
	if (n_registered > QUIC_CID_LENGTHS)
		parser_mistake(parser, last->share_line,
			"at most %d listeners of the share %s can have ConnectionID=registered",
			QUIC_CID_LENGTHS, last->share);
	result = share_rules_compile(&rules, configs);
	free(rules);
	if (result == -E2BIG)
		parser_mistake(parser, last->share_line,
			"the names and protocols of the share %s take more than %u KiB",
			last->share, SHARE_RULES_OCTETS_MAX / 1024);
	else if (result < 0)
		parser->no_memory = true;
}

static void check_place(
	struct config_parser *parser, struct places *places, const struct place *other)
{
	if (places->n == SHARE_MAX) {
		parser_mistake(parser, other->listener->share_line,
			"the share %s has %d listeners already, which is all that can be",
			other->listener->share, SHARE_MAX);
		return;
	}
	if (places->n)
		check_alike(parser, &places->place[0], other);
	for (size_t i = 0; i < places->n; i++)
		check_match(parser, &places->place[i], other);
	places->place[places->n++] = *other;
}

/* All listeners of one share, from the first of them on. */
static void check_share(struct config_parser *parser, const char *share)
{
	const struct config *config = parser->config;
	struct places places = {0};

	for (size_t i = 0; i < config->n_services; i++)
		for (size_t k = 0; k < config->services[i]->n_listeners; k++) {
			const struct place place = {
				config->services[i]->listeners[k], config->services[i]};

			if (!place.listener->share || strcmp(place.listener->share, share) != 0)
				continue;
			parser->file = place.listener->file;
			check_place(parser, &places, &place);
		}
	check_rules(parser, &places);
	parser->file = NULL;
}

void parser_check_shares(struct config_parser *parser)
{
	const struct config *config = parser->config;
	struct config_words seen = {0};

	for (size_t i = 0; i < config->n_services; i++)
		for (size_t k = 0; k < config->services[i]->n_listeners; k++) {
			const char *share = config->services[i]->listeners[k]->share;

			if (!share || config_words_have(&seen, share))
				continue;
			if (config_words_add(&seen, share) < 0)
				parser->no_memory = true;
			else
				check_share(parser, share);
		}
	config_words_clear(&seen);
}

bool config_shares(const struct config *config)
{
	for (size_t i = 0; i < config->n_services; i++)
		for (size_t k = 0; k < config->services[i]->n_listeners; k++)
			if (config->services[i]->listeners[k]->share)
				return true;
	return false;
}
