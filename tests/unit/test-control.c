/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What the Varlink server answers to each kind of call, and who may call what.
 */
#include "tests/unit/control-fixture.h"

static void a_method_is_called_with_its_parameters(void **state)
{
	expect(*state,
		"{\"method\":\"io.reuseport.Control.Echo\",\"parameters\":{\"a\":[1,\"\\u00e9\"]}}",
		"{\"parameters\":{\"echo\":{\"a\":[1,\"\\u00e9\"]}}}");
	expect(*state, METHOD("Echo"), "{\"parameters\":{\"echo\":{}}}");
	expect(*state, "{\"method\":\"io.reuseport.Control.Echo\",\"parameters\":null}",
		"{\"parameters\":{\"echo\":{}}}");
}

static void get_info_names_the_interfaces(void **state)
{
	expect(*state, "{\"method\":\"org.varlink.service.GetInfo\"}",
		"{\"parameters\":{\"vendor\":\"reuseportd\",\"product\":\"reuseportd\","
		"\"version\":\"" VERSION "\",\"url\":\"\","
		"\"interfaces\":[\"org.varlink.service\",\"io.reuseport.Control\"]}}");
}

static void interface_description_is_the_file(void **state)
{
	static char text[65536];
	struct fixture *f = *state;
	const char *source = getenv("REUSEPORT_SOURCE");
	char path[4096];
	json_t *reply;
	FILE *file;
	size_t n;

	if (!source) {
		print_message("REUSEPORT_SOURCE is not set: run by meson test\n");
		skip();
	}
	snprintf(path, sizeof(path), "%s/proto/io.reuseport.Control.varlink", source);
	file = fopen(path, "re");
	assert_non_null(file);
	n = fread(text, 1, sizeof(text) - 1, file);
	fclose(file);
	text[n] = '\0';
	put_text(f, "{\"method\":\"org.varlink.service.GetInterfaceDescription\","
		    "\"parameters\":{\"interface\":\"io.reuseport.Control\"}}");
	reply = take(f);
	assert_string_equal(json_string_value(json_object_get(
				    json_object_get(reply, "parameters"), "description")),
		text);
	json_decref(reply);
}

static void errors_have_their_varlink_names(void **state)
{
	expect(*state, METHOD("Nothing"),
		"{\"error\":\"org.varlink.service.MethodNotFound\","
		"\"parameters\":{\"method\":\"io.reuseport.Control.Nothing\"}}");
	expect(*state, "{\"method\":\"org.varlink.service.Nothing\"}",
		"{\"error\":\"org.varlink.service.MethodNotFound\","
		"\"parameters\":{\"method\":\"org.varlink.service.Nothing\"}}");
	expect(*state, "{\"method\":\"org.example.Echo\"}",
		"{\"error\":\"org.varlink.service.InterfaceNotFound\","
		"\"parameters\":{\"interface\":\"org.example\"}}");
	expect(*state, "{\"method\":\"io.reuseport.ControlX.Echo\"}",
		"{\"error\":\"org.varlink.service.InterfaceNotFound\","
		"\"parameters\":{\"interface\":\"io.reuseport.ControlX\"}}");
	expect(*state, "{\"method\":\"Echo\"}",
		"{\"error\":\"org.varlink.service.InterfaceNotFound\","
		"\"parameters\":{\"interface\":\"\"}}");
	expect(*state, "{\"method\":\"org.varlink.service.GetInterfaceDescription\"}",
		"{\"error\":\"org.varlink.service.InvalidParameter\","
		"\"parameters\":{\"parameter\":\"interface\"}}");
	expect(*state,
		"{\"method\":\"org.varlink.service.GetInterfaceDescription\","
		"\"parameters\":{\"interface\":\"org.example\"}}",
		"{\"error\":\"org.varlink.service.InterfaceNotFound\","
		"\"parameters\":{\"interface\":\"org.example\"}}");
	expect(*state, METHOD("NoWorker"),
		"{\"error\":\"io.reuseport.Control.NoSuchWorker\",\"parameters\":{\"worker\":\"7\"}}");
	expect(*state, METHOD("Fail"),
		"{\"error\":\"io.reuseport.Control.Failed\",\"parameters\":"
		"{\"message\":\"No space left on device\",\"errno\":28}}");
}

static void oneway_is_carried_out_and_not_answered(void **state)
{
	struct fixture *f = *state;

	put_text(f, "{\"method\":\"io.reuseport.Control.Change\",\"oneway\":true}");
	put_text(f, "{\"method\":\"io.reuseport.Control.Nothing\",\"oneway\":true}");
	expect(f, METHOD("Change"), DONE(2));
	assert_int_equal(f->calls, 2);
}

static void more_gets_its_one_reply(void **state)
{
	expect(*state, "{\"method\":\"io.reuseport.Control.Change\",\"more\":true}", DONE(1));
	expect(*state, METHOD("Change"), DONE(2));
}

static void upgrade_is_not_implemented(void **state)
{
	struct fixture *f = *state;

	expect(f, "{\"method\":\"io.reuseport.Control.Change\",\"upgrade\":true}",
		"{\"error\":\"org.varlink.service.MethodNotImplemented\","
		"\"parameters\":{\"method\":\"io.reuseport.Control.Change\"}}");
	assert_int_equal(f->calls, 0);
}

static void calls_sent_together_are_answered_in_order(void **state)
{
	struct fixture *f = *state;

	for (int i = 1; i <= 100; i++)
		put_text(f, METHOD("Change"));
	for (int i = 1; i <= 100; i++) {
		json_t *reply = take(f);
		json_t *parameters = json_object_get(reply, "parameters");

		assert_int_equal(json_integer_value(json_object_get(parameters, "calls")), i);
		json_decref(reply);
	}
	assert_int_equal(f->calls, 100);
}

static void a_call_may_come_in_pieces(void **state)
{
	struct fixture *f = *state;
	const char call[] = METHOD("Change");
	json_t *reply;

	for (size_t i = 0; i + 1 < sizeof(call); i++) {
		put(f, f->client, call + i, 1);
		turn(f);
	}
	assert_int_equal(f->calls, 0);
	put(f, f->client, "", 1);
	reply = take(f);
	assert_non_null(reply);
	json_decref(reply);
	assert_int_equal(f->calls, 1);
}

static void a_call_is_answered_after_the_client_ended_its_side(void **state)
{
	struct fixture *f = *state;
	json_t *reply;

	put_text(f, METHOD("Change"));
	assert_int_equal(shutdown(f->client, SHUT_WR), 0);
	reply = take(f);
	assert_non_null(reply);
	json_decref(reply);
	assert_null(take(f));
}

/* As a client that is neither root nor the daemon's user: the server takes it for user 65534. */
static void as_stranger(struct fixture *f, gid_t group)
{
	struct connection *connection;
	int64_t end = now_sec() + DEADLINE_SEC;

	while (!f->control->connections) {
		assert_true(now_sec() < end);
		turn(f);
	}
	connection = f->control->connections;
	assert_null(connection->next);
	connection->peer.uid = 65534;
	tested_euid = 0;
	free(connection->peer.gids);
	connection->peer.gids = malloc(sizeof(gid_t));
	assert_non_null(connection->peer.gids);
	connection->peer.gids[0] = group;
	connection->peer.n_gids = 1;
}

static void expect_denied(struct fixture *f, const char *call)
{
	unsigned calls = f->calls;
	json_t *reply;

	put_text(f, call);
	reply = take(f);
	assert_non_null(reply);
	assert_string_equal(json_string_value(json_object_get(reply, "error")),
		"io.reuseport.Control.PermissionDenied");
	json_decref(reply);
	assert_int_equal(f->calls, calls);
}

static void without_groups_anyone_reads_and_root_changes(void **state)
{
	struct fixture *f = *state;

	as_stranger(f, 1001);
	expect(f, METHOD("Echo"), "{\"parameters\":{\"echo\":{}}}");
	expect_denied(f, METHOD("Change"));
	tested_euid = 65534; /* the user of the daemon */
	expect(f, METHOD("Change"), DONE(1));
	f->control->connections->peer.uid = 0;
	tested_euid = 1;
	expect(f, METHOD("Change"), DONE(2));
}

static void the_status_group_reads_only(void **state)
{
	struct fixture *f = *state;

	control_set_groups(f->control, 1001, 1002);
	as_stranger(f, 1001);
	expect(f, METHOD("Echo"), "{\"parameters\":{\"echo\":{}}}");
	expect_denied(f, METHOD("Change"));
}

static void the_admin_group_reads_and_changes(void **state)
{
	struct fixture *f = *state;

	control_set_groups(f->control, 1001, 1002);
	as_stranger(f, 1002);
	expect(f, METHOD("Echo"), "{\"parameters\":{\"echo\":{}}}");
	expect(f, METHOD("Change"), DONE(1));
}

static void others_do_nothing_but_ask_what_this_is(void **state)
{
	struct fixture *f = *state;

	control_set_groups(f->control, 1001, 1002);
	as_stranger(f, 1003);
	expect_denied(f, METHOD("Echo"));
	expect_denied(f, METHOD("Change"));
	expect_denied(f, "{\"method\":\"io.reuseport.Control.Change\",\"more\":true}");
	put_text(f, "{\"method\":\"io.reuseport.Control.Change\",\"oneway\":true}");
	expect(f,
		"{\"method\":\"org.varlink.service.GetInterfaceDescription\","
		"\"parameters\":{\"interface\":\"org.example\"}}",
		"{\"error\":\"org.varlink.service.InterfaceNotFound\","
		"\"parameters\":{\"interface\":\"org.example\"}}");
	assert_int_equal(f->calls, 0);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		TEST(a_method_is_called_with_its_parameters),
		TEST(get_info_names_the_interfaces),
		TEST(interface_description_is_the_file),
		TEST(errors_have_their_varlink_names),
		TEST(oneway_is_carried_out_and_not_answered),
		TEST(more_gets_its_one_reply),
		TEST(upgrade_is_not_implemented),
		TEST(calls_sent_together_are_answered_in_order),
		TEST(a_call_may_come_in_pieces),
		TEST(a_call_is_answered_after_the_client_ended_its_side),
		TEST(without_groups_anyone_reads_and_root_changes),
		TEST(the_status_group_reads_only),
		TEST(the_admin_group_reads_and_changes),
		TEST(others_do_nothing_but_ask_what_this_is),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
