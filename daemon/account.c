/* SPDX-License-Identifier: BSD-2-Clause */
#include "daemon/account.h"

#include <time.h>

#include "common/util.h"
#include "daemon/log.h"

#define ADVANCE_USEC USEC_PER_SEC     /* may be spent before it is there */
#define TELL_USEC (60 * USEC_PER_SEC) /* between two lines of the log about one user */
#define RESUMED_AT_ONCE 16            /* then others' messages have their turn */
#define ACCOUNTS_MANY 1024            /* from here those are forgotten that say nothing */

struct accounts {
	sd_event *event;
	struct account *list;
	size_t n;
	unsigned messages_per_second;
};

static uint64_t monotonic_usec(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * USEC_PER_SEC + (uint64_t)time.tv_nsec / NSEC_PER_USEC;
}

int accounts_new(struct accounts **ret, sd_event *event)
{
	struct accounts *accounts = calloc(1, sizeof(*accounts));

	if (!accounts)
		return -ENOMEM;
	accounts->event = sd_event_ref(event);
	*ret = accounts;
	return 0;
}

struct accounts *accounts_free(struct accounts *accounts)
{
	if (!accounts)
		return NULL;
	while (accounts->list) {
		struct account *account = accounts->list;

		accounts->list = account->next;
		sd_event_source_disable_unref(account->timer);
		free(account);
	}
	sd_event_unref(accounts->event);
	free(accounts);
	return NULL;
}

void account_hold(struct account *account)
{
	account->n_holders++;
}

void account_release(struct account *account)
{
	account->n_holders--;
}

static bool says_nothing(const struct account *account, uint64_t now)
{
	return !account->n_holders && !account->n_connections && !account->n_slots &&
	       !account->n_octets && !account->first && !account->may_not_adopt &&
	       account->spent_usec <= now;
}

static void forget_some(struct accounts *accounts)
{
	const uint64_t now = monotonic_usec();

	for (struct account **link = &accounts->list, *account; (account = *link);) {
		if (!says_nothing(account, now)) {
			link = &account->next;
			continue;
		}
		*link = account->next;
		sd_event_source_disable_unref(account->timer);
		free(account);
		accounts->n--;
	}
}

json_t *accounts_to_json(const struct accounts *accounts)
{
	json_t *json = json_array();

	for (const struct account *account = accounts->list; account; account = account->next)
		if (account->may_not_adopt)
			json_array_append_new(json, json_integer(account->uid));
	return json;
}

void accounts_resume(struct accounts *accounts, const json_t *json)
{
	const json_t *uid;
	size_t i;

	json_array_foreach(json, i, uid) accounts_get(accounts, (uid_t)json_integer_value(uid))
		->may_not_adopt = true;
}

struct account *accounts_get(struct accounts *accounts, uid_t uid)
{
	struct account *account;

	for (account = accounts->list; account; account = account->next)
		if (account->uid == uid)
			return account;
	if (accounts->n >= ACCOUNTS_MANY)
		forget_some(accounts);
	account = calloc(1, sizeof(*account));
	if (!account)
		abort(); /* some octets for each user of the machine: nothing sensible is left to do
			  */
	account->uid = uid;
	account->accounts = accounts;
	account->next = accounts->list;
	accounts->list = account;
	accounts->n++;
	return account;
}

void accounts_set_rate(struct accounts *accounts, unsigned messages_per_second)
{
	accounts->messages_per_second = messages_per_second;
}

static bool is_due(const struct account *account, uint64_t now)
{
	return account->spent_usec <= now + ADVANCE_USEC;
}

static int on_timer(sd_event_source *source, uint64_t time, void *user_data);

static void start_timer(struct account *account)
{
	uint64_t due = account->spent_usec - MIN(account->spent_usec, ADVANCE_USEC);

	if (account->timer) {
		sd_event_source_set_time(account->timer, due);
		sd_event_source_set_enabled(account->timer, SD_EVENT_ONESHOT);
	} else if (sd_event_add_time(account->accounts->event, &account->timer, CLOCK_MONOTONIC,
			   due, 1, on_timer, account) < 0) {
		abort(); /* no memory for a timer: nothing sensible is left to do */
	}
}

static int on_timer(sd_event_source *source, uint64_t time, void *user_data)
{
	struct account *account = user_data;

	for (int i = 0; i < RESUMED_AT_ONCE && account->first; i++) {
		struct turn *turn = account->first;

		if (!is_due(account, monotonic_usec()))
			break;
		turn_cancel(turn);
		turn->resume(turn);
	}
	if (account->first)
		start_timer(account);
	return 0;
}

static void tell(struct account *account, uint64_t now)
{
	if (account->told_usec && now - account->told_usec < TELL_USEC)
		return;
	account->told_usec = now;
	log_warning("user %u has to wait: it sends more than %u messages a second, or takes more "
		    "than half of the daemon's time (MessagesPerSecondPerUser=)",
		(unsigned)account->uid, account->accounts->messages_per_second);
}

bool account_may(struct account *account, struct turn *turn)
{
	uint64_t now;

	if (account->uid == 0 || !account->accounts->messages_per_second)
		return true;
	now = monotonic_usec();
	if (!account->first && is_due(account, now))
		return true;
	tell(account, now);
	turn->next = NULL;
	turn->account = account;
	if (account->first) {
		account->last->next = turn;
	} else {
		account->first = turn;
		start_timer(account);
	}
	account->last = turn;
	return false;
}

void account_charge(struct account *account, uint64_t started_usec, unsigned n_messages)
{
	unsigned rate = account->accounts->messages_per_second;
	uint64_t now = monotonic_usec(), price;

	if (!rate)
		return;
	price = MAX(n_messages * USEC_PER_SEC / rate, 2 * (now - MIN(now, started_usec)));
	account->spent_usec = MAX(account->spent_usec, now) + price;
}

void turn_cancel(struct turn *turn)
{
	struct account *account = turn->account;
	struct turn **link;

	if (!account)
		return;
	turn->account = NULL;
	for (link = &account->first; *link != turn;)
		link = &(*link)->next;
	*link = turn->next;
	if (account->last != turn)
		return;
	account->last = account->first;
	while (account->last && account->last->next)
		account->last = account->last->next;
}
