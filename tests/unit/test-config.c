/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What each key of the configuration does, and each form of --listen.
 */
#include <arpa/inet.h>
#include <netinet/in.h>

#include "tests/unit/config-fixture.h"

static void an_empty_directory_gives_the_defaults(void **state)
{
	_cleanup_(config_freep) struct config *config = NULL;
	_directory_ directory;

	directory_init(&directory);
	config = loaded(&directory);
	assert_int_equal(config->n_services, 0);
	assert_string_equal(config->user, "reuseport");
	assert_true(config->status_group == (gid_t)-1);
	assert_true(config->admin_group == (gid_t)-1);
	assert_int_equal(config->host_id, 0);
	assert_int_equal(config->max_connections, 512);
	assert_int_equal(config->max_slots, 2048);
	assert_int_equal(config->max_cids, 1048576);
	assert_int_equal(config->max_messages, 10000);
	assert_int_equal(config->answer_timeout_usec, 10 * USEC_PER_SEC);
	assert_int_equal(config->resume_grace_usec, 10 * USEC_PER_SEC);
	assert_string_equal(config->state_directory, "/var/lib/reuseportd");
	assert_false(config->state_directory_set);
}

static void the_state_directory_is_the_one_of_systemd_unless_named(void **state)
{
	static const char *const environment[][2] = {
		{"/var/lib/private/x", "/var/lib/private/x"},
		{"/var/lib/a:/var/lib/b", "/var/lib/a"},
		{"", "/var/lib/reuseportd"},
		{"relative", "/var/lib/reuseportd"},
	};
	_cleanup_(config_freep) struct config *named = NULL;
	_directory_ directory;

	for (size_t i = 0; i < ARRAY_SIZE(environment); i++) {
		_cleanup_(config_freep) struct config *config = NULL;

		setenv("STATE_DIRECTORY", environment[i][0], 1);
		assert_int_equal(config_new(&config), 0);
		assert_string_equal(config->state_directory, environment[i][1]);
		assert_false(config->state_directory_set);
	}
	setenv("STATE_DIRECTORY", "/var/lib/a", 1);
	directory_init(&directory);
	directory_daemon(&directory, "[Daemon]\nStateDirectory=/srv/state\n");
	named = loaded(&directory);
	assert_string_equal(named->state_directory, "/srv/state");
	assert_true(named->state_directory_set);
	unsetenv("STATE_DIRECTORY");
	assert_daemon_mistake("[Daemon]\nStateDirectory=state\n",
		"@/reuseportd.conf:2: StateDirectory= is 'state', not a path that begins with /");
}

static void a_key_file_is_a_path_or_the_name_of_a_credential(void **state)
{
	static const char text[] = "[Service]\n[Listener a]\nListenQUIC=1\n"
				   "ConnectionIDKeyFile=/etc/keys\n"
				   "[Listener b]\nListenQUIC=2\nConnectionID=quic-lb\n"
				   "ConnectionIDKeyFile=cid-keys\n"
				   "[Listener c]\nListenQUIC=3\n";
	_cleanup_(config_freep) struct config *config = NULL;
	_directory_ directory;

	setenv("CREDENTIALS_DIRECTORY", "/run/credentials/reuseportd.service", 1);
	directory_init(&directory);
	directory_add(&directory, "web.conf", text);
	config = loaded(&directory);
	unsetenv("CREDENTIALS_DIRECTORY");
	assert_string_equal(config->services[0]->listeners[0]->key_file, "/etc/keys");
	assert_string_equal(config->services[0]->listeners[1]->key_file,
		"/run/credentials/reuseportd.service/cid-keys");
	assert_null(config->services[0]->listeners[2]->key_file);
	assert_mistakes(&directory,
		"@/services.d/web.conf:8: ConnectionIDKeyFile= is 'cid-keys', neither a path that "
		"begins with / nor (as $CREDENTIALS_DIRECTORY is not set) the name of a "
		"credential");
}

static void a_key_file_is_for_encrypted_connection_ids_alone(void **state)
{
	static const char *const modes[] = {"quic-lb-plain", "registered", "nginx", "opaque"};

	for (size_t i = 0; i < ARRAY_SIZE(modes); i++) {
		_cleanup_free_ char *text = NULL, *expected = NULL;

		assert_true(asprintf(&text,
				    "[Service]\n[Listener a]\nListenQUIC=1\n"
				    "ConnectionIDKeyFile=/k\nConnectionID=%s\n",
				    modes[i]) > 0);
		assert_true(asprintf(&expected,
				    "@/services.d/web.conf:4: ConnectionIDKeyFile= is not for "
				    "ConnectionID=%s; it is for quic-lb, whose IDs are encrypted",
				    modes[i]) > 0);
		assert_service_mistake(text, expected);
	}
	assert_listener_mistake("ConnectionIDKeyFile=/k",
		"ConnectionIDKeyFile= is not for udp; it is for quic listeners");
}

static void every_key_of_the_daemon_is_read(void **state)
{
	_cleanup_(config_freep) struct config *config = NULL;
	_directory_ directory;

	directory_init(&directory);
	directory_daemon(&directory, "# comment\n"
				     "[Daemon]\n"
				     "User=root\n"
				     "StatusGroup=7\n"
				     "AdminGroup=root\n"
				     "HostID=0x1234\n"
				     "MaxConnectionsPerUser=17\n"
				     "MaxSlotsPerUser=18\n"
				     "MaxConnectionIDsPerUser=19\n"
				     "MessagesPerSecondPerUser=20\n"
				     "AnswerTimeoutSec=250ms\n"
				     "ResumeGraceSec=1min\n");
	directory_add(&directory, "web.conf", "[Service]\n[Listener a]\nListenStream=1\n");
	config = loaded(&directory);
	assert_string_equal(config->user, "root");
	assert_int_equal(config->status_group, 7);
	assert_int_equal(config->admin_group, 0);
	assert_int_equal(config->host_id, 0x1234);
	assert_int_equal(config->max_connections, 17);
	assert_int_equal(config->max_slots, 18);
	assert_int_equal(config->max_cids, 19);
	assert_int_equal(config->max_messages, 20);
	assert_int_equal(config->answer_timeout_usec, 250000);
	assert_int_equal(config->resume_grace_usec, 60 * USEC_PER_SEC);
	assert_int_equal(config->services[0]->listeners[0]->host_id, 0x1234);
}

static void a_listener_has_its_defaults(void **state)
{
	_cleanup_(config_freep) struct config *config = NULL;
	const struct listener_config *listener;
	const struct service_config *service;
	_directory_ directory;

	directory_init(&directory);
	directory_add(&directory, "web.conf", "[Service]\n[Listener a]\nListenStream=80\n");
	config = loaded(&directory);
	assert_int_equal(config->n_services, 1);
	service = config->services[0];
	assert_string_equal(service->name, "web");
	assert_string_equal(service->file, directory.files[0]);
	assert_int_equal(service->n_allow_uids, 0);
	assert_int_equal(service->n_allow_gids, 0);
	assert_false(service->allow_all);
	assert_int_equal(service->max_workers, 1024);
	assert_int_equal(service->drain_timeout_usec, 300 * USEC_PER_SEC);
	assert_int_equal(service->stall_timeout_usec, 10 * USEC_PER_SEC);
	assert_false(service->stall_kick);
	assert_int_equal(service->n_listeners, 1);
	listener = service->listeners[0];
	assert_string_equal(listener->name, "a");
	assert_string_equal(listener->file, directory.files[0]);
	assert_int_equal(listener->line, 2);
	assert_int_equal(listener->transport, TRANSPORT_TCP);
	assert_string_equal(listener->address_text, "[::]:80");
	assert_int_equal(listener->backlog, 4096);
	assert_int_equal(listener->receive_buffer, 0);
	assert_int_equal(listener->send_buffer, 0);
	assert_false(listener->ipv6_only);
	assert_null(listener->bind_to_device);
	assert_false(listener->free_bind);
	assert_false(listener->transparent);
	assert_true(listener->mark == -1);
	assert_true(listener->lock_filter);
	assert_true(listener->standby_hold);
	assert_int_equal(listener->standby_timeout_usec, 30 * USEC_PER_SEC);
	assert_int_equal(listener->flow_timeout_usec, 60 * USEC_PER_SEC);
	assert_int_equal(listener->n_flows, 65536);
	assert_int_equal(listener->cid_mode, CID_NONE);
}

static void every_key_of_a_service_is_read(void **state)
{
	_cleanup_(config_freep) struct config *config = NULL;
	const struct listener_config *listener;
	const struct service_config *service;
	_directory_ directory;

	directory_init(&directory);
	directory_add(&directory, "web.conf",
		"\xef\xbb\xbf; a byte order mark before this comment\n"
		"[Service]\n"
		"Name=shop@1:a_b-c.D\n"
		"AllowUser=root 1001\n"
		"AllowUser=1002 ; more\n"
		"AllowGroup=root\t77\n"
		"MaxWorkers=3\n"
		"DrainTimeoutSec=infinity\n"
		"StallTimeoutSec=1500ms\n"
		"StallAction=kick\n"
		"\n"
		"[Listener tcp]\n"
		"ListenStream = 127.0.0.1:8080\n"
		"  Backlog=17\n"
		"ReceiveBuffer=64K\n"
		"SendBuffer=1M\n"
		"BindToDevice=lo\n"
		"FreeBind=on\n"
		"Transparent=TRUE\n"
		"Mark=0xff\n"
		"LockFilter=no\n"
		"Standby=refuse\n"
		"StandbyTimeoutSec=1h 30min 1.5s\n"
		"[ Listener  quic ] # comment\n"
		"ListenQUIC=[::1]:443\n"
		"BindIPv6Only=ipv6-only\n"
		"FlowTimeoutSec=2min\n"
		"Flows=1024\n"
		"ConnectionID=registered\n"
		"[Listener udp]\n"
		"ListenDatagram=[fe80::1%lo]:53\n"
		"StandbyTimeoutSec=0\n");
	config = loaded(&directory);
	service = config->services[0];
	assert_string_equal(service->name, "shop@1:a_b-c.D");
	assert_int_equal(service->n_allow_uids, 3);
	assert_int_equal(service->allow_uids[0], 0);
	assert_int_equal(service->allow_uids[1], 1001);
	assert_int_equal(service->allow_uids[2], 1002);
	assert_int_equal(service->n_allow_gids, 2);
	assert_int_equal(service->allow_gids[0], 0);
	assert_int_equal(service->allow_gids[1], 77);
	assert_int_equal(service->max_workers, 3);
	assert_int_equal(service->drain_timeout_usec, 0);
	assert_int_equal(service->stall_timeout_usec, 1500 * USEC_PER_MSEC);
	assert_true(service->stall_kick);
	assert_int_equal(service->n_listeners, 3);

	listener = service->listeners[0];
	assert_string_equal(listener->address_text, "127.0.0.1:8080");
	assert_int_equal(listener->address.ss_family, AF_INET);
	assert_int_equal(listener->address_length, sizeof(struct sockaddr_in));
	assert_int_equal(((const struct sockaddr_in *)&listener->address)->sin_port, htons(8080));
	assert_int_equal(listener->backlog, 17);
	assert_int_equal(listener->receive_buffer, 65536);
	assert_int_equal(listener->send_buffer, 1048576);
	assert_string_equal(listener->bind_to_device, "lo");
	assert_true(listener->free_bind);
	assert_true(listener->transparent);
	assert_true(listener->mark == 255);
	assert_false(listener->lock_filter);
	assert_false(listener->standby_hold);
	assert_int_equal(listener->standby_timeout_usec, 5401500000ULL);

	listener = service->listeners[1];
	assert_string_equal(listener->name, "quic");
	assert_int_equal(listener->transport, TRANSPORT_QUIC);
	assert_string_equal(listener->address_text, "[::1]:443");
	assert_true(listener->ipv6_only);
	assert_int_equal(listener->flow_timeout_usec, 120 * USEC_PER_SEC);
	assert_int_equal(listener->n_flows, 1024);
	assert_int_equal(listener->cid_mode, CID_REGISTERED);

	listener = service->listeners[2];
	assert_int_equal(listener->transport, TRANSPORT_UDP);
	assert_string_equal(listener->address_text, "[fe80::1%lo]:53");
	assert_int_not_equal(((const struct sockaddr_in6 *)&listener->address)->sin6_scope_id, 0);
	assert_int_equal(listener->standby_timeout_usec, 0);
}

static void every_connection_id_mode_has_its_name(void **state)
{
	static const struct {
		const char *line;
		enum cid_mode mode;
		const char *name;
	} modes[] = {
		{"", CID_QUIC_LB, "quic-lb"},
		{"ConnectionID=quic-lb", CID_QUIC_LB, "quic-lb"},
		{"ConnectionID=quic-lb-plain", CID_QUIC_LB_PLAIN, "quic-lb-plain"},
		{"ConnectionID=registered", CID_REGISTERED, "registered"},
		{"ConnectionID=nginx", CID_NGINX, "nginx"},
		{"ConnectionID=opaque", CID_OPAQUE, "opaque"},
	};

	for (size_t i = 0; i < ARRAY_SIZE(modes); i++) {
		_cleanup_(config_freep) struct config *config = NULL;
		_directory_ directory;
		char text[128];

		directory_init(&directory);
		snprintf(text, sizeof(text), "[Service]\n[Listener q]\nListenQUIC=443\n%s\n",
			modes[i].line);
		directory_add(&directory, "q.conf", text);
		config = loaded(&directory);
		assert_int_equal(config->services[0]->listeners[0]->cid_mode, modes[i].mode);
		assert_string_equal(cid_mode_name(modes[i].mode), modes[i].name);
	}
	assert_string_equal(cid_mode_name(CID_NONE), "none");
}

static void files_are_read_in_the_order_of_their_names(void **state)
{
	_cleanup_(config_freep) struct config *config = NULL;
	_directory_ directory;

	directory_init(&directory);
	directory_add(&directory, "b.conf", "[Service]\n[Listener a]\nListenStream=2\n");
	directory_add(&directory, "a.conf", "[Service]\n[Listener a]\nListenStream=1\n");
	directory_add(&directory, ".hidden.conf", "garbage\n");
	directory_add(&directory, "c.conf.bak", "garbage\n");
	config = loaded(&directory);
	assert_int_equal(config->n_services, 2);
	assert_string_equal(config->services[0]->name, "a");
	assert_string_equal(config->services[1]->name, "b");
}

static void udp_and_tcp_may_have_the_same_address(void **state)
{
	_cleanup_(config_freep) struct config *config = NULL;
	_directory_ directory;

	directory_init(&directory);
	directory_add(&directory, "dns.conf",
		"[Service]\n[Listener a]\nListenStream=53\n[Listener b]\nListenDatagram=53\n");
	config = loaded(&directory);
	assert_int_equal(config->services[0]->n_listeners, 2);
}

static void listen_arguments_make_services(void **state)
{
	_cleanup_(config_freep) struct config *config = NULL;
	const struct service_config *web;
	char *error = NULL;

	assert_int_equal(config_new(&config), 0);
	assert_int_equal(config_add_listen(config, "web=tcp://127.0.0.1:80", &error), 0);
	assert_int_equal(config_add_listen(config, "web=tcp://81", &error), 0);
	assert_int_equal(config_add_listen(config, "web=udp://127.0.0.1:80", &error), 0);
	assert_int_equal(config_add_listen(config, "web=quic://[::1]:443", &error), 0);
	assert_int_equal(config_add_listen(config, "dns=udp://53", &error), 0);
	assert_null(error);
	assert_int_equal(config->n_services, 2);
	web = config->services[0];
	assert_string_equal(web->name, "web");
	assert_true(web->allow_all);
	assert_int_equal(web->n_listeners, 4);
	assert_string_equal(web->listeners[0]->name, "tcp");
	assert_string_equal(web->listeners[0]->address_text, "127.0.0.1:80");
	assert_string_equal(web->listeners[1]->name, "tcp-2");
	assert_string_equal(web->listeners[1]->address_text, "[::]:81");
	assert_string_equal(web->listeners[2]->name, "udp");
	assert_int_equal(web->listeners[2]->transport, TRANSPORT_UDP);
	assert_string_equal(web->listeners[3]->name, "quic");
	assert_int_equal(web->listeners[3]->cid_mode, CID_QUIC_LB);
	assert_string_equal(config->services[1]->name, "dns");
}

static void a_service_allows_its_users_and_groups_and_root(void **state)
{
	static const gid_t member[] = {5, 77}, stranger[] = {5, 6};
	_cleanup_(config_freep) struct config *config = NULL;
	const struct service_config *service;
	_directory_ directory;

	directory_init(&directory);
	directory_add(
		&directory, "web.conf", "[Service]\nAllowUser=1001\nAllowGroup=77\n" LISTENER);
	config = loaded(&directory);
	service = config->services[0];
	assert_true(service_config_allows(service, 0, NULL, 0));
	assert_true(service_config_allows(service, 1001, stranger, 2));
	assert_true(service_config_allows(service, 1002, member, 2));
	assert_false(service_config_allows(service, 1002, stranger, 2));
	assert_int_equal(config_add_listen(config, "any=tcp://2", NULL), 0);
	assert_true(service_config_allows(config->services[1], 1002, stranger, 2));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(an_empty_directory_gives_the_defaults),
		cmocka_unit_test(every_key_of_the_daemon_is_read),
		cmocka_unit_test(the_state_directory_is_the_one_of_systemd_unless_named),
		cmocka_unit_test(a_key_file_is_a_path_or_the_name_of_a_credential),
		cmocka_unit_test(a_key_file_is_for_encrypted_connection_ids_alone),
		cmocka_unit_test(a_listener_has_its_defaults),
		cmocka_unit_test(every_key_of_a_service_is_read),
		cmocka_unit_test(every_connection_id_mode_has_its_name),
		cmocka_unit_test(files_are_read_in_the_order_of_their_names),
		cmocka_unit_test(udp_and_tcp_may_have_the_same_address),
		cmocka_unit_test(listen_arguments_make_services),
		cmocka_unit_test(a_service_allows_its_users_and_groups_and_root),
	};

	/* Defaults are looked at; whoever runs the tests may have some of these. */
	unsetenv("STATE_DIRECTORY");
	unsetenv("CREDENTIALS_DIRECTORY");
	return cmocka_run_group_tests_name("config", tests, NULL, NULL);
}
