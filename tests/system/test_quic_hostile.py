# SPDX-License-Identifier: BSD-2-Clause
"""
Whatever is thrown at a QUIC listener, nobody else's packets are lost, nothing grows, and handshakes
that exist stay where they are.
"""
import contextlib
import itertools
import os
import pathlib
import random
import subprocess

import pytest

import harness
import quic_packets as quic
import quic_plane

# The lengths of the packets tell them apart: those of the flood are never so long.
VICTIM_OCTETS = 300


@pytest.fixture(scope="session")
def flooder(tmp_path_factory):
    """flooder(kind[, packets]): a context whose value sends that many packets, see quic_flood.c."""
    directory = tmp_path_factory.mktemp("quic-flood")
    program = directory / "quic_flood"
    harness.run("cc", "-O2", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE", "-o", program,
                pathlib.Path(__file__).with_name("quic_flood.c"))

    numbers = itertools.count()

    @contextlib.contextmanager
    def flood(kind, packets=None):
        arguments = [str(program), str(quic_plane.PORT), kind]
        if packets:
            pool = directory / f"packets{next(numbers)}"
            pool.write_bytes(b"".join(len(p).to_bytes(2, "big") + p for p in packets))
            arguments.append(str(pool))
        process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            yield process
            process.stdin.close()
            assert process.wait(harness.DEADLINE) == 0
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            process.stdin.close()
            process.stdout.close()

    return flood


def send_flood(process, count):
    process.stdin.write(b"%d\n" % count)
    process.stdin.flush()


def flood_sent(process):
    assert process.stdout.readline() == b"done\n"


def drain(workers):
    """Reads all that waits. (number of the flood's packets, [(worker, victim's packet)])."""
    n, victims = 0, []
    buffer = bytearray(2048)
    for worker in workers:
        receive = worker.socket.recv_into
        while True:
            try:
                size = receive(buffer)
            except BlockingIOError:
                break
            if size == VICTIM_OCTETS:
                victims.append((worker, bytes(buffer[:size])))
            else:
                n += 1
    return n, victims


def memory_of(daemon):
    """Entries and octets of each BPF map that the daemon holds, and of the daemon itself."""
    maps = {}
    for info in pathlib.Path(f"/proc/{daemon.pid}/fdinfo").iterdir():
        try:
            lines = info.read_text().splitlines()
        except FileNotFoundError:  # of a control connection that has just ended
            continue
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
        if "map_id" in fields:
            maps[int(fields["map_id"])] = (int(fields["max_entries"]), int(fields["memlock"]))
    status = pathlib.Path(f"/proc/{daemon.pid}/status").read_text()
    resident = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:"))
    return maps, int(resident)


class Victims:
    """Connections with own IDs, and handshakes under way, each at a worker of which it is known."""

    def __init__(self, p):
        self.p = p
        self.clients = p.new_clients(10)
        self.sequence = 0
        self.ids = []
        for worker in p.workers:
            self.ids += [(dcid, worker) for dcid in p.ids(worker, 10)]
        self.handshakes = quic.unknown_ids(200)
        self.handshakes_at = p.where([quic.initial(dcid, size=VICTIM_OCTETS)
                                      for dcid in self.handshakes])

    def send(self):
        """{packet: its worker}: one of each."""
        self.sequence += 1
        tag = self.sequence.to_bytes(4, "big")
        packets = {}
        for dcid, worker in self.ids:
            packets[quic.short_packet(dcid, tag, size=VICTIM_OCTETS)] = worker
        for dcid, worker in zip(self.handshakes, self.handshakes_at):
            packets[quic.initial(dcid, tag, size=VICTIM_OCTETS)] = worker
        for octets in packets:
            random.choice(self.clients).send(octets)
        return packets


def flood_with_victims(p, victims, process, total, batch):
    """Sends the flood in parts, victims' packets amid each; all have to arrive. Their number."""
    n_victims = 0
    while total:
        count = min(batch, total)
        before = p.counters()
        send_flood(process, count)
        expected = victims.send()
        flood_sent(process)
        rise = p.settle(before, count + len(expected))
        delivered = count + len(expected) - sum(rise[name] for name in quic_plane.NOT_DELIVERED)
        n, received = 0, []

        def all_read():
            nonlocal n
            more, some = drain(p.workers)
            n += more
            received.extend(some)
            return n + len(received) >= delivered

        harness.poll_until(all_read, f"{delivered} packets are received")
        assert n + len(received) == delivered
        assert len(received) == len(expected) == len({octets for _, octets in received})
        for worker, octets in received:
            assert worker is expected[octets], "a victim's packet came to another worker"
        n_victims += len(expected)
        total -= count
    return n_victims


class OpaqueVictims:
    """Connections of which nothing is known but their addresses and what was learned."""

    def __init__(self, p):
        self.p = p
        self.sequence = 0
        self.clients = p.new_clients(100)
        self.at = p.where([(client, quic.initial(os.urandom(8), size=VICTIM_OCTETS))
                           for client in self.clients])
        self.ids = [os.urandom(10) for _ in self.clients]
        assert p.where([(client, quic.long_packet(quic.HANDSHAKE, dcid, size=VICTIM_OCTETS))
                        for client, dcid in zip(self.clients, self.ids)]) == self.at

    def send(self):
        """{packet: its worker}: one of each."""
        self.sequence += 1
        packets = {}
        for client, dcid, worker in zip(self.clients, self.ids, self.at):
            octets = quic.short_packet(dcid, self.sequence.to_bytes(4, "big"), size=VICTIM_OCTETS)
            client.send(octets)
            packets[octets] = worker
        return packets


def hostile_packets(kind, p):
    """None where quic_flood.c makes them itself."""
    if kind == "draining slot":
        maker = quic.CidMaker(p.workers[-1].listeners[0])
        return [quic.short_packet(maker.make(), size=60) for _ in range(5000)]
    if kind == "absent slots":
        taken = {worker.slot for worker in p.workers}
        slots = [slot for slot in range(4096) if slot not in taken]
        return [quic.short_packet(p.maker.make(slot=slot), size=60) for slot in slots]
    if kind == "own IDs in Initials":
        return [quic.initial(p.maker.make(slot=random.randrange(4096)), size=60)
                for _ in range(5000)]
    if kind == "not parseable":
        return [b"\xc0\0\0\0\1\x14" + os.urandom(n % 20) for n in range(100)] + [b"", b"@"]
    return None


@pytest.mark.parametrize("kind", [
    "short", "initial", "empty", "draining slot", "absent slots", "own IDs in Initials",
    "not parseable"])
def test_flood_costs_nobody_else_a_packet(plane, flooder, kind):
    """100,000 of each sort; meanwhile 1,600 packets of others, each at the worker it belongs to."""
    p = plane()
    for i in range(4):
        p.worker(f"w{i}")
    victims = Victims(p)
    p.workers[-1].drain()
    p.daemon.wait_state(p.workers[-1].slot, "draining")
    packets = hostile_packets(kind, p)
    before, resident = memory_of(p.daemon)
    with flooder("file" if packets else kind, packets) as process:
        n = flood_with_victims(p, victims, process, 100000, 15000)
    assert n == 7 * 240
    after, resident_after = memory_of(p.daemon)
    assert len(after) >= 4 and after == before
    assert resident_after <= resident + 1024, "KiB"
    p.check_silence()


def test_ids_are_read_right_while_processors_share_their_cache(plane, flooder):
    """
    Two processes send 200,000 packets each, with 8,000 IDs that share 256 places of the cache of
    decrypted IDs: what one processor writes another reads. Not one packet goes to a wrong worker.
    """
    p = plane(options="Flows=256\n")
    for i in range(4):
        p.worker(f"w{i}")
    makers = [(worker, quic.CidMaker(worker.listeners[0])) for worker in p.workers]
    owner, pools = {}, []
    for _ in range(2):
        pool = []
        for _ in range(1000):
            for worker, maker in makers:
                pool.append(quic.short_packet(maker.make(), size=64))
                owner[pool[-1]] = worker
        pools.append(pool)
    before = p.counters()
    received = 0

    def all_read(count):
        nonlocal received
        packets = p.receive_now()
        received += len(packets)
        for worker, octets, _ in packets:
            assert owner[octets] is worker
        return received >= count

    with flooder("file", pools[0]) as first, flooder("file", pools[1]) as second:
        for i in range(10):
            for process in (first, second):
                send_flood(process, 20000)
            for process in (first, second):
                flood_sent(process)
            harness.poll_until(lambda: all_read(40000 * (i + 1)), "40,000 packets are received")
    rise = p.settle(before, 400000)
    assert rise[quic_plane.BY_ID] == received == 400000


def test_handshakes_survive_a_million_spoofed_initials(plane, flooder):
    """
    The flow map is fixed and full of what the flood left. The handshakes that it knew before stay
    known, so that they also stay put when the listener map changes afterwards.
    """
    p = plane()
    for i in range(2):
        p.worker(f"w{i}")
    victims = Victims(p)
    before, _ = memory_of(p.daemon)
    with flooder("initial") as process:
        n = flood_with_victims(p, victims, process, 1000000, 50000)
    assert n == 20 * 220
    assert memory_of(p.daemon)[0] == before
    for i in range(2, 8):
        p.worker(f"w{i}")
    again = p.where([quic.initial(dcid) for dcid in victims.handshakes])
    assert again == victims.handshakes_at


@pytest.mark.parametrize("mode", ["quic-lb-plain", "registered", "nginx"])
@pytest.mark.parametrize("kind", ["short", "initial"])
def test_flood_costs_nobody_a_packet_in_other_modes(plane, flooder, mode, kind):
    p = plane(mode)
    for i in range(4):
        p.worker(f"w{i}")
    victims = Victims(p)
    p.workers[-1].drain()
    p.daemon.wait_state(p.workers[-1].slot, "draining")
    before, _ = memory_of(p.daemon)
    with flooder(kind) as process:
        assert flood_with_victims(p, victims, process, 100000, 20000) == 5 * 240
    assert memory_of(p.daemon)[0] == before


@pytest.mark.parametrize("kind", ["short", "initial"])
def test_opaque_connections_survive_a_flood(plane, flooder, kind):
    """Those that exist, that is; and then they also survive that other workers come and drain."""
    p = plane("opaque")
    for i in range(3):
        p.worker(f"w{i}")
    victims = OpaqueVictims(p)
    before, _ = memory_of(p.daemon)
    with flooder(kind) as process:
        assert flood_with_victims(p, victims, process, 300000, 30000) == 10 * 100
        for i in range(3, 6):
            p.worker(f"w{i}")
        p.workers[0].drain()
        p.daemon.wait_state(p.workers[0].slot, "draining")
        assert flood_with_victims(p, victims, process, 60000, 30000) == 2 * 100
    assert memory_of(p.daemon)[0] == before


def test_opaque_connection_holds_together_when_nothing_can_be_remembered(plane, flooder):
    """The flow map is full of a flood: a new connection's packets go to one worker all the same."""
    p = plane("opaque")
    for i in range(4):
        p.worker(f"w{i}")
    with flooder("initial") as process:
        for _ in range(10):
            before = p.counters()
            send_flood(process, 40000)
            flood_sent(process)
            p.settle(before, 40000)
            drain(p.workers)
    clients = p.new_clients(100)
    ids = [os.urandom(8) for _ in clients]
    first = p.where([(client, quic.initial(os.urandom(8))) for client in clients])
    assert len(set(first)) == 4
    for make in (lambda dcid: quic.long_packet(quic.HANDSHAKE, dcid, size=60),
                 lambda dcid: quic.short_packet(dcid, size=60)):
        assert p.where([(client, make(dcid)) for client, dcid in zip(clients, ids)]) == first


@pytest.mark.parametrize("ids", ["4 octets", "8 octets", "20 octets", "4 octets in common"])
@pytest.mark.parametrize("hostile_length", [4, 8])
def test_no_client_decides_how_ids_are_learned(plane, ids, hostile_length):
    """
    Opaque: one client claims IDs of another length first. The others are found by the IDs of their
    Handshakes after rebinding, and by an ID that they used from a known address before.
    """
    p = plane("opaque")
    for i in range(3):
        p.worker(f"w{i}")

    def new_ids():
        length = 8 if ids == "4 octets in common" else int(ids.split()[0])
        common = b"same" if ids == "4 octets in common" else b""
        return [common + os.urandom(length - len(common)) for _ in range(60)]

    def send(clients, each, make):
        return p.where([(client, make(dcid)) for client, dcid in zip(clients, each)])

    def handshake(dcid):
        return quic.long_packet(quic.HANDSHAKE, dcid, size=60)

    def short(dcid):
        return quic.short_packet(dcid, size=60)

    hostile = p.new_client()
    p.where([(hostile, quic.initial(os.urandom(8)))])
    p.where([(hostile, handshake(os.urandom(hostile_length)))])
    clients, first_ids, second_ids = p.new_clients(60), new_ids(), new_ids()
    first = p.where([(client, quic.initial(os.urandom(8))) for client in clients])
    assert send(clients, first_ids, handshake) == first
    assert send(p.new_clients(60), first_ids, short) == first
    assert send(clients, second_ids, short) == first
    p.worker("w3")
    p.workers[0].drain()
    p.daemon.wait_state(p.workers[0].slot, "draining")
    assert send(p.new_clients(60), second_ids, short) == first
