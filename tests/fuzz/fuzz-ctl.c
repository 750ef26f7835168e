/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Any JSON as the daemon's reply to Status and to Explain: what reuseportctl prints of it, top
 * included, has no octet that steers a terminal, whatever others named their instances, and no line
 * of top is longer than the terminal is wide.
 */
#include <stdio.h>
#include <stdlib.h>

#include "tools/ctl-explain.h"
#include "tools/ctl-share.h"
#include "tools/ctl-status.h"
#include "tools/ctl-top.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(const char *text, size_t size)
{
	const unsigned char *octets = (const unsigned char *)text;

	for (size_t i = 0; i < size; i++)
		if ((octets[i] < ' ' && octets[i] != '\n') || octets[i] == 0x7f ||
			(octets[i] == 0xc2 && octets[i + 1] >= 0x80 && octets[i + 1] < 0xa0))
			abort();
}

/* At a size that the reply itself makes up; text, so without escape codes of its own. */
static void draw_top(const json_t *reply, size_t size)
{
	struct ctl_top_view view = {.before = reply,
		.now = reply,
		.seconds = 1,
		.columns = 1 + (int)(size % 100),
		.order = size % TOP_ORDERS};
	char *text = NULL;
	size_t length = 0, width = 0;
	FILE *file = open_memstream(&text, &length);

	ctl_top_draw(file, &view);
	fclose(file);
	check(text, length);
	for (size_t i = 0; i < length; i++) {
		width += ((unsigned char)text[i] & 0xc0) != 0x80;
		if (text[i] == '\n')
			width = 0;
		if (width > (size_t)view.columns)
			abort();
	}
	free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const struct ctl ctl = {.legend = true, .columns = 80};
	json_t *reply = json_loadb((const char *)data, size, 0, NULL);
	FILE *before = stdout;
	char *text = NULL;
	size_t length = 0;

	if (!json_is_object(reply)) {
		json_decref(reply);
		return 0;
	}
	stdout = open_memstream(&text, &length);
	ctl_print_status(&ctl, reply);
	ctl_print_shares(&ctl, reply, NULL);
	ctl_print_explanation(reply);
	fclose(stdout);
	stdout = before;
	check(text, length);
	draw_top(reply, size);
	json_decref(reply);
	free(text);
	return 0;
}
