# SPDX-License-Identifier: BSD-2-Clause
"""reuseportctl explain: what it says of a packet is what then happens to that packet."""
import json
import os
import random

import pytest

import quic_packets as quic
import quic_plane
from control_client import ControlError

# The counter of Status that rises with a packet of which Explain says this step.
COUNTER = {"invalid": "invalid", "connection-id": "by_connection_id", "flow": "by_flow",
           "listener": "new_connections", "stray": "stray", "fallback": "fallback",
           "standby": "standby", "dropped": "dropped"}


def explain(p, octets, client=None):
    host, port = (client or p.client).getsockname()[:2]
    return p.daemon.call("Explain", packet=octets.hex(), **{"from": f"{host}:{port}"})


def check(p, octets, client=None):
    """Asks, sends, compares: worker, counter, and how the packet is named. Returns the step."""
    answer = explain(p, octets, client)
    where, rise = p.exchange([(client or p.client, octets)])
    worker = where[0]
    assert answer["service"] == "web" and answer["listener"] == "quic"
    assert answer["slot"] == (worker and worker.slot), (answer, octets.hex())
    assert answer["instance"] == (worker and worker.instance)
    assert answer["pid"] == (worker and os.getpid())
    state = p.daemon.status_worker(worker.slot)["state"] if worker else None
    assert answer["state"] == state
    assert rise[COUNTER[answer["step"]]] == 1, (answer, rise)
    assert len(answer["reason"]) >= 20
    return answer["step"]


def varied_packets(ids, count):
    """Of every kind, with known, mutated and unknown IDs, whole and cut off; some come again."""
    known = [cid for each in ids.values() for cid in each]
    packets = []
    while len(packets) < count:
        dcid = random.choice([
            random.choice(known), random.choice(known), os.urandom(random.randint(0, 20)),
            quic.foreign_cid(17), bytes([random.choice(known)[0]]) + os.urandom(16)])
        octets = random.choice(list(quic_plane.packets_of_every_kind(dcid).values()))
        what = random.randrange(8)
        if what == 0:
            octets = octets[:random.randrange(40)]
        elif what == 1 and packets:
            octets = random.choice(packets)
        elif what == 2:
            octets = os.urandom(random.randrange(60))
        packets.append(octets)
    return packets


@pytest.mark.parametrize("mode", ["quic-lb", "quic-lb-plain", "registered", "nginx", "opaque"])
def test_what_is_explained_is_what_happens(plane, mode):
    """200 packets of all sorts, while one worker is active, others drain, and others come."""
    p = plane(mode, host=3)
    for i in range(4):
        p.worker(f"w{i}")
    ids = {worker: [os.urandom(10) for _ in range(5)] if mode == "opaque" else p.ids(worker, 10)
           for worker in p.workers}
    clients = p.new_clients(5)
    steps = set()
    for i, octets in enumerate(varied_packets(ids, 200)):
        if i == 60:
            p.workers[0].drain()
            p.daemon.wait_state(p.workers[0].slot, "draining")
        elif i == 120:
            p.worker("late")
            p.leave(p.workers[1])
        steps.add(check(p, octets, random.choice(clients)))
    assert {"flow", "listener", "stray", "invalid"} <= steps
    assert ("connection-id" in steps) == (mode != "opaque")


def test_nobody_active_is_explained(plane):
    p = plane()
    assert check(p, quic.initial(b"unknown1")) == "standby"
    worker = p.worker("first")
    worker.socket.recv(2048)  # what waited in the standby
    assert check(p, quic.initial(b"unknown2")) == "listener"
    worker.drain()
    p.daemon.wait_state(worker.slot, "draining")
    assert check(p, quic.initial(b"unknown2")) == "flow"
    assert check(p, quic.short_packet(p.maker.make())) == "connection-id"
    answer = explain(p, quic.short_packet(p.maker.make(slot=77)))
    assert answer["step"] == "standby" and "slot 77, where no worker is" in answer["reason"]
    answer = explain(p, quic.short_packet(p.maker.make(host=9)))
    assert "host 9, and this is 0" in answer["reason"]


def test_without_a_standby_nobody_gets_it(plane):
    p = plane(options="Standby=refuse\n")
    answer = explain(p, quic.initial(b"unknown1"))
    assert (answer["step"], answer["slot"]) == ("dropped", None)


def test_opaque_needs_to_know_the_client(plane):
    p = plane("opaque")
    with pytest.raises(ControlError) as error:
        p.daemon.call("Explain", packet=quic.initial(b"12345678").hex())
    assert "where the packet comes from" in error.value.parameters["message"]


def test_the_command_says_it_in_words_and_in_json(plane):
    p = plane()
    worker = p.worker("web@1")
    cid = p.maker.make()
    said = p.daemon.ctl("explain", "--cid", cid.hex()).stdout
    assert said == (
        f"web/quic: a packet with a short header, connection ID {cid.hex()}\n"
        f"goes to slot {worker.slot}: web@1 (pid {os.getpid()}, active)\n"
        f"by connection-id: its connection ID names slot {worker.slot}\n")
    octets = quic.initial(b"unknown1", size=100)
    for arguments in ((), ("--listener", "web/quic"), ("--from", "192.0.2.1:1234"),
                      ("--from", "[2001:db8::1]:1234")):
        answer = json.loads(p.daemon.ctl(
            "--json=short", "explain", "--packet", octets.hex(), *arguments).stdout)
        assert answer["kind"] == "initial" and answer["version"] == "0x00000001"
        assert answer["dcid"] == b"unknown1".hex()
        assert (answer["step"], answer["slot"]) == ("listener", worker.slot)
    # The same words without a daemon are another matter, and still are.
    offline = p.daemon.ctl("explain", "--offline", "--packet", octets.hex()).stdout
    assert json.loads(offline) == {"kind": "initial", "version": "0x00000001",
                                   "dcid": b"unknown1".hex(), "scid": b"client".hex()}


@pytest.mark.parametrize("arguments,status", [
    ((), 2), (("--packet", "40", "--cid", "40"), 2), (("--packet", "40", "more"), 2),
    (("--packet", "40", "--listener", "web"), 2), (("--packet", "40", "--listener", "web/"), 2),
    (("--packet", "4"), 1), (("--packet", "zz"), 1), (("--cid", "00" * 21), 1),
    (("--packet", "40", "--from", "192.0.2.1"), 1), (("--packet", "40", "--from", "1.2.3.4:0"), 1),
    (("--packet", "40", "--from", "2001:db8::1:80"), 1),
    (("--packet", "40", "--listener", "web/other"), 1),
    (("--packet", "40", "--listener", "other/quic"), 1)])
def test_what_cannot_be_explained_is_refused(plane, arguments, status):
    p = plane()
    result = p.daemon.ctl("explain", *arguments, check=False)
    assert (result.returncode, result.stdout) == (status, "")
    assert result.stderr.startswith("reuseportctl: ")


def test_the_listener_must_be_clear(start_daemon, configuration):
    daemon = start_daemon("--listen", "web=tcp://127.0.0.1:8080")
    result = daemon.ctl("explain", "--packet", "40", check=False)
    assert result.returncode == 1 and "there is no QUIC listener" in result.stderr
    configuration.service("web", """[Service]
AllowUser=root
[Listener one]
ListenQUIC=127.0.0.1:4433
[Listener two]
ListenQUIC=127.0.0.1:4434
""")
    daemon = start_daemon("--config", configuration.directory)
    result = daemon.ctl("explain", "--packet", "40", check=False)
    assert result.returncode == 1 and "web/one and web/two are both possible" in result.stderr
    answer = json.loads(daemon.ctl("--json=short", "explain", "--packet", "40", "--listener",
                                   "web/two").stdout)
    assert (answer["listener"], answer["step"]) == ("two", "invalid")
