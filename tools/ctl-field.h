/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Fields of the daemon's replies, and how they read. A daemon that is older sends fewer of them:
 * what is absent counts as null.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

#include "common/util.h"

/* Whether text may go to a terminal as it is; what others named must not steer it. */
bool ctl_is_plain(const char *text);

/* "-" when there is no text. */
const char *ctl_string(const json_t *object, const char *key);

/* The same for what goes to a terminal as it is: "?" when it may not. */
const char *ctl_plain(const json_t *object, const char *key);

/* 0 when there is no number. */
json_int_t ctl_number(const json_t *object, const char *key);

/* Whether the field is there and not null. */
bool ctl_has(const json_t *object, const char *key);
bool ctl_is_true(const json_t *object, const char *key);
bool ctl_is(const json_t *object, const char *key, const char *text);

/* As asprintf(3); NULL without memory. */
char *ctl_format(const char *format, ...) _printf_(1, 2);

/* "4d 3h", "12min 5s", "0s": two units say enough. free(). */
char *ctl_duration(int64_t usec);

/* Octets or things a second in at most 5 characters: "0", "999", "12.3k", "4.5M". free(). */
char *ctl_short_number(double number);

/* The name of a user, or the number. free(). */
char *ctl_user_name(json_int_t uid);

/* Of the clock, microseconds since the epoch. */
int64_t ctl_now_usec(void);

/* Where the clock stands that only goes forward, milliseconds. */
int64_t ctl_now_msec(void);
