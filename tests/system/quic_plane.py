# SPDX-License-Identifier: BSD-2-Clause
"""
A QUIC listener under test: packets go in, and each comes out of one worker's socket or is known to
have been dropped. Every packet is accounted for by the program's own counters, so nothing here waits
for time to pass.
"""
import os
import socket

import harness
import quic_packets as quic

PORT = 4433
ADDRESS = ("127.0.0.1", PORT)

SO_RCVBUFFORCE = 33
SO_COOKIE = 57
RECEIVE_OCTETS = 64 << 20  # a worker that is not read from meanwhile must not lose anything

BY_ID = "by_connection_id"  # counter of what its connection ID brought to a worker
# Counters of packets that come out of no worker's socket.
NOT_DELIVERED = ("invalid", "dropped", "standby")


class Plane:
    """A daemon with one service of one QUIC listener, its workers, and a client."""

    def __init__(self, start_daemon, configuration, mode="quic-lb", host=0, listen=ADDRESS,
                 options=""):
        configuration.write("reuseportd.conf", f"[Daemon]\nHostID={host}\n")
        address = f"[{listen[0]}]" if ":" in listen[0] else listen[0]
        configuration.service("web", f"""[Service]
AllowUser=root
[Listener quic]
ListenQUIC={address}:{listen[1]}
ConnectionID={mode}
{options}""")
        self.mode = mode
        self.host = host
        self.address = listen
        self.daemon = start_daemon("--config", configuration.directory)
        self.workers = []
        self.clients = []
        self.client = self.new_client()

    def new_client(self, source=None):
        client = harness.udp_client(self.address, source)
        self.clients.append(client)
        return client

    def new_clients(self, count):
        return [self.new_client() for _ in range(count)]

    def worker(self, instance, **options):
        worker = self.daemon.worker(instance=instance, **options)
        worker.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_OCTETS)
        self.workers.append(worker)
        return worker

    def leave(self, worker):
        self.workers.remove(worker)
        worker.leave()

    @property
    def maker(self):
        """IDs under the current configuration; make(slot=...) for other slots than the first's."""
        return quic.CidMaker(self.workers[0].listeners[0])

    def ids(self, worker, count):
        """IDs of connections of this worker, as its server would make them in this mode."""
        if self.mode in ("quic-lb", "quic-lb-plain"):
            maker = quic.CidMaker(worker.listeners[0])
            return [maker.make() for _ in range(count)]
        if self.mode == "nginx":
            cookie = worker.socket.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8)
            return [cookie[::-1] + os.urandom(12) for _ in range(count)]
        assert self.mode == "registered"
        ids = [os.urandom(length) for length in (8, 12, 18, 20)[:count]]
        ids += [os.urandom(20) for _ in range(count - len(ids))]
        worker.add_cids(ids)
        return ids

    def counters(self):
        return self.daemon.status("web")["listeners"][0]

    def settle(self, before, count):
        """What the counters rose by, once the program has decided that many packets."""
        def decided():
            now = self.counters()
            return now if now["packets"] - before["packets"] >= count else None
        after = harness.poll_until(decided, f"{count} packets are decided")
        rise = {name: after[name] - before[name] for name in after
                if isinstance(after[name], int)}
        assert rise["packets"] == count, rise
        return rise

    def exchange(self, packets):
        """
        Sends packets, each (client, octets) or octets alone. Returns for each the worker whose
        socket it came out of, None for none; and what the listener's counters rose by.
        """
        packets = [p if isinstance(p, tuple) else (self.client, p) for p in packets]
        before = self.counters()
        for client, octets in packets:
            client.send(octets)
        rise = self.settle(before, len(packets))
        expected = len(packets) - sum(rise[name] for name in NOT_DELIVERED)
        received = []
        harness.poll_until(lambda: received.extend(self.receive_now()) or
                           len(received) >= expected, f"{expected} packets are received")
        assert len(received) == expected
        arrived = {}
        for worker, octets, sender in received:
            arrived.setdefault((octets, sender), []).append(worker)
        where = []
        for client, octets in packets:
            workers = arrived.get((octets, client.getsockname()[:2]), [])
            where.append(workers.pop(0) if workers else None)
        assert not any(arrived.values()), "a packet came twice, or nobody sent it"
        self.check_silence()
        return where, rise

    def where(self, packets):
        """As exchange(), without the counters; every packet must have come to a worker."""
        where, _ = self.exchange(packets)
        assert None not in where
        return where

    def receive_now(self):
        received = []
        for worker in self.workers:
            while True:
                try:
                    octets, sender = worker.socket.recvfrom(65536)
                except BlockingIOError:
                    break
                received.append((worker, octets, sender[:2]))
        return received

    def check_silence(self):
        """No client was told anything, by ICMP or otherwise."""
        for client in self.clients:
            assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0

    def close(self):
        harness.close_all(self.clients)


def packets_of_every_kind(dcid):
    """Whatever a packet is, its ID decides: name to octets, each different from the others."""
    packets = {}
    for version, name in ((quic.VERSION_1, "v1"), (quic.VERSION_2, "v2")):
        for kind in (quic.INITIAL, quic.ZERO_RTT, quic.HANDSHAKE, quic.RETRY):
            packets[f"{kind} {name}"] = quic.long_packet(
                kind, dcid, f"{kind} {name}".encode(), version=version, size=200)
    packets["unknown version"] = quic.long_packet(
        quic.INITIAL, dcid, b"unknown", version=quic.VERSION_UNKNOWN, size=200)
    packets["version negotiation"] = quic.long_packet(
        quic.INITIAL, dcid, b"\x00\x00\x00\x01", version=0, size=200)
    packets["short"] = quic.short_packet(dcid, b"short", size=100)
    for kind in ("initial v1", "short"):
        greased = bytearray(packets[kind])
        greased[0] &= 0xbf  # the fixed bit, RFC 9287
        packets[f"{kind}, fixed bit 0"] = bytes(greased)
    return packets
