# SPDX-License-Identifier: BSD-2-Clause
"""
A real server with connection IDs of its own that tells them to the daemon,
ConnectionID=registered: h3_server.py, which is aioquic on a socket of the worker protocol.
"""
import os
import shutil
import signal

import pytest

import harness
import hosts

PORT = 8443


class Servers:
    def __init__(self, daemon, place, service="web"):
        self.service = service
        self.daemon = daemon
        self.place = place
        self.running = {}
        self.processes = []
        for name in ("h3_server.py", "worker_protocol.py", "patience.py"):
            shutil.copy(hosts.SYSTEM_TESTS / name, place.directory / name)
            (place.directory / name).chmod(0o644)

    def start(self, name):
        """Starts a server as this instance; the process that it takes the place of, if any."""
        def enter():
            # Not the working directory: the server finds the daemon's socket there.
            os.chroot(hosts.TREE)
            os.setgroups([])
            os.setresgid(*[hosts.NOBODY] * 3)
            os.setresuid(*[hosts.NOBODY] * 3)

        log = self.place.directory / f"{name}-{len(self.processes)}"
        process = harness.Process(
            ["/usr/bin/python3", "-B", self.place.inside("h3_server.py"), "--service", self.service, "--instance", name,
             "--certificate", self.place.inside("cert.pem"), "--key", self.place.inside("key.pem")],
            log, cwd=self.daemon.runtime, preexec_fn=enter)
        self.processes.append(process)

        def ready():
            assert process.returncode is None, process.output()
            return "ready" in process.output()
        harness.poll_until(ready, f"{name} is ready")
        before = self.running.get(name)
        self.running[name] = process
        return before

    def kill(self):
        for process in self.processes:
            process.stop(signal.SIGKILL)


@pytest.fixture
def servers(configuration, start_daemon, place):
    configuration.service("web", f"""
[Service]
AllowUser={hosts.NOBODY}
[Listener quic]
ListenQUIC=127.0.0.1:{PORT}
ConnectionID=registered
""")
    result = Servers(start_daemon("--config", configuration.directory), place)
    yield result
    result.kill()


def test_registered_ids_keep_every_connection_through_rolling_replacement(servers, place):
    """
    Three servers, each replaced twice, while clients change port or migrate to a new ID and
    address once a second: what draining servers have moves as well.
    """
    names = ("web@1", "web@2", "web@3")
    for name in names:
        servers.start(name)
    clients = {name: hosts.H3Client(place, name, PORT, 8, ["--pause", 0.2, *options])
               for name, *options in (("steady",), ("rebind", "--move", "rebind"),
                                      ("migrate", "--move", "migrate"))}
    try:
        replaced = []
        for i in range(6):
            for client in clients.values():
                client.wait_for_more("answered", 30, "requests go on")
            replaced.append(servers.start(names[i % 3]))
            harness.poll_until(lambda: "draining" in replaced[-1].output(), "the one before drains")
        for client in clients.values():
            client.wait_for_more("answered", 30, "requests go on")
        for process in replaced:
            assert process.wait(hosts.DEADLINE) == 0, process.output()
        counts = {name: client.finish() for name, client in clients.items()}
        said = sum((each.pop("losses") for each in counts.values()), [])
    finally:
        for client in clients.values():
            client.kill()
    hosts.report("aioquic, registered, three servers, 6 replacements", counts, said)
    hosts.check_nothing_lost(counts, said)
    assert counts["rebind"]["rebound"] > 30 and counts["migrate"]["migrated"] > 30
    for process in servers.processes:
        assert "nobody's" not in process.output(), process.output()
