/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * check: whether all is well, with the exit status that monitoring systems expect of a plugin: 0
 * OK, 1 warning, 2 critical, 3 unknown. Asked is the running daemon; with --config instead a
 * directory of configuration files, by reuseportd --check.
 */
#include "tools/ctl-check.h"

#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#include "common/format.h"
#include "tools/ctl-field.h"
#include "tools/ctl-share.h"
#include "tools/ctl-status.h"
#include "tools/ctl-worker.h"

#define ANSWER_MSEC 10000
#define KEYS_MAX 7

static const char *const names[] = {"OK", "WARNING", "CRITICAL", "UNKNOWN"};

struct findings {
	json_t *list;
	int worst;
};

/* Adds {severity, message}. */
_printf_(3, 4) static void find(struct findings *findings, int severity, const char *format, ...)
{
	_cleanup_free_ char *text = NULL;
	va_list arguments;

	va_start(arguments, format);
	text = format_list(format, arguments);
	va_end(arguments);
	json_array_append_new(findings->list,
		json_pack("{s:s, s:s}", "severity", names[severity], "message", text ? text : "?"));
	findings->worst = MAX(findings->worst, severity);
}

static void check_listener(struct findings *findings, const json_t *service, const json_t *listener)
{
	const char *service_name = ctl_plain(service, "name"), *name = ctl_plain(listener, "name");
	double fill = ctl_fullest_map(listener);
	const json_t *stranger;
	size_t i, keys = json_array_size(
			  json_object_get(json_object_get(listener, "keys"), "rotations"));

	if (!ctl_number(listener, "active")) {
		if (ctl_number(listener, "waiting"))
			find(findings, CHECK_CRITICAL,
				"%s/%s: no worker is active, and %" JSON_INTEGER_FORMAT
				" wait in the standby",
				service_name, name, ctl_number(listener, "waiting"));
		else
			find(findings, CHECK_CRITICAL, "%s/%s: no worker is active", service_name,
				name);
	}
	if (fill >= CTL_MAP_FULL)
		find(findings, CHECK_WARNING, "%s/%s: a map is %.0f%% full", service_name, name,
			fill * 100);
	if (keys >= KEYS_MAX)
		find(findings, CHECK_WARNING,
			"%s/%s: all %d keys are in use, so the next rotation will be refused",
			service_name, name, KEYS_MAX);
	json_array_foreach(json_object_get(listener, "strangers"), i, stranger)
	{
		_cleanup_free_ char *who = ctl_stranger_text(stranger);

		find(findings, CHECK_WARNING, "%s/%s: a stranger has a socket at %s: %s",
			service_name, name, ctl_plain(listener, "address"), who ? who : "?");
	}
}

static void check_worker(struct findings *findings, const json_t *service, const json_t *worker)
{
	const json_t *fullest = ctl_fullest_socket(worker);
	_cleanup_free_ char *who =
		ctl_format("%s: slot %" JSON_INTEGER_FORMAT " (%s)", ctl_plain(service, "name"),
			ctl_number(worker, "slot"), ctl_plain(worker, "instance"));

	if (!who)
		return;
	if (ctl_is_true(worker, "stalled"))
		find(findings, CHECK_WARNING, "%s is stalled", who);
	if (ctl_is_true(worker, "exited"))
		find(findings, CHECK_WARNING, "%s has ended, and others hold its sockets", who);
	if (fullest && ctl_queue_fill(fullest) >= CTL_QUEUE_FULL) {
		_cleanup_free_ char *queue = ctl_queue_text(service, fullest);

		find(findings, CHECK_WARNING, "%s has a queue that is full: %s", who,
			queue ? queue : "?");
	}
}

static void check_service(struct findings *findings, const json_t *service)
{
	const json_t *each;
	size_t i;

	/* Nobody is wanted for one that is being removed. */
	if (!ctl_is_true(service, "removed"))
		json_array_foreach(json_object_get(service, "listeners"), i, each)
			check_listener(findings, service, each);
	json_array_foreach(json_object_get(service, "workers"), i, each)
		check_worker(findings, service, each);
}

static void check_share(struct findings *findings, const json_t *share)
{
	const json_t *classifier = json_object_get(share, "classifier");

	if (!ctl_has(classifier, "pid"))
		find(findings, CHECK_WARNING,
			"share %s: no classifier runs, new connections are not read",
			ctl_plain(share, "name"));
	else if (!ctl_is_true(classifier, "follows"))
		find(findings, CHECK_WARNING,
			"share %s: the classifier can't follow, some new connections are not read",
			ctl_plain(share, "name"));
}

/* No fault of anybody's, so it changes no exit status. */
static void check_kernel(struct findings *findings, const json_t *daemon)
{
	static const struct {
		const char *name, *means;
	} known[] = {
		{"peer-pidfd", "has no SO_PEERPIDFD (6.5 has): a server that speaks the protocol "
			       "itself must bring a pidfd with HELLO, as the library does"},
		{"thread-pidfd", "gives no pidfd of a thread (6.9 does): reuseport-run --adopt "
				 "can't adopt from threads with a descriptor table of their own"},
	};
	const json_t *each;
	size_t i;

	json_array_foreach(json_object_get(daemon, "missing"), i, each)
	{
		const char *name = json_string_value(each);

		for (size_t k = 0; name && k < ARRAY_SIZE(known); k++)
			if (strcmp(name, known[k].name) == 0)
				find(findings, CHECK_OK, "Linux %s %s", ctl_plain(daemon, "kernel"),
					known[k].means);
	}
}

/* "2 services, 3 listeners, 5 of 6 workers active" */
static char *summary(const json_t *services)
{
	size_t i, listeners = 0, workers = 0, active = 0;
	const json_t *service;

	json_array_foreach(services, i, service)
	{
		listeners += json_array_size(json_object_get(service, "listeners"));
		workers += ctl_count_workers(service, NULL);
		active += ctl_count_workers(service, "active");
	}
	return ctl_format("%zu service%s, %zu listener%s, %zu of %zu worker%s active",
		json_array_size(services), json_array_size(services) == 1 ? "" : "s", listeners,
		listeners == 1 ? "" : "s", active, workers, workers == 1 ? "" : "s");
}

static const char *colour_of(int severity)
{
	return severity == CHECK_OK ? GREEN : severity == CHECK_WARNING ? YELLOW : RED;
}

static void print_findings(
	const struct ctl *ctl, const struct findings *findings, const char *summary_text)
{
	const json_t *each;
	size_t i;

	if (ctl->json != CTL_JSON_OFF) {
		json_t *reply = json_pack("{s:s, s:s, s:O}", "status", names[findings->worst],
			"summary", summary_text, "findings", findings->list);

		ctl_print_json(ctl, reply);
		json_decref(reply);
		return;
	}
	printf("%s%s%s: %s\n", ctl->colour ? colour_of(findings->worst) : "",
		names[findings->worst], ctl->colour ? COLOUR_END : "", summary_text);
	json_array_foreach(findings->list, i, each)
		printf("%s: %s\n", ctl_plain(each, "severity"), ctl_plain(each, "message"));
}

static int check_daemon(const struct ctl *ctl, const char *service)
{
	struct findings findings = {.list = json_array()};
	_cleanup_free_ char *error = NULL, *text = NULL;
	json_t *parameters = json_object(), *status = NULL;
	const json_t *services, *each;
	int result;
	size_t i;

	if (service)
		json_object_set_new(parameters, "service", json_string(service));
	result = ctl_try(ctl->socket, "Status", parameters, "check reuseportd", ANSWER_MSEC,
		&status, &error);
	if (result == CTL_OK) {
		services = json_object_get(status, "services");
		json_array_foreach(services, i, each) check_service(&findings, each);
		json_array_foreach(json_object_get(status, "shares"), i,
			each) if (ctl_share_has(each, service)) check_share(&findings, each);
		check_kernel(&findings, json_object_get(status, "daemon"));
		if (!json_array_size(services))
			find(&findings, CHECK_WARNING, "no service is configured");
		text = summary(services);
	} else {
		findings.worst = result == CTL_UNREACHABLE ? CHECK_CRITICAL : CHECK_UNKNOWN;
		text = take_pointer(error);
	}
	print_findings(ctl, &findings, text ? text : "out of memory");
	json_decref(findings.list);
	json_decref(status);
	return findings.worst;
}

/* What reuseportd --check says goes to where it says it; returns what that means. */
static int check_configuration(const char *directory)
{
	siginfo_t ended = {0};
	pid_t child;

	fflush(stdout);
	child = fork();
	if (child == 0) {
		execlp("reuseportd", "reuseportd", "--check", "--config", directory, NULL);
		execl(SBINDIR "/reuseportd", "reuseportd", "--check", "--config", directory, NULL);
		ctl_error("cannot check %s: cannot run reuseportd, in PATH and in " SBINDIR ": %s",
			directory, strerror(errno));
		_exit(127);
	}
	while (child > 0 && waitid(P_PID, (id_t)child, &ended, WEXITED) < 0 && errno == EINTR)
		;
	if (child < 0 || ended.si_code != CLD_EXITED || ended.si_status == 127)
		return CHECK_UNKNOWN;
	return ended.si_status == 0 ? CHECK_OK : CHECK_CRITICAL;
}

int ctl_run_check(const struct ctl *ctl, int argc, char **argv)
{
	const char *directory = ctl_get(ctl, OPTION_CONFIG);

	if (!directory)
		return check_daemon(ctl, argc ? argv[0] : NULL);
	if (argc) {
		ctl_usage("check takes a service or --config, not both", NULL);
		return CHECK_UNKNOWN;
	}
	return check_configuration(directory);
}
