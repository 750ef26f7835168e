# SPDX-License-Identifier: BSD-2-Clause
"""
A daemon with services that share a port is replaced: each keeps its connections, keys, place and
what waits for it, also one that has left the share while its workers still run. Killed, with
systemd's store or its own keeper: new connections are read and go to the service that they name,
while there is no daemon, while the next one starts, and afterwards.
"""
import itertools
import os
import pathlib
import signal
import threading
import time

import pytest

import harness
import quic_initials
import quic_packets as quic
from share_plane import SharePlane, maker, new_connections, short
from store import KeptDaemon, StoredDaemon

SHOP = "MatchServerName=shop.example"
API = "MatchServerName=api.example\nMatchDefault=yes"


@pytest.fixture
def share(start_daemon, configuration):
    p = SharePlane(start_daemon, configuration, {
        "shop": SHOP, "api": API, "old": "MatchServerName=old.example"},
        modes={"old": "nginx", "api": "registered"})
    yield p
    p.close()


def without_uptime(status):
    return [{key: value for key, value in service.items() if key != "uptime"}
            for service in status["services"]]


def test_reexec_keeps_every_service(share):
    p = share
    shop, api, old = p.worker("shop"), p.worker("api"), p.worker("old")
    registered = [os.urandom(12) for _ in range(10)]
    api.add_cids(registered)
    cookie = old.socket.getsockopt(1, 57, 8)[::-1]
    packets = [short(maker(shop).make()) for _ in range(10)] + \
        [short(cid) for cid in registered] + [short(cookie + os.urandom(12)) for _ in range(10)]
    expected = [shop] * 10 + [api] * 10 + [old] * 10
    assert p.exchange(packets)[0] == expected
    for _ in range(2):
        before = p.daemon.status()
        p.daemon.ctl("reexec")
        after = p.daemon.status()
        assert without_uptime(after) == without_uptime(before)
        assert after["shares"] == before["shares"]
        assert p.exchange(packets + new_connections(5))[0] == expected + [api] * 5
    # It goes on as a daemon does: workers come, keys change, services leave.
    fresh = p.worker("shop")
    assert p.exchange([short(maker(fresh).make())])[0] == [fresh]
    assert p.daemon.call("RotateKeys", service="shop")["rotated"] == 1
    with pytest.raises(Exception, match="length"):
        api.add_cids([os.urandom(13)])
    api.add_cids([os.urandom(12)])


def test_what_waits_for_a_service_waits_on(share):
    p = share
    p.worker("shop")
    packets = new_connections(5)
    for octets in packets:
        p.client.send(octets)
    harness.poll_until(lambda: p.counters("api")["standby"] == 5, "they wait")
    p.daemon.ctl("reexec")
    api = p.worker("api")
    received = []
    harness.poll_until(lambda: received.extend(p.receive_now()) or len(received) == 5, "they come")
    assert received == [(api, octets) for octets in packets]


def test_a_service_that_has_left_keeps_its_connections(share):
    p = share
    shop, api = p.worker("shop"), p.worker("api")
    packets = [short(maker(shop).make()) for _ in range(10)]
    p.configuration.remove("services.d/shop.conf")
    p.daemon.reload()
    assert p.exchange(packets)[0] == [shop] * 10
    p.daemon.ctl("reexec")
    assert p.exchange(packets + new_connections(3))[0] == [shop] * 10 + [api] * 3
    # Its rotation is free, and its IDs are nobody's, once its worker is gone: until that is seen,
    # they are refused.
    p.leave(shop)

    def forgotten():
        try:
            p.client.send(packets[0])
        except ConnectionRefusedError:
            pass
        return p.receive_now() == [(api, packets[0])]
    harness.poll_until(forgotten, "the share has forgotten it", interval=0.1)


def test_a_daemon_that_was_killed_is_gone_on_from(share, start_daemon):
    p = share
    shop, api = p.worker("shop"), p.worker("api")
    packets = [short(maker(shop).make()) for _ in range(10)] + [quic.initial(os.urandom(8))]
    assert p.exchange(packets)[0] == [shop] * 10 + [api]
    p.daemon.process.process.kill()
    p.daemon.process.wait()
    p.daemon.killed = True
    for octets in packets:
        p.client.send(octets)
    received = []
    harness.poll_until(
        lambda: received.extend(p.receive_now()) or len(received) == 11, "traffic goes on")
    assert sorted(received, key=lambda each: packets.index(each[1])) == \
        [(worker, octets) for worker, octets in zip([shop] * 10 + [api], packets)]


NAMED = {"shop": "MatchServerName=shop.example *.shop.example", "api": "MatchServerName=api.example",
         "rest": "MatchDefault=yes"}
NAMES = {"shop.example": "shop", "www.shop.example": "shop", "api.example": "api", "other.example": "rest"}
CLASSIFIER = harness.BUILD / "classify" / "reuseport-classify"


class Clients(threading.Thread):
    """
    New connections of two datagrams, one after the other, each by a name; and packets of established
    ones of every service. Each must come to the worker whose it is. A client sends again what has
    not arrived within 0.9 s, as when the network had lost it; nothing ever comes to anybody else.
    """

    def __init__(self, workers):
        super().__init__(daemon=True)
        self.service_of = {each.socket: name for name, each in workers.items()}
        self.established = {name: maker(each) for name, each in workers.items()}
        self.client = harness.udp_client(workers["shop"].address)
        self.names = itertools.cycle(NAMES)
        self.ending = threading.Event()
        self.failures = []
        self.n_connections = self.n_packets = self.n_repeated = 0

    def arrived(self, expected, seconds):
        """Waits for these octets, each at its service; those that did not come."""
        missing = dict(expected)
        end = time.monotonic() + seconds
        while missing and time.monotonic() < end:
            for each in harness.wait_readable(list(self.service_of), 0.05):
                octets = each.recv(2048)
                assert expected.get(octets, self.service_of[each]) == self.service_of[each], \
                    f"came to {self.service_of[each]}"
                missing.pop(octets, None)
        return missing

    def connect(self):
        name = next(self.names)
        flight = quic_initials.first_flight(name, datagrams=2)
        expected = {datagram: NAMES[name] for datagram in flight}
        for _ in range(20):
            for datagram in flight:
                self.client.send(datagram)
            if not self.arrived(expected, 0.9):
                break
            self.n_repeated += 1
        else:
            raise AssertionError(f"a connection to {name} does not arrive")
        self.n_connections += 1

    def talk(self):
        packets = {short(make.make()): name for name, make in self.established.items()}
        for octets in packets:
            self.client.send(octets)
        missing = self.arrived(packets, harness.DEADLINE)
        assert not missing, f"established packets of {list(missing.values())} are lost"
        self.n_packets += len(packets)

    def run(self):
        try:
            # Handshakes are remembered for 15 s, 8 in a set of the flow map: of some 15,000 a few find
            # no place, and their second datagram counts as a new connection.
            while not self.ending.wait(0.002):
                self.connect()
                self.talk()
        except BaseException as error:
            self.failures.append(error)

    def go_on(self, more=2 * len(NAMES)):
        """So many more connections, from now on."""
        wanted = self.n_connections + more
        harness.poll_until(lambda: self.n_connections >= wanted or self.failures, "connections are made")
        assert self.failures == []

    def end(self):
        self.ending.set()
        self.join(2 * harness.DEADLINE)
        self.client.close()
        assert not self.is_alive() and self.failures == []


def ended(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.fixture
def stored_share(netns, configuration, request):
    daemons = []

    def start(*arguments):
        daemons.append(request.param(arguments))
        return daemons[-1]

    plane = SharePlane(start, configuration, NAMED, classifier=CLASSIFIER)
    yield plane
    plane.close()
    for daemon in daemons:
        try:
            if daemon.alive():
                assert daemon.stop() == 0
        finally:
            daemon.cleanup()


@pytest.mark.parametrize("stored_share", [StoredDaemon, KeptDaemon], indirect=True, ids=["systemd", "keeper"])
@pytest.mark.parametrize("manner", ["SIGKILL", "SIGTERM", "reexec"])
def test_new_connections_are_read_without_a_daemon_and_while_it_starts(stored_share, manner):
    """And the classifier before ends once the next one has its place; there is one each time."""
    p = stored_share
    workers = {name: p.worker(name, f"{name}@1") for name in NAMED}
    for each in workers.values():
        each.address = p.client.getpeername()
    pids = [p.share()["classifier"]["pid"]]
    before = p.daemon.status()
    clients = Clients(workers)
    clients.start()
    for _ in range(4):
        clients.go_on()
        if manner == "reexec":
            p.daemon.ctl("reexec")
        else:
            p.daemon.die(getattr(signal, manner))
            clients.go_on()
            assert not ended(pids[-1])
            p.daemon.start()
        clients.go_on()
        pids.append(p.share()["classifier"]["pid"])
        harness.poll_until(lambda: ended(pids[-2]), "the one before has ended")
    clients.end()
    assert len(set(pids)) == 5 and not ended(pids[-1])
    print(f"{clients.n_connections} connections, {clients.n_repeated} of which sent again")
    after = p.daemon.status()
    assert [(w["slot"], w["state"], w["connected"]) for s in after["services"] for w in s["workers"]] == \
        [(w["slot"], "active", True) for s in before["services"] for w in s["workers"]]
    # All that was counted since the share began: each connection has been chosen once, for what is its.
    read = p.share()["classifier"]
    assert (read["too_slow"], read["too_many"], read["malformed"], read["looped"], read["lost"]) == (0, 0, 0, 0, 0)
    assert read["by_name"] + read["by_suffix"] + read["no_match"] == clients.n_connections
    figures = {name: p.counters(name) for name in NAMED}
    assert sum(each["new_connections"] for each in figures.values()) == clients.n_connections
    for name, each in figures.items():
        assert (each["dropped"], each["standby"], each["stray"], each["fallback"]) == (0, 0, 0, 0), name
        assert each["by_connection_id"] == clients.n_packets // len(NAMED)
