# SPDX-License-Identifier: BSD-2-Clause
"""What an operator sees and does, by the control socket."""
import os
import time

import pytest

import harness
import worker_protocol as proto
from control_client import ControlError
from varlink_interface import Interface

INTERFACE = Interface()
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
    assert "packets" in found
    assert before <= found["since"] / 1e6 <= time.time()


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


def test_daemon_that_stops_and_keeps_nothing_tells_its_workers(start_daemon):
    daemon = start_daemon("--listen", "web=tcp://127.0.0.1:8080", "--no-keeper")
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


def test_one_that_drains_for_too_long_takes_none_with_it(start_daemon, configuration):
    """Two workers of one process: it goes on with one, for as long as it likes."""
    configuration.service("web", f"""[Service]
AllowUser=root
DrainTimeoutSec=1
[Listener http]
ListenStream=127.0.0.1:{PORT}
""")
    daemon = start_daemon("--config", configuration.directory)
    worker = daemon.worker(instance="both", n_workers=2)
    stays, goes = sorted(worker.slots)
    assert daemon.call("Drain", worker=goes) == {"drained": 1}
    time.sleep(3)  # three looks at those whose time is over
    assert [daemon.status_worker(slot)["state"] for slot in (stays, goes)] == ["active", "draining"]
    clients = [harness.tcp_client(ADDRESS) for _ in range(20)]
    accepted = harness.accept_now(worker.sockets[worker.slots.index(stays)]["http"])
    assert len(accepted) == 20
    harness.close_all(clients + accepted)
    assert daemon.call("Undrain", worker=goes) == {"undrained": 1}
    assert [daemon.status_worker(slot)["state"] for slot in (stays, goes)] == ["active", "active"]
    # And when all are over their time, the process is told.
    assert daemon.call("Drain", instance="both") == {"drained": 2}
    with pytest.raises(proto.Ended):
        while True:
            worker.connection.wait_event()
    assert daemon.status("web")["workers"] == []


RIGHT = {"int": 1, "string": "web"}
WRONG = {"int": ["1", 1.5, [1], True], "string": [1, False, {"a": "b"}, ["web"]]}


def complete(takes):
    """Parameters of which each has its type, and that name nobody."""
    return {name: RIGHT[type_] for name, type_ in takes.items() if not type_.startswith("?")}


@pytest.mark.parametrize("method", sorted(INTERFACE.methods))
def test_each_method_names_the_parameter_that_is_wrong(daemon, method):
    takes, _ = INTERFACE.methods[method]
    calls = [({**complete(takes), "wrong": 1}, "wrong"), ({**complete(takes), "Service": None}, "Service")]
    for name, type_ in takes.items():
        calls += [({**complete(takes), name: value}, name) for value in WRONG[type_.lstrip("?")]]
        if not type_.startswith("?"):
            calls += [({k: v for k, v in complete(takes).items() if k != name}, name),
                      ({**complete(takes), name: None}, name)]
    assert len(calls) == 2 + sum(4 + 2 * (not t.startswith("?")) for t in takes.values())
    with daemon.control() as control:
        for parameters, name in calls:
            control.send(method, parameters, more=True)
            with pytest.raises(ControlError) as info:
                control.reply()
            assert (info.value.name, info.value.parameters) == \
                ("org.varlink.service.InvalidParameter", {"parameter": name}), parameters


def test_status_is_what_the_interface_says(start_daemon, configuration):
    """With each kind of listener, and a worker of each service."""
    configuration.service("web", f"""[Service]
AllowUser=root
[Listener http]
ListenStream=127.0.0.1:{PORT}
[Listener h3]
ListenQUIC=127.0.0.1:{PORT}
""")
    configuration.service("ids", f"""[Service]
AllowUser=root
[Listener registered]
ListenQUIC=127.0.0.1:{PORT + 1}
ConnectionID=registered
Flows=65536
[Listener nginx]
ListenQUIC=127.0.0.1:{PORT + 2}
ConnectionID=nginx
""")
    daemon = start_daemon("--config", configuration.directory)
    worker = daemon.worker(service="ids", instance="a")
    with daemon.control() as control:
        status = control.call("Status")
        INTERFACE.check_answer("Status", status)
        first = status["daemon"]
        assert (first["control_clients"], first["worker_clients"], first["pid"]) == (1, 1, daemon.pid)
        assert first["kernel"] == os.uname().release
        assert first["features"] == ["migrate", "keeper"]
        assert first["missing"] == [name for name, since in (("peer-pidfd", (6, 5)), ("thread-pidfd", (6, 9)))
                                    if harness.KERNEL < since]
        assert first["descriptors"] == len(os.listdir(f"/proc/{daemon.pid}/fd"))
        assert first["uptime"] < 60e6 and abs(first["since"] / 1e6 - time.time()) < 60
    ids, web = status["services"]
    registered, nginx = ids["listeners"]
    http, h3 = web["listeners"]
    none = {"flows": None, "connection_ids": None, "cookies": None}
    assert {k: http[k] for k in none} == none
    # A QUIC listener remembers handshakes.
    assert {k: h3[k] for k in none} == {**none, "flows": {"used": 0, "size": h3["flows"]["size"]}}
    assert registered["connection_ids"] == {"used": 0, "size": 65536}
    assert nginx["cookies"] == {"used": 1, "size": 4096}
    assert h3["keys"]["rotations"] == [h3["keys"]["rotation"]]
    assert (http["switched"], http["generation"], http["active"]) == (0, 0, 0)
    assert abs(nginx["switched"] / 1e6 - time.time()) < 60
    assert (nginx["generation"], nginx["active"]) == (1, 1)
    found, = ids["workers"]
    assert (found["slot"], found["stalled"], found["load"]) == (worker.slot, False, None)
    assert [s["listener"] for s in found["sockets"]] == ["registered", "nginx"]
    assert [s["name"] for s in daemon.call("Status", service="web")["services"]] == ["web"]


def test_waiting_is_what_the_standby_holds(start_daemon):
    daemon = start_daemon("--listen", f"web=tcp://127.0.0.1:{PORT}", "--listen", f"dns=udp://127.0.0.1:{PORT}")

    def waiting(service):
        return daemon.status(service)["listeners"][0]["waiting"]

    clients = [harness.tcp_client(ADDRESS, b"request %d\n" % i) for i in range(7)]
    datagrams = [harness.udp_client(ADDRESS) for _ in range(9)]
    for client in datagrams:
        client.send(b"datagram")
    harness.poll_until(lambda: (waiting("web"), waiting("dns")) == (7, 9), "all of them to wait")
    daemon.worker(service="web")
    daemon.worker(service="dns")
    assert (waiting("web"), waiting("dns")) == (0, 0)
    harness.close_all(clients + datagrams)
