# SPDX-License-Identifier: BSD-2-Clause
"""reuseportctl: a table for people, JSON for programs, and exit codes for scripts."""
import json
import pwd

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
