/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Every command of reuseportctl, once: what is run, what it takes, and what --help says of it.
 */
#pragma once

#include "tools/ctl.h"

struct ctl_command {
	const char *name;
	const char *arguments; /* as --help has them, NULL: none */
	const char *help;
	int minimum, maximum; /* how many arguments */
	ctl_option_set options;
	int usage; /* exit status where the command line is wrong; 0: CTL_USAGE */
	int (*run)(const struct ctl *ctl, int argc, char **argv);
	int (*run_offline)(const struct ctl_values *values); /* instead: no daemon is asked */
	bool pager;                                          /* what it prints may be long */
};

/* The command of that name, the one for --offline where that is given; NULL: there is none. */
const struct ctl_command *ctl_find_command(const char *name, const struct ctl_values *values);

void ctl_print_help(void);

/* Of one command, with the options that mean something to it; CTL_USAGE: there is no such command.
 */
int ctl_print_command_help(const char *name);
