/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What a call's parameters are held to: an interface made up here, and the daemon's own, of which
 * each method must be read as it is written.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "control-interface.h"
#include "daemon/parameters.c"

static const char example[] =
	"# method Comment(worker: int) -> ()\n"
	"interface org.example\n"
	"type Pair (a: int, b: int)\n"
	"method Nothing() -> (worker: int)\n"
	"method Plain(worker: int, name: string, on: bool) -> ()\n"
	"method Lines(\n  worker: ?int,\n\tpairs: ?[]Pair\n) -> (\n  on: bool\n)\n"
	"method PlainLonger(other: int) -> ()\n";

/* name NULL: they are right. */
static void expect_of(const char *interface, const char *method, const char *text, const char *name)
{
	json_t *parameters = json_loads(text, 0, NULL);
	char *found = NULL;
	int result = parameters_check(interface, method, parameters, &found);

	assert_int_equal(result, name ? -EINVAL : 0);
	if (name)
		assert_string_equal(found, name);
	json_decref(parameters);
	free(found);
}

static void expect(const char *method, const char *text, const char *name)
{
	expect_of(example, method, text, name);
}

static void right_ones_pass(void **state)
{
	expect("Nothing", "{}", NULL);
	expect("Plain", "{\"on\":true,\"worker\":7,\"name\":\"\"}", NULL);
	expect("Lines", "{}", NULL);
	expect("Lines", "{\"worker\":null,\"pairs\":null}", NULL);
	expect("Lines", "{\"worker\":0,\"pairs\":[1]}", NULL);
	expect("PlainLonger", "{\"other\":1}", NULL);
}

static void wrong_ones_are_named(void **state)
{
	expect("Nothing", "{\"worker\":1}", "worker");
	expect("Plain", "{}", "worker");
	expect("Plain", "{\"worker\":1,\"name\":\"x\"}", "on");
	expect("Plain", "{\"worker\":1,\"name\":null,\"on\":true}", "name");
	expect("Plain", "{\"worker\":\"1\",\"name\":\"x\",\"on\":true}", "worker");
	expect("Plain", "{\"worker\":1.0,\"name\":\"x\",\"on\":true}", "worker");
	expect("Plain", "{\"worker\":1,\"name\":1,\"on\":true}", "name");
	expect("Plain", "{\"worker\":1,\"name\":\"x\",\"on\":1}", "on");
	expect("Lines", "{\"pair\":null}", "pair");
	expect("Lines", "{\"\":1}", "");
}

static void a_method_that_is_not_there_is_none(void **state)
{
	char *name = NULL;

	assert_int_equal(parameters_check(example, "Comment", json_null(), &name), -ENOENT);
	assert_int_equal(parameters_check(example, "Plai", json_null(), &name), -ENOENT);
	assert_int_equal(parameters_check(example, "", json_null(), &name), -ENOENT);
	assert_null(name);
}

static void the_interface_itself_is_read(void **state)
{
	expect_of(control_interface, "Status", "{\"service\":\"web\"}", NULL);
	expect_of(control_interface, "Drain", "{\"worker\":1,\"instance\":\"a\",\"service\":null}",
		NULL);
	expect_of(control_interface, "Drain", "{\"weight\":1}", "weight");
	expect_of(control_interface, "SetWeight", "{\"worker\":1}", "weight");
	expect_of(control_interface, "RotateKeys", "{\"listener\":\"h3\"}", "service");
	expect_of(control_interface, "Explain", "{\"packet\":\"40\",\"from\":\"\"}", NULL);
	expect_of(control_interface, "Reload", "{\"now\":true}", "now");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(right_ones_pass),
		cmocka_unit_test(wrong_ones_are_named),
		cmocka_unit_test(a_method_that_is_not_there_is_none),
		cmocka_unit_test(the_interface_itself_is_read),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
