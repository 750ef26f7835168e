/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The two ways out that every command has: a sentence on stderr, and JSON on stdout.
 */
#include <stdarg.h>
#include <stdio.h>

#include "tools/ctl.h"

void ctl_error(const char *format, ...)
{
	va_list arguments;

	fflush(stdout);
	fputs("reuseportctl: ", stderr);
	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fputc('\n', stderr);
}

int ctl_usage(const char *what, const char *name)
{
	ctl_error("%s%s%s (reuseportctl --help)", what, name ? " " : "", name ? name : "");
	return CTL_USAGE;
}

void ctl_print_json(const struct ctl *ctl, const json_t *value)
{
	json_dumpf(value, stdout, ctl->json == CTL_JSON_PRETTY ? JSON_INDENT(2) : JSON_COMPACT);
	putchar('\n');
}
