/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Tables: cells come row by row, and are printed once all widths are known.
 */
#include "tools/ctl-table.h"

#include <stdio.h>
#include <string.h>

#include "common/util.h"
#include "tools/ctl-field.h"

void ctl_add_column(struct ctl_table *table, const char *title, bool right)
{
	if (table->n_columns < CTL_COLUMNS_MAX)
		table->columns[table->n_columns++] =
			(struct ctl_column){.title = title, .right = right};
}

void ctl_add_optional_column(struct ctl_table *table, const char *title)
{
	if (table->n_columns < CTL_COLUMNS_MAX)
		table->columns[table->n_columns++] =
			(struct ctl_column){.title = title, .right = true, .optional = true};
}

/* What others named must not steer the terminal: a "?" for each control, C1 has two octets. */
static void make_plain(char *text)
{
	unsigned char *to = (unsigned char *)text;

	if (!text || ctl_is_plain(text))
		return;
	for (const unsigned char *from = to; *from; from++) {
		bool c1 = *from == 0xc2 && from[1] >= 0x80 && from[1] < 0xa0;

		*to++ = c1 || *from < ' ' || *from == 0x7f ? '?' : *from;
		from += c1;
	}
	*to = '\0';
}

void ctl_add_cell(struct ctl_table *table, char *text, const char *colour)
{
	struct ctl_cell *cells =
		reallocarray(table->cells, table->n_cells + 1, sizeof(struct ctl_cell));

	if (!cells) {
		free(text);
		return;
	}
	make_plain(text);
	table->cells = cells;
	table->cells[table->n_cells++] = (struct ctl_cell){.text = text, .colour = colour};
}

void ctl_add_number(struct ctl_table *table, const json_t *object, const char *key,
	const char *colour_unless_zero)
{
	json_int_t number = ctl_number(object, key);

	ctl_add_cell(table,
		ctl_has(object, key) ? ctl_format("%" JSON_INTEGER_FORMAT, number) : NULL,
		number ? colour_unless_zero : NULL);
}

static const char *cell_text(const struct ctl_cell *cell)
{
	return cell->text ? cell->text : "-";
}

size_t ctl_width(const char *text)
{
	size_t n = 0;

	for (; *text; text++)
		n += ((unsigned char)*text & 0xc0) != 0x80;
	return n;
}

static void print_cell(const struct ctl_table *table, size_t column, const char *text, size_t width,
	const char *colour)
{
	size_t pad = width - ctl_width(text);
	bool last = column + 1 == table->n_columns;
	bool right = table->columns[column].right;

	printf("%*s", column ? 2 : table->indent, "");
	if (right)
		printf("%*s", (int)pad, "");
	if (colour && table->colour)
		printf("%s%s" COLOUR_END, colour, text);
	else
		fputs(text, stdout);
	if (!right && !last)
		printf("%*s", (int)pad, "");
	if (last)
		putchar('\n');
}

/* Whether a column has nothing but "0" and "-". */
static bool is_empty(const struct ctl_table *table, size_t column)
{
	for (size_t i = column; i < table->n_cells; i += table->n_columns) {
		const char *text = cell_text(&table->cells[i]);

		if (strcmp(text, "0") != 0 && strcmp(text, "-") != 0)
			return false;
	}
	return true;
}

static void measure(const struct ctl_table *table, size_t *widths)
{
	for (size_t i = 0; i < table->n_columns; i++)
		widths[i] = table->legend ? strlen(table->columns[i].title) : 0;
	for (size_t i = 0; i < table->n_cells; i++) {
		size_t *width = &widths[i % table->n_columns];

		*width = MAX(*width, ctl_width(cell_text(&table->cells[i])));
	}
}

static void leave_out(struct ctl_table *table, size_t column)
{
	size_t n = 0;

	for (size_t i = 0; i < table->n_cells; i++)
		if (i % table->n_columns == column)
			free(table->cells[i].text);
		else
			table->cells[n++] = table->cells[i];
	table->n_cells = n;
	memmove(&table->columns[column], &table->columns[column + 1],
		(table->n_columns - column - 1) * sizeof(*table->columns));
	table->n_columns--;
}

/* Leaves columns out, the last ones first, until the rest fits or has something to say. */
static void fit(struct ctl_table *table, size_t *widths)
{
	size_t sum = (size_t)table->indent;

	measure(table, widths);
	for (size_t i = 0; i < table->n_columns; i++)
		sum += widths[i] + (i ? 2 : 0);
	for (size_t i = table->n_columns; i-- > 0 && table->room && sum > (size_t)table->room;)
		if (table->columns[i].optional && is_empty(table, i)) {
			sum -= widths[i] + 2;
			leave_out(table, i);
		}
	measure(table, widths);
}

void ctl_print_table(struct ctl_table *table)
{
	size_t widths[CTL_COLUMNS_MAX] = {0};

	fit(table, widths);
	for (size_t i = 0; table->legend && i < table->n_columns; i++)
		print_cell(table, i, table->columns[i].title, widths[i], GREY);
	for (size_t i = 0; i < table->n_cells; i++) {
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
