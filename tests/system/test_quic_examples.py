# SPDX-License-Identifier: BSD-2-Clause
"""The example QUIC server and client on their own: what the scenarios of steering build upon."""
import socket

import pytest

import harness
import quic_programs
from quic_programs import QuicClient, QuicServer, check, run_client

ADDRESS = ("127.0.0.1", 4433)


@pytest.fixture(scope="module")
def certificate(system, tmp_path_factory):
    quic_programs.require_programs()
    return quic_programs.Certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
def start(certificate, netns, tmp_path):
    """Starts a server of its own on this address, without a daemon."""
    servers = []

    def start(*arguments, address=ADDRESS):
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as bound:
            bound.bind(address)
            server = QuicServer(certificate, tmp_path / f"server-{len(servers)}.log", *arguments,
                                socket=bound)
        servers.append(server)
        return server

    yield start
    for server in servers:
        if server.process.returncode is None:
            server.kill()


def test_server_without_a_daemon_answers_50_connections(start):
    server = start()
    account = run_client(ADDRESS, "--connections", 50, "--script", "request:4", "--streams", 2)
    check(account, connections=50, requests_sent=200, answered=200)
    assert account["workers"] == [{"slot": -1, "pid": server.pid, "connections": 50}]
    counters = server.stop()
    assert (counters["connections"], counters["handshakes"], counters["requests"]) == (50, 50, 200)
    assert counters["resets_sent"] == counters["retries_sent"] == 0


def test_thousand_connections_rebind_and_migrate(start):
    """
    One worker: whatever is lost here is lost by the programs and not by steering. The migration
    comes first, since ngtcp2 0.12.1 closes a connection that migrates soon after a rebinding.
    """
    server = start()
    client = QuicClient(ADDRESS, "--connections", 1000, "--local-addresses",
                        "127.0.0.1,127.0.0.2", "--script",
                        "request,wait,migrate,request:2,wait,rebind,request:2,wait")
    try:
        check(client.wait_ready(), connections=1000, answered=1000)
        client.go()
        check(client.wait_ready(), connections=1000, answered=3000, migrations_completed=1000)
        client.go()
        check(client.wait_ready(), connections=1000, answered=5000, rebindings=1000)
        assert server.counters()["open"] == 1000
        client.go()
        check(client.finish(), connections=1000, requests_sent=5000, answered=5000,
              rebindings=1000, migrations_completed=1000)
    finally:
        client.cleanup()
    assert server.stop()["path_changes"] >= 2000


@pytest.mark.parametrize("address", [("127.0.0.3", 4433), ("::1", 4433)])
def test_answer_comes_from_the_address_that_was_asked(start, address):
    """The client's sockets are connected: they take nothing from anywhere else."""
    start(address=("::" if ":" in address[0] else "0.0.0.0", 4433))
    check(run_client(address, "--connections", 5, "--script", "request,migrate,request"),
          connections=5, answered=10, migrations_completed=5)


def test_retry(start):
    server = start("--retry")
    check(run_client(ADDRESS, "--connections", 20), connections=20, answered=20, retries=20)
    counters = server.stop()
    assert (counters["retries_sent"], counters["connections"]) == (20, 20)


def test_token_of_an_earlier_connection_saves_the_retry(start, tmp_path):
    server = start("--retry")
    sessions = tmp_path / "sessions"
    check(run_client(ADDRESS, "--connections", 10, "--save-session", sessions), connections=10,
          answered=10, retries=10, sessions_saved=10)
    check(run_client(ADDRESS, "--connections", 10, "--resume", sessions), connections=10,
          answered=10, retries=0, resumed=10)
    assert server.stop()["retries_sent"] == 10


def test_early_data(start, tmp_path):
    server = start()
    sessions = tmp_path / "sessions"
    check(run_client(ADDRESS, "--connections", 20, "--save-session", sessions), connections=20,
          answered=20, early_data_accepted=0)
    check(run_client(ADDRESS, "--connections", 20, "--resume", sessions, "--early-data"),
          connections=20, answered=20, early_data_accepted=20)
    assert server.stop()["early_data"] == 20


def test_early_data_of_a_server_that_does_not_want_it_is_sent_again(start, tmp_path):
    sessions = tmp_path / "sessions"
    server = start()
    check(run_client(ADDRESS, "--connections", 5, "--save-session", sessions), connections=5,
          answered=5)
    server.stop()
    server = start("--no-early-data")
    check(run_client(ADDRESS, "--connections", 5, "--resume", sessions, "--early-data"),
          connections=5, answered=5, requests_sent=5, early_data_rejected=5)
    assert server.stop()["early_data"] == 0


def test_initial_in_two_datagrams(start):
    start()
    check(run_client(ADDRESS, "--connections", 20, "--split-initial"), connections=20, answered=20)


def test_second_datagram_is_held_back_until_told(start):
    server = start()
    client = QuicClient(ADDRESS, "--connections", 20, "--split-initial", "--hold-second")
    try:
        check(client.wait_ready(), connections=20, handshakes_completed=0, answered=0)
        counters = harness.poll_until(
            lambda: server.counters() if server.counters()["connections"] == 20 else None,
            "20 first halves are here")
        assert counters["handshakes"] == 0
        client.go()
        check(client.finish(), connections=20, answered=20)
    finally:
        client.cleanup()


def test_second_datagram_is_delayed(start):
    start()
    check(run_client(ADDRESS, "--connections", 20, "--delay-second", 300), connections=20,
          answered=20)


def test_unknown_version_is_negotiated(start):
    server = start()
    check(run_client(ADDRESS, "--connections", 10, "--version", "0x1a2a3a4a"), connections=10,
          answered=10, version_negotiations=10)
    assert server.stop()["version_negotiations_sent"] == 10


def test_server_that_ends_tells_its_clients(start):
    server = start()
    client = QuicClient(ADDRESS, "--connections", 10, "--script", "request,wait,request")
    try:
        check(client.wait_ready(), connections=10, answered=10)
        server.stop()
        check(client.finish(), connections=10, answered=10, connections_lost=10)
    finally:
        client.cleanup()


def test_again_makes_new_connections_until_told(start):
    server = start()
    client = QuicClient(ADDRESS, "--connections", 8, "--script", "request:2,again")
    try:
        client.wait_ready()
        harness.poll_until(lambda: server.counters()["connections"] >= 40, "40 connections")
        client.go()
        account = client.finish()
        check(account, connections=server.stop()["connections"],
              answered=2 * account["connections"])
        assert account["connections"] >= 40
    finally:
        client.cleanup()


def test_several_streams_at_once_until_told(start):
    server = start()
    client = QuicClient(ADDRESS, "--connections", 4, "--streams", 30, "--interval", 1, "--script",
                        "request:*,migrate,request:200")
    try:
        client.wait_ready()
        harness.poll_until(lambda: server.counters()["requests"] >= 400, "400 requests")
        client.go()
        account = client.finish()
        check(account, connections=4, answered=account["requests_sent"], migrations_completed=4)
        assert server.stop()["requests"] == account["requests_sent"]
    finally:
        client.cleanup()


def test_server_ends_idle_connections(start):
    """The client says nothing for longer than the server's limit, and both let go in silence."""
    server = start("--idle-timeout", "1")
    account = run_client(ADDRESS, "--connections", 3, "--script", "request,sleep:3000,request")
    check(account, connections=3, answered=3, connections_lost=3)
    harness.poll_until(lambda: server.counters()["open"] == 0, "the server has none any more")
