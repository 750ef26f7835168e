# SPDX-License-Identifier: BSD-2-Clause
"""
The installed units under a real systemd as PID 1, of Debian 12 (252) and Debian 13 (257): life of the
service, mistakes that an operator sees, the journal, least privilege, and a server unit behind it.
"""
import json
import re
import subprocess
import time

import pytest

import harness
import systemd_host
from systemd_host import EXAMPLES, UNITS

SERVICE = "reuseportd.service"
SOCKETS = ("reuseportd-worker.socket", "reuseportd-control.socket")
WEB = "/etc/reuseportd/services.d/web.conf"
OTHER = "/etc/reuseportd/services.d/other.conf"
GOOD = """[Service]
AllowUser=www-data
[Listener http]
ListenStream=0.0.0.0:80
"""
CAP_CHOWN, CAP_NET_BIND_SERVICE, CAP_NET_ADMIN, CAP_NET_RAW, CAP_PERFMON, CAP_BPF = 0, 10, 12, 13, 38, 39


def events():
    text = (harness.ROOT / "daemon" / "event.h").read_text()
    return dict(re.findall(r'^\tX\((\w+), "\w+", LOG_\w+, "(\w{32})"\)', text, re.MULTILINE))


EVENTS = events()


def test_catalog_explains_each_event_and_no_other():
    text = (harness.ROOT / "systemd" / "reuseportd.catalog").read_text()
    assert sorted(re.findall(r"^-- (\w+)$", text, re.MULTILINE)) == sorted(EVENTS.values())
    assert len(EVENTS) == 22 == text.count("\nSubject: ")


# trixie first: pytest takes it for the same machine as that of WITH_VARLINKCTL by its place in the list.
@pytest.fixture(scope="module", params=["trixie", "bookworm"])
def booted(request, system):
    try:
        machine = systemd_host.Machine(request.param)
    except systemd_host.CannotBoot as error:
        pytest.skip(f"no systemd as PID 1 here: {error}")
    machine.run("systemd-sysusers")
    yield machine
    machine.stop()


# varlinkctl comes with systemd 255.
WITH_VARLINKCTL = pytest.mark.parametrize("booted", ["trixie"], indirect=True)


@pytest.fixture
def machine(booted):
    """With the service web, and nothing started; what a test changed is taken away after it."""
    booted.write(WEB, GOOD)
    booted.run("systemctl", "daemon-reload")
    yield booted
    booted.run("systemctl", "stop", "reuseport-example@*", check=False)
    booted.run("systemctl", "stop", *SOCKETS, SERVICE)
    booted.run("systemctl", "unmask", "--runtime", *SOCKETS)
    booted.run("systemctl", "reset-failed")
    booted.remove("/etc/reuseportd", f"{UNITS}/{SERVICE}.d", f"{UNITS}/reuseport-example@.service",
                  "/etc/nginx/reuseport-example.conf", "/run/systemd/system/reuseportd.service.d")


def main_pid(machine):
    """Inside; not 0."""
    pid = int(machine.show(SERVICE, "MainPID"))
    assert pid > 0
    return pid


def process_status(machine):
    text = machine.output("cat", f"/proc/{main_pid(machine)}/status")
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def status(machine):
    return json.loads(machine.output("reuseportctl", "status", "--json=short"))


def services(machine):
    return [service["name"] for service in status(machine)["services"]]


def listening(machine):
    """TCP ports."""
    return sorted({int(line.split()[3].rsplit(":", 1)[1])
                   for line in machine.output("ss", "-Hltn").splitlines()})


def wait_active(machine, pid_before):
    """Until another process than that one is ready."""
    harness.poll_until(
        lambda: machine.show(SERVICE, "ActiveState") == "active" and
        machine.show(SERVICE, "MainPID") not in ("0", str(pid_before)), "the next process is ready")


def test_starts_reloads_restarts_stops_and_starts(machine):
    machine.run("systemctl", "start", SERVICE)
    first = main_pid(machine)
    assert services(machine) == ["web"] and listening(machine) == [80]
    assert machine.show(SERVICE, "StatusText") == "Running"

    # Ready when the command returns, not some time after.
    machine.write(OTHER, GOOD.replace(":80", ":81"))
    machine.run("systemctl", "reload", SERVICE)
    assert sorted(services(machine)) == ["other", "web"] and listening(machine) == [80, 81]
    assert main_pid(machine) == first

    machine.run("systemctl", "restart", SERVICE)
    second = main_pid(machine)
    assert second != first and listening(machine) == [80, 81]

    machine.run("systemctl", "stop", *SOCKETS, SERVICE)
    assert machine.show(SERVICE, "ActiveState") == "inactive"
    assert machine.show(SERVICE, "Result") == "success"
    # systemd closes what was stored in a thread of its own (asynchronous_close()).
    harness.poll_until(lambda: listening(machine) == [], "no listener is left")
    assert machine.run("ls", "/run/reuseportd").stdout.split() == []

    machine.run("systemctl", "start", SERVICE)
    assert sorted(services(machine)) == ["other", "web"] and listening(machine) == [80, 81]
    assert machine.show(SERVICE, "NRestarts") == "0"
    assert machine.run("ls", "/run/reuseportd").stdout.split() == ["control.sock", "worker.sock"]


def test_sockets_of_the_units_outlive_the_daemon(machine):
    def inodes():
        return machine.output("stat", "--format=%i %a", "/run/reuseportd/control.sock",
                              "/run/reuseportd/worker.sock").splitlines()

    machine.run("systemctl", "start", SERVICE)
    before = inodes()
    assert [line.split()[1] for line in before] == ["666", "666"]
    first = main_pid(machine)
    machine.run("systemctl", "stop", SERVICE)
    assert inodes() == before
    # A client is not refused: the daemon is started for it.
    assert services(machine) == ["web"]
    assert inodes() == before and main_pid(machine) != first


def test_without_socket_units_the_daemon_makes_its_sockets(machine):
    machine.run("systemctl", "mask", "--runtime", *SOCKETS)
    for _ in range(2):
        machine.run("systemctl", "restart", SERVICE)
        assert services(machine) == ["web"]
        assert machine.output("stat", "--format=%a %U", "/run/reuseportd/worker.sock") == "666 reuseport"
    assert [machine.show(unit, "ActiveState") for unit in SOCKETS] == ["inactive", "inactive"]


def test_bad_configuration_is_told_by_systemctl_status_and_not_tried_again(machine):
    machine.write(WEB, GOOD.replace("AllowUser", "AllowUsers"))
    machine.run("systemctl", "stop", *SOCKETS)
    assert machine.run("systemctl", "start", SERVICE, check=False).returncode == 1
    said = machine.run("systemctl", "status", "--no-pager", "--full", SERVICE, check=False)
    assert said.returncode == 3
    assert "status=78/CONFIG" in said.stdout
    assert f"Status: \"The configuration can't be used: {WEB}:2:" in said.stdout
    # As an entry of the journal as well, and once.
    assert len(re.findall(rf"reuseportd\[\d+\]: {WEB}:2:", said.stdout)) == 1
    assert machine.show(SERVICE, "NRestarts") == "0"
    assert machine.show(SERVICE, "ActiveState") == "failed"

    machine.write(WEB, GOOD)
    machine.run("systemctl", "start", SERVICE)
    assert services(machine) == ["web"]


def test_refused_reload_fails_and_changes_nothing(machine):
    machine.run("systemctl", "start", SERVICE)
    pid = main_pid(machine)
    machine.write(OTHER, GOOD.replace(":80", ":81"))
    machine.write(WEB, GOOD + "Unknown=1\n")
    assert machine.run("systemctl", "reload", SERVICE, check=False).returncode == 1
    assert listening(machine) == [80] and main_pid(machine) == pid
    assert machine.show(SERVICE, "ActiveState") == "active"
    assert machine.show(SERVICE, "StatusText") == "Running; the last reload was refused"
    entries = machine.journal(f"MESSAGE_ID={EVENTS['RELOAD_REFUSED']}", f"_PID={pid}")
    assert len(entries) == 1 and f"{WEB}:5:" in entries[0]["MESSAGE"]
    machine.write(WEB, GOOD)
    machine.run("systemctl", "reload", SERVICE)
    assert listening(machine) == [80, 81] and machine.show(SERVICE, "StatusText") == "Running"


def test_killed_twenty_times_it_comes_back_each_time(machine):
    since = machine.output("date", "+%s.%N")
    machine.run("systemctl", "start", SERVICE)
    for _ in range(20):
        pid = main_pid(machine)
        machine.run("kill", "-KILL", pid)
        wait_active(machine, pid)
    log = machine.output("journalctl", "--no-pager", "--boot", "--unit", SERVICE, f"--since=@{since}")
    assert log.count("Main process exited") == log.count("code=killed, status=9/KILL") == 20, log
    # Now and then systemd 257 can't start the process at all, and tries again as after any other failure;
    # most likely the unit's cgroup, in which it starts it, was just removed with the process before.
    own = log.count("Failed to spawn executor: No such file or directory")
    assert int(machine.show(SERVICE, "NRestarts")) == 20 + own, log
    assert services(machine) == ["web"]


def test_watchdog_replaces_a_daemon_that_hangs(machine):
    machine.write(f"/run/systemd/system/{SERVICE}.d/watchdog.conf", "[Service]\nWatchdogSec=1s\n")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", SERVICE)
    pid = main_pid(machine)
    # One that does not hang is left alone for several periods, though nobody asks it for anything.
    end = time.monotonic() + 3
    harness.poll_until(lambda: time.monotonic() > end, "three seconds", interval=0.1)
    assert main_pid(machine) == pid
    machine.run("kill", "-STOP", pid)
    wait_active(machine, pid)
    assert machine.show(SERVICE, "NRestarts") == "1"
    assert services(machine) == ["web"]


def test_journal_has_the_events_with_their_fields(machine):
    start_example(machine, 1)
    found, = status(machine)["services"][0]["workers"]
    slot = found["slot"]
    pid = main_pid(machine)
    assert "1" in machine.output("reuseportctl", "drain", "web@1")
    harness.poll_until(lambda: not status(machine)["services"][0]["workers"], "the worker is gone")

    def entry(event):
        found = machine.journal(f"MESSAGE_ID={EVENTS[event]}", f"_PID={pid}")
        assert len(found) == 1, (event, found)
        return {key: found[0].get(key) for key in
                ("SERVICE", "LISTENER", "INSTANCE", "SLOT", "OBJECT_PID", "PRIORITY", "SYSLOG_IDENTIFIER", "_SYSTEMD_UNIT")}

    common = {"PRIORITY": "6", "SYSLOG_IDENTIFIER": "reuseportd", "_SYSTEMD_UNIT": SERVICE,
              "SERVICE": "web", "LISTENER": None, "INSTANCE": None, "SLOT": None,
              "OBJECT_PID": None}
    worker = {**common, "INSTANCE": "web@1", "SLOT": str(slot), "OBJECT_PID": str(found["pid"])}
    assert entry("READY") == {**common, "SERVICE": None}
    assert entry("LISTENER_OPEN") == {**common, "LISTENER": "http"}
    assert entry("WORKER_REGISTERED") == worker
    assert entry("WORKER_ACTIVE") == worker
    assert entry("WORKER_DRAINING") == worker
    assert entry("WORKER_GONE") == worker

    machine.run("journalctl", "--update-catalog")
    text = machine.output("journalctl", "--no-pager", "--catalog", f"MESSAGE_ID={EVENTS['WORKER_ACTIVE']}",
                          f"_PID={pid}")
    assert text.count("Subject: web@1 of service web takes connections") == 1


def test_runs_unprivileged_and_confined(machine):
    machine.run("systemctl", "start", SERVICE)
    process = process_status(machine)
    uid = machine.output("id", "--user", "reuseport")
    assert process["Uid"].split() == [uid] * 4 and uid != "0"
    wanted = 1 << CAP_BPF | 1 << CAP_NET_BIND_SERVICE
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(process[kind], 16) == wanted, kind
    assert process["NoNewPrivs"] == "1" and process["Seccomp"] == "2"
    said = machine.run("systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=20",
                       f"/usr/lib/systemd/system/{SERVICE}", check=False)
    assert said.returncode == 0, said.stdout
    exposure = float(re.search(r"exposure level for reuseportd.service: ([\d.]+)", said.stdout).group(1))
    assert 0 < exposure <= 2.0


def test_drop_ins_add_their_capabilities_and_no_others(machine):
    wanted = 1 << CAP_BPF | 1 << CAP_NET_BIND_SERVICE
    momentary = 1 << CAP_PERFMON | 1 << CAP_CHOWN | 1 << CAP_NET_RAW
    for name, capabilities in (("net-admin", 1 << CAP_NET_ADMIN),
                               ("chown", 1 << CAP_CHOWN | 1 << CAP_NET_RAW),
                               ("perfmon", 1 << CAP_PERFMON)):
        machine.run("install", "-D", "-m644", f"{EXAMPLES}/{name}.conf",
                    f"{UNITS}/{SERVICE}.d/{name}.conf")
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "restart", SERVICE)
        wanted |= capabilities
        process = process_status(machine)
        assert int(process["CapPrm"], 16) == wanted, name
        # While a program is loaded, a socket changes hands or one is opened, and not else.
        assert int(process["CapEff"], 16) == wanted & ~momentary, name
        assert services(machine) == ["web"]


def start_example(machine, *instances, adopt=False):
    """
    The sample unit and nginx's sample configuration as they are installed. adopt: the same, but nginx
    gets no socket and binds for itself.
    """
    machine.run("cp", f"{EXAMPLES}/reuseport-example@.service", f"{UNITS}/")
    machine.run("cp", f"{EXAMPLES}/reuseport-example.conf", "/etc/nginx/")
    if adopt:
        unit = machine.run("cat", f"{UNITS}/reuseport-example@.service").stdout
        assert unit.count("--pass nginx") == 1
        machine.write(f"{UNITS}/reuseport-example@.service", unit.replace("--pass nginx", "--adopt"))
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", *(f"reuseport-example@{i}.service" for i in instances))
    workers = status(machine)["services"][0]["workers"]
    assert sorted(w["instance"] for w in workers) == [f"web@{i}" for i in instances]
    assert all(w["state"] == "active" for w in workers)


class Load:
    """wrk inside the machine, each request by a connection of its own, until finish()."""

    def __init__(self, machine, directory):
        self.machine = machine
        self.process = harness.Process(
            machine.command("wrk", "--threads=1", "--connections=20", "--duration=60s", "--timeout=20s",
                            "--header=Connection: close", "http://127.0.0.1:80/index.html"),
            directory / "wrk")
        harness.poll_until(lambda: machine.output("ss", "-Htn", "sport", "=", ":80"), "connections")

    def finish(self):
        """Requests answered, and what went wrong."""
        self.machine.run("pkill", "-INT", "-x", "wrk")
        assert self.process.wait() == 0
        said = self.process.output()
        print(said)
        answered = int(re.search(r"(\d+) requests in", said).group(1))
        errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", said)
        failed = sum(map(int, errors.groups())) if errors else 0
        other = re.search(r"Non-2xx or 3xx responses: (\d+)", said)
        return answered, failed + (int(other.group(1)) if other else 0)


@pytest.mark.parametrize("adopt", [False, True])
@pytest.mark.parametrize("instances", [(1, 2), (1,)])
def test_server_unit_restarts_under_load_without_a_failed_request(machine, tmp_path, instances, adopt):
    if adopt:
        machine.run("install", "-D", "-m644", f"{EXAMPLES}/chown.conf", f"{UNITS}/{SERVICE}.d/chown.conf")
        machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", SERVICE)
    start_example(machine, *instances, adopt=adopt)
    load = Load(machine, tmp_path)
    for _ in range(10):
        for instance in instances:
            # systemd counts these as starts, of which it allows 5 in 10 s.
            machine.run("systemctl", "reset-failed")
            machine.run("systemctl", "restart", f"reuseport-example@{instance}.service")
    answered, failed = load.finish()
    assert failed == 0
    assert answered > 500
    for instance in instances:
        assert machine.show(f"reuseport-example@{instance}.service", "Result") == "success"
    workers = status(machine)["services"][0]["workers"]
    assert sorted(w["instance"] for w in workers if w["state"] == "active") == \
        [f"web@{i}" for i in instances]


def test_daemon_restarts_under_load_and_its_workers_notice_nothing(machine, tmp_path):
    """
    systemctl restart, kill -9, an abort, a daemon that hangs until the watchdog ends it, and reexec:
    workers stay active and connected, no request fails, counters go on, and the store holds no more
    than at the start.
    """
    def workers():
        return sorted((w["instance"], w["slot"], w["pid"], w["state"], w["connected"])
                      for w in status(machine)["services"][0]["workers"])

    def stored():
        return int(machine.show(SERVICE, "NFileDescriptorStore"))

    machine.write(f"/run/systemd/system/{SERVICE}.d/watchdog.conf", "[Service]\nWatchdogSec=2s\n")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", SERVICE)
    start_example(machine, 1, 2)
    before, n_stored = workers(), stored()
    assert [(state, connected) for _, _, _, state, connected in before] == [("active", True)] * 2
    assert n_stored > 10
    load = Load(machine, tmp_path)
    for _ in range(5):
        packets = status(machine)["services"][0]["listeners"][0]["packets"]
        machine.run("systemctl", "restart", SERVICE)
        for number in ("-KILL", "-ABRT", "-STOP"):
            pid = main_pid(machine)
            machine.run("kill", number, pid)
            wait_active(machine, pid)
            assert workers() == before
        assert machine.show(SERVICE, "NRestarts") == "3"  # since the last one by hand
        pid = main_pid(machine)
        machine.run("reuseportctl", "reexec")
        assert main_pid(machine) == pid
        assert workers() == before
        assert status(machine)["services"][0]["listeners"][0]["packets"] > packets
    answered, failed = load.finish()
    assert failed == 0
    assert answered > 500
    harness.poll_until(lambda: stored() == n_stored, f"{n_stored} descriptors are stored")

    # They are still told: a new server of the same name replaces the old one.
    machine.run("systemctl", "restart", "reuseport-example@1.service")
    assert [instance for instance, _, _, state, _ in workers() if state == "active"] == ["web@1", "web@2"]
    # Stopped for good, nothing is kept.
    machine.run("systemctl", "stop", "reuseport-example@*", *SOCKETS, SERVICE)
    assert stored() == 0


@WITH_VARLINKCTL
def test_varlinkctl_introspects_and_calls(machine):
    machine.run("systemctl", "start", SERVICE)
    address = "/run/reuseportd/control.sock"
    definition = (harness.ROOT / "proto" / "io.reuseport.Control.varlink").read_text()
    said = machine.output("varlinkctl", "introspect", address, "io.reuseport.Control")
    methods = re.findall(r"^method (\w+)", definition, re.MULTILINE)
    assert len(methods) > 5
    assert re.findall(r"^method (\w+)", said, re.MULTILINE) == methods
    assert "io.reuseport.Control" in machine.output("varlinkctl", "info", address)
    reply = json.loads(machine.output("varlinkctl", "call", "--json=short", address,
                                      "io.reuseport.Control.Status", "{}"))
    assert [service["name"] for service in reply["services"]] == ["web"]
    refused = machine.run("varlinkctl", "call", address, "io.reuseport.Control.Status", '{"service":"no"}',
                          check=False)
    assert refused.returncode != 0 and "io.reuseport.Control.NoSuchService" in refused.stdout + refused.stderr


@WITH_VARLINKCTL
def test_varlinkctl_follows_what_changes(machine):
    machine.run("systemctl", "start", SERVICE)
    call = ["varlinkctl", "call", "--json=short", "--more", "/run/reuseportd/control.sock",
            "io.reuseport.Control.Monitor", "{}"]
    monitor = subprocess.Popen(machine.command(*call), stdout=subprocess.PIPE, text=True)

    def reply():
        return json.loads(monitor.stdout.readline().lstrip("\x1e"))  # RFC 7464

    try:
        first = reply()
        assert [service["name"] for service in first["services"]] == ["web"]
        start_example(machine, 1)
        events = [reply()["event"] for _ in range(2)]
        assert [(e["kind"], e["instance"]) for e in events] == [("registered", "web@1"), ("ready", "web@1")]
    finally:
        monitor.kill()
        monitor.wait()
        monitor.stdout.close()
    call.remove("--more")
    refused = machine.run(*call, check=False)
    assert refused.returncode != 0 and "ExpectedMore" in refused.stdout + refused.stderr


def test_kick_needs_its_drop_in(machine):
    start_example(machine, 1)
    kick = ["reuseportctl", "kick", "web@1"]
    refused = machine.run(*kick, check=False)
    assert refused.returncode != 0 and "net-admin.conf" in refused.stderr
    machine.run("install", "-D", "-m644", f"{EXAMPLES}/net-admin.conf", f"{UNITS}/{SERVICE}.d/net-admin.conf")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", SERVICE)
    assert "net-admin" in status(machine)["daemon"]["features"]
    assert machine.run(*kick).returncode == 0
    kicked, = machine.journal(f"MESSAGE_ID={EVENTS['WORKER_KICKED']}", f"_PID={main_pid(machine)}")
    assert (kicked["INSTANCE"], kicked["PRIORITY"]) == ("web@1", "5")


STRAY = """pid /run/stray/pid;
error_log /dev/null;
events {}
http {
	access_log off;
	client_body_temp_path /run/stray/body;
	proxy_temp_path /run/stray/proxy;
	fastcgi_temp_path /run/stray/fastcgi;
	uwsgi_temp_path /run/stray/uwsgi;
	scgi_temp_path /run/stray/scgi;
	server { listen 0.0.0.0:80 reuseport; }
}
"""


@pytest.mark.parametrize("group", ["reuseport", "nogroup"])
def test_stranger_is_told_with_its_unit(machine, group):
    """Of another group's process the daemon sees no descriptor, but the socket's cgroup."""
    machine.run("systemctl", "start", SERVICE)
    machine.write("/etc/stray.conf", STRAY)
    machine.run("systemd-run", "--unit=stray", "--uid=reuseport", f"--gid={group}",
                "--property=RuntimeDirectory=stray", "--property=AmbientCapabilities=CAP_NET_BIND_SERVICE",
                "nginx", "-c", "/etc/stray.conf", "-g", "daemon off;")
    try:
        def entries():
            return machine.journal(f"MESSAGE_ID={EVENTS['STRANGER']}", f"_PID={main_pid(machine)}")

        entry, = harness.poll_until(entries, "the daemon tells of it", 30)
        stray = machine.show("stray.service", "MainPID")
        shown, = status(machine)["services"][0]["listeners"][0]["strangers"]
        assert shown["unit"] == "stray.service"
        assert entry["MESSAGE"].endswith("unit stray.service")
        assert (entry["SERVICE"], entry["LISTENER"], entry["PRIORITY"]) == ("web", "http", "4")
        if group == "reuseport":
            assert (str(shown["pid"]), shown["command"], entry["OBJECT_PID"]) == (stray, "nginx", stray)
        else:
            assert (shown["pid"], shown["command"], entry.get("OBJECT_PID")) == (None, None, None)
    finally:
        machine.run("systemctl", "stop", "stray.service", check=False)
