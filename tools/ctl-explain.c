/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * explain: what a packet is, who gets it, and why, a line each. With --offline the packet alone is
 * asked, not the daemon: offline.c.
 */
#include "tools/ctl-explain.h"

#include <stdio.h>
#include <string.h>

#include "tools/ctl-field.h"
#include "tools/offline.h"

/* "" when there is no text. */
static const char *text_of(const json_t *reply, const char *key)
{
	return ctl_has(reply, key) ? ctl_plain(reply, key) : "";
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

/* What the client asks for, a line; or what is missing of it. */
static void print_client_hello(const json_t *hello)
{
	const json_t *name = json_object_get(hello, "sni"), *protocol;
	const char *missing = text_of(hello, "missing"), *reason = text_of(hello, "reason");
	size_t i;

	if (json_is_true(json_object_get(hello, "malformed"))) {
		printf("malformed: %s (where services share the listener, none of them gets it)\n",
			reason);
		return;
	}
	if (!json_is_true(json_object_get(hello, "complete"))) {
		printf("not complete: %s\n", *missing ? missing : reason);
		return;
	}
	printf("asks for %s", json_is_string(name) ? text_of(hello, "sni") : "no name");
	json_array_foreach(json_object_get(hello, "alpn"), i, protocol)
		printf("%s%s", i ? ", " : " with ", json_string_value(protocol));
	printf("\n");
}

/* Initials are read here: the daemon has nothing to do with what is inside of packets. */
static void add_client_hello(const struct ctl *ctl, json_t *parameters, const json_t *hello)
{
	json_t *protocols = json_object_get(hello, "alpn"), *protocol;
	char text[16384] = "";
	size_t n = 0, i;

	json_object_set_new(parameters, "packet", json_string(ctl->values.initials[0]));
	if (!json_is_true(json_object_get(hello, "complete")))
		return;
	json_object_set(parameters, "server_name", json_object_get(hello, "sni"));
	json_array_foreach(protocols, i, protocol)
	{
		if (n + json_string_length(protocol) + 2 > sizeof(text))
			break;
		n += (size_t)snprintf(text + n, sizeof(text) - n, "%s%s", n ? " " : "",
			json_string_value(protocol));
	}
	json_object_set_new(parameters, "protocols", json_string(text));
}

/* The parameters of the call; NULL after a message. */
static json_t *make_parameters(const struct ctl *ctl, const json_t *hello)
{
	const char *packet = ctl_get(ctl, OPTION_PACKET), *cid = ctl_get(ctl, OPTION_CID);
	const char *from = ctl_get(ctl, OPTION_FROM), *listener = ctl_get(ctl, OPTION_LISTENER);
	const char *slash = listener ? strchr(listener, '/') : NULL;
	json_t *parameters;

	if (!packet + !cid + !hello != 2)
		return ctl_usage("explain needs one of --packet HEX, --cid HEX and --initial HEX",
			       NULL),
		       NULL;
	if (listener && (!slash || slash == listener || !slash[1]))
		return ctl_usage("--listener is SERVICE/LISTENER, not", listener), NULL;
	parameters = json_object();
	if (slash) {
		json_object_set_new(
			parameters, "service", json_stringn(listener, (size_t)(slash - listener)));
		json_object_set_new(parameters, "listener", json_string(slash + 1));
	}
	if (packet)
		json_object_set_new(parameters, "packet", json_string(packet));
	if (cid)
		json_object_set_new(parameters, "cid", json_string(cid));
	if (hello)
		add_client_hello(ctl, parameters, hello);
	if (from)
		json_object_set_new(parameters, "from", json_string(from));
	return parameters;
}

static int explain(const struct ctl *ctl, const json_t *hello)
{
	json_t *parameters = make_parameters(ctl, hello), *reply;
	int result;

	if (!parameters)
		return CTL_USAGE;
	result = ctl_call(ctl->socket, "Explain", parameters, "explain this packet", &reply);
	if (result != CTL_OK)
		return result;
	if (ctl->json != CTL_JSON_OFF) {
		ctl_print_json(ctl, reply);
	} else {
		if (hello)
			print_client_hello(hello);
		result = ctl_print_explanation(reply);
	}
	json_decref(reply);
	return result;
}

int ctl_run_explain(const struct ctl *ctl, int argc, char **argv)
{
	json_t *hello = NULL;
	int result;

	if (ctl->values.n_initials) {
		result = offline_read_initials(&ctl->values, &hello);
		if (result != CTL_OK)
			return result;
	}
	result = explain(ctl, hello);
	json_decref(hello);
	return result;
}
