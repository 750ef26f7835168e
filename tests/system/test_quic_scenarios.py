# SPDX-License-Identifier: BSD-2-Clause
"""
QUIC as clients see it: real connections (examples/quic-client) to real servers (examples/quic-server)
behind one port, while workers come, go and die and clients move. What is counted is what clients
count: requests answered, connections lost, resets.
"""
import contextlib
import os
import signal

import pytest

import harness
import quic_packets
import quic_programs
from quic_programs import QuicClient, QuicServer, by_slot, check, run_client
from test_quic_hostile import flood_sent, flooder, send_flood  # pylint: disable=unused-import

ADDRESS = ("127.0.0.1", 4433)
LOCAL = "127.0.0.1,127.0.0.2,127.0.0.3"


@pytest.fixture(scope="module")
def certificate(system, tmp_path_factory):
    quic_programs.require_programs()
    return quic_programs.Certificate(tmp_path_factory.mktemp("certificate"))


class Service:
    """A daemon with one QUIC listener, and the workers of its service."""

    def __init__(self, daemon, certificate, directory):
        self.daemon = daemon
        self.certificate = certificate
        self.directory = directory
        self.servers = []

    def start(self, instance, *arguments, wait=True):
        server = QuicServer(self.certificate, self.directory / f"{len(self.servers)}.log",
                            *arguments, path=self.daemon.worker_socket, instance=instance,
                            wait=wait)
        server.instance = instance
        self.servers.append(server)
        return server

    def start_all(self, instances, *arguments):
        servers = [self.start(instance, *arguments, wait=False) for instance in instances]
        for server in servers:
            server.wait_ready()
        return servers

    def drain(self, server):
        self.daemon.call("Drain", service="web", instance=server.instance)

    def cleanup(self):
        for server in self.servers:
            if server.process.returncode is None:
                server.kill()


@pytest.fixture
def start_service(start_daemon, configuration, certificate, tmp_path):
    services = []

    def start(listener=""):
        configuration.service(
            "web", f"[Service]\nAllowUser=root\n[Listener quic]\nListenQUIC=127.0.0.1:4433\n{listener}")
        service = Service(start_daemon("--config", configuration.directory), certificate, tmp_path)
        services.append(service)
        return service

    yield start
    for service in services:
        service.cleanup()


@pytest.fixture
def service(start_service):
    return start_service()


@contextlib.contextmanager
def client(*arguments, **options):
    process = QuicClient(ADDRESS, *arguments, **options)
    try:
        yield process
    finally:
        process.cleanup()


def names(n, first=1):
    return [f"web@{i}" for i in range(first, first + n)]


@pytest.mark.parametrize("mode", ["quic-lb", "quic-lb-plain", "registered"])
def test_thousand_connections_stay_at_their_worker_wherever_the_client_moves(start_service, mode):
    """Every client goes to another address and connection ID, then every one to another port."""
    service = start_service(f"ConnectionID={mode}\n")
    servers = service.start_all(names(4))
    with client("--connections", 1000, "--local-addresses", LOCAL, "--script",
                "request,wait,migrate,request:2,wait,rebind,request:2,wait", timeout=60) as run:
        check(run.wait_ready(), connections=1000, answered=1000)
        run.go()
        check(run.wait_ready(), connections=1000, answered=3000, migrations_completed=1000)
        run.go()
        check(run.wait_ready(), connections=1000, answered=5000, rebindings=1000)
        run.go()
        account = run.finish()
    check(account, connections=1000, requests_sent=5000, answered=5000)
    connections = by_slot(account)
    assert set(connections) == {server.slot for server in servers}
    assert all(150 < n < 350 for n in connections.values()), connections
    for server in servers:
        counters = server.stop()
        assert counters["resets_sent"] == 0
        assert counters["connections"] == counters["handshakes"] == connections[server.slot]
        assert counters["requests"] == 5 * connections[server.slot]
        assert counters["path_changes"] >= 2 * connections[server.slot]


def test_thousand_connections_of_an_opaque_server_survive_new_ports_and_workers(start_service):
    """Nobody knows its IDs. Each is learned from the client's handshake; a new one can't be."""
    service = start_service("ConnectionID=opaque\n")
    servers = service.start_all(names(4))
    with client("--connections", 1000, "--script",
                "request,wait,rebind,request:2,wait,rebind,request:2", timeout=60) as run:
        check(run.wait_ready(), connections=1000, answered=1000)
        servers += service.start_all(names(4, first=5))
        run.go()
        check(run.wait_ready(), connections=1000, answered=3000, rebindings=1000)
        for server in servers[1:4]:
            service.drain(server)
        run.go()
        check(run.finish(), connections=1000, answered=5000, rebindings=2000)
    for server in servers[1:4]:
        assert server.process.wait() == 0
    check(run_client(ADDRESS, "--connections", 100), connections=100, answered=100)
    for server in servers[:1] + servers[4:]:
        server.stop()
    assert sum(server.events("end")[-1]["resets_sent"] for server in servers) == 0


@pytest.mark.parametrize("mode", ["quic-lb", "registered"])
def test_killed_worker_is_told_by_another_and_nobody_else_notices(start_service, mode):
    service = start_service(f"ConnectionID={mode}\n")
    servers = service.start_all(names(4))
    with client("--connections", 400, "--script", "request,wait,request:3") as run:
        before = run.wait_ready()
        check(before, connections=400, answered=400)
        victim = servers[2]
        lost = by_slot(before)[victim.slot]
        assert 40 < lost < 160
        victim.kill()
        # At this very moment, before the daemon has seen anything: new connections.
        check(run_client(ADDRESS, "--connections", 300), connections=300, answered=300)
        run.go()
        account = run.finish()
    check(account, connections=400, answered=400 + 3 * (400 - lost), connections_lost=lost,
          stateless_resets=lost, resets_before_probe=lost)
    others = [server for server in servers if server is not victim]
    assert sum(server.counters()["resets_sent"] for server in others) == lost


@pytest.mark.parametrize("mode, options", [("quic-lb", ()), ("quic-lb", ("--retry",)),
                                           ("registered", ())])
def test_rolling_replacement_of_all_workers_50_times(start_service, mode, options):
    """
    Three kinds of connection at once: 100 that last from the beginning to the end, 50 that live for
    some tenths of a second and move twice, and others one after the other as fast as they come.
    """
    signal.alarm(450 * harness.PATIENCE)  # 200 servers
    service = start_service(f"ConnectionID={mode}\n")
    servers = service.start_all(names(4), *options)
    first = list(servers)
    with client("--connections", 100, "--interval", 50, "--script", "request:*", timeout=120) as old, \
            client("--connections", 50, "--interval", 50, "--local-addresses", LOCAL, "--script",
                   "request:2,migrate,request:2,rebind,request:2,again", timeout=120) as middle, \
            client("--connections", 8, "--script", "request,again", timeout=120) as new:
        for run in (old, middle, new):
            run.wait_ready()
        replaced = 0
        for _ in range(50):
            for i, instance in enumerate(names(4)):
                servers[i] = service.start(instance, *options)
                replaced += 1
            for server in servers:
                harness.poll_until(lambda: server.counters()["handshakes"] > 0, "it has served")
        assert replaced == 200
        for run in (middle, new):
            run.go()
        check_again(middle.finish(), requests=6, least=200, moves=1)
        check_again(new.finish(), requests=1, least=200)
        for server in service.servers[4:200]:
            assert server.process.wait() == 0, server.process.output()
        assert [server.process.returncode for server in first] == [None] * 4
        old.go()
        account = old.finish()
        check(account, connections=100, answered=account["requests_sent"])
        assert account["answered"] >= 100 * 20
    for server in first:
        assert server.process.wait() == 0
    for server in servers:
        server.stop()
    ended = [server.events("end")[-1] for server in service.servers]
    assert len(ended) == 204
    assert sum(counters["resets_sent"] for counters in ended) == 0
    assert sum(counters["open"] for counters in ended) == 0


def check_again(account, requests, least, moves=0):
    """A run with "again": as many requests for each, and so many connections at least."""
    n = account["connections"]
    check(account, connections=n, answered=requests * n, migrations_completed=moves * n,
          rebindings=moves * n)
    assert n >= least


def save_sessions(path):
    check(run_client(ADDRESS, "--connections", 200, "--save-session", path), connections=200,
          answered=200, sessions_saved=200)


HANDSHAKES = {
    "second flight": (),
    "Initial in two datagrams": ("--split-initial",),
    "early data": ("--early-data",),
    "early data after an Initial in two datagrams": ("--early-data", "--split-initial"),
    "Retry": (),
}


@pytest.mark.parametrize("kind", HANDSHAKES)
def test_scaling_in_the_middle_of_handshakes_fails_none(service, kind, tmp_path):
    """2 → 8 → 3 workers, each time between a client's first datagram and its second."""
    server_options = ["--retry"] if kind == "Retry" else []
    arguments = ["--connections", 200, "--hold-second", "--parallel", 200, *HANDSHAKES[kind]]
    servers = service.start_all(names(2), *server_options)
    early = "--early-data" in arguments
    sessions = tmp_path / "sessions"
    if early:
        # A worker takes no early data of tickets that are older than itself.
        save_sessions(sessions)
        arguments += ["--resume", sessions]
    expected = {"connections": 200, "answered": 200, "early_data_accepted": 200 if early else 0,
                "retries": 200 if kind == "Retry" else 0}

    with client(*arguments) as run:
        run.wait_ready()
        servers += service.start_all(names(6, first=3), *server_options)
        run.go()
        check(run.finish(), **expected)

    if early:
        save_sessions(sessions)
    with client(*arguments) as run:
        run.wait_ready()
        for server in servers[3:]:
            service.drain(server)
        run.go()
        check(run.finish(), **expected)
    for server in servers[3:]:
        assert server.process.wait() == 0
    check(run_client(ADDRESS, "--connections", 60), connections=60, answered=60,
          retries=60 if kind == "Retry" else 0)
    for server in servers[:3]:
        server.stop()
    assert sum(server.events("end")[-1]["resets_sent"] for server in servers) == 0


def test_what_one_worker_gave_out_every_other_reads(service, tmp_path):
    """A token for address validation and a session ticket of a worker that is gone."""
    sessions = tmp_path / "sessions"
    first = service.start("web@1", "--retry")
    check(run_client(ADDRESS, "--connections", 50, "--save-session", sessions), connections=50,
          answered=50, retries=50, sessions_saved=50, resumed=0)
    second = service.start("web@1", "--retry")
    assert first.process.wait() == 0
    check(run_client(ADDRESS, "--connections", 50, "--resume", sessions), connections=50,
          answered=50, retries=0, resumed=50)
    assert second.stop()["retries_sent"] == 0


def test_connections_go_on_without_the_daemon(service):
    """Killed: old connections move, new ones come, a worker ends and its clients are told."""
    servers = service.start_all(names(4))
    with client("--connections", 400, "--script",
                "request,wait,migrate,request,rebind,request,wait,request") as run:
        check(run.wait_ready(), connections=400, answered=400)
        service.daemon.process.send_signal(signal.SIGKILL)
        service.daemon.process.wait()
        service.daemon.killed = True
        run.go()
        before = run.wait_ready()
        check(before, connections=400, answered=1200, migrations_completed=400, rebindings=400)
        check(run_client(ADDRESS, "--connections", 200), connections=200, answered=200)
        lost = by_slot(before)[servers[0].slot]
        servers[0].kill()
        run.go()
        check(run.finish(), connections=400, answered=1600 - lost, connections_lost=lost,
              stateless_resets=lost, resets_before_probe=lost)
    check(run_client(ADDRESS, "--connections", 200), connections=200, answered=200)


@pytest.mark.parametrize("address", ["127.0.0.5", "::1"])
def test_listener_for_both_kinds_of_address(start_daemon, configuration, certificate, tmp_path,
                                            address):
    """A wildcard: the worker answers from the address that the client asked."""
    configuration.service(
        "web", "[Service]\nAllowUser=root\n[Listener quic]\nListenQUIC=[::]:4433\n")
    service = Service(start_daemon("--config", configuration.directory), certificate, tmp_path)
    try:
        service.start_all(names(4))
        check(run_client((address, 4433), "--connections", 100, "--script",
                         "request,migrate,request,rebind,request"),
              connections=100, answered=300, migrations_completed=100, rebindings=100)
    finally:
        service.cleanup()


@pytest.mark.parametrize("kind", ["short", "initial"])
def test_flood_fails_no_connection_and_leaves_nothing(service, flooder, kind):
    """
    50,000 short headers of no connection, each answered with a reset, or 50,000 spoofed Initials,
    each answered with a Retry: connections that exist go on, new ones are made.
    """
    servers = service.start_all(names(4), "--retry")
    packets = None
    if kind == "initial":
        # No token; a length that takes the rest of the datagram.
        rest = 1200 - len(quic_packets.initial(bytes(18), bytes(3), size=0))
        body = b"\0" + (0x4000 | rest).to_bytes(2, "big")
        packets = [quic_packets.initial(os.urandom(18), body, size=1200) for _ in range(5000)]
    with client("--connections", 100, "--interval", 10, "--script", "request:*", timeout=60) as old, \
            client("--connections", 8, "--script", "request,again", timeout=60) as new, \
            flooder("file" if packets else kind, packets) as flood:
        old.wait_ready()
        new.wait_ready()
        for sent in range(2500, 50001, 2500):
            send_flood(flood, 2500)
            flood_sent(flood)
            harness.poll_until(lambda: answered(servers, kind) >= sent, "each got its answer")
        new.go()
        account = new.finish()
        made = account["connections"]
        check(account, connections=made, answered=made, retries=made)
        old.go()
        account = old.finish()
        check(account, connections=100, answered=account["requests_sent"], retries=100)
    counters = [server.stop() for server in servers]
    assert sum(c["connections"] for c in counters) == 100 + made
    assert sum(c["resets_sent"] for c in counters) == (50000 if kind == "short" else 0)


def answered(servers, kind):
    counters = [server.counters() for server in servers]
    return sum(c["resets_sent"] if kind == "short" else c["retries_sent"] - c["connections"]
               for c in counters)


def test_server_with_ids_of_its_own_harms_nobody_else(service):
    """
    Nobody can know where the packets of its connections belong: most never get through, and what
    they send goes to others. Whose connections notice nothing.
    """
    servers = service.start_all(names(3))
    foreign = service.start("foreign@1", "--foreign-ids", "17")
    account = run_client(ADDRESS, "--connections", 400, "--script",
                         "request,migrate,request,rebind,request", timeout=12)
    counters = [server.counters() for server in servers]
    good = sum(c["handshakes"] for c in counters)
    bad = 400 - good
    assert 40 < bad < 160
    assert sum(c["requests"] for c in counters) == 3 * good
    assert {slot: n for slot, n in by_slot(account).items() if slot != foreign.slot} == {
        c["slot"]: c["handshakes"] for c in counters}
    # All that was lost was the one server's; and there was such a thing, so the test tests.
    assert 0 < account["connections_lost"] + account["handshakes_failed"] <= bad
    assert account["wrong_worker"] == account["wrong_answers"] == 0
