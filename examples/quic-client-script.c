/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What the connections do, and how the caller stays in control of when. A script is a list of steps
 * between commas:
 *
 *	request[:N]   N requests, 1 by default, each answered before the step ends
 *	request:*     requests until the caller writes a line
 *	wait          until the caller writes a line
 *	sleep:MSEC
 *	rebind        goes on from another port
 *	migrate       goes on from another address and port with another connection ID
 *	again         from the start with a new connection, until the caller writes a line
 *
 * Steps that wait for a line take one after the other: the first such step waits for the first
 *line, and so on; the end of the input stands for all that are left. When every connection has come
 *to such a step (or is lost), the client says "ready" with the account so far.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/util.h"
#include "examples/quic-client.h"

static const struct {
	const char *name;
	enum step_kind kind;
	bool counts, waits;
} kinds[] = {
	{"request", STEP_REQUEST, true, false},
	{"wait", STEP_WAIT, false, true},
	{"sleep", STEP_SLEEP, true, false},
	{"rebind", STEP_REBIND, false, false},
	{"migrate", STEP_MIGRATE, false, false},
	{"again", STEP_AGAIN, false, true},
};

static int parse_step(struct step *ret, char *text, unsigned *n_lines)
{
	char *count = strchr(text, ':'), *end;

	if (count)
		*count++ = '\0';
	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
		if (strcmp(text, kinds[i].name) != 0)
			continue;
		*ret = (struct step){.kind = kinds[i].kind, .count = 1};
		if (count && !kinds[i].counts)
			return -EINVAL;
		if (count && ret->kind == STEP_REQUEST && !strcmp(count, "*"))
			ret->kind = STEP_FOREVER;
		else if (count) {
			ret->count = (unsigned)strtoul(count, &end, 10);
			if (end == count || *end)
				return -EINVAL;
		}
		if (kinds[i].waits || ret->kind == STEP_FOREVER)
			ret->line = ++*n_lines;
		return 0;
	}
	return -EINVAL;
}

int script_parse(struct options *options, const char *text)
{
	_cleanup_free_ char *copy = strdup(text);
	char *rest = copy, *word;
	unsigned n = 0;

	if (!copy)
		return -ENOMEM;
	options->n_lines = options->hold_second ? 1 : 0;
	while ((word = strsep(&rest, ","))) {
		if (n == STEPS_MAX - 1 ||
			parse_step(&options->steps[n++], word, &options->n_lines) < 0)
			return -EINVAL;
	}
	options->steps[n] = (struct step){.kind = STEP_END};
	return 0;
}

static void next_step(struct connection *c)
{
	c->step++;
	c->step_sent = c->step_answered = 0;
	c->slept = false;
	c->wake = UINT64_MAX;
}

/* Whether the line has come that the step waits for. */
static bool line_came(struct connection *c, const struct step *step)
{
	c->line_reached = MAX(c->line_reached, step->line);
	return c->client->lines_read >= step->line || c->client->input_ended;
}

/* Sends as many requests as may be under way. Whether the step is done. */
static bool do_requests(struct connection *c, const struct step *step)
{
	const struct options *options = &c->client->options;
	bool limited = step->kind == STEP_REQUEST, stop = !limited && line_came(c, step);

	c->wake = UINT64_MAX;
	while (!stop && (!limited || c->step_sent < step->count)) {
		if (c->n_requests >= options->streams)
			return false; /* the next answer makes room */
		if (now_nsec() < c->next_request) {
			c->wake = c->next_request;
			return false;
		}
		if (connection_request(c) != 0)
			return false; /* as above */
		c->step_sent++;
		c->next_request = now_nsec() + options->interval_msec * NGTCP2_MILLISECONDS;
	}
	return !c->n_requests;
}

static bool do_sleep(struct connection *c, const struct step *step)
{
	if (!c->slept) {
		c->slept = true;
		c->wake = now_nsec() + step->count * NGTCP2_MILLISECONDS;
	}
	return now_nsec() >= c->wake;
}

static bool do_migrate(struct connection *c)
{
	if (c->step_sent)
		return !c->migrating;
	switch (connection_migrate(c)) {
	case 0: /* the handshake isn't confirmed yet, or no ID is spare: soon */
		c->wake = now_nsec() + 10 * NGTCP2_MILLISECONDS;
		return false;
	case 1:
		c->step_sent = 1;
		c->wake = UINT64_MAX;
		return false;
	default:
		c->client->account.migrations_failed++;
		return true;
	}
}

/* Whether it is done. */
static bool do_step(struct connection *c, const struct step *step)
{
	switch (step->kind) {
	case STEP_REQUEST:
	case STEP_FOREVER:
		return do_requests(c, step);
	case STEP_WAIT:
	case STEP_AGAIN: /* what it does while there is no line: script_advance() */
		return line_came(c, step);
	case STEP_SLEEP:
		return do_sleep(c, step);
	case STEP_REBIND:
		connection_rebind(c);
		return true;
	case STEP_MIGRATE:
		return do_migrate(c);
	case STEP_END:
	default:
		return false;
	}
}

/* Nothing but early requests can be done before the handshake is. */
static bool possible(const struct connection *c, const struct step *step)
{
	return c->state == RUNNING ||
	       (c->state == SHAKING && c->early_data && step->kind == STEP_REQUEST);
}

/* Not while its datagrams are held back, or a ticket is to come that shall be saved. */
static bool may_end(const struct connection *c)
{
	return !connection_holds(c) &&
	       (!c->client->options.save_session || (c->ticket_saved && c->token_saved));
}

void script_advance(struct connection *c)
{
	struct client *client = c->client;

	for (;;) {
		const struct step *step = &client->options.steps[c->step];

		if (!possible(c, step))
			return;
		if (step->kind == STEP_END) {
			if (may_end(c))
				connection_finish(c);
			return;
		}
		if (!do_step(c, step)) {
			if (step->kind == STEP_AGAIN) {
				connection_finish(c);
				connection_start(c, 0);
			}
			return;
		}
		next_step(c);
	}
}

void script_line(struct client *client)
{
	for (unsigned i = 0; i < client->options.connections; i++) {
		struct connection *c = &client->connections[i];

		if (client->options.hold_second)
			connection_release(c);
		connection_proceed(c);
	}
}

void script_tell(struct client *client)
{
	unsigned line = client->lines_read + 1;

	if (client->phases_told >= line || line > client->options.n_lines || client->input_ended)
		return;
	for (unsigned i = 0; i < client->options.connections; i++) {
		const struct connection *c = &client->connections[i];

		if (c->state != FINISHED && c->line_reached < line)
			return;
	}
	client->phases_told = line;
	print_account(client, "ready");
}
