/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Waiting until workers that drain have gone.
 */
#pragma once

#include "tools/ctl-worker.h"

/* What --wait and --timeout say: CTL_OK, 0 for no time-out, or CTL_USAGE after a message. */
int ctl_check_wait(const struct ctl *ctl, int64_t *ret_timeout_msec);

/*
 * Until none of the selected workers that drain now is left. drained: the reply to Drain. Returns
 * CTL_OK, CTL_TIMEOUT, CTL_FAILED when one was made active again, or why the daemon can't be asked.
 */
int ctl_wait_drained(const struct ctl *ctl, const struct ctl_selection *selection,
	int64_t timeout_msec, const json_t *drained);
