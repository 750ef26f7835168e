/* SPDX-License-Identifier: BSD-2-Clause */
#include "classify/confine.h"

#include <fcntl.h>
#include <seccomp.h>
#include <sys/capability.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#include "common/util.h"

/* Allowed whatever their arguments are. */
static const int plain_calls[] = {
	SCMP_SYS(ppoll),
	SCMP_SYS(clock_gettime),
	SCMP_SYS(lseek),  /* how long a file of rules is */
	SCMP_SYS(munmap), /* of the rules before */
	SCMP_SYS(close),
	SCMP_SYS(brk), /* libcrypto's malloc(3) */
	SCMP_SYS(futex),
	SCMP_SYS(rt_sigreturn),
	SCMP_SYS(restart_syscall),
	SCMP_SYS(exit_group),
};

/* Of all 64 bits: what is compared is never negative. */
#define EQUALS(number, value)                                          \
	{                                                              \
		.arg = (number), .op = SCMP_CMP_EQ, .datum_a = (value) \
	}

static int allow(scmp_filter_ctx filter, int call, unsigned n, const struct scmp_arg_cmp *arguments)
{
	return seccomp_rule_add_array(filter, SCMP_ACT_ALLOW, call, n, arguments);
}

static int allow_on(scmp_filter_ctx filter, int call, int descriptor)
{
	return allow(filter, call, 1,
		(const struct scmp_arg_cmp[]){EQUALS(0, (scmp_datum_t)descriptor)});
}

static int allow_sending(scmp_filter_ctx filter, int raw)
{
	return allow(filter, SCMP_SYS(sendto), 3,
		(const struct scmp_arg_cmp[]){
			EQUALS(0, (scmp_datum_t)raw),
			EQUALS(4, 0),
			EQUALS(5, 0),
		});
}

static int add_rules(scmp_filter_ctx filter, int socket, int control, const int raw[2])
{
	int r = 0;

	for (size_t i = 0; r >= 0 && i < ARRAY_SIZE(plain_calls); i++)
		r = allow(filter, plain_calls[i], 0, NULL);
	for (unsigned i = 0; r >= 0 && i < 2; i++)
		r = allow_sending(filter, raw[i]);
	if (r >= 0)
		r = allow_on(filter, SCMP_SYS(recvmmsg), socket);
	if (r >= 0)
		r = allow_on(filter, SCMP_SYS(recvmsg), control);
	if (r >= 0)
		r = allow_on(filter, SCMP_SYS(write), STDERR_FILENO);
	if (r >= 0)
		r = allow(filter, SCMP_SYS(fcntl), 1,
			(const struct scmp_arg_cmp[]){EQUALS(1, F_GET_SEALS)});
	/* Memory, and new rules: never to be executed. */
	if (r >= 0)
		r = allow(filter, SCMP_SYS(mmap), 1,
			(const struct scmp_arg_cmp[]){
				{.arg = 2, .op = SCMP_CMP_MASKED_EQ, .datum_a = PROT_EXEC}});
	return r;
}

static int load_filter(int socket, int control, const int raw[2])
{
	scmp_filter_ctx filter = seccomp_init(SCMP_ACT_KILL_PROCESS);
	int r = filter ? add_rules(filter, socket, control, raw) : -ENOMEM;

	if (r >= 0)
		r = seccomp_load(filter);
	seccomp_release(filter);
	return r < 0 ? r : 0;
}

static int drop_capabilities(void)
{
	cap_t none = cap_init();
	int r = none && cap_set_proc(none) == 0 ? 0 : -errno;

	cap_free(none);
	return r;
}

int confine(int socket, int control, const int raw[2], const char **ret_step)
{
	static const struct rlimit nothing = {};

	*ret_step = "give up new privileges";
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return -errno;
	*ret_step = "give up capabilities";
	if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0)
		return -errno;
	if (drop_capabilities() < 0)
		return -errno;
	*ret_step = "forbid cores";
	if (setrlimit(RLIMIT_CORE, &nothing) < 0 || prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
		return -errno;
	*ret_step = "load the filter of system calls";
	return load_filter(socket, control, raw);
}
