/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Every option of reuseportctl, once: what getopt_long(3) reads, what --help prints, and what tests
 * hold against the manual page and the completions.
 */
#pragma once

#include <stdint.h>

#define CTL_DEFAULT_SOCKET "/run/reuseportd/control.sock"

enum ctl_option_id {
	OPTION_SOCKET,
	OPTION_JSON,
	OPTION_J,
	OPTION_NO_LEGEND,
	OPTION_NO_PAGER,
	OPTION_HELP,
	OPTION_VERSION,
	OPTION_INSTANCE,
	OPTION_SERVICE,
	OPTION_WAIT,
	OPTION_TIMEOUT,
	OPTION_DELAY,
	OPTION_ITERATIONS,
	OPTION_BATCH,
	OPTION_ONCE,
	OPTION_FORMAT,
	OPTION_OUTPUT,
	OPTION_LIST,
	OPTION_CONFIG,
	OPTION_LISTENER,
	OPTION_PACKET,
	OPTION_CID,
	OPTION_FROM,
	OPTION_OFFLINE,
	OPTION_INITIAL,
	OPTION_CID_LENGTH,
	OPTION_CONFIG_ROTATION,
	OPTION_SERVER_ID_LENGTH,
	OPTION_NONCE_LENGTH,
	OPTION_SERVER_ID,
	OPTION_NONCE,
	OPTION_KEY,
	OPTION_NO_LENGTH,
	OPTION_COUNT,
};

typedef uint64_t ctl_option_set;
#define CTL_OPTION(id) ((ctl_option_set)1 << (id))

/* Those that every command takes. */
#define CTL_COMMON                                                                    \
	(CTL_OPTION(OPTION_SOCKET) | CTL_OPTION(OPTION_JSON) | CTL_OPTION(OPTION_J) | \
		CTL_OPTION(OPTION_NO_LEGEND) | CTL_OPTION(OPTION_NO_PAGER) |          \
		CTL_OPTION(OPTION_HELP) | CTL_OPTION(OPTION_VERSION))

struct ctl_option {
	const char *name;     /* NULL: it has a letter only */
	char letter;          /* 0: it has none */
	const char *argument; /* NULL: it takes none */
	const char *help;
};

extern const struct ctl_option ctl_options[OPTION_COUNT];

/* One more than any client sends before it has an answer. */
#define INITIALS_MAX 64

/* What was given: the text of an option, "" for one that takes none. */
struct ctl_values {
	const char *value[OPTION_COUNT];
	const char *initials[INITIALS_MAX]; /* --initial may be given again */
	unsigned n_initials;
};

/*
 * Reads the options out of argv, which is put in order: what is no option comes last, from
 * argv[*ret_first] on. Common options may be given again, the last counts; others once. 0, or
 * -EINVAL after a sentence on stderr that begins with argv[0].
 */
int ctl_read_options(int argc, char **argv, struct ctl_values *values, int *ret_first);

/* Whether only options of the set were given: 0, or -EINVAL after a sentence about the command. */
int ctl_check_options(const char *command, ctl_option_set allowed, const struct ctl_values *values);

/* The options of the set on stdout, as --help has them. */
void ctl_print_options(ctl_option_set set);

/* A line of --help: what there is to write, and behind it what it means, which may have lines. */
void ctl_print_help_entry(const char *entry, const char *help);
