/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The table of commands.
 */
#include "tools/ctl-commands.h"

#include <stdio.h>
#include <string.h>

#include "tools/ctl-check.h"
#include "tools/offline.h"

#define WORKERS (CTL_OPTION(OPTION_INSTANCE) | CTL_OPTION(OPTION_SERVICE))
#define ARGUMENTS_MAX 100 /* for those that check how many there are themselves */

static const struct ctl_command commands[] = {
	{.name = "status",
		.arguments = "[SERVICE]",
		.help = "Services, listeners, workers, counters (the default)",
		.maximum = 1,
		.run = ctl_run_status,
		.pager = true},
	{.name = "list-services",
		.help = "A line for each service",
		.run = ctl_run_list_services,
		.pager = true},
	{.name = "list-workers",
		.arguments = "[SERVICE]",
		.help = "A line for each worker",
		.maximum = 1,
		.run = ctl_run_list_workers,
		.pager = true},
	{.name = "show",
		.arguments = "WORKER",
		.help = "All that is known of a worker",
		.maximum = ARGUMENTS_MAX,
		.options = WORKERS,
		.run = ctl_run_show,
		.pager = true},
	{.name = "top",
		.arguments = "[SERVICE]",
		.help = "What comes in now, and who gets it; q ends it",
		.maximum = 1,
		.options = CTL_OPTION(OPTION_DELAY) | CTL_OPTION(OPTION_ITERATIONS) |
			   CTL_OPTION(OPTION_BATCH) | CTL_OPTION(OPTION_ONCE),
		.run = ctl_run_top},
	{.name = "monitor",
		.arguments = "[SERVICE]",
		.help = "Every change as it happens, a line each",
		.maximum = 1,
		.run = ctl_run_monitor},
	{.name = "check",
		.arguments = "[SERVICE]",
		.help = "Whether all is well; exit status 0 OK, 1 warning,\n"
			"2 critical, 3 unknown, as monitoring systems want it",
		.maximum = 1,
		.options = CTL_OPTION(OPTION_CONFIG),
		.usage = CHECK_UNKNOWN,
		.run = ctl_run_check},
	{.name = "metrics",
		.help = "Counters and gauges for Prometheus",
		.options = CTL_OPTION(OPTION_FORMAT) | CTL_OPTION(OPTION_OUTPUT) |
			   CTL_OPTION(OPTION_LIST),
		.run = ctl_run_metrics},
	{.name = "drain",
		.arguments = "WORKER",
		.help = "Give it no new connection and tell its process",
		.maximum = ARGUMENTS_MAX,
		.options = WORKERS | CTL_OPTION(OPTION_WAIT) | CTL_OPTION(OPTION_TIMEOUT),
		.run = ctl_run_drain},
	{.name = "undrain",
		.arguments = "WORKER",
		.help = "Make a draining worker active again",
		.maximum = ARGUMENTS_MAX,
		.options = WORKERS,
		.run = ctl_run_undrain},
	{.name = "weight",
		.arguments = "WORKER N",
		.help = "Its share of new connections, 1 to 1000",
		.maximum = ARGUMENTS_MAX,
		.options = WORKERS,
		.run = ctl_run_weight},
	{.name = "kick",
		.arguments = "WORKER",
		.help = "Drain one that hangs, and take its accept queue away",
		.maximum = ARGUMENTS_MAX,
		.options = WORKERS,
		.run = ctl_run_kick},
	{.name = "rotate-keys",
		.arguments = "SERVICE [LISTENER]",
		.help = "Make connection IDs under a new key",
		.minimum = 1,
		.maximum = 2,
		.run = ctl_run_rotate_keys},
	{.name = "reload", .help = "Read the configuration again", .run = ctl_run_reload},
	{.name = "reexec",
		.help = "Replace the running daemon by the program that is\n"
			"installed now; workers notice nothing",
		.run = ctl_run_reexec},
	{.name = "explain",
		.arguments = "--packet HEX | --cid HEX | --initial HEX...",
		.help = "Where a QUIC packet would go now, and why; the first\n"
			"ones of a client (--initial): by what it asks for",
		.options = CTL_OPTION(OPTION_PACKET) | CTL_OPTION(OPTION_CID) |
			   CTL_OPTION(OPTION_INITIAL) | CTL_OPTION(OPTION_FROM) |
			   CTL_OPTION(OPTION_LISTENER),
		.run = ctl_run_explain},
	{.name = "explain",
		.arguments = "--offline --packet HEX [--cid-length N]",
		.help = "What a QUIC packet is",
		.options = OFFLINE_EXPLAIN_OPTIONS,
		.run_offline = offline_explain},
	{.name = "explain",
		.arguments = "--offline --cid HEX --config-rotation N\n"
			     "          --server-id-length N --nonce-length N [--key HEX]",
		.help = "Which server a connection ID names",
		.options = OFFLINE_EXPLAIN_OPTIONS,
		.run_offline = offline_explain},
	{.name = "explain",
		.arguments = "--offline --initial HEX [--initial HEX]...",
		.help = "What a client asks for: server name and protocols",
		.options = OFFLINE_EXPLAIN_OPTIONS,
		.run_offline = offline_explain},
	{.name = "make-cid",
		.arguments = "--config-rotation N --server-id HEX --nonce HEX\n"
			     "          [--key HEX] [--no-length]",
		.help = "Make a connection ID",
		.options = OFFLINE_MAKE_CID_OPTIONS,
		.run_offline = offline_make_cid},
};

const struct ctl_command *ctl_find_command(const char *name, const struct ctl_values *values)
{
	bool offline = values->value[OPTION_OFFLINE];
	const struct ctl_command *found = NULL;

	for (size_t i = 0; i < ARRAY_SIZE(commands); i++) {
		if (strcmp(commands[i].name, name) != 0)
			continue;
		if (!found || (offline && commands[i].run_offline))
			found = &commands[i];
	}
	return found;
}

static void print_commands(bool offline)
{
	char text[256];

	for (size_t i = 0; i < ARRAY_SIZE(commands); i++) {
		const struct ctl_command *command = &commands[i];

		if (offline != (command->run_offline != NULL))
			continue;
		snprintf(text, sizeof(text), "%s%s%s", command->name, command->arguments ? " " : "",
			command->arguments ? command->arguments : "");
		ctl_print_help_entry(text, command->help);
	}
}

int ctl_print_command_help(const char *name)
{
	ctl_option_set options = CTL_COMMON;
	bool found = false;

	for (size_t i = 0; i < ARRAY_SIZE(commands); i++) {
		const struct ctl_command *command = &commands[i];

		if (strcmp(command->name, name) != 0)
			continue;
		printf("%sreuseportctl %s%s%s\n%s\n", found ? "\n" : "", name,
			command->arguments ? " " : "", command->arguments ? command->arguments : "",
			command->help);
		options |= command->options;
		found = true;
	}
	if (!found)
		return ctl_usage("there is no command", name);
	puts("\nOptions:");
	ctl_print_options(options);
	return CTL_OK;
}

void ctl_print_help(void)
{
	puts("Usage: reuseportctl [OPTIONS...] COMMAND ...\n\n"
	     "What reuseportd serves, who serves it, and what to change about it.\n\n"
	     "Commands:");
	print_commands(false);
	puts("\nCommands that need no daemon, always JSON:");
	print_commands(true);
	puts("\nWORKER is a slot number or an instance; or --instance and --service name it.\n\n"
	     "Options:");
	ctl_print_options(~(ctl_option_set)0);
	puts("\nExit status: 0 done, 1 failed, 2 usage, 3 daemon unreachable, 4 denied,\n"
	     "5 time is over; of check: see there. reuseportctl(1) has the rest.");
}
