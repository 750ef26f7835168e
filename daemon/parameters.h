/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Whether a call's parameters are those of its method, by the words of the interface itself: the
 * text that clients are given is what they are held to.
 */
#pragma once

#include <jansson.h>

/*
 * interface: text in Varlink's language. method: without the interface's name. Returns 0; -ENOENT
 * when the text has no such method; or -EINVAL with *ret_name (free()) the first parameter that is
 * missing, of another type, or unknown to the method. Types other than int, string and bool are not
 * looked into.
 */
int parameters_check(
	const char *interface, const char *method, const json_t *parameters, char **ret_name);
