/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * --listen NAME=URL: a service without a file, for trying things out and for tests.
 */
#include "daemon/config.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "common/format.h"
#include "common/util.h"
#include "daemon/config-value.h"
#include "proto/protocol.h"

static int _printf_(2, 3) listen_mistake(char **ret_error, const char *format, ...)
{
	va_list arguments;
	char *text;

	va_start(arguments, format);
	text = format_list(format, arguments);
	va_end(arguments);
	if (!text)
		return -ENOMEM;
	if (ret_error)
		*ret_error = text;
	else
		free(text);
	return -EINVAL;
}

/* "tcp", then "tcp-2", "tcp-3": the first that the service does not have. */
static void name_listener(const struct service_config *service, enum transport transport,
	char name[PROTOCOL_NAME_MAX])
{
	bool taken = true;

	for (unsigned k = 1; taken; k++) {
		if (k == 1)
			snprintf(name, PROTOCOL_NAME_MAX, "%s", transport_name(transport));
		else
			snprintf(name, PROTOCOL_NAME_MAX, "%s-%u", transport_name(transport), k);
		taken = false;
		for (size_t i = 0; service && i < service->n_listeners; i++)
			taken = taken || !strcmp(service->listeners[i]->name, name);
	}
}

static int parse_url(const char *url, enum transport *ret_transport, const char **ret_address)
{
	for (enum transport t = TRANSPORT_TCP; t <= TRANSPORT_QUIC; t++) {
		size_t length = strlen(transport_name(t));

		if (!strncmp(url, transport_name(t), length) && !strncmp(url + length, "://", 3)) {
			*ret_transport = t;
			*ret_address = url + length + 3;
			return 0;
		}
	}
	return -EINVAL;
}

static void listener_config_freep(struct listener_config **listener)
{
	listener_config_free(*listener);
}

static int check_listen(const struct config *config, const struct service_config *service,
	const struct listener_config *listener, const char *argument, char **ret_error)
{
	if (service && !service->allow_all)
		return listen_mistake(ret_error,
			"--listen %s: the service '%s' is defined by %s already", argument,
			service->name, service->file);
	if (service && service->n_listeners == PROTOCOL_LISTENERS_MAX)
		return listen_mistake(ret_error, "--listen %s: a service has at most %d listeners",
			argument, PROTOCOL_LISTENERS_MAX);
	for (size_t i = 0; i < config->n_services; i++) {
		const struct listener_config *other =
			service_config_find_address(config->services[i], listener);

		if (other)
			return listen_mistake(ret_error,
				"--listen %s: the address is that of the listener '%s' of the "
				"service '%s' already",
				argument, other->name, config->services[i]->name);
	}
	if (!service && config->n_services == CONFIG_SERVICES_MAX)
		return listen_mistake(ret_error, "--listen %s: more than %d services", argument,
			CONFIG_SERVICES_MAX);
	return 0;
}

/* Appends the listener to the service of this name, which is made if there is none. */
static int add_listener(struct config *config, struct service_config *service, const char *name,
	struct listener_config *listener)
{
	struct service_config *created = NULL;
	int r;

	if (!service) {
		created = service_config_new("--listen");
		if (!created)
			return -ENOMEM;
		created->allow_all = true;
		created->name = strdup(name);
		if (!created->name) {
			service_config_free(created);
			return -ENOMEM;
		}
		service = created;
	}
	r = service_config_add_listener(service, listener);
	if (r >= 0 && created) {
		r = config_add_service(config, created);
		if (r < 0)
			created->n_listeners = 0; /* stays the caller's */
	}
	if (r < 0)
		service_config_free(created);
	return r;
}

int config_add_listen(struct config *config, const char *argument, char **ret_error)
{
	static const char form[] = "NAME=tcp://ADDRESS:PORT, udp:// or quic://";
	_cleanup_(listener_config_freep) struct listener_config *listener = NULL;
	_cleanup_free_ char *name = NULL;
	struct service_config *service = NULL;
	const char *equals = strchr(argument, '='), *address;
	char listener_name[PROTOCOL_NAME_MAX];
	enum transport transport;
	int r;

	if (!equals)
		return listen_mistake(ret_error, "--listen %s: not %s", argument, form);
	name = strndup(argument, (size_t)(equals - argument));
	if (!name)
		return -ENOMEM;
	if (!name_valid(name, true))
		return listen_mistake(ret_error,
			"--listen %s: '%s' is not a name of 1 to 63 letters, digits and _.@:-",
			argument, name);
	if (parse_url(equals + 1, &transport, &address) < 0)
		return listen_mistake(ret_error, "--listen %s: not %s", argument, form);

	for (size_t i = 0; i < config->n_services; i++) {
		if (!strcmp(config->services[i]->name, name))
			service = config->services[i];
	}
	name_listener(service, transport, listener_name);
	listener = listener_config_new(listener_name, "--listen", 0);
	if (!listener)
		return -ENOMEM;
	listener->transport = transport;
	listener->cid_mode = transport == TRANSPORT_QUIC ? CID_QUIC_LB : CID_NONE;
	listener->host_id = config->host_id;
	r = parse_address(
		address, &listener->address, &listener->address_length, &listener->address_text);
	if (r == -EINVAL)
		return listen_mistake(ret_error,
			"--listen %s: '%s' is not PORT, A.B.C.D:PORT or [IPV6]:PORT with a port from "
			"1 to 65535",
			argument, address);
	if (r < 0)
		return r;
	r = check_listen(config, service, listener, argument, ret_error);
	if (r < 0)
		return r;
	r = add_listener(config, service, name, listener);
	if (r < 0)
		return r;
	listener = NULL;
	return 0;
}
