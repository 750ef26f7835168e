/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The table of options. All of them are known to every command, so that they may stand before it
 * or behind it; which ones mean something to a command, ctl-commands.c says.
 */
#include "tools/ctl-options.h"

#include <errno.h>
#include <getopt.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "common/util.h"

#define HELP_COLUMN 31

/* A line break in a help text begins a line of its own. */
const struct ctl_option ctl_options[OPTION_COUNT] = {
	[OPTION_SOCKET] = {"socket", 0, "PATH",
		"Control socket of the daemon; by default\n"
		"$REUSEPORT_CONTROL_SOCKET or\n" CTL_DEFAULT_SOCKET},
	[OPTION_JSON] = {"json", 0, "MODE", "The reply as JSON: pretty, short or off"},
	[OPTION_J] = {NULL, 'j', NULL, "--json=pretty on a terminal, else --json=short"},
	[OPTION_NO_LEGEND] = {"no-legend", 0, NULL, "No headings in tables, no line that counts"},
	[OPTION_NO_PAGER] = {"no-pager", 0, NULL, "Do not pipe what is long into a pager"},
	[OPTION_HELP] = {"help", 'h', NULL, "This text"},
	[OPTION_VERSION] = {"version", 0, NULL, "The version"},
	[OPTION_INSTANCE] = {"instance", 0, "NAME", "All workers of this instance"},
	[OPTION_SERVICE] = {"service", 0, "NAME",
		"All workers of this service (narrows the others)"},
	[OPTION_WAIT] = {"wait", 0, NULL, "drain: until the last of these workers has gone"},
	[OPTION_TIMEOUT] = {"timeout", 0, "SECONDS", "drain --wait: not longer than that"},
	[OPTION_DELAY] = {"delay", 'd', "SECONDS", "top: how often it looks; by default 1"},
	[OPTION_ITERATIONS] = {"iterations", 'n', "N", "top: end after so many pictures"},
	[OPTION_BATCH] = {"batch", 'b', NULL, "top: write one after the other, read no keys"},
	[OPTION_ONCE] = {"once", '1', NULL, "top: the same, and end after one"},
	[OPTION_FORMAT] = {"format", 0, "FORMAT",
		"metrics: prometheus (the default) or openmetrics"},
	[OPTION_OUTPUT] = {"output", 0, "FILE", "metrics: replace this file, instead of stdout"},
	[OPTION_LIST] = {"list", 0, NULL, "metrics: which there are, without a daemon"},
	[OPTION_CONFIG] = {"config", 0, "DIR", "check: the configuration files in there, offline"},
	[OPTION_LISTENER] = {"listener", 0, "SERVICE/LISTENER",
		"explain: to which listener the packet goes"},
	[OPTION_PACKET] = {"packet", 0, "HEX", "explain: the datagram"},
	[OPTION_CID] = {"cid", 0, "HEX", "explain: instead of it a connection ID"},
	[OPTION_FROM] = {"from", 0, "ADDRESS:PORT", "explain: who sent it"},
	[OPTION_OFFLINE] = {"offline", 0, NULL, "explain: without a daemon"},
	[OPTION_INITIAL] = {"initial", 0, "HEX",
		"explain: a datagram of a client that connects;\nmay be repeated"},
	[OPTION_CID_LENGTH] = {"cid-length", 0, "N", "Octets of short headers' connection IDs"},
	[OPTION_CONFIG_ROTATION] = {"config-rotation", 0, "N",
		"QUIC-LB: which configuration, 0 to 6"},
	[OPTION_SERVER_ID_LENGTH] = {"server-id-length", 0, "N", "QUIC-LB: octets of server IDs"},
	[OPTION_NONCE_LENGTH] = {"nonce-length", 0, "N", "QUIC-LB: octets of nonces"},
	[OPTION_SERVER_ID] = {"server-id", 0, "HEX", "make-cid: the server ID"},
	[OPTION_NONCE] = {"nonce", 0, "HEX", "make-cid: the nonce"},
	[OPTION_KEY] = {"key", 0, "HEX", "QUIC-LB: the key, where IDs are encrypted"},
	[OPTION_NO_LENGTH] = {"no-length", 0, NULL,
		"make-cid: do not encode the length in the first octet"},
};

static void write_option(char *text, size_t size, const struct ctl_option *option)
{
	if (!option->name)
		snprintf(text, size, "-%c", option->letter);
	else if (option->letter)
		snprintf(text, size, "-%c, --%s", option->letter, option->name);
	else
		snprintf(text, size, "--%s", option->name);
	if (option->argument) {
		size_t n = strlen(text);

		snprintf(text + n, size - n, " %s", option->argument);
	}
}

void ctl_print_options(ctl_option_set set)
{
	char text[64];

	for (int id = 0; id < OPTION_COUNT; id++) {
		if (!(set & CTL_OPTION(id)))
			continue;
		write_option(text, sizeof(text), &ctl_options[id]);
		ctl_print_help_entry(text, ctl_options[id].help);
	}
}

void ctl_print_help_entry(const char *entry, const char *help)
{
	int column = printf("  %s", entry);

	while (*help) {
		size_t n = strcspn(help, "\n");

		if (column >= HELP_COLUMN) {
			putchar('\n');
			column = 0;
		}
		printf("%*s%.*s\n", HELP_COLUMN - column, "", (int)n, help);
		help += n + (help[n] == '\n');
		column = 0;
	}
}

/* What getopt_long(3) wants; letters have room for a letter and a colon each, and the rest. */
static void make_tables(struct option *options, char *letters)
{
	size_t n = 0;

	for (int id = 0; id < OPTION_COUNT; id++) {
		const struct ctl_option *option = &ctl_options[id];

		if (option->name)
			options[n++] = (struct option){option->name,
				option->argument ? required_argument : no_argument, NULL, id + 256};
		if (option->letter) {
			*letters++ = option->letter;
			if (option->argument)
				*letters++ = ':';
		}
	}
	options[n] = (struct option){0};
	*letters = '\0';
}

static int option_id(int found)
{
	if (found >= 256)
		return found - 256;
	for (int id = 0; id < OPTION_COUNT; id++)
		if (ctl_options[id].letter && ctl_options[id].letter == found)
			return id;
	return -1;
}

int ctl_read_options(int argc, char **argv, struct ctl_values *values, int *ret_first)
{
	struct option options[OPTION_COUNT + 1];
	char letters[2 * OPTION_COUNT + 1];
	int found;

	*values = (struct ctl_values){0};
	make_tables(options, letters);
	optind = 0; /* glibc: begin anew, getopt(3) */
	while ((found = getopt_long(argc, argv, letters, options, NULL)) >= 0) {
		int id = option_id(found);

		if (id < 0)
			return -EINVAL; /* getopt_long() has said what is wrong */
		if (values->value[id] && id != OPTION_INITIAL && !(CTL_COMMON & CTL_OPTION(id))) {
			fprintf(stderr, "%s: --%s is given twice\n", argv[0], ctl_options[id].name);
			return -EINVAL;
		}
		values->value[id] = optarg ? optarg : "";
		if (id != OPTION_INITIAL)
			continue;
		if (values->n_initials == INITIALS_MAX) {
			fprintf(stderr,
				"%s: --initial is given more than %d times; no client needs that "
				"many\n",
				argv[0], INITIALS_MAX);
			return -EINVAL;
		}
		values->initials[values->n_initials++] = optarg;
	}
	*ret_first = optind;
	return 0;
}

int ctl_check_options(const char *command, ctl_option_set allowed, const struct ctl_values *values)
{
	for (int id = 0; id < OPTION_COUNT; id++)
		if (values->value[id] && !((allowed | CTL_COMMON) & CTL_OPTION(id))) {
			fprintf(stderr,
				"reuseportctl: %s has no option --%s (reuseportctl --help)\n",
				command, ctl_options[id].name);
			return -EINVAL;
		}
	return 0;
}
