# SPDX-License-Identifier: BSD-2-Clause
"""libreuseport as a server's author meets it: a few lines of C, compiled here."""
import os
import signal
import socket

import pytest

import harness

PORT = 8080
ADDRESS = ("127.0.0.1", PORT)

SERVER = r"""
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "reuseport.h"

static int draining;

static void drain(struct reuseport *r, enum reuseport_drain_reason reason, uint64_t deadline, void *data)
{
	printf("drain %d\n", (int)reason);
	draining = 1;
}

int main(int argc, char *argv[])
{
	struct reuseport_callbacks callbacks = { .drain = drain };
	struct reuseport *r;
	char line[256];
	int k = reuseport_open(&r, argv[1], 30000);

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (k < 0)
		return printf("open %d\n", k), 1;
	printf("opened %d\n", k);
	reuseport_set_callbacks(r, &callbacks, NULL);
	k = reuseport_register(r, "web", argv[2], 1, 0, 30000);
	if (k < 0)
		return printf("register %d %s\n", k, reuseport_error(r)), 1;
	k = reuseport_ready(r, 30000);
	if (k < 0)
		return printf("ready %d %s\n", k, reuseport_error(r)), 1;
	printf("ready %s %s\n", reuseport_instance(r), reuseport_listener_address(r, 0));
	while (!draining) {
		struct pollfd fds[2] = { { reuseport_socket(r, 0, 0), POLLIN, 0 },
			{ reuseport_get_fd(r), (short)reuseport_get_events(r), 0 } };
		int c;

		poll(fds, fds[1].fd < 0 ? 1 : 2, -1);
		if (fds[1].fd >= 0 && fds[1].revents)
			reuseport_dispatch(r, 0);
		c = accept(fds[0].fd, NULL, NULL);
		if (c < 0)
			continue;
		ssize_t n = read(c, line, sizeof(line));
		dprintf(c, "%s ", argv[2]);
		if (n > 0 && write(c, line, (size_t)n) < 0)
			return 1;
		close(c);
	}
	reuseport_close(r);
	return 0;
}
"""


@pytest.fixture(scope="module")
def server(system, tmp_path_factory):
    directory = tmp_path_factory.mktemp("library")
    source = directory / "server.c"
    source.write_text(SERVER)
    link = directory / "libreuseport.so"
    link.symlink_to(harness.LIBRARY)
    flags = ["-fsanitize=address,undefined"] if is_sanitized() else []
    harness.run("cc", "-std=gnu11", "-Wall", *flags, "-I", harness.ROOT / "client-lib", "-o",
                directory / "server", source, link, f"-Wl,-rpath,{harness.LIBRARY.parent}")
    return directory / "server"


def is_sanitized():
    return "libasan" in harness.run("ldd", harness.LIBRARY).stdout


@pytest.fixture
def start(server, tmp_path):
    processes = []

    def start(path, instance, **options):
        process = harness.Process([server, path, instance], tmp_path / f"{len(processes)}.log",
                                  **options)
        processes.append(process)
        harness.poll_until(lambda: "ready " in process.output() or process.returncode is not None,
                           f"{instance} is ready")
        assert process.returncode is None, process.output()
        return process

    yield start
    for process in processes:
        process.stop(signal.SIGKILL)


def ask(name, count=20):
    clients = [harness.tcp_client(ADDRESS, b"request %d\n" % i) for i in range(count)]
    harness.check_answers(clients, name)
    harness.close_all(clients)


def test_server_registers_serves_and_drains(start_daemon, start):
    daemon = start_daemon("--listen", f"web=tcp://127.0.0.1:{PORT}")
    first = start(daemon.worker_socket, "one")
    assert f"ready one 127.0.0.1:{PORT}" in first.output()
    ask(b"one")
    second = start(daemon.worker_socket, "two")
    daemon.call("Drain", service="web", instance="one")
    assert first.wait() == 0
    assert "drain 1" in first.output()
    ask(b"two")
    third = start(daemon.worker_socket, "two")
    assert second.wait() == 0
    assert "drain 2" in second.output()
    ask(b"two")
    assert third.returncode is None


def test_server_without_a_daemon_takes_listen_fds(server, netns, tmp_path):
    """What systemd does for a socket unit, done here: descriptor 3 and LISTEN_PID."""
    listener = socket.create_server(ADDRESS)
    log = open(tmp_path / "log", "wb")
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(log.fileno(), 1)
            os.dup2(listener.fileno(), 3, inheritable=True)
            environment = {**os.environ, "LISTEN_FDS": "1", "LISTEN_FDNAMES": "http",
                           "LISTEN_PID": str(os.getpid())}
            os.execve(str(server), [str(server), str(tmp_path / "absent"), "alone"], environment)
        finally:
            os._exit(127)
    try:
        listener.close()
        ask(b"alone")
        assert "opened 1" in (tmp_path / "log").read_text()
    finally:
        log.close()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_symbols_are_versioned_and_nothing_else_is_exported(system):
    lines = harness.run("readelf", "-W", "--dyn-syms", harness.LIBRARY).stdout.splitlines()
    exported = [l.split()[-1] for l in lines
                if " UND " not in l and (" FUNC " in l or " OBJECT " in l) and " GLOBAL " in l]
    exported = [name for name in exported if not name.startswith("LIBREUSEPORT_")]  # the versions
    names = {name.split("@")[0] for name in exported}
    assert "reuseport_open" in names
    assert all(name.startswith("reuseport_") for name in names), names
    assert all("@@LIBREUSEPORT_" in name for name in exported), exported
