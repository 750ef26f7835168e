# SPDX-License-Identifier: BSD-2-Clause
"""
What waits in a worker's accept queue, or is still in its handshake, survives the worker: another one
gets it, with net.ipv4.tcp_migrate_req=0, because the program is of the select-or-migrate kind.
The three states are those of Linux: established and queued; TCP_SYN_RECV, a socket in the queue
whose final ACK is missing (Fast Open makes it); TCP_NEW_SYN_RECV, a request without a socket.
"""
import pathlib
import socket

import pytest

import harness

PORT = 8080
N = 20
ADDRESSES = {"ipv4": "127.0.0.1", "ipv6": "::1"}
TCP_LISTEN = 10
TCP_ESTABLISHED = 1
TCP_SYN_RECV = 3


def url(address):
    return f"[{address}]" if ":" in address else address


def count_states(family, port, remote):
    """Sockets by state in /proc/net/tcp{,6}, those whose local (remote: other) port is this one."""
    states = {}
    name = "/proc/net/tcp6" if family == "ipv6" else "/proc/net/tcp"
    for line in pathlib.Path(name).read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[2 if remote else 1].split(":")[1], 16) == port:
            state = int(fields[3], 16)
            states[state] = states.get(state, 0) + 1
    return states


class FinalAcksLost:
    """Segments to the port that carry ACK without SYN do not arrive while this stands."""

    def __init__(self, family):
        self.command = "ip6tables" if family == "ipv6" else "iptables"

    def rule(self, action):
        harness.run(self.command, "-w", action, "INPUT", "-p", "tcp", "--dport", PORT,
                    "--tcp-flags", "SYN,ACK", "ACK", "-j", "DROP")

    def __enter__(self):
        self.rule("-A")

    def __exit__(self, *_):
        self.rule("-D")


def connect_fast_open(address, request):
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    client = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    # Blocking: returns with the SYN's answer here.
    assert client.sendto(request, socket.MSG_FASTOPEN, address) == len(request)
    client.settimeout(harness.DEADLINE)
    return client


def clients_in_state(state, family, address):
    if state == "established":
        clients = [harness.tcp_client(address) for _ in range(N)]
        harness.poll_until(
            lambda: count_states(family, PORT, False).get(TCP_ESTABLISHED, 0) == N,
            "all handshakes are complete")
        return clients
    if state == "syn_recv":
        clients = [connect_fast_open(address, b"request %d\n" % i) for i in range(N)]
    else:
        clients = [harness.tcp_client(address) for _ in range(N)]
    # To the client each connection is established; the server's side has seen the SYN alone.
    assert count_states(family, PORT, True).get(TCP_ESTABLISHED, 0) == N
    states = count_states(family, PORT, False)
    del states[TCP_LISTEN]
    assert states == {TCP_SYN_RECV: N}
    return clients


def end_worker(manner, worker):
    if manner == "close":
        worker.socket.close()
    elif manner == "shutdown":
        worker.socket.shutdown(socket.SHUT_RD)
    else:
        worker.kill()


@pytest.mark.parametrize("manner", ["close", "shutdown", "sigkill"])
@pytest.mark.parametrize("state", ["established", "syn_recv", "new_syn_recv"])
@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_another_worker_answers_what_waited(start_daemon, family, state, manner):
    address = (ADDRESSES[family], PORT)
    if state == "syn_recv":
        # Data in the SYN without a cookie, on both sides; listeners need no option of their own.
        harness.sysctl("net/ipv4/tcp_fastopen", 0x607)
    daemon = start_daemon("--listen", f"web=tcp://{url(address[0])}:{PORT}")

    make = daemon.worker_process if manner == "sigkill" else daemon.worker
    first = make(instance="first")
    if state == "established":
        clients = clients_in_state(state, family, address)
        second = daemon.worker(instance="second")
        end_worker(manner, first)
    else:
        # The daemon's standby, the first and the second worker listen; only the first is active.
        second = daemon.worker(instance="second", ready=False)
        with FinalAcksLost(family):
            clients = clients_in_state(state, family, address)
            second.ready()
            end_worker(manner, first)
    if state != "syn_recv":  # there it came with the SYN
        for i, client in enumerate(clients):
            client.sendall(b"request %d\n" % i)
    harness.answer_all(second.socket, N, b"second")
    harness.check_answers(clients, b"second")
    harness.close_all(clients)

    # So is what comes later.
    clients = [harness.tcp_client(address, b"request %d\n" % i) for i in range(N)]
    harness.answer_all(second.socket, N, b"second")
    harness.check_answers(clients, b"second")
    harness.close_all(clients)
