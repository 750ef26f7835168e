/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * reuseportctl: what an operator sees of reuseportd and tells it. Each command is a call of
 * io.reuseport.Control; with --json the reply's parameters come out as they are, so that a script
 * needs no Varlink of its own. Commands are in ctl-commands.c, options in ctl-options.c.
 */
#include <locale.h>
#include <stdio.h>
#include <string.h>

#include "tools/ctl-commands.h"
#include "tools/ctl-terminal.h"
#include "tools/ctl.h"

static int read_json_mode(struct ctl *ctl)
{
	static const char *const modes[] = {
		[CTL_JSON_OFF] = "off", [CTL_JSON_PRETTY] = "pretty", [CTL_JSON_SHORT] = "short"};
	const char *mode = ctl_get(ctl, OPTION_JSON);

	if (ctl_get(ctl, OPTION_J))
		ctl->json = isatty(STDOUT_FILENO) ? CTL_JSON_PRETTY : CTL_JSON_SHORT;
	if (!mode)
		return CTL_OK;
	for (size_t i = 0; i < ARRAY_SIZE(modes); i++)
		if (strcmp(mode, modes[i]) == 0) {
			ctl->json = (enum ctl_json_mode)i;
			return CTL_OK;
		}
	return ctl_usage("--json is pretty, short or off, not", mode);
}

static int check_arguments(const struct ctl_command *command, int argc)
{
	if (argc >= command->minimum && argc <= command->maximum)
		return 0;
	ctl_error("%s takes %s%s%s (reuseportctl --help)", command->name,
		command->maximum ? command->arguments : "no arguments",
		argc < command->minimum ? ": an argument is missing" : "",
		argc > command->maximum ? ": too many arguments" : "");
	return -EINVAL;
}

static int run(struct ctl *ctl, const char *name, int argc, char **argv)
{
	const struct ctl_command *command = ctl_find_command(name, &ctl->values);

	if (!command)
		return ctl_usage("there is no command", name);
	if (ctl_check_options(name, command->options, &ctl->values) < 0 ||
		check_arguments(command, argc) < 0)
		return command->usage ? command->usage : CTL_USAGE;
	if (command->run_offline)
		return command->run_offline(&ctl->values);
	if (command->pager && !ctl_get(ctl, OPTION_NO_PAGER))
		ctl_pager_open();
	return command->run(ctl, argc, argv);
}

/* What a wrong command line means to whoever runs the command; options are not understood then. */
static int wrong(int argc, char **argv)
{
	const struct ctl_values none = {0};

	for (int i = 1; i < argc; i++) {
		const struct ctl_command *command = ctl_find_command(argv[i], &none);

		if (command)
			return command->usage ? command->usage : CTL_USAGE;
	}
	return CTL_USAGE;
}

static int start(struct ctl *ctl, int argc, char **argv)
{
	int first, rows;

	if (ctl_read_options(argc, argv, &ctl->values, &first) < 0)
		return wrong(argc, argv);
	if (ctl_get(ctl, OPTION_HELP)) {
		if (first < argc)
			return ctl_print_command_help(argv[first]);
		ctl_print_help();
		return CTL_OK;
	}
	if (ctl_get(ctl, OPTION_VERSION)) {
		puts("reuseportctl " VERSION);
		return CTL_OK;
	}
	if (ctl_get(ctl, OPTION_SOCKET))
		ctl->socket = ctl_get(ctl, OPTION_SOCKET);
	ctl->legend = !ctl_get(ctl, OPTION_NO_LEGEND);
	ctl->colour = ctl_colour_wanted();
	if (isatty(STDOUT_FILENO))
		ctl_terminal_size(STDOUT_FILENO, &ctl->columns, &rows);
	if (read_json_mode(ctl) != CTL_OK)
		return wrong(argc, argv);
	if (first == argc)
		return run(ctl, "status", 0, argv + first);
	return run(ctl, argv[first], argc - first - 1, argv + first + 1);
}

int main(int argc, char **argv)
{
	const char *environment = getenv("REUSEPORT_CONTROL_SOCKET");
	struct ctl ctl = {.socket = environment && *environment ? environment : CTL_DEFAULT_SOCKET};
	int result;

	if (argc < 1)
		return CTL_USAGE;
	setlocale(LC_CTYPE, "");
	argv[0] = program_invocation_short_name;
	result = start(&ctl, argc, argv);
	if ((fflush(stdout) != 0 || ferror(stdout)) && result == CTL_OK && !ctl_pager_is_open()) {
		ctl_error("cannot write the answer: %s", strerror(errno));
		result = CTL_FAILED;
	}
	ctl_pager_close();
	return result;
}
