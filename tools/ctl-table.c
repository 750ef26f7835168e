/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Status for people: a table of listeners and one of workers for each service, columns as wide as
 * what they hold. Programs read --json instead; nothing here is a contract.
 */
#include "tools/ctl.h"

#include <pwd.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "common/util.h"

#define COLUMNS_MAX 16

#define BOLD "\033[1m"
#define GREY "\033[90m"
#define RED "\033[31m"
#define GREEN "\033[32m"
#define YELLOW "\033[33m"
#define BLUE "\033[34m"

struct column {
	const char *title;
	bool right; /* numbers */
};

struct cell {
	char *text;
	const char *colour; /* NULL: none */
};

struct table {
	const struct column *columns;
	size_t n_columns;
	struct cell *cells;
	size_t n_cells;
	bool legend, colour;
};

static void add_cell(struct table *table, char *text, const char *colour)
{
	struct cell *cells = reallocarray(table->cells, table->n_cells + 1, sizeof(struct cell));

	if (!cells) {
		free(text);
		return;
	}
	/* What others named must not steer the terminal. */
	for (char *c = text; c && *c; c++)
		if ((unsigned char)*c < ' ' || *c == 0x7f)
			*c = '?';
	table->cells = cells;
	table->cells[table->n_cells++] = (struct cell){.text = text, .colour = colour};
}

static const char *cell_text(const struct cell *cell)
{
	return cell->text ? cell->text : "-";
}

/* Characters, not octets of UTF-8. */
static size_t width_of(const char *text)
{
	size_t n = 0;

	for (; *text; text++)
		n += ((unsigned char)*text & 0xc0) != 0x80;
	return n;
}

static void print_cell(const struct table *table, size_t column, const char *text, size_t width,
	const char *colour)
{
	size_t pad = width - width_of(text);
	bool last = column + 1 == table->n_columns;
	bool right = table->columns[column].right;

	fputs("  ", stdout);
	if (right)
		printf("%*s", (int)pad, "");
	if (colour && table->colour)
		printf("%s%s\033[0m", colour, text);
	else
		fputs(text, stdout);
	if (!right && !last)
		printf("%*s", (int)pad, "");
	if (last)
		putchar('\n');
}

/* Prints the table and frees its cells. */
static void print_table(struct table *table)
{
	size_t n_rows = table->n_cells / table->n_columns, widths[COLUMNS_MAX] = {0};

	for (size_t i = 0; i < table->n_columns; i++)
		if (table->legend)
			widths[i] = strlen(table->columns[i].title);
	for (size_t i = 0; i < n_rows * table->n_columns; i++) {
		size_t *width = &widths[i % table->n_columns];

		*width = MAX(*width, width_of(cell_text(&table->cells[i])));
	}
	for (size_t i = 0; table->legend && i < table->n_columns; i++)
		print_cell(table, i, table->columns[i].title, widths[i], GREY);
	for (size_t i = 0; i < n_rows * table->n_columns; i++) {
		size_t column = i % table->n_columns;

		print_cell(table, column, cell_text(&table->cells[i]), widths[column],
			table->cells[i].colour);
	}
	for (size_t i = 0; i < table->n_cells; i++)
		free(table->cells[i].text);
	free(table->cells);
	table->cells = NULL;
	table->n_cells = 0;
}

_printf_(1, 2) static char *format(const char *format, ...)
{
	char *text = NULL;
	va_list arguments;
	int n;

	va_start(arguments, format);
	n = vasprintf(&text, format, arguments);
	va_end(arguments);
	return n < 0 ? NULL : text;
}

static const char *string_of(const json_t *object, const char *key)
{
	const char *text = json_string_value(json_object_get(object, key));

	return text ? text : "-";
}

/* For what is not a cell, of which add_cell() takes care. */
static const char *plain_of(const json_t *object, const char *key)
{
	const char *text = string_of(object, key);

	return ctl_is_plain(text) ? text : "?";
}

static json_int_t number_of(const json_t *object, const char *key)
{
	return json_integer_value(json_object_get(object, key));
}

static void add_number(
	struct table *table, const json_t *object, const char *key, const char *colour_unless_zero)
{
	json_int_t number = number_of(object, key);

	add_cell(
		table, format("%" JSON_INTEGER_FORMAT, number), number ? colour_unless_zero : NULL);
}

/* "4d 3h", "12min 5s", "0s": two units say enough. */
static char *duration(int64_t usec)
{
	static const struct {
		const char *name;
		int64_t seconds;
	} units[] = {{"d", 86400}, {"h", 3600}, {"min", 60}, {"s", 1}};
	int64_t left = usec < 0 ? 0 : usec / (int64_t)USEC_PER_SEC;

	for (size_t i = 0; i + 1 < ARRAY_SIZE(units); i++) {
		int64_t next = left % units[i].seconds / units[i + 1].seconds;

		if (left < units[i].seconds)
			continue;
		if (!next)
			return format(
				"%lld%s", (long long)(left / units[i].seconds), units[i].name);
		return format("%lld%s %lld%s", (long long)(left / units[i].seconds), units[i].name,
			(long long)next, units[i + 1].name);
	}
	return format("%llds", (long long)left);
}

static int64_t now_usec(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return (int64_t)now.tv_sec * (int64_t)USEC_PER_SEC + now.tv_nsec / (long)NSEC_PER_USEC;
}

static char *user_name(json_int_t uid)
{
	const struct passwd *user = getpwuid((uid_t)uid);

	return user ? strdup(user->pw_name) : format("%" JSON_INTEGER_FORMAT, uid);
}

enum { TCP = 1, UDP = 2, QUIC = 4, ALL = TCP | UDP | QUIC };

static unsigned transport_of(const json_t *listener)
{
	const char *transport = string_of(listener, "transport");

	return strcmp(transport, "tcp") == 0 ? TCP : strcmp(transport, "udp") == 0 ? UDP : QUIC;
}

/* Counters of listeners; a table has those that mean something for one of its transports. */
static const struct counter {
	const char *title, *key, *colour_unless_zero;
	unsigned transports;
} counters[] = {
	{"PACKETS", "packets", NULL, ALL},
	{"NEW", "new_connections", NULL, ALL},
	{"BY ID", "by_connection_id", NULL, QUIC},
	{"BY FLOW", "by_flow", NULL, UDP | QUIC},
	{"MIGRATED", "migrated", NULL, TCP},
	{"FALLBACK", "fallback", NULL, ALL},
	{"STANDBY", "standby", NULL, ALL},
	{"EXPIRED", "expired", RED, ALL},
	{"STRAY", "stray", NULL, TCP | QUIC},
	{"INVALID", "invalid", NULL, QUIC},
	{"DROPPED", "dropped", RED, ALL},
};

static void print_listeners(const json_t *listeners, bool legend, bool colour)
{
	struct column columns[COLUMNS_MAX] = {
		{"LISTENER", false}, {"ADDRESS", false}, {"ACTIVE", true}};
	struct table table = {
		.columns = columns, .n_columns = 3, .legend = legend, .colour = colour};
	unsigned transports = 0;
	const json_t *listener;
	size_t i;

	json_array_foreach(listeners, i, listener) transports |= transport_of(listener);
	if (transports & QUIC)
		columns[table.n_columns++] = (struct column){"IDS", false};
	for (size_t k = 0; k < ARRAY_SIZE(counters); k++)
		if (counters[k].transports & transports)
			columns[table.n_columns++] = (struct column){counters[k].title, true};
	json_array_foreach(listeners, i, listener)
	{
		add_cell(&table, format("%s", string_of(listener, "name")), NULL);
		add_cell(&table,
			format("%s://%s", string_of(listener, "transport"),
				string_of(listener, "address")),
			NULL);
		add_number(&table, listener, "active", NULL);
		if (transports & QUIC)
			add_cell(&table,
				format("%s", transport_of(listener) == QUIC
						     ? string_of(listener, "connection_id")
						     : "-"),
				NULL);
		for (size_t k = 0; k < ARRAY_SIZE(counters); k++)
			if (counters[k].transports & transport_of(listener))
				add_number(&table, listener, counters[k].key,
					counters[k].colour_unless_zero);
			else if (counters[k].transports & transports)
				add_cell(&table, format("-"), NULL);
	}
	print_table(&table);
}

static void add_state(struct table *table, const json_t *worker)
{
	const char *state = string_of(worker, "state");
	const char *colour = strcmp(state, "active") == 0     ? GREEN
			     : strcmp(state, "draining") == 0 ? YELLOW
							      : BLUE;

	if (json_is_true(json_object_get(worker, "exited")))
		add_cell(table, format("%s (exited)", state), RED);
	else
		add_cell(table, format("%s", state), colour);
}

static void print_workers(const json_t *workers, bool legend, bool colour)
{
	static const struct column columns[] = {
		{"SLOT", true},
		{"INSTANCE", false},
		{"STATE", false},
		{"FOR", true},
		{"WEIGHT", true},
		{"PID", true},
		{"USER", false},
		{"PACKETS", true},
		{"NEW", true},
	};
	struct table table = {.columns = columns,
		.n_columns = ARRAY_SIZE(columns),
		.legend = legend,
		.colour = colour};
	int64_t now = now_usec();
	const json_t *worker;
	size_t i;

	json_array_foreach(workers, i, worker)
	{
		add_number(&table, worker, "slot", NULL);
		add_cell(&table, format("%s", string_of(worker, "instance")), NULL);
		add_state(&table, worker);
		add_cell(&table, duration(now - number_of(worker, "since")), NULL);
		add_number(&table, worker, "weight", NULL);
		add_number(&table, worker, "pid", NULL);
		add_cell(&table, user_name(number_of(worker, "uid")), NULL);
		add_number(&table, worker, "packets", NULL);
		add_number(&table, worker, "new_connections", NULL);
	}
	print_table(&table);
}

static void print_service(const json_t *service, bool legend, bool colour)
{
	const json_t *workers = json_object_get(service, "workers");
	bool removed = json_is_true(json_object_get(service, "removed"));

	printf("%s%s%s%s\n", colour ? BOLD : "", plain_of(service, "name"), colour ? "\033[0m" : "",
		removed ? " (left the configuration, its workers drain)" : "");
	print_listeners(json_object_get(service, "listeners"), legend, colour);
	if (json_array_size(workers)) {
		if (legend)
			putchar('\n');
		print_workers(workers, legend, colour);
	} else if (legend) {
		puts("  no worker has registered");
	}
}

int ctl_print_status(const json_t *status, bool legend, bool colour)
{
	const json_t *services = json_object_get(status, "services");
	const json_t *daemon = json_object_get(status, "daemon");
	const json_t *service;
	size_t i;

	if (legend && daemon) {
		_cleanup_free_ char *uptime = duration(number_of(daemon, "uptime"));

		printf("reuseportd %s, pid %" JSON_INTEGER_FORMAT ", up %s\n",
			plain_of(daemon, "version"), number_of(daemon, "pid"),
			uptime ? uptime : "-");
	}
	json_array_foreach(services, i, service)
	{
		if (legend)
			putchar('\n');
		print_service(service, legend, colour);
	}
	if (legend && !json_array_size(services))
		puts("no service is configured (reuseportd.conf(5))");
	return CTL_OK;
}
