/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What stdout is, and what may be done with it: colours, a pager, characters beyond ASCII.
 */
#pragma once

#include <stdbool.h>

/* On a terminal, unless NO_COLOR or TERM=dumb; $SYSTEMD_COLORS (0, 1) decides where it is set. */
bool ctl_colour_wanted(void);

/* Whether characters such as bars and dots can be shown; setlocale(3) was called. */
bool ctl_is_utf8(void);

/* "●" or "*". */
const char *ctl_dot(void);

/* Columns and rows of the terminal at fd, else $COLUMNS and $LINES, else 80 and 24. */
void ctl_terminal_size(int fd, int *ret_columns, int *ret_rows);

/*
 * On a terminal, lets stdout go to $SYSTEMD_PAGER, $PAGER, less or more, the first that is there;
 * to none with an empty value or "cat". Output is as it was where that does not work.
 */
void ctl_pager_open(void);

/* Whether there is one. */
bool ctl_pager_is_open(void);

/* Waits until its user has read enough. */
void ctl_pager_close(void);
