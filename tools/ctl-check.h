/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Exit status of check, as monitoring systems know it from plugins (Nagios, Icinga and others).
 */
#pragma once

enum {
	CHECK_OK = 0,
	CHECK_WARNING = 1,
	CHECK_CRITICAL = 2,
	CHECK_UNKNOWN = 3,
};
