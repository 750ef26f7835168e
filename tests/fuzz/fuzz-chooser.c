/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Any datagrams of some clients, at any time, through all of the classifier but its process: what
 * the fuzzer sends is taken as it is, or sealed first so that it gets past the tag. No raw socket
 * is there, so what would be given back is counted as lost; every datagram must be in one place.
 */
#include <stdlib.h>
#include <string.h>

#include "classify/chooser.c"
#include "classify/client-hello.c"
#include "classify/crypto-stream.c"
#include "classify/flow.c"
#include "classify/frames.c"
#include "classify/held.c"
#include "classify/initial-keys.c"
#include "classify/packet.c"
#define choose choose_service
#define find find_name
#include "classify/share-rules.c"
#undef choose
#undef find
#define fold fold_checksum
#include "common/raw-datagram.c"
#undef fold
#include "tests/unit/initial-seal.h"
#include "tests/unit/rules-builder.h"

#define PAYLOAD_OCTETS 1400
#define CHOICE_SETS 4

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct chooser chooser;
static struct share_page page;
static struct flow_set choices[CHOICE_SETS];

static void require(bool condition)
{
	if (!condition)
		abort();
}

static void set_up(void)
{
	static const struct rule given[] = {{"shop.example", "h3", 1}, {"*.example", NULL, 2}};
	size_t size;

	page.choice_mask = CHOICE_SETS - 1;
	for (unsigned i = 0; i < 6; i++)
		page.hash_key.word[i] = 0x9e3779b9u * (i + 1);
	chooser.page = &page;
	chooser.choices = choices;
	chooser.raw_ipv4 = chooser.raw_ipv6 = -1;
	chooser.rules = build_rules(given, ARRAY_SIZE(given), 0, 3, &size);
	require(share_rules_check(chooser.rules, size) == 0);
	require(chooser_init(&chooser) == 0);
}

/* An Initial of one of eight connections, with at least so much that it is not too short. */
static size_t seal(uint8_t how, uint8_t number, const uint8_t *payload, size_t length, uint8_t *out)
{
	const struct seal seal = {
		.version = how & 1 ? QUIC_VERSION_2 : QUIC_VERSION_1,
		.dcid = {1, 2, 3, 4, 5, 6, 7, how >> 1 & 7},
		.dcid_length = 8,
		.number = number,
		.number_length = 2,
	};
	uint8_t padded[PAYLOAD_OCTETS] = {0};
	struct initial_keys keys;

	memcpy(padded, payload, length);
	require(initial_keys_derive(chooser.crypto, seal.version, seal.dcid, 8, INITIAL_FROM_CLIENT,
			&keys) == 0);
	return seal_initial(&seal, &keys, padded, length < 1200 ? 1200 : length, out);
}

static uint64_t counted(enum share_counter counter)
{
	return page.counter[counter];
}

static unsigned count_held(void)
{
	unsigned n = 0;

	for (unsigned authentic = 0; authentic < 2; authentic++)
		for (struct held *held = held_oldest(chooser.held, authentic); held;
			held = held->newer == NONE ? NULL : &chooser.held->place[held->newer])
			n += held->n_datagrams;
	return n;
}

/* Datagrams of which it is known where they are. */
static uint64_t placed(void)
{
	return counted(SHARE_LOST) + counted(SHARE_LOOPED) + counted(SHARE_NO_INITIAL) +
	       counted(SHARE_TOO_SHORT) + counted(SHARE_MALFORMED) + count_held();
}

/* What was taken is given back (lost here), held, or dropped for a reason that is counted. */
static void check(unsigned forged)
{
	for (unsigned i = 0; i < CHOICE_SETS * FLOW_WAYS; i++) {
		uint64_t word = choices[i / FLOW_WAYS].word[i % FLOW_WAYS];

		require(word == 0 || (word >> 16 & 0xffff) < 3);
	}
	require(held_count(chooser.held, false) <= HELD_EARLY);
	require(held_count(chooser.held, false) + held_count(chooser.held, true) <= HELD_MAX);
	require(counted(SHARE_DATAGRAMS) == placed() + forged);
	require(counted(SHARE_RESENT) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static uint8_t sealed[PAYLOAD_OCTETS + SEAL_OVERHEAD];
	struct path path = {.client = {.s6_addr = {[10] = 0xff, [11] = 0xff, 192, 0, 2, 7}}};
	static uint64_t now = 1ULL << 40;
	unsigned forged = 0;

	if (!chooser.crypto)
		set_up();
	memset(page.counter, 0, sizeof(page.counter));
	while (size >= 4) {
		size_t length = (size_t)data[2] << 8 | data[3];
		uint8_t how = data[0], number = data[1], *datagram;
		const uint8_t *octets = data + 4;
		struct flow_set choices_before[CHOICE_SETS];
		uint64_t before, malformed, lost;

		size -= 4;
		length = MIN(MIN(length, size), PAYLOAD_OCTETS);
		data += 4 + length;
		size -= length;
		if (how & 0x40) { /* time passes, up to 1.2 s */
			now += (uint64_t)number * 5000000;
			chooser_expire(&chooser, now);
		}
		path.client_port = how >> 4 & 3;
		if (!(how & 0x80)) {
			length = seal(how, number, octets, length, sealed);
			octets = sealed;
		}
		datagram = malloc(length ? length : 1);
		require(datagram != NULL);
		memcpy(datagram, octets, length);
		before = placed();
		malformed = counted(SHARE_MALFORMED);
		lost = counted(SHARE_LOST);
		memcpy(choices_before, choices, sizeof(choices));
		chooser_take(&chooser, &path, 0, datagram, length, now);
		/* What is malformed reaches nothing but its counter. */
		if (counted(SHARE_MALFORMED) > malformed)
			require(counted(SHARE_LOST) == lost &&
				memcmp(choices_before, choices, sizeof(choices)) == 0);
		/* Nothing of it was authentic. */
		forged += placed() == before && counted(SHARE_UNAUTHENTICATED) > forged;
		free(datagram);
		check(forged);
	}
	now += 2 * CHOOSER_HELD_NSEC;
	require(chooser_expire(&chooser, now) == 0);
	require(count_held() == 0);
	check(forged);
	return 0;
}
