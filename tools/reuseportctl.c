/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * reuseportctl: what an operator sees of reuseportd and tells it. Each command is one call of
 * io.reuseport.Control; with --json the reply's parameters come out as they are, so that a script
 * needs no Varlink of its own.
 */
#include <getopt.h>
#include <stdio.h>
#include <string.h>

#include "common/util.h"
#include "tools/ctl.h"
#include "tools/offline.h"

#define DEFAULT_SOCKET "/run/reuseportd/control.sock"

enum json_mode {
	JSON_OFF,
	JSON_PRETTY,
	JSON_SHORT,
};

struct options {
	const char *socket;
	const char *instance;
	const char *service;
	const char *listener; /* explain: SERVICE/LISTENER */
	const char *packet;
	const char *cid;
	const char *from;
	enum json_mode json;
	bool legend;
	bool help, version;
};

struct command {
	const char *name;
	int (*run)(const struct options *options, int argc, char **argv);
};

static void print_help(void)
{
	puts("Usage: reuseportctl [OPTIONS] COMMAND\n\n"
	     "What reuseportd serves, who serves it, and what to change about it.\n\n"
	     "Commands:\n"
	     "  status [SERVICE]             Services, listeners, workers, counters (the default)\n"
	     "  drain WORKER                 Give it no new connection and tell its process\n"
	     "  undrain WORKER               Make a draining worker active again\n"
	     "  weight WORKER N              Its share of new connections, 1 to 1000\n"
	     "  rotate-keys SERVICE [LISTENER]\n"
	     "                               Make connection IDs under a new key\n"
	     "  reload                       Read the configuration again\n"
	     "  reexec                       Replace the running daemon by the program that is\n"
	     "                               installed now; workers notice nothing\n"
	     "  explain --packet HEX [--from ADDRESS:PORT] [--listener SERVICE/LISTENER]\n"
	     "  explain --cid HEX [--listener SERVICE/LISTENER]\n"
	     "                               Where a QUIC packet would go now, and why\n\n"
	     "Commands that need no daemon, always JSON:\n"
	     "  explain --offline --packet HEX [--cid-length N]\n"
	     "                               What a QUIC packet is\n"
	     "  explain --offline --cid HEX --config-rotation N --server-id-length N\n"
	     "          --nonce-length N [--key HEX]\n"
	     "                               Which server a connection ID names\n"
	     "  explain --offline --initial HEX [--initial HEX]...\n"
	     "                               What a client asks for: server name and protocols\n"
	     "  make-cid --config-rotation N --server-id HEX --nonce HEX [--key HEX] [--no-length]\n"
	     "                               Make a connection ID\n\n"
	     "WORKER is a slot number or an instance; or name it with one of\n"
	     "  --instance NAME              All workers of this instance\n"
	     "  --service NAME               All workers of this service (narrows the others)\n\n"
	     "Options:\n"
	     "  --socket PATH                Control socket of the daemon; by default\n"
	     "                               $REUSEPORT_CONTROL_SOCKET or\n"
	     "                               " DEFAULT_SOCKET "\n"
	     "  --json pretty|short|off      The reply as JSON instead of words\n"
	     "  --no-legend                  No headings in tables\n"
	     "  -h, --help                   This text\n"
	     "  --version                    The version\n\n"
	     "Exit status: 0 done, 1 failed, 2 usage, 3 daemon unreachable, 4 denied.");
}

static int usage(const char *what, const char *name)
{
	ctl_error("%s%s%s (reuseportctl --help)", what, name ? " " : "", name ? name : "");
	return CTL_USAGE;
}

static void print_json(const struct options *options, const json_t *reply)
{
	json_dumpf(reply, stdout, options->json == JSON_PRETTY ? JSON_INDENT(2) : JSON_COMPACT);
	putchar('\n');
}

static bool colour_wanted(void)
{
	const char *no_colour = getenv("NO_COLOR"), *terminal = getenv("TERM");

	return isatty(STDOUT_FILENO) && !(no_colour && *no_colour) && terminal &&
	       strcmp(terminal, "dumb") != 0;
}

static int run_status(const struct options *options, int argc, char **argv)
{
	const char *service = argc > 0 ? argv[0] : options->service;
	json_t *parameters = json_object(), *reply;
	int result;

	if (argc > 1 || (argc == 1 && options->service))
		return usage("status takes one service at most", NULL);
	if (options->instance)
		return usage("status has no --instance", NULL);
	if (service && json_object_set_new(parameters, "service", json_string(service)) < 0)
		return usage("a service's name is text in UTF-8", NULL);
	result = ctl_call(options->socket, "Status", parameters, "show the status", &reply);
	if (result != CTL_OK)
		return result;
	if (options->json == JSON_OFF)
		result = ctl_print_status(reply, options->legend, colour_wanted());
	else
		print_json(options, reply);
	json_decref(reply);
	return result;
}

/* A slot when it is a number, else an instance; --instance is for instances that are numbers. */
static int add_worker(json_t *parameters, const char *worker)
{
	if (*worker && strspn(worker, "0123456789") == strlen(worker)) {
		/* No slot is longer; the daemon knows which exist. */
		if (strlen(worker) > 9)
			return -ERANGE;
		return json_object_set_new(
			parameters, "worker", json_integer(strtol(worker, NULL, 10)));
	}
	return json_object_set_new(parameters, "instance", json_string(worker));
}

/*
 * Takes the WORKER of a command, which options may name instead. Returns how many arguments it was,
 * 0 or 1, and in *ret_name who is meant, for messages (free()); or a negative errno after a
 * message.
 */
static int take_worker(const struct options *options, int argc, char **argv, int n_others,
	json_t *parameters, char **ret_name)
{
	bool taken = argc == n_others + 1;
	const char *kind = taken ? "worker" : options->instance ? "instance" : "service";
	const char *name = taken               ? argv[0]
			   : options->instance ? options->instance
					       : options->service;
	int result = 0;

	if (argc > n_others + 1)
		return usage("too many arguments", NULL), -EINVAL;
	if (argc < n_others || !name)
		return usage("an argument is missing: which worker?", NULL), -EINVAL;
	if (taken && options->instance)
		return usage("a worker is named once: by WORKER or by --instance", NULL), -EINVAL;
	if (taken)
		result = add_worker(parameters, name);
	if (options->service)
		result |= json_object_set_new(parameters, "service", json_string(options->service));
	if (options->instance)
		result |=
			json_object_set_new(parameters, "instance", json_string(options->instance));
	if (result < 0)
		return usage("no worker can have the name", name), -EINVAL;
	if (asprintf(ret_name, "%s %s", kind, name) < 0)
		return usage("out of memory", NULL), -ENOMEM;
	return taken;
}

/* Calls the method, and says how many workers it changed. parameters is stolen. */
static int change_workers(const struct options *options, const char *method, json_t *parameters,
	const char *what, const char *counter, const char *nothing)
{
	json_t *reply;
	json_int_t n;
	int result = ctl_call(options->socket, method, parameters, what, &reply);

	if (result != CTL_OK)
		return result;
	n = json_integer_value(json_object_get(reply, counter));
	if (options->json != JSON_OFF)
		print_json(options, reply);
	else if (n)
		printf("%s: %" JSON_INTEGER_FORMAT " worker%s\n", what, n, n == 1 ? "" : "s");
	else
		printf("%s: %s\n", what, nothing);
	json_decref(reply);
	return CTL_OK;
}

static int run_drain_or_undrain(const struct options *options, int argc, char **argv,
	const char *method, const char *verb, const char *counter, const char *nothing)
{
	json_t *parameters = json_object();
	_cleanup_free_ char *what = NULL, *name = NULL;

	if (take_worker(options, argc, argv, 0, parameters, &name) < 0) {
		json_decref(parameters);
		return CTL_USAGE;
	}
	if (asprintf(&what, "%s %s", verb, name) < 0)
		what = NULL;
	return change_workers(options, method, parameters, what ? what : verb, counter, nothing);
}

static int run_drain(const struct options *options, int argc, char **argv)
{
	return run_drain_or_undrain(options, argc, argv, "Drain", "drain", "drained",
		"nothing to do, it drains already or is not ready yet");
}

static int run_undrain(const struct options *options, int argc, char **argv)
{
	return run_drain_or_undrain(options, argc, argv, "Undrain", "undrain", "undrained",
		"nothing to do, it does not drain or its process has ended");
}

static int run_weight(const struct options *options, int argc, char **argv)
{
	json_t *parameters = json_object();
	_cleanup_free_ char *what = NULL, *name = NULL;
	const char *text;
	int taken = take_worker(options, argc, argv, 1, parameters, &name);
	long weight;

	if (taken < 0) {
		json_decref(parameters);
		return CTL_USAGE;
	}
	text = argv[taken];
	weight = strlen(text) <= 4 && strspn(text, "0123456789") == strlen(text)
			 ? strtol(text, NULL, 10)
			 : 0;
	if (weight < 1 || weight > 1000) {
		json_decref(parameters);
		return usage("a weight is a number from 1 to 1000, not", text);
	}
	json_object_set_new(parameters, "weight", json_integer(weight));
	if (asprintf(&what, "set the weight of %s to %ld", name, weight) < 0)
		what = NULL;
	return change_workers(options, "SetWeight", parameters, what ? what : "set the weight",
		"changed", "nothing to do, it has this weight");
}

static int run_rotate_keys(const struct options *options, int argc, char **argv)
{
	_cleanup_free_ char *what = NULL;
	json_t *parameters, *reply;
	json_int_t n;
	int result;

	if (argc < 1 || argc > 2)
		return usage("rotate-keys takes a service and perhaps one of its listeners", NULL);
	if (options->instance || options->service)
		return usage("rotate-keys has no --instance and no --service", NULL);
	parameters = json_object();
	if (json_object_set_new(parameters, "service", json_string(argv[0])) < 0 ||
		(argc > 1 &&
			json_object_set_new(parameters, "listener", json_string(argv[1])) < 0)) {
		json_decref(parameters);
		return usage("names are text in UTF-8", NULL);
	}
	if (asprintf(&what, "rotate the keys of %s%s%s", argv[0], argc > 1 ? " " : "",
		    argc > 1 ? argv[1] : "") < 0)
		what = NULL;
	result = ctl_call(
		options->socket, "RotateKeys", parameters, what ? what : "rotate the keys", &reply);
	if (result != CTL_OK)
		return result;
	n = json_integer_value(json_object_get(reply, "rotated"));
	if (options->json != JSON_OFF)
		print_json(options, reply);
	else
		printf("%s: %" JSON_INTEGER_FORMAT " listener%s\n", what ? what : "rotate the keys",
			n, n == 1 ? "" : "s");
	json_decref(reply);
	return CTL_OK;
}

/* A call that has no parameters and no answer but that it is done. */
static int run_plain(const struct options *options, int argc, const char *command,
	const char *method, const char *what)
{
	json_t *reply;
	int result;

	if (argc || options->instance || options->service)
		return usage("no arguments are taken by", command);
	result = ctl_call(options->socket, method, json_object(), what, &reply);
	if (result != CTL_OK)
		return result;
	if (options->json != JSON_OFF)
		print_json(options, reply);
	else
		printf("%s: done\n", what);
	json_decref(reply);
	return CTL_OK;
}

static int run_reload(const struct options *options, int argc, char **argv)
{
	return run_plain(options, argc, "reload", "Reload", "reload the configuration");
}

static int run_reexec(const struct options *options, int argc, char **argv)
{
	return run_plain(options, argc, "reexec", "Reexec", "replace the running program");
}

static int run_explain(const struct options *options, int argc, char **argv)
{
	const char *slash = options->listener ? strchr(options->listener, '/') : NULL;
	json_t *parameters = json_object(), *reply;
	int result = 0;

	if (argc || options->instance || options->service)
		result = usage("explain takes --packet or --cid, --from and --listener", NULL);
	else if (!options->packet == !options->cid)
		result = usage("explain needs one of --packet HEX and --cid HEX", NULL);
	else if (options->listener && (!slash || slash == options->listener || !slash[1]))
		result = usage("--listener is SERVICE/LISTENER, not", options->listener);
	if (result == CTL_OK && slash) {
		json_object_set_new(parameters, "service",
			json_stringn(options->listener, (size_t)(slash - options->listener)));
		json_object_set_new(parameters, "listener", json_string(slash + 1));
	}
	if (result == CTL_OK && options->packet)
		json_object_set_new(parameters, "packet", json_string(options->packet));
	if (result == CTL_OK && options->cid)
		json_object_set_new(parameters, "cid", json_string(options->cid));
	if (result == CTL_OK && options->from)
		json_object_set_new(parameters, "from", json_string(options->from));
	if (result != CTL_OK) {
		json_decref(parameters);
		return result;
	}
	result = ctl_call(options->socket, "Explain", parameters, "explain this packet", &reply);
	if (result != CTL_OK)
		return result;
	if (options->json != JSON_OFF)
		print_json(options, reply);
	else
		result = ctl_print_explanation(reply);
	json_decref(reply);
	return result;
}

static const struct command commands[] = {
	{"status", run_status},
	{"drain", run_drain},
	{"undrain", run_undrain},
	{"weight", run_weight},
	{"rotate-keys", run_rotate_keys},
	{"reload", run_reload},
	{"reexec", run_reexec},
	{"explain", run_explain},
};

static int set_json(struct options *options, const char *mode)
{
	static const char *const modes[] = {
		[JSON_OFF] = "off", [JSON_PRETTY] = "pretty", [JSON_SHORT] = "short"};

	for (size_t i = 0; i < ARRAY_SIZE(modes); i++)
		if (strcmp(mode, modes[i]) == 0) {
			options->json = (enum json_mode)i;
			return CTL_OK;
		}
	return usage("--json is pretty, short or off, not", mode);
}

/* Parses options from argv[1] on; getopt's first character "+" stops at what is no option. */
static int parse(struct options *options, int argc, char **argv, const char *letters)
{
	enum {
		SOCKET = 256,
		INSTANCE,
		SERVICE,
		JSON,
		NO_LEGEND,
		SHOW_VERSION,
		LISTENER,
		PACKET,
		CID,
		FROM
	};
	static const struct option long_options[] = {
		{"socket", required_argument, NULL, SOCKET},
		{"instance", required_argument, NULL, INSTANCE},
		{"service", required_argument, NULL, SERVICE},
		{"json", required_argument, NULL, JSON},
		{"no-legend", no_argument, NULL, NO_LEGEND},
		{"listener", required_argument, NULL, LISTENER},
		{"packet", required_argument, NULL, PACKET},
		{"cid", required_argument, NULL, CID},
		{"from", required_argument, NULL, FROM},
		{"help", no_argument, NULL, 'h'},
		{"version", no_argument, NULL, SHOW_VERSION},
		{0},
	};
	int option;

	optind = 0; /* glibc: begin anew, getopt(3) */
	while ((option = getopt_long(argc, argv, letters, long_options, NULL)) >= 0) {
		if (option == SOCKET)
			options->socket = optarg;
		else if (option == INSTANCE)
			options->instance = optarg;
		else if (option == SERVICE)
			options->service = optarg;
		else if (option == LISTENER)
			options->listener = optarg;
		else if (option == PACKET)
			options->packet = optarg;
		else if (option == CID)
			options->cid = optarg;
		else if (option == FROM)
			options->from = optarg;
		else if (option == NO_LEGEND)
			options->legend = false;
		else if (option == 'h')
			options->help = true;
		else if (option == SHOW_VERSION)
			options->version = true;
		else if (option != JSON) /* getopt_long() has said what is wrong */
			return CTL_USAGE;
		else if (set_json(options, optarg) != CTL_OK)
			return CTL_USAGE;
	}
	return CTL_OK;
}

/* explain has two lives; the one without a daemon parses its arguments itself. */
static bool is_offline(int argc, char **argv)
{
	for (int i = 1; i < argc; i++)
		if (strcmp(argv[i], "--offline") == 0)
			return true;
	return false;
}

static int run(const struct options *options, const char *name, int argc, char **argv)
{
	if (options->help) {
		print_help();
		return CTL_OK;
	}
	if (options->version) {
		puts("reuseportctl " VERSION);
		return CTL_OK;
	}
	for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
		if (strcmp(name, commands[i].name) == 0)
			return commands[i].run(options, argc, argv);
	return usage("there is no command", name);
}

int main(int argc, char **argv)
{
	const char *environment = getenv("REUSEPORT_CONTROL_SOCKET");
	struct options options = {
		.socket = environment && *environment ? environment : DEFAULT_SOCKET,
		.legend = true,
	};
	const char *name = "status";
	int result;

	if (argc < 1)
		return CTL_USAGE;
	argv[0] = program_invocation_short_name;
	result = parse(&options, argc, argv, "+h");
	argc -= optind;
	argv += optind;
	if (result == CTL_OK && argc > 0 && !options.help && !options.version) {
		if (strcmp(argv[0], "explain") == 0 && is_offline(argc, argv))
			return offline_explain(argc, argv);
		if (strcmp(argv[0], "make-cid") == 0)
			return offline_make_cid(argc, argv);
	}
	if (result == CTL_OK && argc > 0) {
		/* The command's place is the program's name for getopt, for its messages. */
		name = argv[0];
		argv[0] = program_invocation_short_name;
		result = parse(&options, argc, argv, "h");
		argc -= optind;
		argv += optind;
	}
	if (result == CTL_OK)
		result = run(&options, name, argc, argv);
	if ((fflush(stdout) != 0 || ferror(stdout)) && result == CTL_OK) {
		ctl_error("cannot write the answer: %s", strerror(errno));
		result = CTL_FAILED;
	}
	return result;
}
