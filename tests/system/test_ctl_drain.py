# SPDX-License-Identifier: BSD-2-Clause
"""reuseportctl drain --wait: back when the last connection has ended, and what is said until then."""
import json
import os
import subprocess
import time

import pytest

import harness
from terminal import Terminal

PORT = 8080


@pytest.fixture
def daemon(start_daemon):
    return start_daemon("--listen", f"web=tcp://127.0.0.1:{PORT}")


def start(daemon, *arguments):
    return subprocess.Popen([str(harness.REUSEPORTCTL), "--socket", daemon.control_socket, *arguments],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def seconds_as_x(lines):
    return [line.rsplit(", ", 1)[0] + ", Xs" for line in lines]


def test_drain_waits_for_real_servers(daemon, tmp_path):
    """A server that finishes its connections before it ends; the command is back just after."""
    server = tmp_path / "server.py"
    server.write_text(
        "import os, signal, socket, sys\n"
        "listener = socket.socket(fileno=3)\n"
        "signal.signal(signal.SIGTERM, lambda *_: None)\n"
        "connection, _ = listener.accept()\n"
        "connection.sendall(b'served ')\n"
        "signal.pause()\n"                       # drained
        "listener.close()\n"
        "connection.recv(1)\n"                   # until the client has what it wanted
        "connection.sendall(b'to the end')\n"
        "connection.close()\n")
    run = subprocess.Popen(
        [str(harness.REUSEPORT_RUN), "--socket", daemon.worker_socket, "--service", "web", "--instance", "web@1",
         "--", "/usr/bin/python3", str(server)])
    try:
        harness.poll_until(lambda: [w["state"] for w in daemon.status("web")["workers"]] == ["active"], "it serves")
        with harness.tcp_client(("127.0.0.1", PORT)) as client:
            assert client.recv(7) == b"served "
            waiting = start(daemon, "drain", "web@1", "--wait")
            assert seconds_as_x([waiting.stdout.readline()]) == ["drain worker web@1: 0 of 1 worker gone, Xs"]
            time.sleep(0.5)
            assert waiting.poll() is None, "the connection goes on, so does the command"
            client.sendall(b"x")
            assert client.recv(10) == b"to the end"
        out, err = waiting.communicate(timeout=harness.DEADLINE)
        assert (waiting.returncode, seconds_as_x(out.splitlines()), err) == \
            (0, ["drain worker web@1: 1 of 1 worker gone, Xs"], "")
        assert daemon.status("web")["workers"] == []
        assert run.wait(harness.DEADLINE) == 0
    finally:
        if run.poll() is None:
            run.kill()
        run.wait()


def test_drain_says_how_many_are_left(daemon):
    workers = [daemon.worker_process(instance="web@1") for _ in range(3)]
    # They replaced one another: two drain already, and are waited for as well.
    daemon.wait_state(workers[2].slot, "active")
    waiting = start(daemon, "drain", "--service", "web", "--wait", "--timeout", "30")
    assert waiting.stdout.readline().startswith("drain service web: 0 of 3 workers gone, ")
    for n, worker in enumerate(workers, 1):
        worker.kill()
        assert waiting.stdout.readline().startswith(f"drain service web: {n} of 3 workers gone, ")
    assert waiting.wait(harness.DEADLINE) == 0
    assert waiting.communicate() == ("", "")


def test_drain_gives_up_when_its_time_is_over(daemon):
    worker = daemon.worker_process(instance="web@1")
    done = daemon.ctl("drain", "web@1", "--wait", "--timeout", "0.3", check=False)
    assert done.returncode == 5
    assert "1 of 1 worker still there" in done.stderr and "go on draining" in done.stderr
    assert daemon.status_worker(worker.slot)["state"] == "draining"
    done = daemon.ctl("drain", "web@1", "--wait", "--timeout", "0.3", "--json=short", check=False)
    assert (done.returncode, json.loads(done.stdout)) == (5, {"drained": 0, "gone": 0, "left": 1})
    worker.kill()


def test_drain_with_nobody_to_wait_for(daemon):
    done = daemon.ctl("drain", "web@1", "--wait", check=False)
    assert done.returncode == 1 and "no such worker" in done.stderr


def test_drain_ends_when_somebody_undrains(daemon):
    daemon.worker(instance="web@1")
    waiting = start(daemon, "drain", "web@1", "--wait")
    waiting.stdout.readline()
    daemon.ctl("undrain", "web@1")
    assert waiting.wait(harness.DEADLINE) == 1
    assert "was made active again" in waiting.communicate()[1]


def test_drain_goes_on_when_the_daemon_is_replaced(daemon):
    worker = daemon.worker_process(instance="web@1")
    waiting = start(daemon, "drain", "web@1", "--wait")
    waiting.stdout.readline()
    daemon.ctl("reexec")
    assert daemon.status_worker(worker.slot)["state"] == "draining"
    worker.kill()
    assert waiting.stdout.readline().startswith("drain worker web@1: 1 of 1 worker gone, ")
    assert waiting.wait(harness.DEADLINE) == 0
    waiting.communicate()


def test_drain_updates_one_line_on_a_terminal(daemon):
    first, second = (daemon.worker_process(instance=f"web@{i}") for i in (1, 2))
    terminal = Terminal([harness.REUSEPORTCTL, "--socket", daemon.control_socket, "drain", "--service", "web",
                         "--wait"])
    try:
        terminal.wait_for("drain service web: 0 of 2 workers gone", "both are there")
        first.kill()
        terminal.wait_for("drain service web: 1 of 2 workers gone", "one is")
        assert len([line for line in terminal.lines() if line]) == 1
        second.kill()
        assert terminal.end() == 0
        lines = [line for line in terminal.lines() if line]
        assert len(lines) == 1 and lines[0].startswith("drain service web: 2 of 2 workers gone, ")
        assert terminal.screen.cursor.y == 1, "the prompt comes below it"
    finally:
        terminal.close()


def test_changes_say_what_came_of_them(daemon):
    worker = daemon.worker(instance="web@1")
    slot = str(worker.slot)
    for arguments, said in (
            (["weight", "web@1", "7"], "set the weight of worker web@1 to 7: 1 worker"),
            (["weight", slot, "7"], f"set the weight of worker {slot} to 7: nothing to do, it has this weight"),
            (["drain", "--instance", "web@1"], "drain instance web@1: 1 worker"),
            (["drain", slot], f"drain worker {slot}: nothing to do, it drains already or is not ready yet"),
            (["undrain", "--service=web"], "undrain service web: 1 worker"),
            (["undrain", slot], f"undrain worker {slot}: nothing to do, it does not drain or its process has ended"),
            (["reload"], "reload the configuration: done"),
            (["reexec"], "replace the running program: done")):
        assert daemon.ctl(*arguments).stdout == said + "\n"
    assert json.loads(daemon.ctl("drain", slot, "-j").stdout) == {"drained": 1}
    assert json.loads(daemon.ctl("reload", "-j").stdout) == {}
    failed = daemon.ctl("rotate-keys", "web", check=False)
    assert failed.returncode == 1 and failed.stderr.startswith("reuseportctl: cannot rotate the keys of web: ")
    assert os.getpid() == daemon.status_worker(worker.slot)["pid"]
