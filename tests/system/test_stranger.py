# SPDX-License-Identifier: BSD-2-Clause
"""Sockets at a listener's address that are nobody's worker: shown, and warned about once."""
import contextlib
import os
import pathlib
import pwd
import socket
import subprocess
import sys
import time

import pytest

import harness
from share_plane import SharePlane
from test_monitor import Monitor

PORT = 8080
HOLDER = """
import os, signal, socket, sys
family, kind, host, port = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
s = socket.socket(family, kind)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
s.bind((host, port))
if kind == socket.SOCK_STREAM:
    s.listen()
print(os.fstat(s.fileno()).st_ino, flush=True)
signal.pause()
"""


class Holder:
    """A process of the daemon's user, which alone may share its addresses; unit: a cgroup to put it into."""

    def __init__(self, kind=socket.SOCK_STREAM, host="127.0.0.1", port=PORT, unit=None):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(int(family)), str(int(kind)), host, str(port)],
            stdout=subprocess.PIPE, text=True, cwd="/",
            user=harness.USER, group=harness.USER, extra_groups=[])
        self.pid = self.process.pid
        if unit:
            (unit / "cgroup.procs").write_text(str(self.pid))
        self.inode = int(self.process.stdout.readline())
        self.uid = pwd.getpwnam(harness.USER).pw_uid

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def entry(self, unit=None):
        return {"pid": self.pid, "uid": self.uid, "unit": unit, "command": "python3", "inode": self.inode}


def strangers(daemon, service="web"):
    """A look notes what is there; the one some seconds later shows what still is."""
    daemon.status(service)
    time.sleep(2.5)
    found = daemon.status(service)["listeners"][0]["strangers"]
    for entry in found:
        if entry["command"] and entry["command"].startswith("python3"):
            entry["command"] = "python3"
    return found


def warnings(daemon):
    return [line for line in daemon.process.output().splitlines() if "is no worker's" in line]


@pytest.fixture
def unit():
    """A cgroup with the name of a unit, where systemd would have made it."""
    root = pathlib.Path("/sys/fs/cgroup")
    root = next((p for p in (root, root / "unified", root / "systemd") if (p / "cgroup.procs").exists()), None)
    if root is None:
        pytest.skip("no cgroup hierarchy that shows units")
    path = root / f"stray-{os.getpid()}.service"
    path.mkdir()
    yield path
    harness.poll_until(lambda: not (path / "cgroup.procs").read_text(), "the cgroup to be empty")
    path.rmdir()


@pytest.mark.parametrize("url,kind,host", [
    (f"tcp://127.0.0.1:{PORT}", socket.SOCK_STREAM, "127.0.0.1"),
    (f"tcp://0.0.0.0:{PORT}", socket.SOCK_STREAM, "127.0.0.1"),
    (f"tcp://[::]:{PORT}", socket.SOCK_STREAM, "127.0.0.1"),
    (f"tcp://[::]:{PORT}", socket.SOCK_STREAM, "::1"),
    (f"udp://127.0.0.1:{PORT}", socket.SOCK_DGRAM, "127.0.0.1"),
    (f"udp://[::1]:{PORT}", socket.SOCK_DGRAM, "::1"),
])
def test_socket_of_another_process_is_shown(start_daemon, url, kind, host):
    daemon = start_daemon("--listen", f"web={url}")
    for i in range(3):
        daemon.worker(instance=f"web@{i}")
    assert strangers(daemon) == []
    with Holder(kind, host) as holder:
        assert strangers(daemon) == [holder.entry()]
    assert strangers(daemon) == []


def test_sockets_elsewhere_are_none(start_daemon):
    """Of another port, address, transport or family."""
    daemon = start_daemon("--listen", f"web=tcp://127.0.0.1:{PORT}", "--listen", f"dns=udp://127.0.0.1:{PORT + 1}")
    with contextlib.ExitStack() as stack:
        for kind, host, port in [(socket.SOCK_STREAM, "127.0.0.1", PORT + 2), (socket.SOCK_STREAM, "127.0.0.2", PORT),
                                 (socket.SOCK_DGRAM, "127.0.0.1", PORT), (socket.SOCK_STREAM, "127.0.0.1", PORT + 1),
                                 (socket.SOCK_STREAM, "::1", PORT), (socket.SOCK_DGRAM, "::1", PORT + 1)]:
            stack.enter_context(Holder(kind, host, port))
        assert strangers(daemon, "web") == strangers(daemon, "dns") == []


def test_it_is_warned_about_once_with_pid_and_unit(start_daemon, unit):
    daemon = start_daemon("--listen", f"web=tcp://127.0.0.1:{PORT}")
    with Monitor(daemon) as monitor, Holder(unit=unit) as holder:
        monitor.snapshot()
        event = monitor.event()
        assert (event["kind"], event["service"], event["listener"]) == ("stranger", "web", "tcp")
        assert event["pid"] == holder.pid
        assert event["reason"].endswith(f" of unit {unit.name}")
        assert strangers(daemon) == [holder.entry(unit.name)]
        line, = warnings(daemon)
        assert f"(inode {holder.inode}, uid {holder.uid}): process {holder.pid} (" in line
        with Holder() as second:
            assert monitor.event()["pid"] == second.pid
    assert len(warnings(daemon)) == 2


def test_worker_that_is_gone_and_holds_its_socket_is_one(start_daemon, configuration):
    """Its process is of another user: the daemon sees that there is one, and not whose."""
    configuration.service("web", f"""[Service]
AllowUser=root
DrainTimeoutSec=1
[Listener http]
ListenStream=127.0.0.1:{PORT}
""")
    daemon = start_daemon("--config", configuration.directory)
    worker = daemon.worker(instance="web@1")
    inode = os.fstat(worker.socket.fileno()).st_ino
    daemon.call("Drain", instance="web@1")
    daemon.wait_state(worker.slot, None)
    found, = strangers(daemon)
    assert (found["inode"], found["pid"], found["command"]) == (inode, None, None)
    worker.socket.close()
    assert strangers(daemon) == []


def test_joining_and_draining_workers_are_none(start_daemon):
    daemon = start_daemon("--listen", f"web=tcp://127.0.0.1:{PORT}", "--listen", f"dns=udp://127.0.0.1:{PORT}")
    for service in "web", "dns":
        daemon.worker(service=service, instance="a", ready=False)
        daemon.worker(service=service, instance="b")
        daemon.worker(service=service, instance="c").drain()
    assert strangers(daemon, "web") == strangers(daemon, "dns") == []
    assert warnings(daemon) == []


def test_workers_of_other_services_of_a_share_and_its_classifier_are_none(start_daemon, configuration):
    """Nor is the classifier of the program before, which ends."""
    p = SharePlane(start_daemon, configuration, {"shop": "MatchServerName=shop.example", "api": "MatchDefault=yes"},
                   classifier=harness.BUILD / "classify" / "reuseport-classify")
    try:
        p.worker("shop")
        p.worker("api")
        assert strangers(p.daemon, "shop") == strangers(p.daemon, "api") == []
        p.daemon.ctl("reexec")
        assert strangers(p.daemon, "shop") == strangers(p.daemon, "api") == []
        assert warnings(p.daemon) == []
    finally:
        p.close()
