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

PORT = 8080
CONFIGURATION = """
daemon off;
pid {directory}/pid;
error_log stderr notice;
worker_processes 1;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    keepalive_timeout 0;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{ return 200 "answered\\n"; }}
    }}
}}
"""


@pytest.fixture(scope="module")
def programs(system):
    for program in ("nginx", "wrk"):
        if not shutil.which(program):
            pytest.skip(f"needs {program} (Debian: nginx-light, wrk)")


class Instances:
    def __init__(self, daemon):
        self.daemon = daemon
        self.count = 0
        self.running = {}

    def start(self, name):
        """Starts nginx as this instance, and returns the instance's process before, if any."""
        self.count += 1
        directory = self.daemon.directory / f"nginx-{self.count}"
        directory.mkdir(mode=0o755)
        configuration = directory / "nginx.conf"
        configuration.write_text(CONFIGURATION.format(directory=directory, port=PORT))
        process = harness.Process(
            [harness.REUSEPORT_RUN, "--socket", self.daemon.worker_socket, "--service", "web",
             "--instance", name, "--pass", "nginx", "--ready", "exec", "--drain-signal", "QUIT", "--",
             "nginx", "-e", "stderr", "-c", configuration, "-p", directory], directory / "log")
        process.directory = directory
        before = self.running.get(name)
        self.running[name] = process

        def active():
            assert process.returncode is None, process.output()
            states = [w["state"] for w in self.daemon.status("web")["workers"]
                      if w["instance"] == name]
            return states.count("active") == 1 and (before is None or len(states) <= 2) and \
                self.master(process) is not None
        harness.poll_until(active, f"{name} is active")
        return before

    def master(self, process):
        """The pid of nginx's own master, None before it has written that."""
        try:
            return int((process.directory / "pid").read_text())
        except (FileNotFoundError, ValueError):
            return None

    def stop(self):
        for process in self.running.values():
            process.stop()


@pytest.fixture
def instances(programs, start_daemon):
    daemon = start_daemon("--listen", f"web=tcp://127.0.0.1:{PORT}")
    result = Instances(daemon)
    yield result
    result.stop()


class Wrk:
    """wrk until it is told to stop; what it counted is in its output."""

    def __init__(self, log):
        self.process = harness.Process(
            ["wrk", "-t1", "-c32", "-d600", "--timeout", "60", f"http://127.0.0.1:{PORT}/"], log)

    def finish(self):
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait() == 0
        output = self.process.output()
        print(output)
        self.requests = int(re.search(r"(\d+) requests in", output).group(1))
        errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)",
                           output)
        self.errors = dict(zip(("connect", "read", "write", "timeout"),
                               map(int, errors.groups()) if errors else (0, 0, 0, 0)))
        other = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
        self.not_good = int(other.group(1)) if other else 0

    def kill(self):
        self.process.stop(signal.SIGKILL)


@pytest.fixture
def wrk(tmp_path):
    running = []

    def start():
        running.append(Wrk(tmp_path / f"wrk-{len(running)}"))
        return running[-1]
    yield start
    for each in running:
        each.kill()


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
    master = instances.master(victim)
    workers = children(master)
    assert len(workers) == 1
    for pid in (master, *workers):
        os.kill(pid, signal.SIGSTOP)
    # It accepts nothing more; what comes for it now waits in its queue.
    harness.poll_until(lambda: stopped(workers[0]), "the worker has stopped")
    had = accepted_connections(workers[0])
    for pid in (master, *workers):
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
