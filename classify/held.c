/* SPDX-License-Identifier: BSD-2-Clause */
#include "classify/held.h"

#include <string.h>
#include <sys/mman.h>

#include "common/util.h"

#define BUCKETS 2048 /* power of two */
#define NONE UINT16_MAX

struct order {
	uint16_t oldest, youngest;
	uint16_t count;
};

struct held_table {
	uint16_t bucket[BUCKETS];
	uint16_t free;
	struct order order[2];           /* [authentic] */
	struct held place[HELD_MAX + 1]; /* one is always free */
};

static uint16_t number_of(const struct held_table *table, const struct held *held)
{
	return (uint16_t)(held - table->place);
}

static uint16_t *bucket_of(struct held_table *table, uint64_t hash)
{
	return &table->bucket[(hash >> 32) & (BUCKETS - 1)];
}

struct held_table *held_table_new(void)
{
	struct held_table *table = mmap(
		NULL, sizeof(*table), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (table == MAP_FAILED)
		return NULL;
	memset(table->bucket, 0xff, sizeof(table->bucket));
	for (unsigned i = 0; i < 2; i++)
		table->order[i] = (struct order){.oldest = NONE, .youngest = NONE};
	/* Lowest first, so that only as many pages are touched as there were connections at once.
	 */
	for (uint16_t i = 0; i <= HELD_MAX; i++)
		table->place[i].next = i < HELD_MAX ? (uint16_t)(i + 1) : NONE;
	table->free = 0;
	return table;
}

struct held *held_find(struct held_table *table, const struct held_key *key, uint64_t hash)
{
	for (uint16_t i = *bucket_of(table, hash); i != NONE; i = table->place[i].next) {
		struct held *held = &table->place[i];

		if (held->hash == hash && memcmp(&held->key, key, sizeof(*key)) == 0)
			return held;
	}
	return NULL;
}

struct held *held_spare(struct held_table *table)
{
	struct held *held = &table->place[table->free];

	held->n_datagrams = held->n_octets = 0;
	return held;
}

struct held *held_in_the_way(const struct held_table *table, bool authentic)
{
	unsigned count = table->order[0].count + table->order[1].count;

	if (!authentic && table->order[0].count == HELD_EARLY)
		return held_oldest(table, false);
	if (count < HELD_MAX)
		return NULL;
	/* Those that are worth less first. */
	return held_oldest(table, table->order[0].count == 0);
}

static void append(struct held_table *table, struct held *held, bool authentic, uint64_t now_nsec)
{
	struct order *order = &table->order[authentic];

	held->authentic = authentic;
	held->since_nsec = now_nsec;
	held->older = order->youngest;
	held->newer = NONE;
	if (order->youngest == NONE)
		order->oldest = number_of(table, held);
	else
		table->place[order->youngest].newer = number_of(table, held);
	order->youngest = number_of(table, held);
	order->count++;
}

static void unlink_order(struct held_table *table, struct held *held)
{
	struct order *order = &table->order[held->authentic];

	if (held->older == NONE)
		order->oldest = held->newer;
	else
		table->place[held->older].newer = held->newer;
	if (held->newer == NONE)
		order->youngest = held->older;
	else
		table->place[held->newer].older = held->older;
	order->count--;
}

void held_put(struct held_table *table, struct held *held, bool authentic, uint64_t now_nsec)
{
	uint16_t *bucket = bucket_of(table, held->hash);

	table->free = held->next;
	held->next = *bucket;
	*bucket = number_of(table, held);
	append(table, held, authentic, now_nsec);
}

void held_set_authentic(struct held_table *table, struct held *held, uint64_t now_nsec)
{
	unlink_order(table, held);
	append(table, held, true, now_nsec);
}

struct held *held_oldest(const struct held_table *table, bool authentic)
{
	uint16_t oldest = table->order[authentic].oldest;

	return oldest == NONE ? NULL : (struct held *)&table->place[oldest];
}

void held_remove(struct held_table *table, struct held *held)
{
	uint16_t *link = bucket_of(table, held->hash), number = number_of(table, held);

	if (number == table->free)
		return;
	while (*link != number)
		link = &table->place[*link].next;
	*link = held->next;
	unlink_order(table, held);
	held->next = table->free;
	table->free = number;
}

unsigned held_count(const struct held_table *table, bool authentic)
{
	return table->order[authentic].count;
}

bool held_keep(struct held *held, uint8_t traffic_class, const uint8_t *datagram, size_t length)
{
	if (held->n_datagrams == HELD_DATAGRAMS || length > (size_t)(HELD_OCTETS - held->n_octets))
		return false;
	memcpy(held->octets + held->n_octets, datagram, length);
	held->datagram[held->n_datagrams].length = (uint16_t)length;
	held->datagram[held->n_datagrams].traffic_class = traffic_class;
	held->n_datagrams++;
	held->n_octets = (uint16_t)(held->n_octets + length);
	return true;
}
