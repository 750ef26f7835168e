/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The command line of reuseport-run.
 */
#include <getopt.h>
#include <stdio.h>
#include <string.h>

#include "tools/run.h"

#define ADOPT_WORKERS 1024 /* what a registration may have at most: as many as the server binds */

static void print_help(void)
{
	fputs("usage: reuseport-run --service NAME [OPTION...] -- SERVER [ARGUMENT...]\n"
	      "Run a server on sockets of reuseportd.\n\n"
	      "      --service NAME        service whose listeners the server gets\n"
	      "      --instance NAME       stable name of this server; once ready, it replaces\n"
	      "                            the one that had the name before\n"
	      "      --workers N           sockets for each listener (1); with --adopt at most\n"
	      "                            so many (1024)\n"
	      "      --weight N            share of new connections, 1 to 1000 (100)\n"
	      "      --pass HOW            listen-fds (default): LISTEN_FDS and LISTEN_FDNAMES,\n"
	      "                            nginx: NGINX=\"3;4;\", args: {fd:NAME} in the arguments\n"
	      "      --adopt               for servers that can only bind for themselves: their\n"
	      "                            sockets are taken into the group as they bind them\n"
	      "      --ready WHEN          exec (default): as soon as the server is executed,\n"
	      "                            notify: when it sends READY=1, or so many seconds later\n"
	      "      --drain-signal SIGNAL what the server gets when it is to finish (TERM;\n"
	      "                            with --pass nginx: QUIT)\n"
	      "      --drain-delay SECONDS from the request to drain to that signal (0)\n"
	      "      --socket PATH         socket of reuseportd (" REUSEPORT_SOCKET_PATH ")\n"
	      "      --help, --version\n\n"
	      "{fd:NAME} in any argument becomes the number of the listener's descriptor; with\n"
	      "--workers N write {fd:NAME:K}, K from 0. Exits with the status of the server (128 + N\n"
	      "when signal N ended it), 127 or 126 when it can't be executed, 125 when\n"
	      "reuseport-run itself fails, 2 for a wrong command line.\n",
		stdout);
}

static int parse_number(
	const char *option, const char *text, unsigned min, unsigned max, unsigned *ret)
{
	unsigned long value;
	char *end;

	errno = 0;
	value = strtoul(text, &end, 10);
	if (errno || *text < '0' || *text > '9' || *end || value < min || value > max) {
		run_complain("%s %s: must be a number from %u to %u", option, text, min, max);
		return -EINVAL;
	}
	*ret = (unsigned)value;
	return 0;
}

static int parse_signal(const char *text, int *ret)
{
	const char *name = strncmp(text, "SIG", 3) ? text : text + 3;
	unsigned number;

	for (int i = 1; i < NSIG; i++) {
		const char *known = sigabbrev_np(i);

		if (known && !strcmp(known, name)) {
			*ret = i;
			return 0;
		}
	}
	if (*text < '0' || *text > '9') {
		run_complain("--drain-signal %s: no such signal", text);
		return -EINVAL;
	}
	if (parse_number("--drain-signal", text, 1, NSIG - 1, &number) < 0)
		return -EINVAL;
	*ret = (int)number;
	return 0;
}

static int parse_pass(const char *text, enum pass *ret)
{
	static const char *const names[] = {
		[PASS_LISTEN_FDS] = "listen-fds", [PASS_NGINX] = "nginx", [PASS_ARGS] = "args"};

	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		if (!strcmp(text, names[i])) {
			*ret = (enum pass)i;
			return 0;
		}
	run_complain("--pass %s: must be listen-fds, nginx or args", text);
	return -EINVAL;
}

static int parse_seconds(const char *text, uint64_t *ret_usec)
{
	double seconds;
	char *end;

	seconds = strtod(text, &end);
	if (*text < '0' || *text > '9' || *end || !(seconds >= 0 && seconds <= 86400))
		return -EINVAL;
	*ret_usec = (uint64_t)(seconds * (double)USEC_PER_SEC);
	return 0;
}

static int parse_ready(struct run *run, const char *text)
{
	if (!strcmp(text, "exec")) {
		run->ready = READY_EXEC;
		return 0;
	}
	if (!strcmp(text, "notify")) {
		run->ready = READY_NOTIFY;
		return 0;
	}
	if (parse_seconds(text, &run->ready_usec) < 0) {
		run_complain("--ready %s: must be notify, exec or a number of seconds", text);
		return -EINVAL;
	}
	run->ready = READY_DELAY;
	return 0;
}

static int parse_drain_delay(struct run *run, const char *text)
{
	if (parse_seconds(text, &run->drain_delay_usec) < 0) {
		run_complain("--drain-delay %s: must be a number of seconds", text);
		return -EINVAL;
	}
	return 0;
}

int options_parse(struct run *run, int argc, char **argv)
{
	static const struct option options[] = {
		{"service", required_argument, NULL, 's'},
		{"instance", required_argument, NULL, 'i'},
		{"workers", required_argument, NULL, 'n'},
		{"weight", required_argument, NULL, 'w'},
		{"pass", required_argument, NULL, 'p'},
		{"adopt", no_argument, NULL, 'a'},
		{"ready", required_argument, NULL, 'r'},
		{"drain-signal", required_argument, NULL, 'd'},
		{"drain-delay", required_argument, NULL, 'D'},
		{"socket", required_argument, NULL, 'S'},
		{"help", no_argument, NULL, 'h'},
		{"version", no_argument, NULL, 'V'},
		{},
	};
	bool n_workers_set = false, pass_set = false;
	int option, result = 0;

	while (result == 0 && (option = getopt_long(argc, argv, "+h", options, NULL)) >= 0) {
		switch (option) {
		case 's':
			run->service = optarg;
			break;
		case 'i':
			run->instance = optarg;
			break;
		case 'n':
			result = parse_number("--workers", optarg, 1, 1024, &run->n_workers);
			n_workers_set = true;
			break;
		case 'w':
			result = parse_number("--weight", optarg, 1, 1000, &run->weight);
			break;
		case 'p':
			result = parse_pass(optarg, &run->pass);
			pass_set = true;
			break;
		case 'a':
			run->adopt = true;
			break;
		case 'r':
			result = parse_ready(run, optarg);
			break;
		case 'd':
			result = parse_signal(optarg, &run->drain_signal);
			break;
		case 'D':
			result = parse_drain_delay(run, optarg);
			break;
		case 'S':
			run->socket_path = optarg;
			break;
		case 'h':
			print_help();
			return 0;
		case 'V':
			puts("reuseport-run " VERSION);
			return 0;
		default:
			return -EINVAL; /* getopt_long() has said it */
		}
	}
	if (result < 0)
		return result;
	if (!run->service) {
		run_complain("--service is missing; see --help");
		return -EINVAL;
	}
	if (run->adopt && pass_set) {
		run_complain("--adopt: the server has its own sockets, --pass has nothing to pass");
		return -EINVAL;
	}
	if (run->adopt && !n_workers_set)
		run->n_workers = ADOPT_WORKERS;
	run->server = argv + optind;
	if (!*run->server) {
		run_complain("the server to run is missing; see --help");
		return -EINVAL;
	}
	if (!run->drain_signal)
		run->drain_signal = run->pass == PASS_NGINX ? SIGQUIT : SIGTERM;
	return 1;
}
