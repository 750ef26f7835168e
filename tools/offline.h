/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The verbs of reuseportctl that need no daemon: what a packet is, which server a connection ID
 * names, and making one. The same readers and codec as the program in the kernel.
 */
#pragma once

#include <jansson.h>

#include "tools/ctl-options.h"

/* What is given with explain --offline, and with make-cid. */
#define OFFLINE_EXPLAIN_OPTIONS                                                            \
	(CTL_OPTION(OPTION_OFFLINE) | CTL_OPTION(OPTION_PACKET) | CTL_OPTION(OPTION_CID) | \
		CTL_OPTION(OPTION_INITIAL) | CTL_OPTION(OPTION_CID_LENGTH) |               \
		CTL_OPTION(OPTION_CONFIG_ROTATION) | CTL_OPTION(OPTION_SERVER_ID_LENGTH) | \
		CTL_OPTION(OPTION_NONCE_LENGTH) | CTL_OPTION(OPTION_KEY))
#define OFFLINE_MAKE_CID_OPTIONS                                             \
	(CTL_OPTION(OPTION_CONFIG_ROTATION) | CTL_OPTION(OPTION_SERVER_ID) | \
		CTL_OPTION(OPTION_NONCE) | CTL_OPTION(OPTION_KEY) | CTL_OPTION(OPTION_NO_LENGTH))

/*
 * Each prints one line of JSON on stdout, and returns the exit status: 0, 1 (the answer could not
 * be written), or 2 (wrong usage: a sentence on stderr, nothing on stdout).
 *
 * explain --offline --packet HEX [--cid-length N]
 * explain --offline --cid HEX --config-rotation N --server-id-length N --nonce-length N [--key HEX]
 * explain --offline --initial HEX [--initial HEX]...
 * make-cid --config-rotation N --server-id HEX --nonce HEX [--key HEX] [--no-length]
 */
int offline_explain(const struct ctl_values *values);
/* What the datagrams of --initial say, as explain --offline prints it; the caller's. */
int offline_read_initials(const struct ctl_values *values, json_t **ret);
int offline_make_cid(const struct ctl_values *values);
