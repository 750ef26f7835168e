/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What registration.c and registration-state.c share; manager.h has what the others need.
 */
#pragma once

#include <stdint.h>

struct client;
struct registration;
struct service;
struct worker;

/*
 * Memory for n_workers workers that have no slot yet, with a number of its own; in no list. weight
 * 0: the default. NULL: no memory.
 */
struct registration *registration_allocate(struct service *service, struct client *client,
	const char *instance, uint32_t n_workers, uint32_t weight);
/* Bit i: the socket map has its socket for listener i now. */
uint64_t worker_look_for_sockets(const struct worker *worker);
