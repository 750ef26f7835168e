# SPDX-License-Identifier: BSD-2-Clause
"""Monitor: a snapshot, then every change; and clients of it that are slow, many, or gone."""
import os
import time

import pytest

import harness
from control_client import Control, ControlError
from varlink_interface import Interface

PORT = 8080
INTERFACE = Interface()
KEPT = 1024  # MONITOR_EVENTS


class Monitor(Control):
    """A client of Monitor; every reply is checked against the interface."""

    def __init__(self, daemon, **parameters):
        super().__init__(daemon.control_socket)
        self.send("Monitor", parameters, more=True)

    def next(self):
        message = self.receive()
        assert set(message) == {"continues", "parameters"} and message["continues"] is True
        INTERFACE.check_answer("Monitor", message["parameters"])
        return message["parameters"]

    def snapshot(self):
        reply = self.next()
        assert reply["event"] is None
        return reply["services"]

    def event(self):
        reply = self.next()
        assert reply["services"] is None
        return reply["event"]

    def events(self, count):
        return [self.event() for _ in range(count)]


@pytest.fixture
def daemon(start_daemon):
    return start_daemon("--listen", f"web=tcp://127.0.0.1:{PORT}", "--listen", f"dns=udp://127.0.0.1:{PORT}")


def kinds(events):
    return [(e["kind"], e["service"], e["instance"]) for e in events]


def test_snapshot_then_the_life_of_a_worker(daemon):
    with Monitor(daemon) as monitor:
        snapshot = monitor.snapshot()
        assert [(s["name"], s["workers"]) for s in snapshot] == [("dns", []), ("web", [])]
        before = time.time()
        old = daemon.worker(instance="web@1", service="web")
        new = daemon.worker(instance="web@1", service="web")
        events = monitor.events(5)
        assert kinds(events) == [("registered", "web", "web@1"), ("ready", "web", "web@1"),
                                 ("registered", "web", "web@1"), ("ready", "web", "web@1"),
                                 ("draining", "web", "web@1")]
        assert [e["slot"] for e in events] == [old.slot, old.slot, new.slot, new.slot, old.slot]
        assert {e["pid"] for e in events} == {os.getpid()}
        assert all(abs(e["time"] / 1e6 - before) < 60 for e in events)
        assert [e["reason"] for e in events] == [None] * 4 + ["another one of this instance is ready"]
        old.leave()
        gone = monitor.event()
        assert (gone["kind"], gone["slot"]) == ("gone", old.slot)
        assert gone["reason"] and 0 < gone["served"] < (time.time() - before) * 1e6 + 1e6
        assert all(e["served"] is None for e in events)


def test_what_an_operator_does_is_told(daemon):
    worker = daemon.worker(instance="web@1", service="web")
    with Monitor(daemon, service="web") as monitor:
        assert [w["instance"] for s in monitor.snapshot() for w in s["workers"]] == ["web@1"]
        assert daemon.call("Drain", worker=worker.slot) == {"drained": 1}
        assert daemon.call("Undrain", worker=worker.slot) == {"undrained": 1}
        assert daemon.call("SetWeight", worker=worker.slot, weight=300) == {"changed": 1}
        assert daemon.call("SetWeight", worker=worker.slot, weight=300) == {"changed": 0}
        daemon.call("Reload")
        events = monitor.events(4)
        assert kinds(events) == [("draining", "web", "web@1"), ("undrained", "web", "web@1"),
                                 ("weight", "web", "web@1"), ("reloaded", "", None)]
        assert events[0]["reason"] == "an operator said so"


def test_one_service_is_told_of_itself_alone(daemon):
    with Monitor(daemon, service="dns") as dns, Monitor(daemon) as every:
        assert [s["name"] for s in dns.snapshot()] == ["dns"]
        assert [s["name"] for s in every.snapshot()] == ["dns", "web"]
        daemon.worker(instance="web@1", service="web")
        daemon.worker(instance="dns@1", service="dns")
        assert kinds(every.events(4)) == [("registered", "web", "web@1"), ("ready", "web", "web@1"),
                                          ("registered", "dns", "dns@1"), ("ready", "dns", "dns@1")]
        assert kinds(dns.events(2)) == [("registered", "dns", "dns@1"), ("ready", "dns", "dns@1")]


def test_bad_calls(daemon):
    with Control(daemon.control_socket) as control:
        for flags, parameters, error, said in [
                ({}, {}, "org.varlink.service.ExpectedMore", {}),
                ({"more": True}, {"service": "no"}, "io.reuseport.Control.NoSuchService", {"name": "no"}),
                ({"more": True}, {"service": 7}, "org.varlink.service.InvalidParameter",
                 {"parameter": "service"})]:
            control.send("Monitor", parameters, **flags)
            with pytest.raises(ControlError) as info:
                control.reply()
            assert (info.value.name, info.value.parameters) == (error, said)
        # Nothing is answered to a call that wants no answer, not even many; the next call is.
        control.send("Monitor", {}, more=True, oneway=True)
        assert len(control.call("Status")["services"]) == 2


def test_client_that_leaves_is_forgotten(daemon):
    monitors = [Monitor(daemon) for _ in range(20)]
    for monitor in monitors:
        monitor.snapshot()
    assert daemon.status()["daemon"]["control_clients"] == 21
    for monitor in monitors:
        monitor.close()
    harness.poll_until(lambda: daemon.status()["daemon"]["control_clients"] == 1, "the monitors to be gone")
    daemon.worker(instance="web@1", service="web")


def make_changes(daemon, worker, count):
    with Control(daemon.control_socket) as control:
        for i in range(count):
            assert control.call("SetWeight", worker=worker.slot, weight=100 + i % 2 + 1) == {"changed": 1}


def test_slow_reader_costs_nothing_and_gets_a_new_snapshot(daemon):
    """Far more than the socket and the kept events hold: the first ones that fit, then "overrun", a
    snapshot of now, and what comes after it."""
    worker = daemon.worker(instance="web@1", service="web")
    changes = 20 * KEPT
    with Monitor(daemon) as slow, Monitor(daemon) as quick:
        slow.snapshot()
        quick.snapshot()
        before = daemon.resident()
        for _ in range(changes // 256):
            make_changes(daemon, worker, 256)
            assert [e["kind"] for e in quick.events(256)] == ["weight"] * 256
        grown = daemon.resident() - before
        assert grown < 8 * 1024
        seen = []
        while not seen or seen[-1]["kind"] != "overrun":
            seen.append(slow.event())
        assert {e["kind"] for e in seen[:-1]} == {"weight"}
        assert len(seen) < changes
        weight, = (w["weight"] for s in slow.snapshot() for w in s["workers"])
        assert weight == 102  # the last one
        make_changes(daemon, worker, 3)
        assert [e["kind"] for e in slow.events(3)] == ["weight"] * 3


def test_client_that_never_reads_is_kept_and_slows_nobody(start_daemon, configuration):
    """An answer that nobody reads ends other connections; a monitor may be looked at in a pager."""
    configuration.write("reuseportd.conf", "[Daemon]\nAnswerTimeoutSec=1\n")
    configuration.service("web", f"[Service]\nAllowUser=root\n[Listener http]\nListenStream=127.0.0.1:{PORT}\n")
    daemon = start_daemon("--config", configuration.directory)
    worker = daemon.worker(instance="web@1")
    with Monitor(daemon) as silent:
        make_changes(daemon, worker, 4 * KEPT)
        time.sleep(3)
        assert daemon.status()["daemon"]["control_clients"] == 2
        assert [w["instance"] for s in silent.snapshot() for w in s["workers"]] == ["web@1"]
        assert silent.event()["kind"] == "weight"


def test_further_calls_wait(daemon):
    with Monitor(daemon) as monitor:
        monitor.snapshot()
        monitor.send("Status", {})
        daemon.worker(instance="web@1", service="web")
        assert [e["kind"] for e in monitor.events(2)] == ["registered", "ready"]


def test_many_monitors_are_all_told(daemon):
    monitors = [Monitor(daemon) for _ in range(200)]
    for monitor in monitors:
        monitor.snapshot()
    daemon.worker(instance="web@1", service="web")
    assert {tuple(e["kind"] for e in monitor.events(2)) for monitor in monitors} == {("registered", "ready")}
    for monitor in monitors:
        monitor.close()
