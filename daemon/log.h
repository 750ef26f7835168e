/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Lines for people, on standard error: with syslog's priority in front when that goes to the
 * journal (sd-daemon(3)), plain otherwise. A thing is logged once, where it is handled.
 */
#pragma once

#include "common/util.h"

void log_line(const char *priority, const char *format, ...) _printf_(2, 3);

#define log_error(...) log_line("<3>", __VA_ARGS__)
#define log_warning(...) log_line("<4>", __VA_ARGS__)
#define log_info(...) log_line("<6>", __VA_ARGS__)
