/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Fields of replies as text: the one place that knows what an absent one is, and which octets may
 * reach a terminal.
 */
#include "tools/ctl-field.h"

#include <pwd.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "common/format.h"

bool ctl_is_plain(const char *text)
{
	for (const unsigned char *c = (const unsigned char *)text; *c; c++)
		/* C0, DEL, and C1, which UTF-8 terminals obey as well: U+009B is CSI. */
		if (*c < ' ' || *c == 0x7f || (*c == 0xc2 && c[1] >= 0x80 && c[1] < 0xa0))
			return false;
	return true;
}

const char *ctl_string(const json_t *object, const char *key)
{
	const char *text = json_string_value(json_object_get(object, key));

	return text ? text : "-";
}

const char *ctl_plain(const json_t *object, const char *key)
{
	const char *text = ctl_string(object, key);

	return ctl_is_plain(text) ? text : "?";
}

json_int_t ctl_number(const json_t *object, const char *key)
{
	return json_integer_value(json_object_get(object, key));
}

bool ctl_has(const json_t *object, const char *key)
{
	const json_t *value = json_object_get(object, key);

	return value && !json_is_null(value);
}

bool ctl_is_true(const json_t *object, const char *key)
{
	return json_is_true(json_object_get(object, key));
}

bool ctl_is(const json_t *object, const char *key, const char *text)
{
	return strcmp(ctl_string(object, key), text) == 0;
}

char *ctl_format(const char *format, ...)
{
	va_list arguments;
	char *text;

	va_start(arguments, format);
	text = format_list(format, arguments);
	va_end(arguments);
	return text;
}

char *ctl_duration(int64_t usec)
{
	static const struct {
		const char *name;
		int64_t seconds;
	} units[] = {{"d", 86400}, {"h", 3600}, {"min", 60}, {"s", 1}};
	int64_t left = usec < 0 ? 0 : usec / (int64_t)USEC_PER_SEC;

	for (size_t i = 0; i + 1 < ARRAY_SIZE(units); i++) {
		int64_t next = left % units[i].seconds / units[i + 1].seconds;

		if (left < units[i].seconds)
			continue;
		if (!next)
			return ctl_format(
				"%lld%s", (long long)(left / units[i].seconds), units[i].name);
		return ctl_format("%lld%s %lld%s", (long long)(left / units[i].seconds),
			units[i].name, (long long)next, units[i + 1].name);
	}
	return ctl_format("%llds", (long long)left);
}

char *ctl_short_number(double number)
{
	static const char units[] = "kMGTPE";
	double scaled = number;

	if (number < 999.5)
		return ctl_format("%.0f", number);
	for (size_t i = 0; i + 1 < sizeof(units); i++) {
		scaled /= 1000;
		if (scaled < 99.95)
			return ctl_format("%.1f%c", scaled, units[i]);
		if (scaled < 999.5)
			return ctl_format("%.0f%c", scaled, units[i]);
	}
	return ctl_format("%.0f%c", scaled, units[sizeof(units) - 2]);
}

char *ctl_user_name(json_int_t uid)
{
	const struct passwd *user = getpwuid((uid_t)uid);

	return user ? strdup(user->pw_name) : ctl_format("%" JSON_INTEGER_FORMAT, uid);
}

int64_t ctl_now_usec(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return (int64_t)now.tv_sec * (int64_t)USEC_PER_SEC + now.tv_nsec / (long)NSEC_PER_USEC;
}

int64_t ctl_now_msec(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}
