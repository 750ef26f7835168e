# SPDX-License-Identifier: BSD-2-Clause
"""
A daemon with services that share a port is replaced: each keeps its connections, keys, place and
what waits for it, also one that has left the share while its workers still run.
"""
import os

import pytest

import harness
import quic_packets as quic
from share_plane import SharePlane, maker, new_connections, short

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
