/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The state of a flow as JSON: what its ClientHello asks for, or what is missing or wrong.
 */
#include "tools/offline-initial.h"

#include <stdio.h>

#include "common/util.h"

#define PROTOCOL_MAX 255

/* Identifiers are any octets (RFC 7301): what is not graphic ASCII, and the backslash, as \xHH. */
static json_t *protocol_value(const uint8_t *protocol, size_t length)
{
	char text[4 * PROTOCOL_MAX + 1];
	size_t n = 0;

	for (size_t i = 0; i < length; i++) {
		if (protocol[i] > 0x20 && protocol[i] < 0x7f && protocol[i] != '\\')
			text[n++] = (char)protocol[i];
		else
			n += (size_t)snprintf(text + n, sizeof(text) - n, "\\x%02x", protocol[i]);
	}
	return json_stringn(text, n);
}

static json_t *protocols_value(const struct flow *flow)
{
	json_t *list = json_array();
	const uint8_t *protocol;
	size_t position = 0, length;

	if (flow->state != FLOW_COMPLETE)
		return list;
	while (client_hello_next_protocol(
		flow->stream.octets, &flow->hello, &position, &protocol, &length)) {
		if (json_array_append_new(list, protocol_value(protocol, length)) < 0) {
			json_decref(list);
			return NULL;
		}
	}
	return list;
}

static json_t *server_name_value(const struct flow *flow)
{
	size_t length;
	const char *name = flow_server_name(flow, &length);

	if (flow->state != FLOW_COMPLETE || length == 0)
		return json_null();
	return json_stringn(name, length);
}

/* Which octets: each gap, then how many there are to be. */
static json_t *missing_octets(const struct flow *flow)
{
	char text[16 * CRYPTO_STREAM_RANGES + 128] = "octets";
	size_t n = 6, total = flow->hello.length, start = 0, end, from = 0;
	const char *separator = " ";

	while (crypto_stream_gap(
		&flow->stream, from, total ? total : CRYPTO_STREAM_OCTETS, &start, &end)) {
		/* Where the end is not known, it may be anywhere behind the last piece. */
		if (!total && end == CRYPTO_STREAM_OCTETS)
			n += (size_t)snprintf(
				text + n, sizeof(text) - n, "%sfrom %zu on", separator, start);
		else
			n += (size_t)snprintf(
				text + n, sizeof(text) - n, "%s%zu-%zu", separator, start, end - 1);
		separator = ", ";
		from = end;
	}
	if (total)
		snprintf(text + n, sizeof(text) - n, " of the ClientHello, which has %zu", total);
	else
		snprintf(text + n, sizeof(text) - n, " of the ClientHello");
	return json_string(text);
}

static json_t *missing_value(const struct flow *flow)
{
	if (flow->packets == 0)
		return json_string("an Initial packet of a client that can be authenticated");
	if (flow->stream.n_ranges == 0)
		return json_string("the ClientHello: no packet has a CRYPTO frame");
	return missing_octets(flow);
}

/* What went by: how many, and why the last of them. */
static int add_discarded(json_t *answer, const struct flow *flow)
{
	unsigned n = flow->unopened + flow->ignored;

	if (n == 0)
		return 0;
	if (json_object_set_new(answer, "discarded", json_integer(n)) < 0)
		return -1;
	if (flow->complaint.subject)
		return 0;
	return json_object_set_new(answer, "reason", json_string(flow->last_ignored));
}

json_t *offline_initial_answer(const struct flow *flow)
{
	const struct complaint *complaint = &flow->complaint;
	json_t *answer = json_pack("{s:b}", "complete", flow->state == FLOW_COMPLETE);
	char version[16];
	int r = answer ? 0 : -1;

	snprintf(version, sizeof(version), "0x%08x", flow->version);
	if (flow->state == FLOW_INCOMPLETE)
		r |= json_object_set_new(answer, "missing", missing_value(flow));
	if (flow->state == FLOW_MALFORMED)
		r |= json_object_set_new(answer, "malformed", json_true());
	if (complaint->subject)
		r |= json_object_set_new(answer, "reason",
			json_sprintf("%s %s (octet %zu of %s)", complaint->subject,
				complaint->problem, complaint->octet, complaint->where));
	r |= json_object_set_new(
		answer, "version", flow->packets ? json_string(version) : json_null());
	r |= json_object_set_new(answer, "sni", server_name_value(flow));
	r |= json_object_set_new(answer, "alpn", protocols_value(flow));
	if (flow->state == FLOW_COMPLETE && flow->hello.encrypted)
		r |= json_object_set_new(answer, "ech", json_true());
	r |= json_object_set_new(answer, "packets", json_integer(flow->packets));
	r |= json_object_set_new(answer, "authenticated", json_boolean(flow->packets > 0));
	if (r == 0)
		r = add_discarded(answer, flow);
	if (r < 0) {
		json_decref(answer);
		return NULL;
	}
	return answer;
}
