/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The Varlink server with methods made up here: what it answers to each kind of call, who may call
 * what, and that no client costs another one anything: one that sends garbage, half a call or more
 * than allowed, that comes too often, or that never reads. Server and clients share one thread: the
 * event loop runs where a client waits.
 */
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

/* The user that the server takes itself for: the tests run as one user, and need two. */
static uid_t tested_euid;
#define geteuid() tested_euid
#include "daemon/control.c"
#undef geteuid

#define DEADLINE_SEC 60
#define BIG_OCTETS (3 * 1024 * 1024)

struct counter {
	struct control_stream stream;
	int left, n, ended; /* replies to come, that were made; ends */
	bool big, fails;
};

struct fixture {
	struct counter counter;
	sd_event *event;
	struct control *control;
	struct accounts *accounts; /* NULL, unless the test makes them */
	struct sockaddr_un address;
	socklen_t address_length;
	unsigned calls; /* of Change */
	int client;
	struct varlink_buffer input; /* of client */
};

static int method_echo(
	void *user_data, const json_t *parameters, json_t **ret, const char **ret_error)
{
	*ret = json_pack("{s:O}", "echo", parameters);
	return 0;
}

static int method_change(
	void *user_data, const json_t *parameters, json_t **ret, const char **ret_error)
{
	struct fixture *f = user_data;

	*ret = json_pack("{s:i}", "calls", (int)++f->calls);
	return 0;
}

static int method_fail(
	void *user_data, const json_t *parameters, json_t **ret, const char **ret_error)
{
	return -ENOSPC;
}

static int method_no_worker(
	void *user_data, const json_t *parameters, json_t **ret, const char **ret_error)
{
	*ret_error = "io.reuseport.Control.NoSuchWorker";
	*ret = json_pack("{s:s}", "worker", "7");
	return -ENOENT;
}

/* size octets, BIG_OCTETS by default. */
static int method_big(
	void *user_data, const json_t *parameters, json_t **ret, const char **ret_error)
{
	json_int_t size = json_integer_value(json_object_get(parameters, "size"));
	char *text = malloc((size_t)(size ? size : BIG_OCTETS) + 1);

	if (!text)
		return -ENOMEM;
	memset(text, 'x', (size_t)(size ? size : BIG_OCTETS));
	text[size ? size : BIG_OCTETS] = '\0';
	*ret = json_pack("{s:s}", "big", text);
	free(text);
	return 0;
}

static int next_count(struct control_stream *stream, json_t **ret)
{
	struct counter *counter = (struct counter *)stream;
	static char text[BIG_OCTETS + 1];

	if (counter->fails)
		return -EIO;
	if (!counter->left)
		return 0;
	counter->left--;
	counter->n++;
	memset(text, 'x', BIG_OCTETS);
	*ret = counter->big ? json_pack("{s:s}", "big", text) : json_pack("{s:i}", "n", counter->n);
	return 1;
}

static void end_count(struct control_stream *stream)
{
	((struct counter *)stream)->ended++;
}

static int open_count(void *user_data, const json_t *parameters, struct control_stream **ret,
	json_t **ret_parameters, const char **ret_error)
{
	struct fixture *f = user_data;

	f->counter.stream = (struct control_stream){.next = next_count, .end = end_count};
	*ret = &f->counter.stream;
	return 0;
}

static const struct control_method methods[] = {
	{.name = "Count", .opener = open_count},
	{.name = "Echo", .handler = method_echo},
	{.name = "Change", .changes = true, .handler = method_change},
	{.name = "Fail", .handler = method_fail},
	{.name = "NoWorker", .handler = method_no_worker},
	{.name = "Big", .handler = method_big},
	{0},
};

static int64_t now_sec(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec;
}

/* One turn of the server, if there is anything for it to do within 100 ms. */
static void turn(struct fixture *f)
{
	assert_true(sd_event_run(f->event, 100 * USEC_PER_MSEC) >= 0);
}

static int connect_client(struct fixture *f)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	assert_true(fd >= 0);
	assert_int_equal(connect(fd, (const struct sockaddr *)&f->address, f->address_length), 0);
	return fd;
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	*state = f;
	tested_euid = getuid();
	if (!f || listener < 0)
		return -1;
	/* Autobind, unix(7): a free abstract name, no file to remove. */
	f->address.sun_family = AF_UNIX;
	f->address_length = sizeof(f->address);
	if (bind(listener, (struct sockaddr *)&f->address, sizeof(sa_family_t)) < 0 ||
		listen(listener, 64) < 0 ||
		getsockname(listener, (struct sockaddr *)&f->address, &f->address_length) < 0 ||
		sd_event_new(&f->event) < 0 ||
		control_new(&f->control, f->event, listener, methods, f) < 0)
		return -1;
	f->client = connect_client(f);
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	control_free(f->control);
	accounts_free(f->accounts);
	sd_event_unref(f->event);
	close_fd(&f->client);
	varlink_done(&f->input);
	free(f);
	return 0;
}

static void put(struct fixture *f, int fd, const void *octets, size_t length)
{
	int64_t end = now_sec() + DEADLINE_SEC;
	const char *next = octets;

	while (length) {
		ssize_t n = send(fd, next, length, MSG_NOSIGNAL | MSG_DONTWAIT);

		assert_true(now_sec() < end);
		if (n < 0) {
			assert_int_equal(errno, EAGAIN);
			turn(f);
			continue;
		}
		next += n;
		length -= (size_t)n;
	}
}

static void put_text(struct fixture *f, const char *text)
{
	put(f, f->client, text, strlen(text) + 1);
}

/* The next message that comes to the client; NULL when the server closed the connection. */
static json_t *take(struct fixture *f)
{
	int64_t end = now_sec() + DEADLINE_SEC;
	json_t *message = NULL;

	for (;;) {
		int result = varlink_next(&f->input, &message, NULL);

		if (result)
			return result > 0 ? message : NULL;
		result = varlink_fill(&f->input, f->client, 64 * 1024 * 1024);
		if (result == 0 || result == -ECONNRESET)
			return NULL;
		assert_true(result == 1 || result == -EAGAIN);
		assert_true(now_sec() < end);
		if (result == -EAGAIN)
			turn(f);
	}
}

/* Sends call and compares the whole reply with what is expected, both as JSON. */
static void expect(struct fixture *f, const char *call, const char *expected)
{
	json_t *wanted = json_loads(expected, 0, NULL), *reply;

	put_text(f, call);
	reply = take(f);
	assert_non_null(wanted);
	assert_non_null(reply);
	if (!json_equal(reply, wanted)) {
		char *text = json_dumps(reply, 0);

		print_error("%s was answered %s\n", call, text);
		free(text);
		fail();
	}
	json_decref(wanted);
	json_decref(reply);
}

#define METHOD(name) "{\"method\":\"io.reuseport.Control." name "\"}"
#define DONE(n) "{\"parameters\":{\"calls\":" #n "}}"

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

static unsigned count(const struct fixture *f)
{
	unsigned n = 0;

	for (const struct connection *c = f->control->connections; c; c = c->next)
		n++;
	return n;
}

static void expect_count(struct fixture *f, unsigned n)
{
	int64_t end = now_sec() + DEADLINE_SEC;

	while (count(f) != n) {
		assert_true(now_sec() < end);
		turn(f);
	}
}

static void garbage_ends_its_own_connection_only(void **state)
{
	static const char *const garbage[] = {"GET / HTTP/1.1\r\n\r\n", "", "[]", "{}", "1",
		"{\"method\":7}", "{\"method\":\"a.b\",\"parameters\":[]}", "{\"method\":\"a.b\"",
		"\xff\xfe"};
	struct fixture *f = *state;
	int good = f->client;

	expect(f, METHOD("Echo"), "{\"parameters\":{\"echo\":{}}}");
	for (size_t i = 0; i < ARRAY_SIZE(garbage); i++) {
		f->client = connect_client(f);
		put_text(f, garbage[i]);
		assert_null(take(f));
		close_fd(&f->client);
	}
	f->client = good;
	expect_count(f, 1);
	expect(f, METHOD("Echo"), "{\"parameters\":{\"echo\":{}}}");
}

static void half_a_call_is_forgotten_with_its_connection(void **state)
{
	struct fixture *f = *state;
	int fd = connect_client(f);

	put(f, fd, "{\"method\":\"io.reuse", 20);
	expect_count(f, 2);
	expect(f, METHOD("Echo"), "{\"parameters\":{\"echo\":{}}}");
	close_fd(&fd);
	expect_count(f, 1);
	expect(f, METHOD("Echo"), "{\"parameters\":{\"echo\":{}}}");
}

static void a_call_beyond_a_mebibyte_ends_its_connection(void **state)
{
	static char spaces[65536];
	struct fixture *f = *state;
	int64_t end = now_sec() + DEADLINE_SEC;
	size_t sent = 0;

	memset(spaces, ' ', sizeof(spaces));
	while (sent < 4 * CALL_OCTETS) {
		ssize_t n = send(f->client, spaces, sizeof(spaces), MSG_NOSIGNAL | MSG_DONTWAIT);

		assert_true(now_sec() < end);
		if (n < 0 && errno == EAGAIN)
			turn(f);
		else if (n < 0)
			break;
		else
			sent += (size_t)n;
	}
	assert_true(sent > CALL_OCTETS);
	assert_true(sent < 4 * CALL_OCTETS);
	expect_count(f, 0);
}

static void a_long_answer_comes_whole(void **state)
{
	struct fixture *f = *state;

	for (int i = 0; i < 2; i++) {
		json_t *reply, *parameters;

		put_text(f, METHOD("Big"));
		reply = take(f);
		assert_non_null(reply);
		parameters = json_object_get(reply, "parameters");
		assert_int_equal(
			json_string_length(json_object_get(parameters, "big")), BIG_OCTETS);
		json_decref(reply);
	}
	expect(f, METHOD("Change"), DONE(1));
}

static void a_client_that_never_reads_holds_one_answer_and_nobody_up(void **state)
{
	struct fixture *f = *state;
	int good = f->client, fd;

	f->client = fd = connect_client(f);
	for (int i = 0; i < 100; i++)
		put_text(f, METHOD("Big"));
	f->client = good;
	for (int i = 0; i < 20; i++)
		expect(f, METHOD("Echo"), "{\"parameters\":{\"echo\":{}}}");
	expect_count(f, 2);
	for (const struct connection *c = f->control->connections; c; c = c->next)
		assert_true(c->output_length <= BIG_OCTETS + 64);
	close_fd(&fd);
	expect_count(f, 1);
	expect(f, METHOD("Echo"), "{\"parameters\":{\"echo\":{}}}");
}

static void an_answer_beyond_the_bound_is_an_error(void **state)
{
	struct fixture *f = *state;

	expect(f, "{\"method\":\"io.reuseport.Control.Big\",\"parameters\":{\"size\":9000000}}",
		"{\"error\":\"io.reuseport.Control.Failed\",\"parameters\":{\"errno\":90,\"message\":"
		"\"the answer is larger than 8 MiB; ask for one service\"}}");
	expect_count(f, 1);
}

/* What was sent is not kept: an idle connection costs no buffer. */
static void nothing_is_kept_of_an_answer_that_was_read(void **state)
{
	struct fixture *f = *state;
	json_t *reply;

	put_text(f, METHOD("Big"));
	reply = take(f);
	assert_non_null(reply);
	json_decref(reply);
	assert_null(f->control->connections->output);
}

#define MORE(name) "{\"method\":\"io.reuseport.Control." name "\",\"more\":true}"
#define COUNTED(n) "{\"continues\":true,\"parameters\":{\"n\":" n "}}"

static void expect_next(struct fixture *f, const char *expected)
{
	json_t *wanted = json_loads(expected, 0, NULL), *reply = take(f);

	assert_non_null(reply);
	assert_true(json_equal(wanted, reply));
	json_decref(wanted);
	json_decref(reply);
}

static void a_stream_answers_as_long_as_there_is_something(void **state)
{
	struct fixture *f = *state;

	f->counter.left = 2;
	expect(f, MORE("Count"), COUNTED("1"));
	expect_next(f, COUNTED("2"));
	turn(f);
	assert_int_equal(f->counter.n, 2);
	f->counter.left = 1;
	control_stream_wake(&f->counter.stream);
	expect_next(f, COUNTED("3"));
}

static void a_stream_takes_no_other_call(void **state)
{
	struct fixture *f = *state;

	f->counter.left = 1;
	expect(f, MORE("Count"), COUNTED("1"));
	put_text(f, METHOD("Echo"));
	turn(f);
	f->counter.left = 1;
	control_stream_wake(&f->counter.stream);
	expect_next(f, COUNTED("2"));
	assert_true(f->control->connections->output_length == 0);
}

static void a_stream_is_asked_only_as_far_as_its_client_reads(void **state)
{
	struct fixture *f = *state;

	f->counter.left = 1000000;
	f->counter.big = true;
	put_text(f, MORE("Count"));
	for (int i = 0; i < 100; i++)
		turn(f);
	assert_true(f->control->connections->output_length <= STREAM_OCTETS + BIG_OCTETS + 128);
	assert_in_range(f->counter.n, 1, 10);
	/* However long that takes it, while other answers that nobody reads are an end. */
	control_tick(f->control, 0);
	expect_count(f, 1);
}

static void a_stream_ends_with_its_connection(void **state)
{
	struct fixture *f = *state;
	json_t *reply;

	f->counter.left = 1;
	put_text(f, MORE("Count"));
	reply = take(f);
	assert_non_null(reply);
	json_decref(reply);
	turn(f);
	close_fd(&f->client);
	turn(f);
	expect_count(f, 0);
	assert_int_equal(f->counter.ended, 1);
}

static void a_stream_that_fails_ends_its_connection(void **state)
{
	struct fixture *f = *state;

	f->counter.fails = true;
	put_text(f, MORE("Count"));
	assert_null(take(f));
	assert_int_equal(f->counter.ended, 1);
}

static void a_stream_needs_more_and_an_answer(void **state)
{
	struct fixture *f = *state;

	expect(f, METHOD("Count"),
		"{\"error\":\"org.varlink.service.ExpectedMore\",\"parameters\":{}}");
	put_text(f, "{\"method\":\"io.reuseport.Control.Count\",\"more\":true,\"oneway\":true}");
	expect(f, METHOD("Echo"), "{\"parameters\":{\"echo\":{}}}");
	assert_int_equal(f->counter.n, 0);
}

/* Other methods have one reply, whatever was allowed. */
static void more_changes_nothing_for_others(void **state)
{
	expect(*state, MORE("Echo"), "{\"parameters\":{\"echo\":{}}}");
	expect(*state, METHOD("Echo"), "{\"parameters\":{\"echo\":{}}}");
}

/* Whatever one connection has sent in advance, between two of its calls others are answered. */
static void calls_sent_in_advance_wait_for_others(void **state)
{
	struct fixture *f = *state;
	int fd;
	static const char call[] = "{\"method\":\"io.reuseport.Control.Change\",\"oneway\":true}";
	static char calls[1000 * sizeof(call)];

	for (int i = 0; i < 1000; i++)
		memcpy(calls + (size_t)i * sizeof(call), call, sizeof(call));
	fd = connect_client(f);
	assert_int_equal(send(fd, calls, sizeof(calls), 0), sizeof(calls));
	expect(f, METHOD("Echo"), "{\"parameters\":{\"echo\":{}}}");
	assert_in_range(f->calls, 0, 20);
	for (int i = 0; i < 2000 && f->calls < 1000; i++)
		turn(f);
	assert_int_equal(f->calls, 1000);
	close_fd(&fd);
}

static void accounts_setup(struct fixture *f, unsigned rate, uid_t uid)
{
	assert_int_equal(accounts_new(&f->accounts, f->event), 0);
	accounts_set_rate(f->accounts, rate);
	control_set_accounts(f->control, f->accounts);
	turn(f); /* the fixture's client comes; then as the user that the test wants */
	f->control->connections->account = accounts_get(f->accounts, uid);
}

static void a_user_with_too_many_calls_waits_and_loses_none(void **state)
{
	struct fixture *f = *state;
	struct account *account;

	accounts_setup(f, 10, 1234);
	account = f->control->connections->account;
	account_charge(account, now_usec(), 12); /* 1.2 s: for 0.2 s it may nothing */
	put_text(f, METHOD("Echo"));
	turn(f);
	assert_ptr_equal(account->first, &f->control->connections->turn);
	control_tick(f->control, 0);
	expect_count(f, 1);
	expect(f, METHOD("Echo"), "{\"parameters\":{\"echo\":{}}}");
	assert_null(account->first);
	/* One that leaves while it waits leaves nothing behind. */
	account_charge(account, now_usec(), 100);
	put_text(f, METHOD("Echo"));
	turn(f);
	assert_non_null(account->first);
	connection_free(f->control->connections);
	assert_null(account->first);
	assert_int_equal(account->n_octets, 0);
}

static void a_users_connections_hold_so_many_octets(void **state)
{
	static char spaces[CALL_OCTETS - 65536];
	struct fixture *f = *state;
	int fds[40];
	unsigned n = 0;

	memset(spaces, ' ', sizeof(spaces));
	accounts_setup(f, 0, 0);
	for (size_t i = 0; i < ARRAY_SIZE(fds); i++) {
		fds[i] = connect_client(f);
		turn(f);
		f->control->connections->account->n_octets -= f->control->connections->n_octets;
		f->control->connections->account = accounts_get(f->accounts, 1234);
		for (size_t sent = 0; sent < sizeof(spaces);) {
			ssize_t octets = send(fds[i], spaces, 65536, MSG_NOSIGNAL | MSG_DONTWAIT);

			if (octets < 0 && errno != EAGAIN)
				break;
			sent += octets > 0 ? (size_t)octets : 0;
			turn(f);
		}
	}
	for (struct connection *c = f->control->connections; c; c = c->next)
		n++;
	/* Each holds almost a MiB: so many fit, and the fixture's own. */
	assert_in_range(n, 32, 36);
	assert_in_range(accounts_get(f->accounts, 1234)->n_octets, USER_OCTETS / 2, USER_OCTETS);
	for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
		close_fd(&fds[i]);
	expect_count(f, 1);
	assert_int_equal(accounts_get(f->accounts, 1234)->n_octets, 0);
}

static void half_a_call_and_an_unread_answer_have_their_time(void **state)
{
	struct fixture *f = *state;
	int half = connect_client(f), unread = connect_client(f), idle = connect_client(f);

	put(f, half, "{\"method\":\"io.reuse", 19); /* without the NUL that ends a call */
	put(f, unread, METHOD("Big"), sizeof(METHOD("Big")));
	expect_count(f, 4);
	for (int i = 0; i < 20; i++)
		expect(f, METHOD("Echo"), "{\"parameters\":{\"echo\":{}}}");
	control_tick(f->control, 3600 * USEC_PER_SEC);
	expect_count(f, 4);
	turn(f);
	control_tick(f->control, 0);
	expect_count(f, 2);
	expect(f, METHOD("Echo"), "{\"parameters\":{\"echo\":{}}}");
	close_fd(&half);
	close_fd(&unread);
	close_fd(&idle);
}

static void one_user_has_so_many_connections(void **state)
{
	struct fixture *f = *state;
	int fds[20], open = 0;

	control_set_max_connections(f->control, 8);
	expect(f, METHOD("Echo"), "{\"parameters\":{\"echo\":{}}}");
	for (size_t i = 0; i < ARRAY_SIZE(fds); i++) {
		fds[i] = connect_client(f);
		turn(f);
	}
	expect_count(f, 8);
	for (size_t i = 0; i < ARRAY_SIZE(fds); i++) {
		char octet;

		/* Refused: the end of the stream is there. */
		open += recv(fds[i], &octet, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN;
	}
	assert_int_equal(open, 7);
	expect(f, METHOD("Echo"), "{\"parameters\":{\"echo\":{}}}");
	for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
		close_fd(&fds[i]);
	expect_count(f, 1);
	fds[0] = connect_client(f);
	expect_count(f, 2);
	close_fd(&fds[0]);
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, setup, teardown)

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
		TEST(garbage_ends_its_own_connection_only),
		TEST(half_a_call_is_forgotten_with_its_connection),
		TEST(a_call_beyond_a_mebibyte_ends_its_connection),
		TEST(a_long_answer_comes_whole),
		TEST(a_client_that_never_reads_holds_one_answer_and_nobody_up),
		TEST(an_answer_beyond_the_bound_is_an_error),
		TEST(nothing_is_kept_of_an_answer_that_was_read),
		TEST(a_stream_answers_as_long_as_there_is_something),
		TEST(a_stream_takes_no_other_call),
		TEST(a_stream_is_asked_only_as_far_as_its_client_reads),
		TEST(a_stream_ends_with_its_connection),
		TEST(a_stream_that_fails_ends_its_connection),
		TEST(a_stream_needs_more_and_an_answer),
		TEST(more_changes_nothing_for_others),
		TEST(one_user_has_so_many_connections),
		TEST(calls_sent_in_advance_wait_for_others),
		TEST(a_user_with_too_many_calls_waits_and_loses_none),
		TEST(a_users_connections_hold_so_many_octets),
		TEST(half_a_call_and_an_unread_answer_have_their_time),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
