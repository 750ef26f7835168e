/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * No close(2) of ours waits for another's sake. A client can send a TCP socket with SO_LINGER and
 * data that nobody reads, and close its own copy: the last close is then the daemon's, wherever it
 * happens, by close() or inside a recvmsg() that has no use for it, and waits for up to 18 hours
 * (sock_setsockopt: l_linger; Linux 6.18). Who still has a copy can set SO_LINGER at any moment,
 * so there is no looking first. But each of these waits ends when a signal is pending
 * (sk_stream_wait_close), and then the socket is closed as if it had no SO_LINGER.
 */
#pragma once

#include <stdbool.h>

struct sd_event;

/* To be called once, before linger_loop(). */
void linger_init(void);
/*
 * sd_event_loop(), but a signal ends whatever waits while an event is dispatched. What can be
 * started again after it, the kernel does (SA_RESTART).
 */
int linger_loop(struct sd_event *event);
/* Before execve(2), which timers survive, and before what a signal must not interrupt; until the
 * next event. */
void linger_stop(void);
