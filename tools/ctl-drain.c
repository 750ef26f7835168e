/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * drain --wait: back when the last of the workers has gone, which is when its last connection has
 * ended. The daemon doesn't count connections, it sees that a worker's sockets are closed; so what
 * is shown meanwhile is how many workers are left.
 */
#include "tools/ctl-drain.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "tools/ctl-field.h"

#define POLL_MSEC 250
#define ANSWER_MSEC 5000
/* A daemon that is replaced or restarted meanwhile is back sooner. */
#define PATIENCE_MSEC 30000

/* A registration: another one may get the same slot, and a new process the same instance. */
struct drained {
	json_int_t slot, pid;
	char *instance;
	bool gone;
};

struct wait {
	const struct ctl *ctl;
	const struct ctl_selection *selection;
	struct drained *workers;
	size_t n_workers, n_left, n_told;
	int64_t began, end; /* of the monotonic clock, milliseconds; end 0: none */
	bool updates;       /* a line is written over */
};

static void wait_done(struct wait *wait)
{
	for (size_t i = 0; i < wait->n_workers; i++)
		free(wait->workers[i].instance);
	free(wait->workers);
}

static int add_drained(struct wait *wait, const json_t *worker)
{
	struct drained *workers =
		reallocarray(wait->workers, wait->n_workers + 1, sizeof(*workers));
	char *instance = strdup(ctl_string(worker, "instance"));

	if (workers)
		wait->workers = workers;
	if (!workers || !instance) {
		free(instance);
		ctl_error("cannot wait: out of memory");
		return -ENOMEM;
	}
	workers[wait->n_workers++] = (struct drained){.slot = ctl_number(worker, "slot"),
		.pid = ctl_number(worker, "pid"),
		.instance = instance};
	return 0;
}

/* Those that are selected and drain now. */
static int find_drained(struct wait *wait, const json_t *status)
{
	const json_t *worker;
	size_t i;
	json_t *flat = ctl_flat_workers(status, wait->selection);
	int result = 0;

	json_array_foreach(flat, i, worker) if (ctl_is(worker, "state", "draining") && result == 0)
		result = add_drained(wait, worker);
	json_decref(flat);
	wait->n_left = wait->n_workers;
	return result;
}

static const json_t *find_worker(const json_t *flat, const struct drained *drained)
{
	const json_t *worker;
	size_t i;

	json_array_foreach(
		flat, i, worker) if (ctl_number(worker, "slot") == drained->slot &&
				     ctl_number(worker, "pid") == drained->pid &&
				     ctl_is(worker, "instance", drained->instance)) return worker;
	return NULL;
}

/* CTL_FAILED when somebody made one of them active again: it may never go then. */
static int count_left(struct wait *wait, const json_t *status)
{
	json_t *flat = ctl_flat_workers(status, NULL);
	int result = CTL_OK;

	wait->n_left = 0;
	for (size_t i = 0; i < wait->n_workers; i++) {
		struct drained *drained = &wait->workers[i];
		const json_t *worker = find_worker(flat, drained);

		drained->gone |= !worker;
		if (drained->gone)
			continue;
		wait->n_left++;
		if (!ctl_is(worker, "state", "draining") && result == CTL_OK) {
			if (wait->updates)
				putchar('\n');
			ctl_error("cannot wait for slot %" JSON_INTEGER_FORMAT
				  ": it was made active again meanwhile",
				drained->slot);
			result = CTL_FAILED;
		}
	}
	json_decref(flat);
	return result;
}

static char *elapsed(const struct wait *wait)
{
	return ctl_duration((ctl_now_msec() - wait->began) * (int64_t)USEC_PER_MSEC);
}

/* A line that is updated on a terminal, else one for each that goes; none with JSON. */
static void tell(struct wait *wait)
{
	_cleanup_free_ char *time = elapsed(wait);

	if (wait->ctl->json != CTL_JSON_OFF || (!wait->updates && wait->n_told == wait->n_left))
		return;
	wait->n_told = wait->n_left;
	printf("%sdrain %s: %zu of %zu worker%s gone, %s%s", wait->updates ? "\r" : "",
		wait->selection->name, wait->n_workers - wait->n_left, wait->n_workers,
		wait->n_workers == 1 ? "" : "s", time ? time : "?",
		wait->updates ? "\033[K" : "\n");
	if (wait->updates && !wait->n_left)
		putchar('\n');
	fflush(stdout);
}

/* Status, through restarts of the daemon. */
static int ask(struct wait *wait, json_t **ret)
{
	int64_t since = ctl_now_msec();

	for (;;) {
		_cleanup_free_ char *error = NULL;
		int result = ctl_try(wait->ctl->socket, "Status", json_object(),
			"see which workers are left", ANSWER_MSEC, ret, &error);

		if (result == CTL_OK)
			return result;
		if (result != CTL_UNREACHABLE || ctl_now_msec() - since > PATIENCE_MSEC ||
			(wait->end && ctl_now_msec() >= wait->end)) {
			if (wait->updates)
				putchar('\n');
			ctl_error("%s", error ? error : "out of memory");
			return result;
		}
		nanosleep(&(struct timespec){.tv_nsec = POLL_MSEC * 1000000L}, NULL);
	}
}

static int tell_timeout(const struct wait *wait)
{
	_cleanup_free_ char *time = elapsed(wait);

	if (wait->updates)
		putchar('\n');
	ctl_error("drain %s: %zu of %zu worker%s still there after %s; they go on draining",
		wait->selection->name, wait->n_left, wait->n_workers,
		wait->n_workers == 1 ? "" : "s", time ? time : "?");
	return CTL_TIMEOUT;
}

static int wait_gone(struct wait *wait)
{
	for (;;) {
		int64_t pause = POLL_MSEC;
		json_t *status;
		int result;

		tell(wait);
		if (!wait->n_left)
			return CTL_OK;
		if (wait->end) {
			pause = MIN(pause, wait->end - ctl_now_msec());
			if (pause <= 0)
				return tell_timeout(wait);
		}
		nanosleep(&(struct timespec){.tv_nsec = pause * 1000000L}, NULL);
		result = ask(wait, &status);
		if (result != CTL_OK)
			return result;
		result = count_left(wait, status);
		json_decref(status);
		if (result != CTL_OK)
			return result;
	}
}

/* Seconds, with a fraction where wanted. */
static int read_timeout(const char *text, int64_t *ret_msec)
{
	char *end;
	double seconds = strtod(text, &end);

	if (!*text || *end || strspn(text, "0123456789.") != strlen(text) || seconds <= 0 ||
		seconds > 1e9)
		return ctl_usage("--timeout is a number of seconds, not", text);
	*ret_msec = (int64_t)(seconds * 1000) + 1;
	return CTL_OK;
}

int ctl_check_wait(const struct ctl *ctl, int64_t *ret_timeout_msec)
{
	const char *timeout = ctl_get(ctl, OPTION_TIMEOUT);

	*ret_timeout_msec = 0;
	if (!timeout)
		return CTL_OK;
	if (!ctl_get(ctl, OPTION_WAIT))
		return ctl_usage("--timeout needs --wait", NULL);
	return read_timeout(timeout, ret_timeout_msec);
}

int ctl_wait_drained(const struct ctl *ctl, const struct ctl_selection *selection,
	int64_t timeout_msec, const json_t *drained)
{
	_cleanup_(wait_done) struct wait wait = {.ctl = ctl,
		.selection = selection,
		.n_told = SIZE_MAX,
		.began = ctl_now_msec(),
		.updates = ctl->json == CTL_JSON_OFF && isatty(STDOUT_FILENO)};
	json_t *status;
	int result;

	if (timeout_msec)
		wait.end = wait.began + timeout_msec;
	result = ask(&wait, &status);
	if (result != CTL_OK)
		return result;
	if (find_drained(&wait, status) < 0)
		result = CTL_FAILED;
	json_decref(status);
	if (result == CTL_OK)
		result = wait_gone(&wait);
	if (ctl->json != CTL_JSON_OFF) {
		json_t *reply =
			json_pack("{s:O, s:I, s:I}", "drained", json_object_get(drained, "drained"),
				"gone", (json_int_t)(wait.n_workers - wait.n_left), "left",
				(json_int_t)wait.n_left);

		ctl_print_json(ctl, reply);
		json_decref(reply);
	}
	return result;
}
