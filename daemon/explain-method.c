/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The method Explain: reads what is asked, finds the listener, tells the answer.
 */
#include <arpa/inet.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "bpf/quic_layout.h"
#include "common/format.h"
#include "common/hex.h"
#include "common/util.h"
#include "daemon/explain.h"
#include "daemon/key-file.h"
#include "daemon/manager.h"
#include "daemon/share.h"

#define DATAGRAM_MAX 65535

/* The handler's answer to a parameter that it does not take. */
static int invalid_parameter(const char *name, json_t **ret, const char **ret_error)
{
	*ret_error = CONTROL_INVALID_PARAMETER;
	*ret = json_pack("{s:s}", "parameter", name);
	return -EINVAL;
}

static int failed(json_t **ret, const char **ret_error, const char *format, ...) _printf_(3, 4);
static int failed(json_t **ret, const char **ret_error, const char *format, ...)
{
	_cleanup_free_ char *message = NULL;
	va_list arguments;

	va_start(arguments, format);
	message = format_list(format, arguments);
	va_end(arguments);
	*ret_error = CONTROL_FAILED;
	*ret = json_pack(
		"{s:s, s:i}", "message", message ? message : "not enough memory", "errno", ENOENT);
	return -ENOENT;
}

/* The one QUIC listener that service and listener (each NULL: any) leave. */
static int find_listener(struct manager *manager, const char *service_name,
	const char *listener_name, const struct listener **ret_listener, json_t **ret,
	const char **ret_error)
{
	const struct listener *found = NULL;

	if (service_name && !manager_find_service(manager, service_name)) {
		*ret_error = CONTROL_NO_SERVICE;
		*ret = json_pack("{s:s}", "name", service_name);
		return -ENOENT;
	}
	for (const struct service *s = manager->services; s; s = s->next) {
		if (service_name && strcmp(s->config->name, service_name) != 0)
			continue;
		for (size_t i = 0; i < s->n_listeners; i++) {
			const struct listener *listener = s->listeners[i];

			if (!listener || listener->config->transport != TRANSPORT_QUIC ||
				(listener_name &&
					strcmp(listener->config->name, listener_name) != 0))
				continue;
			/* Of one share, any: they have one group. */
			if (found && found->share && found->share == listener->share)
				continue;
			if (found)
				return failed(ret, ret_error,
					"%s/%s and %s/%s are both possible: name the service and the "
					"listener",
					found->service->config->name, found->config->name,
					s->config->name, listener->config->name);
			found = listener;
		}
	}
	if (!found)
		return failed(ret, ret_error, "there is no QUIC listener%s%s%s%s",
			listener_name ? " of the name " : "", listener_name ? listener_name : "",
			service_name ? " in the service " : "", service_name ? service_name : "");
	*ret_listener = found;
	return 0;
}

/* packet, or the ID as a short header without anything behind it. */
static int read_datagram(struct explanation *e, const char *packet, const char *cid, json_t **ret,
	const char **ret_error)
{
	const char *text = packet ? packet : cid;
	size_t n, header = packet ? 0 : 1;

	if (!packet == !cid)
		return invalid_parameter("packet", ret, ret_error);
	n = strlen(text) / 2;
	if (strlen(text) % 2 || n > (packet ? DATAGRAM_MAX : QUIC_CID_OCTETS))
		return invalid_parameter(packet ? "packet" : "cid", ret, ret_error);
	e->datagram = calloc(1, header + n + 1);
	if (!e->datagram)
		return -ENOMEM;
	if (!packet)
		e->datagram[0] = 0x40;
	if (n && !hex_read(text, e->datagram + header, n))
		return invalid_parameter(packet ? "packet" : "cid", ret, ret_error);
	e->length = header + n;
	return 0;
}

/* ADDRESS:PORT of the client, IPv6 in brackets. */
static int read_from(struct explanation *e, const char *text)
{
	const char *colon = strrchr(text, ':');
	char host[INET6_ADDRSTRLEN + 2] = "";
	struct in6_addr in6;
	unsigned long port;
	size_t length;
	char *end;

	if (!colon || (size_t)(colon - text) >= sizeof(host))
		return -EINVAL;
	length = (size_t)(colon - text);
	memcpy(host, text, length);
	port = strtoul(colon + 1, &end, 10);
	if (colon[1] < '0' || colon[1] > '9' || *end || port == 0 || port > UINT16_MAX)
		return -EINVAL;
	e->port = htons((uint16_t)port);
	e->has_from = true;
	if (inet_pton(AF_INET, host, e->address) == 1)
		return 0;
	if (host[0] != '[' || host[length - 1] != ']')
		return -EINVAL;
	host[length - 1] = '\0';
	if (inet_pton(AF_INET6, host + 1, &in6) != 1)
		return -EINVAL;
	if (IN6_IS_ADDR_V4MAPPED(&in6))
		memcpy(e->address, &in6.s6_addr[12], 4);
	else
		memcpy(e->address, &in6, sizeof(in6));
	return 0;
}

static json_t *hex_json(const uint8_t *octets, size_t length)
{
	char text[2 * 255 + 1];

	if (!octets)
		return json_null();
	hex_write(text, octets, length);
	return json_stringn(text, 2 * length);
}

static json_t *answer(struct manager *manager, const struct explanation *e)
{
	const struct worker *worker = e->slot < SLOT_COUNT ? manager->slots[e->slot] : NULL;
	json_t *result = json_pack("{s:s, s:s, s:s, s:s, s:o, s:s}", "service",
		e->listener->service->config->name, "listener", e->listener->config->name, "kind",
		quic_kind_name(e->packet.header.kind), "step", e->step, "dcid",
		hex_json(e->packet.dcid, e->packet.header.dcid_length), "reason",
		e->reason ? e->reason : "");

	if (!result)
		return NULL;
	json_object_set_new(result, "version",
		e->packet.has_version ? json_sprintf("0x%08x", e->packet.header.version)
				      : json_null());
	json_object_set_new(
		result, "slot", e->slot < SLOT_COUNT ? json_integer(e->slot) : json_null());
	json_object_set_new(result, "instance",
		worker ? json_string(worker->registration->instance) : json_null());
	json_object_set_new(
		result, "pid", worker ? json_integer(worker->registration->pid) : json_null());
	json_object_set_new(result, "state",
		worker ? json_string(worker_state_name(worker->state)) : json_null());
	return result;
}

/* The protocols that a ClientHello asks for, separated by spaces, as the extension has them. */
static int read_protocols(
	struct explanation *e, const char *text, json_t **ret, const char **ret_error)
{
	e->protocols = malloc(strlen(text) + 1);
	if (!e->protocols)
		return -ENOMEM;
	while (*text) {
		size_t length = strcspn(text, " ");

		if (!length || length > UINT8_MAX)
			return invalid_parameter("protocols", ret, ret_error);
		e->protocols[e->protocols_length] = (uint8_t)length;
		memcpy(e->protocols + e->protocols_length + 1, text, length);
		e->protocols_length += 1 + length;
		text += length + (text[length] == ' ');
	}
	return 0;
}

int explain_method(void *user_data, const json_t *parameters, json_t **ret, const char **ret_error)
{
	static const char *const names[] = {
		"service", "listener", "packet", "cid", "from", "server_name", "protocols"};
	enum { SERVICE, LISTENER, PACKET, CID, FROM, SERVER_NAME, PROTOCOLS };
	_cleanup_(explanation_done) struct explanation e = {.slot = INDEX_NONE};
	const char *given[ARRAY_SIZE(names)];
	int result;

	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		const json_t *value = json_object_get(parameters, names[i]);

		if (value && !json_is_null(value) && !json_is_string(value))
			return invalid_parameter(names[i], ret, ret_error);
		given[i] = json_string_value(value);
	}
	result = find_listener(
		user_data, given[SERVICE], given[LISTENER], &e.listener, ret, ret_error);
	if (result < 0)
		return result;
	result = read_datagram(&e, given[PACKET], given[CID], ret, ret_error);
	if (result < 0)
		return result;
	e.server_name = given[SERVER_NAME];
	if (given[PROTOCOLS])
		result = read_protocols(&e, given[PROTOCOLS], ret, ret_error);
	if (result < 0)
		return result;
	if (given[FROM] && read_from(&e, given[FROM]) < 0)
		return invalid_parameter("from", ret, ret_error);
	if (!e.has_from && e.listener->config->cid_mode == CID_OPAQUE)
		return failed(ret, ret_error,
			"%s/%s steers by the client's address and port: say where the packet comes "
			"from",
			e.listener->service->config->name, e.listener->config->name);
	explain_packet(&e);
	*ret = answer(user_data, &e);
	return *ret ? 0 : -ENOMEM;
}
