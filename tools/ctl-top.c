/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * top: what comes in now, and who gets it, until somebody presses q. One loop waits for keys,
 * signals, the daemon and the clock, so that a daemon that hangs or restarts never keeps the
 * terminal. Escape codes are those that every terminal in use knows (ECMA-48, and xterm's other
 * screen); the terminal is put back on the one way out.
 */
#include "tools/ctl-top.h"

#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>
#include <termios.h>

#include "tools/ctl-field.h"
#include "tools/ctl-terminal.h"
#include "tools/ctl.h"

#define WHAT "show what comes in"
#define CONNECT_MSEC 100
#define ANSWER_MSEC 5000

#define SCREEN_OTHER "\033[?1049h\033[?25l"
#define SCREEN_BACK "\033[?25h\033[?1049l"

struct top {
	const struct ctl *ctl;
	const char *service;
	struct ctl_top_view view;
	json_t *before, *now;
	int64_t before_msec, now_msec;
	struct ctl_connection connection;
	int64_t asked; /* when the call was sent, 0: there is none */
	int64_t next;  /* when to ask again */
	char *trouble;
	int result; /* of the last call */
	long left;  /* iterations, -1: no end */
	int signals;
	bool keys; /* stdin is a terminal */
	bool screen_is_other;
	struct termios terminal; /* as it was */
	bool done;
};

static void set_trouble(struct top *top, char *text)
{
	free(top->trouble);
	top->trouble = text;
}

static void draw(struct top *top)
{
	_cleanup_free_ char *text = NULL;
	size_t size;
	FILE *file = open_memstream(&text, &size);

	if (!file)
		return;
	if (top->view.screen)
		ctl_terminal_size(STDOUT_FILENO, &top->view.columns, &top->view.rows);
	top->view.before = top->before;
	top->view.now = top->now;
	top->view.seconds = (double)(top->now_msec - top->before_msec) / 1000;
	top->view.trouble = top->trouble;
	ctl_top_draw(file, &top->view);
	if (fclose(file) != 0)
		return;
	/* In one piece: half a picture flickers. */
	fwrite(text, 1, size, stdout);
	if (fflush(stdout) != 0)
		top->done = true;
}

static void ask(struct top *top)
{
	char *error = NULL;
	json_t *parameters = json_object();

	if (top->service)
		json_object_set_new(parameters, "service", json_string(top->service));
	top->result = ctl_begin(top->ctl->socket, "Status", parameters, false, CONNECT_MSEC, WHAT,
		&top->connection, &error);
	if (top->result == CTL_OK)
		top->asked = ctl_now_msec();
	else
		set_trouble(top, error);
}

/* The call is over; an iteration is a picture with rates, or one that says why there are none. */
static void answered(struct top *top)
{
	ctl_end(&top->connection);
	top->asked = 0;
	if (!top->view.screen && top->result == CTL_OK && !top->before)
		return;
	draw(top);
	if (top->left > 0 && --top->left == 0)
		top->done = true;
}

static void take_answer(struct top *top)
{
	json_t *message, *parameters = NULL;
	char *error = NULL;
	int result = ctl_next(&top->connection, &message);

	if (result == 0 && ctl_now_msec() - top->asked < ANSWER_MSEC)
		return;
	if (result == 0)
		result = -ETIMEDOUT;
	if (result < 0) {
		top->result = ctl_lost(top->ctl->socket, WHAT, result, &error);
	} else {
		top->result = ctl_judge(top->ctl->socket, WHAT, message, &parameters, &error);
		json_decref(message);
	}
	set_trouble(top, error);
	if (parameters) {
		json_decref(top->before);
		top->before = top->now;
		top->before_msec = top->now_msec;
		top->now = parameters;
		top->now_msec = ctl_now_msec();
	}
	answered(top);
}

static void enter_screen(struct top *top)
{
	struct termios raw;

	if (!top->view.screen || top->screen_is_other)
		return;
	if (top->keys) {
		raw = top->terminal;
		raw.c_lflag &= ~(tcflag_t)(ICANON | ECHO); /* signals stay */
		raw.c_cc[VMIN] = 0;
		raw.c_cc[VTIME] = 0;
		tcsetattr(STDIN_FILENO, TCSANOW, &raw);
	}
	fputs(SCREEN_OTHER, stdout);
	fflush(stdout);
	top->screen_is_other = true;
}

static void leave_screen(struct top *top)
{
	if (!top->screen_is_other)
		return;
	fputs(SCREEN_BACK, stdout);
	fflush(stdout);
	if (top->keys)
		tcsetattr(STDIN_FILENO, TCSADRAIN, &top->terminal);
	top->screen_is_other = false;
}

static void take_signal(struct top *top)
{
	struct signalfd_siginfo info;

	if (read(top->signals, &info, sizeof(info)) != sizeof(info))
		return;
	switch (info.ssi_signo) {
	case SIGWINCH:
		draw(top);
		break;
	case SIGTSTP:
		leave_screen(top);
		raise(SIGSTOP); /* SIGTSTP itself is blocked */
		enter_screen(top);
		draw(top);
		break;
	case SIGCONT:
		break;
	default:
		top->done = true;
	}
}

/* What a key does; those with a name send a sequence of octets (ECMA-48, xterm). */
static void take_key(struct top *top, const char *key)
{
	int page = MAX(top->view.rows - 4, 1);
	static const struct {
		const char *key;
		int lines; /* to go, in pages where page */
		bool page;
	} moves[] = {{"k", -1, false}, {"j", 1, false}, {"\033[A", -1, false}, {"\033[B", 1, false},
		{"\033OA", -1, false}, {"\033OB", 1, false}, {"\033[5~", -1, true},
		{"\033[6~", 1, true}, {"g", -1000000, false}, {"G", 1000000, false},
		{"\033[H", -1000000, false}, {"\033[F", 1000000, false}};

	if (strcmp(key, "q") == 0 || strcmp(key, "Q") == 0 || strcmp(key, "\004") == 0)
		top->done = true;
	else if (strcmp(key, "s") == 0)
		top->view.order = (top->view.order + 1) % TOP_ORDERS;
	for (size_t i = 0; i < ARRAY_SIZE(moves); i++)
		if (strcmp(key, moves[i].key) == 0)
			top->view.offset += moves[i].lines * (moves[i].page ? page : 1);
	top->view.offset = MAX(MIN(top->view.offset, top->view.lowest), 0);
}

static void take_keys(struct top *top)
{
	char octets[64];
	ssize_t n = read(STDIN_FILENO, octets, sizeof(octets));

	if (n <= 0) {
		/* The terminal has gone; SIGHUP comes as well. */
		top->done |= n == 0 || errno != EINTR;
		return;
	}
	for (ssize_t i = 0; i < n && !top->done;) {
		char key[8] = {octets[i++]};
		size_t length = 1;

		if (*key == '\033')
			while (i < n && length < sizeof(key) - 1 && octets[i] != '\033') {
				key[length++] = octets[i++];
				if (length > 2 &&
					(key[length - 1] == '~' || key[length - 1] >= 'A'))
					break;
			}
		take_key(top, key);
	}
	if (!top->done)
		draw(top);
}

static void wait_and_serve(struct top *top)
{
	struct pollfd wait[] = {{.fd = top->signals, .events = POLLIN},
		{.fd = top->keys && top->view.screen ? STDIN_FILENO : -1, .events = POLLIN},
		{.fd = top->asked ? top->connection.fd : -1, .events = POLLIN}};
	int64_t end = top->asked ? top->asked + ANSWER_MSEC : top->next;

	poll(wait, ARRAY_SIZE(wait), (int)MAX(end - ctl_now_msec(), 0));
	if (wait[0].revents)
		take_signal(top);
	if (wait[1].revents && !top->done)
		take_keys(top);
	if (top->asked && !top->done)
		take_answer(top);
}

static void run(struct top *top)
{
	int64_t delay = (int64_t)(top->view.delay * 1000);

	top->next = ctl_now_msec();
	while (!top->done) {
		int64_t now = ctl_now_msec();

		if (!top->asked && now >= top->next) {
			top->next = MAX(top->next + delay, now);
			ask(top);
			if (!top->asked)
				answered(top);
			continue;
		}
		wait_and_serve(top);
	}
}

/* From minimum to maximum; CTL_USAGE after a message. */
static int read_option(const struct ctl *ctl, enum ctl_option_id id, double minimum, double maximum,
	double *number)
{
	const char *text = ctl_get(ctl, id);
	char *end;

	if (!text)
		return CTL_OK;
	*number = strtod(text, &end);
	if (*text && !*end && strspn(text, "0123456789.") == strlen(text) && *number >= minimum &&
		*number <= maximum)
		return CTL_OK;
	ctl_error("--%s is a number from %g to %g, not %s (reuseportctl --help)",
		ctl_options[id].name, minimum, maximum, text);
	return CTL_USAGE;
}

static int read_options(struct top *top)
{
	const struct ctl *ctl = top->ctl;
	double left = 0;

	if (ctl->json != CTL_JSON_OFF)
		return ctl_usage("top has no JSON; status has", NULL);
	if (read_option(ctl, OPTION_DELAY, 0.1, 3600, &top->view.delay) != CTL_OK ||
		read_option(ctl, OPTION_ITERATIONS, 1, 1e9, &left) != CTL_OK)
		return CTL_USAGE;
	top->left = left >= 1 ? (long)left : -1;
	if (ctl_get(ctl, OPTION_ONCE))
		top->left = 1;
	top->view.screen =
		isatty(STDOUT_FILENO) && !ctl_get(ctl, OPTION_BATCH) && !ctl_get(ctl, OPTION_ONCE);
	return CTL_OK;
}

static void catch_signals(struct top *top, sigset_t *ret_before)
{
	static const int caught[] = {SIGINT, SIGTERM, SIGQUIT, SIGHUP, SIGWINCH, SIGTSTP, SIGCONT};
	sigset_t set;

	sigemptyset(&set);
	for (size_t i = 0; i < ARRAY_SIZE(caught); i++)
		sigaddset(&set, caught[i]);
	sigprocmask(SIG_BLOCK, &set, ret_before);
	top->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

int ctl_run_top(const struct ctl *ctl, int argc, char **argv)
{
	struct top top = {.ctl = ctl,
		.service = argc ? argv[0] : NULL,
		.view = {.delay = 1, .colour = ctl->colour, .utf8 = ctl_is_utf8()},
		.connection = CTL_CONNECTION_INIT,
		.keys = tcgetattr(STDIN_FILENO, &top.terminal) == 0};
	sigset_t before;

	if (read_options(&top) != CTL_OK)
		return CTL_USAGE;
	ctl_terminal_size(STDOUT_FILENO, &top.view.columns, &top.view.rows);
	catch_signals(&top, &before);
	if (top.signals < 0) {
		ctl_error("cannot " WHAT ": no signalfd: %s", strerror(errno));
		return CTL_FAILED;
	}
	enter_screen(&top);
	run(&top);
	leave_screen(&top);
	close(top.signals);
	sigprocmask(SIG_SETMASK, &before, NULL);
	ctl_end(&top.connection);
	json_decref(top.before);
	json_decref(top.now);
	/* What stood on the other screen is gone with it. */
	if (top.result != CTL_OK && top.trouble)
		ctl_error("%s", top.trouble);
	set_trouble(&top, NULL);
	return top.result;
}
