/* SPDX-License-Identifier: BSD-2-Clause */
#include "daemon/privileges.h"

#include <grp.h>
#include <pwd.h>
#include <sys/capability.h>
#include <sys/prctl.h>

#include "common/util.h"

static void free_capabilities(cap_t *capabilities)
{
	if (*capabilities)
		cap_free(*capabilities);
}

static int set_capabilities(unsigned wanted)
{
	cap_value_t kept[5] = {CAP_BPF, CAP_NET_BIND_SERVICE};
	int n_kept = 2;
	_cleanup_(free_capabilities) cap_t capabilities = cap_init();

	if (wanted & PRIVILEGE_ADOPT)
		kept[n_kept++] = CAP_CHOWN;
	/* Where there is one: both work without, in part. */
	if (wanted & (PRIVILEGE_ADOPT | PRIVILEGE_SHARE) && privileges_may(CAP_NET_RAW))
		kept[n_kept++] = CAP_NET_RAW;
	if (wanted & PRIVILEGE_NET_ADMIN)
		kept[n_kept++] = CAP_NET_ADMIN;
	if (!capabilities || cap_set_flag(capabilities, CAP_PERMITTED, n_kept, kept, CAP_SET) < 0 ||
		cap_set_flag(capabilities, CAP_EFFECTIVE, n_kept, kept, CAP_SET) < 0 ||
		cap_set_proc(capabilities) < 0)
		return -errno;
	return 0;
}

static bool is_permitted(cap_t capabilities, cap_value_t capability)
{
	cap_flag_value_t granted = CAP_CLEAR;

	return capabilities &&
	       cap_get_flag(capabilities, capability, CAP_PERMITTED, &granted) == 0 &&
	       granted == CAP_SET;
}

bool privileges_may(int capability)
{
	_cleanup_(free_capabilities) cap_t capabilities = cap_get_proc();

	return is_permitted(capabilities, capability);
}

static void set_effective(cap_value_t capability, bool on)
{
	_cleanup_(free_capabilities) cap_t capabilities = cap_get_proc();

	if (!is_permitted(capabilities, capability))
		return;
	if (cap_set_flag(capabilities, CAP_EFFECTIVE, 1, &capability, on ? CAP_SET : CAP_CLEAR) ==
		0)
		cap_set_proc(capabilities);
}

void privileges_set_perfmon(bool on)
{
	set_effective(CAP_PERFMON, on);
}

void privileges_set_chown(bool on)
{
	set_effective(CAP_CHOWN, on);
}

void privileges_set_raw(bool on)
{
	set_effective(CAP_NET_RAW, on);
}

int privileges_drop(const char *user, unsigned wanted, const char **ret_step)
{
	const struct passwd *entry;

	if (geteuid() != 0)
		return 0;
	errno = 0;
	entry = getpwnam(user);
	*ret_step = "look up the user";
	if (!entry)
		return errno ? -errno : -ENOENT;
	if (entry->pw_uid == 0)
		return 0;
	*ret_step = "keep capabilities";
	if (prctl(PR_SET_KEEPCAPS, 1) < 0)
		return -errno;
	*ret_step = "change the user";
	if (initgroups(user, entry->pw_gid) < 0 ||
		setresgid(entry->pw_gid, entry->pw_gid, entry->pw_gid) < 0 ||
		setresuid(entry->pw_uid, entry->pw_uid, entry->pw_uid) < 0)
		return -errno;
	*ret_step = "set capabilities";
	return set_capabilities(wanted);
}
