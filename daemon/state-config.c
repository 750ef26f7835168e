/* SPDX-License-Identifier: BSD-2-Clause */
#include "daemon/state-config.h"

#include <netinet/in.h>
#include <stdio.h>
#include <string.h>

#include "common/hex.h"
#include "common/util.h"

enum kind {
	KIND_UNSIGNED,
	KIND_SIGNED,
	KIND_BOOL,
	KIND_TEXT,
	KIND_TEXT_OR_NULL,
};

struct field {
	const char *name;
	enum kind kind;
	size_t offset, size;
	int64_t minimum, maximum;
};

#define NUMBER(type, member, low, high)                                                           \
	{                                                                                         \
#member, KIND_UNSIGNED, offsetof(type, member), sizeof(((type *)0)->member), low, \
			high                                                                      \
	}
#define OTHER(type, member, kind)                              \
	{                                                      \
#member, kind, offsetof(type, member), 0, 0, 0 \
	}

#define TIME_MAX (INT64_MAX / 1000)

static const struct field daemon_fields[] = {
	OTHER(struct config, user, KIND_TEXT),
	NUMBER(struct config, status_group, 0, UINT32_MAX),
	NUMBER(struct config, admin_group, 0, UINT32_MAX),
	NUMBER(struct config, host_id, 0, UINT16_MAX),
	NUMBER(struct config, max_connections, 0, UINT32_MAX),
	NUMBER(struct config, max_slots, 0, UINT32_MAX),
	NUMBER(struct config, max_messages, 0, UINT32_MAX),
	NUMBER(struct config, max_cids, 0, UINT32_MAX),
	NUMBER(struct config, answer_timeout_usec, 0, TIME_MAX),
	OTHER(struct config, state_directory, KIND_TEXT_OR_NULL),
	OTHER(struct config, state_directory_set, KIND_BOOL),
	{0},
};

static const struct field service_fields[] = {
	OTHER(struct service_config, name, KIND_TEXT),
	OTHER(struct service_config, file, KIND_TEXT_OR_NULL),
	OTHER(struct service_config, allow_all, KIND_BOOL),
	NUMBER(struct service_config, max_workers, 0, UINT32_MAX),
	NUMBER(struct service_config, drain_timeout_usec, 0, TIME_MAX),
	NUMBER(struct service_config, stall_timeout_usec, 0, TIME_MAX),
	OTHER(struct service_config, stall_kick, KIND_BOOL),
	{0},
};

static const struct field listener_fields[] = {
	OTHER(struct listener_config, name, KIND_TEXT),
	OTHER(struct listener_config, file, KIND_TEXT_OR_NULL),
	NUMBER(struct listener_config, line, 0, UINT32_MAX),
	NUMBER(struct listener_config, transport, TRANSPORT_TCP, TRANSPORT_QUIC),
	OTHER(struct listener_config, address_text, KIND_TEXT),
	{"backlog", KIND_SIGNED, offsetof(struct listener_config, backlog), sizeof(int), 0,
		INT32_MAX},
	NUMBER(struct listener_config, receive_buffer, 0, INT32_MAX),
	NUMBER(struct listener_config, send_buffer, 0, INT32_MAX),
	OTHER(struct listener_config, ipv6_only, KIND_BOOL),
	OTHER(struct listener_config, bind_to_device, KIND_TEXT_OR_NULL),
	OTHER(struct listener_config, free_bind, KIND_BOOL),
	OTHER(struct listener_config, transparent, KIND_BOOL),
	{"mark", KIND_SIGNED, offsetof(struct listener_config, mark), sizeof(int64_t), -1,
		UINT32_MAX},
	OTHER(struct listener_config, lock_filter, KIND_BOOL),
	OTHER(struct listener_config, standby_hold, KIND_BOOL),
	NUMBER(struct listener_config, standby_timeout_usec, 0, TIME_MAX),
	NUMBER(struct listener_config, flow_timeout_usec, 0, TIME_MAX),
	NUMBER(struct listener_config, n_flows, 1, 1 << 30),
	NUMBER(struct listener_config, cid_mode, CID_NONE, CID_OPAQUE),
	NUMBER(struct listener_config, host_id, 0, UINT16_MAX),
	OTHER(struct listener_config, key_file, KIND_TEXT_OR_NULL),
	{0},
};

static json_int_t read_number(const struct field *field, const void *at)
{
	switch (field->size) {
	case 2:
		return *(const uint16_t *)at;
	case 4:
		return field->kind == KIND_SIGNED ? *(const int32_t *)at
						  : (json_int_t) * (const uint32_t *)at;
	default:
		return *(const int64_t *)at;
	}
}

static void write_number(const struct field *field, void *at, json_int_t value)
{
	if (field->size == 2)
		*(uint16_t *)at = (uint16_t)value;
	else if (field->size == 4)
		*(uint32_t *)at = (uint32_t)value;
	else
		*(int64_t *)at = value;
}

static json_t *to_json(const struct field *fields, const void *object)
{
	json_t *json = json_object();

	for (const struct field *field = fields; field->name; field++) {
		const char *at = (const char *)object + field->offset;
		const char *text;

		if (field->kind == KIND_BOOL) {
			json_object_set_new(json, field->name, json_boolean(*(const bool *)at));
		} else if (field->kind == KIND_TEXT || field->kind == KIND_TEXT_OR_NULL) {
			/* A path may be other than UTF-8; it comes from the machine's own admin. */
			text = *(const char *const *)at;
			json_object_set_new(
				json, field->name, text ? json_string_nocheck(text) : json_null());
		} else {
			json_object_set_new(
				json, field->name, json_integer(read_number(field, at)));
		}
	}
	return json;
}

static int set_text(const struct field *field, char **at, const json_t *value)
{
	const char *text = json_string_value(value);
	char *copy;

	if (!text && field->kind == KIND_TEXT)
		return -EBADMSG;
	if (!text && !json_is_null(value))
		return -EBADMSG;
	copy = text ? strdup(text) : NULL;
	if (text && !copy)
		return -ENOMEM;
	free(*at);
	*at = copy;
	return 0;
}

static int from_json(const struct field *fields, void *object, const json_t *json)
{
	for (const struct field *field = fields; field->name; field++) {
		const json_t *value = json_object_get(json, field->name);
		char *at = (char *)object + field->offset;
		int result;

		if (field->kind == KIND_BOOL) {
			if (!json_is_boolean(value))
				return -EBADMSG;
			*(bool *)at = json_is_true(value);
		} else if (field->kind == KIND_TEXT || field->kind == KIND_TEXT_OR_NULL) {
			result = set_text(field, (char **)at, value);
			if (result < 0)
				return result;
		} else {
			if (!json_is_integer(value) || json_integer_value(value) < field->minimum ||
				json_integer_value(value) > field->maximum)
				return -EBADMSG;
			write_number(field, at, json_integer_value(value));
		}
	}
	return 0;
}

static json_t *ids_to_json(const uint32_t *ids, size_t n)
{
	json_t *json = json_array();

	for (size_t i = 0; i < n; i++)
		json_array_append_new(json, json_integer(ids[i]));
	return json;
}

static int ids_from_json(uint32_t **ret, size_t *ret_n, const json_t *json)
{
	size_t n = json_array_size(json);

	if (!json_is_array(json))
		return -EBADMSG;
	*ret = calloc(n + 1, sizeof(**ret));
	if (!*ret)
		return -ENOMEM;
	for (size_t i = 0; i < n; i++) {
		const json_t *value = json_array_get(json, i);

		if (!json_is_integer(value) || json_integer_value(value) < 0 ||
			json_integer_value(value) > UINT32_MAX)
			return -EBADMSG;
		(*ret)[i] = (uint32_t)json_integer_value(value);
	}
	*ret_n = n;
	return 0;
}

json_t *config_to_json(const struct config *config)
{
	json_t *json = to_json(daemon_fields, config);

	json_object_set_new(json, "classifier", json_string_nocheck(config->classifier));
	json_object_set_new(json, "classifier_percent", json_integer(config->classifier_percent));
	json_object_set_new(json, "classifier_drop", json_boolean(config->classifier_drop));
	return json;
}

/* Absent, of a version that knew none: the defaults. */
static int classifier_from_json(struct config *config, const json_t *json)
{
	const char *program = json_string_value(json_object_get(json, "classifier"));
	json_int_t percent = json_integer_value(json_object_get(json, "classifier_percent"));
	char *copy = program ? strdup(program) : NULL;

	if (program && !copy)
		return -ENOMEM;
	if (copy) {
		free(config->classifier);
		config->classifier = copy;
	}
	if (percent >= 1 && percent <= 100)
		config->classifier_percent = (unsigned)percent;
	config->classifier_drop = json_is_true(json_object_get(json, "classifier_drop"));
	return 0;
}

json_t *service_config_to_json(const struct service_config *service)
{
	json_t *json = to_json(service_fields, service);

	json_object_set_new(
		json, "allow_uids", ids_to_json(service->allow_uids, service->n_allow_uids));
	json_object_set_new(
		json, "allow_gids", ids_to_json(service->allow_gids, service->n_allow_gids));
	return json;
}

static json_t *words_to_json(const struct config_words *words)
{
	json_t *json = json_array();

	for (size_t i = 0; i < words->n; i++)
		json_array_append_new(json, json_string_nocheck(words->word[i]));
	return json;
}

static int words_from_json(struct config_words *words, const json_t *json)
{
	const json_t *word;
	size_t i;
	int result = 0;

	json_array_foreach(json, i, word)
	{
		if (!json_is_string(word))
			return -EBADMSG;
		result = config_words_add(words, json_string_value(word));
		if (result < 0)
			return result;
	}
	return result;
}

/* null: it has none. */
static json_t *share_to_json(const struct listener_config *listener)
{
	if (!listener->share)
		return json_null();
	return json_pack("{s:s, s:o, s:o, s:b}", "name", listener->share, "server_names",
		words_to_json(&listener->server_names), "protocols",
		words_to_json(&listener->protocols), "default", listener->match_default);
}

/* Absent, of a version that knew none: as null. */
static int share_from_json(struct listener_config *listener, const json_t *json)
{
	const char *name = json_string_value(json_object_get(json, "name"));
	int result;

	if (!json || json_is_null(json))
		return 0;
	if (!name)
		return -EBADMSG;
	listener->share = strdup(name);
	if (!listener->share)
		return -ENOMEM;
	listener->match_default = json_is_true(json_object_get(json, "default"));
	result = words_from_json(&listener->server_names, json_object_get(json, "server_names"));
	return result < 0
		       ? result
		       : words_from_json(&listener->protocols, json_object_get(json, "protocols"));
}

json_t *listener_config_to_json(const struct listener_config *listener)
{
	json_t *json = to_json(listener_fields, listener);
	char text[2 * sizeof(listener->address) + 1] = "";

	hex_write(text, (const uint8_t *)&listener->address, listener->address_length);
	json_object_set_new(json, "address", json_string(text));
	json_object_set_new(json, "share", share_to_json(listener));
	return json;
}

int config_from_json(struct config **ret, const json_t *json)
{
	_cleanup_(config_freep) struct config *config = NULL;
	int result = config_new(&config);

	if (result >= 0)
		result = from_json(daemon_fields, config, json);
	if (result >= 0)
		result = classifier_from_json(config, json);
	if (result >= 0)
		*ret = take_pointer(config);
	return result;
}

int service_config_from_json(struct service_config **ret, const json_t *json)
{
	struct service_config *service = service_config_new("");
	int result;

	if (!service)
		return -ENOMEM;
	result = from_json(service_fields, service, json);
	if (result >= 0)
		result = ids_from_json(&service->allow_uids, &service->n_allow_uids,
			json_object_get(json, "allow_uids"));
	if (result >= 0)
		result = ids_from_json(&service->allow_gids, &service->n_allow_gids,
			json_object_get(json, "allow_gids"));
	if (result < 0)
		service_config_free(service);
	else
		*ret = service;
	return result;
}

static int address_from_json(struct listener_config *listener, const json_t *json)
{
	const char *text = json_string_value(json);
	size_t n = text ? strlen(text) / 2 : 0;

	if (!text || strlen(text) % 2 ||
		(n != sizeof(struct sockaddr_in) && n != sizeof(struct sockaddr_in6)))
		return -EBADMSG;
	for (size_t i = 0; i < n; i++) {
		unsigned octet;

		if (strspn(text + 2 * i, "0123456789abcdef") < 2 ||
			sscanf(text + 2 * i, "%2x", &octet) != 1)
			return -EBADMSG;
		((uint8_t *)&listener->address)[i] = (uint8_t)octet;
	}
	listener->address_length = (socklen_t)n;
	if (listener->address.ss_family != (n == sizeof(struct sockaddr_in) ? AF_INET : AF_INET6))
		return -EBADMSG;
	return 0;
}

int listener_config_from_json(struct listener_config **ret, const json_t *json)
{
	struct listener_config *listener = listener_config_new("", "", 0);
	int result;

	if (!listener)
		return -ENOMEM;
	result = from_json(listener_fields, listener, json);
	if (result >= 0)
		result = address_from_json(listener, json_object_get(json, "address"));
	if (result >= 0)
		result = share_from_json(listener, json_object_get(json, "share"));
	/* Powers of two, which masks are made of. */
	if (result >= 0 && (listener->n_flows & (listener->n_flows - 1)))
		result = -EBADMSG;
	if (result >= 0 &&
		(listener->transport == TRANSPORT_QUIC) != (listener->cid_mode != CID_NONE))
		result = -EBADMSG;
	if (result < 0)
		listener_config_free(listener);
	else
		*ret = listener;
	return result;
}
