# SPDX-License-Identifier: BSD-2-Clause
"""
The daemon dies and starts again, many times, at moments that nobody chose, while clients and
workers go on: nothing is lost, nobody is moved, and every worker is what it was.
"""
import random
import signal
import socket
import threading
import time

import pytest

import harness
import quic_packets as quic
import quic_programs
import worker_protocol as proto
from store import KeptDaemon, StoredDaemon, started

TCP, UDP, QUIC = ("127.0.0.1", 8080), ("127.0.0.1", 5300), ("127.0.0.1", 4433)
RESTARTS = 200

SERVICES = {
    "web": f"ListenStream={TCP[0]}:{TCP[1]}\n",
    "dns": f"ListenDatagram={UDP[0]}:{UDP[1]}\nFlowTimeoutSec=600\n",
    "quic": f"ListenQUIC={QUIC[0]}:{QUIC[1]}\nConnectionID=quic-lb\n",
}


class Answerer(threading.Thread):
    """Reads all sockets of all workers and answers with the slot before what came."""

    def __init__(self):
        super().__init__(daemon=True)
        self.sockets = {}
        self.lock = threading.Lock()
        self.stopped = threading.Event()
        self.failures = []

    def add(self, worker):
        with self.lock:
            for each in worker.sockets[0].values():
                self.sockets[each] = worker.slot

    def remove(self, worker):
        """Afterwards, nothing that had come is unanswered."""
        with self.lock:
            for each in worker.sockets[0].values():
                self.answer(each, self.sockets.pop(each))

    def answer(self, each, slot):
        name = b"%d " % slot
        while True:
            try:
                if each.type == socket.SOCK_STREAM:
                    connection, _ = each.accept()
                    with connection:
                        connection.settimeout(harness.DEADLINE)
                        connection.sendall(name + harness.receive_line(connection))
                else:
                    octets, sender = each.recvfrom(2048)
                    each.sendto(name + octets, sender)
            except BlockingIOError:
                return

    def run(self):
        try:
            while not self.stopped.is_set():
                with self.lock:
                    for each in harness.wait_readable(self.sockets, 0.002):
                        self.answer(each, self.sockets[each])
                time.sleep(0.0005)
        except BaseException as error:
            self.failures.append(error)


class Traffic(threading.Thread):
    """One client that asks again and again; who answers is checked by `expected(answer)`."""

    def __init__(self):
        super().__init__(daemon=True)
        self.stopped = threading.Event()
        self.failures = []
        self.n = 0

    def run(self):
        try:
            while not self.stopped.is_set():
                self.ask()
                self.n += 1
        except BaseException as error:
            self.failures.append(error)

    def end(self):
        self.stopped.set()
        self.join(harness.DEADLINE)
        assert not self.is_alive() and self.failures == []
        return self.n


class TcpTraffic(Traffic):
    """A new connection each time."""

    def ask(self):
        with harness.tcp_client(TCP, b"request %d\n" % self.n) as client:
            assert harness.receive_line(client).split(b" ", 1)[1] == b"request %d\n" % self.n


class DatagramTraffic(Traffic):
    """Datagrams, each of which must be answered by the worker of its flow or connection ID."""

    def __init__(self, flows):
        super().__init__()
        self.flows = flows  # (client, octets, slot)

    def ask(self):
        client, octets, slot = self.flows[self.n % len(self.flows)]
        client.send(octets)
        assert client.recv(2048) == b"%d " % slot + octets
        time.sleep(0.0005)


class Churn(threading.Thread):
    """
    Workers that come, serve, drain and go, and keys that rotate, whatever the daemon does. One
    whose connection ends is told by that, and registers anew.
    """

    def __init__(self, daemon, answerer):
        super().__init__(daemon=True)
        self.daemon_under_test = daemon
        self.answerer = answerer
        self.stopped = threading.Event()
        self.failures = []
        self.n_served = self.n_told = self.n_rotations = 0

    def one(self, n):
        worker = None
        try:
            worker = proto.Worker(self.daemon_under_test.worker_socket, instance=f"churn{n}",
                                  ready=False)
            self.answerer.add(worker)
            worker.ready()
            worker.drain()
            self.answerer.remove(worker)
            worker.leave()
            self.n_served += 1
        except (proto.Ended, ConnectionError, FileNotFoundError):
            self.n_told += 1
            if worker:
                if worker.socket in self.answerer.sockets:
                    self.answerer.remove(worker)
                worker.abandon()

    def rotate(self):
        try:
            self.daemon_under_test.call("RotateKeys", service="quic")
            self.n_rotations += 1
        except (OSError, EOFError):
            pass
        except Exception as error:
            if "EBUSY" not in str(error) and "in use" not in str(error):
                raise

    def run(self):
        try:
            n = 0
            while not self.stopped.is_set():
                n += 1
                self.one(n)
                if n % 50 == 0:
                    self.rotate()
        except BaseException as error:
            self.failures.append(error)


class Load:
    """Three services with three workers each, and clients of all of them."""

    def __init__(self, daemon):
        self.daemon = daemon
        self.answerer = Answerer()
        self.workers = []
        for service in SERVICES:
            for i in range(3):
                worker = daemon.worker(service=service, instance=f"{service}{i}")
                self.workers.append(worker)
                self.answerer.add(worker)
        self.answerer.start()
        self.clients = []
        self.traffic = [TcpTraffic(), TcpTraffic(), DatagramTraffic(self.udp_flows()),
                        DatagramTraffic(self.connections())]
        self.churn = Churn(daemon, self.answerer)
        for thread in (*self.traffic, self.churn):
            thread.start()

    def udp_flows(self):
        flows = []
        for i in range(60):
            client = harness.udp_client(UDP)
            client.send(b"first")
            flows.append((client, b"flow %d" % i, int(client.recv(2048).split()[0])))
            self.clients.append(client)
        assert {slot for _, _, slot in flows} == {w.slot for w in self.workers[3:6]}
        return flows

    def connections(self):
        """Short headers with IDs of each worker, from one address."""
        client = harness.udp_client(QUIC)
        self.clients.append(client)
        flows = []
        for worker in self.workers[6:]:
            maker = quic.CidMaker(worker.listeners[0])
            flows += [(client, quic.short_packet(maker.make(), size=60), worker.slot)
                      for _ in range(20)]
        return flows

    def end(self):
        self.churn.stopped.set()
        self.churn.join(harness.DEADLINE)
        assert not self.churn.is_alive() and self.churn.failures == []
        counts = [traffic.end() for traffic in self.traffic]
        self.answerer.stopped.set()
        self.answerer.join(harness.DEADLINE)
        assert self.answerer.failures == []
        harness.close_all(self.clients)
        return counts

    def check(self):
        """Every worker is there, active, connected, and was told nothing."""
        for worker in self.workers:
            assert not harness.wait_readable([worker.connection.socket], 0) or \
                self.only_keys(worker)
        for service in SERVICES:
            mine = [w for w in self.workers if w.listeners[0].transport ==
                    list(SERVICES).index(service) + 1]
            found = {w["slot"]: w for w in self.daemon.status(service)["workers"]
                     if not w["instance"].startswith("churn")}
            assert sorted(found) == sorted(w.slot for w in mine)
            for worker in found.values():
                assert (worker["state"], worker["connected"], worker["exited"]) == \
                    ("active", True, False)

    def only_keys(self, worker):
        while harness.wait_readable([worker.connection.socket], 0):
            kind, _ = worker.connection.wait_event()
            assert kind == proto.KEYS_ROTATED
        return True


@pytest.fixture
def stored_daemon(netns, configuration, request):
    for name, text in SERVICES.items():
        configuration.service(name, f"[Service]\nAllowUser=root\n[Listener main]\n{text}")
    with started(configuration, getattr(request, "param", StoredDaemon)) as start:
        yield start


def check_newcomer(daemon, limit=1.0):
    start = time.monotonic()
    worker = proto.Worker(daemon.worker_socket, service="dns", instance="newcomer")
    assert time.monotonic() - start < limit
    worker.leave()


both = pytest.mark.parametrize("stored_daemon", [StoredDaemon, KeptDaemon], indirect=True,
                               ids=["systemd", "keeper"])


@both
@pytest.mark.parametrize("manner", ["SIGKILL", "SIGABRT", "SIGTERM", "reexec"])
def test_fifty_restarts_at_random_moments_cost_nothing(stored_daemon, manner):
    """Four times fifty are the two hundred, with systemd's store and with the daemon's own keeper."""
    daemon = stored_daemon()
    load = Load(daemon)
    randomness = random.Random(f"{manner} 5")
    for i in range(RESTARTS // 4):
        time.sleep(randomness.uniform(0, 0.03))
        if manner == "reexec":
            daemon.ctl("reexec")
        else:
            status = daemon.die(getattr(signal, manner))
            assert status == (0 if manner == "SIGTERM" else -getattr(signal, manner))
            time.sleep(randomness.uniform(0, 0.01))
            daemon.start()
        if i % 10 == 0:
            check_newcomer(daemon)
            load.check()
    counts = load.end()
    assert min(counts) > 100
    load.check()
    assert load.churn.n_served > 0
    listener = daemon.status("web")["listeners"][0]
    assert listener["packets"] >= sum(counts[:2])  # counted since the first start
    assert (listener["dropped"], listener["standby"]) == (0, 0)


@both
def test_workers_that_die_while_there_is_no_daemon(stored_daemon):
    """Their slots are free when it is back, and those of the others are not."""
    daemon = stored_daemon()
    stay = [daemon.worker(service="dns", instance=f"stay{i}") for i in range(2)]
    die = [daemon.worker_process(service="dns", instance=f"die{i}") for i in range(3)]
    daemon.die()
    for process in die:
        process.kill()
    daemon.start()
    found = {w["slot"]: w["state"] for w in daemon.status("dns")["workers"]}
    assert found == {worker.slot: "active" for worker in stay}
    clients = [harness.udp_client(UDP) for _ in range(50)]
    for client in clients:
        client.send(b"x")
    assert len(harness.receive_datagrams(stay, 50)) == 50
    harness.close_all(clients)


@both
def test_upgrade_to_a_build_with_other_maps(stored_daemon):
    """
    Table and counters have another layout there: made anew and filled before the new program has
    the group. Nobody is moved; the log says that counters begin anew. And back again.
    """
    daemon = stored_daemon()
    load = Load(daemon)
    builds = (harness.BUILD / "tests" / "reuseportd-other-layout", harness.REUSEPORTD)
    for i in range(10):
        harness.poll_until(lambda: daemon.status("dns")["listeners"][0]["packets"] > 20,
                           "clients are served")
        daemon.restart(program=builds[i % 2])
        load.check()
    counts = load.end()
    assert min(counts) > 10
    load.check()
    assert daemon.output().count("the map of counters is another one in this version") == 10 * 6


@both
def test_real_quic_through_forty_kills(stored_daemon, tmp_path):
    """Connections of ngtcp2 that begin, wait and move while the daemon is killed 40 times."""
    quic_programs.require_programs()
    tmp_path.chmod(0o755)
    certificate = quic_programs.Certificate(tmp_path)
    daemon = stored_daemon()
    servers = [quic_programs.QuicServer(certificate, tmp_path / f"server{i}.log", service="quic",
                                        path=daemon.worker_socket, instance=f"server{i}")
               for i in range(3)]
    script = "request,wait,rebind,request:2,wait,request:2"
    clients = []
    try:
        for i in range(20):
            client = quic_programs.QuicClient(QUIC, "--connections", 30, "--script", script)
            clients.append(client)
            daemon.restart()
            quic_programs.check(client.wait_ready(), connections=30, answered=30)
            client.go()
            daemon.restart()
            quic_programs.check(client.wait_ready(), connections=30, answered=90, rebindings=30)
            client.go()
            quic_programs.check(client.finish(), connections=30, requests_sent=150, answered=150,
                                rebindings=30)
        states = [(w["state"], w["connected"]) for w in daemon.status("quic")["workers"]]
        assert states == [("active", True)] * 3
        assert sum(server.stop()["connections"] for server in servers) == 600
    finally:
        for client in clients:
            client.cleanup()
        for server in servers:
            if server.process.returncode is None:
                server.kill()
