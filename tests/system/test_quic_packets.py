# SPDX-License-Identifier: BSD-2-Clause
"""
The QUIC data plane as seen from outside: packets as anybody may send them, through real sockets,
and which worker's socket each comes out of. What is expected comes from the shared parser and codec
in user space (quic_reader.c) or from a second implementation (quic_packets.py), never from the
program under test.
"""
import json
import os
import random
import socket

import pytest

import harness
import quic_packets as quic
import quic_plane
from quic_plane import BY_ID

VECTORS = harness.ROOT / "tests" / "vectors"


def test_second_codec_makes_and_reads_the_vectors():
    """What the tests below rest on: 8 vectors of the draft and 62 more, each both ways."""
    document = json.loads((VECTORS / "quic-lb-vectors.json").read_text())
    vectors = [v for v in document["vectors"] if v["verified"]] + document["derived_here"]["vectors"]
    for vector in vectors:
        key = bytes.fromhex(vector["key"]) if vector["key"] else None
        server_id, nonce, cid = (
            bytes.fromhex(vector[name]) for name in ("server_id", "nonce", "cid"))
        # The rotation of the ID itself: the draft misprints that of B.2's last one.
        configuration = quic.QuicLb(cid[0] >> 5, len(server_id), len(nonce), key)
        own = cid[configuration.cid_length:]
        assert configuration.decode(cid) == (server_id, nonce), vector["id"]
        assert configuration.encode(server_id, nonce, cid[0] & 0x1f, own) == cid, vector["id"]
    assert len(vectors) == 70


def test_both_codecs_agree_on_every_legal_length(quic_reader):
    """120 pairs of lengths, in the clear and encrypted, 50 IDs each: 12,000 server IDs."""
    chance = random.Random(21)
    n = 0
    for server_id_length in range(1, 16):
        for nonce_length in range(4, min(18, 19 - server_id_length) + 1):
            for key in (None, chance.randbytes(16)):
                configuration = quic.QuicLb(
                    chance.randrange(7), server_id_length, nonce_length, key)
                ids = [chance.randbytes(server_id_length) for _ in range(50)]
                room = 19 - server_id_length - nonce_length
                cids = [configuration.encode(each, chance.randbytes(nonce_length),
                                             own=chance.randbytes(chance.randint(0, room)))
                        for each in ids]
                packets = [quic.initial(cid, size=0) for cid in cids]
                assert quic_reader(packets, configuration) == [
                    ("initial", cid, each) for cid, each in zip(cids, ids)]
                assert [configuration.decode(cid)[0] for cid in cids] == ids
                n += len(ids)
    assert n == 12000


OWN_IDS = pytest.mark.parametrize("mode", ["quic-lb", "quic-lb-plain"])


@OWN_IDS
def test_own_id_finds_its_worker_whatever_the_packet_is(plane, mode):
    """Every kind and version, from many ports, while the worker is active and while it drains."""
    p = plane(mode)
    workers = [p.worker(f"w{i}") for i in range(4)]
    makers = [quic.CidMaker(worker.listeners[0]) for worker in workers]
    clients = p.new_clients(20)
    for state in ("active", "draining"):
        packets, expected = [], []
        for worker, maker in zip(workers, makers):
            for client in clients:
                for octets in quic_plane.packets_of_every_kind(maker.make()).values():
                    packets.append((client, octets))
                    expected.append(worker)
        assert len(packets) == 4 * 20 * 13
        where, rise = p.exchange(packets)
        assert where == expected
        assert rise[BY_ID] == len(packets)
        if state == "active":
            for worker in workers[:2]:
                worker.drain()
                p.daemon.wait_state(worker.slot, "draining")


@OWN_IDS
def test_own_id_may_have_octets_of_the_server_behind_it(plane, mode):
    """A long header has the whole ID, to 20 octets; a short one is followed by anything."""
    p = plane(mode)
    workers = [p.worker(f"w{i}") for i in range(3)]
    packets, expected = [], []
    for worker in workers:
        maker = quic.CidMaker(worker.listeners[0])
        for n in (1, 2, 3):
            own = os.urandom(n)
            packets.append(quic.long_packet(quic.HANDSHAKE, maker.make(own=own)))
            packets.append(quic.short_packet(maker.make(own=own)))
            expected += [worker, worker]
        # The shortest datagrams that have the whole ID.
        packets.append(quic.short_packet(maker.make()))
        packets.append(quic.long_packet(quic.INITIAL, maker.make(), scid=b""))
        packets.append(quic.long_packet(quic.INITIAL, maker.make())[:6 + 17])
        expected += [worker] * 3
    assert p.where(packets) == expected


def unparseable():
    """Datagrams that end before their destination connection ID does (17 octets, short header)."""
    whole = quic.initial(os.urandom(20), size=0)
    packets = [b""]
    packets += [whole[:n] for n in range(1, 26)]
    packets += [b"\x40" + os.urandom(n) for n in range(17)]
    for version in (quic.VERSION_2, quic.VERSION_UNKNOWN, 0):
        for dcid_length in (1, 8, 21, 255):
            packet = quic.long_packet(quic.INITIAL, bytes(dcid_length), version=version)
            packets.append(packet[:6 + dcid_length - 1])
    return packets


@OWN_IDS
def test_what_ends_before_its_id_is_dropped_in_silence(plane, mode):
    p = plane(mode)
    for i in range(2):
        p.worker(f"w{i}")
    packets = unparseable()
    where, rise = p.exchange(packets)
    assert where == [None] * len(packets)
    assert rise["invalid"] == len(packets) == 55
    p.check_silence()


def scale(p, first, count):
    return [p.worker(f"w{i}") for i in range(first, first + count)]


@OWN_IDS
def test_handshake_stays_with_its_worker_while_workers_come_and_go(plane, mode):
    """
    Initial, 0-RTT, retransmissions, unknown versions: what one client sends to the ID that it chose
    goes to one worker, from any port, however the listener map changes.
    """
    p = plane(mode)
    old = scale(p, 0, 2)
    ids = quic.unknown_ids(200)
    clients = p.new_clients(8)

    def send(make):
        return p.where([(random.choice(clients), make(dcid)) for dcid in ids])

    def unknown_version(dcid):
        return quic.initial(dcid, version=quic.VERSION_UNKNOWN)

    def zero_rtt(dcid):
        return quic.long_packet(quic.ZERO_RTT, dcid, size=100)

    first = send(quic.initial)
    assert set(first) == set(old)
    scale(p, 2, 6)
    assert send(quic.initial) == first
    assert send(zero_rtt) == first
    for worker in old:
        worker.drain()
        p.daemon.wait_state(worker.slot, "draining")
    # A draining worker finishes the handshakes that it has, and gets no new one.
    assert send(zero_rtt) == first
    assert send(unknown_version) == first
    assert not set(old) & set(p.where([quic.initial(dcid) for dcid in quic.unknown_ids(200)]))
    p.leave(old[0])
    moved = send(quic.initial)
    for before, now in zip(first, moved):
        assert now is before if before is old[1] else now not in old


def test_handshakes_are_spread_by_weight(plane):
    """Weights 1:3 over 8,000 IDs: 25 % within 3 points, six standard deviations."""
    p = plane()
    light = p.worker("light", weight=100)
    p.worker("heavy", weight=300)
    got = 0
    for _ in range(8):
        got += p.where([quic.initial(dcid, size=60) for dcid in quic.unknown_ids(1000)]).count(light)
    assert 0.22 <= got / 8000 <= 0.28


def strangers(dcid):
    """Packets of connections that no worker of ours has, as far as an ID of 17 octets can tell."""
    packets = quic_plane.packets_of_every_kind(dcid)
    return [packets[name] for name in ("short", "handshake v1", "handshake v2", "retry v1",
                                       "version negotiation", "short, fixed bit 0")]


@OWN_IDS
def test_unknown_connection_is_told_so_by_an_active_worker(plane, mode):
    """
    Short headers and Handshakes of unknown IDs: somebody must send a stateless reset. Retry and
    Version Negotiation come from no client; a server drops them.
    """
    p = plane(mode)
    draining = p.worker("draining")
    active = scale(p, 0, 3)
    p.worker("joining", ready=False)
    draining.drain()
    p.daemon.wait_state(draining.slot, "draining")
    packets = []
    for _ in range(100):
        packets += strangers(quic.foreign_cid(17))
        packets += strangers(os.urandom(17))
    where, rise = p.exchange(packets)
    assert set(where) == set(active)
    assert rise["stray"] == len(packets) == 1200
    again, _ = p.exchange(packets)
    assert again == where


def absent_slots(p):
    """Every slot that no worker has, the one where the standby stands among them."""
    taken = {slot for worker in p.workers for slot in worker.slots}
    return [slot for slot in range(4096) if slot not in taken]


@OWN_IDS
def test_id_of_a_slot_without_worker_goes_to_an_active_one(plane, mode):
    """Absent slots (the standby's is one), dead workers, slots that can't be, other hosts."""
    p = plane(mode, host=7)
    draining = p.worker("draining")
    active = scale(p, 0, 2)
    draining.drain()
    p.daemon.wait_state(draining.slot, "draining")
    dead = p.daemon.worker_process(instance="dead")
    dead.kill()
    slots = absent_slots(p)
    assert dead.slot in slots and len(slots) == 4093
    maker = p.maker
    ids = [maker.make(slot=slot) for slot in slots + [4096, 4097, 4098, 8191, 32768, 65535]]
    ids += [maker.make(slot=active[0].slot, host=host) for host in (0, 6, 8, 0x700, 65535)]
    for make in (quic.short_packet, lambda dcid: quic.long_packet(quic.HANDSHAKE, dcid),
                 lambda dcid: quic.initial(dcid, size=60)):
        where, rise = p.exchange([make(dcid) for dcid in ids])
        assert set(where) == set(active)
        assert rise[BY_ID] == rise["standby"] == rise["dropped"] == rise["invalid"] == 0
    # In between, the living ones are found as before.
    for worker in [draining] + active:
        cid = quic.CidMaker(worker.listeners[0]).make()
        assert p.where([quic.short_packet(cid)]) == [worker]


@OWN_IDS
def test_packets_wait_in_the_standby_for_the_next_worker(plane, mode):
    """Nobody active: what is new waits; what belongs to a draining worker does not."""
    p = plane(mode)
    ids = quic.unknown_ids(30)
    packets = [quic.initial(dcid, size=300) for dcid in ids]
    packets += [quic.short_packet(quic.foreign_cid(17), size=60) for _ in range(10)]
    where, rise = p.exchange(packets)
    assert where == [None] * 40 and rise["standby"] == 40
    first = p.worker("first")
    received = []
    harness.poll_until(lambda: received.extend(p.receive_now()) or len(received) >= 40,
                       "the worker has what waited")
    assert [octets for _, octets, _ in received] == packets
    assert {worker for worker, _, _ in received} == {first}

    first.drain()
    p.daemon.wait_state(first.slot, "draining")
    own = quic.CidMaker(first.listeners[0])
    assert p.where([quic.short_packet(own.make()) for _ in range(20)]) == [first] * 20
    packets = [quic.initial(dcid, size=300) for dcid in quic.unknown_ids(20)]
    where, rise = p.exchange(packets)
    assert where == [None] * 20 and rise["standby"] == 20
    second = p.worker("second")
    received = []
    harness.poll_until(lambda: received.extend(p.receive_now()) or len(received) >= 20,
                       "the second worker has what waited")
    assert [octets for _, octets, _ in received] == packets
    assert {worker for worker, _, _ in received} == {second}


def test_a_listener_on_ipv6_is_the_same(plane):
    p = plane(listen=("::1", quic_plane.PORT))
    workers = scale(p, 0, 3)
    makers = [quic.CidMaker(worker.listeners[0]) for worker in workers]
    packets, expected = [], []
    for worker, maker in zip(workers, makers):
        for octets in quic_plane.packets_of_every_kind(maker.make()).values():
            packets.append(octets)
            expected.append(worker)
    assert p.where(packets) == expected
    ids = quic.unknown_ids(100)
    first = p.where([quic.initial(dcid) for dcid in ids])
    scale(p, 3, 3)
    assert p.where([quic.initial(dcid) for dcid in ids]) == first
    where, rise = p.exchange(unparseable())
    assert where == [None] * 55 and rise["invalid"] == 55


def test_opaque_connection_stays_by_its_address(plane):
    """Nothing is known of the IDs: the client's address and port are what there is to go by."""
    p = plane("opaque")
    old = scale(p, 0, 2)
    clients = p.new_clients(100)
    first = p.where([(client, quic.initial(os.urandom(8))) for client in clients])
    assert set(first) == set(old)
    scale(p, 2, 4)
    ids = [os.urandom(12) for _ in clients]

    def send(make):
        return p.where([(client, make(dcid)) for client, dcid in zip(clients, ids)])

    assert send(lambda dcid: quic.long_packet(quic.HANDSHAKE, dcid, size=60)) == first
    assert send(lambda dcid: quic.short_packet(dcid, size=60)) == first
    old[0].drain()
    p.daemon.wait_state(old[0].slot, "draining")
    assert send(lambda dcid: quic.short_packet(dcid, size=60)) == first
    assert old[0] not in p.where(
        [(client, quic.initial(os.urandom(8))) for client in p.new_clients(100)])


def test_opaque_connection_is_found_again_by_an_id_that_was_learned(plane):
    """A client whose port changes keeps the ID of its Handshake packets, RFC 9000 section 9."""
    p = plane("opaque")
    scale(p, 0, 3)
    before, after = p.new_clients(60), p.new_clients(60)
    ids = [os.urandom(12) for _ in before]
    first = p.where([(client, quic.initial(os.urandom(8))) for client in before])
    assert p.where([(client, quic.long_packet(quic.HANDSHAKE, dcid, size=60))
                    for client, dcid in zip(before, ids)]) == first
    scale(p, 3, 3)
    assert p.where([(client, quic.short_packet(dcid, size=60))
                    for client, dcid in zip(after, ids)]) == first


@pytest.mark.parametrize("length", (4, 7, 8, 20))
def test_opaque_id_is_learned_where_the_handshake_hides_behind_an_initial(plane, length):
    """
    As real clients send it: one datagram with an Initial and a Handshake packet, both to the server's
    ID, then short headers only. The port changes after the first of these, and changes again.
    """
    p = plane("opaque")
    scale(p, 0, 3)
    clients = [p.new_clients(60) for _ in range(3)]
    ids = [os.urandom(length) for _ in clients[0]]

    def send(clients, make):
        return p.where([(client, make(dcid)) for client, dcid in zip(clients, ids)])

    first = send(clients[0], lambda _: quic.initial(os.urandom(8)))
    assert send(clients[0], quic.initial) == first
    assert send(clients[0], lambda dcid: quic.short_packet(dcid, size=60)) == first
    scale(p, 3, 3)
    for after in clients[1:]:
        assert send(after, lambda dcid: quic.short_packet(dcid, size=60)) == first


def test_registered_id_means_the_worker_that_registered_it(plane):
    p = plane("registered")
    workers = scale(p, 0, 3)
    clients = p.new_clients(10)
    ids = {worker: [os.urandom(length) for length in (8, 12, 20) for _ in range(20)]
           for worker in workers}
    for worker, own in ids.items():
        worker.add_cids(own)

    def send():
        packets, expected = [], []
        for worker, own in ids.items():
            for dcid in own:
                for octets in quic_plane.packets_of_every_kind(dcid).values():
                    packets.append((random.choice(clients), octets))
                    expected.append(worker)
        where, rise = p.exchange(packets)
        assert where == expected
        assert rise[BY_ID] == len(packets)

    send()
    for worker in workers[:2]:
        worker.drain()
        p.daemon.wait_state(worker.slot, "draining")
    send()
    # Retired, and gone with its worker: an active one gets it.
    workers[0].retire_cids(ids[workers[0]])
    p.leave(workers[1])
    gone = ids.pop(workers[0]) + ids.pop(workers[1])
    where, rise = p.exchange([quic.short_packet(dcid, size=60) for dcid in gone])
    assert set(where) == {workers[2]} and rise[BY_ID] == 0
    send()


def test_as_many_registered_ids_as_are_allowed_are_all_found(plane):
    """Some more than the sets of the cache before the map take; then the workers swap theirs."""
    p = plane("registered", options="Flows=4096\n")
    workers = scale(p, 0, 2)
    batches = [[os.urandom(20) for _ in range(256)] for _ in range(16)]

    def check(owners):
        for i, batch in enumerate(batches):
            where, rise = p.exchange([quic.short_packet(dcid, size=60) for dcid in batch])
            assert where == [owners[i % 2]] * 256 and rise[BY_ID] == 256

    for i, batch in enumerate(batches):
        workers[i % 2].add_cids(batch)
    check(workers)
    # Two batches at a time: neither may have more than its half, not even for a moment.
    for pair in zip(batches[::2], batches[1::2]):
        for worker, batch in zip(workers, pair):
            worker.retire_cids(batch)
        for worker, batch in zip(reversed(workers), pair):
            worker.add_cids(batch)
    check([workers[1], workers[0]])


def test_id_of_nginx_means_the_socket_with_that_cookie(plane):
    """20 octets of which the first eight are SO_COOKIE, big-endian."""
    p = plane("nginx")
    workers = scale(p, 0, 4)
    clients = p.new_clients(10)
    ids = {}
    for worker in workers:
        cookie = worker.socket.getsockopt(socket.SOL_SOCKET, quic_plane.SO_COOKIE, 8)
        ids[worker] = int.from_bytes(cookie, "little").to_bytes(8, "big")
    for draining in (None, workers[0]):
        if draining:
            draining.drain()
            p.daemon.wait_state(draining.slot, "draining")
        packets, expected = [], []
        for worker, cookie in ids.items():
            for _ in range(10):
                dcid = cookie + os.urandom(12)
                for octets in quic_plane.packets_of_every_kind(dcid).values():
                    packets.append((random.choice(clients), octets))
                    expected.append(worker)
        where, rise = p.exchange(packets)
        assert where == expected and rise[BY_ID] == len(packets)
    p.leave(workers[1])
    packets = [quic.short_packet(ids[workers[1]] + os.urandom(12)) for _ in range(50)]
    packets += [quic.short_packet(os.urandom(20)) for _ in range(50)]
    where, rise = p.exchange(packets)
    assert set(where) == set(workers[2:]) and rise[BY_ID] == 0
