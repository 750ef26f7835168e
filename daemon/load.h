/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * How loaded workers say they are, and that new connections follow it.
 *
 * A registration that asks for it (LOAD) gets memory that it shares with the daemon, with a word
 * for each worker, which its server writes whenever it likes, without a system call. Ten times a
 * second the daemon copies those words into the listener maps. The programs never see memory that a
 * server can write: what is in it is a stranger's number, read once and bounded here.
 */
#pragma once

#include "daemon/manager.h"

struct loads;

/* The memory of the registration, made where there is none yet. Returns the descriptor, which stays
 * the registration's, or a negative errno. */
int loads_open(struct registration *registration);
/* What an earlier daemon made; entry 0: nothing. Where that can't be mapped the workers say
 * nothing. */
void loads_resume(struct registration *registration, uint32_t entry);
/* No longer kept. */
void loads_drop(struct registration *registration);
void loads_free(struct loads *loads);
/* Number in the store; 0: none. */
uint32_t loads_entry(const struct loads *loads);

/* What the worker says of itself now, 0 .. 1000; -1: nothing. */
int load_of(const struct worker *worker);
/*
 * Tells the programs. A worker that says nothing counts for as loaded as those that do are on
 * average; where no active one says anything, no load counts.
 */
void service_update_loads(struct service *service);
