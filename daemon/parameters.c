/* SPDX-License-Identifier: BSD-2-Clause */
#include "daemon/parameters.h"

#include <ctype.h>
#include <stdbool.h>
#include <string.h>

#include "common/util.h"

struct parameter {
	const char *name, *type;
	size_t name_length, type_length;
	bool nullable;
};

/* The text after "method NAME(", or NULL. */
static const char *find_method(const char *interface, const char *method)
{
	const size_t length = strlen(method);

	for (const char *line = interface; line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (strncmp(line, "method ", 7) == 0 && strncmp(line + 7, method, length) == 0 &&
			line[7 + length] == '(')
			return line + 7 + length + 1;
	}
	return NULL;
}

static size_t word(const char *text)
{
	size_t length = 0;

	while (isalnum((unsigned char)text[length]) || text[length] == '_')
		length++;
	return length;
}

/* Reads "name: ?type" and the comma after it. NULL: the list ends here. */
static const char *next_parameter(const char *text, struct parameter *ret)
{
	text += strspn(text, " \t\n,");
	if (*text == ')' || !*text)
		return NULL;
	ret->name = text;
	ret->name_length = word(text);
	text += ret->name_length;
	text += strspn(text, ": \t\n");
	ret->nullable = *text == '?';
	text += ret->nullable;
	ret->type = text;
	ret->type_length = strcspn(text, ",) \n");
	return text + ret->type_length;
}

static bool is_named(const struct parameter *parameter, const char *name)
{
	return strlen(name) == parameter->name_length &&
	       memcmp(name, parameter->name, parameter->name_length) == 0;
}

static bool is_type(const struct parameter *parameter, const char *type)
{
	return strlen(type) == parameter->type_length &&
	       memcmp(type, parameter->type, parameter->type_length) == 0;
}

static bool fits(const struct parameter *parameter, const json_t *value)
{
	if (!value || json_is_null(value))
		return parameter->nullable;
	if (is_type(parameter, "int"))
		return json_is_integer(value);
	if (is_type(parameter, "string"))
		return json_is_string(value);
	return !is_type(parameter, "bool") || json_is_boolean(value);
}

static bool is_known(const char *list, const char *name)
{
	struct parameter parameter;

	while ((list = next_parameter(list, &parameter)))
		if (is_named(&parameter, name))
			return true;
	return false;
}

int parameters_check(
	const char *interface, const char *method, const json_t *parameters, char **ret_name)
{
	const char *list = find_method(interface, method), *name;
	struct parameter parameter;
	json_t *value;

	if (!list)
		return -ENOENT;
	for (const char *next = list; (next = next_parameter(next, &parameter));) {
		value = json_object_getn(parameters, parameter.name, parameter.name_length);
		if (fits(&parameter, value))
			continue;
		*ret_name = strndup(parameter.name, parameter.name_length);
		return -EINVAL;
	}
	json_object_foreach((json_t *)parameters, name, value)
	{
		if (is_known(list, name))
			continue;
		*ret_name = strdup(name);
		return -EINVAL;
	}
	return 0;
}
