/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The picture that top shows. Every line is cut at the width of the terminal by the one function
 * that writes into it, and columns that do not fit are left out from the least important on, so
 * that no size is too small.
 */
#include "tools/ctl-top.h"

#include <stdarg.h>
#include <string.h>

#include "common/format.h"
#include "tools/ctl-field.h"
#include "tools/ctl-status.h"
#include "tools/ctl-terminal.h"
#include "tools/ctl-worker.h"

#define BAR_MIN 6
#define BAR_MAX 60
#define NAME_MAX_WIDTH 24
#define TROUBLE_LINES 4
#define NARROW 60 /* columns */

struct line {
	char *text;
	size_t size;
	FILE *stream;
	int room; /* columns that are left */
	bool colour;
};

struct picture {
	char **lines;
	size_t n;
};

static void line_begin(struct line *line, const struct ctl_top_view *view)
{
	*line = (struct line){.room = view->columns, .colour = view->colour};
	line->stream = open_memstream(&line->text, &line->size);
}

/* Whole characters of UTF-8, as many as there is room for; others' controls become "?". */
static void add_text(struct line *line, const char *text)
{
	while (*text && line->room > 0) {
		size_t n = 1;

		while (((unsigned char)text[n] & 0xc0) == 0x80)
			n++;
		if ((unsigned char)*text < ' ' || *text == 0x7f ||
			((unsigned char)*text == 0xc2 && (unsigned char)text[1] < 0xa0))
			fputc('?', line->stream);
		else
			fwrite(text, 1, n, line->stream);
		text += n;
		line->room--;
	}
}

_printf_(3, 4) static void add(struct line *line, const char *colour, const char *format, ...)
{
	_cleanup_free_ char *text = NULL;
	va_list arguments;

	va_start(arguments, format);
	text = format_list(format, arguments);
	va_end(arguments);
	if (!text || !line->stream)
		return;
	if (colour && line->colour)
		fputs(colour, line->stream);
	add_text(line, text);
	if (colour && line->colour)
		fputs(COLOUR_END, line->stream);
}

/* Pads what printf(3) would count in octets. */
static void add_padded(
	struct line *line, const char *colour, const char *text, int width, bool right)
{
	int pad = MAX(width - (int)ctl_width(text), 0);

	if (right)
		add(line, NULL, "%*s", pad, "");
	add(line, colour, "%s", text);
	if (!right)
		add(line, NULL, "%*s", pad, "");
}

static void line_end(struct line *line, struct picture *picture)
{
	char **lines = reallocarray(picture->lines, picture->n + 1, sizeof(*lines));

	if (lines)
		picture->lines = lines;
	if (!line->stream || fclose(line->stream) != 0 || !lines) {
		free(line->text);
		return;
	}
	picture->lines[picture->n++] = line->text;
}

static void picture_done(struct picture *picture)
{
	for (size_t i = 0; i < picture->n; i++)
		free(picture->lines[i]);
	free(picture->lines);
}

/*
 * The element of an array whose fields of these names are like those of the other one. The search
 * begins at *next and leaves it behind what was found: both replies have the same order, so that
 * a thousand workers take a thousand looks and not a million.
 */
static const json_t *find_same(
	const json_t *array, const json_t *other, const char *const *keys, size_t *next)
{
	size_t n = json_array_size(array);

	for (size_t i = 0; i < n; i++) {
		size_t at = (*next + i) % n;
		const json_t *each = json_array_get(array, at);
		bool same = true;

		for (const char *const *key = keys; same && *key; key++)
			same = json_equal(
				json_object_get(each, *key), json_object_get(other, *key));
		if (!same)
			continue;
		*next = at + 1;
		return each;
	}
	return NULL;
}

/* A second; -1: not known yet. What was not there before has begun at 0. */
static double rate(
	const struct ctl_top_view *view, const json_t *before, const json_t *now, const char *key)
{
	json_int_t more = ctl_number(now, key) - ctl_number(before, key);

	if (!view->before || view->seconds <= 0)
		return -1;
	return (double)MAX(more, 0) / view->seconds;
}

static char *rate_text(double rate)
{
	return rate < 0 ? strdup("-") : ctl_short_number(rate);
}

/* A worker, with all that its line needs. */
struct row {
	const json_t *worker;
	double packets, new;
	double fill; /* of its fullest queue, -1: not known */
	const char *state_colour;
	char *state, *queue;
};

struct rows {
	struct row *row;
	size_t n;
	int instance, state, queue; /* widths */
	bool has_queue, has_load;
	double highest; /* packets a second */
};

static void rows_done(struct rows *rows)
{
	for (size_t i = 0; i < rows->n; i++) {
		free(rows->row[i].state);
		free(rows->row[i].queue);
	}
	free(rows->row);
}

/* Highest first; glibc's qsort_r() has the argument last. */
static int compare_rows(const void *a, const void *b, void *order)
{
	const struct row *left = a, *right = b;
	double difference = 0;

	switch (*(const enum ctl_top_order *)order) {
	case TOP_BY_PACKETS:
		difference = right->packets - left->packets;
		break;
	case TOP_BY_NEW:
		difference = right->new - left->new;
		break;
	case TOP_BY_QUEUE:
		difference = right->fill - left->fill;
		break;
	default:
		break;
	}
	if (difference > 0 || difference < 0)
		return difference > 0 ? 1 : -1;
	return ctl_number(left->worker, "slot") > ctl_number(right->worker, "slot") ? 1 : -1;
}

static void make_row(const struct ctl_top_view *view, const json_t *service, const json_t *same,
	const json_t *worker, struct row *row)
{
	const json_t *fullest = ctl_fullest_socket(worker);

	*row = (struct row){.worker = worker,
		.packets = rate(view, same, worker, "packets"),
		.new = rate(view, same, worker, "new_connections"),
		.fill = fullest ? ctl_queue_fill(fullest) : -1,
		.queue = fullest ? ctl_queue_text(service, fullest) : NULL};
	row->state = ctl_worker_state(worker, &row->state_colour);
}

static void make_rows(const struct ctl_top_view *view, const json_t *service, const json_t *before,
	struct rows *rows)
{
	const json_t *workers = json_object_get(service, "workers"), *worker;
	static const char *const keys[] = {"slot", "instance", "pid", NULL};
	enum ctl_top_order order = view->order;
	size_t i, next = 0;

	*rows = (struct rows){.row = calloc(json_array_size(workers) + 1, sizeof(struct row)),
		.instance = 8,
		.state = 5,
		.queue = 5};
	json_array_foreach(workers, i, worker)
	{
		struct row *row = rows->row ? &rows->row[rows->n++] : NULL;

		if (!row)
			return;
		make_row(view, service,
			find_same(json_object_get(before, "workers"), worker, keys, &next), worker,
			row);
		rows->instance =
			MAX(rows->instance, (int)ctl_width(ctl_string(worker, "instance")));
		rows->state = MAX(rows->state, (int)ctl_width(row->state ? row->state : ""));
		rows->queue = MAX(rows->queue, (int)ctl_width(row->queue ? row->queue : ""));
		rows->has_queue |= row->queue != NULL;
		rows->has_load |= ctl_has(worker, "load");
		rows->highest = MAX(rows->highest, row->packets);
	}
	rows->instance = MIN(rows->instance, NAME_MAX_WIDTH);
	qsort_r(rows->row, rows->n, sizeof(*rows->row), compare_rows, &order);
}

/* What there is room for, the least important last. */
struct columns {
	bool state, packets, new, queue, load;
	int bar; /* 0: none */
};

static struct columns fit_columns(const struct ctl_top_view *view, const struct rows *rows)
{
	struct columns columns = {0};
	int room = view->columns - 6 - 1 - rows->instance; /* slot and instance */

	columns.packets = room >= 10;
	room -= columns.packets ? 10 : 0;
	columns.state = room >= 1 + rows->state;
	room -= columns.state ? 1 + rows->state : 0;
	columns.new = room >= 7;
	room -= columns.new ? 7 : 0;
	columns.queue = rows->has_queue && room >= 1 + rows->queue;
	room -= columns.queue ? 1 + rows->queue : 0;
	columns.load = rows->has_load && room >= 7;
	room -= columns.load ? 7 : 0;
	columns.bar = room >= 1 + BAR_MIN ? MIN(room - 1, BAR_MAX) : 0;
	return columns;
}

static void draw_titles(const struct ctl_top_view *view, const struct rows *rows,
	const struct columns *columns, struct picture *picture)
{
	struct line line;

	line_begin(&line, view);
	add(&line, GREY, "%6s ", "SLOT");
	add_padded(&line, GREY, "INSTANCE", rows->instance, false);
	if (columns->state)
		add(&line, GREY, " %-*s", rows->state, "STATE");
	if (columns->new)
		add(&line, GREY, " %6s", "NEW/S");
	if (columns->queue)
		add(&line, GREY, " %*s", rows->queue, "QUEUE");
	if (columns->load)
		add(&line, GREY, " %6s", "LOAD");
	if (columns->packets)
		add(&line, GREY, " %9s", "PACKETS/S");
	line_end(&line, picture);
}

/* As many columns as share says, in eighths where the terminal can. */
static void draw_bar(struct line *line, const struct ctl_top_view *view, int width, double share)
{
	static const char *const eighths[] = {"", "\xe2\x96\x8f", "\xe2\x96\x8e", "\xe2\x96\x8d",
		"\xe2\x96\x8c", "\xe2\x96\x8b", "\xe2\x96\x8a", "\xe2\x96\x89"};
	int parts = (int)(share * width * 8 + 0.5);

	add(line, NULL, " ");
	for (int i = 0; i < parts / 8; i++)
		add(line, GREEN, "%s", view->utf8 ? "\xe2\x96\x88" : "#");
	if (view->utf8)
		add(line, GREEN, "%s", eighths[parts % 8]);
}

static void draw_worker(const struct ctl_top_view *view, const struct rows *rows,
	const struct columns *columns, const struct row *row, struct picture *picture)
{
	_cleanup_free_ char *packets = rate_text(row->packets), *new = rate_text(row->new);
	const char *instance = ctl_string(row->worker, "instance");
	struct line line;

	line_begin(&line, view);
	add(&line, NULL, "%6d ", (int)ctl_number(row->worker, "slot"));
	if ((int)ctl_width(instance) > rows->instance)
		add(&line, NULL, "%.*s~", rows->instance - 1, ctl_plain(row->worker, "instance"));
	else
		add_padded(&line, NULL, instance, rows->instance, false);
	if (columns->state) {
		add(&line, NULL, " ");
		add_padded(&line, row->state_colour, row->state ? row->state : "-", rows->state,
			false);
	}
	if (columns->new)
		add(&line, NULL, " %6s", new ? new : "-");
	if (columns->queue)
		add(&line, row->fill >= CTL_QUEUE_FULL ? RED : NULL, " %*s", rows->queue,
			row->queue ? row->queue : "-");
	if (columns->load && ctl_has(row->worker, "load"))
		add(&line, NULL, " %5.1f%%", (double)ctl_number(row->worker, "load") / 10);
	else if (columns->load)
		add(&line, NULL, " %6s", "-");
	if (columns->packets)
		add(&line, NULL, " %9s", packets ? packets : "-");
	if (columns->bar && rows->highest > 0 && row->packets > 0)
		draw_bar(&line, view, columns->bar, row->packets / rows->highest);
	line_end(&line, picture);
}

static void draw_listener(const struct ctl_top_view *view, const json_t *before,
	const json_t *listener, struct picture *picture)
{
	static const char *const keys[] = {"name", NULL};
	size_t next = 0;
	const json_t *same = find_same(json_object_get(before, "listeners"), listener, keys, &next);
	double dropped = rate(view, same, listener, "dropped");
	double expired = rate(view, same, listener, "expired"), lost = dropped + expired;
	_cleanup_free_ char *packets = rate_text(rate(view, same, listener, "packets"));
	_cleanup_free_ char *new = rate_text(rate(view, same, listener, "new_connections"));
	_cleanup_free_ char *refused = rate_text(lost);
	struct line line;

	line_begin(&line, view);
	if (view->columns < NARROW)
		add(&line, NULL, "  %s ", ctl_string(listener, "name"));
	else
		add(&line, NULL, "  %s://%s ", ctl_string(listener, "transport"),
			ctl_string(listener, "address"));
	add(&line, NULL, " new %s/s, packets %s/s", new ? new : "-", packets ? packets : "-");
	if (ctl_number(listener, "waiting"))
		add(&line, YELLOW, ", %lld waiting", (long long)ctl_number(listener, "waiting"));
	if (lost > 0)
		add(&line, RED, ", refused %s/s", refused ? refused : "-");
	line_end(&line, picture);
}

static void draw_service(
	const struct ctl_top_view *view, const json_t *service, struct picture *picture)
{
	static const char *const keys[] = {"name", NULL};
	size_t i, next = 0;
	const json_t *before =
		find_same(json_object_get(view->before, "services"), service, keys, &next);
	const json_t *listener;
	_cleanup_(rows_done) struct rows rows;
	struct columns columns;
	struct line line;

	line_begin(&line, view);
	add(&line, ctl_service_colour(service), "%s", view->utf8 ? "\xe2\x97\x8f" : "*");
	add(&line, BOLD, " %s", ctl_string(service, "name"));
	add(&line, NULL, "  %zu active", ctl_count_workers(service, "active"));
	if (ctl_count_workers(service, "draining"))
		add(&line, YELLOW, ", %zu draining", ctl_count_workers(service, "draining"));
	if (ctl_count_workers(service, "joining"))
		add(&line, BLUE, ", %zu joining", ctl_count_workers(service, "joining"));
	if (ctl_is_true(service, "removed"))
		add(&line, GREY, ", removed");
	line_end(&line, picture);
	json_array_foreach(json_object_get(service, "listeners"), i, listener)
		draw_listener(view, before, listener, picture);
	make_rows(view, service, before, &rows);
	columns = fit_columns(view, &rows);
	if (rows.n)
		draw_titles(view, &rows, &columns, picture);
	for (i = 0; i < rows.n; i++)
		draw_worker(view, &rows, &columns, &rows.row[i], picture);
	line_begin(&line, view);
	line_end(&line, picture);
}

/* Broken between words where it can be. */
static void draw_trouble(const struct ctl_top_view *view, struct picture *picture)
{
	const char *text = view->trouble ? view->trouble : "";
	int lines = 0;

	do {
		struct line line;
		size_t n = strlen(text), room = (size_t)MAX(view->columns, 1);

		if (n > room) {
			n = room;
			while (n && text[n] != ' ')
				n--;
			n = n ? n : room;
		}
		line_begin(&line, view);
		add(&line, RED, "%.*s", (int)n, text);
		line_end(&line, picture);
		text += n + (text[n] == ' ');
	} while (*text && ++lines < TROUBLE_LINES);
}

static void draw_header(const struct ctl_top_view *view, struct picture *picture)
{
	const json_t *daemon = json_object_get(view->now, "daemon");
	const json_t *services = json_object_get(view->now, "services"), *service;
	_cleanup_free_ char *uptime = ctl_duration(ctl_number(daemon, "uptime"));
	size_t i, workers = 0;
	struct line line;

	json_array_foreach(services, i, service) workers += ctl_count_workers(service, NULL);
	line_begin(&line, view);
	if (view->now)
		add(&line, BOLD, "reuseportd %s, up %s, services: %zu, workers: %zu",
			ctl_string(daemon, "version"), uptime ? uptime : "-",
			json_array_size(services), workers);
	else
		add(&line, BOLD, "reuseportd");
	line_end(&line, picture);
	draw_trouble(view, picture);
}

static void draw_footer(const struct ctl_top_view *view, size_t first, size_t shown, size_t all,
	struct picture *picture)
{
	static const char *const orders[] = {"slot", "packets", "new", "queue"};
	struct line line;

	line_begin(&line, view);
	add(&line, GREY, "q quit  ");
	if (shown < all)
		add(&line, GREY, "up/down %zu-%zu of %zu  ", first + 1, first + shown, all);
	add(&line, GREY, "s sort: %s  every %gs", orders[view->order], view->delay);
	line_end(&line, picture);
}

static void write_lines(FILE *file, const struct ctl_top_view *view, char *const *lines, size_t n)
{
	for (size_t i = 0; i < n; i++)
		fprintf(file, view->screen ? "%s\033[K\r\n" : "%s\n", lines[i]);
}

/* From the top left corner on; the last line gets no line break, or the rest would move up. */
static void write_screen(FILE *file, const struct ctl_top_view *view, const struct picture *head,
	const struct picture *body, const struct picture *foot)
{
	size_t rows = (size_t)MAX(view->rows, 1), n_head = MIN(head->n, MAX(rows, 2) - 1);
	size_t room = rows - MIN(rows, n_head + 1), n = MIN(room, body->n - (size_t)view->offset);

	fputs("\033[H", file);
	if (rows == 1) {
		fprintf(file, "%s\033[J", head->lines[0]);
		return;
	}
	write_lines(file, view, head->lines, n_head);
	write_lines(file, view, body->lines + view->offset, n);
	for (; n < room; n++)
		fputs("\033[K\r\n", file);
	fprintf(file, "%s\033[K\033[J", foot->lines[0]);
}

void ctl_top_draw(FILE *file, struct ctl_top_view *view)
{
	_cleanup_(picture_done) struct picture head = {0}, body = {0}, foot = {0};
	const json_t *service;
	size_t i, room;

	draw_header(view, &head);
	json_array_foreach(json_object_get(view->now, "services"), i, service)
		draw_service(view, service, &body);
	if (!view->screen) {
		write_lines(file, view, head.lines, head.n);
		write_lines(file, view, body.lines, body.n);
		return;
	}
	room = (size_t)MAX(view->rows - 1 - (int)head.n, 0);
	view->lowest = (int)(body.n - MIN(room, body.n));
	view->offset = MAX(MIN(view->offset, view->lowest), 0);
	draw_footer(view, (size_t)view->offset, MIN(room, body.n), body.n, &foot);
	if (head.n && foot.n)
		write_screen(file, view, &head, &body, &foot);
}
