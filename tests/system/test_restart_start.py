# SPDX-License-Identifier: BSD-2-Clause
"""
The daemon dies while it starts, in the middle of a key rotation, and while it takes a socket that a
server made (die_at.c): as test_restart_points.py for the rest.
"""
import os
import socket

import pytest

import harness
import quic_packets as quic
import worker_protocol as proto
from crash_points import GONE, TCP, WEB, Scene, every_point, start_and_die, third

# A first start has some two thousand stops, one with workers twenty thousand, most of which are looks
# at slots. REUSEPORT_EVERY_POINT=1 takes each of them, in parts.
EVERY = bool(os.environ.get("REUSEPORT_EVERY_POINT"))


def points(name, step, parts):
    """Three tests with that step between their points; or that many parts of all points."""
    if EVERY:
        step = parts
    firsts = range(1, parts + 1) if EVERY else [1 + i * step // 3 for i in range(3)]
    return pytest.mark.parametrize("first, step", [(first, step) for first in firsts],
                                   ids=[f"{name} {i + 1}/{len(firsts)}" for i in range(len(firsts))])


@points("first start", 60, 10)
def test_first_start(stored, configuration, die_at, first, step):
    """Nothing is there before; what a start has left that died is no hindrance for the next one."""
    configuration.service("web", WEB)
    daemon = stored()
    n, died = first, True
    while died:
        daemon.die()
        daemon.notification.forget()
        died = start_and_die(die_at, daemon, n)
        if died:
            daemon.start()
        worker = daemon.worker()
        with harness.tcp_client(TCP, b"request 0\n") as client:
            harness.answer_all(worker.sockets[0]["http"], 1, b"w")
            harness.check_answers([client], b"w")
        assert daemon.status("web")["listeners"][0]["dropped"] == 0
        worker.leave()
        n += step
    assert n > 300


@points("next start", 701, 200)
def test_next_start(stored, configuration, die_at, first, step):
    """With workers, a UDP standby and keys; twice in a row at the same point."""
    configuration.service("web", WEB)
    configuration.service("quic", "[Service]\nAllowUser=root\n[Listener quic]\n"
                          "ListenQUIC=127.0.0.1:4433\nConnectionID=quic-lb\n")
    scene = Scene(stored())
    daemon = scene.daemon
    listener = daemon.worker(service="quic").listeners[0]
    n, died = first, True
    while died:
        daemon.die()
        died = start_and_die(die_at, daemon, n)
        if died and start_and_die(die_at, daemon, n):
            daemon.start()
        scene.check()
        found = daemon.status("quic")
        assert [(w["state"], w["connected"]) for w in found["workers"]] == [("active", True)]
        assert found["listeners"][0]["keys"]["rotations"] == [listener.config_rotation]
        n += step
    assert n > 3000


@third("rotation")
def test_key_rotation(stored, configuration, die_at, first):
    """
    Whatever the moment: every worker has a key that is decoded, those of one rotation have one key,
    the old IDs go where they went, and no prefix of nonces comes twice with a key.
    """
    configuration.service("web", "[Service]\nAllowUser=root\n[Listener quic]\n"
                          "ListenQUIC=127.0.0.1:4433\nConnectionID=quic-lb\n")
    daemon = stored()
    client = harness.udp_client(("127.0.0.1", 4433))
    workers, listeners, makers, prefixes, told = [], {}, {}, set(), []

    def newcomer():
        worker = daemon.worker(instance=f"w{len(prefixes)}")
        workers.append(worker)
        note(worker, worker.listeners[0])

    def note(worker, listener):
        assert (listener.key, listener.nonce_prefix) not in prefixes
        prefixes.add((listener.key, listener.nonce_prefix))
        listeners[worker] = listener
        makers[worker] = quic.CidMaker(listener)

    def act():
        try:
            daemon.call("RotateKeys", service="web")
            told.append(True)
        except GONE:
            pass

    def after(died):
        rotation = daemon.status("web")["listeners"][0]["keys"]["rotation"]
        for worker in workers:
            old = makers[worker].make()
            while listeners[worker].config_rotation != rotation:
                note(worker, worker.wait_keys_rotated())
            check(worker, [old, makers[worker].make()])
        assert len({listeners[worker].key for worker in workers}) == 1
        if told:
            told.clear()
        # One that had the old key goes, so that rotations are free again.
        workers.pop(0).leave()
        newcomer()

    def check(worker, cids):
        for cid in cids:
            client.send(quic.short_packet(cid, size=60))
            assert harness.wait_readable([worker.socket], harness.DEADLINE), "to its worker"
            worker.socket.recv(2048)

    newcomer()
    newcomer()
    assert every_point(die_at, daemon, act, after, first, 3 if EVERY else 9) > 20
    client.close()


@third("adoption")
@pytest.mark.parametrize("transport", ["http", "dns"])
def test_adoption(stored, configuration, die_at, first, transport):
    """
    A socket that was answered for is a worker's, and served; one that was not is refused by the end
    of the connection, and nothing comes to it.
    """
    configuration.service("web", WEB)
    scene = Scene(stored("--adopt"))
    made = []

    def act():
        kind = socket.SOCK_STREAM if transport == "http" else socket.SOCK_DGRAM
        made.append(socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK))
        try:
            adopter = proto.Adopter(scene.daemon.worker_socket, instance="adopts")
            made.append(adopter)
            adopter.adopt(proto.ADOPT_BIND, made[0].fileno(), adopter.index(transport))
            adopter.adopt(proto.ADOPT_LISTEN, made[0].fileno(), adopter.index(transport), 10)
            made.append("answered")
        except GONE:
            pass

    def after(died):
        found = [w for w in scene.workers().values() if w["instance"] == "adopts"]
        if "answered" in made:
            assert [w["state"] for w in found] == ["active"], f"stop {died}"
        else:
            harness.poll_until(lambda: not [
                w for w in scene.workers().values() if w["instance"] == "adopts" and w["connected"]],
                "its connection has ended")
        made[0].close()
        if len(made) > 1:
            made[1].close()
        made.clear()
        harness.poll_until(lambda: sorted(scene.workers()) == sorted(w.slot for w in scene.stay),
                           "its slot is free")
        scene.check()

    assert every_point(die_at, scene.daemon, act, after, first, 3 if EVERY else 9) > 50
