/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * metrics: the reply to Status in the text format of Prometheus (version 0.0.4) or as OpenMetrics
 * 1.0, on stdout or, for node-exporter's textfile collector, into a file that is replaced whole.
 * What there is, ctl-metrics-table.c says; docs/metrics.md explains it.
 */
#include "tools/ctl-metrics.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "tools/ctl-field.h"
#include "tools/ctl-table.h"

#define PREFIX "reuseportd_"

/* Where a sample comes from: each level names the levels above it in its labels. */
struct place {
	const json_t *service, *listener, *worker, *socket, *share;
};

struct writer {
	FILE *file;
	bool openmetrics;
	const struct ctl_metric *metric;
	bool began;    /* HELP and TYPE are written */
	bool labelled; /* the sample has a label already */
};

static const char *const type_names[] = {
	[METRIC_GAUGE] = "gauge", [METRIC_COUNTER] = "counter", [METRIC_INFO] = "info"};

static void write_escaped(FILE *file, const char *text, bool quotes)
{
	for (; *text; text++)
		if (*text == '\n')
			fputs("\\n", file);
		else if (*text == '\\' || (*text == '"' && quotes))
			fprintf(file, "\\%c", *text);
		else
			fputc(*text, file);
}

/*
 * The name of the family and of its samples. In OpenMetrics the suffix of counters and infos is not
 * part of the family's name; an info is a gauge for Prometheus.
 */
static void write_head(struct writer *writer)
{
	const struct ctl_metric *metric = writer->metric;
	const char *suffix = writer->openmetrics ? "" : ctl_metric_suffix(metric->type);
	const char *type = metric->type == METRIC_INFO && !writer->openmetrics
				   ? "gauge"
				   : type_names[metric->type];

	if (writer->began)
		return;
	writer->began = true;
	fprintf(writer->file, "# HELP " PREFIX "%s%s ", metric->name, suffix);
	write_escaped(writer->file, metric->help, writer->openmetrics);
	fprintf(writer->file, "\n# TYPE " PREFIX "%s%s %s\n", metric->name, suffix, type);
}

static void write_label(struct writer *writer, const char *name, const char *value)
{
	fprintf(writer->file, "%s%s=\"", writer->labelled ? "," : "{", name);
	write_escaped(writer->file, value, true);
	fputc('"', writer->file);
	writer->labelled = true;
}

static void write_number_label(struct writer *writer, const char *name, json_int_t value)
{
	char text[24];

	snprintf(text, sizeof(text), "%" JSON_INTEGER_FORMAT, value);
	write_label(writer, name, text);
}

/* Up to the labels that say where it is from. */
static void begin_sample(struct writer *writer, const struct place *place)
{
	write_head(writer);
	writer->labelled = false;
	fprintf(writer->file, PREFIX "%s%s", writer->metric->name,
		ctl_metric_suffix(writer->metric->type));
	if (place->share)
		write_label(writer, "share", ctl_string(place->share, "name"));
	if (place->service)
		write_label(writer, "service", ctl_string(place->service, "name"));
	if (place->listener) {
		write_label(writer, "listener", ctl_string(place->listener, "name"));
		write_label(writer, "transport", ctl_string(place->listener, "transport"));
	}
	if (place->worker) {
		write_label(writer, "instance_name", ctl_string(place->worker, "instance"));
		write_number_label(writer, "slot", ctl_number(place->worker, "slot"));
	}
}

static void end_sample(struct writer *writer, json_int_t value)
{
	fprintf(writer->file, "%s %" JSON_INTEGER_FORMAT "\n", writer->labelled ? "}" : "", value);
}

/* value counts in parts of a unit, of which the metric has so many. */
static void end_scaled_sample(struct writer *writer, json_int_t value, json_int_t parts, int digits)
{
	fprintf(writer->file, "%s %" JSON_INTEGER_FORMAT ".%0*" JSON_INTEGER_FORMAT "\n",
		writer->labelled ? "}" : "", value / parts, digits, value % parts);
}

/* The object that the metric's key belongs to. */
static const json_t *object_of(const struct place *place, const json_t *daemon)
{
	return place->share      ? place->share
	       : place->socket   ? place->socket
	       : place->worker   ? place->worker
	       : place->listener ? place->listener
	       : place->service  ? place->service
				 : daemon;
}

static void write_info(struct writer *writer, const struct place *place, const json_t *object)
{
	begin_sample(writer, place);
	for (const char *const *key = writer->metric->keys; *key; key++) {
		const json_t *value = json_object_get(object, *key);

		if (json_is_string(value))
			write_label(writer, *key, json_string_value(value));
		else if (json_is_integer(value))
			write_number_label(writer, *key, json_integer_value(value));
	}
	end_sample(writer, 1);
}

/* A sample for each of the values that something is one of: 1 for the one that it is. */
static void write_states(struct writer *writer, const struct place *place, const json_t *object)
{
	for (size_t i = 0; i < ARRAY_SIZE(ctl_worker_states); i++) {
		begin_sample(writer, place);
		write_label(writer, "state", ctl_worker_states[i]);
		if (place->worker)
			end_sample(writer, ctl_is(object, "state", ctl_worker_states[i]));
		else
			end_sample(writer,
				(json_int_t)ctl_count_workers(object, ctl_worker_states[i]));
	}
}

static void write_verdicts(struct writer *writer, const struct place *place, const json_t *listener)
{
	static const struct {
		const char *verdict, *key;
	} verdicts[] = {{"connection_id", "by_connection_id"}, {"flow", "by_flow"},
		{"migrated", "migrated"}, {"fallback", "fallback"}, {"standby", "standby"},
		{"stray", "stray"}, {"dropped", "dropped"}, {"invalid", "invalid"}};

	/* New connections are those by the listener map and those by a fallback from it. */
	begin_sample(writer, place);
	write_label(writer, "verdict", "listener");
	end_sample(
		writer, ctl_number(listener, "new_connections") - ctl_number(listener, "fallback"));
	for (size_t i = 0; i < ARRAY_SIZE(verdicts); i++) {
		begin_sample(writer, place);
		write_label(writer, "verdict", verdicts[i].verdict);
		end_sample(writer, ctl_number(listener, verdicts[i].key));
	}
}

static void write_by_key(struct writer *writer, const struct place *place, const char *label,
	const char *const *keys, const json_t *object)
{
	for (const char *const *key = keys; *key; key++)
		if (ctl_has(object, *key)) {
			begin_sample(writer, place);
			write_label(writer, label, *key);
			end_sample(writer, ctl_number(object, *key));
		}
}

static void write_choices(struct writer *writer, const struct place *place)
{
	static const char *const keys[] = {"by_name", "by_suffix", "by_protocol", "no_name",
		"no_match", "too_slow", "too_many", NULL};

	write_by_key(writer, place, "choice", keys, json_object_get(place->share, "classifier"));
}

static void write_discards(struct writer *writer, const struct place *place)
{
	static const char *const keys[] = {"no_initial", "too_short", "malformed", "looped", NULL};

	write_by_key(writer, place, "reason", keys, json_object_get(place->share, "classifier"));
}

static void write_features(struct writer *writer, const struct place *place, const json_t *daemon)
{
	const json_t *feature;
	size_t i;

	json_array_foreach(json_object_get(daemon, "features"), i, feature)
	{
		const char *name = json_string_value(feature);

		begin_sample(writer, place);
		write_label(writer, "feature", name ? name : "");
		end_sample(writer, 1);
	}
}

/* Samples of fields that are there; what is null or unknown to an older daemon has none. */
static void write_value(struct writer *writer, const struct place *place, const json_t *object)
{
	const struct ctl_metric *metric = writer->metric;
	const json_t *field = metric->keys[0] ? json_object_get(object, metric->keys[0]) : NULL;

	if (field && metric->keys[1])
		field = json_object_get(field, metric->keys[1]);
	if (metric->transport && !ctl_is(place->listener, "transport", "tcp") ==
					 (strcmp(metric->transport, "tcp") == 0))
		return;
	if (metric->value == VALUE_ONE) {
		begin_sample(writer, place);
		end_sample(writer, 1);
	} else if (metric->value == VALUE_PRESENT) {
		begin_sample(writer, place);
		end_sample(writer, field && !json_is_null(field));
	} else if (metric->value == VALUE_COUNT && json_is_array(field)) {
		begin_sample(writer, place);
		end_sample(writer, (json_int_t)json_array_size(field));
	} else if (metric->value == VALUE_TRUE && json_is_boolean(field)) {
		begin_sample(writer, place);
		end_sample(writer, json_is_true(field));
	} else if (!json_is_integer(field)) {
		return;
	} else if (metric->value == VALUE_NUMBER) {
		begin_sample(writer, place);
		end_sample(writer, json_integer_value(field));
	} else if (metric->value == VALUE_USEC && json_integer_value(field) > 0) {
		begin_sample(writer, place);
		end_scaled_sample(writer, json_integer_value(field), 1000000, 6);
	} else if (metric->value == VALUE_PERMILLE) {
		begin_sample(writer, place);
		end_scaled_sample(writer, json_integer_value(field), 1000, 3);
	}
}

static void write_at(struct writer *writer, const struct place *place, const json_t *daemon)
{
	const json_t *object = object_of(place, daemon);

	switch (writer->metric->value) {
	case VALUE_INFO:
		write_info(writer, place, object);
		break;
	case VALUE_STATES:
		write_states(writer, place, object);
		break;
	case VALUE_VERDICTS:
		write_verdicts(writer, place, object);
		break;
	case VALUE_CHOICES:
		write_choices(writer, place);
		break;
	case VALUE_DISCARDS:
		write_discards(writer, place);
		break;
	case VALUE_FEATURES:
		write_features(writer, place, object);
		break;
	default:
		write_value(writer, place, object);
	}
}

static void write_workers(struct writer *writer, const json_t *service)
{
	const json_t *worker, *socket;
	size_t i, k;

	json_array_foreach(json_object_get(service, "workers"), i, worker)
	{
		struct place place = {.service = service, .worker = worker};

		if (writer->metric->level == LEVEL_WORKER) {
			write_at(writer, &place, NULL);
			continue;
		}
		json_array_foreach(json_object_get(worker, "sockets"), k, socket)
		{
			place.socket = socket;
			place.listener = ctl_find_listener(service, ctl_string(socket, "listener"));
			if (place.listener)
				write_at(writer, &place, NULL);
		}
	}
}

static void write_service(struct writer *writer, const json_t *service)
{
	struct place place = {.service = service};
	size_t i;

	if (writer->metric->level == LEVEL_SERVICE) {
		write_at(writer, &place, NULL);
	} else if (writer->metric->level == LEVEL_LISTENER) {
		json_array_foreach(json_object_get(service, "listeners"), i, place.listener)
			write_at(writer, &place, NULL);
	} else {
		write_workers(writer, service);
	}
}

void ctl_write_metrics(FILE *file, bool openmetrics, const json_t *status)
{
	const json_t *daemon = json_object_get(status, "daemon"), *service;
	size_t i;

	for (const struct ctl_metric *metric = ctl_metrics; metric->name; metric++) {
		struct writer writer = {.file = file, .openmetrics = openmetrics, .metric = metric};
		const struct place nowhere = {0};

		if (metric->level == LEVEL_UP) {
			begin_sample(&writer, &nowhere);
			end_sample(&writer, status != NULL);
		} else if (metric->level == LEVEL_DAEMON && daemon) {
			write_at(&writer, &nowhere, daemon);
		} else if (metric->level == LEVEL_SHARE) {
			struct place place = {0};

			json_array_foreach(json_object_get(status, "shares"), i, place.share)
				write_at(&writer, &place, daemon);
		} else {
			json_array_foreach(json_object_get(status, "services"), i, service)
				write_service(&writer, service);
		}
	}
	if (openmetrics)
		fputs("# EOF\n", file);
}

static int cannot_write(const char *path)
{
	ctl_error("cannot write the metrics into %s: %s", path, strerror(errno));
	return CTL_FAILED;
}

/* status NULL: there was no answer. */
static int write_file(const char *path, bool openmetrics, const json_t *status)
{
	_cleanup_free_ char *temporary = ctl_format("%s.XXXXXX", path);
	bool good;
	FILE *file;
	int fd;

	if (!temporary)
		return cannot_write(path);
	fd = mkostemp(temporary, O_CLOEXEC);
	if (fd < 0)
		return cannot_write(path);
	file = fdopen(fd, "w");
	if (!file) {
		close(fd);
		unlink(temporary);
		return cannot_write(path);
	}
	ctl_write_metrics(file, openmetrics, status);
	/* Who collects it is another user. */
	good = fchmod(fd, 0644) == 0 && fflush(file) == 0 && !ferror(file);
	if (fclose(file) != 0 || !good || rename(temporary, path) < 0) {
		int result = cannot_write(path);

		unlink(temporary);
		return result;
	}
	return CTL_OK;
}

static void list_for_programs(const struct ctl *ctl)
{
	json_t *list = json_array();

	for (const struct ctl_metric *metric = ctl_metrics; metric->name; metric++) {
		_cleanup_free_ char *name =
			ctl_format(PREFIX "%s%s", metric->name, ctl_metric_suffix(metric->type));

		json_array_append_new(
			list, json_pack("{s:s?, s:s, s:s}", "name", name, "type",
				      type_names[metric->type], "help", metric->help));
	}
	ctl_print_json(ctl, list);
	json_decref(list);
}

static void list_for_people(const struct ctl *ctl)
{
	struct ctl_table table = {.legend = ctl->legend, .colour = ctl->colour};

	ctl_add_column(&table, "METRIC", false);
	ctl_add_column(&table, "TYPE", false);
	ctl_add_column(&table, "MEANING", false);
	for (const struct ctl_metric *metric = ctl_metrics; metric->name; metric++) {
		ctl_add_cell(&table,
			ctl_format(PREFIX "%s%s", metric->name, ctl_metric_suffix(metric->type)),
			NULL);
		ctl_add_cell(&table, ctl_format("%s", type_names[metric->type]), NULL);
		ctl_add_cell(&table, ctl_format("%s", metric->help), NULL);
	}
	ctl_print_table(&table);
}

int ctl_run_metrics(const struct ctl *ctl, int argc, char **argv)
{
	const char *format = ctl_get(ctl, OPTION_FORMAT), *output = ctl_get(ctl, OPTION_OUTPUT);
	bool openmetrics = format && strcmp(format, "openmetrics") == 0;
	json_t *status = NULL;
	int result, written;

	if (format && !openmetrics && strcmp(format, "prometheus") != 0)
		return ctl_usage("--format is prometheus or openmetrics, not", format);
	if (ctl_get(ctl, OPTION_LIST)) {
		if (ctl->json != CTL_JSON_OFF)
			list_for_programs(ctl);
		else
			list_for_people(ctl);
		return CTL_OK;
	}
	if (ctl->json != CTL_JSON_OFF)
		return ctl_usage("metrics has no JSON but with --list; status has", NULL);
	result = ctl_call_status(ctl, NULL, &status);
	if (output) {
		written = write_file(output, openmetrics, result == CTL_OK ? status : NULL);
		result = result == CTL_OK ? written : result;
	} else if (result == CTL_OK) {
		ctl_write_metrics(stdout, openmetrics, status);
	}
	json_decref(status);
	return result;
}
