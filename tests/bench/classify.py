# SPDX-License-Identifier: BSD-2-Clause
"""
A new connection on a shared listener: what the classifier uses of a core for it, with one datagram
and with two (a post-quantum ClientHello), for an Initial that is forged, and for what is made to
cost as much as it can.
"""
import os
import socket
import time

import harness
import quic_initials

from .place import Place, stop

SERVICES = {"shop": "MatchServerName=shop.example", "api": "MatchDefault=yes"}
RATE = 10000  # connections a second
SO_RCVBUFFORCE = 33


def classifier_of(pid):
    """The pid of the daemon's classifier."""
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as stream:
        for child in stream.read().split():
            with open(f"/proc/{child}/comm", encoding="ascii") as name:
                if name.read().startswith("reuseport-class"):
                    return int(child)
    return None


def processor_seconds(pid):
    with open(f"/proc/{pid}/schedstat", encoding="ascii") as stream:
        return int(stream.read().split()[0]) / 1e9


class Shared:
    """A daemon with two services on one port, and a worker of each that reads nothing."""

    def __init__(self, run):
        port = next(run.ports)
        sections = {name: f"[Listener quic]\nListenQUIC=127.0.0.1:{port}\nShare=bench\n{match}\n"
                    for name, match in SERVICES.items()}
        self.place = Place(run, services=sections,
                           daemon=f"Classifier={run.build}/classify/reuseport-classify\n"
                                  "ClassifierShare=100%\n")
        self.workers = {name: self.place.daemon.worker(service=name) for name in SERVICES}
        for worker in self.workers.values():
            worker.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 256 << 20)
        self.pid = harness.poll_until(lambda: classifier_of(self.place.pid), "there is a classifier")
        self.client = harness.udp_client(("127.0.0.1", port))

    def received(self, name):
        return self.place.daemon.status(name)["listeners"][0]["packets"]

    def send(self, flights, expected, rate):
        """Evenly, so many a second; microseconds of the classifier's for each."""
        before, used = self.received("shop"), processor_seconds(self.pid)
        begin = time.monotonic()
        for i, flight in enumerate(flights):
            for datagram in flight:
                self.client.send(datagram)
            while time.monotonic() - begin < i / rate:
                pass
        deadline = time.monotonic() + 10
        while self.received("shop") - before < expected and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.1)
        used = processor_seconds(self.pid) - used
        if self.received("shop") - before != expected:
            stop(f"classify: {self.received('shop') - before} of {expected} datagrams arrived")
        for worker in self.workers.values():
            harness.receive_now(worker)
        return used * 1e6 / len(flights)

    def close(self):
        self.client.close()
        self.place.close()


def measure(run):
    run.report.subject(
        "classify", f"A new connection on a shared listener (microseconds of the classifier's CPU "
        f"time, {RATE:,} a second)")
    count = run.pick(10000, 3000, 200)
    rounds = min(run.rounds, 3)
    kinds = {
        "one": ("ClientHello in one datagram", lambda: quic_initials.first_flight("shop.example"), 1, RATE),
        "two": ("ClientHello in two", lambda: quic_initials.first_flight(
            "shop.example", datagrams=2, key_share=1216), 2, RATE),
        "forged": ("forged Initial", lambda: [quic_initials.forged(os.urandom(8))], 0, RATE),
        "coalesced": ("eight forged Initials in a datagram",
                      lambda: [quic_initials.forged_in_one(os.urandom(8))], 0, RATE),
        "pieces": ("a datagram full of CRYPTO frames of one octet",
                   lambda: [quic_initials.in_pieces(os.urandom(8))], 0, RATE),
        # Fewer, so that none of them is beyond a core.
        "large": ("the same with 9,000 octets, 2,000 a second",
                  lambda: [quic_initials.in_pieces(os.urandom(8), size=9000)], 0, 2000)}
    values = {name: [] for name in kinds}
    for i in range(rounds):
        for name, (_, make, datagrams, rate) in kinds.items():
            run.progress(f"classify: {name}, round {i + 1} of {rounds}")
            flights = [make() for _ in range(count)]
            shared = Shared(run)
            try:
                values[name].append(shared.send(flights, count * datagrams, rate))
            finally:
                shared.close()
    for name, (title, _, _, _) in kinds.items():
        run.report.add("classify", name, title, "us", values[name])
