/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What top shows: two replies to Status and the time between them, as lines of text.
 */
#pragma once

#include <stdbool.h>
#include <stdio.h>

#include <jansson.h>

enum ctl_top_order {
	TOP_BY_SLOT,
	TOP_BY_PACKETS,
	TOP_BY_NEW,
	TOP_BY_QUEUE,
	TOP_ORDERS,
};

struct ctl_top_view {
	const json_t *before, *now; /* NULL: none yet; without before there are no rates */
	double seconds;             /* between the two */
	const char *trouble;        /* why there is nothing newer, NULL: there is */
	double delay;
	enum ctl_top_order order;
	int columns, rows; /* rows 0: as many as it takes */
	int offset;        /* how many lines of the body are above the screen */
	int lowest;        /* how many can be; ctl_top_draw() says so */
	bool colour, utf8;
	bool screen; /* written over what was there, with a line about keys; else text */
};

/*
 * Writes it to file. No line is longer than view->columns. view->offset is brought into the range
 * that there is.
 */
void ctl_top_draw(FILE *file, struct ctl_top_view *view);
