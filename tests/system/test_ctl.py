# SPDX-License-Identifier: BSD-2-Clause
"""reuseportctl: a table for people, JSON for programs, and exit codes for scripts."""
import json
import pwd
import socket
import threading

import pytest

import harness
import worker_protocol as proto

PORT = 8080


@pytest.fixture
def daemon(start_daemon):
    return start_daemon("--listen", f"web=tcp://127.0.0.1:{PORT}")


def test_ctl_changes_what_it_is_told(daemon):
    worker = daemon.worker(instance="first")
    daemon.ctl("drain", str(worker.slot))
    assert worker.wait_drain_requested()[0] == proto.DRAIN_OPERATOR
    assert daemon.status_worker(worker.slot)["state"] == "draining"
    daemon.ctl("undrain", str(worker.slot))
    assert daemon.status_worker(worker.slot)["state"] == "active"
    daemon.ctl("weight", "first", "700")
    assert daemon.status_worker(worker.slot)["weight"] == 700
    assert daemon.ctl("weight", "first", "1001", check=False).returncode in (1, 2)
    assert daemon.status_worker(worker.slot)["weight"] == 700


def test_ctl_status_for_people_and_for_programs(daemon):
    daemon.worker(instance="web@1")
    table = daemon.ctl("status").stdout
    for word in ("web", "web@1", "active", f"127.0.0.1:{PORT}"):
        assert word in table
    for form in ("pretty", "short"):
        reply = json.loads(daemon.ctl("status", f"--json={form}").stdout)
        assert [s["name"] for s in reply["services"]] == ["web"]
        assert [w["instance"] for w in reply["services"][0]["workers"]] == ["web@1"]
    assert len(daemon.ctl("status", "--json=short").stdout.splitlines()) == 1
    assert len(daemon.ctl("status", "--json=pretty").stdout.splitlines()) > 1


def test_ctl_exit_codes(daemon):
    assert daemon.ctl("status").returncode == 0
    assert daemon.ctl("drain", "nobody-of-this-name", check=False).returncode == 1
    assert daemon.ctl("dance", check=False).returncode == 2
    assert daemon.ctl("drain", check=False).returncode == 2
    unreachable = harness.run(harness.REUSEPORTCTL, "--socket", daemon.directory / "absent",
                              "status", check=False)
    assert unreachable.returncode == 3
    assert unreachable.stderr
    daemon.worker(instance="first")
    nobody = pwd.getpwnam("nobody")
    # Copied to where another user may run it, wherever the build directory is.
    program = daemon.directory / "reuseportctl"
    program.write_bytes(harness.REUSEPORTCTL.read_bytes())
    program.chmod(0o755)
    denied = harness.run(program, "--socket", daemon.control_socket, "drain", "first",
                         check=False, user=nobody.pw_uid, group=nobody.pw_gid, extra_groups=[],
                         cwd="/")
    assert denied.returncode == 4
    assert denied.stderr
    allowed = harness.run(program, "--socket", daemon.control_socket, "status", user=nobody.pw_uid,
                          group=nobody.pw_gid, extra_groups=[], cwd="/")
    assert "web" in allowed.stdout


def test_ctl_shows_the_counters_that_a_listener_can_have(start_daemon):
    daemon = start_daemon("--listen", f"web=tcp://127.0.0.1:{PORT}",
                          "--listen", f"web=quic://127.0.0.1:{PORT}",
                          "--listen", f"dns=udp://127.0.0.1:{PORT + 1}")
    daemon.worker()
    with harness.udp_client(("127.0.0.1", PORT)) as client:
        client.send(b"@")  # ends before its connection ID does
        client.send(b"\xc0\0\0\0\1\x08unknown1\0")
        harness.poll_until(lambda: sum(each["packets"] for each in daemon.status("web")["listeners"])
                           == 2, "both are counted")
    tables = [[line.split() for line in part.splitlines()]
              for part in daemon.ctl("status").stdout.split("\n\n")]
    dns, web = tables[1][1:], tables[2][1:]
    assert dns[0] == ["LISTENER", "ADDRESS", "ACTIVE", "FILL", "WAITING", "PACKETS", "NEW", "BY", "FLOW",
                      "FALLBACK", "STANDBY", "EXPIRED", "DROPPED"]
    assert web[0] == ["LISTENER", "ADDRESS", "ACTIVE", "IDS", "FILL", "WAITING", "PACKETS", "NEW", "BY",
                      "ID", "BY", "FLOW", "MIGRATED", "FALLBACK", "STANDBY", "EXPIRED", "STRAY", "INVALID",
                      "DROPPED"]
    assert sorted(web[1:]) == [
        ["quic", f"quic://127.0.0.1:{PORT}", "1", "quic-lb", "0%", "0", "2", "1", "0", "0", "-",
         "0", "0", "0", "0", "1", "0"],
        ["tcp", f"tcp://127.0.0.1:{PORT}", "1", "-", "-", "0", "0", "0", "-", "-", "0", "0", "0",
         "0", "0", "-", "0"]]


OLDER_STATUS = {
    "daemon": {"version": "0.0.9", "pid": 77, "since": 1, "uptime": 61000000},
    "services": [{"name": "web", "removed": False, "listeners": [
        {"name": "tcp", "transport": "tcp", "address": "127.0.0.1:80", "connection_id": "none", "packets": 5,
         "new_connections": 4, "by_connection_id": 0, "by_flow": 0, "migrated": 1, "fallback": 0, "standby": 0,
         "expired": 0, "stray": 0, "dropped": 0, "invalid": 0, "active": 1, "generation": 2, "keys": None}],
        "workers": [{"slot": 3, "instance": "web@1", "pid": 1, "uid": 0, "state": "active", "weight": 100,
                     "packets": 5, "new_connections": 4, "since": 1, "exited": False, "connected": True}]}]}


class OlderDaemon:
    """Answers as the first interface did: no queues, no loads, no Monitor, no Kick."""

    def __init__(self, path):
        self.path = str(path)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen()
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self):
        while True:
            connection, _ = self.listener.accept()
            with connection:
                call = json.loads(connection.recv(65536).rstrip(b"\0") or b"{}")
                if not call:
                    return
                reply = {"parameters": OLDER_STATUS} if call["method"].endswith(".Status") else \
                    {"error": "org.varlink.service.MethodNotFound", "parameters": {"method": call["method"]}}
                connection.sendall(json.dumps(reply).encode() + b"\0")

    def stop(self):
        socket.socket(socket.AF_UNIX).connect(self.path)
        self.thread.join(harness.DEADLINE)
        self.listener.close()


def test_ctl_works_with_an_older_daemon(tmp_path):
    older = OlderDaemon(tmp_path / "socket")

    def ctl(*arguments):
        return harness.run(harness.REUSEPORTCTL, "--socket", older.path, *arguments, check=False)

    try:
        table = [line.split() for line in ctl("status").stdout.splitlines()]
        assert table[0] == ["reuseportd", "0.0.9,", "pid", "77,", "up", "1min", "1s"]
        assert table[3:5] == [
            ["LISTENER", "ADDRESS", "ACTIVE", "PACKETS", "NEW", "MIGRATED", "FALLBACK", "STANDBY", "EXPIRED",
             "STRAY", "DROPPED"],
            ["tcp", "tcp://127.0.0.1:80", "1", "5", "4", "1", "0", "0", "0", "0", "0"]]
        assert table[6] == ["SLOT", "INSTANCE", "STATE", "FOR", "WEIGHT", "PID", "USER", "PACKETS", "NEW"]
        assert "web@1, slot 3 of service web" in ctl("show", "3").stdout
        assert ctl("check").stdout == "OK: 1 service, 1 listener, 1 of 1 worker active\n"
        assert ctl("top", "--once", "--delay=0.1").returncode == 0
        metrics = ctl("metrics").stdout
        assert 'verdict="listener"} 4\n' in metrics and "reuseportd_worker_stalled" not in metrics
        for command in (["monitor"], ["kick", "3"]):
            done = ctl(*command)
            assert done.returncode == 1 and "is it older than reuseportctl" in done.stderr
    finally:
        older.stop()
