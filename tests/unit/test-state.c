/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The state as a next process finds it: whole whatever the writer was doing when it ended, refused
 * in words where it is damaged, and with a configuration that is the same in every field.
 */
#include "daemon/config.c"
#include "daemon/key-file.c"
#include "daemon/keys-disk.c"
#include "daemon/keys-state.c"
#include "daemon/keys.c"
#include "daemon/state-check.c"
#include "daemon/state-config.c"
#include "daemon/state.c"
#include "daemon/state-text.c"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

static json_t *of_size(size_t n, int mark)
{
	char *text = malloc(n + 1);
	json_t *json;

	assert_non_null(text);
	memset(text, 'x', n);
	text[n] = '\0';
	json = json_pack("{s:i, s:s}", "mark", mark, "text", text);
	free(text);
	assert_non_null(json);
	return json;
}

static int mark_of(struct state *state)
{
	json_t *json = NULL;
	int result = state_read(state, &json), mark;

	if (result < 0)
		return result;
	mark = (int)json_integer_value(json_object_get(json, "mark"));
	json_decref(json);
	return mark;
}

static void write_mark(struct state *state, size_t n, int mark)
{
	json_t *json = of_size(n, mark);

	assert_int_equal(state_write(state, json), 0);
	json_decref(json);
}

static void what_is_written_last_is_read(void **unused)
{
	static const size_t sizes[] = {0, 1, 100, 20000, 5, 70000, 70000, 1, 5000000, 3, 100};
	struct state *state, *next;

	assert_int_equal(state_new(&state), 0);
	assert_int_equal(mark_of(state), -ENODATA);
	for (int i = 0; i < 500; i++) {
		write_mark(state, sizes[i % ARRAY_SIZE(sizes)], i);
		assert_int_equal(mark_of(state), i);
	}
	/* Another process opens it. */
	assert_int_equal(state_open(&next, dup(state_fd(state))), 0);
	assert_int_equal(mark_of(next), 499);
	memcpy(state_note(state), "note", 4);
	state_set_answering(state, 77, 4);
	assert_int_equal(state_answering(next), 77);
	assert_int_equal(state_note_length(next), 4);
	assert_memory_equal(state_note(next), "note", 4);
	state_free(state);
	write_mark(next, 40000, 500);
	assert_int_equal(mark_of(next), 500);
	state_free(next);
}

static size_t copy_of(const struct state *state, char **ret)
{
	struct stat status;

	assert_int_equal(fstat(state_fd(state), &status), 0);
	*ret = malloc((size_t)status.st_size);
	assert_non_null(*ret);
	assert_int_equal(pread(state_fd(state), *ret, (size_t)status.st_size, 0), status.st_size);
	return (size_t)status.st_size;
}

/* A state of these octets. */
static int open_octets(struct state **ret, const char *octets, size_t n)
{
	int fd = memfd_create("test", MFD_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, octets, n), n);
	return state_open(ret, fd);
}

/* Until its last word is written, a write has changed nothing: whatever of it is there. */
static void half_a_write_is_none(void **unused)
{
	struct state *state, *next;
	char *before, *after;
	size_t n_before, n_after;

	assert_int_equal(state_new(&state), 0);
	write_mark(state, 300, 1);
	write_mark(state, 300, 2);
	n_before = copy_of(state, &before);
	write_mark(state, 300, 3);
	n_after = copy_of(state, &after);
	assert_int_equal(n_before, n_after);
	/* Octets of the half in any number, the header as it was: with its generation wiped. */
	for (size_t i = 0; i <= 400; i += 13) {
		char *mixed = malloc(n_before);
		struct header *header = (struct header *)mixed;
		struct half *spare;

		assert_non_null(mixed);
		memcpy(mixed, before, n_before);
		spare = &header->half[!header->current];
		spare->generation = 0;
		memcpy(mixed + spare->offset, after + spare->offset, i);
		assert_int_equal(open_octets(&next, mixed, n_before), 0);
		assert_int_equal(mark_of(next), 2);
		state_free(next);
		free(mixed);
	}
	free(before);
	free(after);
	state_free(state);
}

static void damage_is_seen(void **unused)
{
	struct state *state, *next;
	struct header *header;
	char *octets;
	size_t n;

	assert_int_equal(state_new(&state), 0);
	write_mark(state, 300, 1);
	write_mark(state, 300, 2);
	n = copy_of(state, &octets);
	header = (struct header *)octets;
	/* The half before is better than none. */
	octets[header->half[header->current].offset + 20] ^= 1;
	assert_int_equal(open_octets(&next, octets, n), 0);
	assert_int_equal(mark_of(next), 1);
	state_free(next);
	octets[header->half[!header->current].offset + 20] ^= 1;
	assert_int_equal(open_octets(&next, octets, n), 0);
	assert_int_equal(mark_of(next), -EBADMSG);
	state_free(next);
	header->half[0].length = UINT64_MAX;
	assert_int_equal(open_octets(&next, octets, n), -EBADMSG);
	header->half[0].length = 1;
	header->format++;
	assert_int_equal(open_octets(&next, octets, n), -EPROTONOSUPPORT);
	header->magic[0] ^= 1;
	assert_int_equal(open_octets(&next, octets, n), -EBADMSG);
	assert_int_equal(open_octets(&next, octets, 100), -EBADMSG);
	free(octets);
	state_free(state);
}

/* More than can be had: the error of the write, and the state before it stands. */
static void what_cannot_be_written_changes_nothing(void **unused)
{
	struct state *state;
	json_t *json;

	assert_int_equal(state_new(&state), 0);
	write_mark(state, 300, 1);
	json = of_size(STATE_SIZE_MAX, 2);
	assert_int_equal(state_write(state, json), -EFBIG);
	json_decref(json);
	assert_int_equal(mark_of(state), 1);
	write_mark(state, 300, 3);
	assert_int_equal(mark_of(state), 3);
	state_free(state);
}

struct collected {
	char octets[3 * TEXT_ROOM];
	size_t length;
	int result; /* of each part */
};

static int collect(const char *octets, size_t length, void *user_data)
{
	struct collected *collected = user_data;

	assert_in_range(length, 1, TEXT_ROOM);
	assert_in_range(collected->length + length, 1, sizeof(collected->octets));
	memcpy(collected->octets + collected->length, octets, length);
	collected->length += length;
	return collected->result;
}

static void text_leaves_in_parts_whatever_it_is_made_of(void **unused)
{
	static const char numbers[] = "0,-1,9223372036854775807,-9223372036854775808";

	/* Wherever a part ends: the brace that is taken back is the first or last octet of one. */
	for (size_t before = TEXT_ROOM - 60; before < TEXT_ROOM + 4; before++) {
		struct collected collected = {0};
		struct text text = {.leave = collect, .user_data = &collected};
		char expected[200];

		for (size_t i = 0; i < before; i++)
			text_add(&text, "x", 1);
		text_add_object_open(&text, json_pack("{s:i}", "a", 1));
		text_add_string(&text, ",\"b\":[");
		text_add_number(&text, 0);
		text_add_string(&text, ",");
		text_add_number(&text, -1);
		text_add_string(&text, ",");
		text_add_number(&text, INT64_MAX);
		text_add_string(&text, ",");
		text_add_number(&text, INT64_MIN);
		text_add_string(&text, "]}");
		text_end(&text);
		assert_false(text.failed);
		snprintf(expected, sizeof(expected), "{\"a\":1,\"b\":[%s]}", numbers);
		assert_int_equal(collected.length, before + strlen(expected));
		assert_memory_equal(collected.octets + before, expected, strlen(expected));
	}
}

static void text_of_which_a_part_cannot_leave_has_failed(void **unused)
{
	struct collected collected = {.result = -ENOSPC};
	struct text text = {.leave = collect, .user_data = &collected};

	for (size_t i = 0; i < 2 * TEXT_ROOM + 1; i++)
		text_add(&text, "x", 1);
	text_end(&text);
	assert_true(text.failed);
	assert_int_equal(collected.length, TEXT_ROOM);
}

static struct listener_config *example_listener(void)
{
	struct listener_config *listener = listener_config_new("quic", "/etc/x.conf", 7);
	struct sockaddr_in6 *address;

	assert_non_null(listener);
	address = (struct sockaddr_in6 *)&listener->address;
	address->sin6_family = AF_INET6;
	address->sin6_port = 0xbb01;
	address->sin6_addr.s6_addr[15] = 1;
	listener->address_length = sizeof(*address);
	listener->address_text = strdup("[::1]:443");
	listener->transport = TRANSPORT_QUIC;
	listener->cid_mode = CID_QUIC_LB;
	listener->backlog = 17;
	listener->receive_buffer = 1 << 20;
	listener->send_buffer = 2 << 20;
	listener->ipv6_only = true;
	listener->bind_to_device = strdup("eth0");
	listener->free_bind = true;
	listener->transparent = true;
	listener->mark = UINT32_MAX;
	listener->lock_filter = false;
	listener->standby_hold = false;
	listener->standby_timeout_usec = 123456789;
	listener->flow_timeout_usec = 987654321;
	listener->n_flows = 1024;
	listener->host_id = 0xabcd;
	listener->key_file = strdup("/etc/keys");
	listener->share = strdup("edge");
	config_words_add(&listener->server_names, "shop.example");
	config_words_add(&listener->server_names, "*.shop.example");
	config_words_add(&listener->protocols, "h3");
	listener->match_default = true;
	return listener;
}

static void configuration_comes_back_in_every_field(void **unused)
{
	struct listener_config *listener = example_listener(), *again = NULL;
	json_t *json = listener_config_to_json(listener), *second;

	assert_int_equal(listener_config_from_json(&again, json), 0);
	second = listener_config_to_json(again);
	assert_true(json_equal(json, second));
	assert_int_equal(json_object_size(json), 23);
	assert_memory_equal(&listener->address, &again->address, sizeof(listener->address));
	assert_int_equal(again->address_length, listener->address_length);
	assert_int_equal(again->mark, UINT32_MAX);
	assert_int_equal(again->backlog, 17);
	assert_int_equal(again->host_id, 0xabcd);
	assert_string_equal(again->bind_to_device, "eth0");
	listener_config_free(again);
	/* Without any one of them it is none. */
	for (const struct field *field = listener_fields; field->name; field++) {
		json_t *copy = json_copy(json);

		json_object_del(copy, field->name);
		assert_int_equal(listener_config_from_json(&again, copy), -EBADMSG);
		json_decref(copy);
	}
	json_object_set_new(json, "n_flows", json_integer(1000));
	assert_int_equal(listener_config_from_json(&again, json), -EBADMSG);
	json_decref(json);
	json_decref(second);
	listener_config_free(listener);
}

static void users_of_a_service_come_back(void **unused)
{
	struct service_config *service = service_config_new("/etc/x.conf"), *again = NULL;
	json_t *json;

	assert_non_null(service);
	service->name = strdup("web");
	service->allow_uids = calloc(2, sizeof(uid_t));
	service->allow_uids[0] = 33;
	service->allow_uids[1] = UINT32_MAX - 1;
	service->n_allow_uids = 2;
	service->allow_gids = calloc(1, sizeof(gid_t));
	service->allow_gids[0] = 44;
	service->n_allow_gids = 1;
	json = service_config_to_json(service);
	assert_int_equal(service_config_from_json(&again, json), 0);
	assert_true(service_config_allows(again, 33, NULL, 0));
	assert_true(service_config_allows(again, UINT32_MAX - 1, NULL, 0));
	assert_false(service_config_allows(again, 34, NULL, 0));
	assert_true(service_config_allows(again, 34, (gid_t[]){44}, 1));
	json_decref(json);
	service_config_free(service);
	service_config_free(again);
}

static void keys_come_back_and_prefixes_go_on(void **unused)
{
	struct keys *keys, *again;
	uint8_t first[4], second[4], third[4];
	char *error;
	json_t *json;

	assert_int_equal(keys_open(&keys, NULL, "web", "quic", NULL, &error), 0);
	assert_int_equal(keys_next_nonce_prefix(keys, first), 0);
	json = keys_to_json(keys);
	assert_int_equal(keys_next_nonce_prefix(keys, second), 0);
	assert_int_equal(keys_from_json(&again, json, NULL, "web", "quic"), 0);
	assert_true(same_keys(keys, again));
	assert_int_equal(keys_next_nonce_prefix(again, third), 0);
	assert_true(memcmp(third, second, 4) > 0);
	assert_true(again->next > keys->next_block);
	json_decref(json);
	keys_free(keys);
	keys_free(again);
}

static const char example[] =
	"{\"config\": {}, \"ring\": 1, \"next_slot\": 0, \"next_registration\": 2,"
	" \"next_listener\": 1, \"next_client\": 1, \"clients\":"
	"  [{\"id\": 1, \"entry\": 9, \"pid\": 7, \"granting\": 0, \"sequence\": 0}],"
	" \"services\": [{\"config\": {}, \"reserved_slot\": -1, \"listeners\":"
	"  [{\"index\": 0, \"number\": 0, \"keys_version\": 0, \"config\": {},"
	"    \"last_registration\": [0, 0, 0, 0, 0, 0, 0], \"group\": {\"sink\": 2,"
	"    \"standby\": 3, \"standby_index\": 4096, \"left\": 0, \"expired\": 0,"
	"    \"generation\": 1, \"maps\": {\"socket_map\": {\"entry\": 4, \"layout\": 1}}}}],"
	"  \"registrations\": [{\"id\": 1, \"uid\": 0, \"pid\": 1, \"pidfd\": 5,"
	"    \"client\": 1, \"drain_untold\": 0, \"instance\": \"web-1\", \"granted\": [0],"
	"    \"told\": [[0, 0, 3]], \"adopting\": null, \"workers\": [{\"slot\": 4095, \"weight\": 100,"
	"    \"state\": 1, \"since\": 1, \"drain_before\": 0, \"present\": 1}]}]}]}";

/* The example with one thing replaced by another. */
static void refused(const char *what, const char *by, const char *sentence)
{
	const char *at = strstr(example, what);
	char text[4096];
	json_error_t error;
	json_t *json;

	assert_non_null(at);
	snprintf(text, sizeof(text), "%.*s%s%s", (int)(at - example), example, by,
		at + strlen(what));
	json = json_loads(text, 0, &error);
	assert_non_null(json);
	if (sentence)
		assert_string_equal(state_check(json), sentence);
	else
		assert_null(state_check(json));
	json_decref(json);
}

static void what_cannot_be_gone_on_from_is_refused(void **unused)
{
	refused("\"ring\": 1", "\"ring\": 1", NULL);
	refused("\"ring\": 1", "\"ring\": \"1\"", "it is incomplete");
	refused("\"next_slot\": 0", "\"next_slot\": 4096", "it is incomplete");
	refused("\"reserved_slot\": -1", "\"reserved_slot\": 4096", "a service is incomplete");
	refused("\"index\": 0", "\"index\": 64", "a listener is incomplete");
	refused("[0, 0, 0, 0, 0, 0, 0]", "[0, 0, 0, 0, 0, 0]", "a listener is incomplete");
	refused("\"standby_index\": 4096", "\"standby_index\": 4097", "a group is incomplete");
	refused("\"layout\": 1", "\"layout\": -1", "a map of a group is incomplete");
	refused("\"slot\": 4095", "\"slot\": 4096", "a worker is incomplete");
	refused("\"state\": 1", "\"state\": 3", "a worker is incomplete");
	refused("\"web-1\"", "\"\"", "a registration is incomplete");
	refused("\"web-1\"", "\"0123456789012345678901234567890123456789012345678901234567890123\"",
		"a registration is incomplete");
	refused("[[0, 0, 3]]", "[[1, 0, 3]]", "a registration's keys are incomplete");
	refused("[[0, 0, 3]]", "[[0, 1, 3]]", "a registration's keys are incomplete");
	refused("\"entry\": 9", "\"entry\": 0", "a client is incomplete");
	refused("\"present\": 1}]",
		"\"present\": 1}, {\"slot\": 4095, \"weight\": 1, \"state\": 0, \"since\": 0, "
		"\"drain_before\": 0, \"present\": 0}]",
		"two workers have one slot");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_written_last_is_read),
		cmocka_unit_test(half_a_write_is_none),
		cmocka_unit_test(damage_is_seen),
		cmocka_unit_test(what_cannot_be_written_changes_nothing),
		cmocka_unit_test(text_leaves_in_parts_whatever_it_is_made_of),
		cmocka_unit_test(text_of_which_a_part_cannot_leave_has_failed),
		cmocka_unit_test(configuration_comes_back_in_every_field),
		cmocka_unit_test(users_of_a_service_come_back),
		cmocka_unit_test(keys_come_back_and_prefixes_go_on),
		cmocka_unit_test(what_cannot_be_gone_on_from_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
