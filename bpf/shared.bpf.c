/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * A QUIC listener that several services share (docs/sni-routing.md). What a connection ID names
 * goes there as on a listener of one service. A connection that nobody knows yet is of the service
 * that was chosen for it, if one was; else the classifier gets the packet, and gives it to the
 * kernel again once it has chosen. Without a classifier the default service takes it.
 *
 * Services are kept apart by the slot: each is one service's, each rotation of our connection IDs
 * as well, and an ID that names another service's slot names nobody.
 */
#define SHARED
#include "quic.bpf.h"

struct share_page share_page SEC(".data.page");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1); /* set before loading, a power of two */
	__type(key, __u32);
	__type(value, struct flow_set);
} choice_map SEC(".maps");

/*
 * The service that was chosen for cpu->flow_tag, SHARE_NONE where none is. What flow_search() has
 * found in the flow map stays as it is.
 */
__noinline __u32 choice_search(struct flow_set *set, struct group_cpu *cpu)
{
	volatile __u64 *word;
	__u32 i;

	if (!set || !cpu)
		return SHARE_NONE;
	word = set->word;
#pragma unroll
	for (i = 0; i < FLOW_WAYS; i++) {
		__u64 seen = word[i];

		if ((__u32)(seen >> 32) == cpu->flow_tag &&
			flow_age(seen, cpu->flow_now) <= CHOICE_TICKS)
			return (seen >> 16) & 0xffff;
	}
	return SHARE_NONE;
}

static __always_inline __u32 chosen_service(struct group_cpu *cpu)
{
	struct flow_set *set;

	room_of(cpu)->number = quic_flow_set(room_of(cpu)->hash) & share_state.choice_mask;
	set = bpf_map_lookup_elem(&choice_map, &room_of(again(cpu))->number);
	return set ? choice_search(set, cpu) : SHARE_NONE;
}

/*
 * Two functions of their own, so that the verifier knows nothing of the number, and one arrival:
 * without CAP_PERFMON it refuses an addition to a pointer whose operand is another on another path.
 */
__noinline __u32 select_new_of(struct sk_reuseport_md *ctx, __u32 service, __u32 hash)
{
	return select_new(ctx, service, hash, ARRIVAL_NEW);
}

__noinline __u32 select_stray_of(struct sk_reuseport_md *ctx, __u32 service, __u32 hash)
{
	return select_new(ctx, service, hash, ARRIVAL_STRAY);
}

/* A new connection of this service. select_by_hash() has not found it in the flow map. */
__noinline int select_of_service(struct sk_reuseport_md *ctx, __u32 service)
{
	struct group_cpu *cpu = this_cpu();
	__u32 selected;

	if (!cpu)
		return SK_DROP;
	selected = select_new_of(ctx, service, quic_listener_hash(room_of(cpu)->hash));
	flow_remember(again(cpu), slot_of(service, selected));
	return verdict_of(selected);
}

/* A connection of which nobody has said yet whose it is. */
__noinline int select_classifier(struct sk_reuseport_md *ctx)
{
	__u32 follow = share_page.follow;

	if (follow == SHARE_FOLLOW && select_slot(ctx, INDEX_CLASSIFIER) == 0) {
		count(SHARE_ROW, VERDICT_CLASSIFIER);
		return SK_PASS;
	}
	count(SHARE_ROW, VERDICT_UNREAD);
	if (follow == SHARE_FOLLOW_DROP && select_slot(ctx, INDEX_SINK) == 0)
		return SK_PASS;
	return select_of_service(ctx, share_state.default_service);
}

/* A packet that begins a connection, by room->header.kind and room->hash. */
__noinline int select_beginning(struct sk_reuseport_md *ctx)
{
	struct group_cpu *cpu = this_cpu();
	__u32 service;

	if (!cpu)
		return SK_DROP;
	if (select_by_hash(ctx, cpu, room_of(cpu)->hash) != INDEX_NONE)
		return SK_PASS;
	service = chosen_service(again(cpu));
	if (service < SHARE_MAX)
		return select_of_service(ctx, service);
	/* Nobody can read it; the default service says which versions there are. */
	if (room_of(cpu)->header.kind == QUIC_UNKNOWN_VERSION)
		return select_of_service(ctx, share_state.default_service);
	return select_classifier(ctx);
}

/*
 * A packet of a connection that nobody has; named: what its ID says, as own_slot(). Only servers of
 * the service that made the ID have the secret of the reset token by which the client learns.
 */
__noinline int select_stray(struct sk_reuseport_md *ctx, __u32 named)
{
	struct group_cpu *cpu = this_cpu();
	__u32 service = share_state.default_service;

	if (!cpu)
		return SK_DROP;
	if (named < SLOT_COUNT)
		service = service_of(named);
	else if (named != INDEX_NONE)
		service = named & (SHARE_KEYS - 1);
	if (service >= SHARE_MAX)
		service = share_state.default_service;
	return verdict_of(select_stray_of(ctx, service, quic_listener_hash(room_of(cpu)->hash)));
}

/* named: what an ID of ours in place names, which has not taken the packet. */
__noinline int shared_rest(struct sk_reuseport_md *ctx, __u32 named)
{
	struct group_cpu *cpu = this_cpu();
	__u32 modes = share_state.modes, length;
	bool all_ours = !(modes & ~(1u << QUIC_MODE_LB));

	if (!cpu)
		return SK_DROP;
	if (all_ours && begins_in_place(ctx, cpu))
		return select_beginning(ctx);
	length = copy_window(ctx, cpu);
	if (!is_in_place(ctx) && length >= own_header_length(room_of(cpu)->window)) {
		named = own_slot(room_of(again(cpu))->window, QUIC_MODE_LB);
		if (pass_to(ctx, named))
			return SK_PASS;
	}
	if (read_window(cpu, length, all_ours ? QUIC_CID_LENGTH : 0) == QUIC_INVALID)
		return drop_invalid(ctx);
	if (modes & 1u << QUIC_MODE_NGINX && pass_to(ctx, cookie_slot(room_of(again(cpu)))))
		return SK_PASS;
	if (modes & 1u << QUIC_MODE_REGISTERED && pass_to(ctx, dcid_slot(again(cpu), length)))
		return SK_PASS;
	if (quic_begins_connection(room_of(cpu)->header.kind))
		return select_beginning(ctx);
	return select_stray(ctx, named);
}

/* The frequent cases in registers alone, as in quic_lb(), nginx() and registered(). */
SEC("sk_reuseport/migrate")
int shared(struct sk_reuseport_md *ctx)
{
	const __u8 *p = ctx->data;
	__u32 named = INDEX_NONE;

	if (p + UDP_HEADER + QUIC_WINDOW <= (const __u8 *)ctx->data_end) {
		named = own_slot(p + UDP_HEADER, QUIC_MODE_LB);
		if (pass_to(ctx, named))
			return SK_PASS;
	}
	if (share_state.modes & 1u << QUIC_MODE_REGISTERED && pass_registered(ctx))
		return SK_PASS;
	if (share_state.modes & 1u << QUIC_MODE_NGINX && pass_nginx(ctx))
		return SK_PASS;
	return shared_rest(ctx, named);
}

char _license[] SEC("license") = "Dual BSD/GPL";
