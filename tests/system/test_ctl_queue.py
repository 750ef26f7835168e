# SPDX-License-Identifier: BSD-2-Clause
"""What reuseportctl shows of a worker that does not keep up, and of strangers; and kick."""
import json
import re

import harness
from terminal import Terminal
from test_stranger import Holder

PORT = 8080


def start(start_daemon, configuration, *arguments):
    """A listener whose accept queue holds ten and one, and one for datagrams."""
    configuration.service("web", f"[Service]\nAllowUser=root\n[Listener http]\nListenStream=127.0.0.1:{PORT}\n"
                                 f"Backlog=10\n[Listener u]\nListenDatagram=127.0.0.1:{PORT}\n")
    return start_daemon("--config", configuration.directory, *arguments)


def queue_of(daemon, slot, listener="http"):
    return [s["queue"] for s in daemon.status_worker(slot)["sockets"] if s["listener"] == listener][0]


def test_queue_is_shown_everywhere(start_daemon, configuration):
    daemon = start(start_daemon, configuration)
    worker = daemon.worker(instance="web@1")
    assert daemon.ctl("check", check=False).returncode == 0
    clients = [harness.tcp_client(("127.0.0.1", PORT)) for _ in range(10)]
    harness.poll_until(lambda: queue_of(daemon, worker.slot) == 10, "ten wait")
    for command in (["status"], ["list-workers"], ["top", "--once", "-d", "0.1"]):
        text = daemon.ctl(*command).stdout
        line = next(line for line in text.splitlines() if "web@1" in line)
        assert "10/10" in line.split(), command
    sockets = [line.split() for line in daemon.ctl("show", "web@1").stdout.splitlines()[-2:]]
    assert [each[0] for each in sockets] == ["http", "u"]
    assert sockets[0][-2] == "10/10"
    assert re.fullmatch(r"0B/\d+(\.\d)?[kM]B", sockets[1][-2])
    checked = daemon.ctl("check", check=False)
    assert checked.returncode == 1
    assert checked.stdout.splitlines()[1:] == [
        f"WARNING: web: slot {worker.slot} (web@1) has a queue that is full: 10/10"]
    daemon.ctl("drain", "web@1")
    checked = daemon.ctl("check", check=False)
    assert checked.returncode == 2
    assert [line.split(": ", 1)[0] for line in checked.stdout.splitlines()] == \
        ["CRITICAL", "CRITICAL", "CRITICAL", "WARNING"]
    daemon.ctl("undrain", "web@1")
    metrics = daemon.ctl("metrics").stdout
    labels = f'service="web",listener="http",transport="tcp",instance_name="web@1",slot="{worker.slot}"'
    assert f"reuseportd_worker_accept_queue{{{labels}}} 10\n" in metrics
    assert f"reuseportd_worker_accept_queue_limit{{{labels}}} 10\n" in metrics
    labels = labels.replace("http", "u").replace("tcp", "udp")
    assert f"reuseportd_worker_receive_queue_bytes{{{labels}}} 0\n" in metrics
    assert f"reuseportd_worker_accept_queue{{{labels}" not in metrics
    harness.close_all(clients)


def test_top_sorts_by_queue_and_marks_a_full_one(start_daemon, configuration):
    daemon = start(start_daemon, configuration)
    first = daemon.worker(instance="web@1")
    clients = [harness.tcp_client(("127.0.0.1", PORT)) for _ in range(10)]
    harness.poll_until(lambda: queue_of(daemon, first.slot) == 10, "ten wait")
    daemon.worker(instance="web@2")
    daemon.ctl("drain", "web@1")
    clients += [harness.tcp_client(("127.0.0.1", PORT)) for _ in range(3)]
    daemon.worker(instance="web@3")
    daemon.ctl("drain", "web@2")
    clients += [harness.tcp_client(("127.0.0.1", PORT)) for _ in range(5)]
    terminal = Terminal([harness.REUSEPORTCTL, "--socket", daemon.control_socket, "top", "-d", "0.2"])
    try:
        terminal.wait_for(lambda text: re.findall(r" (\d+)/10 ", text) and
                          sorted(map(int, re.findall(r" (\d+)/10 ", text))) == [3, 5, 10], "the queues")
        terminal.press("sss")
        terminal.wait_for("sort: queue", "sorted")
        assert re.findall(r" (web@\d) .* (\d+)/10 ", terminal.text()) == \
            [("web@1", "10"), ("web@3", "5"), ("web@2", "3")]
        row = next(y for y, line in enumerate(terminal.lines()) if "web@1" in line)
        column = terminal.lines()[row].index("10/10")
        assert terminal.screen.buffer[row][column].fg == "red"
        assert terminal.screen.buffer[row + 1][column + 1].fg == "default"
        terminal.press("q")
        assert terminal.end() == 0
    finally:
        terminal.close()
    harness.close_all(clients)


def test_kick_moves_what_waits(start_daemon, configuration):
    daemon = start(start_daemon, configuration, "--net-admin")
    hanging = daemon.worker_process(instance="hanging")
    harness.freeze(hanging.pid)
    clients = [harness.tcp_client(("127.0.0.1", PORT), b"request %d\n" % i) for i in range(5)]
    harness.poll_until(lambda: queue_of(daemon, hanging.slot) == 5, "five wait")
    other = daemon.worker(instance="other")
    assert daemon.ctl("kick", "hanging").stdout == "kick worker hanging: 1 worker, 1 listening socket closed\n"
    listener = other.sockets[0][next(iter(other.sockets[0]))]
    harness.answer_all(listener, 5, b"other")
    harness.check_answers(clients, b"other")
    assert "draining" in daemon.ctl("show", "hanging").stdout
    assert json.loads(daemon.ctl("kick", "other", "-j").stdout) == {"kicked": 1, "sockets": 1}
    assert daemon.ctl("kick", "absent", check=False).returncode == 1
    assert daemon.ctl("kick", check=False).returncode == 2
    harness.close_all(clients)
    hanging.kill()


def test_kick_without_the_capability_says_what_to_do(start_daemon, configuration):
    daemon = start(start_daemon, configuration)
    worker = daemon.worker(instance="web@1")
    failed = daemon.ctl("kick", "web@1", check=False)
    assert failed.returncode == 1 and failed.stdout == ""
    assert failed.stderr.startswith("reuseportctl: cannot kick worker web@1: ")
    assert "CAP_NET_ADMIN" in failed.stderr and "net-admin.conf" in failed.stderr
    assert daemon.status_worker(worker.slot)["state"] == "active"


def test_strangers_are_shown(start_daemon, configuration):
    daemon = start(start_daemon, configuration)
    daemon.worker(instance="web@1")
    harness.poll_until(lambda: not any(each["strangers"] for each in daemon.status("web")["listeners"]),
                       "nobody else is there")
    with Holder() as holder:
        # The daemon shows those that stay for some seconds.
        harness.poll_until(lambda: any(each["strangers"] for each in daemon.status("web")["listeners"]),
                           "it is one")
        status = daemon.ctl("status").stdout
        assert re.search(rf"^  a stranger has a socket at 127\.0\.0\.1:{PORT}: pid {holder.pid} \(python3\S*\), "
                         rf"user {harness.USER}\b", status, re.MULTILINE), status
        checked = daemon.ctl("check", check=False)
        assert checked.returncode == 1
        assert re.fullmatch(rf"WARNING: web/http: a stranger has a socket at 127\.0\.0\.1:{PORT}: "
                            rf"pid {holder.pid} \(python3\S*\), user {harness.USER}.*",
                            checked.stdout.splitlines()[1])
        assert 'reuseportd_listener_strangers{service="web",listener="http",transport="tcp"} 1\n' in \
            daemon.ctl("metrics").stdout
