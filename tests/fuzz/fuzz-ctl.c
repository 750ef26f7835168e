/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Any JSON as the daemon's reply to Status and to Explain: what reuseportctl prints of it has no
 * octet that steers a terminal, whatever others named their instances.
 */
#include <stdio.h>
#include <stdlib.h>

#include "tools/ctl-explain.h"
#include "tools/ctl-status.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(const char *text, size_t size)
{
	for (size_t i = 0; i < size; i++)
		if (((unsigned char)text[i] < ' ' && text[i] != '\n') || text[i] == 0x7f)
			abort();
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
	ctl_print_explanation(reply);
	fclose(stdout);
	stdout = before;
	json_decref(reply);
	check(text, length);
	free(text);
	return 0;
}
