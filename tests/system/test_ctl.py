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
