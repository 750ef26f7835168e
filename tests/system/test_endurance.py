# SPDX-License-Identifier: BSD-2-Clause
"""
A day in small: registrations and exits, and reloads, by the thousand. Nothing grows: neither
memory, nor descriptors, nor BPF maps and their entries. By default a part of it; REUSEPORT_ENDURANCE=full
makes 100,000 registrations and 10,000 reloads of it, which takes some minutes.
"""
import json
import os
import pathlib
import random
import signal
import socket

import pytest

import harness
import worker_protocol as proto

FULL = os.environ.get("REUSEPORT_ENDURANCE") == "full"
REGISTRATIONS = 100000 if FULL else 3000
RELOADS = 10000 if FULL else 300
WARM_UP = 500  # until the allocator has what it needs
SECONDS = 3600 if FULL else 140
RESIDENT_KIB = 512  # growth that is allowed, whatever the count

HTTP, DNS, QUIC, IDS = 8080, 5353, 4433, 4434

SERVICE = f"""[Service]
AllowUser=nobody
DrainTimeoutSec=1s
[Listener http]
ListenStream=127.0.0.1:{HTTP}
[Listener dns]
ListenDatagram=127.0.0.1:{DNS}
[Listener quic]
ListenQUIC=127.0.0.1:{QUIC}
[Listener ids]
ListenQUIC=127.0.0.1:{IDS}
ConnectionID=registered
Flows=4K
"""


@pytest.fixture
def daemon(start_daemon, configuration):
    signal.alarm(SECONDS)
    configuration.write("reuseportd.conf", "[Daemon]\nMessagesPerSecondPerUser=1000000\n")
    configuration.service("web", SERVICE)
    return start_daemon("--config", configuration.directory)


def maps_of(daemon):
    """id: (name, descriptor), of each BPF map that the daemon holds."""
    maps = {}
    for info in pathlib.Path(f"/proc/{daemon.pid}/fdinfo").iterdir():
        try:
            fields = dict(l.split(":", 1) for l in info.read_text().splitlines() if ":" in l)
        except FileNotFoundError:
            continue
        if "map_id" in fields:
            number = int(fields["map_id"])
            shown = json.loads(harness.run("bpftool", "-j", "map", "show", "id", number).stdout)
            maps[number] = shown["name"]
    return maps


def count_entries(maps):
    """Entries of those maps that hold some for workers and connection IDs."""
    counts = {}
    for number, name in maps.items():
        if name in ("dcid_map", "cookie_map"):
            entries = json.loads(harness.run("bpftool", "-j", "map", "dump", "id", number).stdout)
            counts[name] = counts.get(name, 0) + len(entries)
        elif name == "socket_map":
            entries = json.loads(harness.run("bpftool", "-j", "map", "dump", "id", number).stdout)
            there = [e for e in entries if "error" not in str(e.get("value"))]
            counts.setdefault("sockets", []).append(len(there))
    counts.get("sockets", []).sort()
    return counts


class Resources:
    """What the daemon has when nobody else has anything of it."""

    def __init__(self, daemon):
        harness.poll_until(lambda: daemon.status("web")["workers"] == [], "no worker is left")
        self.descriptors = daemon.n_descriptors_alone()
        self.maps = maps_of(daemon)
        self.entries = count_entries(self.maps)
        self.resident = daemon.resident()

    def check(self, before):
        assert self.descriptors == before.descriptors
        assert self.maps == before.maps
        assert self.entries == before.entries
        print(f"resident: {before.resident} KiB before, {self.resident} KiB after")
        assert self.resident <= before.resident + RESIDENT_KIB


def one_life(daemon, rng, i):
    """A worker registers and leaves, in one of the ways in which workers do."""
    way = rng.randrange(6)
    worker = proto.Worker(daemon.worker_socket, instance=f"i{i % 50}", n_workers=1 + (i % 10 == 0),
                          ready=way > 0)
    if way > 3:
        worker.add_cids([rng.randbytes(8) for _ in range(20)], listener=3)
    if way in (1, 2):
        worker.drain()
    if way % 2:
        worker.unregister()
    worker.abandon()


def live(daemon, count, seed):
    """
    Many lives in a process of their own, which ends with the last: those that did not give their
    registration back end with it. A hundred are one process, as descriptors of a registration
    that is READY stay until its process ends.
    """
    for first in range(0, count, 100):
        def lives():
            rng = random.Random(seed + first)
            for i in range(first, min(first + 100, count)):
                one_life(daemon, rng, i)
            return True

        assert harness.in_child(lives)


def test_registrations_and_exits_leave_nothing_behind(daemon):
    live(daemon, WARM_UP, 1)
    before = Resources(daemon)
    live(daemon, REGISTRATIONS, 2)
    harness.poll_until(lambda: daemon.status("web")["workers"] == [], "all have ended", 120)
    after = Resources(daemon)
    print(f"{REGISTRATIONS} registrations")
    after.check(before)
    worker = daemon.worker()
    with harness.tcp_client(("127.0.0.1", HTTP), b"request 0\n") as client:
        harness.answer_all(worker.sockets[0]["http"], 1, b"worker")
        harness.check_answers([client], b"worker")
    worker.leave()


def test_reloads_leave_nothing_behind(daemon, configuration):
    """With services that come, go and change, reloads that fail, and a worker that lives on."""
    worker = daemon.worker()
    extra = ("[Service]\n[Listener a]\nListenStream=127.0.0.1:%d\n"
             "[Listener q]\nListenQUIC=127.0.0.1:%d\n")

    def reload(i):
        if i % 4 == 0:
            configuration.service("extra", extra % (9000 + i % 3, 9000 + i % 3))
        elif i % 4 == 1:
            configuration.service("web", SERVICE.replace("1s", f"{1 + i % 7}s"))
        elif i % 4 == 2:  # opens all but the last, and takes everything back
            configuration.service("zz", extra % (9100, 9100) +
                                  "[Listener z]\nListenStream=192.0.2.1:1\n")
        else:
            configuration.remove("services.d/extra.conf")
        # As a service manager does; the daemon waits for one that does not read.
        while harness.wait_readable([daemon.notify.socket], 0):
            daemon.notify.socket.recv(65536)
        if i % 4 != 2:
            daemon.call("Reload")
            return
        with pytest.raises(Exception, match="192.0.2.1"):
            daemon.call("Reload")
        configuration.remove("services.d/zz.conf")

    for n in range(RELOADS // 10 // 4 * 4 + 40):
        reload(n)
    before = (daemon.n_descriptors_alone(), sorted(maps_of(daemon).values()), daemon.resident())
    for n in range(RELOADS):
        reload(n)
    after = (daemon.n_descriptors_alone(), sorted(maps_of(daemon).values()), daemon.resident())
    print(f"{RELOADS} reloads; resident: {before[2]} KiB before, {after[2]} KiB after")
    assert after[:2] == before[:2]
    assert after[2] <= before[2] + RESIDENT_KIB
    with harness.tcp_client(("127.0.0.1", HTTP), b"request 0\n") as client:
        harness.answer_all(worker.sockets[0]["http"], 1, b"worker")
        harness.check_answers([client], b"worker")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as stranger, \
            pytest.raises(ConnectionRefusedError):
        stranger.connect(("127.0.0.1", 9000))
    worker.leave()
