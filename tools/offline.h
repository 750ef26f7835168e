/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The verbs of reuseportctl that need no daemon: what a packet is, which server a connection ID
 * names, and making one. The same readers and codec as the program in the kernel.
 */
#pragma once

/*
 * Each takes its arguments with the verb as argv[0] (which getopt may reorder), prints one line of
 * JSON on stdout, and returns the exit status: 0, 1 (the answer could not be written), or 2 (wrong
 * usage: a sentence on stderr, nothing on stdout).
 *
 * explain --offline --packet HEX [--cid-length N]
 * explain --offline --cid HEX --config-rotation N --server-id-length N --nonce-length N [--key HEX]
 * explain --offline --initial HEX [--initial HEX]...
 * make-cid --config-rotation N --server-id HEX --nonce HEX [--key HEX] [--no-length]
 */
int offline_explain(int argc, char **argv);
int offline_make_cid(int argc, char **argv);
