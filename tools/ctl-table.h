/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A table on stdout: columns as wide as what they hold. Programs read --json instead; nothing here
 * is a contract.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include <jansson.h>

#define CTL_COLUMNS_MAX 24

#define BOLD "\033[1m"
#define GREY "\033[90m"
#define RED "\033[31m"
#define GREEN "\033[32m"
#define YELLOW "\033[33m"
#define BLUE "\033[34m"
#define COLOUR_END "\033[0m"

struct ctl_column {
	const char *title;
	bool right;    /* numbers */
	bool optional; /* left out for want of room when it has nothing but zeros */
};

struct ctl_cell {
	char *text;
	const char *colour; /* NULL: none */
};

/* Zero-initialise, then set indent, legend and colour. */
struct ctl_table {
	struct ctl_column columns[CTL_COLUMNS_MAX];
	size_t n_columns;
	struct ctl_cell *cells;
	size_t n_cells;
	int indent;
	int room;    /* columns of the terminal; 0: as many as it takes */
	bool legend; /* with headings */
	bool colour;
};

void ctl_add_column(struct ctl_table *table, const char *title, bool right);
void ctl_add_optional_column(struct ctl_table *table, const char *title);

/* The next cell, row by row. Steals the text; NULL is "-". Controls in it become "?". */
void ctl_add_cell(struct ctl_table *table, char *text, const char *colour);

/* A number of an object, in a colour unless it is zero; "-" when it is absent. */
void ctl_add_number(struct ctl_table *table, const json_t *object, const char *key,
	const char *colour_unless_zero);

/* Prints the table and frees its cells. */
void ctl_print_table(struct ctl_table *table);

/* Columns that a text takes: characters, not octets of UTF-8. */
size_t ctl_width(const char *text);
