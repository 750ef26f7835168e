# SPDX-License-Identifier: BSD-2-Clause
"""
nginx as Debian ships it, four instances behind one port by reuseport-run, replaced one after the
other while wrk asks as fast as it can. Each request has a connection of its own: closing an idle
connection that is kept alive, as nginx does when told to quit, races with the client's next request
in HTTP/1.1 itself, and no listener can do anything about that.
"""
import os
import pathlib
import re
import shutil
import signal

import pytest

import harness
import hosts
from debian_hosts import PORT, Wrk, nginx


class Directory:
    """As much as hosts.Instances wants of a place."""

    def __init__(self, directory):
        self.directory = directory

    def make(self, name, owner):
        path = self.directory / name
        path.mkdir(mode=0o755)
        shutil.chown(path, owner, owner)


@pytest.fixture
def instances(start_daemon):
    daemon = start_daemon("--listen", f"web=tcp://127.0.0.1:{PORT}")
    result = hosts.Instances(
        daemon, Directory(daemon.directory), lambda name: nginx(daemon.directory / name),
        ["--pass", "nginx", "--ready", "exec", "--drain-signal", "QUIT"])
    yield result
    result.stop()


@pytest.fixture
def wrk(tmp_path):
    running = []

    def start():
        running.append(Wrk(tmp_path / f"wrk-{len(running)}", connections=32, close=False))
        return running[-1]
    yield start
    for each in running:
        each.kill()


def master(process):
    """The pid of nginx's own master."""
    path = process.log.with_name("pid")
    harness.poll_until(lambda: path.exists() and path.read_text().strip(), "nginx has its pid file")
    return int(path.read_text())


def answered_so_far(daemon):
    return sum(l["new_connections"] for l in daemon.status("web")["listeners"])


def test_rolling_replacement_loses_no_request(instances, wrk):
    daemon = instances.daemon
    names = [f"web@{i}" for i in range(4)]
    for name in names:
        instances.start(name)
    load = wrk()
    harness.poll_until(lambda: answered_so_far(daemon) > 100, "requests are coming")
    for i in range(20):
        before = instances.start(names[i % 4])
        assert before.wait() == 0, before.output()
        seen = answered_so_far(daemon)
        harness.poll_until(lambda: answered_so_far(daemon) > seen + 50, "requests go on")
    load.finish()
    assert load.requests > 1000
    assert load.errors == {"connect": 0, "read": 0, "write": 0, "timeout": 0}
    assert load.not_good == 0
    harness.poll_until(lambda: sorted((w["instance"], w["state"])
                                      for w in daemon.status("web")["workers"])
                       == [(name, "active") for name in names], "four instances are left")


def children(pid):
    return [int(child) for child in
            pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def accepted_connections(pid):
    """Connections of the port that a process holds, all states but LISTEN."""
    inodes = set()
    for entry in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        match = re.fullmatch(r"socket:\[(\d+)\]", str(entry.readlink()))
        if match:
            inodes.add(match.group(1))
    count = 0
    for line in pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[1].split(":")[1], 16) == PORT and fields[3] != "0A" and fields[9] in inodes:
            count += 1
    return count


def test_killed_instance_fails_only_what_it_had_accepted(instances, wrk):
    daemon = instances.daemon
    names = [f"web@{i}" for i in range(4)]
    for name in names:
        instances.start(name)
    load = wrk()
    harness.poll_until(lambda: answered_so_far(daemon) > 1000, "requests are coming")
    victim = instances.running.pop("web@2")
    parent = master(victim)
    workers = children(parent)
    assert len(workers) == 1
    for pid in (parent, *workers):
        os.kill(pid, signal.SIGSTOP)
    # It accepts nothing more; what comes for it now waits in its queue.
    harness.poll_until(lambda: stopped(workers[0]), "the worker has stopped")
    had = accepted_connections(workers[0])
    for pid in (parent, *workers):
        os.kill(pid, signal.SIGKILL)
    assert victim.wait() != 0
    seen = answered_so_far(daemon)
    harness.poll_until(lambda: answered_so_far(daemon) > seen + 1000, "requests go on")
    load.finish()
    failed = sum(load.errors.values()) + load.not_good
    print(f"{failed} failed of {had} that the instance had accepted, {load.requests} answered")
    assert load.errors["connect"] == 0 and load.errors["timeout"] == 0
    assert failed <= had


def stopped(pid):
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"
