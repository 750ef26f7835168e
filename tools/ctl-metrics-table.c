/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The table of metrics. Names follow the conventions of Prometheus: base units, and the sum over a
 * label means something. The worker's name is instance_name, since "instance" is a label that
 * Prometheus sets itself.
 */
#include "tools/ctl-metrics.h"

#define UP(metric) .name = metric, .level = LEVEL_UP
#define DAEMON(metric) .name = metric, .level = LEVEL_DAEMON
#define SHARE(metric) .name = metric, .level = LEVEL_SHARE
#define SERVICE(metric) .name = metric, .level = LEVEL_SERVICE
#define LISTENER(metric) .name = metric, .level = LEVEL_LISTENER
#define WORKER(metric) .name = metric, .level = LEVEL_WORKER
#define SOCKET(metric) .name = metric, .level = LEVEL_SOCKET
#define FROM(how, ...) .value = VALUE_##how, .keys = {__VA_ARGS__}
#define COUNTER .type = METRIC_COUNTER

const char *const ctl_worker_states[3] = {"joining", "active", "draining"};

const struct ctl_metric ctl_metrics[] = {
	{UP("up"), FROM(ONE), .help = "Whether reuseportd answered."},
	{DAEMON("build"), .type = METRIC_INFO, FROM(INFO, "version", "kernel"),
		.help = "Version of reuseportd and of the kernel under it."},
	{DAEMON("start_time_seconds"), FROM(USEC, "since"),
		.help = "When the daemon started, or the first of those that it goes on for."},
	{DAEMON("feature"), FROM(FEATURES),
		.help = "What the kernel and the daemon's privileges allow."},
	{DAEMON("control_clients"), FROM(NUMBER, "control_clients"),
		.help = "Connections to the control socket."},
	{DAEMON("worker_clients"), FROM(NUMBER, "worker_clients"),
		.help = "Connections to the worker socket."},
	{DAEMON("open_descriptors"), FROM(NUMBER, "descriptors"),
		.help = "Descriptors that the daemon has open."},

	{SERVICE("service_removed"), FROM(TRUE, "removed"),
		.help = "Whether the service left the configuration and its workers drain."},
	{SERVICE("service_workers"), FROM(STATES), .help = "Workers of the service by state."},

	{LISTENER("listener"), .type = METRIC_INFO, FROM(INFO, "address", "connection_id"),
		.help = "Address of the listener, and how connection IDs name their worker."},
	{LISTENER("listener_packets"), COUNTER, FROM(VERDICTS),
		.help = "What the program in the kernel decided, by verdict: datagrams, or TCP "
			"connection attempts and moves."},
	{LISTENER("listener_new_connections"), COUNTER, FROM(NUMBER, "new_connections"),
		.help = "Packets that chose a worker: verdicts listener and fallback."},
	{LISTENER("listener_expired"), COUNTER, FROM(NUMBER, "expired"),
		.help = "What waited in the standby longer than StandbyTimeoutSec= and was refused."},
	{LISTENER("listener_waiting"), FROM(NUMBER, "waiting"),
		.help = "Connections or datagrams that wait in the standby."},
	{LISTENER("listener_active_workers"), FROM(NUMBER, "active"),
		.help = "Workers in the listener map."},
	{LISTENER("listener_map_changes"), COUNTER, FROM(NUMBER, "generation"),
		.help = "How often the listener map changed."},
	{LISTENER("listener_map_change_time_seconds"), FROM(USEC, "switched"),
		.help = "When the listener map changed last."},
	{LISTENER("listener_flows"), FROM(NUMBER, "flows", "used"),
		.help = "Entries of the flow map in use."},
	{LISTENER("listener_flows_limit"), FROM(NUMBER, "flows", "size"),
		.help = "Entries that the flow map has."},
	{LISTENER("listener_connection_ids"), FROM(NUMBER, "connection_ids", "used"),
		.help = "Connection IDs that are registered (ConnectionID=registered)."},
	{LISTENER("listener_connection_ids_limit"), FROM(NUMBER, "connection_ids", "size"),
		.help = "Connection IDs that can be registered."},
	{LISTENER("listener_cookies"), FROM(NUMBER, "cookies", "used"),
		.help = "Sockets that connection IDs name by their cookie (ConnectionID=nginx)."},
	{LISTENER("listener_cookies_limit"), FROM(NUMBER, "cookies", "size"),
		.help = "Sockets that connection IDs can name."},
	{LISTENER("listener_keys"), FROM(COUNT, "keys", "rotations"),
		.help = "Keys whose connection IDs are decoded; 7 at most."},
	{LISTENER("listener_key_rotation"), FROM(NUMBER, "keys", "rotation"),
		.help = "Config rotation of the key under which new connection IDs are made."},
	{LISTENER("listener_strangers"), FROM(COUNT, "strangers"),
		.help = "Sockets at the listener's address that are not of its group."},

	{WORKER("worker"), .type = METRIC_INFO, FROM(INFO, "pid", "uid"),
		.help = "Process of the worker."},
	{WORKER("worker_state"), FROM(STATES), .help = "1 for the state that the worker is in."},
	{WORKER("worker_state_change_time_seconds"), FROM(USEC, "since"),
		.help = "When the worker entered its state."},
	{WORKER("worker_weight"), FROM(NUMBER, "weight"),
		.help = "The worker's share of new connections, relative to that of others."},
	{WORKER("worker_stalled"), FROM(TRUE, "stalled"),
		.help = "Whether its queue stands still while those of others move."},
	{WORKER("worker_exited"), FROM(TRUE, "exited"),
		.help = "Whether its process has ended while others hold its sockets."},
	{WORKER("worker_connected"), FROM(TRUE, "connected"),
		.help = "Whether its process, or its launcher, is connected to the daemon."},
	{WORKER("worker_load_ratio"), FROM(PERMILLE, "load"),
		.help = "Load that the worker publishes, 0 to 1."},

	{SOCKET("worker_packets"), COUNTER, FROM(NUMBER, "packets"),
		.help = "Packets for the worker: datagrams, or TCP connection attempts and moves."},
	{SOCKET("worker_new_connections"), COUNTER, FROM(NUMBER, "new_connections"),
		.help = "New connections that the worker was chosen for."},
	{SOCKET("worker_accept_queue"), FROM(NUMBER, "queue"), .transport = "tcp",
		.help = "TCP connections that wait to be accepted."},
	{SOCKET("worker_accept_queue_limit"), FROM(NUMBER, "queue_limit"), .transport = "tcp",
		.help = "Backlog of the worker's TCP socket."},
	{SOCKET("worker_receive_queue_bytes"), FROM(NUMBER, "queue"), .transport = "udp",
		.help = "Octets in the receive buffer, as the kernel counts them."},
	{SOCKET("worker_receive_queue_limit_bytes"), FROM(NUMBER, "queue_limit"),
		.transport = "udp", .help = "Size of the receive buffer."},
	{SOCKET("worker_drops"), COUNTER, FROM(NUMBER, "drops"),
		.help = "Datagrams or connections that found the queue full."},

	{SHARE("share"), .type = METRIC_INFO, FROM(INFO, "address", "default"),
		.help = "Address that services share, and which one gets what is nobody else's."},
	{SHARE("share_read_packets"), COUNTER, FROM(NUMBER, "to_classifier"),
		.help = "Packets of new connections that the program gave to the classifier."},
	{SHARE("share_unread_packets"), COUNTER, FROM(NUMBER, "unread"),
		.help = "Those that there was no classifier for, or that it could not follow."},
	{SHARE("share_invalid_packets"), COUNTER, FROM(NUMBER, "invalid"),
		.help = "Datagrams without a QUIC header, dropped in silence."},
	{SHARE("classifier_running"), FROM(PRESENT, "classifier", "pid"),
		.help = "Whether there is a classifier."},
	{SHARE("classifier_follows"), FROM(TRUE, "classifier", "follows"),
		.help = "0 while it gets more than it can read."},
	{SHARE("classifier_starts"), COUNTER, FROM(NUMBER, "classifier", "starts"),
		.help = "How often a classifier was started."},
	{SHARE("classifier_datagrams"), COUNTER, FROM(NUMBER, "classifier", "datagrams"),
		.help = "Datagrams that it got."},
	{SHARE("classifier_connections"), COUNTER, FROM(CHOICES),
		.help = "New connections by what decided whose they are."},
	{SHARE("classifier_discarded"), COUNTER, FROM(DISCARDS),
		.help = "Datagrams that it dropped, since they begin no connection."},
	{SHARE("classifier_unauthenticated"), COUNTER,
		FROM(NUMBER, "classifier", "unauthenticated"),
		.help = "Initials whose tag no key matches."},
	{SHARE("classifier_resent"), COUNTER, FROM(NUMBER, "classifier", "resent"),
		.help = "Datagrams that were given back to the kernel, for their service."},
	{SHARE("classifier_lost"), COUNTER, FROM(NUMBER, "classifier", "lost"),
		.help = "Datagrams that could not be given back."},
	{SHARE("classifier_overloads"), COUNTER, FROM(NUMBER, "classifier", "overloads"),
		.help = "How often it began to get more than it can read."},
	{0},
};

const char *ctl_metric_suffix(enum ctl_metric_type type)
{
	return type == METRIC_COUNTER ? "_total" : type == METRIC_INFO ? "_info" : "";
}
