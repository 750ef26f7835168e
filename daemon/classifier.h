/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The classifier of a share, seen by the daemon: starts it, gives it what it needs
 * (classify/classifier.h), and starts it again when it has ended or stands still. Meanwhile the
 * program gives what it can't read to the default service.
 */
#pragma once

#include <jansson.h>

struct classifier;
struct manager;
struct share;
struct share_rules;

/* share must outlive it. -ENOMEM; that it can't be started is said in the log and tried again. */
int classifier_new(struct classifier **ret, struct share *share);
/* It ends. NULL is allowed. */
struct classifier *classifier_free(struct classifier *classifier);
/* Other rules. NULL is allowed, and gets them when it is started. */
void classifier_set_rules(struct classifier *classifier, const struct share_rules *rules);
void classifier_tick(struct classifier *classifier);
/* Once a second: whoever has ended and is nobody's, as a classifier or another child of an earlier
 * program of this process. */
void classifier_reap_others(const struct manager *manager);
/* Its process, 0: none now; how often one was started. */
int classifier_pid(const struct classifier *classifier);
unsigned classifier_starts(const struct classifier *classifier);
