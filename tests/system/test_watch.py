# SPDX-License-Identifier: BSD-2-Clause
"""What the daemon sees by itself: the standby in use, a program that a worker took away."""
import re
import socket
import time

import pytest

import harness
from test_monitor import Monitor

PORT = 8080
ADDRESS = ("127.0.0.1", PORT)
SO_DETACH_REUSEPORT_BPF = 68


def standby_lines(daemon):
    return [line for line in daemon.process.output().splitlines() if "nobody is active" in line]


def test_use_of_the_standby_is_told_once_until_somebody_was_active(start_daemon):
    daemon = start_daemon("--listen", f"web=tcp://127.0.0.1:{PORT}")
    with Monitor(daemon) as monitor:
        monitor.snapshot()
        clients = [harness.tcp_client(ADDRESS, b"request 0\n")]
        event = monitor.event()
        assert (event["kind"], event["service"], event["listener"]) == ("standby_used", "web", "tcp")
        clients.append(harness.tcp_client(ADDRESS, b"request 1\n"))
        time.sleep(2.5)
        worker = daemon.worker(instance="web@1")
        assert [e["kind"] for e in monitor.events(2)] == ["registered", "ready"]
        harness.answer_all(worker.socket, 2, b"worker")
        harness.check_answers(clients, b"worker")
        time.sleep(2.5)
        assert len(standby_lines(daemon)) == 1
        worker.leave()
        clients.append(harness.tcp_client(ADDRESS, b"request 2\n"))
        assert [e["kind"] for e in monitor.events(2)] == ["gone", "standby_used"]
    harness.close_all(clients)
    assert standby_lines(daemon) == ["web: listener tcp: nobody is active, what comes waits in the standby"] * 2


def datagrams(count):
    clients = [harness.udp_client(ADDRESS) for _ in range(count)]
    for client in clients:
        client.send(b"datagram")
    harness.close_all(clients)


def healed(daemon):
    """Packets that were lost, of each time."""
    return [int(n) for n in re.findall(r"from the group: (\d+) packets", daemon.process.output())]


@pytest.mark.parametrize("transport", ["udp", "quic"])
def test_program_that_a_worker_took_away_is_told(start_daemon, configuration, transport):
    kind = {"udp": "Datagram", "quic": "QUIC"}[transport]
    configuration.service("web", f"[Service]\nAllowUser=root\n[Listener l]\nListen{kind}=127.0.0.1:{PORT}\n")
    daemon = start_daemon("--config", configuration.directory)
    worker = daemon.worker(instance="web@1")
    with Monitor(daemon) as monitor:
        monitor.snapshot()
        worker.socket.setsockopt(socket.SOL_SOCKET, SO_DETACH_REUSEPORT_BPF, 0)
        datagrams(100)
        event = monitor.event()
        assert (event["kind"], event["service"], event["listener"]) == ("healed", "web", "l")
    lost, = healed(daemon)
    assert 1 <= lost <= 100
    datagrams(100)
    time.sleep(2.5)
    assert healed(daemon) == [lost]


def test_what_the_program_drops_itself_is_no_sign(start_daemon, configuration):
    """QUIC that is none goes to the same socket."""
    configuration.service("web", f"[Service]\nAllowUser=root\n[Listener h3]\nListenQUIC=127.0.0.1:{PORT}\n")
    daemon = start_daemon("--config", configuration.directory)
    daemon.worker(instance="web@1")
    client = harness.udp_client(ADDRESS)
    end = time.monotonic() + 4
    sent = 0
    while time.monotonic() < end:
        client.send(b"\x00")
        sent += 1
        time.sleep(0.002)
    client.close()
    assert daemon.status("web")["listeners"][0]["invalid"] == sent
    time.sleep(1.5)
    assert healed(daemon) == []


def test_multicast_of_which_all_have_a_copy_is_no_sign(start_daemon):
    daemon = start_daemon("--listen", f"web=udp://0.0.0.0:{PORT}")
    worker = daemon.worker(instance="web@1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        for _ in range(20):
            client.sendto(b"everybody", ("224.0.0.1", PORT))
    assert [worker.socket.recv(100) for _ in range(20)] == [b"everybody"] * 20
    time.sleep(2.5)
    assert healed(daemon) == []
