# SPDX-License-Identifier: BSD-2-Clause
"""
Several services on one QUIC port, without a classifier: connection IDs keep them apart, and what
nobody knows is the default service's.
"""
import json
import os
import socket

import pytest

import harness
import quic_initials
import quic_packets as quic
from share_plane import SharePlane, maker, new_connections, section, short
from worker_protocol import Refused

SHOP = "MatchServerName=shop.example *.shop.example"
API = "MatchServerName=api.example\nMatchDefault=yes"
NOBODY = 65534


@pytest.fixture
def share(start_daemon, configuration):
    """share(services): a daemon with these services on one port."""
    made = []

    def make(services=None, **options):
        made.append(SharePlane(
            start_daemon, configuration, services or {"shop": SHOP, "api": API}, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_services_of_two_users_are_kept_apart(share):
    p = share(users={"shop": "nobody"})
    with pytest.raises(Refused):
        p.worker("api", uid=NOBODY)
    shop, api = p.worker("shop", uid=NOBODY), p.worker("api")
    ids = {worker: [maker(worker).make() for _ in range(50)] for worker in (shop, api)}
    # Neither the key nor the rotation of the other's IDs is anybody else's.
    assert shop.listeners[0].key != api.listeners[0].key
    assert shop.listeners[0].config_rotation != api.listeners[0].config_rotation
    packets = [short(cid) for pair in zip(ids[shop], ids[api]) for cid in pair]
    where, rise = p.exchange(packets)
    assert where == [shop, api] * 50
    assert rise["shop"] == {"packets": 50, "by_connection_id": 50}
    assert rise["api"] == {"packets": 50, "by_connection_id": 50}
    # An Initial with such an ID goes there as well, and one with a client's own to the default.
    where, rise = p.exchange([quic.initial(ids[shop][0])] + new_connections(20))
    assert where == [shop] + [api] * 20
    assert rise["shop"] == {"packets": 1, "by_connection_id": 1}
    assert rise["api"]["new_connections"] == 20


def test_an_id_of_one_service_never_names_a_worker_of_another(share):
    p = share()
    shop, api = p.worker("shop"), p.worker("api")
    # Made with the shop's key, which its workers have, for a slot of api's: they are of no worker.
    forged = [maker(shop).make(slot=api.slot) for _ in range(20)]
    where, rise = p.exchange([short(cid) for cid in forged])
    assert where == [shop] * 20
    assert rise["shop"] == {"packets": 20, "stray": 20}
    assert rise["api"] == {}
    # The other way round, and again, which a cache would answer.
    forged = [maker(api).make(slot=shop.slot) for _ in range(20)]
    for _ in range(2):
        where, rise = p.exchange([short(cid) for cid in forged])
        assert where == [api] * 20
        assert rise["shop"] == {}
        assert rise["api"] == {"packets": 20, "stray": 20}


def test_drain_and_restart_of_one_service_are_not_seen_by_the_other(share):
    p = share()
    shop = [p.worker("shop", f"shop@{i}") for i in range(2)]
    api = p.worker("api", "api@0")
    shop_ids = [maker(worker).make() for worker in shop]
    generation = p.counters("shop")["generation"]
    before = p.counters("shop")
    for i in range(3):
        fresh = p.worker("api", "api@0")
        api_id = maker(api).make()
        reason, _ = api.wait_drain_requested()
        assert reason
        # What the old one has stays with it, what is new goes to the new one.
        where, rise = p.exchange([short(api_id)] + new_connections(10))
        assert where == [api] + [fresh] * 10
        assert rise["shop"] == {}
        p.leave(api)
        api = fresh
        where, _ = p.exchange([short(cid) for cid in shop_ids])
        assert where == shop
    assert p.counters("shop")["generation"] == generation
    p.daemon.call("Drain", service="shop")
    where, rise = p.exchange([short(cid) for cid in shop_ids] + new_connections(10))
    assert where == shop + [api] * 10
    after = p.counters("shop")
    assert after["packets"] - before["packets"] == 2 * 4


def test_a_slot_that_changes_service_takes_nothing_along(share):
    p = share()
    shop, api = p.worker("shop"), p.worker("api")
    ids = [maker(shop).make() for _ in range(30)]
    keeper = p.worker("shop")
    assert p.exchange([short(cid) for cid in ids])[0] == [shop] * 30  # and all are in the cache
    slot = shop.slot
    p.leave(shop)
    # Slots rest as long as possible: go once around.
    taken = None
    for _ in range(6):
        crowd = p.daemon.worker(service="api", n_workers=1000)
        if slot in crowd.slots:
            taken = crowd
            break
        crowd.leave()
    assert taken, "the slot is api's now"
    p.workers.append(taken)
    where, rise = p.exchange([short(cid) for cid in ids])
    assert where == [keeper] * 30
    assert rise["shop"] == {"packets": 30, "stray": 30}
    assert rise["api"] == {}
    assert api.slot != slot


def test_packets_wait_for_their_own_service(share):
    p = share()
    shop = p.worker("shop")
    packets = new_connections(5)
    p.client.send(packets[0])
    for octets in packets[1:]:
        p.client.send(octets)
    # Nobody of api's is active: they wait for it, not for the shop's worker.
    assert p.receive_now() == []
    rest = [short(maker(shop).make()) for _ in range(3)]
    assert p.exchange(rest)[0] == [shop] * 3
    api = p.worker("api")
    received = []
    while len(received) < 5:
        received += p.receive_now()
    assert [(worker, octets) for worker, octets in received] == [(api, each) for each in packets]


def test_modes_of_all_kinds_on_one_port(share):
    p = share({"shop": SHOP, "api": API, "old": "MatchServerName=old.example"},
              modes={"old": "nginx", "api": "registered"})
    shop, api, old = p.worker("shop"), p.worker("api"), p.worker("old")
    registered = [os.urandom(12) for _ in range(10)]
    api.add_cids(registered)
    with pytest.raises(Refused):
        api.add_cids([os.urandom(13)])  # one length for each service
    cookie = old.socket.getsockopt(socket.SOL_SOCKET, 57, 8)[::-1]
    packets = [short(maker(shop).make()) for _ in range(10)]
    packets += [short(cid) for cid in registered]
    packets += [short(cookie + os.urandom(12)) for _ in range(10)]
    packets += [quic.initial(cookie + os.urandom(12)), quic.initial(registered[0])]
    where, rise = p.exchange(packets)
    assert where == [shop] * 10 + [api] * 10 + [old] * 10 + [old, api]
    assert {name: each["by_connection_id"] for name, each in rise.items()} == \
        {"shop": 10, "api": 11, "old": 11}
    assert shop.listeners[0].config_rotation != 0  # cookies begin with a zero octet


def test_services_come_and_go(share):
    p = share()
    shop, api = p.worker("shop"), p.worker("api")
    ids = [maker(shop).make() for _ in range(10)]
    # The shop leaves: what is new is refused to it, what it has goes on.
    p.configuration.remove("services.d/shop.conf")
    p.daemon.reload()
    where, rise = p.exchange([short(cid) for cid in ids] + new_connections(5))
    assert where == [shop] * 10 + [api] * 5
    assert rise["api"]["new_connections"] == 5
    # Another takes a place, while the shop's is still taken.
    p.configure("blog", "MatchServerName=blog.example")
    p.daemon.reload()
    blog = p.worker("blog")
    blog_ids = [maker(blog).make() for _ in range(10)]
    where, _ = p.exchange([short(cid) for cid in ids + blog_ids])
    assert where == [shop] * 10 + [blog] * 10
    assert len({w.listeners[0].config_rotation for w in (shop, api, blog)}) == 3
    # The default is another one's now.
    p.configure("api", "MatchServerName=api.example")
    p.configure("blog", "MatchServerName=blog.example\nMatchDefault=yes")
    p.daemon.reload()
    assert p.exchange(new_connections(5))[0] == [blog] * 5


def test_a_reload_that_fails_changes_nothing(share):
    p = share()
    shop, api = p.worker("shop"), p.worker("api")
    p.configure("sweets", "MatchServerName=shop.example")
    error = p.daemon.ctl("reload", check=False)
    assert error.returncode != 0
    assert "'shop.example' is that of the listener 'h3' of the service 'shop'" in error.stderr
    where, _ = p.exchange([short(maker(shop).make())] + new_connections(3))
    assert where == [shop] + [api] * 3


def test_rotations_are_shared_out(share):
    names = [f"s{i}" for i in range(5)]
    services = {name: f"MatchServerName={name}.example" for name in names}
    p = share({**services, "api": API})
    workers = [p.worker(name) for name in [*names, "api"]]
    assert len({w.listeners[0].config_rotation for w in workers}) == 6
    # One can change its key, and then nobody until the old key is forgotten.
    assert p.daemon.call("RotateKeys", service="s0")["rotated"] == 1
    event = workers[0].wait_keys_rotated()
    used = {w.listeners[0].config_rotation for w in workers}
    assert event.config_rotation not in used
    error = p.daemon.ctl("rotate-keys", "s1", check=False)
    assert error.returncode != 0 and "all 7 rotations of the share edge are in use" in error.stderr
    old, new = maker(workers[0]).make(), quic.CidMaker(event)
    new.server_id = workers[0].listeners[0].server_id[:6]
    assert p.exchange([short(old), short(new.make())])[0] == [workers[0]] * 2


def test_the_seventh_service_is_a_mistake(configuration, start_daemon, share):
    p = share({**{f"s{i}": f"MatchServerName={i}.example" for i in range(5)}, "api": API})
    p.configuration.service("t", section("MatchServerName=t.example"))
    error = p.daemon.ctl("reload", check=False)
    assert "the share edge has 6 listeners already" in error.stderr


def test_status_has_the_share_and_what_is_no_services(share):
    p = share()
    p.worker("api")
    status = p.share()
    assert (status["name"], status["services"], status["default"]) == \
        ("edge", ["api", "shop"], "api")
    assert p.counters("shop")["share"] == "edge"
    p.exchange(new_connections(7))
    p.client.send(b"\x40")
    p.client.send(b"")
    harness.poll_until(lambda: p.share()["invalid"] == 2, "both are counted")
    # No classifier is there: each is the default service's as well.
    status = p.share()
    assert (status["to_classifier"], status["unread"]) == (0, 7)
    assert status["classifier"]["pid"] is None
    assert set(status["classifier"].values()) <= {None, 0, True}
    assert p.counters("api")["packets"] == 7


def explained(p, *arguments):
    return json.loads(p.daemon.ctl("--json=short", "explain", *arguments).stdout)


def test_explain_says_whose_a_packet_is(share):
    p = share({"shop": SHOP, "api": API, "old": "MatchServerName=old.example\nMatchALPN=hq"})
    shop, api = p.worker("shop"), p.worker("api")
    cid = maker(shop).make()
    answer = explained(p, "--cid", cid.hex())
    assert (answer["service"], answer["step"], answer["slot"]) == \
        ("shop", "connection-id", shop.slot)
    forged = maker(shop).make(slot=api.slot)
    answer = explained(p, "--cid", forged.hex(), "--listener", "api/h3")
    assert (answer["service"], answer["step"], answer["slot"]) == ("shop", "stray", shop.slot)
    assert f"slot {api.slot}, which is another service's than the key" in answer["reason"]
    # A stranger's, and a beginning that nobody can read: the default.
    answer = explained(p, "--packet", quic.initial(os.urandom(8)).hex())
    assert (answer["service"], answer["step"], answer["slot"]) == ("api", "listener", api.slot)
    assert "there is no classifier now" in answer["reason"]


@pytest.mark.parametrize("name, protocols, service, reason", [
    ("shop.example", ["h3"], "shop", "asks for shop.example, and shop has shop.example"),
    ("EU.Shop.example", ["h3"], "shop", "asks for eu.shop.example, and shop has *.shop.example"),
    ("old.example", ["h3", "hq"], "old", "asks for old.example, and old has old.example with hq"),
    ("old.example", ["h3"], "api", "no rule is for old.example and the client's protocols"),
    (None, ["h3"], "api", "the client names no server"),
])
def test_explain_reads_what_a_client_asks_for(share, name, protocols, service, reason):
    p = share({"shop": SHOP, "api": API, "old": "MatchServerName=old.example\nMatchALPN=hq"})
    for each in ("shop", "api", "old"):
        p.worker(each)
    datagrams = quic_initials.first_flight(name, datagrams=2, protocols=protocols)
    arguments = [word for octets in datagrams for word in ("--initial", octets.hex())]
    answer = explained(p, *arguments)
    assert (answer["service"], answer["step"]) == (service, "listener")
    assert reason.lower() in answer["reason"].lower()
    text = p.daemon.ctl("explain", *arguments).stdout
    assert text.startswith(f"asks for {name or 'no name'} with {', '.join(protocols)}\n")


def test_explain_says_what_is_malformed(share):
    p = share({"shop": SHOP, "api": API})
    p.worker("api")
    packet = quic_initials.initial(os.urandom(8), b"\x1f")
    text = p.daemon.ctl("explain", "--initial", packet.hex()).stdout
    assert text.startswith("malformed: a frame has a type that no Initial may have (octet 0 of the payload of the "
                           "Initial) (where services share the listener, none of them gets it)\n")
    offline = json.loads(p.daemon.ctl("explain", "--offline", "--initial", packet.hex()).stdout)
    assert (offline["complete"], offline["malformed"], offline["authenticated"]) == (False, True, True)
