# SPDX-License-Identifier: BSD-2-Clause
"""Which worker gets what: shares by weight, flows that stay, and how little moves on scaling."""
import socket
import struct
import time

import pytest

import harness

PORT = 8080
ADDRESS = ("127.0.0.1", PORT)


def exchange(clients, workers, where, sequence):
    """One datagram from each client, see collect(); few at a time, for receive buffers are finite."""
    received = []
    for start in range(0, len(clients), 100):
        batch = clients[start:start + 100]
        for i, client in enumerate(batch, start):
            client.send(b"%d %d" % (i, sequence))
        received += collect(len(batch), workers, where, sequence)
    return received


def collect(count, workers, where, sequence):
    """
    Receives count datagrams of as many flows, each at the worker that the flow had before. where:
    flow's number to worker, extended here; the worker of a flow may change when it is not in workers.
    """
    received = harness.receive_datagrams(workers, count)
    seen = set()
    for worker, data, _ in received:
        flow, number = (int(word) for word in data.split())
        assert number == sequence
        assert flow not in seen, "a datagram came twice"
        seen.add(flow)
        if where.get(flow) in workers:
            assert where[flow] is worker, f"flow {flow} changed its worker while that one lived"
        where[flow] = worker
    return received


def test_flows_stay_while_workers_come_and_go(start_daemon):
    """200 UDP flows, workers 1 to 8 to 3, datagrams under way at every change: none is lost."""
    daemon = start_daemon("--listen", f"dns=udp://127.0.0.1:{PORT}")
    clients = [harness.udp_client(ADDRESS) for _ in range(200)]
    others = []  # kept open: a port that comes again would be an old flow, not a new one
    where = {}
    sequence = 0
    sent = received = 0

    workers = [daemon.worker(service="dns", instance="w0")]
    while len(workers) < 8:
        received += len(exchange(clients, workers, where, sequence))
        sequence += 1
        for i, client in enumerate(clients[:100]):
            client.send(b"%d %d" % (i, sequence))
        workers.append(daemon.worker(service="dns", instance=f"w{len(workers)}"))
        for i, client in enumerate(clients[100:], 100):
            client.send(b"%d %d" % (i, sequence))
        received += len(collect(200, workers, where, sequence))
        sequence += 1
        # The first worker keeps all 200, so let each newcomer have flows of its own.
        new = [harness.udp_client(ADDRESS) for _ in range(25)]
        for i, client in enumerate(new, 200 + len(others)):
            client.send(b"%d %d" % (i, sequence))
        received += len(collect(25, workers, where, sequence))
        sequence += 1
        others += new
        sent += 425
    assert {where[flow] for flow in range(200)} == {workers[0]}
    assert len(set(where.values())) >= 4

    clients += others
    n = len(clients)
    while len(workers) > 3:
        leaving = workers.pop(0)
        for i, client in enumerate(clients[:100]):
            client.send(b"%d %d" % (i, sequence))
        leaving.drain()
        for i, client in enumerate(clients[100:200], 100):
            client.send(b"%d %d" % (i, sequence))
        # A draining worker keeps its flows ...
        received += len(collect(200, workers + [leaving], where, sequence))
        sequence += 1
        received += len(exchange(clients, workers + [leaving], where, sequence))
        sequence += 1
        # ... but gets no new one.
        new = [harness.udp_client(ADDRESS) for _ in range(50)]
        for client in new:
            client.send(b"new")
        received += len(harness.receive_datagrams(workers, 50))
        others += new
        sent += 250 + n
        leaving.leave()
    received += len(exchange(clients, workers, where, sequence))
    sent += n
    assert sent == received
    assert {where[flow] for flow in range(n)} <= set(workers)
    harness.close_all(clients + others)


def accept_all(listeners, count):
    """
    Accepts until count connections are there: [(listener's index, connection, client's address)]. A
    client may be connected some time before its connection can be accepted.
    """
    accepted = []
    end = time.monotonic() + harness.DEADLINE
    while len(accepted) < count:
        left = end - time.monotonic()
        assert left > 0, f"{len(accepted)} of {count} connections"
        readable = harness.wait_readable(listeners, left)
        for listener in readable:
            connection, sender = listener.accept()
            accepted.append((listeners.index(listener), connection, sender))
    for listener in listeners:
        with pytest.raises(BlockingIOError):
            listener.accept()
    return accepted


def where_new_connections_go(workers, ports):
    """Client port to worker, of one new connection from each of these ports."""
    where = {}
    linger = struct.pack("ii", 1, 0)
    listeners = [worker.socket for worker in workers]
    for start in range(0, len(ports), 200):
        batch = ports[start:start + 200]
        clients = [harness.tcp_client(ADDRESS, source=("127.0.0.1", port)) for port in batch]
        for index, connection, sender in accept_all(listeners, len(batch)):
            connection.close()
            assert sender[1] not in where
            where[sender[1]] = workers[index]
        for client in clients:
            # A reset leaves no TIME_WAIT behind, so the port can be used again at once.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            client.close()
    assert sorted(where) == sorted(ports)
    return where


def test_scaling_moves_few_new_connections(start_daemon):
    """
    The same 4-tuple again: of 2,000, the eighth worker takes its share (1/8, so 250; six standard
    deviations are 89) and hardly anything else moves; when five go, the others keep what they had.
    """
    ports = range(20000, 22000)
    harness.sysctl("net/ipv4/ip_local_port_range", "40000 60000")
    daemon = start_daemon("--listen", f"web=tcp://127.0.0.1:{PORT}")
    workers = [daemon.worker(instance=f"w{i}") for i in range(7)]
    seven = where_new_connections_go(workers, ports)
    workers.append(daemon.worker(instance="w7"))
    eight = where_new_connections_go(workers, ports)
    to_new = sum(eight[port] is workers[7] for port in ports)
    moved = sum(eight[port] is not seven[port] for port in ports)
    assert 161 <= to_new <= 339
    assert moved - to_new <= 200, "old workers changed places among each other"

    staying = workers[:3]
    for worker in workers[3:]:
        worker.leave()
    three = where_new_connections_go(staying, ports)
    stayed = [port for port in ports if eight[port] in staying]
    moved = sum(three[port] is not eight[port] for port in stayed)
    assert moved <= len(stayed) * 0.25, f"{moved} of {len(stayed)} moved though their worker stayed"


def test_weights_hold_over_100000_connections(start_daemon, flood):
    """Weights 1:3 within 2 percentage points; one standard deviation is 0.14."""
    daemon = start_daemon("--listen", f"web=tcp://127.0.0.1:{PORT}")
    light = daemon.worker(instance="light", weight=100)
    heavy = daemon.worker(instance="heavy", weight=300)
    accepted = [0, 0]
    # Batches that fit the accept queues; each from an address of its own, so no 4-tuple comes twice.
    for batch in range(100):
        with flood(f"127.0.1.{batch + 1}", PORT, 1000):
            for index, connection, _ in accept_all([light.socket, heavy.socket], 1000):
                connection.close()
                accepted[index] += 1
    assert sum(accepted) == 100000
    assert 0.23 <= accepted[0] / 100000 <= 0.27


def accept_shares(listeners, address):
    """How many of 200 new connections each listener has got."""
    clients = [harness.tcp_client(address) for _ in range(200)]
    shares = [0] * len(listeners)
    for index, connection, _ in accept_all(listeners, 200):
        connection.close()
        shares[index] += 1
    harness.close_all(clients)
    return shares


def test_each_protocol_and_address_has_its_own_group(start_daemon, configuration):
    configuration.service("web", f"""[Service]
AllowUser=root
[Listener any]
ListenStream=0.0.0.0:{PORT}
[Listener any6]
ListenStream=[::]:{PORT}
BindIPv6Only=ipv6-only
[Listener dual]
ListenStream=[::]:{PORT + 1}
[Listener datagram]
ListenDatagram=[::]:{PORT}
""")
    daemon = start_daemon("--config", configuration.directory)
    first = daemon.worker(instance="first")
    second = daemon.worker(instance="second")
    assert sorted(first.sockets[0]) == ["any", "any6", "datagram", "dual"]
    for name, address in [("any", ("127.0.0.1", PORT)), ("any6", ("::1", PORT)),
                          ("dual", ("127.0.0.1", PORT + 1)), ("dual", ("::1", PORT + 1))]:
        shares = accept_shares([first.sockets[0][name], second.sockets[0][name]], address)
        assert min(shares) >= 50, "of two equal workers; 100 are expected, the deviation is 7"
    first.leave()
    second.leave()


def test_killed_daemon_leaves_traffic_as_it_was(start_daemon):
    """Packets never pass through the daemon: program and maps live as long as the group."""
    daemon = start_daemon("--listen", f"web=tcp://127.0.0.1:{PORT}",
                          "--listen", f"web=udp://127.0.0.1:{PORT}")
    workers = [daemon.worker(instance=f"w{i}") for i in range(2)]
    daemon.killed = True
    daemon.process.process.kill()
    daemon.process.wait()
    harness.end_keeper(daemon.runtime)
    listeners = [next(s for s in worker.sockets[0].values() if s.type == socket.SOCK_STREAM)
                 for worker in workers]
    assert min(accept_shares(listeners, ADDRESS)) >= 50
    # Another daemon can't know these workers: it leaves the address to them, and says so.
    another = harness.run(harness.REUSEPORTD, "--listen", f"web=tcp://127.0.0.1:{PORT}",
                          "--runtime-directory", daemon.runtime, "--state-directory", daemon.state,
                          "--user", harness.USER, check=False)
    assert another.returncode == 1
    assert f"cannot open tcp://127.0.0.1:{PORT}: bind: Address already in use" in another.stderr
    assert "workers of an earlier reuseportd" in another.stderr
    assert min(accept_shares(listeners, ADDRESS)) >= 50


def test_specific_address_has_its_own_group_beside_the_wildcard(start_daemon, configuration):
    configuration.service("web", f"""[Service]
AllowUser=root
[Listener any]
ListenStream=0.0.0.0:{PORT}
[Listener one]
ListenStream=127.0.0.1:{PORT}
""")
    daemon = start_daemon("--config", configuration.directory)
    worker = daemon.worker()
    for name, host in [("one", "127.0.0.1"), ("any", "127.0.0.2")]:
        with harness.tcp_client((host, PORT)):
            connection, _ = worker.sockets[0][name].accept()
            assert connection.getsockname() == (host, PORT)
            connection.close()


def test_connections_are_counted_once_each_and_resets_not_at_all(start_daemon):
    daemon = start_daemon("--listen", f"web=tcp://127.0.0.1:{PORT}")
    workers = [daemon.worker(instance=f"w{i}") for i in range(2)]
    count = {worker.slot: 0 for worker in workers}
    for round_number in range(50):
        client = harness.tcp_client(("127.0.0.1", PORT))
        worker = harness.wait_readable(workers, harness.DEADLINE)[0]
        connection, _ = worker.socket.accept()
        count[worker.slot] += 1
        # Closed with data unread: a reset, and then segments that find no connection.
        client.send(b"unread")
        harness.wait_readable([connection], harness.DEADLINE)
        connection.close()
        client.close()
    status = daemon.status()["services"][0]
    assert {w["slot"]: w["new_connections"] for w in status["workers"]} == count
    assert status["listeners"][0]["new_connections"] == 50
    assert status["listeners"][0]["fallback"] == status["listeners"][0]["dropped"] == 0
