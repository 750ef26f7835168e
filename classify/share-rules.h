/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Which service of a shared listener a connection is for: rules compiled by the daemon from
 * MatchServerName=, MatchALPN= and MatchDefault=, in one piece of memory without pointers, which
 * goes to the classifier as a sealed memfd, and is asked in the same way by Explain.
 *
 * What decides, in this order: the exact name; *.suffix, a longer one before a shorter one
 * (*.shop.example is not shop.example); any name, or none. Names are compared without regard to
 * case and without a dot at the end. Where several services have the same name, the first protocol
 * in the client's order that one of them has decides, then one that takes any protocol. If none is
 * found, the next less specific name is tried, and at last the default service takes it.
 *
 * Octets in memory: struct share_rules, n_names struct share_name, n_choices struct share_choice,
 * text. Numbers are in host byte order. Names are sorted by kind, then length, then octets
 * (memcmp(3)), in lower case, without a dot at the end; a suffix begins with its dot (".example").
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define SHARE_RULES_MAGIC 0x53525052u /* "RPRS" */
#define SHARE_RULES_OCTETS_MAX (1u << 20)

enum share_name_kind {
	SHARE_NAME_EXACT,
	SHARE_NAME_SUFFIX,
	SHARE_NAME_ANY, /* length 0: at most one, and the last */
};

struct share_rules {
	uint32_t magic;
	uint32_t size; /* octets of all */
	uint32_t n_names;
	uint32_t n_choices;
	uint32_t default_service;
	uint32_t n_services; /* numbers of services are below it; at most SHARE_MAX */
};

struct share_name {
	uint32_t kind;
	uint32_t text; /* offset from the beginning of all */
	uint32_t length;
	uint32_t choice; /* index of its first choice */
	uint32_t n_choices;
};

struct share_choice {
	uint32_t service;
	uint32_t protocol;        /* offset; octets as in ALPN, case counts */
	uint32_t protocol_length; /* 0: any; at most one of a name's, and the last */
};

enum share_reason {
	SHARE_REASON_NAME,     /* an exact name */
	SHARE_REASON_SUFFIX,   /* *.suffix */
	SHARE_REASON_PROTOCOL, /* a rule for any name: the protocol */
	SHARE_REASON_NO_NAME,  /* the default service: the client named nothing */
	SHARE_REASON_NO_MATCH, /* the default service: nothing matches */
};

struct share_answer {
	uint32_t service;
	enum share_reason reason;
	const struct share_name *name;     /* the rule's; NULL for the default service */
	const struct share_choice *choice; /* the same */
};

/* Whether every offset, length and number in it can be followed. 0, or -EBADMSG. */
int share_rules_check(const void *memory, size_t size);

/*
 * The service for a server name (length 0: none) and the client's protocols, as the extension has
 * them: each one octet of length and so many octets, in the client's order. The rules have passed
 * share_rules_check(); name and protocols may be anything.
 */
void share_rules_match(const struct share_rules *rules, const char *name, size_t name_length,
	const uint8_t *protocols, size_t protocols_length, struct share_answer *ret);
