/* SPDX-License-Identifier: BSD-2-Clause */
/* The rules of a share, from the configurations of its listeners: classify/share-rules.h. */
#pragma once

#include "bpf/share_layout.h"
#include "classify/share-rules.h"
#include "daemon/config.h"

/*
 * configs: by number of the service, NULL where there is none. What config-share.c lets pass is
 * without contradictions; should two have one name and protocol all the same, the lower number has
 * it. *ret is one piece of memory of ret->size octets (free()). -ENOMEM; -E2BIG: more than
 * SHARE_RULES_OCTETS_MAX.
 */
int share_rules_compile(
	struct share_rules **ret, const struct listener_config *const configs[SHARE_MAX]);
