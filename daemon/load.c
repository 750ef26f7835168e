/* SPDX-License-Identifier: BSD-2-Clause */
#include "daemon/load.h"

#include <endian.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "common/util.h"
#include "daemon/group.h"
#include "daemon/store.h"

/* How old what the programs know of it may be. */
#define LOAD_INTERVAL_USEC (100 * USEC_PER_MSEC)

#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

struct loads {
	int fd;
	uint32_t entry;
	size_t size; /* octets */
	const uint8_t *memory;
};

static int on_time(sd_event_source *source, uint64_t usec, void *user_data)
{
	struct manager *manager = user_data;
	bool any = false;

	for (struct service *s = manager->services; s; s = s->next) {
		service_update_loads(s);
		for (const struct registration *r = s->registrations; r; r = r->next)
			any |= r->loads != NULL;
	}
	if (any)
		sd_event_source_set_time_relative(source, LOAD_INTERVAL_USEC);
	else
		manager->load_source = sd_event_source_disable_unref(manager->load_source);
	return 0;
}

/* Accuracy: a tenth of the interval; the default of sd-event is a quarter of a second. */
static int start_clock(struct manager *manager)
{
	int result;

	if (manager->load_source)
		return 0;
	result = sd_event_add_time_relative(manager->event, &manager->load_source, CLOCK_MONOTONIC,
		LOAD_INTERVAL_USEC, LOAD_INTERVAL_USEC / 10, on_time, manager);
	if (result >= 0)
		result = sd_event_source_set_enabled(manager->load_source, SD_EVENT_ON);
	return result;
}

static int map(struct loads *loads)
{
	void *memory = mmap(NULL, loads->size, PROT_READ, MAP_SHARED, loads->fd, 0);

	if (memory == MAP_FAILED)
		return -errno;
	loads->memory = memory;
	return 0;
}

/* All of it is there from the beginning: no later read can fail for want of memory. */
static int make_memory(struct loads *loads)
{
	int result;

	loads->fd = memfd_create("reuseport-load", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (loads->fd < 0)
		return -errno;
	result = posix_fallocate(loads->fd, 0, (off_t)loads->size);
	if (result)
		return -result;
	return fcntl(loads->fd, F_ADD_SEALS, SEALS) < 0 ? -errno : map(loads);
}

int loads_open(struct registration *registration)
{
	struct manager *manager = registration->service->manager;
	struct loads *loads;
	int result;

	if (registration->loads)
		return registration->loads->fd;
	loads = calloc(1, sizeof(*loads));
	if (!loads)
		return -ENOMEM;
	loads->fd = -1;
	loads->size = (size_t)registration->n_workers * PROTOCOL_LOAD_OCTETS;
	result = make_memory(loads);
	if (result >= 0)
		result = start_clock(manager);
	if (result < 0) {
		close_fd(&loads->fd);
		loads_free(loads);
		return result;
	}
	loads->entry = store_put(manager->store, STORE_LOADS, loads->fd, false);
	registration->loads = loads;
	return loads->fd;
}

void loads_resume(struct registration *registration, uint32_t entry)
{
	struct manager *manager = registration->service->manager;
	int fd = store_take(manager->store, STORE_LOADS, entry);
	struct loads *loads = fd < 0 ? NULL : calloc(1, sizeof(*loads));
	struct stat status;

	if (!loads) {
		if (fd >= 0)
			store_drop(manager->store, entry, fd);
		return;
	}
	loads->fd = fd;
	loads->entry = entry;
	loads->size = (size_t)registration->n_workers * PROTOCOL_LOAD_OCTETS;
	registration->loads = loads;
	if (fstat(fd, &status) < 0 || (size_t)status.st_size != loads->size ||
		fcntl(fd, F_GET_SEALS) != SEALS || map(loads) < 0 || start_clock(manager) < 0) {
		loads_drop(registration);
		loads_free(take_pointer(registration->loads));
	}
}

void loads_drop(struct registration *registration)
{
	struct loads *loads = registration->loads;

	if (loads)
		store_drop(
			registration->service->manager->store, loads->entry, take_fd(&loads->fd));
}

void loads_free(struct loads *loads)
{
	if (loads && loads->memory)
		munmap((void *)loads->memory, loads->size);
	free(loads);
}

uint32_t loads_entry(const struct loads *loads)
{
	return loads ? loads->entry : 0;
}

int load_of(const struct worker *worker)
{
	const struct registration *registration = worker->registration;
	const struct loads *loads = registration->loads;
	size_t index = (size_t)(worker - registration->workers);
	uint32_t value;

	if (!loads || registration->exited)
		return -1;
	value = le32toh(
		__atomic_load_n((const uint32_t *)(loads->memory + index * PROTOCOL_LOAD_OCTETS),
			__ATOMIC_RELAXED));
	return value ? (int)MIN(value - 1, PROTOCOL_LOAD_MAX) : -1;
}

static void set_load(const struct service *service, uint16_t slot, uint16_t load)
{
	for (size_t i = 0; i < service->n_listeners; i++)
		if (service->listeners[i])
			group_set_load(service->listeners[i]->group, slot, load);
}

void service_update_loads(struct service *service)
{
	uint32_t sum = 0, n = 0;

	for (struct registration *r = service->registrations; r; r = r->next)
		for (uint32_t i = 0; r->loads && i < r->n_workers; i++) {
			int load = load_of(&r->workers[i]);

			if (load < 0 || r->workers[i].state != WORKER_ACTIVE)
				continue;
			set_load(service, r->workers[i].slot, (uint16_t)load);
			sum += (uint32_t)load;
			n++;
		}
	for (struct registration *r = service->registrations; n && r; r = r->next)
		for (uint32_t i = 0; i < r->n_workers; i++)
			if (load_of(&r->workers[i]) < 0)
				set_load(service, r->workers[i].slot, (uint16_t)(sum / n));
	for (size_t i = 0; i < service->n_listeners; i++)
		if (service->listeners[i])
			group_use_loads(service->listeners[i]->group, n > 0);
}
