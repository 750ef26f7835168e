# SPDX-License-Identifier: BSD-2-Clause
"""What becomes of QUIC packets when workers die, share a process, or belong to somebody else."""
import errno
import os
import socket

import pytest

import harness
import quic_packets as quic
import worker_protocol as proto
from quic_plane import BY_ID


def test_killed_worker_costs_no_packet_that_comes_after_it(plane):
    """
    kill -9 of one of four, seven times, and at once 300 packets: Initials, retransmissions, and those
    of its own connections. The others get every one, before the daemon has had time to know.
    """
    p = plane()
    for i in range(3):
        p.worker(f"w{i}")
    for n in range(7):
        process = p.daemon.worker_process(instance=f"victim{n}")
        ids = quic.unknown_ids(100)
        maker = p.maker
        before = p.counters()
        for dcid in ids:
            p.client.send(quic.initial(dcid, size=60))
        p.settle(before, 100)
        at_the_others = len(p.receive_now())
        assert at_the_others < 100, "some have begun at the worker that is going to die"
        process.kill()
        packets = [quic.initial(dcid, size=60) for dcid in ids]
        packets += [quic.initial(dcid, size=60) for dcid in quic.unknown_ids(100)]
        packets += [quic.short_packet(maker.make(slot=process.slot), size=60) for _ in range(100)]
        where, rise = p.exchange(packets)
        assert set(where) == set(p.workers)
        assert rise["standby"] == rise["dropped"] == rise["invalid"] == rise[BY_ID] == 0
        p.daemon.wait_state(process.slot, None)


def test_handshake_is_forgotten_after_its_time(plane):
    """FlowTimeoutSec=: then the listener map decides again. Explain tells when that is."""
    p = plane(options="FlowTimeoutSec=500ms\n")
    first = p.worker("first")
    octets = quic.initial(b"unknown1", size=100)
    assert p.where([octets]) == [first]
    second = p.worker("second")
    first.drain()
    p.daemon.wait_state(first.slot, "draining")
    assert p.where([octets]) == [first]
    harness.poll_until(
        lambda: p.daemon.call("Explain", packet=octets.hex())["step"] == "listener",
        "the handshake is forgotten", interval=0.1)
    assert p.where([octets]) == [second]


def test_datagram_in_fragments_is_steered_by_its_id(plane):
    p = plane()
    workers = [p.worker(f"w{i}") for i in range(3)]
    harness.run("ip", "link", "set", "lo", "mtu", "1280")
    packets, expected = [], []
    for worker in workers:
        maker = quic.CidMaker(worker.listeners[0])
        for size in (1300, 3000, 9000, 60000):
            packets.append(quic.long_packet(quic.HANDSHAKE, maker.make(), size=size))
            packets.append(quic.short_packet(maker.make(), size=size))
            expected += [worker, worker]
    assert p.where(packets) == expected


class OneOfMany:
    """One worker's socket of a registration of several, as quic_plane.Plane reads from it."""

    def __init__(self, registration, index):
        self.socket = registration.sockets[index]["quic"]
        self.slots = [registration.slots[index]]
        self.listeners = registration.listeners_of[index]

    def fileno(self):
        return self.socket.fileno()


def test_each_worker_of_a_process_has_ids_of_its_own(plane):
    """A server with 8 threads: 8 slots, 8 sockets, and no two make the same IDs."""
    p = plane()
    registration = p.daemon.worker(instance="threads", n_workers=8)
    workers = [OneOfMany(registration, i) for i in range(8)]
    p.workers += workers
    makers = [quic.CidMaker(worker.listeners[0]) for worker in workers]
    assert len({maker.server_id for maker in makers}) == 8
    assert len({maker.nonce_prefix for maker in makers}) == 8
    packets, expected = [], []
    for _ in range(20):
        for worker, maker in zip(workers, makers):
            packets.append(quic.short_packet(maker.make(), size=60))
            expected.append(worker)
    assert p.where(packets) == expected
    assert len(set(p.where([quic.initial(dcid, size=60) for dcid in quic.unknown_ids(400)]))) == 8


def test_id_of_another_services_worker_names_nobody_here(start_daemon, configuration):
    """Slots are the daemon's, sockets the listener's: services don't get each other's packets."""
    for i, name in enumerate(("one", "two")):
        configuration.service(name, f"""[Service]
AllowUser=root
[Listener quic]
ListenQUIC=127.0.0.1:{4433 + i}
ConnectionID=quic-lb-plain
""")
    daemon = start_daemon("--config", configuration.directory)
    one = daemon.worker(service="one")
    two = [daemon.worker(service="two", instance=f"two{i}") for i in range(2)]
    maker = quic.CidMaker(one.listeners[0])
    packets = [quic.short_packet(maker.make(), size=60) for _ in range(50)]
    with harness.udp_client(("127.0.0.1", 4434)) as client:
        for octets in packets:
            client.send(octets)
        received = harness.receive_datagrams(two, len(packets))
    assert sorted(octets for _, octets, _ in received) == sorted(packets)
    assert harness.receive_now(one) == []
    listener = daemon.status("two")["listeners"][0]
    assert (listener["stray"], listener[BY_ID]) == (50, 0)


def refused(function, *arguments):
    with pytest.raises(proto.Refused) as refusal:
        function(*arguments)
    assert len(refusal.value.sentence) >= 20
    return refusal.value.error


def test_refused_registration_of_ids_changes_nothing(plane):
    """All of a batch or none: what was registered is found, what was refused is not."""
    p = plane("registered", options="Flows=256\n")
    first, second = p.worker("first"), p.worker("second")
    mine = [os.urandom(8) for _ in range(4)]
    first.add_cids(mine)
    first.add_cids(mine[:2])  # again: no error
    fresh = [os.urandom(8) for _ in range(3)]
    assert refused(second.add_cids, fresh + mine[:1]) == errno.EEXIST
    # Four lengths are known at a time.
    first.add_cids([os.urandom(9), os.urandom(10), os.urandom(11)])
    assert refused(second.add_cids, fresh + [os.urandom(12)]) == errno.EMLINK
    assert refused(second.add_cids, [os.urandom(8) for _ in range(512)]) == errno.EDQUOT
    assert refused(second.add_cids, fresh, 1) == errno.ERANGE
    assert refused(second.add_cids, fresh, 0, 1) == errno.ERANGE
    second.retire_cids(mine)  # not its own: they stay
    where, rise = p.exchange([quic.short_packet(dcid, size=60) for dcid in mine])
    assert where == [first] * 4 and rise[BY_ID] == 4
    _, rise = p.exchange([quic.short_packet(dcid, size=60) for dcid in fresh])
    assert rise[BY_ID] == 0
    second.add_cids(fresh)
    where, rise = p.exchange([quic.short_packet(dcid, size=60) for dcid in fresh])
    assert where == [second] * 3 and rise[BY_ID] == 3
    # As many as are allowed, half of them for one, and those of a worker that leaves make room.
    second.add_cids([os.urandom(8) for _ in range(128 - 3)])
    assert refused(second.add_cids, [os.urandom(8)]) == errno.EDQUOT
    first.add_cids([os.urandom(8) for _ in range(128 - 4 - 3)])
    third = p.worker("third")
    assert refused(third.add_cids, [os.urandom(8)]) == errno.EDQUOT
    p.leave(second)
    third.add_cids([os.urandom(8) for _ in range(128)])
    assert refused(third.add_cids, [os.urandom(8)]) == errno.EDQUOT
    assert refused(first.add_cids, [os.urandom(8)]) == errno.EDQUOT


@pytest.mark.parametrize("mode", ["quic-lb", "quic-lb-plain", "nginx", "opaque"])
def test_ids_are_registered_only_where_the_mode_says_so(plane, mode):
    p = plane(mode)
    worker = p.worker("w0")
    assert refused(worker.add_cids, [os.urandom(8)]) == errno.EOPNOTSUPP
    assert refused(worker.retire_cids, [os.urandom(8)]) == errno.EOPNOTSUPP
    assert p.where([quic.initial(os.urandom(8))]) == [worker]


def test_train_of_segments_has_one_destination(plane):
    """
    A sender's UDP_SEGMENT: one run of the program for the whole train, as a QUIC server behind a
    local relay gets it; all of it is of one connection (it has one 4-tuple).
    """
    p = plane()
    workers = [p.worker(f"w{i}") for i in range(3)]
    for worker in workers:
        cid = quic.CidMaker(worker.listeners[0]).make()
        train = [quic.short_packet(cid, b"%d" % i, size=100) for i in range(20)]
        p.client.sendmsg([b"".join(train)], [(socket.IPPROTO_UDP, 103, (100).to_bytes(2, "little"))])
        received = []
        harness.poll_until(lambda: received.extend(p.receive_now()) or len(received) >= 20,
                           "20 datagrams are received")
        assert [octets for _, octets, _ in received] == train
        assert {each for each, _, _ in received} == {worker}
