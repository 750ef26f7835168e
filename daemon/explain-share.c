/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Explain on a shared listener: whose a packet is. The steps of bpf/shared.bpf.c, and the rules by
 * which the classifier chooses.
 */
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "bpf/share_layout.h"
#include "classify/share-rules.h"
#include "common/util.h"
#include "daemon/explain.h"
#include "daemon/group-share.h"
#include "daemon/manager.h"
#include "daemon/share.h"

static const struct group_share *shared(const struct explanation *e)
{
	return e->listener->share->group->share;
}

uint32_t explain_modes(const struct explanation *e)
{
	return e->listener->share ? shared(e)->state->modes : 1u << e->listener->config->cid_mode;
}

bool explain_may_name(const struct explanation *e, uint32_t rotation, uint32_t slot)
{
	return !e->listener->share || slot >= SLOT_COUNT ||
	       shared(e)->slot_service[slot] == shared(e)->state->rotation_service[rotation];
}

static void use_service(struct explanation *e, uint32_t service)
{
	const struct share *share = e->listener->share;

	if (service >= SHARE_MAX || !share->listeners[service])
		service = shared(e)->state->default_service;
	if (share->listeners[service])
		e->listener = share->listeners[service];
}

void explain_stray_service(struct explanation *e, uint32_t rotation)
{
	use_service(e, rotation < QUIC_ROTATIONS ? shared(e)->state->rotation_service[rotation]
						 : SHARE_NONE);
}

void explain_settle_service(struct explanation *e)
{
	if (e->listener->share && e->slot < SLOT_COUNT &&
		shared(e)->slot_service[e->slot] < SHARE_MAX)
		use_service(e, shared(e)->slot_service[e->slot]);
}

/* What the classifier has entered; SHARE_NONE: nothing. */
static uint32_t chosen(const struct explanation *e)
{
	const struct group *group = e->listener->share->group;
	uint32_t set = quic_flow_set(e->hash) & shared(e)->state->choice_mask;
	struct timespec time;
	uint32_t now;

	clock_gettime(CLOCK_MONOTONIC_COARSE, &time);
	now = (uint32_t)(((uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec) >>
			 FLOW_TICK_SHIFT);
	for (unsigned i = 0; i < FLOW_WAYS; i++) {
		uint64_t word =
			__atomic_load_n(&group->share->choices[set].word[i], __ATOMIC_RELAXED);

		if (word >> 32 == quic_flow_tag(e->hash) && flow_age(word, now) <= CHOICE_TICKS)
			return word >> 16 & 0xffff;
	}
	return SHARE_NONE;
}

/* *ret_why is NULL without memory. */
static void match(struct explanation *e, char **ret_why)
{
	const struct share_rules *rules = e->listener->share->rules;
	const char *name = e->server_name ? e->server_name : "";
	struct share_answer answer;
	char *rule = NULL;
	int length = -1;

	share_rules_match(rules, name, strlen(name), e->protocols, e->protocols_length, &answer);
	use_service(e, answer.service);
	if (answer.name &&
		asprintf(&rule, "%s%.*s%s%.*s", answer.reason == SHARE_REASON_SUFFIX ? "*" : "",
			(int)answer.name->length, (const char *)rules + answer.name->text,
			answer.name->length && answer.choice->protocol_length ? " with " : "",
			(int)answer.choice->protocol_length,
			(const char *)rules + answer.choice->protocol) < 0)
		rule = NULL;
	if (answer.name)
		length = asprintf(ret_why, "the client asks for %s, and %s has %s",
			*name ? name : "no name", e->listener->service->config->name,
			rule ? rule : "a rule for it");
	else if (answer.reason == SHARE_REASON_NO_NAME)
		length = asprintf(ret_why, "the client names no server, and no rule is for its "
					   "protocols: the default service");
	else
		length = asprintf(ret_why,
			"no rule is for %s and the client's protocols: the default service", name);
	free(rule);
	if (length < 0)
		*ret_why = NULL;
}

bool explain_new_service(struct explanation *e, char **ret_why)
{
	const struct share *share = e->listener->share;
	uint32_t service = chosen(e);
	const char *why;

	if (service < SHARE_MAX) {
		use_service(e, service);
		*ret_why = strdup("the classifier has chosen the service");
		return true;
	}
	if (e->packet.header.kind == QUIC_UNKNOWN_VERSION) {
		use_service(e, SHARE_NONE);
		*ret_why = strdup("nobody can read its version: the default service");
		return true;
	}
	if (e->protocols && share->rules) {
		match(e, ret_why);
		return true;
	}
	if (!group_has_socket(share->group, INDEX_CLASSIFIER, NULL) || shared(e)->page->follow) {
		use_service(e, SHARE_NONE);
		why = "there is no classifier now, or it can't follow: the default service";
		*ret_why = strdup(why);
		return true;
	}
	*ret_why = strdup("it begins a connection that nobody knows: the classifier reads whom it "
			  "is for (--initial HEX... tells)");
	return false;
}
