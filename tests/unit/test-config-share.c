/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Share= and Match...=: what they mean for a client, from the files to the answer, and every
 * mistake with its file and line.
 */
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
#include "daemon/share-compile.h"

#define FILES_MAX 8

struct file {
	const char *name; /* without .conf; the last one's is NULL */
	const char *listener;
};

static char directory[64];

static void write_file(const char *name, const char *text)
{
	char path[256];
	FILE *stream;

	snprintf(path, sizeof(path), "%s/%s", directory, name);
	stream = fopen(path, "w");
	assert_non_null(stream);
	fputs(text, stream);
	assert_int_equal(fclose(stream), 0);
}

/* Each listener stands on the lines from 4 on; 3 is its address. */
static void make_directory(const struct file *files)
{
	char path[256], text[1024], name[64];

	strcpy(directory, "/tmp/test-share.XXXXXX");
	assert_non_null(mkdtemp(directory));
	snprintf(path, sizeof(path), "%s/services.d", directory);
	assert_int_equal(mkdir(path, 0700), 0);
	for (; files->name; files++) {
		snprintf(name, sizeof(name), "services.d/%s.conf", files->name);
		snprintf(text, sizeof(text), "[Service]\n[Listener h3]\n%s%s\n",
			strncmp(files->listener, "Listen", 6) ? "ListenQUIC=443\n" : "",
			files->listener);
		write_file(name, text);
	}
}

static void remove_directory(const struct file *files)
{
	char path[256];

	for (; files->name; files++) {
		snprintf(path, sizeof(path), "%s/services.d/%s.conf", directory, files->name);
		unlink(path);
	}
	snprintf(path, sizeof(path), "%s/services.d", directory);
	assert_int_equal(rmdir(path), 0);
	snprintf(path, sizeof(path), "%s/reuseportd.conf", directory);
	unlink(path);
	assert_int_equal(rmdir(directory), 0);
}

/* expected: the mistakes, one a line, @ for services.d. NULL: there is none. */
static struct config *load(const struct file *files, const char *expected)
{
	struct config *config = NULL;
	char wanted[4096] = "";
	char *error = NULL;
	size_t length = 0;
	int result;

	make_directory(files);
	result = config_load(&config, directory, &error);
	for (const char *c = expected; c && *c; c++)
		length += (size_t)(*c == '@' && c[1] == '/'
					   ? snprintf(wanted + length, sizeof(wanted) - length,
						     "%s/services.d", directory)
					   : snprintf(wanted + length, sizeof(wanted) - length,
						     "%c", *c));
	if (expected || error)
		assert_string_equal(error ? error : "no mistake", wanted);
	assert_int_equal(result, expected ? -EINVAL : 0);
	free(error);
	remove_directory(files);
	return config;
}

#define FILES(...) ((const struct file[]){__VA_ARGS__, {NULL, NULL}})
#define DEFAULT                                           \
	{                                                 \
		"default", "Share=edge\nMatchDefault=yes" \
	}

static void mistake(const char *listener, const char *expected)
{
	load(FILES({"a", listener}, DEFAULT), expected);
}

static void what_a_listener_says_for_itself(void **state)
{
	mistake("MatchServerName=a.example",
		"@/a.conf:4: MatchServerName=, MatchALPN= and MatchDefault= are for a listener with "
		"Share=\n"
		"@/default.conf:2: the address quic://[::]:443 is that of the listener 'h3' of the "
		"service 'a' (@/a.conf:2) already");
	mistake("Share=edge", "@/a.conf:4: a listener with Share= needs MatchServerName=, "
			      "MatchALPN= or MatchDefault=yes: nothing would come to it");
	mistake("Share=edge\nConnectionID=opaque\nMatchALPN=h3",
		"@/a.conf:4: Share= is not for ConnectionID=opaque, which has nothing that keeps "
		"services apart; it is for quic-lb, registered and nginx");
	mistake("Share=edge\nConnectionID=quic-lb-plain\nMatchALPN=h3",
		"@/a.conf:4: Share= is not for ConnectionID=quic-lb-plain, which has nothing that "
		"keeps services apart; it is for quic-lb, registered and nginx");
	mistake("Share=a b\nMatchALPN=h3",
		"@/a.conf:4: Share= is 'a b', not a name of 1 to 63 letters, digits and _.@-\n"
		"@/default.conf:2: the address quic://[::]:443 is that of the listener 'h3' of the "
		"service 'a' (@/a.conf:2) already");
	mistake("Share=edge\nMatchServerName=shop.example *\n",
		"@/a.conf:5: MatchServerName= has '*', not a name like shop.example or "
		"*.shop.example (one with other letters is written as clients send it, xn--...)");
	for (const char *const *bad = (const char *const[]){"a..b", ".a", "-.*", "*a.b", "a.*.b",
		     "*.", "b\xc3\xbc.de", "a/b", NULL};
		*bad; bad++) {
		char line[128], expected[256];

		snprintf(line, sizeof(line), "Share=edge\nMatchServerName=%s", *bad);
		snprintf(expected, sizeof(expected),
			"@/a.conf:5: MatchServerName= has '%s', not a name like shop.example or "
			"*.shop.example (one with other letters is written as clients send it, "
			"xn--...)",
			strcmp(*bad, "*.") ? *bad : "*");
		mistake(line, expected);
	}
	mistake("Share=edge\nMatchServerName=a.example b.example A.EXAMPLE.",
		"@/a.conf:5: MatchServerName= has 'a.example' twice");
	mistake("Share=edge\nMatchALPN=h3\nMatchALPN=hq h3",
		"@/a.conf:6: MatchALPN= has 'h3' twice");
	mistake("Share=edge\nMatchALPN=h3\nBindToDevice=eth0",
		"@/a.conf:4: Share= is not possible with BindToDevice=: what the classifier has "
		"read comes again by the loopback interface\n"
		"@/default.conf:4: the listener 'h3' of the service 'a' (@/a.conf:4) is in the share "
		"edge with another address, BindIPv6Only=, FreeBind=, Transparent=, Flows= or "
		"FlowTimeoutSec=: these have to be equal");
	mistake("ListenDatagram=443\nShare=edge\nMatchALPN=h3",
		"@/a.conf:4: Share= is not for udp; it is for quic listeners\n"
		"@/a.conf:5: MatchALPN= is not for udp; it is for quic listeners\n"
		"@/default.conf:4: the listener 'h3' of the service 'a' (@/a.conf:4) is in the share "
		"edge with another address, BindIPv6Only=, FreeBind=, Transparent=, Flows= or "
		"FlowTimeoutSec=: these have to be equal");
}

static void what_the_listeners_of_a_share_say_together(void **state)
{
	load(FILES({"a", "Share=edge\nMatchALPN=h3"}),
		"@/a.conf:4: no listener of the share edge has MatchDefault=yes: one has to take "
		"what nobody else does");
	mistake("Share=edge\nMatchDefault=yes",
		"@/default.conf:5: the share edge has its MatchDefault=yes in the listener 'h3' of "
		"the service 'a' (@/a.conf:5) already");
	load(FILES({"a", "Share=edge\nMatchServerName=x.example *.y.example"},
		     {"b", "Share=edge\nMatchServerName=X.example\nMatchDefault=yes"}),
		"@/b.conf:6: 'x.example' is that of the listener 'h3' of the service 'a' "
		"(@/a.conf:5) already");
	load(FILES({"a", "Share=edge\nMatchServerName=x.example\nMatchALPN=h3 hq"},
		     {"b", "Share=edge\nMatchServerName=x.example\nMatchALPN=doq hq"}, DEFAULT),
		"@/b.conf:6: 'x.example' with the protocol 'hq' is that of the listener 'h3' of the "
		"service 'a' (@/a.conf:6) already");
	load(FILES({"a", "Share=edge\nMatchALPN=h3"}, {"b", "Share=edge\nMatchALPN=h3"}, DEFAULT),
		"@/b.conf:5: 'any server name' with the protocol 'h3' is that of the listener 'h3' "
		"of the service 'a' (@/a.conf:5) already");
	load(FILES({"a", "Share=edge\nMatchALPN=h3\nFlows=256"}, DEFAULT),
		"@/default.conf:4: the listener 'h3' of the service 'a' (@/a.conf:4) is in the share "
		"edge with another address, BindIPv6Only=, FreeBind=, Transparent=, Flows= or "
		"FlowTimeoutSec=: these have to be equal");
	load(FILES({"a", "Share=edge\nMatchALPN=h3\n[Listener b]\nListenQUIC=443\nShare=edge\n"
			 "MatchDefault=yes"}),
		"@/a.conf:8: the listener 'h3' of the same service is in the share edge already "
		"(line 4)");
	load(FILES({"a", "Share=edge\nMatchALPN=a"}, {"b", "Share=edge\nMatchALPN=b"},
		     {"c", "Share=edge\nMatchALPN=c"}, {"d", "Share=edge\nMatchALPN=d"},
		     {"e", "Share=edge\nMatchALPN=e"}, {"f", "Share=edge\nMatchDefault=yes"},
		     {"g", "Share=edge\nMatchALPN=g"}),
		"@/g.conf:4: the share edge has 6 listeners already, which is all that can be");
	/* Another share, and none, on that address. */
	load(FILES(DEFAULT, {"x", "Share=other\nMatchDefault=yes"}),
		"@/x.conf:2: the address quic://[::]:443 is that of the listener 'h3' of the service "
		"'default' (@/default.conf:2) already");
}

static struct share_rules *rules;

static void check(const char *name, const char *protocols, uint32_t service)
{
	struct share_answer answer;

	share_rules_match(
		rules, name, strlen(name), (const uint8_t *)protocols, strlen(protocols), &answer);
	assert_int_equal(answer.service, service);
}

static void compile(const struct config *config)
{
	const struct listener_config *configs[SHARE_MAX] = {NULL};

	for (size_t i = 0; i < config->n_services; i++)
		configs[i] = config->services[i]->listeners[0];
	free(rules);
	assert_int_equal(share_rules_compile(&rules, configs), 0);
	assert_int_equal(share_rules_check(rules, rules->size), 0);
}

static void the_files_say_whose_a_client_is(void **state)
{
	struct config *config = load(
		FILES({"0", "Share=edge\nMatchServerName=shop.example *.Shop.Example."},
			{"1", "Share=edge\nMatchServerName=api.example\nMatchALPN=h3 hq-interop"},
			{"2", "Share=edge\nMatchServerName=api.example *.example\nMatchALPN=doq"},
			{"3", "Share=edge\nMatchServerName=API.example"},
			{"4", "Share=edge\nMatchDefault=yes\nMatchServerName=www.example"},
			{"5", "Share=edge\nMatchALPN=moq"}),
		NULL);

	assert_int_equal(config->n_services, 6);
	compile(config);
	check("shop.example", "\2h3", 0);
	check("WWW.shop.example.", "\2h3", 0);
	check("api.example", "\2h3", 1);
	check("api.example", "\3doq\2h3", 2);
	check("api.example", "\nhq-interop\3doq", 1);
	check("api.example", "\3foo", 3);
	check("api.example", "", 3);
	check("www.example", "\2h3", 4);
	check("other.example", "\3doq", 2);
	check("other.example", "\2h3", 4);
	check("other.example", "\3moq", 5);
	check("", "\3moq", 5);
	check("", "\2h3", 4);
	check("shop.example.org", "", 4);
	config_free(config);
}

static void a_default_alone_is_a_share(void **state)
{
	struct config *config = load(FILES(DEFAULT), NULL);

	compile(config);
	assert_int_equal(rules->n_names, 0);
	assert_int_equal(rules->size, sizeof(*rules));
	check("any.example", "\2h3", 0);
	config_free(config);
	free(rules);
	rules = NULL;
}

static void names_that_take_too_much_room_are_a_mistake(void **state)
{
	struct listener_config *listener = listener_config_new("a", "a.conf", 1);
	const struct listener_config *configs[SHARE_MAX] = {listener};
	struct share_rules *compiled = NULL;
	char name[300];

	for (unsigned i = 0; i < 4000; i++) {
		snprintf(name, sizeof(name), "%u.%0240u.example", i, i);
		assert_int_equal(config_words_add(&listener->server_names, name), 0);
	}
	assert_int_equal(share_rules_compile(&compiled, configs), -E2BIG);
	assert_null(compiled);
	listener_config_free(listener);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_a_listener_says_for_itself),
		cmocka_unit_test(what_the_listeners_of_a_share_say_together),
		cmocka_unit_test(the_files_say_whose_a_client_is),
		cmocka_unit_test(a_default_alone_is_a_share),
		cmocka_unit_test(names_that_take_too_much_room_are_a_mistake),
	};

	return cmocka_run_group_tests_name("config-share", tests, NULL, NULL);
}
