/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * How loaded a worker is: a word in memory that the daemon reads some ten times a second.
 * Publishing it is a store, so that a server can do it with every request.
 */
#include <endian.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "client-lib/context.h"

void load_clear(struct reuseport *r)
{
	if (r->loads)
		munmap((void *)r->loads, r->loads_size);
	r->loads = NULL;
	r->loads_stale = false;
}

static int take_memory(struct reuseport *r)
{
	const struct message *m = &r->message;
	size_t size = (size_t)r->n_workers * PROTOCOL_LOAD_OCTETS;
	struct stat status;
	void *memory;

	if (le32toh(m->loads.registration) != r->registration ||
		le32toh(m->loads.n_workers) != r->n_workers || fstat(m->fds[0], &status) < 0 ||
		status.st_size < (off_t)size)
		return context_error(r, -EPROTO, "reuseportd sent memory of another size");
	memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, m->fds[0], 0);
	if (memory == MAP_FAILED)
		return context_error(
			r, -errno, "cannot map the memory for loads: %s", strerror(errno));
	if (r->loads) {
		/* Other threads may be writing: it takes the place of the earlier memory at once.
		 */
		memcpy(memory, (const void *)r->loads, size);
		memory = mremap(memory, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, r->loads);
		if (memory == MAP_FAILED)
			return context_error(
				r, -errno, "cannot map the memory for loads: %s", strerror(errno));
	}
	r->loads = memory;
	r->loads_size = size;
	r->loads_stale = false;
	return 0;
}

_public_ int reuseport_share_load(struct reuseport *r, int timeout_msec)
{
	struct protocol_registration body = {.registration = htole32(r->registration)};
	uint64_t deadline = deadline_after(timeout_msec);
	int result;

	if (!r->registered)
		return context_error(r, -EINVAL, "cannot share loads: nothing is registered");
	if (r->fallback)
		return context_error(
			r, -EOPNOTSUPP, "there is no daemon, the sockets are LISTEN_FDS");
	if (r->loads && !r->loads_stale)
		return 0;
	result = connection_send(r, PROTOCOL_LOAD, &body, sizeof(body), -1, deadline);
	if (result >= 0)
		result = connection_wait(
			r, PROTOCOL_LOADS, PROTOCOL_LOADS, "cannot share loads", deadline);
	if (result < 0)
		return result;
	result = take_memory(r);
	message_done(&r->message);
	return result;
}

_public_ int reuseport_set_load(struct reuseport *r, unsigned worker, int load)
{
	if (worker >= r->n_workers || load < REUSEPORT_LOAD_NONE || load > REUSEPORT_LOAD_MAX)
		return -ERANGE;
	if (!r->loads)
		return -EOPNOTSUPP;
	atomic_store_explicit(&r->loads[(size_t)worker * PROTOCOL_LOAD_OCTETS / sizeof(*r->loads)],
		htole32((uint32_t)(load + 1)), memory_order_relaxed);
	return 0;
}
