/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A small real QUIC server behind reuseportd: it echoes lines. ngtcp2 and GnuTLS do QUIC and TLS,
 * libreuseport gives it its socket and makes its connection IDs. See quic-server.h for its parts.
 *
 * Without a daemon it takes its socket from LISTEN_FDS.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "common/util.h"
#include "examples/quic-server.h"

#define DAEMON_TIMEOUT_MSEC 10000
#define DATAGRAMS_AT_ONCE 64

struct options {
	const char *service, *instance, *listener, *cert, *key;
	bool retry, no_early_data;
	unsigned idle_timeout_sec;
	unsigned foreign_ids; /* octets */
};

static const char usage[] =
	"usage: quic-server --service NAME --cert PEM --key PEM [--instance NAME]\n"
	"                   [--listener NAME] [--retry] [--no-early-data] [--idle-timeout SEC]\n"
	"                   [--foreign-ids OCTETS]\n"
	"\n"
	"Answers a line on a QUIC stream (ALPN \"" QUIC_ALPN "\") with \"SLOT PID LINE\".\n"
	"--foreign-ids: makes connection IDs of its own, to show what becomes of such a server.\n"
	"SIGUSR1: a line of counters, as at the end. SIGTERM: closes all connections and ends.\n";

static int parse_options(int argc, char *argv[], struct options *ret)
{
	static const struct option table[] = {
		{"service", required_argument, NULL, 's'},
		{"instance", required_argument, NULL, 'i'},
		{"listener", required_argument, NULL, 'l'},
		{"cert", required_argument, NULL, 'c'},
		{"key", required_argument, NULL, 'k'},
		{"retry", no_argument, NULL, 'r'},
		{"no-early-data", no_argument, NULL, 'e'},
		{"idle-timeout", required_argument, NULL, 't'},
		{"foreign-ids", required_argument, NULL, 'f'},
		{},
	};
	int option;

	*ret = (struct options){.idle_timeout_sec = 30};
	while ((option = getopt_long(argc, argv, "", table, NULL)) != -1) {
		switch (option) {
		case 's':
			ret->service = optarg;
			break;
		case 'i':
			ret->instance = optarg;
			break;
		case 'l':
			ret->listener = optarg;
			break;
		case 'c':
			ret->cert = optarg;
			break;
		case 'k':
			ret->key = optarg;
			break;
		case 'r':
			ret->retry = true;
			break;
		case 'e':
			ret->no_early_data = true;
			break;
		case 't':
			ret->idle_timeout_sec = (unsigned)strtoul(optarg, NULL, 10);
			break;
		case 'f':
			ret->foreign_ids = (unsigned)strtoul(optarg, NULL, 10);
			break;
		default:
			return -EINVAL;
		}
	}
	if (optind < argc || ret->foreign_ids > REUSEPORT_CID_OCTETS || !ret->service ||
		!ret->cert || !ret->key || !ret->idle_timeout_sec)
		return -EINVAL;
	return 0;
}

/* Nothing new from now on; the connections that there are go on, see main_loop(). */
static void drain(struct reuseport *reuseport, enum reuseport_drain_reason reason,
	uint64_t deadline_usec, void *user_data)
{
	struct server *server = user_data;

	server->draining = true;
}

static int find_listener(struct server *server, const char *name)
{
	for (unsigned i = 0; i < reuseport_n_listeners(server->reuseport); i++) {
		int transport = reuseport_listener_transport(server->reuseport, i);

		if (name ? !strcmp(name, reuseport_listener_name(server->reuseport, i))
			 : transport == REUSEPORT_QUIC || transport == REUSEPORT_UDP) {
			server->listener = i;
			return 0;
		}
	}
	fprintf(stderr, "quic-server: the service has no %s%s\n",
		name ? "listener " : "QUIC listener", name ? name : "");
	return -ENOENT;
}

static int fail(struct server *server, const char *what, int error)
{
	const char *text = reuseport_error(server->reuseport);

	fprintf(stderr, "quic-server: %s: %s\n", what, *text ? text : strerror(-error));
	return error;
}

/* The socket is here and nothing comes to it until reuseport_ready(). */
static int join(struct server *server, const struct options *options)
{
	static const struct reuseport_callbacks callbacks = {.drain = drain};
	int result = reuseport_open(&server->reuseport, NULL, DAEMON_TIMEOUT_MSEC);
	bool alone = result == 1;

	if (result < 0)
		return fail(server, "cannot reach reuseportd", result);
	reuseport_set_callbacks(server->reuseport, &callbacks, server);
	result = reuseport_register(
		server->reuseport, options->service, options->instance, 1, 0, DAEMON_TIMEOUT_MSEC);
	if (result < 0)
		return fail(server, "cannot register", result);
	result = find_listener(server, options->listener);
	if (result < 0)
		return result;
	server->slot = alone ? -1 : reuseport_slot(server->reuseport, 0);
	server->fd = reuseport_socket(server->reuseport, 0, server->listener);
	result = udp_prepare(server);
	if (result < 0)
		return fail(server, "cannot use the socket", result);
	ids_init(server, options->foreign_ids);
	return 0;
}

static void print_counters(const struct server *server, const char *event)
{
	const struct counters *c = &server->counters;

	printf("{\"event\":\"%s\",\"slot\":%d,\"pid\":%d,\"open\":%zu,\"connections\":%" PRIu64
	       ",\"handshakes\":%" PRIu64 ",\"requests\":%" PRIu64 ",\"resets_sent\":%" PRIu64
	       ",\"retries_sent\":%" PRIu64 ",\"version_negotiations_sent\":%" PRIu64
	       ",\"early_data\":%" PRIu64 ",\"path_changes\":%" PRIu64 "}\n",
		event, server->slot, (int)getpid(), server->n_connections, c->connections,
		c->handshakes, c->requests, c->resets_sent, c->retries_sent,
		c->version_negotiations_sent, c->early_data, c->path_changes);
	fflush(stdout);
}

/* Whether there was one at all. */
static bool receive_datagrams(struct server *server)
{
	uint8_t buffer[QUIC_RECEIVE_MAX];
	struct datagram datagram;
	unsigned n = 0;

	while (n < DATAGRAMS_AT_ONCE && udp_receive(server, &datagram, buffer)) {
		accept_datagram(server, &datagram);
		n++;
	}
	connections_flush(server);
	return n > 0;
}

/* Whether it is a signal to end. */
static bool receive_signal(struct server *server, int signal_fd)
{
	struct signalfd_siginfo info;

	if (read(signal_fd, &info, sizeof(info)) != sizeof(info))
		return false;
	if (info.ssi_signo != SIGUSR1)
		return true;
	print_counters(server, "counters");
	return false;
}

static void main_loop(struct server *server, int signal_fd)
{
	struct pollfd fds[] = {
		{.fd = server->fd, .events = POLLIN},
		{.fd = signal_fd, .events = POLLIN},
		{.fd = reuseport_get_fd(server->reuseport), /* negative without a daemon */
			.events = (short)reuseport_get_events(server->reuseport)},
	};

	for (;;) {
		if (poll(fds, ARRAY_SIZE(fds), timers_timeout_msec(&server->timers, now_nsec())) <
				0 &&
			errno != EINTR)
			return;
		if (fds[1].revents && receive_signal(server, signal_fd))
			return;
		if (fds[2].revents && reuseport_dispatch(server->reuseport, 0) == -ENOTCONN)
			fds[2].fd = -1; /* connections and traffic go on without the daemon */
		receive_datagrams(server);
		connections_expire(server);
		connections_flush(server);
		/* A last look: what still waits in the socket was meant for us. */
		if (server->draining && !server->n_connections && !receive_datagrams(server))
			return;
	}
}

static int open_signals(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

int main(int argc, char *argv[])
{
	struct server server = {.fd = -1, .slot = -1};
	_cleanup_close_ int signal_fd = -1;
	struct options options;
	int result;

	if (parse_options(argc, argv, &options) < 0) {
		fputs(usage, stderr);
		return 2;
	}
	server.require_retry = options.retry;
	server.idle_timeout = options.idle_timeout_sec * NGTCP2_SECONDS;
	signal_fd = open_signals();
	if (signal_fd < 0 || join(&server, &options) < 0)
		return 1;
	result = tls_server_init(&server.tls, options.cert, options.key, server.token_secret,
		sizeof(server.token_secret), !options.no_early_data);
	if (result < 0) {
		fprintf(stderr, "quic-server: cannot use %s and %s: %s\n", options.cert,
			options.key, gnutls_strerror(result));
		return 1;
	}
	result = reuseport_ready(server.reuseport, DAEMON_TIMEOUT_MSEC);
	if (result < 0)
		return fail(&server, "cannot become ready", result), 1;
	print_counters(&server, "ready");
	main_loop(&server, signal_fd);
	connections_close(&server);
	print_counters(&server, "end");
	reuseport_close(server.reuseport);
	timers_free(&server.timers);
	ids_deinit(&server);
	tls_deinit(&server.tls);
	return 0;
}
