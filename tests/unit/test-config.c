/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The configuration: what each key does, and for each kind of mistake the exact sentence a person
 * gets, with its file and line.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/util.h"
#include "daemon/config.h"

struct directory {
	char path[64];
	char services[80];
	char *daemon_file;
	char *files[8];
	size_t n_files;
};

static void directory_init(struct directory *directory)
{
	memset(directory, 0, sizeof(*directory));
	strcpy(directory->path, "/tmp/test-config.XXXXXX");
	assert_non_null(mkdtemp(directory->path));
	snprintf(
		directory->services, sizeof(directory->services), "%s/services.d", directory->path);
	assert_int_equal(mkdir(directory->services, 0700), 0);
}

static char *write_file(const char *directory, const char *name, const char *text, size_t length)
{
	char *path;
	FILE *file;

	assert_true(asprintf(&path, "%s/%s", directory, name) > 0);
	file = fopen(path, "we");
	assert_non_null(file);
	assert_int_equal(fwrite(text, 1, length, file), length);
	assert_int_equal(fclose(file), 0);
	return path;
}

static void directory_add(struct directory *directory, const char *name, const char *text)
{
	directory->files[directory->n_files++] =
		write_file(directory->services, name, text, strlen(text));
}

static void directory_daemon(struct directory *directory, const char *text)
{
	directory->daemon_file = write_file(directory->path, "reuseportd.conf", text, strlen(text));
}

static void directory_deinit(struct directory *directory)
{
	for (size_t i = 0; i < directory->n_files; i++) {
		unlink(directory->files[i]);
		free(directory->files[i]);
	}
	if (directory->daemon_file)
		unlink(directory->daemon_file);
	free(directory->daemon_file);
	rmdir(directory->services);
	assert_int_equal(rmdir(directory->path), 0);
}

#define _directory_ _cleanup_(directory_deinit) struct directory

static struct config *loaded(const struct directory *directory)
{
	struct config *config = NULL;
	_cleanup_free_ char *error = NULL;
	int r = config_load(&config, directory->path, &error);

	if (error)
		print_error("%s\n", error);
	assert_int_equal(r, 0);
	assert_null(error);
	return config;
}

/* expected: lines in which "@" stands for the directory. */
static void assert_mistakes(const struct directory *directory, const char *expected)
{
	struct config *config = NULL;
	_cleanup_free_ char *error = NULL, *text = NULL;
	size_t size;
	FILE *stream = open_memstream(&text, &size);

	assert_non_null(stream);
	for (; *expected; expected++) {
		if (*expected == '@' && expected[1] == '/')
			fputs(directory->path, stream);
		else
			fputc(*expected, stream);
	}
	assert_int_equal(fclose(stream), 0);
	assert_int_equal(config_load(&config, directory->path, &error), -EINVAL);
	assert_null(config);
	assert_non_null(error);
	assert_string_equal(error, text);
}

static void assert_service_mistake(const char *service, const char *expected)
{
	_directory_ directory;

	directory_init(&directory);
	directory_add(&directory, "web.conf", service);
	assert_mistakes(&directory, expected);
}

static void assert_daemon_mistake(const char *text, const char *expected)
{
	_directory_ directory;

	directory_init(&directory);
	directory_daemon(&directory, text);
	assert_mistakes(&directory, expected);
}

/* A mistake on the line that follows [Listener a] and ListenDatagram=1, the fourth. */
static void assert_listener_mistake(const char *line, const char *expected)
{
	_cleanup_free_ char *text = NULL, *sentence = NULL;

	assert_true(asprintf(&text, "[Service]\n[Listener a]\nListenDatagram=1\n%s\n", line) > 0);
	assert_true(asprintf(&sentence, "@/services.d/web.conf:4: %s", expected) > 0);
	assert_service_mistake(text, sentence);
}

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
				     "AnswerTimeoutSec=250ms\n");
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

static void a_missing_directory_is_named(void **state)
{
	struct config *config = NULL;
	_cleanup_free_ char *error = NULL;

	assert_int_equal(config_load(&config, "/nonexistent/reuseportd", &error), -ENOENT);
	assert_null(config);
	assert_string_equal(error, "/nonexistent/reuseportd: cannot open the configuration "
				   "directory: No such file or directory");
}

static void every_mistake_of_all_files_is_reported(void **state)
{
	_directory_ directory;

	directory_init(&directory);
	directory_daemon(&directory, "[Daemon]\nHostID=65536\n");
	directory_add(&directory, "a.conf", "[Service]\nMaxWorkers=0\n[Listener l]\nBacklog=x\n");
	directory_add(&directory, "b.conf", "[Service]\n");
	assert_mistakes(&directory,
		"@/reuseportd.conf:2: HostID= is '65536', not a number from 0 to 65535\n"
		"@/services.d/a.conf:2: MaxWorkers= is '0', not a number from 1 to 32000\n"
		"@/services.d/a.conf:4: Backlog= is 'x', not a number from 1 to 2147483647\n"
		"@/services.d/a.conf:3: [Listener l] has no address: ListenStream=, "
		"ListenDatagram= or ListenQUIC= is needed\n"
		"@/services.d/b.conf:1: the service 'b' has no listener: a [Listener NAME] section "
		"is needed");
}

static void mistakes_of_form(void **state)
{
	char line[256];

	assert_daemon_mistake(
		"User=root\n", "@/reuseportd.conf:1: 'User=' stands before the first section");
	assert_daemon_mistake("[Daemon]\nnonsense\n",
		"@/reuseportd.conf:2: not a comment, a [Section] or KEY=VALUE");
	assert_daemon_mistake("[Daemon]\nUser: root\n",
		"@/reuseportd.conf:2: not a comment, a [Section] or KEY=VALUE");
	assert_daemon_mistake("[Daemon]\n=root\n",
		"@/reuseportd.conf:2: not a comment, a [Section] or KEY=VALUE");
	assert_daemon_mistake("[Daemon\n", "@/reuseportd.conf:1: section header without ]");
	assert_daemon_mistake(
		"[Daemon] User=root\n", "@/reuseportd.conf:1: text after the section header");
	assert_daemon_mistake("[Daemon]\nUser=\n", "@/reuseportd.conf:2: User= has no value");
	assert_daemon_mistake("[Daemon]\nHostID=1\n\nHostID=2\n",
		"@/reuseportd.conf:4: HostID= was set on line 2 already");
	assert_daemon_mistake("[Daemon]\n\n[Daemon]\nHostID=x\n",
		"@/reuseportd.conf:3: a second [Daemon]; the first is on line 1");
	assert_daemon_mistake("[Service]\nName=x\n",
		"@/reuseportd.conf:1: unknown section [Service]; known here is [Daemon]");
	memset(line, 'x', sizeof(line));
	memcpy(line, "[Daemon]\n", 9);
	line[254] = '\n';
	line[255] = '\0';
	assert_daemon_mistake(line, "@/reuseportd.conf:2: line is longer than 198 octets");
}

static void a_nul_octet_is_a_mistake(void **state)
{
	_directory_ directory;

	directory_init(&directory);
	directory.daemon_file =
		write_file(directory.path, "reuseportd.conf", "[Daemon]\nUser=r\0t\n", 18);
	assert_mistakes(&directory, "@/reuseportd.conf:2: line contains a NUL octet");
}

static void mistakes_of_the_daemon_section(void **state)
{
	assert_daemon_mistake("[Daemon]\nUsr=root\n",
		"@/reuseportd.conf:2: unknown key 'Usr' in [Daemon]; known are User, StatusGroup, "
		"AdminGroup, HostID, MaxConnectionsPerUser, MaxSlotsPerUser, "
		"MaxConnectionIDsPerUser, MessagesPerSecondPerUser, AnswerTimeoutSec, StateDirectory, "
		"Classifier, ClassifierShare, ClassifierOverflow");
	assert_daemon_mistake("[Daemon]\nUser=no-such-user\n",
		"@/reuseportd.conf:2: User= names the user 'no-such-user', which does not exist");
	assert_daemon_mistake("[Daemon]\nAdminGroup=no-such-group\n",
		"@/reuseportd.conf:2: AdminGroup= names the group 'no-such-group', which does not "
		"exist");
	assert_daemon_mistake("[Daemon]\nStatusGroup=4294967295\n",
		"@/reuseportd.conf:2: StatusGroup= is '4294967295', not a number from 0 to "
		"4294967294");
	assert_daemon_mistake("[Daemon]\nMaxConnectionsPerUser=0\n",
		"@/reuseportd.conf:2: MaxConnectionsPerUser= is '0', not a number from 1 to 65535");
	assert_daemon_mistake("[Daemon]\nMessagesPerSecondPerUser=9\n",
		"@/reuseportd.conf:2: MessagesPerSecondPerUser= is '9', not a number from 10 to "
		"1000000");
	assert_daemon_mistake("[Daemon]\nMaxSlotsPerUser=-1\n",
		"@/reuseportd.conf:2: MaxSlotsPerUser= is '-1', not a number from 1 to 32000");
	assert_daemon_mistake("[Daemon]\nAnswerTimeoutSec=soon\n",
		"@/reuseportd.conf:2: AnswerTimeoutSec= is 'soon', not a time span (a number of "
		"seconds, or for instance 500ms, 30s, 5min, 1h 30min)");
	assert_daemon_mistake("[Daemon]\nAnswerTimeoutSec=infinity\n",
		"@/reuseportd.conf:2: AnswerTimeoutSec= is 'infinity', but must be from 1ms to "
		"3600s");
}

static void mistakes_of_the_service_section(void **state)
{
#define LISTENER "[Listener a]\nListenStream=1\n"
	assert_service_mistake(
		LISTENER, "@/services.d/web.conf:2: the file has no [Service] section");
	assert_service_mistake("[Service]\n",
		"@/services.d/web.conf:1: the service 'web' has no listener: a [Listener NAME] "
		"section is needed");
	assert_service_mistake("[Service]\n" LISTENER "[Service]\n",
		"@/services.d/web.conf:4: a second [Service]; the first is on line 1: a file has "
		"one service");
	assert_service_mistake("[Service]\nListenStream=80\n" LISTENER,
		"@/services.d/web.conf:2: unknown key 'ListenStream' in [Service]; known are Name, "
		"AllowUser, AllowGroup, MaxWorkers, DrainTimeoutSec, StallTimeoutSec, StallAction");
	assert_service_mistake("[Service]\nName=a/b\n" LISTENER,
		"@/services.d/web.conf:2: Name= is 'a/b', not a name of 1 to 63 letters, digits and "
		"_.@:-");
	assert_service_mistake("[Service]\nAllowUser=root no-such-user\n" LISTENER,
		"@/services.d/web.conf:2: AllowUser= names the user 'no-such-user', which does not "
		"exist");
	assert_service_mistake("[Service]\nAllowGroup=no-such-group\n" LISTENER,
		"@/services.d/web.conf:2: AllowGroup= names the group 'no-such-group', which does "
		"not exist");
	assert_service_mistake("[Service]\nDrainTimeoutSec=5 parsecs\n" LISTENER,
		"@/services.d/web.conf:2: DrainTimeoutSec= is '5 parsecs', not a time span (a number "
		"of seconds, or for instance 500ms, 30s, 5min, 1h 30min, infinity)");
	assert_service_mistake("[Service]\nStallAction=kill\n" LISTENER,
		"@/services.d/web.conf:2: StallAction= is 'kill', not keep or kick");
	assert_service_mistake("[Service]\n" LISTENER "[Socket]\nListenStream=1\n",
		"@/services.d/web.conf:4: unknown section [Socket]; known here are [Service] and "
		"[Listener NAME]");
}

static void mistakes_of_names_and_addresses(void **state)
{
	_directory_ directory;

	assert_service_mistake("[Service]\n" LISTENER "[Listener]\n",
		"@/services.d/web.conf:4: [Listener] needs a name of 1 to 63 letters, digits and "
		"_.@-, as in [Listener http]");
	assert_service_mistake("[Service]\n" LISTENER "[Listener a:b]\n",
		"@/services.d/web.conf:4: [Listener a:b] needs a name of 1 to 63 letters, digits and "
		"_.@-, as in [Listener http]");
	assert_service_mistake("[Service]\n" LISTENER "[Listener a]\nListenStream=2\n",
		"@/services.d/web.conf:4: a listener 'a' is on line 2 already");
	assert_service_mistake("[Service]\n" LISTENER "[Listener b]\nListenStream=[::]:1\n",
		"@/services.d/web.conf:4: the address tcp://[::]:1 is that of the listener 'a' of "
		"the service 'web' (@/services.d/web.conf:2) already");

	directory_init(&directory);
	directory_add(&directory, "a.conf", "[Service]\n[Listener x]\nListenDatagram=1\n");
	directory_add(&directory, "b.conf", "[Service]\nName=a\n[Listener y]\nListenQUIC=[::]:1\n");
	assert_mistakes(&directory,
		"@/services.d/b.conf:3: the address quic://[::]:1 is that of the listener 'x' of the "
		"service 'a' (@/services.d/a.conf:2) already\n"
		"@/services.d/b.conf:1: the service 'a' is defined by @/services.d/a.conf already");
}

static void a_file_name_that_is_no_name_is_a_mistake(void **state)
{
	_directory_ directory;

	directory_init(&directory);
	directory_add(&directory, "my web.conf", "[Service]\n" LISTENER);
	assert_mistakes(&directory,
		"@/services.d/my web.conf:1: the file's name gives 'my web', not a name of 1 to 63 "
		"letters, digits and _.@:-; set Name=");
}

static void malformed_addresses_are_mistakes(void **state)
{
	static const char *const addresses[] = {"0", "65536", "http", "127.0.0.1",
		"127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.256:80", "localhost:80",
		"::1:80", "[::1]", "[::1]80", "[]:80", "[127.0.0.1]:80", "[::1%no-such-if]:80",
		":80", "*:80", "/run/socket", "127.0.0.1:+80"};

	for (size_t i = 0; i < ARRAY_SIZE(addresses); i++) {
		char text[128], expected[256];

		snprintf(text, sizeof(text), "[Service]\n[Listener a]\nListenStream=%s\n",
			addresses[i]);
		snprintf(expected, sizeof(expected),
			"@/services.d/web.conf:3: ListenStream= is '%s', not an address: PORT, "
			"A.B.C.D:PORT or [IPV6]:PORT with a port from 1 to 65535",
			addresses[i]);
		assert_service_mistake(text, expected);
	}
}

static void mistakes_of_the_listener_section(void **state)
{
	assert_listener_mistake("Backlog=16", "Backlog= is not for udp; it is for tcp listeners");
	assert_listener_mistake(
		"ConnectionID=nginx", "ConnectionID= is not for udp; it is for quic listeners");
	assert_service_mistake("[Service]\n" LISTENER "Flows=1024\nFlowTimeoutSec=1\n",
		"@/services.d/web.conf:5: FlowTimeoutSec= is not for tcp; it is for udp and quic "
		"listeners\n"
		"@/services.d/web.conf:4: Flows= is not for tcp; it is for udp and quic listeners");
	assert_service_mistake("[Service]\n[Listener a]\nListenStream=127.0.0.1:1\n"
			       "BindIPv6Only=both\n",
		"@/services.d/web.conf:4: BindIPv6Only= is not for the IPv4 address 127.0.0.1:1");
	assert_listener_mistake("ListenStream=2", "ListenStream= is a second address; a listener "
						  "has one: begin another [Listener NAME]");
	assert_listener_mistake("ReceiveBuffer=1T",
		"ReceiveBuffer= is '1T', not a size from 1024 octets to 1G (a number, which K, M or "
		"G may follow)");
	assert_listener_mistake("SendBuffer=2G",
		"SendBuffer= is '2G', not a size from 1024 octets to 1G (a number, which K, M or G "
		"may follow)");
	assert_listener_mistake(
		"BindIPv6Only=yes", "BindIPv6Only= is 'yes', not both or ipv6-only");
	assert_listener_mistake("BindToDevice=a-much-too-long-name",
		"BindToDevice= is 'a-much-too-long-name', not the name of a network interface (at "
		"most 15 characters)");
	assert_listener_mistake("FreeBind=maybe", "FreeBind= is 'maybe', not yes or no");
	assert_listener_mistake(
		"Mark=4294967296", "Mark= is '4294967296', not a number from 0 to 4294967295");
	assert_listener_mistake("Standby=drop", "Standby= is 'drop', not hold or refuse");
	assert_listener_mistake("StandbyTimeoutSec=99999999999999999999",
		"StandbyTimeoutSec= is '99999999999999999999', not a time span (a number of "
		"seconds, or for instance 500ms, 30s, 5min, 1h 30min, infinity)");
	assert_listener_mistake(
		"FlowTimeoutSec=0", "FlowTimeoutSec= is '0', but must be from 1ms to 86400s");
	assert_listener_mistake(
		"Flows=1000", "Flows= is '1000', not a power of two from 256 to 16777216");
	assert_service_mistake("[Service]\n[Listener a]\nListenQUIC=1\nConnectionID=random\n",
		"@/services.d/web.conf:4: ConnectionID= is 'random', not quic-lb, quic-lb-plain, "
		"registered, nginx or opaque");
	assert_listener_mistake("Port=1",
		"unknown key 'Port' in [Listener a]; known are ListenStream, ListenDatagram, "
		"ListenQUIC, Backlog, ReceiveBuffer, SendBuffer, BindIPv6Only, BindToDevice, "
		"FreeBind, Transparent, Mark, LockFilter, Standby, StandbyTimeoutSec, "
		"FlowTimeoutSec, Flows, ConnectionID, ConnectionIDKeyFile, Share, MatchServerName, "
		"MatchALPN, MatchDefault");
}

static void too_many_listeners_are_a_mistake(void **state)
{
	_cleanup_free_ char *text = NULL;
	size_t size;
	FILE *stream = open_memstream(&text, &size);

	fputs("[Service]\n", stream);
	for (unsigned i = 1; i <= 65; i++)
		fprintf(stream, "[Listener l%u]\nListenStream=%u\n", i, i);
	assert_int_equal(fclose(stream), 0);
	assert_service_mistake(
		text, "@/services.d/web.conf:130: a service has at most 64 listeners");
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

static void mistaken_listen_arguments_say_why(void **state)
{
	static const struct {
		const char *argument, *error;
	} mistakes[] = {
		{"web", "--listen web: not NAME=tcp://ADDRESS:PORT, udp:// or quic://"},
		{"web=http://80", "--listen web=http://80: not NAME=tcp://ADDRESS:PORT, udp:// or "
				  "quic://"},
		{"=tcp://80", "--listen =tcp://80: '' is not a name of 1 to 63 letters, digits and "
			      "_.@:-"},
		{"web=tcp://localhost:80",
			"--listen web=tcp://localhost:80: 'localhost:80' is not PORT, A.B.C.D:PORT "
			"or [IPV6]:PORT with a port from 1 to 65535"},
		{"other=tcp://[::]:1",
			"--listen other=tcp://[::]:1: the address is that of the listener 'a' of "
			"the service 'web' already"},
	};
	_cleanup_(config_freep) struct config *config = NULL;
	_cleanup_free_ char *error = NULL, *expected = NULL;
	_directory_ directory;

	directory_init(&directory);
	directory_add(&directory, "web.conf", "[Service]\n" LISTENER);
	config = loaded(&directory);
	for (size_t i = 0; i < ARRAY_SIZE(mistakes); i++) {
		_cleanup_free_ char *text = NULL;

		assert_int_equal(config_add_listen(config, mistakes[i].argument, &text), -EINVAL);
		assert_string_equal(text, mistakes[i].error);
	}
	assert_int_equal(config_add_listen(config, "web=tcp://2", &error), -EINVAL);
	assert_true(asprintf(&expected,
			    "--listen web=tcp://2: the service 'web' is defined by %s already",
			    directory.files[0]) > 0);
	assert_string_equal(error, expected);
	assert_int_equal(config->n_services, 1);
	assert_int_equal(config->services[0]->n_listeners, 1);
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
		cmocka_unit_test(a_missing_directory_is_named),
		cmocka_unit_test(every_mistake_of_all_files_is_reported),
		cmocka_unit_test(mistakes_of_form),
		cmocka_unit_test(a_nul_octet_is_a_mistake),
		cmocka_unit_test(mistakes_of_the_daemon_section),
		cmocka_unit_test(mistakes_of_the_service_section),
		cmocka_unit_test(mistakes_of_names_and_addresses),
		cmocka_unit_test(a_file_name_that_is_no_name_is_a_mistake),
		cmocka_unit_test(malformed_addresses_are_mistakes),
		cmocka_unit_test(mistakes_of_the_listener_section),
		cmocka_unit_test(too_many_listeners_are_a_mistake),
		cmocka_unit_test(listen_arguments_make_services),
		cmocka_unit_test(mistaken_listen_arguments_say_why),
		cmocka_unit_test(a_service_allows_its_users_and_groups_and_root),
	};

	/* Defaults are looked at; whoever runs the tests may have some of these. */
	unsetenv("STATE_DIRECTORY");
	unsetenv("CREDENTIALS_DIRECTORY");
	return cmocka_run_group_tests_name("config", tests, NULL, NULL);
}
