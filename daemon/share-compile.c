/* SPDX-License-Identifier: BSD-2-Clause */
#include "daemon/share-compile.h"

#include <string.h>

#include "common/util.h"

/* One line of the configuration taken apart: a name and a protocol, and whose they are. */
struct rule {
	enum share_name_kind kind;
	const char *name; /* without the * of a suffix */
	size_t length;
	const char *protocol; /* "": any */
	uint32_t service;
};

struct list {
	struct rule *rules;
	size_t n, room;
};

static int compare_names(const struct rule *a, const struct rule *b)
{
	if (a->kind != b->kind)
		return a->kind < b->kind ? -1 : 1;
	if (a->length != b->length)
		return a->length < b->length ? -1 : 1;
	return memcmp(a->name, b->name, a->length);
}

/* Of one name, that for any protocol is the last. */
static int compare(const void *left, const void *right)
{
	const struct rule *a = left, *b = right;
	int order = compare_names(a, b);

	if (order)
		return order;
	if (!*a->protocol != !*b->protocol)
		return *a->protocol ? -1 : 1;
	order = strcmp(a->protocol, b->protocol);
	return order ? order : (int)a->service - (int)b->service;
}

static int add_rule(struct list *list, struct rule rule)
{
	if (list->n == list->room) {
		size_t room = list->room ? 2 * list->room : 64;
		struct rule *grown = reallocarray(list->rules, room, sizeof(*grown));

		if (!grown)
			return -ENOMEM;
		list->rules = grown;
		list->room = room;
	}
	list->rules[list->n++] = rule;
	return 0;
}

static int add_name(
	struct list *list, const char *name, const struct listener_config *config, uint32_t service)
{
	struct rule rule = {.kind = SHARE_NAME_ANY, .name = "", .protocol = "", .service = service};
	int result = 0;

	if (name) {
		rule.kind = *name == '*' ? SHARE_NAME_SUFFIX : SHARE_NAME_EXACT;
		rule.name = *name == '*' ? name + 1 : name;
		rule.length = strlen(rule.name);
	}
	if (!config->protocols.n)
		return add_rule(list, rule);
	for (size_t i = 0; i < config->protocols.n && result >= 0; i++) {
		rule.protocol = config->protocols.word[i];
		result = add_rule(list, rule);
	}
	return result;
}

/* One with neither names nor protocols is the default, and nothing more. */
static int list_listener(struct list *list, const struct listener_config *config, uint32_t service)
{
	int result = 0;

	if (!config->server_names.n)
		return config->protocols.n ? add_name(list, NULL, config, service) : 0;
	for (size_t i = 0; i < config->server_names.n && result >= 0; i++)
		result = add_name(list, config->server_names.word[i], config, service);
	return result;
}

static void drop_repeated(struct list *list)
{
	size_t n = 0;

	for (size_t i = 0; i < list->n; i++)
		if (!n || compare_names(&list->rules[n - 1], &list->rules[i]) ||
			strcmp(list->rules[n - 1].protocol, list->rules[i].protocol) != 0)
			list->rules[n++] = list->rules[i];
	list->n = n;
}

static uint32_t put_text(char *memory, size_t *offset, const char *text, size_t length)
{
	uint32_t at = (uint32_t)*offset;

	if (length)
		memcpy(memory + at, text, length);
	*offset += length;
	return at;
}

static int lay_out(struct share_rules **ret, const struct list *list, struct share_rules head)
{
	size_t size = sizeof(head), offset;
	struct share_choice *choices;
	struct share_name *names, *name = NULL;
	char *memory;

	for (size_t i = 0; i < list->n; i++) {
		bool fresh = !i || compare_names(&list->rules[i - 1], &list->rules[i]);

		head.n_names += fresh;
		size += (fresh ? list->rules[i].length : 0) + strlen(list->rules[i].protocol);
	}
	head.n_choices = (uint32_t)list->n;
	offset = sizeof(head) + head.n_names * sizeof(*names) + list->n * sizeof(*choices);
	size += offset - sizeof(head);
	if (size > SHARE_RULES_OCTETS_MAX)
		return -E2BIG;
	head.size = (uint32_t)size;
	memory = calloc(1, size);
	if (!memory)
		return -ENOMEM;
	memcpy(memory, &head, sizeof(head));
	names = (struct share_name *)(memory + sizeof(head));
	choices = (struct share_choice *)(names + head.n_names);
	for (size_t i = 0; i < list->n; i++) {
		const struct rule *rule = &list->rules[i];

		if (!i || compare_names(&list->rules[i - 1], rule)) {
			name = name ? name + 1 : names;
			name->kind = rule->kind;
			name->length = (uint32_t)rule->length;
			name->text = put_text(memory, &offset, rule->name, rule->length);
			name->choice = (uint32_t)i;
		}
		name->n_choices++;
		choices[i].service = rule->service;
		choices[i].protocol_length = (uint32_t)strlen(rule->protocol);
		choices[i].protocol =
			put_text(memory, &offset, rule->protocol, choices[i].protocol_length);
	}
	*ret = (struct share_rules *)memory;
	return 0;
}

int share_rules_compile(
	struct share_rules **ret, const struct listener_config *const configs[SHARE_MAX])
{
	struct share_rules head = {.magic = SHARE_RULES_MAGIC, .n_services = SHARE_MAX};
	struct list list = {0};
	int result = 0;

	for (uint32_t i = 0; i < SHARE_MAX && result >= 0; i++) {
		if (!configs[i])
			continue;
		if (configs[i]->match_default)
			head.default_service = i;
		result = list_listener(&list, configs[i], i);
	}
	if (result >= 0 && list.n) {
		qsort(list.rules, list.n, sizeof(*list.rules), compare);
		drop_repeated(&list);
	}
	if (result >= 0)
		result = lay_out(ret, &list, head);
	free(list.rules);
	return result;
}
