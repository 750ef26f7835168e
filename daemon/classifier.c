/* SPDX-License-Identifier: BSD-2-Clause */
#include "daemon/classifier.h"

#include "common/util.h"
#include "daemon/manager.h"
#include "daemon/share.h"

struct classifier {
	struct share *share;
};

int classifier_new(struct classifier **ret, struct share *share)
{
	struct classifier *classifier = calloc(1, sizeof(*classifier));

	if (!classifier)
		return -ENOMEM;
	classifier->share = share;
	*ret = classifier;
	return 0;
}

struct classifier *classifier_free(struct classifier *classifier)
{
	free(classifier);
	return NULL;
}

void classifier_set_rules(struct classifier *classifier, const struct share_rules *rules)
{
}

void classifier_tick(struct classifier *classifier)
{
}

int classifier_pid(const struct classifier *classifier)
{
	return 0;
}

unsigned classifier_starts(const struct classifier *classifier)
{
	return 0;
}
