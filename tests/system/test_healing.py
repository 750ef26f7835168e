# SPDX-License-Identifier: BSD-2-Clause
"""
Who holds a socket of a group has power over the group: detach its program, clear SO_REUSEPORT,
connect(). The daemon puts it right, and then nobody loses anything. How soon is not asserted here
beyond a limit; what is lost until then is lost.
"""
import socket
import time

import pytest

import harness

PORT = 8080
ADDRESS = ("127.0.0.1", PORT)
N = 200
SO_DETACH_REUSEPORT_BPF = 68


class Flows:
    """Batches of new flows, each datagram marked with its batch; clients stay open."""

    def __init__(self, host):
        self.address = (host, PORT)
        self.clients = []
        self.batch = 0

    def send(self):
        self.batch += 1
        clients = [harness.udp_client(self.address) for _ in range(N)]
        for i, client in enumerate(clients):
            client.send(b"%d %d" % (self.batch, i))
        self.clients += clients
        return clients

    def received(self, workers, seconds):
        """Flow's number to worker, of this batch, when all have come or the time is over."""
        where = {}
        end = time.monotonic() + seconds
        while len(where) < N and time.monotonic() < end:
            readable = harness.wait_readable(workers, 0.05)
            for worker in readable:
                for _, data, _ in harness.receive_now(worker):
                    batch, flow = (int(word) for word in data.split())
                    if batch == self.batch:
                        assert flow not in where
                        where[flow] = worker
        return where


def tamper(manner, victim):
    if manner == "detach":
        victim.socket.setsockopt(socket.SOL_SOCKET, SO_DETACH_REUSEPORT_BPF, 0)
    elif manner == "clear":
        victim.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)
    else:
        host = victim.socket.getsockname()[0]
        victim.socket.connect((host, 9))


@pytest.mark.parametrize("manner", ["detach", "clear", "connect"])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_group_is_right_again(start_daemon, request, host, manner):
    name = f"[{host}]" if ":" in host else host
    daemon = start_daemon("--listen", f"dns=udp://{name}:{PORT}")
    workers = [daemon.worker(service="dns", instance=f"w{i}") for i in range(3)]
    flows = Flows(host)
    request.addfinalizer(lambda: harness.close_all(flows.clients))
    old = flows.send()
    where = flows.received(workers, harness.DEADLINE)
    assert len(where) == N and set(where.values()) == set(workers)

    victim = workers[1]
    tamper(manner, victim)
    right = [w for w in workers if manner != "connect" or w is not victim]

    def healed():
        flows.send()
        found = flows.received(workers, harness.PATIENCE)
        return len(found) == N and set(found.values()) == set(right)

    harness.poll_until(healed, "new flows reach the right workers, all of them", 20)
    for _ in range(3):
        flows.send()
        found = flows.received(workers, harness.DEADLINE)
        assert len(found) == N
        assert set(found.values()) == set(right)
    # Flows of the others are where they were.
    kept = [flow for flow in range(N) if where[flow] in right and where[flow] is not victim]
    flows.batch += 1
    for flow in kept:
        old[flow].send(b"%d %d" % (flows.batch, flow))
    for worker, data, _ in harness.receive_datagrams(right, len(kept)):
        assert where[int(data.split()[1])] is worker
    # And the group still grows.
    workers.append(daemon.worker(service="dns", instance="newcomer"))
    flows.send()
    found = flows.received(workers, harness.DEADLINE)
    assert len(found) == N and set(found.values()) == {*right, workers[-1]}


@pytest.mark.parametrize("manner", ["detach", "clear"])
def test_listening_group_is_right_again(start_daemon, manner):
    daemon = start_daemon("--listen", f"web=tcp://127.0.0.1:{PORT}")
    workers = [daemon.worker(instance=f"w{i}") for i in range(3)]
    tamper(manner, workers[1])

    def batch(seconds):
        """Connections that each worker got, and whether all were got."""
        clients = [harness.tcp_client(ADDRESS) for _ in range(N)]
        names = {client.getsockname() for client in clients}
        counts = {worker: 0 for worker in workers}
        end = time.monotonic() + seconds
        while sum(counts.values()) < N and time.monotonic() < end:
            readable = harness.wait_readable(workers, 0.05)
            for worker in readable:
                connection, sender = worker.socket.accept()
                counts[worker] += sender in names
                connection.close()
        harness.close_all(clients)
        return counts

    harness.poll_until(
        lambda: sum((found := batch(harness.PATIENCE)).values()) == N and min(found.values()) > 0,
        "new connections reach all workers and nobody else", 20)
    for _ in range(3):
        found = batch(harness.DEADLINE)
        assert sum(found.values()) == N and min(found.values()) > 0
