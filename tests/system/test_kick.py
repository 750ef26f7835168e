# SPDX-License-Identifier: BSD-2-Clause
"""Kick: what waits for a worker that hangs is taken from it, and answered by others."""
import errno

import pytest

import harness
import worker_protocol as proto
from control_client import ControlError
from test_monitor import Monitor

PORT = 8080
N = 20
ADDRESSES = {"ipv4": "127.0.0.1", "ipv6": "::1"}


def start(start_daemon, host="127.0.0.1", *options):
    host = f"[{host}]" if ":" in host else host
    return start_daemon("--listen", f"web=tcp://{host}:{PORT}", *options)


def queues(daemon, service="web"):
    """Connections in the accept queue of each worker, by slot."""
    return {w["slot"]: w["sockets"][0]["queue"] for w in daemon.status(service)["workers"]}


def connect(count, host="127.0.0.1"):
    return [harness.tcp_client((host, PORT), b"request %d\n" % i) for i in range(count)]


@pytest.mark.parametrize("family", ADDRESSES)
def test_another_worker_answers_what_waited_for_one_that_hangs(start_daemon, family):
    host = ADDRESSES[family]
    daemon = start(start_daemon, host, "--net-admin")
    assert "net-admin" in daemon.status()["daemon"]["features"]
    hanging = daemon.worker_process(instance="hanging")
    harness.freeze(hanging.pid)
    clients = connect(N, host)
    harness.poll_until(lambda: queues(daemon) == {hanging.slot: N}, "all to wait for the one that hangs")
    other = daemon.worker(instance="other")
    with Monitor(daemon) as monitor:
        monitor.snapshot()
        assert daemon.call("Kick", instance="hanging") == {"kicked": 1, "sockets": 1}
        assert [(e["kind"], e["instance"], e["pid"]) for e in monitor.events(2)] == \
            [(kind, "hanging", hanging.pid) for kind in ("draining", "kicked")]
    assert queues(daemon) == {hanging.slot: None, other.slot: N}
    harness.answer_all(other.socket, N, b"other")
    harness.check_answers(clients, b"other")
    assert daemon.status_worker(hanging.slot)["state"] == "draining"
    more = connect(N, host)
    harness.answer_all(other.socket, N, b"other")
    harness.check_answers(more, b"other")
    harness.close_all(clients + more)
    hanging.kill()
    daemon.wait_state(hanging.slot, None)


def test_with_nobody_else_it_waits_in_the_standby(start_daemon):
    daemon = start(start_daemon, "127.0.0.1", "--net-admin")
    hanging = daemon.worker_process(instance="hanging")
    harness.freeze(hanging.pid)
    clients = connect(N)
    harness.poll_until(lambda: queues(daemon) == {hanging.slot: N}, "all to wait for the one that hangs")
    assert daemon.call("Kick", worker=hanging.slot) == {"kicked": 1, "sockets": 1}
    assert daemon.status("web")["listeners"][0]["waiting"] == N
    other = daemon.worker(instance="other")
    harness.answer_all(other.socket, N, b"other")
    harness.check_answers(clients, b"other")
    harness.close_all(clients)


def test_of_many_the_right_one_is_kicked(start_daemon):
    """The kernel looks for it by an address that all of them have."""
    daemon = start(start_daemon, "127.0.0.1", "--net-admin")
    workers = [daemon.worker(instance=f"web@{i}") for i in range(64)]
    for kicked in workers[:16]:
        assert daemon.call("Kick", worker=kicked.slot) == {"kicked": 1, "sockets": 1}
        with pytest.raises(OSError) as info:
            kicked.socket.accept()
        assert info.value.errno == errno.EINVAL
    for worker in workers[16:]:
        with pytest.raises(BlockingIOError):
            worker.socket.accept()
    states = [w["state"] for w in daemon.status("web")["workers"]]
    assert (states.count("draining"), states.count("active")) == (16, 48)


def test_kicked_worker_is_told_and_keeps_what_it_has_accepted(start_daemon):
    daemon = start(start_daemon, "127.0.0.1", "--net-admin")
    worker = daemon.worker(instance="web@1")
    client = connect(1)[0]
    harness.poll_until(lambda: queues(daemon) == {worker.slot: 1}, "it to wait")
    connection, = harness.accept_now(worker.socket)
    assert daemon.call("Kick", service="web") == {"kicked": 1, "sockets": 1}
    reason, _ = worker.wait_drain_requested()
    assert reason == proto.DRAIN_OPERATOR
    connection.sendall(b"still here\n")
    assert client.recv(100) == b"still here\n"
    harness.close_all([connection, client])
    # Again: it has no listening socket any more.
    assert daemon.call("Kick", service="web") == {"kicked": 1, "sockets": 0}


def test_without_the_capability_nothing_is_changed(start_daemon):
    daemon = start(start_daemon)
    worker = daemon.worker(instance="web@1")
    with pytest.raises(ControlError) as info:
        daemon.call("Kick", worker=worker.slot)
    assert info.value.name == "io.reuseport.Control.Failed"
    assert info.value.parameters["errno"] == errno.EPERM
    assert "net-admin.conf" in info.value.parameters["message"]
    assert daemon.status_worker(worker.slot)["state"] == "active"


def test_datagrams_stay_where_they_are(start_daemon):
    daemon = start_daemon("--listen", f"dns=udp://127.0.0.1:{PORT}", "--net-admin")
    worker = daemon.worker(service="dns", instance="dns@1")
    clients = [harness.udp_client(("127.0.0.1", PORT)) for _ in range(N)]
    for client in clients:
        client.send(b"datagram")
    assert daemon.call("Kick", instance="dns@1") == {"kicked": 1, "sockets": 0}
    other = daemon.worker(service="dns", instance="dns@2")
    assert len([worker.socket.recv(100) for _ in range(N)]) == N
    # Flows that it has are its own still, new ones are not.
    for client in clients:
        client.send(b"again")
    assert [worker.socket.recv(100) for _ in range(N)] == [b"again"] * N
    fresh = [harness.udp_client(("127.0.0.1", PORT)) for _ in range(N)]
    for client in fresh:
        client.send(b"new")
    assert [other.socket.recv(100) for _ in range(N)] == [b"new"] * N
    harness.close_all(clients + fresh)


def test_joining_worker_has_nothing_to_take(start_daemon):
    daemon = start(start_daemon, "127.0.0.1", "--net-admin")
    worker = daemon.worker(instance="web@1", ready=False)
    assert daemon.call("Kick", worker=worker.slot) == {"kicked": 0, "sockets": 0}
    worker.ready()
    assert daemon.status_worker(worker.slot)["state"] == "active"
