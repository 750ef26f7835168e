/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Text made by a format, for functions with arguments of their own before it. Header only.
 */
#pragma once

#include <stdarg.h>
#include <stdio.h>

#include "common/util.h"

/* NULL: not enough memory. The caller's to free. */
_printf_(1, 0) static inline char *format_list(const char *format, va_list arguments)
{
	char *text;

	return vasprintf(&text, format, arguments) < 0 ? NULL : text;
}
