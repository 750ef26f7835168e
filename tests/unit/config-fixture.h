/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A configuration directory of the test's own.
 */
#pragma once

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

/* The shortest one. */
#define LISTENER "[Listener a]\nListenStream=1\n"

struct directory {
	char path[64];
	char services[80];
	char *daemon_file;
	char *files[8];
	size_t n_files;
};

static inline void directory_init(struct directory *directory)
{
	memset(directory, 0, sizeof(*directory));
	strcpy(directory->path, "/tmp/test-config.XXXXXX");
	assert_non_null(mkdtemp(directory->path));
	snprintf(
		directory->services, sizeof(directory->services), "%s/services.d", directory->path);
	assert_int_equal(mkdir(directory->services, 0700), 0);
}

static inline char *write_file(
	const char *directory, const char *name, const char *text, size_t length)
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

static inline void directory_add(struct directory *directory, const char *name, const char *text)
{
	directory->files[directory->n_files++] =
		write_file(directory->services, name, text, strlen(text));
}

static inline void directory_daemon(struct directory *directory, const char *text)
{
	directory->daemon_file = write_file(directory->path, "reuseportd.conf", text, strlen(text));
}

static inline void directory_deinit(struct directory *directory)
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

static inline struct config *loaded(const struct directory *directory)
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
static inline void assert_mistakes(const struct directory *directory, const char *expected)
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

static inline void assert_service_mistake(const char *service, const char *expected)
{
	_directory_ directory;

	directory_init(&directory);
	directory_add(&directory, "web.conf", service);
	assert_mistakes(&directory, expected);
}

static inline void assert_daemon_mistake(const char *text, const char *expected)
{
	_directory_ directory;

	directory_init(&directory);
	directory_daemon(&directory, text);
	assert_mistakes(&directory, expected);
}

/* A mistake on the line that follows [Listener a] and ListenDatagram=1, the fourth. */
static inline void assert_listener_mistake(const char *line, const char *expected)
{
	_cleanup_free_ char *text = NULL, *sentence = NULL;

	assert_true(asprintf(&text, "[Service]\n[Listener a]\nListenDatagram=1\n%s\n", line) > 0);
	assert_true(asprintf(&sentence, "@/services.d/web.conf:4: %s", expected) > 0);
	assert_service_mistake(text, sentence);
}
