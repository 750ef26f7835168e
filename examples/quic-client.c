/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The client that the scenarios of QUIC need: many connections at once that rebind, migrate,
 * resume, are delayed, and an exact account of what came of each. See quic-client.h for its parts
 * and quic-client-script.c for what it can be told to do.
 *
 * On stdout: a line of JSON for every phase and one at the end. The exit status is 0 when it ran;
 * how it went, the account says.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <unistd.h>

#include "common/util.h"
#include "examples/quic-client.h"

#define EVENTS_AT_ONCE 256

static const char usage[] =
	"usage: quic-client ADDRESS PORT [OPTION]...\n"
	"\n"
	"  --connections N        at once (1)\n"
	"  --script STEPS         request[:N|:*] wait sleep:MSEC rebind migrate again, with commas\n"
	"                         between (request)\n"
	"  --streams N            requests at once on a connection (1)\n"
	"  --interval MSEC        between the requests of a connection (0)\n"
	"  --parallel N           handshakes at once (64)\n"
	"  --local-addresses A,B  the first to begin with, the next after a migration, and so on\n"
	"  --version N            to begin with (1); 0x1a2a3a4a brings Version Negotiation\n"
	"  --save-session FILE    keeps tickets and tokens; --resume FILE uses them\n"
	"  --server-name NAME     asks for it (TLS server_name); by default for none\n"
	"  --early-data           sends requests before the handshake\n"
	"  --split-initial        makes the first Initial packet take two datagrams\n"
	"  --delay-second MSEC    holds back all datagrams after a connection's first so long\n"
	"  --hold-second          ... until a line is read, before those of the script\n"
	"  --timeout SEC          for the whole run (30)\n";

enum {
	OPTION_CONNECTIONS = 256,
	OPTION_SCRIPT,
	OPTION_STREAMS,
	OPTION_INTERVAL,
	OPTION_PARALLEL,
	OPTION_LOCAL,
	OPTION_VERSION,
	OPTION_SAVE,
	OPTION_RESUME,
	OPTION_NAME,
	OPTION_EARLY,
	OPTION_SPLIT,
	OPTION_DELAY,
	OPTION_HOLD,
	OPTION_TIMEOUT,
};

static const struct option option_table[] = {
	{"connections", required_argument, NULL, OPTION_CONNECTIONS},
	{"script", required_argument, NULL, OPTION_SCRIPT},
	{"streams", required_argument, NULL, OPTION_STREAMS},
	{"interval", required_argument, NULL, OPTION_INTERVAL},
	{"parallel", required_argument, NULL, OPTION_PARALLEL},
	{"local-addresses", required_argument, NULL, OPTION_LOCAL},
	{"version", required_argument, NULL, OPTION_VERSION},
	{"save-session", required_argument, NULL, OPTION_SAVE},
	{"resume", required_argument, NULL, OPTION_RESUME},
	{"server-name", required_argument, NULL, OPTION_NAME},
	{"early-data", no_argument, NULL, OPTION_EARLY},
	{"split-initial", no_argument, NULL, OPTION_SPLIT},
	{"delay-second", required_argument, NULL, OPTION_DELAY},
	{"hold-second", no_argument, NULL, OPTION_HOLD},
	{"timeout", required_argument, NULL, OPTION_TIMEOUT},
	{},
};

static int parse_number(const char *text, unsigned least, uint32_t *ret)
{
	char *end;
	unsigned long long value;

	errno = 0;
	value = strtoull(text, &end, 0);
	if (errno || end == text || *end || value < least || value > UINT32_MAX)
		return -EINVAL;
	*ret = (uint32_t)value;
	return 0;
}

static int parse_local(struct options *options, char *text)
{
	char *word;

	while ((word = strsep(&text, ",")))
		if (options->n_local == LOCAL_ADDRESSES_MAX ||
			address_parse(&options->local[options->n_local++], word, "0") < 0)
			return -EINVAL;
	return 0;
}

static int parse_option(struct options *options, int option, const char **script)
{
	switch (option) {
	case OPTION_CONNECTIONS:
		return parse_number(optarg, 1, &options->connections);
	case OPTION_SCRIPT:
		*script = optarg;
		return 0;
	case OPTION_STREAMS:
		return parse_number(optarg, 1, &options->streams);
	case OPTION_INTERVAL:
		return parse_number(optarg, 0, &options->interval_msec);
	case OPTION_PARALLEL:
		return parse_number(optarg, 1, &options->parallel);
	case OPTION_LOCAL:
		return parse_local(options, optarg);
	case OPTION_VERSION:
		return parse_number(optarg, 1, &options->version);
	case OPTION_SAVE:
		options->save_session = optarg;
		return 0;
	case OPTION_RESUME:
		options->resume = optarg;
		return 0;
	case OPTION_NAME:
		options->server_name = optarg;
		return 0;
	case OPTION_EARLY:
		options->early_data = true;
		return 0;
	case OPTION_SPLIT:
		options->split_initial = true;
		return 0;
	case OPTION_DELAY:
		return parse_number(optarg, 1, &options->delay_second_msec);
	case OPTION_HOLD:
		options->hold_second = true;
		return 0;
	case OPTION_TIMEOUT:
		return parse_number(optarg, 1, &options->timeout_sec);
	default:
		return -EINVAL;
	}
}

static int parse_options(int argc, char *argv[], struct options *ret)
{
	const char *script = "request";
	int option;

	*ret = (struct options){
		.connections = 1,
		.streams = 1,
		.parallel = 64,
		.timeout_sec = 30,
		.version = NGTCP2_PROTO_VER_V1,
	};
	while ((option = getopt_long(argc, argv, "", option_table, NULL)) != -1)
		if (parse_option(ret, option, &script) < 0)
			return -EINVAL;
	if (argc - optind != 2 || address_parse(&ret->server, argv[optind], argv[optind + 1]) < 0)
		return -EINVAL;
	return script_parse(ret, script);
}

static void print_workers(const struct client *client)
{
	const char *comma = "";

	printf(",\"workers\":[");
	for (size_t i = 0; i < client->n_workers; i++, comma = ",")
		printf("%s{\"slot\":%d,\"pid\":%d,\"connections\":%" PRIu64 "}", comma,
			client->workers[i].slot, client->workers[i].pid,
			client->workers[i].connections);
	printf("]}\n");
}

void print_account(struct client *client, const char *event)
{
	const struct account *a = &client->account;
	const struct {
		const char *name;
		uint64_t value;
	} figures[] = {
		{"connections", a->connections},
		{"handshakes_completed", a->handshakes_completed},
		{"handshakes_failed", a->handshakes_failed},
		{"requests_sent", a->requests_sent},
		{"answered", a->answered},
		{"wrong_worker", a->wrong_worker},
		{"wrong_answers", a->wrong_answers},
		{"connections_lost", a->connections_lost},
		{"stateless_resets", a->stateless_resets},
		{"resets_before_probe", a->resets_before_probe},
		{"refused", a->refused},
		{"resumed", a->resumed},
		{"early_data_accepted", a->early_data_accepted},
		{"early_data_rejected", a->early_data_rejected},
		{"retries", a->retries},
		{"version_negotiations", a->version_negotiations},
		{"rebindings", a->rebindings},
		{"migrations_completed", a->migrations_completed},
		{"migrations_failed", a->migrations_failed},
		{"sessions_saved", a->sessions_saved},
	};

	printf("{\"event\":\"%s\",\"line\":%u", event, client->lines_read);
	for (size_t i = 0; i < ARRAY_SIZE(figures); i++)
		printf(",\"%s\":%" PRIu64, figures[i].name, figures[i].value);
	print_workers(client);
	fflush(stdout);
}

static void read_input(struct client *client)
{
	char text[256];
	ssize_t n = read(STDIN_FILENO, text, sizeof(text));

	if (n <= 0) {
		if (n < 0 && (errno == EINTR || errno == EAGAIN))
			return;
		client->input_ended = true;
		epoll_ctl(client->epoll_fd, EPOLL_CTL_DEL, STDIN_FILENO, NULL);
	}
	for (ssize_t i = 0; i < n; i++)
		client->lines_read += text[i] == '\n';
	script_line(client);
}

static void start_some(struct client *client)
{
	while (client->n_started < client->options.connections &&
		client->n_shaking < client->options.parallel) {
		struct connection *c = &client->connections[client->n_started];

		c->client = client;
		c->index = client->n_started++;
		connection_start(c, 0);
		if (c->quic)
			connection_proceed(c);
	}
}

static void handle_events(struct client *client, int timeout_msec)
{
	struct epoll_event events[EVENTS_AT_ONCE];
	int n = epoll_wait(client->epoll_fd, events, EVENTS_AT_ONCE, timeout_msec);

	for (int i = 0; i < n; i++) {
		struct connection_socket *from = events[i].data.ptr;

		if (!from)
			read_input(client);
		else if (from->fd >= 0)
			connection_receive(from->connection, from);
	}
}

static void expire(struct client *client)
{
	ngtcp2_tstamp now = now_nsec();
	struct timer *timer;

	while ((timer = timers_take_due(&client->timers, now)))
		connection_expire(
			(struct connection *)((char *)timer - offsetof(struct connection, timer)));
}

static void run(struct client *client)
{
	ngtcp2_tstamp end = now_nsec() + client->options.timeout_sec * NGTCP2_SECONDS;

	while (client->n_finished < client->options.connections && now_nsec() < end) {
		int timeout;

		start_some(client);
		script_tell(client);
		timeout = timers_timeout_msec(&client->timers, now_nsec());
		handle_events(client, timeout < 0 ? 100 : MIN(timeout, 100));
		expire(client);
	}
	for (unsigned i = 0; i < client->n_started; i++)
		if (client->connections[i].state != FINISHED)
			connection_lose(&client->connections[i], "out of time");
}

/* Two sockets a connection, while it migrates. */
static void allow_descriptors(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
}

static int prepare(struct client *client)
{
	struct epoll_event input = {.events = EPOLLIN};
	const struct options *options = &client->options;

	allow_descriptors();
	client->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	client->connections = calloc(options->connections, sizeof(*client->connections));
	client->sessions = calloc(options->connections, sizeof(*client->sessions));
	if (client->epoll_fd < 0 || !client->connections || !client->sessions ||
		tls_client_init(&client->tls, options->early_data, options->split_initial) < 0) {
		fprintf(stderr, "quic-client: cannot begin\n");
		return -1;
	}
	/* A file, or /dev/null, can't be waited for: its lines are there at once. */
	if (epoll_ctl(client->epoll_fd, EPOLL_CTL_ADD, STDIN_FILENO, &input) < 0)
		client->input_ended = true;
	return options->resume ? sessions_load(client, options->resume) : 0;
}

int main(int argc, char *argv[])
{
	struct client client = {.epoll_fd = -1};
	int result = 1;

	if (parse_options(argc, argv, &client.options) < 0) {
		fputs(usage, stderr);
		return 2;
	}
	if (prepare(&client) == 0) {
		run(&client);
		result = 0;
		if (client.options.save_session &&
			sessions_save(&client, client.options.save_session) < 0)
			result = 1;
		print_account(&client, "end");
	}
	for (unsigned i = 0; i < client.n_started; i++)
		connection_free(&client.connections[i]);
	sessions_free(&client);
	free(client.connections);
	free(client.workers);
	timers_free(&client.timers);
	tls_deinit(&client.tls);
	close_fd(&client.epoll_fd);
	return result;
}
