/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Shares below the services of status: a line each, with what is no service's: the classifier, and
 * what nobody read.
 */
#include "tools/ctl-share.h"

#include <stdio.h>
#include <string.h>

#include "tools/ctl-field.h"
#include "tools/ctl-table.h"

bool ctl_share_has(const json_t *share, const char *name)
{
	const json_t *service;
	size_t i;

	if (!name)
		return true;
	json_array_foreach(json_object_get(share, "services"), i,
		service) if (json_is_string(service) &&
			     strcmp(json_string_value(service), name) == 0) return true;
	return false;
}

static void add_classifier(struct ctl_table *table, const json_t *classifier)
{
	json_int_t pid = ctl_number(classifier, "pid");

	if (!ctl_has(classifier, "pid"))
		ctl_add_cell(table, ctl_format("none"), RED);
	else if (!ctl_is_true(classifier, "follows"))
		ctl_add_cell(table, ctl_format("pid %" JSON_INTEGER_FORMAT " (behind)", pid), RED);
	else
		ctl_add_cell(table, ctl_format("pid %" JSON_INTEGER_FORMAT, pid), GREEN);
}

static void add_share(struct ctl_table *table, const json_t *share)
{
	const json_t *classifier = json_object_get(share, "classifier");

	ctl_add_cell(table, ctl_format("%s", ctl_string(share, "name")), NULL);
	ctl_add_cell(table, ctl_format("quic://%s", ctl_string(share, "address")), NULL);
	ctl_add_cell(table, ctl_format("%s", ctl_string(share, "default")), NULL);
	add_classifier(table, classifier);
	ctl_add_number(table, share, "to_classifier", NULL);
	ctl_add_number(table, share, "unread", YELLOW);
	ctl_add_number(table, share, "invalid", NULL);
	ctl_add_number(table, classifier, "lost", RED);
}

void ctl_print_shares(const struct ctl *ctl, const json_t *status, const char *service)
{
	struct ctl_table table = {.legend = ctl->legend, .colour = ctl->colour};
	const json_t *share;
	size_t i;

	ctl_add_column(&table, "SHARE", false);
	ctl_add_column(&table, "ADDRESS", false);
	ctl_add_column(&table, "DEFAULT", false);
	ctl_add_column(&table, "CLASSIFIER", false);
	ctl_add_column(&table, "READ", true);
	ctl_add_column(&table, "UNREAD", true);
	ctl_add_column(&table, "INVALID", true);
	ctl_add_column(&table, "LOST", true);
	json_array_foreach(json_object_get(status, "shares"), i,
		share) if (ctl_share_has(share, service)) add_share(&table, share);
	if (!table.n_cells)
		return;
	if (ctl->legend)
		putchar('\n');
	ctl_print_table(&table);
}
