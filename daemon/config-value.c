/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * One value of the configuration, from its text: numbers, time spans, sizes, addresses, names.
 *
 * WHY apart: files and --listen write them in the same way, and what is strict here is strict for
 * both. Knows no keys; the caller says what was wrong and what would be right.
 */
#include "daemon/config-value.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>

#include "common/util.h"
#include "proto/protocol.h"

bool name_valid(const char *name, bool colon)
{
	size_t length = strlen(name);

	if (!length || length >= PROTOCOL_NAME_MAX)
		return false;
	for (const char *c = name; *c; c++) {
		if ((*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') ||
			(*c >= '0' && *c <= '9'))
			continue;
		if (!strchr("_.@-", *c) && !(colon && *c == ':'))
			return false;
	}
	return true;
}

/* Decimal digits only, or 0x and hexadecimal ones. */
int parse_unsigned(const char *text, uint64_t max, uint64_t *ret)
{
	int base = !strncmp(text, "0x", 2) ? 16 : 10;
	uint64_t value = 0;

	if (base == 16)
		text += 2;
	if (!*text)
		return -EINVAL;
	for (; *text; text++) {
		unsigned digit;

		if (*text >= '0' && *text <= '9')
			digit = (unsigned)(*text - '0');
		else if (base == 16 && isxdigit((unsigned char)*text))
			digit = (unsigned)(tolower((unsigned char)*text) - 'a') + 10;
		else
			return -EINVAL;
		if (value > (max - MIN(digit, max)) / (unsigned)base)
			return -ERANGE;
		value = value * (unsigned)base + digit;
	}
	if (value > max)
		return -ERANGE;
	*ret = value;
	return 0;
}

static const struct {
	const char *name;
	uint64_t usec;
} time_units[] = {
	{"us", 1},
	{"usec", 1},
	{"ms", USEC_PER_MSEC},
	{"msec", USEC_PER_MSEC},
	{"s", USEC_PER_SEC},
	{"sec", USEC_PER_SEC},
	{"second", USEC_PER_SEC},
	{"seconds", USEC_PER_SEC},
	{"m", 60 * USEC_PER_SEC},
	{"min", 60 * USEC_PER_SEC},
	{"minute", 60 * USEC_PER_SEC},
	{"minutes", 60 * USEC_PER_SEC},
	{"h", 3600 * USEC_PER_SEC},
	{"hr", 3600 * USEC_PER_SEC},
	{"hour", 3600 * USEC_PER_SEC},
	{"hours", 3600 * USEC_PER_SEC},
	{"d", 86400 * USEC_PER_SEC},
	{"day", 86400 * USEC_PER_SEC},
	{"days", 86400 * USEC_PER_SEC},
	{"w", 604800 * USEC_PER_SEC},
	{"week", 604800 * USEC_PER_SEC},
	{"weeks", 604800 * USEC_PER_SEC},
};

static uint64_t time_unit(const char *name, size_t length)
{
	if (!length)
		return USEC_PER_SEC;
	for (size_t i = 0; i < ARRAY_SIZE(time_units); i++) {
		if (strlen(time_units[i].name) == length &&
			!memcmp(time_units[i].name, name, length))
			return time_units[i].usec;
	}
	return 0;
}

#define TIME_MAX (36500 * 86400ULL * USEC_PER_SEC)

/* "30", "1.5s", "1h 30min", as in systemd.time(7); "infinity" is 0. */
int parse_time(const char *text, uint64_t *ret)
{
	uint64_t sum = 0;

	if (!strcmp(text, "infinity")) {
		*ret = 0;
		return 0;
	}
	text += strspn(text, " \t");
	if (!*text)
		return -EINVAL;
	while (*text) {
		size_t digits = strspn(text, "0123456789"), length;
		uint64_t value = 0, unit, part = 0, scale = 1;

		if (!digits || digits > 18)
			return -EINVAL;
		for (; digits; digits--, text++)
			value = value * 10 + (uint64_t)(*text - '0');
		if (*text == '.') {
			text++;
			digits = strspn(text, "0123456789");
			if (!digits || digits > 6)
				return -EINVAL;
			for (; digits; digits--, text++, scale *= 10)
				part = part * 10 + (uint64_t)(*text - '0');
		}
		text += strspn(text, " \t");
		length = strcspn(text, "0123456789. \t");
		unit = time_unit(text, length);
		if (!unit)
			return -EINVAL;
		if (value > TIME_MAX / unit)
			return -ERANGE;
		sum += value * unit + part * unit / scale;
		if (sum > TIME_MAX)
			return -ERANGE;
		text += length;
		text += strspn(text, " \t");
	}
	*ret = sum;
	return 0;
}

int parse_size(const char *text, uint64_t max, uint64_t *ret)
{
	char digits[32];
	size_t length = strlen(text);
	uint64_t value, factor = 1;
	int r;

	if (!length || length >= sizeof(digits))
		return -EINVAL;
	memcpy(digits, text, length + 1);
	switch (digits[length - 1]) {
	case 'K':
		factor = 1ULL << 10;
		break;
	case 'M':
		factor = 1ULL << 20;
		break;
	case 'G':
		factor = 1ULL << 30;
		break;
	}
	if (factor > 1)
		digits[length - 1] = '\0';
	r = parse_unsigned(digits, max / factor, &value);
	if (r < 0)
		return r;
	*ret = value * factor;
	return 0;
}

/* PORT, A.B.C.D:PORT or [IPV6]:PORT, as in systemd.socket(5). text: NULL with -ENOMEM only. */
int parse_address(const char *text, struct sockaddr_storage *ret_address, socklen_t *ret_length,
	char **ret_text)
{
	struct sockaddr_storage address = {};
	struct sockaddr_in *in = (struct sockaddr_in *)&address;
	struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)&address;
	const char *port_text, *colon = strrchr(text, ':');
	char host[INET6_ADDRSTRLEN + IF_NAMESIZE + 1], normal[INET6_ADDRSTRLEN];
	char device[IF_NAMESIZE] = "", *zone, *result;
	uint64_t port;
	bool brackets = text[0] == '[';
	size_t length;

	port_text = colon ? colon + 1 : text;
	if (!*port_text || strspn(port_text, "0123456789") != strlen(port_text) ||
		parse_unsigned(port_text, UINT16_MAX, &port) < 0 || !port)
		return -EINVAL;
	if (!colon) {
		strcpy(host, "::");
		brackets = true;
	} else {
		length = (size_t)(colon - text);
		if (brackets && (length < 3 || text[length - 1] != ']'))
			return -EINVAL;
		if (brackets) {
			text++;
			length -= 2;
		}
		if (length >= sizeof(host))
			return -EINVAL;
		memcpy(host, text, length);
		host[length] = '\0';
	}
	if (!brackets) {
		if (inet_pton(AF_INET, host, &in->sin_addr) != 1)
			return -EINVAL;
		in->sin_family = AF_INET;
		in->sin_port = htons((uint16_t)port);
		inet_ntop(AF_INET, &in->sin_addr, normal, sizeof(normal));
		if (asprintf(&result, "%s:%u", normal, (unsigned)port) < 0)
			return -ENOMEM;
		*ret_length = sizeof(*in);
	} else {
		zone = strchr(host, '%');
		if (zone) {
			*zone++ = '\0';
			in6->sin6_scope_id = if_nametoindex(zone);
			if (!in6->sin6_scope_id || strlen(zone) >= sizeof(device))
				return -EINVAL;
			strcpy(device, zone);
		}
		if (inet_pton(AF_INET6, host, &in6->sin6_addr) != 1)
			return -EINVAL;
		in6->sin6_family = AF_INET6;
		in6->sin6_port = htons((uint16_t)port);
		inet_ntop(AF_INET6, &in6->sin6_addr, normal, sizeof(normal));
		if (asprintf(&result, "[%s%s%s]:%u", normal, zone ? "%" : "", device,
			    (unsigned)port) < 0)
			return -ENOMEM;
		*ret_length = sizeof(*in6);
	}
	*ret_address = address;
	*ret_text = result;
	return 0;
}
