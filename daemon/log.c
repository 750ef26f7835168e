/* SPDX-License-Identifier: BSD-2-Clause */
#include "daemon/log.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <systemd/sd-journal.h>

#include "common/format.h"

#define FIELDS_MAX 9

/* $JOURNAL_STREAM alone says nothing about a standard error that was redirected since
 * (systemd.exec(5)). */
static bool stderr_is_journal(void)
{
	const char *stream = getenv("JOURNAL_STREAM");
	unsigned long long device, inode;
	struct stat status;

	return stream && sscanf(stream, "%llu:%llu", &device, &inode) == 2 &&
	       fstat(STDERR_FILENO, &status) == 0 && status.st_dev == device &&
	       status.st_ino == inode;
}

struct fields {
	struct iovec parts[FIELDS_MAX];
	int n;
};

static void add_field(struct fields *fields, const char *name, const char *value)
{
	char *text = NULL;
	int length;

	if (!value || fields->n == FIELDS_MAX)
		return;
	length = asprintf(&text, "%s=%s", name, value);
	if (length >= 0)
		fields->parts[fields->n++] =
			(struct iovec){.iov_base = text, .iov_len = (size_t)length};
}

/* sd_journal_send() would add the place in this file, and needs a format for each set of fields. */
static int send_entry(
	int priority, const char *message_id, const struct log_about *about, const char *message)
{
	struct fields fields = {.n = 0};
	char number[16];
	int result;

	add_field(&fields, "MESSAGE", message);
	snprintf(number, sizeof(number), "%d", priority);
	add_field(&fields, "PRIORITY", number);
	add_field(&fields, "SYSLOG_IDENTIFIER", "reuseportd");
	add_field(&fields, "MESSAGE_ID", message_id);
	if (about) {
		add_field(&fields, "SERVICE", about->service);
		add_field(&fields, "LISTENER", about->listener);
		add_field(&fields, "INSTANCE", about->instance);
		if (about->slot) {
			snprintf(number, sizeof(number), "%u", *about->slot);
			add_field(&fields, "SLOT", number);
		}
		/* The journal's own name for the process that an entry is about
		 * (systemd.journal-fields(7)). */
		if (about->pid > 0) {
			snprintf(number, sizeof(number), "%d", (int)about->pid);
			add_field(&fields, "OBJECT_PID", number);
		}
	}
	result = sd_journal_sendv(fields.parts, fields.n);
	for (int i = 0; i < fields.n; i++)
		free(fields.parts[i].iov_base);
	return result;
}

/* priority -1: none, else before each line, as the journal's stream has it (sd-daemon(3)). */
static void write_lines(int priority, const char *message)
{
	while (true) {
		int length = (int)strcspn(message, "\n");

		if (priority >= 0)
			fprintf(stderr, "<%d>", priority);
		fprintf(stderr, "%.*s\n", length, message);
		if (!message[length])
			return;
		message += length + 1;
	}
}

void log_entry(int priority, const char *message_id, const struct log_about *about,
	const char *format, ...)
{
	bool journal = stderr_is_journal();
	_cleanup_free_ char *message = NULL;
	va_list arguments;

	va_start(arguments, format);
	message = format_list(format, arguments);
	va_end(arguments);
	if (!message)
		return;
	if (journal && message_id && send_entry(priority, message_id, about, message) >= 0)
		return;
	write_lines(journal ? priority : -1, message);
}
