# SPDX-License-Identifier: BSD-2-Clause
"""reuseport-run: what the server is given, and what goes back and forth between it and the daemon."""
import os
import signal

import pytest

import harness
from launched import PORT, Launched, ask, launch, wait_active  # noqa: F401


# A server that tells what it was given, answers with its name, and ends well on SIGUSR1.
SERVER = r"""
import json, os, select, signal, socket, sys
path, name, ready, *arguments = sys.argv[1:]
ended = []
signal.signal(signal.SIGUSR1, lambda *_: ended.append(0))
signal.signal(signal.SIGTERM, lambda *_: ended.append(5))
numbers = [int(a.split("=")[1]) for a in arguments if a.startswith("fd=")]
if not numbers:
    numbers = range(3, 3 + int(os.environ.get("LISTEN_FDS", "0")))
listeners = [socket.socket(fileno=n) for n in numbers]
for each in listeners:
    each.setblocking(False)
fds = sorted(map(int, os.listdir("/proc/self/fd")))
with open(path + ".new", "w") as stream:
    json.dump({"arguments": arguments, "fds": fds,
        "environment": {k: v for k, v in os.environ.items() if k.startswith(("LISTEN_", "NGINX"))},
        "pid": os.getpid(), "names": [l.getsockname() for l in listeners]}, stream)
os.rename(path + ".new", path)
def notify(text):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        address = os.environ["NOTIFY_SOCKET"]
        s.sendto(text, "\0" + address[1:] if address[0] == "@" else address)
if ready != "exec":
    while not ended and not os.path.exists(ready):
        select.select([], [], [], 0.01)
    notify(b"STATUS=serving\nREADY=1")
while not ended:
    for listener in select.select(listeners, [], [], 0.02)[0]:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            continue
        connection.setblocking(True)
        connection.sendall(name.encode() + b" " + connection.recv(4096))
        connection.close()
sys.exit(ended[0])
"""


@pytest.fixture
def daemon(start_daemon, configuration):
    configuration.service("web", f"""[Service]
[Listener http]
ListenStream=127.0.0.1:{PORT}
[Listener admin]
ListenStream=127.0.0.1:{PORT + 1}
""")
    return start_daemon("--config", configuration.directory)


@pytest.fixture
def run(daemon, launch):  # noqa: F811
    def start(name, *options, arguments=(), ready="exec", **more):
        return launch(Launched, daemon, name, options, SERVER, (name, ready, *arguments), **more)
    return start


def test_listen_fds(daemon, run):
    told = run("one", "--instance", "one").told()
    environment = told["environment"]
    assert environment["LISTEN_FDS"] == "2"
    assert environment["LISTEN_PID"] == str(told["pid"])
    names = environment["LISTEN_FDNAMES"].split(":")
    assert sorted(names) == ["admin", "http"]
    ports = {"http": PORT, "admin": PORT + 1}
    assert told["names"] == [["127.0.0.1", ports[name]] for name in names]
    assert set(told["fds"]) - {0, 1, 2, 3, 4} <= {5}, "5: the directory that the list came from"
    ask(b"one")
    ask(b"one", PORT + 1)
    worker, = daemon.status("web")["workers"]
    assert worker["pid"] == told["pid"]
    assert worker["instance"] == "one"


def test_descriptor_in_an_argument(daemon, run):
    told = run("one", "--pass", "args", arguments=["fd={fd:admin}", "fd={fd:http}", "{other}"]).told()
    assert told["names"] == [["127.0.0.1", PORT + 1], ["127.0.0.1", PORT]]
    assert told["arguments"][2] == "{other}"
    assert "LISTEN_FDS" not in told["environment"]
    ask(b"one")


def test_nginx_variable(daemon, run):
    told = run("one", "--pass", "nginx", "--workers", "3").told()
    numbers = told["environment"]["NGINX"].split(";")
    assert numbers.pop() == ""
    assert sorted(map(int, numbers)) == [3, 4, 5, 6, 7, 8]
    harness.poll_until(lambda: len(daemon.status("web")["workers"]) == 3, "a slot for each worker")


def test_nothing_comes_before_the_server_is_ready(daemon, run, tmp_path):
    """The old instance serves until the new one has said READY=1, and not a moment less."""
    old = run("old", "--instance", "x", "--drain-signal", "USR1")
    old.told()
    ask(b"old")
    new = run("new", "--instance", "x", "--ready", "notify", ready=str(tmp_path / "go"))
    new.told()
    ask(b"old")
    states = sorted(w["state"] for w in daemon.status("web")["workers"])
    assert states == ["active", "joining"]
    (tmp_path / "go").touch()
    assert old.process.wait() == 0
    ask(b"new")


def test_readiness_is_forwarded(daemon, run, tmp_path):
    notify = harness.Notify(tmp_path / "notify")
    try:
        one = run("one", "--ready", "notify", ready=str(tmp_path / "go"),
                  env={**os.environ, "NOTIFY_SOCKET": notify.path})
        one.told()
        (tmp_path / "go").touch()
        notify.wait("READY=1", one.process)
        wait_active(daemon)
        ask(b"one")
    finally:
        notify.close()


def test_signals_and_exit_status_are_forwarded(daemon, run):
    one = run("one")
    one.told()
    wait_active(daemon)
    one.process.send_signal(signal.SIGTERM)
    assert one.process.wait() == 5
    harness.poll_until(lambda: daemon.status("web")["workers"] == [], "the slot is given back")


def test_killed_server_gives_128_and_the_signal(daemon, run):
    one = run("one")
    os.kill(one.told()["pid"], signal.SIGKILL)
    assert one.process.wait() == 128 + signal.SIGKILL
    harness.poll_until(lambda: daemon.status("web")["workers"] == [], "the slot is given back")


def test_killed_launcher_leaves_the_server_at_work(daemon, run):
    one = run("one")
    pid = one.told()["pid"]
    wait_active(daemon)
    try:
        one.process.send_signal(signal.SIGKILL)
        one.process.wait()
        ask(b"one")
        assert [w["state"] for w in daemon.status("web")["workers"]] == ["active"]
    finally:
        os.kill(pid, signal.SIGKILL)
    harness.poll_until(lambda: daemon.status("web")["workers"] == [], "the slot is given back")


@pytest.mark.parametrize("arguments, status", [
    (["--service", "web", "--", "/absent/server"], 127),
    (["--service", "web", "--", "/etc/passwd"], 126),
    (["--service", "none", "--", "/bin/true"], 125),
    (["--service", "web", "--workers", "0", "--", "/bin/true"], 2),
    (["--", "/bin/true"], 2),
    (["--service", "web"], 2),
])
def test_exit_status_of_failures(daemon, arguments, status):
    result = harness.run(harness.REUSEPORT_RUN, "--socket", daemon.worker_socket, *arguments,
                         check=False)
    assert result.returncode == status
    assert result.stderr
    harness.poll_until(lambda: daemon.status("web")["workers"] == [], "no slot is left")
