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
		table->columns[table->n_columns++] = (struct ctl_column){title, right};
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

void ctl_print_table(struct ctl_table *table)
{
	size_t n_rows = table->n_cells / table->n_columns, widths[CTL_COLUMNS_MAX] = {0};

	for (size_t i = 0; i < table->n_columns; i++)
		if (table->legend)
			widths[i] = strlen(table->columns[i].title);
	for (size_t i = 0; i < n_rows * table->n_columns; i++) {
		size_t *width = &widths[i % table->n_columns];

		*width = MAX(*width, ctl_width(cell_text(&table->cells[i])));
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
