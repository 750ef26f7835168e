/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The habits of systemd's tools on a terminal (systemctl(1), section Environment), so that nobody
 * has to learn others.
 */
#include "tools/ctl-terminal.h"

#include <fcntl.h>
#include <langinfo.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/util.h"

#define PAGER_WORDS_MAX 16

/* The one state that outlives a function here, as stdout does that it stands behind. */
static pid_t pager;

bool ctl_colour_wanted(void)
{
	const char *wanted = getenv("SYSTEMD_COLORS"), *no_colour = getenv("NO_COLOR");
	const char *terminal = getenv("TERM");

	if (wanted && *wanted)
		return strcmp(wanted, "0") != 0 && strcmp(wanted, "no") != 0 &&
		       strcmp(wanted, "false") != 0;
	return isatty(STDOUT_FILENO) && !(no_colour && *no_colour) && terminal &&
	       strcmp(terminal, "dumb") != 0;
}

bool ctl_is_utf8(void)
{
	return strcmp(nl_langinfo(CODESET), "UTF-8") == 0;
}

const char *ctl_dot(void)
{
	return ctl_is_utf8() ? "\xe2\x97\x8f" : "*";
}

static int size_of(const char *variable, int standard)
{
	const char *text = getenv(variable);
	int number = text ? atoi(text) : 0;

	return number > 0 && number < 10000 ? number : standard;
}

void ctl_terminal_size(int fd, int *ret_columns, int *ret_rows)
{
	struct winsize size = {0};

	if (ioctl(fd, TIOCGWINSZ, &size) < 0)
		size = (struct winsize){0};
	*ret_columns = size.ws_col ? size.ws_col : size_of("COLUMNS", 80);
	*ret_rows = size.ws_row ? size.ws_row : size_of("LINES", 24);
}

/* Splits at blanks and runs it; returns when that can't be done. */
static void run_pager(const char *command)
{
	char *words[PAGER_WORDS_MAX + 1] = {0}, *rest = strdup(command), *position;

	if (!rest)
		return;
	words[0] = strtok_r(rest, " \t", &position);
	for (size_t n = 1; words[0] && n < PAGER_WORDS_MAX; n++) {
		words[n] = strtok_r(NULL, " \t", &position);
		if (!words[n])
			break;
	}
	if (words[0])
		execvp(words[0], words);
	free(rest);
}

static void be_pager(const char *wanted, int input)
{
	const char *less = getenv("SYSTEMD_LESS"), *charset = getenv("SYSTEMD_LESSCHARSET");
	char octets[4096];
	ssize_t n;

	dup2(input, STDIN_FILENO);
	close(input);
	prctl(PR_SET_PDEATHSIG, SIGTERM);
	setenv("LESS", less ? less : "FRSXMK", 1);
	if (charset)
		setenv("LESSCHARSET", charset, 1);
	else if (ctl_is_utf8())
		setenv("LESSCHARSET", "utf-8", 1);
	/* Whoever may run reuseportctl by sudo gets no shell out of less for it. */
	if (!getenv("SYSTEMD_PAGERSECURE") || strcmp(getenv("SYSTEMD_PAGERSECURE"), "0") != 0)
		setenv("LESSSECURE", "1", 1);
	if (wanted)
		run_pager(wanted);
	run_pager("less");
	run_pager("more");
	while ((n = read(STDIN_FILENO, octets, sizeof(octets))) > 0)
		if (write(STDOUT_FILENO, octets, (size_t)n) < 0)
			break;
	_exit(0);
}

void ctl_pager_open(void)
{
	const char *wanted = getenv("SYSTEMD_PAGER") ? getenv("SYSTEMD_PAGER") : getenv("PAGER");
	const char *terminal = getenv("TERM");
	int ends[2];

	if (!isatty(STDOUT_FILENO) || !terminal || strcmp(terminal, "dumb") == 0)
		return;
	if (wanted && (!*wanted || strcmp(wanted, "cat") == 0))
		return;
	if (pipe2(ends, O_CLOEXEC) < 0)
		return;
	fflush(stdout);
	pager = fork();
	if (pager == 0)
		be_pager(wanted, ends[0]);
	close(ends[0]);
	if (pager > 0) {
		/* Its user may leave before the end; that is no error. */
		signal(SIGPIPE, SIG_IGN);
		dup2(ends[1], STDOUT_FILENO);
	}
	close(ends[1]);
}

bool ctl_pager_is_open(void)
{
	return pager > 0;
}

void ctl_pager_close(void)
{
	if (pager <= 0)
		return;
	fflush(stdout);
	close(STDOUT_FILENO);
	while (waitpid(pager, NULL, 0) < 0 && errno == EINTR)
		;
}
