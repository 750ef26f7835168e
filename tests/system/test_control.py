# SPDX-License-Identifier: BSD-2-Clause
"""What an operator sees and does, by the control socket."""
import os
import time

import pytest

import harness
import worker_protocol as proto
from control_client import ControlError

PORT = 8080
ADDRESS = ("127.0.0.1", PORT)


@pytest.fixture
def daemon(start_daemon):
    return start_daemon("--listen", f"web=tcp://127.0.0.1:{PORT}")


def connections_reach(workers, count=40):
    clients = [harness.tcp_client(ADDRESS, b"request %d\n" % i) for i in range(count)]
    got = {worker: [] for worker in workers}

    def all_accepted():
        for worker in workers:
            got[worker] += harness.accept_now(worker.socket)
        return sum(map(len, got.values())) == count
    harness.poll_until(all_accepted, f"{count} connections at {len(workers)} workers")
    for connections in got.values():
        harness.close_all(connections)
    harness.close_all(clients)
    return {worker for worker in workers if got[worker]}


def test_status_has_what_is_promised(daemon):
    before = time.time()
    worker = daemon.worker(instance="web@1", weight=250)
    clients = [harness.tcp_client(ADDRESS, b"request %d\n" % i) for i in range(20)]
    harness.answer_all(worker.socket, 20, b"worker")
    harness.check_answers(clients, b"worker")
    harness.close_all(clients)
    status = daemon.status()
    assert [s["name"] for s in status["services"]] == ["web"]
    listener, = status["services"][0]["listeners"]
    assert listener["transport"] == "tcp"
    assert listener["address"] == f"127.0.0.1:{PORT}"
    assert listener["new_connections"] == 20
    assert listener["packets"] >= 20
    assert listener["dropped"] == 0
    assert {"name", "standby"} <= set(listener)
    found, = status["services"][0]["workers"]
    assert found["slot"] == worker.slot
    assert found["instance"] == "web@1"
    assert found["pid"] == os.getpid()
    assert found["uid"] == os.getuid()
    assert found["state"] == "active"
    assert found["weight"] == 250
    assert found["new_connections"] == 20
    assert {"packets", "since"} <= set(found)


def test_worker_passes_through_its_states(daemon):
    worker = daemon.worker(ready=False)
    assert daemon.status_worker(worker.slot)["state"] == "joining"
    worker.ready()
    assert daemon.status_worker(worker.slot)["state"] == "active"
    worker.drain()
    assert daemon.status_worker(worker.slot)["state"] == "draining"
    worker.leave()
    assert daemon.status_worker(worker.slot) is None


def test_joining_worker_gets_nothing(daemon):
    active = daemon.worker(instance="active")
    joining = daemon.worker(instance="joining", ready=False)
    assert connections_reach([active, joining]) == {active}
    joining.ready()
    assert connections_reach([active, joining]) == {active, joining}


def test_new_worker_of_an_instance_replaces_the_old_one(daemon):
    old = daemon.worker(instance="web@1")
    other = daemon.worker(instance="web@2")
    new = daemon.worker(instance="web@1", ready=False)
    assert daemon.status_worker(old.slot)["state"] == "active"
    new.ready()
    reason, deadline = old.wait_drain_requested()
    assert reason == proto.DRAIN_REPLACED
    assert deadline > 0
    assert daemon.status_worker(old.slot)["state"] == "draining"
    assert daemon.status_worker(new.slot)["state"] == "active"
    assert daemon.status_worker(other.slot)["state"] == "active"
    assert connections_reach([old, other, new]) == {other, new}
    old.leave()
    assert daemon.status_worker(old.slot) is None
    assert other.connection.events == [] and new.connection.events == []


def test_instances_without_a_name_do_not_replace_each_other(daemon):
    workers = [daemon.worker() for _ in range(3)]
    assert len({worker.instance for worker in workers}) == 3
    assert all(worker.instance for worker in workers)
    assert {daemon.status_worker(worker.slot)["state"] for worker in workers} == {"active"}


def test_operator_drains_and_undrains(daemon):
    first = daemon.worker(instance="first")
    second = daemon.worker(instance="second")
    assert daemon.call("Drain", service="web", instance="first") == {"drained": 1}
    reason, _ = first.wait_drain_requested()
    assert reason == proto.DRAIN_OPERATOR
    assert daemon.status_worker(first.slot)["state"] == "draining"
    assert connections_reach([first, second]) == {second}
    assert daemon.call("Undrain", service="web", instance="first") == {"undrained": 1}
    assert daemon.status_worker(first.slot)["state"] == "active"
    assert connections_reach([first, second]) == {first, second}


def test_operator_sets_a_weight(daemon):
    worker = daemon.worker(instance="first")
    assert daemon.call("SetWeight", worker=worker.slot, weight=700) == {"changed": 1}
    assert daemon.status_worker(worker.slot)["weight"] == 700
    with pytest.raises(ControlError) as info:
        daemon.call("SetWeight", worker=worker.slot, weight=1001)
    assert info.value.name == "org.varlink.service.InvalidParameter"
    assert daemon.status_worker(worker.slot)["weight"] == 700


def test_naming_nobody_is_an_error(daemon):
    for parameters, error in [({"worker": 77}, "io.reuseport.Control.NoSuchWorker"),
                              ({"service": "none"}, "io.reuseport.Control.NoSuchService"),
                              ({}, "org.varlink.service.InvalidParameter")]:
        with pytest.raises(ControlError) as info:
            daemon.call("Drain", **parameters)
        assert info.value.name == error


def test_killed_worker_is_gone_from_status(daemon):
    process = daemon.worker_process(instance="first")
    assert daemon.status_worker(process.slot)["pid"] == process.pid
    process.kill()
    daemon.wait_state(process.slot, None)


def test_worker_that_closed_its_connection_keeps_its_slot(daemon):
    """A broken connection is no death: the process lives and has its sockets."""
    worker = daemon.worker(instance="first")
    worker.connection.close()
    assert connections_reach([worker]) == {worker}
    assert daemon.status_worker(worker.slot)["state"] == "active"


def test_stopping_daemon_tells_its_workers(daemon):
    worker = daemon.worker(instance="first")
    daemon.process.send_signal(15)
    assert daemon.process.wait() == 0
    kinds = []
    try:
        while True:
            kinds.append(worker.connection.wait_event()[0])
    except proto.Ended:
        pass
    assert proto.GOODBYE in kinds
    assert kinds == [proto.GOODBYE]


def test_varlink_describes_itself(daemon):
    info = daemon.call("org.varlink.service.GetInfo")
    assert "io.reuseport.Control" in info["interfaces"]
    assert {"vendor", "product", "version", "url"} <= set(info)
    text = daemon.call("org.varlink.service.GetInterfaceDescription",
                       interface="io.reuseport.Control")["description"]
    for method in ("Status", "Drain", "Undrain", "SetWeight", "RotateKeys", "Reload"):
        assert f"method {method}(" in text


def test_worker_that_drains_for_too_long_loses_its_slot(start_daemon, configuration):
    configuration.service("web", f"""[Service]
AllowUser=root
DrainTimeoutSec=1
[Listener http]
ListenStream=127.0.0.1:{PORT}
""")
    daemon = start_daemon("--config", configuration.directory)
    slow, other = daemon.worker(instance="slow"), daemon.worker(instance="other")
    assert daemon.call("Drain", instance="slow") == {"drained": 1}
    kinds = []
    with pytest.raises(proto.Ended):
        while True:
            kinds.append(slow.connection.wait_event()[0])
    assert kinds == [proto.DRAIN_REQUESTED, proto.GOODBYE]
    assert [w["instance"] for w in daemon.status()["services"][0]["workers"]] == ["other"]
    assert connections_reach([slow, other]) == {other}
