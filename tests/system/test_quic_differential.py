# SPDX-License-Identifier: BSD-2-Clause
"""
The program in the kernel and the parser and codec in user space agree on what happens to a packet:
every one of the header corpus, and 100,000 that are random, mutated or nearly right.
"""
import collections
import json
import os
import random

import pytest

import harness
import quic_packets as quic
from quic_plane import BY_ID

CORPUS = harness.ROOT / "tests" / "vectors" / "quic-headers-corpus.json"
N_RANDOM = 100000
BATCH = 500
HOST = 0x1234


class Expectation:
    """What each packet's worker is, as the parser and codec say, for workers that live."""

    def __init__(self, p, reader):
        self.p = p
        self.reader = reader
        self.configuration = p.maker.configuration
        self.by_server_id = {quic.server_id(worker.slot, p.host): worker for worker in p.workers}

    def of(self, packets):
        """For each its worker, None for dropped, or "active": any worker that is active."""
        expected = []
        for kind, _, server_id in self.reader(packets, self.configuration):
            if kind == "invalid":
                expected.append(None)
            else:
                expected.append(self.by_server_id.get(server_id, "active"))
        return expected

    def check(self, packets, active):
        expected = self.of([octets for _, octets in packets])
        where, rise = self.p.exchange(packets)
        for (_, octets), got, wanted in zip(packets, where, expected):
            agreed = got in active if wanted == "active" else got is wanted
            assert agreed, f"{octets.hex()}: {got and got.slot} instead of {wanted}"
        count = collections.Counter(
            "invalid" if e is None else e if e == "active" else "own" for e in expected)
        assert rise["invalid"] == count["invalid"]
        assert rise[BY_ID] == count["own"]
        assert rise["dropped"] == rise["standby"] == 0
        return count


def make_packets(chance, makers, slots):
    """Endless: random octets, headers with random fields, and mutants of packets with own IDs."""
    def own_id():
        maker = chance.choice(makers)
        what = chance.randrange(8)
        if what < 4:
            return maker.make(own=chance.randbytes(chance.choice((0, 0, 0, 1, 2, 3))))
        if what == 4:
            return maker.make(slot=chance.choice(slots))
        if what == 5:
            return maker.make(slot=chance.randrange(65536))
        if what == 6:
            return maker.make(host=chance.randrange(65536))
        # The zeros of a server ID are not zeros.
        identifier = bytearray(maker.server_id)
        identifier[chance.choice((2, 3))] = chance.randrange(1, 256)
        return maker.configuration.encode(bytes(identifier), maker.nonce())

    def any_version():
        return chance.choice((quic.VERSION_1, quic.VERSION_1, quic.VERSION_2, 0xff00001d, 0,
                              chance.randrange(1 << 32)))

    def any_kind():
        return chance.choice((quic.INITIAL, quic.ZERO_RTT, quic.HANDSHAKE, quic.RETRY))

    def whole(dcid):
        body = chance.randbytes(chance.choice((0, 1, 8, 40, 200)))
        if chance.randrange(2):
            return quic.short_packet(dcid, body)
        return quic.long_packet(any_kind(), dcid, body, chance.randbytes(chance.randrange(21)),
                                any_version())

    def mutant(packet):
        packet = bytearray(packet)
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            what = chance.randrange(6)
            at = chance.randrange(min(len(packet), 30)) if packet else 0
            if what == 0 and packet:
                packet[at] ^= 1 << chance.randrange(8)
            elif what == 1:
                del packet[at:]
            elif what == 2:
                packet.insert(at, chance.randrange(256))
            elif what == 3 and packet:
                del packet[at]
            elif what == 4 and len(packet) > 5:
                packet[5] = chance.choice((0, 8, 16, 17, 18, 19, 20, 21, chance.randrange(256)))
            elif packet:
                packet[at] = chance.randrange(256)
        return bytes(packet)

    while True:
        what = chance.randrange(8)
        if what == 0:
            yield chance.randbytes(chance.randrange(64))
        elif what == 1:
            yield chance.randbytes(chance.choice((100, 500, 1200, 1472)))
        elif what == 2:
            yield whole(chance.randbytes(chance.randrange(41)))
        elif what == 3:
            yield whole(own_id())
        else:
            yield mutant(whole(own_id()))


def steered(plane, mode):
    """Three active workers, two that drain, one that is dead; slots to name in IDs."""
    p = plane(mode, host=HOST)
    active = [p.worker(f"w{i}") for i in range(3)]
    draining = [p.worker(f"d{i}") for i in range(2)]
    dead = p.daemon.worker_process(instance="dead")
    dead.kill()
    for worker in draining:
        worker.drain()
        p.daemon.wait_state(worker.slot, "draining")
    p.daemon.wait_state(dead.slot, None)
    return p, active, [w.slot for w in active + draining] + [dead.slot, 4095, 0, 4096]


@pytest.mark.parametrize("mode", ["quic-lb", "quic-lb-plain"])
def test_corpus_of_headers_is_steered_as_the_parser_says(plane, quic_reader, mode):
    """
    As it is, and again with each destination connection ID replaced by one of ours where there is
    room for one: then it goes to that worker whatever else is wrong with the packet.
    """
    p, active, _ = steered(plane, mode)
    expectation = Expectation(p, quic_reader)
    cases = json.loads(CORPUS.read_text())["cases"]
    assert len(cases) == 84
    packets = [(p.client, bytes.fromhex(case["hex"])) for case in cases]
    count = expectation.check(packets, active)
    assert sum(count.values()) == 84 and count["own"] == 0

    makers = [quic.CidMaker(worker.listeners[0]) for worker in p.workers]
    packets = []
    for case in cases:
        octets = bytes.fromhex(case["hex"])
        cid = random.choice(makers).make()
        if octets and octets[0] & 0x80 and len(octets) >= 6:
            rest = octets[6 + octets[5]:]
            packets.append((p.client, octets[:5] + bytes([len(cid)]) + cid + rest))
        elif octets and not octets[0] & 0x80:
            packets.append((p.client, octets[:1] + cid + octets[1:]))
    count = expectation.check(packets, active)
    assert count["own"] == len(packets) and count["own"] >= 70


@pytest.mark.parametrize("mode", ["quic-lb", "quic-lb-plain"])
def test_random_packets_are_steered_as_the_parser_says(plane, quic_reader, mode):
    """100,000 in the two modes together, and what is found of each sort is not a handful."""
    p, active, slots = steered(plane, mode)
    expectation = Expectation(p, quic_reader)
    chance = random.Random(int(os.environ.get("REUSEPORT_SEED", "9000")))
    clients = p.new_clients(16)
    makers = [quic.CidMaker(worker.listeners[0]) for worker in p.workers]
    packets = make_packets(chance, makers, slots)
    total = collections.Counter()
    for _ in range(N_RANDOM // 2 // BATCH):
        total += expectation.check(
            [(chance.choice(clients), next(packets)) for _ in range(BATCH)], active)
    assert sum(total.values()) == N_RANDOM // 2
    assert min(total.values()) >= 2000 and set(total) == {"invalid", "own", "active"}, total
