# SPDX-License-Identifier: BSD-2-Clause
"""
Services that share one QUIC listener, their workers, and a client: as quic_plane.py, of several
services.
"""
import os
import socket

import harness
import quic_packets as quic
from quic_plane import ADDRESS, NOT_DELIVERED, RECEIVE_OCTETS, SO_RCVBUFFORCE

SHARE = "edge"


def section(match, address=ADDRESS, mode="quic-lb", user="root", options=""):
    return f"""[Service]
AllowUser={user}
[Listener h3]
ListenQUIC={address[0]}:{address[1]}
Share={SHARE}
ConnectionID={mode}
{match}
{options}
"""


class SharePlane:
    """services: name to what its [Listener] section says beside the address."""

    def __init__(self, start_daemon, configuration, services, modes=None, users=None,
                 classifier="/nonexistent", daemon="", options=""):
        self.configuration = configuration
        self.modes = modes or {}
        self.users = users or {}
        configuration.write("reuseportd.conf", f"[Daemon]\nClassifier={classifier}\n{daemon}")
        for name, match in services.items():
            self.configure(name, match, options=options)
        self.daemon = start_daemon("--config", configuration.directory)
        self.workers = []
        self.client = harness.udp_client(ADDRESS)

    def configure(self, name, match, **options):
        self.configuration.service(name, section(
            match, mode=self.modes.get(name, "quic-lb"), user=self.users.get(name, "root"),
            **options))

    def worker(self, service, instance="", uid=0, **options):
        os.seteuid(uid)  # the daemon asks the kernel who connects
        try:
            worker = self.daemon.worker(service=service, instance=instance, **options)
        finally:
            os.seteuid(0)
        for sockets in worker.sockets:
            for each in sockets.values():
                each.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_OCTETS)
        self.workers.append(worker)
        return worker

    def leave(self, worker):
        self.workers.remove(worker)
        worker.leave()

    def counters(self, service):
        return self.daemon.status(service)["listeners"][0]

    def share(self):
        shares = self.daemon.status()["shares"]
        assert len(shares) == 1
        return shares[0]

    def all_counters(self):
        return {s["name"]: s["listeners"][0] for s in self.daemon.status()["services"]
                if s["listeners"]}

    def exchange(self, packets, undelivered=0):
        """
        Sends the packets; undelivered: so many come to no worker. Returns for each its worker, and
        for each service by what its counters rose, without those that did not.
        """
        before = self.all_counters()
        for octets in packets:
            self.client.send(octets)

        def rises():
            now = self.all_counters()
            return {name: {key: value - before[name][key] for key, value in now[name].items()
                           if isinstance(value, int) and key != "switched" and
                           key in before[name] and value != before[name][key]}
                    for name in now if name in before}

        received = []

        def done():
            received.extend(self.receive_now())
            return len(received) >= len(packets) - undelivered
        harness.poll_until(done, f"{len(packets) - undelivered} packets are received")
        assert len(received) == len(packets) - undelivered
        where = []
        for octets in packets:
            found = [each for each in received if each[1] == octets]
            if found:
                received.remove(found[0])
            where.append(found[0][0] if found else None)
        assert not received
        assert self.client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        return where, rises()

    def receive_now(self):
        received = []
        for worker in self.workers:
            for sockets in worker.sockets:
                for each in sockets.values():
                    while True:
                        try:
                            received.append((worker, each.recv(65536)))
                        except BlockingIOError:
                            break
        return received

    def close(self):
        self.client.close()


def maker(worker):
    """IDs as the worker's server makes them."""
    return quic.CidMaker(worker.listeners[0])


def short(cid):
    return quic.short_packet(cid, os.urandom(8), size=100)


def new_connections(count):
    return [quic.initial(cid) for cid in quic.unknown_ids(count)]


__all__ = ["ADDRESS", "NOT_DELIVERED", "SharePlane", "maker", "new_connections", "section", "short"]
