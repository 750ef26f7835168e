# SPDX-License-Identifier: BSD-2-Clause
"""
A worker whose queue stands still gets no new connection until it moves again; those that it has stay
with it. StallTimeoutSec=, StallAction=.
"""
import contextlib
import os
import signal
import traceback

import pytest

import harness
from test_monitor import Monitor
from worker_protocol import Worker

PORT = 8080
TCP = ("127.0.0.1", PORT)
N = 100


class Server:
    """A process that accepts, answers each connection with its slot, and closes it."""

    def __init__(self, daemon):
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                harness.close_inherited({0, 1, 2, writer})
                worker = Worker(daemon.worker_socket)
                os.write(writer, b"%d" % worker.slot)
                os.close(writer)
                worker.socket.setblocking(True)
                while True:
                    connection, _ = worker.socket.accept()
                    connection.sendall(b"%d" % worker.slot)
                    connection.close()
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        os.close(writer)
        with os.fdopen(reader, "rb") as stream:
            self.slot = int(stream.read())

    def end(self):
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


@pytest.fixture
def servers(daemon):
    with contextlib.ExitStack() as stack:
        def start(count):
            started = []
            for _ in range(count):
                started.append(Server(daemon))
                stack.callback(started[-1].end)
            return started
        yield start


@pytest.fixture
def service(configuration):
    def write(listen, keys):
        configuration.service("web", f"[Service]\n{keys}\n[Listener web]\n{listen}\n")
    return write


@pytest.fixture
def daemon(start_daemon, configuration, service):
    service(f"ListenStream=127.0.0.1:{PORT}", "StallTimeoutSec=2")
    return start_daemon("--config", configuration.directory)


def new_connections(daemon, slot):
    return daemon.status_worker(slot)["new_connections"]


def stalled(daemon):
    return {w["slot"] for w in daemon.status("web")["workers"] if w["stalled"]}


def wait_stalled(daemon, slots):
    harness.poll_until(lambda: stalled(daemon) == slots, f"{slots} and no others to be stalled",
                       interval=0.1)


def answers(clients):
    result = []
    for client in clients:
        with client:
            result.append(int(client.recv(16)))
    return result


def connect_until(daemon, slot, count):
    """Opens connections until so many wait for the slot. Returns these and the others."""
    waiting, others = [], []
    while len(waiting) < count:
        before = new_connections(daemon, slot)
        client = harness.tcp_client(TCP)
        (waiting if new_connections(daemon, slot) > before else others).append(client)
        assert len(others) < 50 * count
    return waiting, others


def test_a_stopped_server_gets_nothing_new_until_it_goes_on(daemon, servers):
    hanging, *others = servers(4)
    with Monitor(daemon) as monitor:
        monitor.snapshot()
        harness.freeze(hanging.pid)
        waiting, answered = connect_until(daemon, hanging.slot, 3)
        assert set(answers(answered)) <= {server.slot for server in others}
        wait_stalled(daemon, {hanging.slot})
        event = monitor.event()
        assert (event["kind"], event["slot"], event["pid"]) == ("stalled", hanging.slot, hanging.pid)
        assert event["reason"].startswith("3 connections wait, and their number has not fallen for 2000 ms")
        assert daemon.status_worker(hanging.slot)["state"] == "active"
        lines = daemon.ctl("list-workers", "web", "--no-legend").stdout.splitlines()
        assert [line.split()[0] for line in lines if "active (stalled)" in line] == [str(hanging.slot)]
        assert daemon.ctl("check", check=False).returncode == 1
        before = new_connections(daemon, hanging.slot)
        found = answers([harness.tcp_client(TCP) for _ in range(N)])
        assert len(found) == N and set(found) == {server.slot for server in others}
        assert new_connections(daemon, hanging.slot) == before
        os.kill(hanging.pid, signal.SIGCONT)
        assert answers(waiting) == [hanging.slot] * 3
        wait_stalled(daemon, set())
        event = monitor.event()
        assert (event["kind"], event["slot"]) == ("recovered", hanging.slot)
        found = answers([harness.tcp_client(TCP) for _ in range(N)])
        assert len(found) == N and hanging.slot in found


def test_when_all_stand_still_nobody_is_stalled(daemon):
    workers = [daemon.worker() for _ in range(3)]
    clients = [harness.tcp_client(TCP) for _ in range(N)]
    queues = {w["slot"]: w["sockets"][0]["queue"] for w in daemon.status("web")["workers"]}
    assert sum(queues.values()) == N and all(queues[w.slot] for w in workers)
    with pytest.raises(AssertionError):
        harness.poll_until(lambda: stalled(daemon), "a worker to be stalled", seconds=5, interval=0.2)
    harness.close_all(clients)


def test_one_that_hangs_is_better_than_nobody(daemon, servers):
    (hanging,) = servers(1)
    other = daemon.worker()
    harness.freeze(hanging.pid)
    waiting = []
    while not any(w["sockets"][0]["queue"] for w in daemon.status("web")["workers"]
                  if w["slot"] == hanging.slot):
        waiting.append(harness.tcp_client(TCP))
        assert len(waiting) < N
    harness.close_all(harness.accept_now(other.socket))
    wait_stalled(daemon, {hanging.slot})
    other.leave()
    before = new_connections(daemon, hanging.slot)
    clients = [harness.tcp_client(TCP) for _ in range(20)]
    assert new_connections(daemon, hanging.slot) == before + 20
    os.kill(hanging.pid, signal.SIGCONT)
    assert answers(clients) == [hanging.slot] * 20
    harness.close_all(waiting)


def test_reload_without_the_key_makes_it_get_connections(daemon, servers, service):
    hanging, *_ = servers(3)
    harness.freeze(hanging.pid)
    waiting, answered = connect_until(daemon, hanging.slot, 1)
    wait_stalled(daemon, {hanging.slot})
    service(f"ListenStream=127.0.0.1:{PORT}", "StallTimeoutSec=infinity")
    daemon.reload()
    wait_stalled(daemon, set())
    more, others = connect_until(daemon, hanging.slot, 1)
    os.kill(hanging.pid, signal.SIGCONT)
    assert answers(waiting + more) == [hanging.slot] * 2
    harness.close_all(answered + others)


def test_its_accept_queue_is_taken_away_when_that_is_wanted(start_daemon, configuration, service):
    service(f"ListenStream=127.0.0.1:{PORT}", "StallTimeoutSec=2\nStallAction=kick")
    daemon = start_daemon("--config", configuration.directory, "--net-admin")
    hanging = daemon.worker_process(instance="hanging")
    clients = [harness.tcp_client(TCP, b"request %d\n" % i) for i in range(20)]
    other = daemon.worker(instance="other")
    harness.answer_all(other.socket, 20, b"other")
    harness.check_answers(clients, b"other")
    assert daemon.status_worker(hanging.slot)["state"] == "draining"
    harness.close_all(clients)


def test_flows_of_a_udp_worker_stay_with_it(start_daemon, configuration, service):
    service(f"ListenDatagram=127.0.0.1:{PORT}", "StallTimeoutSec=2")
    daemon = start_daemon("--config", configuration.directory)
    workers = [daemon.worker() for _ in range(3)]
    hanging, others = workers[0], workers[1:]
    clients = [harness.udp_client(TCP) for _ in range(N)]

    def send_from(some):
        for client in some:
            client.send(b"datagram")

    def counts():
        return {w["slot"]: w["packets"] for w in daemon.status("web")["workers"]}

    mine = []
    for client in clients:
        before = counts()[hanging.slot]
        client.send(b"datagram")
        if counts()[hanging.slot] > before:
            mine.append(client)
    assert mine
    assert len(harness.receive_datagrams(others, N - len(mine))) == N - len(mine)
    wait_stalled(daemon, {hanging.slot})
    assert hanging.wait_stalled() == (0, True)
    before = counts()
    send_from(mine)
    assert counts() == {**before, hanging.slot: before[hanging.slot] + len(mine)}
    fresh = [harness.udp_client(TCP) for _ in range(N)]
    send_from(fresh)
    assert counts()[hanging.slot] == before[hanging.slot] + len(mine)
    assert len(harness.receive_datagrams(others, N)) == N
    assert len(harness.receive_datagrams([hanging], 2 * len(mine))) == 2 * len(mine)
    wait_stalled(daemon, set())
    assert hanging.wait_stalled() == (0, False)
    harness.close_all(clients + fresh)
