/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Commands that change something: one call each, and a line that says what came of it.
 */
#include <stdio.h>
#include <string.h>

#include "tools/ctl-drain.h"
#include "tools/ctl-field.h"
#include "tools/ctl-worker.h"

/* Calls the method, and says how many of what it changed. parameters is stolen. */
static int change(const struct ctl *ctl, const char *method, json_t *parameters, const char *what,
	const char *counter, const char *counted, const char *nothing)
{
	json_t *reply;
	json_int_t n;
	int result = ctl_call(ctl->socket, method, parameters, what, &reply);

	if (result != CTL_OK)
		return result;
	n = ctl_number(reply, counter);
	if (ctl->json != CTL_JSON_OFF)
		ctl_print_json(ctl, reply);
	else if (n)
		printf("%s: %" JSON_INTEGER_FORMAT " %s%s\n", what, n, counted, n == 1 ? "" : "s");
	else
		printf("%s: %s\n", what, nothing);
	json_decref(reply);
	return CTL_OK;
}

/* The workers that the command line names, as parameters of a call, and a sentence of verb and name
 * (NULL: not enough memory). CTL_OK, or CTL_USAGE with that said. */
static int select_workers(const struct ctl *ctl, int argc, char **argv, const char *verb,
	struct ctl_selection *selection, json_t **ret_parameters, char **ret_what)
{
	if (ctl_select(ctl, argc, argv, 0, selection) < 0)
		return CTL_USAGE;
	*ret_parameters = ctl_selection_parameters(selection);
	if (!*ret_parameters)
		return CTL_USAGE;
	*ret_what = ctl_format("%s %s", verb, selection->name);
	return CTL_OK;
}

static int change_workers(const struct ctl *ctl, int argc, char **argv, const char *method,
	const char *verb, const char *counter, const char *nothing)
{
	_cleanup_(ctl_selection_done) struct ctl_selection selection;
	_cleanup_free_ char *what = NULL;
	json_t *parameters;

	if (select_workers(ctl, argc, argv, verb, &selection, &parameters, &what) != CTL_OK)
		return CTL_USAGE;
	return change(ctl, method, parameters, what ? what : verb, counter, "worker", nothing);
}

static int drain_and_wait(const struct ctl *ctl, int argc, char **argv, int64_t timeout_msec)
{
	_cleanup_(ctl_selection_done) struct ctl_selection selection;
	_cleanup_free_ char *what = NULL;
	json_t *parameters, *reply;
	int result;

	if (select_workers(ctl, argc, argv, "drain", &selection, &parameters, &what) != CTL_OK)
		return CTL_USAGE;
	result = ctl_call(ctl->socket, "Drain", parameters, what ? what : "drain", &reply);
	if (result != CTL_OK)
		return result;
	result = ctl_wait_drained(ctl, &selection, timeout_msec, reply);
	json_decref(reply);
	return result;
}

int ctl_run_drain(const struct ctl *ctl, int argc, char **argv)
{
	int64_t timeout_msec;
	int result = ctl_check_wait(ctl, &timeout_msec);

	if (result != CTL_OK)
		return result;
	if (ctl_get(ctl, OPTION_WAIT))
		return drain_and_wait(ctl, argc, argv, timeout_msec);
	return change_workers(ctl, argc, argv, "Drain", "drain", "drained",
		"nothing to do, it drains already or is not ready yet");
}

int ctl_run_kick(const struct ctl *ctl, int argc, char **argv)
{
	_cleanup_(ctl_selection_done) struct ctl_selection selection;
	_cleanup_free_ char *what = NULL;
	json_t *parameters, *reply;
	json_int_t workers, sockets;
	int result;

	if (select_workers(ctl, argc, argv, "kick", &selection, &parameters, &what) != CTL_OK)
		return CTL_USAGE;
	result = ctl_call(ctl->socket, "Kick", parameters, what ? what : "kick", &reply);
	if (result != CTL_OK)
		return result;
	workers = ctl_number(reply, "kicked");
	sockets = ctl_number(reply, "sockets");
	if (ctl->json != CTL_JSON_OFF)
		ctl_print_json(ctl, reply);
	else
		printf("%s: %" JSON_INTEGER_FORMAT " worker%s, %" JSON_INTEGER_FORMAT
		       " listening socket%s closed\n",
			what ? what : "kick", workers, workers == 1 ? "" : "s", sockets,
			sockets == 1 ? "" : "s");
	json_decref(reply);
	return CTL_OK;
}

int ctl_run_undrain(const struct ctl *ctl, int argc, char **argv)
{
	return change_workers(ctl, argc, argv, "Undrain", "undrain", "undrained",
		"nothing to do, it does not drain or its process has ended");
}

int ctl_run_weight(const struct ctl *ctl, int argc, char **argv)
{
	_cleanup_(ctl_selection_done) struct ctl_selection selection;
	_cleanup_free_ char *what = NULL;
	json_t *parameters;
	const char *text;
	int taken = ctl_select(ctl, argc, argv, 1, &selection);
	long weight;

	if (taken < 0)
		return CTL_USAGE;
	text = argv[taken];
	weight = strlen(text) <= 4 && strspn(text, "0123456789") == strlen(text)
			 ? strtol(text, NULL, 10)
			 : 0;
	if (weight < 1 || weight > 1000)
		return ctl_usage("a weight is a number from 1 to 1000, not", text);
	parameters = ctl_selection_parameters(&selection);
	if (!parameters)
		return CTL_USAGE;
	json_object_set_new(parameters, "weight", json_integer(weight));
	what = ctl_format("set the weight of %s to %ld", selection.name, weight);
	return change(ctl, "SetWeight", parameters, what ? what : "set the weight", "changed",
		"worker", "nothing to do, it has this weight");
}

int ctl_run_rotate_keys(const struct ctl *ctl, int argc, char **argv)
{
	_cleanup_free_ char *what = NULL;
	json_t *parameters = json_object();

	if (json_object_set_new(parameters, "service", json_string(argv[0])) < 0 ||
		(argc > 1 &&
			json_object_set_new(parameters, "listener", json_string(argv[1])) < 0)) {
		json_decref(parameters);
		return ctl_usage("names are text in UTF-8", NULL);
	}
	what = ctl_format(
		"rotate the keys of %s%s%s", argv[0], argc > 1 ? " " : "", argc > 1 ? argv[1] : "");
	return change(ctl, "RotateKeys", parameters, what ? what : "rotate the keys", "rotated",
		"listener", "nothing to do");
}

/* A call that has no parameters and no answer but that it is done. */
static int run_plain(const struct ctl *ctl, const char *method, const char *what)
{
	json_t *reply;
	int result = ctl_call(ctl->socket, method, json_object(), what, &reply);

	if (result != CTL_OK)
		return result;
	if (ctl->json != CTL_JSON_OFF)
		ctl_print_json(ctl, reply);
	else
		printf("%s: done\n", what);
	json_decref(reply);
	return CTL_OK;
}

int ctl_run_reload(const struct ctl *ctl, int argc, char **argv)
{
	return run_plain(ctl, "Reload", "reload the configuration");
}

int ctl_run_reexec(const struct ctl *ctl, int argc, char **argv)
{
	return run_plain(ctl, "Reexec", "replace the running program");
}
