# SPDX-License-Identifier: BSD-2-Clause
"""Mistakes are told with file, line and reason; a reload changes what was changed and nothing else."""
import socket

import pytest

import harness
from control_client import ControlError

PORT = 8080
GOOD = f"""[Service]
AllowUser=root
[Listener http]
ListenStream=127.0.0.1:{PORT}
"""


def check(directory):
    return harness.run(harness.REUSEPORTD, "--check", "--config", directory, check=False)


def test_good_configuration_passes(system, configuration):
    configuration.service("web", GOOD)
    result = check(configuration.directory)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("text, line, reason", [
    ("[Service]\nAllowUsers=root\n[Listener a]\nListenStream=127.0.0.1:1\n", 2, "AllowUsers"),
    ("[Service]\nAllowUser=no-such-user\n[Listener a]\nListenStream=127.0.0.1:1\n", 2,
     "no-such-user"),
    ("[Service]\nAllowGroup=no-such-group\n[Listener a]\nListenStream=127.0.0.1:1\n", 2,
     "no-such-group"),
    ("[Service]\n[Listener a]\nListenStream=127.0.0.1:70000\n", 3, "70000"),
    ("[Service]\n[Listener a]\nListenStream=127.0.0.300:80\n", 3, "127.0.0.300"),
    ("[Service]\n[Listener a]\nListenStream=127.0.0.1:1\nStandby=perhaps\n", 4, "perhaps"),
    ("[Service]\n[Listener a]\nListenStream=127.0.0.1:1\nBacklog=-3\n", 4, "-3"),
    ("[Service]\nDrainTimeoutSec=soon\n[Listener a]\nListenStream=127.0.0.1:1\n", 2, "soon"),
    ("[Service]\nMaxWorkers=0\n[Listener a]\nListenStream=127.0.0.1:1\n", 2, "MaxWorkers"),
    ("[Service]\n[Listener a]\nListenStream=127.0.0.1:1\nBindIPv6Only=maybe\n", 4, "maybe"),
    ("[Service]\n[Listener a]\nListenStream=127.0.0.1:1\nFreeBind=2x\n", 4, "FreeBind"),
    ("[Nonsense]\nA=1\n", 1, "Nonsense"),
    ("[Service]\n[Listener a]\nListenStream=127.0.0.1:1\n[Listener a]\nListenStream=127.0.0.1:2\n", 4,
     "a"),
])
def test_mistake_is_named_with_file_and_line(system, configuration, text, line, reason):
    path = configuration.service("web", text)
    result = check(configuration.directory)
    assert result.returncode == 1
    places = [l for l in result.stderr.splitlines() if f"{path}:{line}:" in l]
    assert places, result.stderr
    assert reason in "\n".join(places)


def test_every_mistake_is_named_at_once(system, configuration):
    first = configuration.service("a", "[Service]\nWrong=1\nAlsoWrong=1\n[Listener a]\n"
                                       "ListenStream=127.0.0.1:1\n")
    second = configuration.service("b", "[Service]\n[Listener b]\nListenStream=nowhere\n")
    result = check(configuration.directory)
    assert result.returncode == 1
    for place in (f"{first}:2:", f"{first}:3:", f"{second}:3:"):
        assert place in result.stderr


def test_missing_directory_is_named(system, tmp_path):
    result = check(tmp_path / "absent")
    assert result.returncode == 1
    assert str(tmp_path / "absent") in result.stderr


def shape(daemon):
    """Status without what counts or changes by itself."""
    return [(s["name"],
             sorted((l["name"], l["transport"], l["address"]) for l in s["listeners"]),
             sorted((w["slot"], w["instance"], w["state"], w["pid"]) for w in s["workers"]))
            for s in daemon.status()["services"]]


def serves(listener, port=PORT):
    with harness.tcp_client(("127.0.0.1", port), b"request 0\n") as client:
        harness.answer_all(listener, 1, b"worker")
        harness.check_answers([client], b"worker")


@pytest.mark.parametrize("how", ["signal", "call"])
def test_reload_with_a_mistake_changes_nothing(start_daemon, configuration, how):
    configuration.service("web", GOOD)
    daemon = start_daemon("--config", configuration.directory)
    worker = daemon.worker()
    before = shape(daemon)
    configuration.service("other", "[Service]\n[Listener b]\nListenStream=127.0.0.1:9090\n")
    path = configuration.service("web", GOOD.replace(str(PORT), "9091") + "Unknown=1\n")
    if how == "signal":
        daemon.reload()
        assert f"{path}:5:" in daemon.process.output()
    else:
        with pytest.raises(ControlError) as info:
            daemon.call("Reload")
        assert f"{path}:5:" in str(info.value.parameters)
    assert shape(daemon) == before
    serves(worker.socket)
    with pytest.raises(ConnectionRefusedError):
        harness.tcp_client(("127.0.0.1", 9090))


@pytest.mark.parametrize("line, what", [
    ("ConnectionID=nginx", "ConnectionID="), ("Flows=256", "Flows="),
    ("Flows=256\nStandby=refuse", "Flows=, Standby=")])
def test_what_can_not_be_changed_on_an_open_address_is_said(start_daemon, configuration, line, what):
    quic = "[Service]\nAllowUser=root\n[Listener h3]\nListenQUIC=127.0.0.1:4433\n"
    path = configuration.service("web", quic)
    daemon = start_daemon("--config", configuration.directory)
    worker = daemon.worker(instance="w")
    configuration.service("web", quic + line + "\n")
    refused = daemon.ctl("reload", check=False)
    assert refused.returncode != 0
    assert refused.stderr == (
        f"reuseportctl: cannot reload the configuration: {path}:3: {what} can't be changed while "
        "quic://127.0.0.1:4433 is open (listener h3 of service web) and its workers have sockets "
        "there: take the listener out and reload, then put it in as it is to be and reload again, "
        "when its workers have ended; or open it on another address\n")
    assert daemon.status("web")["listeners"][0]["connection_id"] == "quic-lb"
    # As it says.
    configuration.service("web", quic.replace("4433", "4434"))
    daemon.reload()
    assert daemon.status("web")["listeners"][0]["address"] == "127.0.0.1:4434"
    worker.leave()
    configuration.service("web", quic + line + "\n")
    daemon.reload()
    assert daemon.status("web")["listeners"][0]["address"] == "127.0.0.1:4433"


def test_reload_with_an_address_in_use_changes_nothing(start_daemon, configuration):
    configuration.service("web", GOOD)
    daemon = start_daemon("--config", configuration.directory)
    worker = daemon.worker()
    before = shape(daemon)
    with socket.create_server(("127.0.0.1", 9090)):
        configuration.service("a", "[Service]\n[Listener b]\nListenStream=127.0.0.1:9089\n")
        configuration.service("other", "[Service]\n[Listener b]\nListenStream=127.0.0.1:9090\n")
        with pytest.raises(ControlError) as info:
            daemon.call("Reload")
        assert "9090" in str(info.value.parameters)
        assert shape(daemon) == before
        serves(worker.socket)
        with pytest.raises(ConnectionRefusedError):
            harness.tcp_client(("127.0.0.1", 9089))


@pytest.mark.parametrize("how", ["signal", "call"])
def test_reload_adds_and_removes_and_leaves_the_rest(start_daemon, configuration, how):
    configuration.service("web", GOOD)
    configuration.service("old", "[Service]\n[Listener o]\nListenStream=127.0.0.1:9092\n")
    daemon = start_daemon("--config", configuration.directory)
    worker = daemon.worker(instance="first")
    clients = [harness.tcp_client(("127.0.0.1", PORT), b"request %d\n" % i) for i in range(20)]

    configuration.service("web", GOOD + "[Listener second]\nListenStream=127.0.0.1:9091\n")
    configuration.service("new", "[Service]\n[Listener n]\nListenStream=127.0.0.1:9093\n")
    configuration.remove("services.d/old.conf")
    if how == "signal":
        daemon.reload()
    else:
        daemon.call("Reload")
    assert [s["name"] for s in daemon.status()["services"]] == ["new", "web"] or \
        sorted(s["name"] for s in daemon.status()["services"]) == ["new", "web"]
    assert sorted(l["name"] for l in daemon.status("web")["listeners"]) == ["http", "second"]
    with pytest.raises(ConnectionRefusedError):
        harness.tcp_client(("127.0.0.1", 9092))
    # What waited in the worker's queue is there, and more comes.
    harness.answer_all(worker.socket, 20, b"worker")
    harness.check_answers(clients, b"worker")
    harness.close_all(clients)
    serves(worker.socket)

    # A worker that comes now has both listeners; a worker of the new service has its own.
    later = daemon.worker(instance="later")
    assert sorted(later.sockets[0]) == ["http", "second"]
    serves(later.sockets[0]["second"], 9091)
    fresh = daemon.worker(service="new")
    serves(fresh.socket, 9093)
    later.leave()

    # And away with the second listener again.
    configuration.service("web", GOOD)
    daemon.call("Reload")
    assert [l["name"] for l in daemon.status("web")["listeners"]] == ["http"]
    serves(worker.socket)
    worker.leave()
    fresh.leave()


def test_service_that_leaves_drains_its_workers(start_daemon, configuration):
    configuration.service("web", GOOD)
    configuration.service("old", "[Service]\n[Listener o]\nListenStream=127.0.0.1:9092\n")
    daemon = start_daemon("--config", configuration.directory)
    worker = daemon.worker(service="old")
    configuration.remove("services.d/old.conf")
    daemon.call("Reload")
    reason, _ = worker.wait_drain_requested()
    assert reason == 3  # PROTOCOL_DRAIN_RELOAD
    worker.leave()
    harness.poll_until(lambda: [s["name"] for s in daemon.status()["services"]] == ["web"],
                       "the service has gone with its last worker")
