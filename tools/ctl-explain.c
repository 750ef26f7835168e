/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Explain for people: what the packet is, who gets it, and why, a line each.
 */
#include "tools/ctl.h"

#include <stdio.h>
#include <string.h>

static const char *text_of(const json_t *reply, const char *key)
{
	const char *text = json_string_value(json_object_get(reply, key));

	return !text ? "" : ctl_is_plain(text) ? text : "?";
}

static void print_packet(const json_t *reply)
{
	const char *kind = text_of(reply, "kind"), *version = text_of(reply, "version");
	const json_t *dcid = json_object_get(reply, "dcid");

	if (strcmp(kind, "invalid") == 0)
		printf("not a QUIC packet");
	else if (strcmp(kind, "short") == 0)
		printf("a packet with a short header");
	else
		printf("%s (version %s)", kind, version);
	/* With a short header, how long the ID is may be unknown; it is not empty then. */
	if (json_is_string(dcid) && json_string_length(dcid))
		printf(", connection ID %s", text_of(reply, "dcid"));
}

static void print_target(const json_t *reply)
{
	const json_t *slot = json_object_get(reply, "slot");
	const char *step = text_of(reply, "step");

	if (json_is_integer(slot) && json_is_string(json_object_get(reply, "instance")))
		printf("slot %d: %s (pid %d, %s)", (int)json_integer_value(slot),
			text_of(reply, "instance"),
			(int)json_integer_value(json_object_get(reply, "pid")),
			text_of(reply, "state"));
	else if (json_is_integer(slot))
		printf("slot %d", (int)json_integer_value(slot));
	else
		printf("%s", strcmp(step, "standby") == 0 ? "the standby" : "nobody");
}

int ctl_print_explanation(const json_t *reply)
{
	printf("%s/%s: ", text_of(reply, "service"), text_of(reply, "listener"));
	print_packet(reply);
	printf("\ngoes to ");
	print_target(reply);
	printf("\nby %s: %s\n", text_of(reply, "step"), text_of(reply, "reason"));
	return CTL_OK;
}
