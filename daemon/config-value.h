/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Values of the configuration from their text. Each function returns 0, -EINVAL for a text that is
 * no such value, or -ERANGE for one that is too large; outputs are untouched on failure.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

/* 1 to 63 letters, digits and _.@- (and : where colon is set), so also a safe name of a file that
 * begins with something else or ends in something else. */
bool name_valid(const char *name, bool colon);
/* Decimal digits only, or 0x and hexadecimal ones. */
int parse_unsigned(const char *text, uint64_t max, uint64_t *ret);
/* Microseconds. "30", "1.5s", "1h 30min", as in systemd.time(7); "infinity" is 0. */
int parse_time(const char *text, uint64_t *ret);
/* Octets: a number, which K, M or G may follow. */
int parse_size(const char *text, uint64_t max, uint64_t *ret);
/* PORT, A.B.C.D:PORT or [IPV6]:PORT, as in systemd.socket(5). *ret_text: the address in the one
 * form in which it is shown, to free(). Also -ENOMEM. */
int parse_address(const char *text, struct sockaddr_storage *ret_address, socklen_t *ret_length,
	char **ret_text);
