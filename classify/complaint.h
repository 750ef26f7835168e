/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What is wrong with something that a client sent: one sentence in two parts, and where. The
 * strings are constants, so that a malformed packet costs no memory and nothing of it gets into a
 * message.
 */
#pragma once

#include <stddef.h>

struct complaint {
	const char *subject; /* "the CRYPTO frame"; NULL: nothing is wrong */
	const char *problem; /* "is cut off" */
	const char *where;   /* "the Initial's payload" */
	size_t octet;        /* of that, counted from 0 */
};
