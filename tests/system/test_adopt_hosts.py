# SPDX-License-Identifier: BSD-2-Clause
"""
Servers as Debian ships them, which bind for themselves: replaced under load, with reuseport-run
--adopt and without us. The figures of both are in docs/adopt.md.
"""
import signal
import time

import pytest

import debian_hosts
import harness
from debian_hosts import HOSTS, LISTENERS

ROLLS = 5


@pytest.fixture(params=HOSTS)
def host(request, netns):
    result = HOSTS[request.param]
    result.name = request.param
    return result


@pytest.fixture
def processes():
    running = []
    yield running
    for each in running:
        each.stop()
        print(f"--- {each.log.name} said:\n{each.output()[-3000:]}--- end")


@pytest.fixture
def client(host, tmp_path):
    clients = []

    def start():
        clients.append(debian_hosts.make_client(host.client, tmp_path))
        return clients[-1]
    yield start
    for each in clients:
        each.kill()


def test_rolling_replacement_loses_no_request(host, start_daemon, configuration, processes, client,
                                              tmp_path):
    configuration.service("web", "[Service]\n" + LISTENERS[host.client])
    daemon = start_daemon("--adopt", "--config", configuration.directory)
    n_listeners = LISTENERS[host.client].count("Listen") // 2

    def start():
        processes.append(harness.Process(
            [harness.REUSEPORT_RUN, "--socket", daemon.worker_socket, "--service", "web",
             "--instance", "x", "--drain-signal", host.signal_name,
             "--drain-delay", str(host.delay), "--adopt", "--",
             *host.prepare(tmp_path / f"{len(processes)}")],
            tmp_path / f"{len(processes)}.log"))
        new = processes[-1]

        def active():
            assert new.returncode is None, new.output()
            workers = daemon.status("web")["workers"]
            return len([w for w in workers if w["state"] == "active"]) == host.sockets
        harness.poll_until(active, f"{host.sockets} workers are active")
        return new

    old = start()
    load = client()
    for _ in range(ROLLS):
        new = start()
        status = old.wait()
        assert status in (0, 128 + signal.SIGTERM, 130), old.output()
        old = new
        answered_since = answered(daemon)
        harness.poll_until(lambda: answered(daemon) > answered_since + 20, "the new one is asked")
    done, failed = load.finish()
    print(f"FIGURES {host.name}: {failed} of {done + failed} failed, {ROLLS} servers replaced")
    assert failed == 0
    assert done > ROLLS * 20
    assert n_listeners == len(daemon.status("web")["listeners"])


def answered(daemon):
    return sum(l["new_connections"] for l in daemon.status("web")["listeners"])


@pytest.mark.parametrize("host", ["nginx"], indirect=True)
def test_nginx_reloads_itself_with_more_workers(host, start_daemon, configuration, processes,
                                                client, tmp_path):
    """
    nginx's own way: its master reads its configuration anew and binds what it lacks, two sockets
    each time. They join as they are bound, and no request fails meanwhile.
    """
    configuration.service("web", "[Service]\n" + LISTENERS[host.client])
    daemon = start_daemon("--adopt", "--config", configuration.directory)
    processes.append(harness.Process(
        [harness.REUSEPORT_RUN, "--socket", daemon.worker_socket, "--service", "web",
         "--drain-signal", "QUIT", "--adopt", "--", *host.prepare(tmp_path / "nginx")],
        tmp_path / "log"))

    def workers(n):
        harness.poll_until(lambda: len([w for w in daemon.status("web")["workers"]
                                        if w["state"] == "active"]) == n, f"{n} active workers")
    workers(4)
    load = client()
    configured = tmp_path / "nginx" / "nginx.conf"
    for n in (6, 8, 10):
        configured.write_text(configured.read_text().replace(f"worker_processes {n - 2};",
                                                             f"worker_processes {n};"))
        processes[0].send_signal(signal.SIGHUP)
        workers(n)
        before = answered(daemon)
        harness.poll_until(lambda: answered(daemon) > before + 100, "requests go on")
    done, failed = load.finish()
    print(f"FIGURES nginx, three reloads from 4 to 10 workers: {failed} of {done + failed} failed")
    assert failed == 0 and done > 300


def test_restart_without_us_loses_some(host, processes, client, tmp_path):
    def start():
        processes.append(harness.Process(host.prepare(tmp_path / f"{len(processes)}"),
                                         tmp_path / f"{len(processes)}.log"))
        return processes[-1]

    old = start()
    harness.poll_until(lambda: debian_hosts.answers(host.client), "it answers")
    load = client()
    restarts = 0
    while restarts < ROLLS or not load.has_failures():
        restarts += 1
        assert restarts <= 50
        old.send_signal(getattr(signal, f"SIG{host.signal_name}"))
        old.wait()
        old = start()
        harness.poll_until(lambda: debian_hosts.answers(host.client), "it answers")
        time.sleep(0.5)  # of good service between two restarts
    done, failed = load.finish()
    print(f"FIGURES {host.name} alone: {failed} of {done + failed} failed, {restarts} restarts")
    assert failed > 0
