/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Any octets as the rules of a shared listener: where they pass the check, every name and list of
 * protocols has an answer within what the rules say of themselves.
 *
 * Input: length of the name, length of the protocols, both, and the rules behind them.
 */
#include <stdlib.h>
#include <string.h>

#include "classify/share-rules.c"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool condition)
{
	if (!condition)
		abort();
}

/* Of exactly its size, so that a look beyond the end is seen. */
static void *copy_of(const uint8_t *data, size_t size)
{
	void *copy = malloc(size ? size : 1);

	require(copy != NULL);
	if (size)
		memcpy(copy, data, size);
	return copy;
}

static void ask_for(const struct share_rules *rules, const char *name, size_t name_length,
	const uint8_t *protocols, size_t protocols_length)
{
	struct share_answer answer;

	share_rules_match(rules, name, name_length, protocols, protocols_length, &answer);
	require(answer.service < rules->n_services);
	require((answer.name != NULL) == (answer.reason <= SHARE_REASON_PROTOCOL));
	require((answer.choice != NULL) == (answer.name != NULL));
	if (!answer.name) {
		require(answer.service == rules->default_service);
		return;
	}
	require(answer.service == answer.choice->service);
	require((uint64_t)answer.name->text + answer.name->length <= rules->size);
	require((uint64_t)answer.choice->protocol + answer.choice->protocol_length <= rules->size);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	size_t name_length, protocols_length;
	struct share_rules *rules;
	uint8_t *protocols;
	char *name;

	if (size < 2)
		return 0;
	name_length = data[0];
	protocols_length = data[1];
	data += 2;
	size -= 2;
	if (name_length + protocols_length > size)
		return 0;
	name = copy_of(data, name_length);
	protocols = copy_of(data + name_length, protocols_length);
	data += name_length + protocols_length;
	size -= name_length + protocols_length;
	rules = copy_of(data, size);
	if (share_rules_check(rules, size) == 0) {
		ask_for(rules, name, name_length, protocols, protocols_length);
		/* And every name that the rules have themselves. */
		for (uint32_t i = 0; i < rules->n_names; i++) {
			const struct share_name *own = &names_of(rules)[i];

			ask_for(rules, text_of(rules, own->text), own->length, protocols,
				protocols_length);
		}
	}
	free(name);
	free(protocols);
	free(rules);
	return 0;
}
