/* SPDX-License-Identifier: BSD-2-Clause */
#include "daemon/linger.h"

#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/time.h>
#include <systemd/sd-event.h>

/* What a user makes the daemon wait is charged to the user (account.c), so this is no one else's
 * loss; it only has to be more than what closing a socket takes. */
#define WAIT_USEC 10000

static void nothing(int signal)
{
}

void linger_init(void)
{
	const struct sigaction action = {.sa_handler = nothing, .sa_flags = SA_RESTART};

	sigaction(SIGALRM, &action, NULL);
}

static void set_timer(suseconds_t usec)
{
	const struct itimerval timer = {.it_value.tv_usec = usec, .it_interval.tv_usec = usec};

	setitimer(ITIMER_REAL, &timer, NULL);
}

void linger_stop(void)
{
	set_timer(0);
}

int linger_loop(struct sd_event *event)
{
	int result, code = 0;

	while (sd_event_get_state(event) != SD_EVENT_FINISHED) {
		result = sd_event_prepare(event);
		if (result == 0)
			result = sd_event_wait(event, UINT64_MAX);
		if (result > 0) {
			set_timer(WAIT_USEC);
			result = sd_event_dispatch(event);
			linger_stop();
		}
		if (result < 0)
			return result;
	}
	sd_event_get_exit_code(event, &code);
	return code;
}
