/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * For each kind of mistake in the configuration the exact sentence a person gets, with its file and
 * line.
 */
#include <errno.h>

#include "tests/unit/config-fixture.h"

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
		"MaxConnectionIDsPerUser, MessagesPerSecondPerUser, AnswerTimeoutSec, ResumeGraceSec, "
		"StateDirectory, "
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

int main(void)
{
	const struct CMUnitTest tests[] = {
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
		cmocka_unit_test(mistaken_listen_arguments_say_why),
	};

	/* Defaults are looked at; whoever runs the tests may have some of these. */
	unsetenv("STATE_DIRECTORY");
	unsetenv("CREDENTIALS_DIRECTORY");
	return cmocka_run_group_tests_name("config", tests, NULL, NULL);
}
