/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Any octets as a file of the configuration: as reuseportd.conf, as a file of services.d, and as an
 * argument of --listen. No name is looked up beyond what the parser itself does.
 */
#include "daemon/config.c"
#include "daemon/config-file.c"
#include "daemon/config-keys.c"
#include "daemon/config-listen.c"
#include "daemon/config-share.c"
#include "daemon/config-value.c"
#include "daemon/share-compile.c"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void fuzz_file(const uint8_t *data, size_t size, bool daemon_file)
{
	_cleanup_(config_freep) struct config *config = NULL;
	_cleanup_free_ char *errors = NULL;
	_cleanup_(close_file) FILE *stream = fmemopen((void *)data, size, "r");
	struct config_parser parser = {};
	size_t errors_size;

	if (!stream || config_new(&config) < 0)
		return;
	parser.config = config;
	parser.errors = open_memstream(&errors, &errors_size);
	if (!parser.errors)
		return;
	parse_stream(&parser, stream, "fuzz/input.conf", daemon_file);
	fclose(parser.errors);
	/* A mistake has its sentence. */
	if (parser.failed && !*errors)
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	_cleanup_(config_freep) struct config *config = NULL;
	_cleanup_free_ char *error = NULL, *argument = NULL;

	if (!size)
		return 0;
	fuzz_file(data, size, true);
	fuzz_file(data, size, false);
	argument = strndup((const char *)data, size);
	if (argument && config_new(&config) >= 0 &&
		config_add_listen(config, argument, &error) == -EINVAL && !error)
		abort();
	return 0;
}
