/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What the holder of a socket that the daemon made must not do to the others of its group: take
 * the program away, leave the group, or connect the socket, which takes it out of the group's reach
 * and makes the group slow.
 *
 * Attached to the daemon's own cgroup. The kernel asks the program of the cgroup in which a socket
 * was made, whoever holds it and wherever that process is (sk_cgrp_data); and only sockets that
 * are marked are meant, so nothing else that is made in this cgroup is concerned.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define SOL_SOCKET 1
#define SO_REUSEPORT 15
#define SO_DETACH_REUSEPORT_BPF 68

/* Marks; each goes with its socket. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u32);
} guarded SEC(".maps");

#define ALLOW 1
#define REFUSE 0 /* EPERM */

static __always_inline int decide(struct bpf_sock *socket)
{
	return socket && bpf_sk_storage_get(&guarded, socket, 0, 0) ? REFUSE : ALLOW;
}

SEC("cgroup/setsockopt")
int guard_setsockopt(struct bpf_sockopt *ctx)
{
	const __u32 *value = ctx->optval;
	int level = ctx->level, option = ctx->optname;

	/* The kernel takes what the caller gave, of which we have seen a page at most. */
	ctx->optlen = 0;
	if (level != SOL_SOCKET)
		return ALLOW;
	if (option == SO_DETACH_REUSEPORT_BPF)
		return decide(ctx->sk);
	if (option != SO_REUSEPORT || (const void *)(value + 1) > ctx->optval_end || *value)
		return ALLOW;
	return decide(ctx->sk);
}

SEC("cgroup/connect4")
int guard_connect4(struct bpf_sock_addr *ctx)
{
	return decide(ctx->sk);
}

SEC("cgroup/connect6")
int guard_connect6(struct bpf_sock_addr *ctx)
{
	return decide(ctx->sk);
}

char _license[] SEC("license") = "Dual BSD/GPL";
