/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Text made by a format, for functions with arguments of their own before it. Header only.
 */
#pragma once

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

#include "common/util.h"

/* NULL: not enough memory. The caller's to free. */
_printf_(1, 0) static inline char *format_list(const char *format, va_list arguments)
{
	char *text;

	return vasprintf(&text, format, arguments) < 0 ? NULL : text;
}

/* Returns error with a sentence in *ret_error, or -ENOMEM with NULL. */
_printf_(3, 4) static inline int format_error(char **ret_error, int error, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	*ret_error = format_list(format, arguments);
	va_end(arguments);
	return *ret_error ? error : -ENOMEM;
}
