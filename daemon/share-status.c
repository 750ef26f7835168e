/* SPDX-License-Identifier: BSD-2-Clause */
/* Shares as JSON: Status, and what became of new connections. */
#include "daemon/share.h"

#include "common/util.h"
#include "daemon/classifier.h"
#include "daemon/group-share.h"
#include "daemon/manager.h"

static const char *const counter_names[SHARE_COUNTERS] = {
	[SHARE_DATAGRAMS] = "datagrams",
	[SHARE_NO_INITIAL] = "no_initial",
	[SHARE_TOO_SHORT] = "too_short",
	[SHARE_BY_NAME] = "by_name",
	[SHARE_BY_SUFFIX] = "by_suffix",
	[SHARE_BY_PROTOCOL] = "by_protocol",
	[SHARE_NO_NAME] = "no_name",
	[SHARE_NO_MATCH] = "no_match",
	[SHARE_MALFORMED] = "malformed",
	[SHARE_TOO_SLOW] = "too_slow",
	[SHARE_TOO_MANY] = "too_many",
	[SHARE_UNAUTHENTICATED] = "unauthenticated",
	[SHARE_RESENT] = "resent",
	[SHARE_LOST] = "lost",
	[SHARE_LOOPED] = "looped",
	[SHARE_OVERLOADS] = "overloads",
};

static void set_number(json_t *json, const char *name, uint64_t value)
{
	json_object_set_new(json, name, json_integer((json_int_t)(value & INT64_MAX)));
}

/* The page is the classifier's to write: what it says is shown, and nothing done by it. */
static json_t *classifier_status(const struct share *share)
{
	const struct share_page *page = share->group->share->page;
	int pid = classifier_pid(share->classifier);
	json_t *json = json_object();

	json_object_set_new(json, "pid", pid ? json_integer(pid) : json_null());
	set_number(json, "starts", classifier_starts(share->classifier));
	json_object_set_new(json, "follows",
		json_boolean(__atomic_load_n(&page->follow, __ATOMIC_RELAXED) == SHARE_FOLLOW));
	for (size_t i = 0; i < SHARE_COUNTERS; i++)
		if (counter_names[i])
			set_number(json, counter_names[i],
				__atomic_load_n(&page->counter[i], __ATOMIC_RELAXED));
	return json;
}

static json_t *share_status(const struct share *share)
{
	json_t *json = json_object(), *services = json_array(), *fallback = json_null();
	uint64_t verdicts[VERDICT_COUNT];

	for (uint32_t i = 0; i < SHARE_MAX; i++) {
		const struct listener *listener = share->listeners[i];

		if (!listener)
			continue;
		json_array_append_new(services, json_string(listener->service->config->name));
		if (listener->config->match_default)
			fallback = json_string(listener->service->config->name);
	}
	group_read_counters(share->group, verdicts);
	json_object_set_new(json, "name", json_string(share->config->share));
	json_object_set_new(json, "address", json_string(share->config->address_text));
	json_object_set_new(json, "services", services);
	json_object_set_new(json, "default", fallback);
	set_number(json, "to_classifier", verdicts[VERDICT_CLASSIFIER]);
	set_number(json, "unread", verdicts[VERDICT_UNREAD]);
	set_number(json, "invalid", verdicts[VERDICT_INVALID]);
	json_object_set_new(json, "classifier", classifier_status(share));
	return json;
}

json_t *shares_status(const struct manager *manager)
{
	json_t *json = json_array();

	for (const struct share *share = manager->shares; share; share = share->next)
		json_array_append_new(json, share_status(share));
	return json;
}
