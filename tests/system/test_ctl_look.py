# SPDX-License-Identifier: BSD-2-Clause
"""What reuseportctl shows: lists, single workers, health, changes; on a terminal and in a pipe."""
import json
import os
import re
import subprocess

import pytest

import harness
from terminal import Terminal

PORT = 8080
RED, GREEN = "\x1b[31m", "\x1b[32m"


@pytest.fixture
def daemon(start_daemon):
    return start_daemon("--listen", f"web=tcp://127.0.0.1:{PORT}",
                        "--listen", f"dns=udp://127.0.0.1:{PORT + 1}")


def words(text):
    return [line.split() for line in text.splitlines()]


def times_as_x(text):
    """How long something has been so is not what is tested."""
    return re.sub(r"\b\d+s\b", "Xs", text)


def test_list_services(daemon):
    assert daemon.ctl("list-services").stdout == (
        "SERVICE  LISTENERS  ACTIVE  DRAINING  JOINING  CONFIGURATION\n"
        "dns              1       0         0        0  configured\n"
        "web              1       0         0        0  configured\n"
        "\n2 services listed.\n")
    daemon.worker(instance="web@1")
    drained = daemon.worker(instance="web@2")
    daemon.ctl("drain", str(drained.slot))
    assert daemon.ctl("list-services", "--no-legend").stdout == (
        "dns  1  0  0  0  configured\n"
        "web  1  1  1  0  configured\n")
    services = json.loads(daemon.ctl("list-services", "-j").stdout)
    assert [service["name"] for service in services] == ["dns", "web"]
    assert [service.keys() for service in services] == \
        [service.keys() for service in daemon.status()["services"]]


def test_list_workers(daemon):
    assert words(daemon.ctl("list-workers").stdout)[-1] == ["0", "workers", "listed."]
    assert daemon.ctl("list-workers", "--no-legend").stdout == ""
    worker = daemon.worker(instance="web@1")
    other = daemon.worker(service="dns", instance="dns@1")
    lines = words(times_as_x(daemon.ctl("list-workers").stdout))
    assert lines[0] == ["SLOT", "INSTANCE", "SERVICE", "STATE", "FOR", "WEIGHT", "PID", "USER", "PACKETS",
                        "NEW", "QUEUE", "DROPS"]
    assert [line[:10] for line in lines[1:3]] == [
        [str(other.slot), "dns@1", "dns", "active", "Xs", "100", str(os.getpid()), "root", "0", "0"],
        [str(worker.slot), "web@1", "web", "active", "Xs", "100", str(os.getpid()), "root", "0", "0"]]
    assert lines[3:] == [[], ["2", "workers", "listed."]]
    assert [line[1] for line in words(daemon.ctl("list-workers", "web", "--no-legend").stdout)] == ["web@1"]
    flat = json.loads(daemon.ctl("list-workers", "--json=short").stdout)
    assert [(each["service"], each["slot"]) for each in flat] == [("dns", other.slot), ("web", worker.slot)]
    assert daemon.ctl("list-workers", "absent", check=False).returncode == 1


def test_show(daemon):
    worker = daemon.worker(instance="web@1")
    daemon.worker(instance="web@2")
    daemon.ctl("weight", "web@2", "300")
    lines = times_as_x(daemon.ctl("show", str(worker.slot)).stdout).splitlines()
    comm = open("/proc/self/comm").read().strip()
    assert lines[:5] == [
        f"* web@1, slot {worker.slot} of service web" if lines[0][0] == "*"
        else f"● web@1, slot {worker.slot} of service web",
        "      State: active for Xs",
        f"    Process: {os.getpid()} ({comm}), user root, connected",
        "     Weight: 100 of 400, 25.0% of new connections",
        "    Packets: 0, of these new connections 0"]
    assert [line.split()[:4] for line in lines[5:]] == [
        [], ["LISTENER", "ADDRESS", "PACKETS", "NEW"], ["tcp", f"tcp://127.0.0.1:{PORT}", "0", "0"]]
    daemon.ctl("drain", "web@1")
    shown = daemon.ctl("show", "web@1").stdout
    assert "State: draining" in shown and "     Weight: 100\n" in shown
    both = daemon.ctl("show", "--service", "web").stdout
    assert both.count("of service web") == 2
    assert [each["instance"] for each in json.loads(daemon.ctl("show", "web@2", "-j").stdout)] == ["web@2"]
    for arguments in (["absent"], ["99"], ["--service=dns"], ["web@1", "--service=dns"]):
        failed = daemon.ctl("show", *arguments, check=False)
        assert failed.returncode == 1 and failed.stdout == "" and "no such worker" in failed.stderr
    assert daemon.ctl("show", check=False).returncode == 2


def about_kernel():
    """What check says of an older kernel, which is no fault."""
    release = os.uname().release
    said = []
    if harness.KERNEL < (6, 5):
        said.append(f"Linux {release} has no SO_PEERPIDFD (6.5 has): a server that speaks the protocol itself "
                    "must bring a pidfd with HELLO, as the library does")
    if harness.KERNEL < (6, 9):
        said.append(f"Linux {release} gives no pidfd of a thread (6.9 does): reuseport-run --adopt can't adopt "
                    "from threads with a descriptor table of their own")
    return said


def check(daemon, *arguments):
    """Status and lines, without those about the kernel, which come last."""
    done = daemon.ctl("check", *arguments, check=False)
    lines = done.stdout.splitlines()
    about = [f"OK: {each}" for each in about_kernel()]
    if done.returncode == 3 or not about:
        return done.returncode, lines
    assert lines[-len(about):] == about
    return done.returncode, lines[:-len(about)]


def test_check_has_the_status_of_a_plugin(daemon, tmp_path):
    assert check(daemon) == (2, [
        "CRITICAL: 2 services, 2 listeners, 0 of 0 workers active",
        "CRITICAL: dns/udp: no worker is active",
        "CRITICAL: web/tcp: no worker is active"])
    daemon.worker(instance="web@1")
    assert check(daemon, "web") == (0, ["OK: 1 service, 1 listener, 1 of 1 worker active"])
    daemon.worker(service="dns", instance="dns@1")
    assert check(daemon) == (0, ["OK: 2 services, 2 listeners, 2 of 2 workers active"])
    found = json.loads(daemon.ctl("check", "-j").stdout)
    assert found == {"status": "OK", "summary": "2 services, 2 listeners, 2 of 2 workers active",
                     "findings": [{"severity": "OK", "message": each} for each in about_kernel()]}
    daemon.ctl("drain", "dns@1")
    assert check(daemon) == (2, ["CRITICAL: 2 services, 2 listeners, 1 of 2 workers active",
                                 "CRITICAL: dns/udp: no worker is active"])
    status, lines = check(daemon, "absent")
    assert status == 3 and lines[0].startswith("UNKNOWN: ") and 'no service "absent"' in lines[0]
    assert check(daemon, "a", "b")[0] == 3
    assert check(daemon, "--wait")[0] == 3
    assert check(daemon, "--no-such-option")[0] == 3
    assert check(daemon, "--json=xml")[0] == 3
    unreachable = harness.run(harness.REUSEPORTCTL, "--socket", tmp_path / "absent", "check", check=False)
    assert unreachable.returncode == 2
    assert unreachable.stdout.startswith("CRITICAL: cannot check reuseportd: cannot connect")


def test_check_says_how_many_wait(daemon):
    with harness.tcp_client(("127.0.0.1", PORT)), harness.tcp_client(("127.0.0.1", PORT)):
        harness.poll_until(lambda: daemon.status("web")["listeners"][0]["waiting"] == 2, "two wait")
        assert check(daemon, "web")[1][1] == "CRITICAL: web/tcp: no worker is active, and 2 wait in the standby"


def test_check_warns_of_a_map_that_is_full(start_daemon, configuration):
    configuration.service("web", f"[Service]\nAllowUser=root\n[Listener u]\n"
                                 f"ListenDatagram=127.0.0.1:{PORT}\nFlows=1024\n")
    daemon = start_daemon("--config", configuration.directory)
    daemon.worker()
    for port in range(20000, 24096):  # four times as many, so that every set of it is full
        with harness.udp_client(("127.0.0.1", PORT), source=("127.0.0.1", port)) as client:
            client.send(b"x")
    harness.poll_until(lambda: daemon.status("web")["listeners"][0]["flows"]["used"] > 922, "they are flows")
    status, lines = check(daemon)
    assert status == 1 and lines[0] == "WARNING: 1 service, 1 listener, 1 of 1 worker active"
    assert re.fullmatch(r"WARNING: web/u: a map is (9\d|100)% full", lines[1])
    assert re.search(r" (9\d|100)% ", daemon.ctl("status").stdout)


def test_check_warns_when_no_key_is_left(start_daemon):
    daemon = start_daemon("--listen", f"web=quic://127.0.0.1:{PORT}")
    daemon.worker()
    for _ in range(6):
        daemon.ctl("rotate-keys", "web")
    assert check(daemon) == (1, [
        "WARNING: 1 service, 1 listener, 1 of 1 worker active",
        "WARNING: web/quic: all 7 keys are in use, so the next rotation will be refused"])


def test_check_of_configuration_files(configuration, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{harness.REUSEPORTD.parent}:{os.environ['PATH']}")
    arguments = [harness.REUSEPORTCTL, "check", "--config", configuration.directory]
    configuration.service("web", f"[Service]\nAllowUser=root\n[Listener t]\nListenStream=127.0.0.1:{PORT}\n")
    assert harness.run(*arguments, check=False).returncode == 0
    configuration.service("web", "[Service]\nAllowUser=root\n[Listener t]\nListenStream=nonsense\n")
    wrong = harness.run(*arguments, check=False)
    assert wrong.returncode == 2 and "web.conf" in wrong.stdout + wrong.stderr
    assert harness.run(*arguments, "web", check=False).returncode == 3
    monkeypatch.setenv("PATH", str(tmp_path))
    if not os.path.exists("/usr/sbin/reuseportd"):
        assert harness.run(*arguments, check=False).returncode == 3


class Monitor:
    """reuseportctl monitor, read line by line."""

    def __init__(self, daemon, *arguments):
        self.process = subprocess.Popen(
            [str(harness.REUSEPORTCTL), "--socket", daemon.control_socket, "monitor", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.process.stderr.close()

    def lines(self, n):
        found = [self.process.stdout.readline() for _ in range(n)]
        assert all(found), found
        return [re.sub(r"^[A-Z][a-z]{2} \d\d \d\d:\d\d:\d\d\.\d{3}  ", "", line.rstrip("\n")) for line in found]


def test_monitor_has_a_line_for_each_change(daemon):
    pid = os.getpid()
    with Monitor(daemon) as monitor:
        assert monitor.lines(1) == ["snapshot          services: 2, listeners: 2, workers: 0, of these active: 0"]
        worker = daemon.worker(instance="web@1")
        who = f"web  slot {worker.slot}  web@1  pid {pid}"
        assert monitor.lines(2) == [f"registered        {who}", f"ready             {who}"]
        daemon.ctl("drain", "web@1")
        daemon.ctl("undrain", "web@1")
        daemon.ctl("weight", "web@1", "7")
        assert [line.split(":")[0] for line in monitor.lines(3)] == [
            f"draining          {who}", f"undrained         {who}", f"weight            {who}"]
        daemon.leave_all()
        gone = monitor.lines(1)[0]
        while not gone.startswith("gone"):
            gone = monitor.lines(1)[0]
        assert re.match(rf"gone              {who}  after \d+s: ", gone)
        daemon.stop()
        assert monitor.process.wait(harness.DEADLINE) == 3
        assert "ended the connection" in monitor.process.stderr.read()


def test_monitor_for_programs(daemon):
    with Monitor(daemon, "dns", "--json=short") as monitor:
        first = json.loads(monitor.lines(1)[0])
        assert first.keys() == {"services"} and [each["name"] for each in first["services"]] == ["dns"]
        daemon.worker(instance="web@1")
        worker = daemon.worker(service="dns", instance="dns@1")
        events = [json.loads(line) for line in monitor.lines(2)]
        assert all(event.keys() == {"event"} for event in events)
        assert [(event["event"]["kind"], event["event"]["slot"]) for event in events] == [
            ("registered", worker.slot), ("ready", worker.slot)]
    with Monitor(daemon, "absent") as monitor:
        assert monitor.process.wait(harness.DEADLINE) == 1
        assert 'no service "absent"' in monitor.process.stderr.read()


def on_terminal(daemon, *arguments, environment=None, columns=160):
    """(exit status, screen, octets) of a command on a terminal."""
    terminal = Terminal([harness.REUSEPORTCTL, "--socket", daemon.control_socket, *arguments], columns, 40,
                        environment)
    try:
        return terminal.end(), terminal.text(), terminal.history.decode()
    finally:
        terminal.close()


def test_colours_are_for_terminals(daemon, monkeypatch):
    daemon.worker(instance="web@1")
    status, text, octets = on_terminal(daemon, "status", "--no-pager")
    assert status == 0 and "● web" in text and "● dns" in text
    assert f"{GREEN}active" in octets and f"{RED}●" in octets and f"{GREEN}●" in octets
    for environment in ({"NO_COLOR": "1"}, {"TERM": "dumb"}, {"SYSTEMD_COLORS": "0"}):
        assert "\x1b" not in on_terminal(daemon, "status", "--no-pager", environment=environment)[2]
    assert GREEN in on_terminal(daemon, "status", "--no-pager", environment={"NO_COLOR": ""})[2]
    assert "\x1b" not in daemon.ctl("status").stdout
    monkeypatch.setenv("SYSTEMD_COLORS", "1")
    assert GREEN in daemon.ctl("status").stdout


def test_a_pager_is_for_terminals(daemon, tmp_path):
    pager = tmp_path / "pager"
    pager.write_text("#!/bin/sh\necho paged $# $1 LESS=$LESS SECURE=$LESSSECURE\ncat\n")
    pager.chmod(0o755)
    environment = {"PAGER": f"{pager} an-argument", "NO_COLOR": "1"}
    for command in ("status", "list-services", "list-workers"):
        status, text, _ = on_terminal(daemon, command, environment=environment)
        assert status == 0
        assert text.startswith("paged 1 an-argument LESS=FRSXMK SECURE=1\n"), command
        assert "dns" in text or command == "list-workers"
    assert on_terminal(daemon, "status", environment={"SYSTEMD_PAGER": str(pager)})[1].startswith("paged 0")
    for environment in ({"SYSTEMD_PAGER": "", "PAGER": str(pager)}, {"PAGER": "cat"}, {"TERM": "dumb"}):
        assert "paged" not in on_terminal(daemon, "status", environment={"PAGER": str(pager), **environment})[1]
    assert "paged" not in on_terminal(daemon, "status", "--no-pager", environment={"PAGER": str(pager)})[1]
    for command in ("check", "metrics"):
        assert "paged" not in on_terminal(daemon, command, environment={"PAGER": str(pager)})[1]
    # One that can't be run: the next one, or none, but the answer is there.
    assert "dns" in on_terminal(daemon, "status", environment={"PAGER": "/nonexistent/pager"})[1]
    # Its user leaves at once.
    assert on_terminal(daemon, "status", environment={"PAGER": "true"})[0] == 0


def test_the_answer_that_can_not_be_written(daemon):
    with open("/dev/full", "w") as full:
        done = subprocess.run([str(harness.REUSEPORTCTL), "--socket", daemon.control_socket, "status"],
                              stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr == "reuseportctl: cannot write the answer: No space left on device\n"


def test_options_anywhere_and_only_where_they_mean_something(daemon):
    daemon.worker(instance="web@1")
    assert [json.loads(daemon.ctl(*each).stdout)[0]["name"] for each in (
        ["--json=short", "list-services"], ["list-services", "-j"])] == ["dns", "dns"]
    for wrong, said in ((["status", "--wait"], "status has no option --wait"),
                        (["status", "--instance", "web@1"], "status has no option --instance"),
                        (["reload", "now"], "reload takes no arguments: too many arguments"),
                        (["status", "a", "b"], "status takes [SERVICE]: too many arguments"),
                        (["rotate-keys"], "rotate-keys takes SERVICE [LISTENER]: an argument is missing"),
                        (["--json=xml"], "--json is pretty, short or off, not xml"),
                        (["explain", "--offline", "--packet", "40", "extra"], "too many arguments"),
                        (["dance"], "there is no command dance"),
                        (["dance", "--help"], "there is no command dance"),
                        (["drain", "--no-such-option"], "unrecognized option"),
                        (["drain", "web@1", "--timeout", "5"], "--timeout needs --wait"),
                        (["drain", "web@1", "--wait", "--timeout", "x"], "--timeout is a number of seconds"),
                        (["drain", "web@1", "--wait", "--wait"], "--wait is given twice")):
        done = daemon.ctl(*wrong, check=False)
        assert done.returncode == 2 and done.stdout == "", wrong
        assert done.stderr.startswith("reuseportctl: ") and said in done.stderr, done.stderr
    assert daemon.status("web")["workers"][0]["state"] == "active"
    assert re.fullmatch(r"reuseportctl \d+\.\d+\.\d+\n", daemon.ctl("--version").stdout)


def test_columns_of_zeros_make_room(daemon):
    wide = on_terminal(daemon, "status", "--no-pager", columns=160)[1]
    narrow = on_terminal(daemon, "status", "--no-pager", columns=80)[1]
    # What was not zero stays.
    assert "DROPPED" in wide and "DROPPED" not in narrow and "NEW" in narrow
    assert all(len(line) < 80 for line in narrow.split("\n"))
    with harness.tcp_client(("127.0.0.1", PORT)):
        harness.poll_until(lambda: daemon.status("web")["listeners"][0]["standby"] == 1, "it waits")
        table = on_terminal(daemon, "status", "web", "--no-pager", columns=85)[1].split("\n")
        heading = next(line for line in table if "LISTENER" in line)
        assert "STANDBY" in heading and "DROPPED" not in heading
    assert "DROPPED" in daemon.ctl("status").stdout
