# SPDX-License-Identifier: BSD-2-Clause
"""With no worker at all the standby socket holds what comes, and the next worker gets all of it."""
import os
import signal
import socket

import pytest

import harness

PORT = 8080
N = 100
SO_DETACH_REUSEPORT_BPF = 68


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_connections_wait_for_a_worker(start_daemon, host):
    address = (host, PORT)
    name = f"[{host}]" if ":" in host else host
    daemon = start_daemon("--listen", f"web=tcp://{name}:{PORT}")
    clients = [harness.tcp_client(address, b"request %d\n" % i) for i in range(N)]
    readable = harness.wait_readable(clients, 0)
    assert not readable, "a client was answered or reset while there was no worker"

    worker = daemon.worker()
    harness.answer_all(worker.socket, N, b"worker")
    harness.check_answers(clients, b"worker")
    harness.close_all(clients)


def test_connections_wait_again_when_the_last_worker_has_gone(start_daemon):
    address = ("127.0.0.1", PORT)
    daemon = start_daemon("--listen", f"web=tcp://127.0.0.1:{PORT}")
    for round_number in range(3):
        worker = daemon.worker()
        clients = [harness.tcp_client(address, b"request %d\n" % i) for i in range(N)]
        worker.leave()
        later = [harness.tcp_client(address, b"request %d\n" % i) for i in range(N, 2 * N)]
        worker = daemon.worker()
        harness.answer_all(worker.socket, 2 * N, b"round%d" % round_number)
        harness.check_answers(clients + later, b"round%d" % round_number)
        harness.close_all(clients + later)
        worker.leave()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_datagrams_wait_for_a_worker(start_daemon, host):
    address = (host, PORT)
    name = f"[{host}]" if ":" in host else host
    daemon = start_daemon("--listen", f"dns=udp://{name}:{PORT}")
    clients = [harness.udp_client(address) for _ in range(N)]
    for i, client in enumerate(clients):
        client.send(b"query %d" % i)

    worker = daemon.worker(service="dns")
    received = harness.receive_datagrams([worker], N)
    assert sorted(data for _, data, _ in received) == sorted(b"query %d" % i for i in range(N))
    for _, data, sender in received:
        worker.socket.sendto(b"answer to " + data, sender)
    for i, client in enumerate(clients):
        assert client.recv(2048) == b"answer to query %d" % i
    # The flows go on at the same worker.
    for i, client in enumerate(clients):
        client.send(b"again %d" % i)
    received = harness.receive_datagrams([worker], N)
    assert sorted(data for _, data, _ in received) == sorted(b"again %d" % i for i in range(N))
    harness.close_all(clients)


def test_refusing_listener_resets_and_rejects_at_once(start_daemon, configuration):
    configuration.service("web", f"""[Service]
[Listener http]
ListenStream=127.0.0.1:{PORT}
Standby=refuse
[Listener dns]
ListenDatagram=127.0.0.1:{PORT}
Standby=refuse
""")
    daemon = start_daemon("--config", configuration.directory)
    with pytest.raises(ConnectionRefusedError):
        harness.tcp_client(("127.0.0.1", PORT))
    client = harness.udp_client(("127.0.0.1", PORT))
    client.send(b"query")
    with pytest.raises(ConnectionRefusedError):
        client.recv(2048)
    client.close()

    worker = daemon.worker()
    sockets = worker.sockets[0]
    with harness.tcp_client(("127.0.0.1", PORT), b"request 0\n") as client:
        harness.answer_all(sockets["http"], 1, b"worker")
        harness.check_answers([client], b"worker")
    client = harness.udp_client(("127.0.0.1", PORT))
    client.send(b"query")
    readable = harness.wait_readable([sockets["dns"]], harness.DEADLINE)
    assert readable and sockets["dns"].recv(2048) == b"query"
    client.close()
    worker.leave()
    with pytest.raises(ConnectionRefusedError):
        harness.tcp_client(("127.0.0.1", PORT))


def test_sockets_are_as_promised(start_daemon):
    """Non-blocking, close-on-exec, listening, of the daemon's group, their filter locked."""
    daemon = start_daemon("--listen", f"web=tcp://127.0.0.1:{PORT}",
                          "--listen", f"web=udp://127.0.0.1:{PORT}")
    worker = daemon.worker(n_workers=3, pidfd=True)
    assert len(set(worker.slots)) == 3
    for sockets in worker.sockets:
        assert len(sockets) == 2
        for name, each in sockets.items():
            assert each.getsockname() == ("127.0.0.1", PORT)
            assert not each.get_inheritable()
            assert each.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 1
            assert each.getsockopt(socket.SOL_SOCKET, 44) == 1  # SO_LOCK_FILTER
            if each.type == socket.SOCK_STREAM:
                assert each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1


def test_what_waits_too_long_is_given_up(start_daemon, configuration):
    configuration.service("web", f"""[Service]
AllowUser=root
[Listener stream]
ListenStream=127.0.0.1:{PORT}
StandbyTimeoutSec=1
[Listener datagram]
ListenDatagram=127.0.0.1:{PORT}
StandbyTimeoutSec=1
""")
    daemon = start_daemon("--config", configuration.directory)
    address = ("127.0.0.1", PORT)

    def expired():
        return {entry["name"]: entry["expired"] for entry in daemon.status("web")["listeners"]}

    # Twice: what a worker took in between must not count as what waits.
    for round_number in (1, 2):
        clients = [harness.tcp_client(address, b"request\n") for _ in range(20)]
        for _ in range(20):
            with harness.udp_client(address) as sender:
                sender.send(b"too late")
        harness.poll_until(lambda: expired() == {"stream": 20 * round_number,
                                                 "datagram": 20 * round_number},
                           "all that waited is given up")
        for client in clients:
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        harness.close_all(clients)

        worker = daemon.worker()
        late = harness.udp_client(address)
        late.send(b"in time")
        datagrams = worker.sockets[0]["datagram"]
        harness.wait_readable([datagrams], harness.DEADLINE)
        assert datagrams.recv(100) == b"in time"
        with pytest.raises(BlockingIOError):
            datagrams.recv(100)
        late.close()
        worker.leave()


def test_what_comes_to_the_standby_while_a_worker_is_active_moves_on(start_daemon):
    """
    A worker has detached the program and the daemon, which would attach it again, stands still: the
    kernel chooses among all members by its own hash, the standby among them.
    """
    daemon = start_daemon("--listen", f"web=tcp://127.0.0.1:{PORT}")
    worker = daemon.worker()
    harness.freeze(daemon.pid)
    try:
        worker.socket.setsockopt(socket.SOL_SOCKET, SO_DETACH_REUSEPORT_BPF, 1)
        clients = []
        for i in range(60):
            client = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", PORT))  # on the loopback done at once, or dropped
            clients.append(client)
        connected = [client for client in clients if is_connected(client)]
        accepted = harness.accept_now(worker.socket)
        assert 0 < len(accepted) < len(connected) < 60, "worker, standby and sink have some each"
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    # The sink's have come again by then: they repeat their SYN.
    accepted += [harness.accept(worker.socket) for _ in range(60 - len(accepted))]
    ports = sorted(connection.getpeername()[1] for connection in accepted)
    assert ports == sorted(client.getsockname()[1] for client in clients)
    harness.close_all(clients + accepted)


def is_connected(client):
    try:
        client.getpeername()
    except OSError:
        return False
    return True
