# SPDX-License-Identifier: BSD-2-Clause
"""reuseportctl top on a terminal: what a person sees, at any size, and what is left behind."""
import os
import re
import signal
import threading

import pytest

import harness
from terminal import Terminal

PORT = 8080


@pytest.fixture
def daemon(start_daemon):
    daemon = start_daemon("--listen", f"web=tcp://127.0.0.1:{PORT}",
                          "--listen", f"dns=udp://127.0.0.1:{PORT + 1}")
    daemon.worker(service="dns", instance="dns@1")
    daemon.worker(instance="web@1")
    daemon.worker(instance="web@2")
    return daemon


@pytest.fixture
def top(daemon):
    """top(columns, rows): the command on a terminal of that size, with its first rates."""
    terminals = []

    def start(columns=80, rows=24, *arguments, environment=None):
        terminal = Terminal([harness.REUSEPORTCTL, "--socket", daemon.control_socket, "top",
                             "--delay=0.2", *arguments], columns, rows, environment)
        terminals.append(terminal)
        return terminal

    yield start
    for terminal in terminals:
        terminal.close()


class Load:
    """Datagrams to the UDP listener, each a flow of its own, until the end of the context."""

    def __enter__(self):
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.send)
        self.thread.start()
        return self

    def send(self):
        while not self.ended.wait(0.01):
            with harness.udp_client(("127.0.0.1", PORT + 1)) as client:
                client.send(b"x")

    def __exit__(self, *_):
        self.ended.set()
        self.thread.join()


def worker_line(text, instance):
    found = [line.split() for line in text.split("\n") if f" {instance} " in line]
    assert len(found) <= 1, text
    return found[0] if found else None


def rates(text, instance):
    """(new connections, packets) a second, None before they are known."""
    words = worker_line(text, instance)
    if not words or words[3] == "-":
        return None
    numbers = [word for word in words[3:] if re.fullmatch(r"[0-9.]+k?", word)]
    return [float(number.rstrip("k")) * (1000 if number.endswith("k") else 1) for number in numbers]


def test_top_shows_who_gets_what(daemon, top):
    terminal = top()
    with Load():
        terminal.wait_for(lambda text: (rates(text, "dns@1") or [0])[-1] > 0, "the worker's rate")
    lines = terminal.lines()
    assert re.fullmatch(r"reuseportd \S+, up \S+, services: 2, workers: 3", lines[0])
    assert lines[2] == "● dns  1 active"
    assert re.fullmatch(rf"  udp://127\.0\.0\.1:{PORT + 1}  new \S+/s, packets \S+/s", lines[3])
    assert lines[4].split() == ["SLOT", "INSTANCE", "STATE", "NEW/S", "QUEUE", "PACKETS/S"] or \
        lines[4].split() == ["SLOT", "INSTANCE", "STATE", "NEW/S", "PACKETS/S"]
    assert worker_line(terminal.text(), "dns@1")[1:3] == ["dns@1", "active"]
    # The only one of its service has the longest bar, as far as the line goes.
    assert len(lines[5]) in (79, 80) and lines[5].endswith("█" * 20)
    assert worker_line(terminal.text(), "web@1")[1:3] == ["web@1", "active"]
    assert "█" not in "".join(lines[6:])
    assert lines[23] == "q quit  s sort: slot  every 0.2s"
    terminal.press("q")
    assert terminal.end() == 0
    assert terminal.is_restored()


@pytest.mark.parametrize("end", ["q", "\x03", signal.SIGTERM, signal.SIGHUP, "hang up"])
def test_top_ends_and_leaves_the_terminal_as_it_was(top, end):
    terminal = top()
    terminal.wait_for("web@1", "the picture")
    assert not terminal.is_restored()
    if end == "hang up":
        terminal.process.send_signal(signal.SIGINT)
    elif isinstance(end, str):
        terminal.press(end)
    else:
        terminal.process.send_signal(end)
    assert terminal.end() == 0
    assert terminal.is_restored()


def test_top_is_suspended_and_comes_back(top):
    terminal = top()
    terminal.wait_for("web@1", "the picture")
    terminal.press("\x1a")
    # A session leader of an orphaned process group can't be stopped by SIGTSTP; SIGSTOP stops it.
    harness.poll_until(lambda: os.waitid(os.P_PID, terminal.process.pid,
                                         os.WSTOPPED | os.WNOHANG | os.WNOWAIT), "it stops")
    terminal.read(0.05)
    assert terminal.is_restored()
    terminal.screen.reset()
    terminal.process.send_signal(signal.SIGCONT)
    terminal.wait_for("web@1", "the picture again")
    assert not terminal.is_restored()
    terminal.press("q")
    assert terminal.end() == 0
    assert terminal.is_restored()


@pytest.mark.parametrize("columns, rows", [(120, 40), (40, 12), (30, 8), (16, 5), (5, 3), (2, 2), (1, 1)])
def test_top_fits_any_size(daemon, top, columns, rows):
    terminal = top()
    terminal.wait_for("web@1", "the picture")
    terminal.resize(columns, rows)
    terminal.press("s")
    title = "reuseportd 0.1.0, up"[:columns]
    terminal.wait_for(lambda text: text.startswith(title) and "sort: slot" not in text,
                      "another picture")
    terminal.read(0.5)
    lines = terminal.lines()
    assert len(lines) == rows and all(len(line) <= columns for line in lines)
    assert lines[0].startswith(title)
    if rows > 1:
        assert lines[-1].startswith("q quit"[:columns].rstrip())
    if columns >= 30 and rows >= 12:
        assert worker_line(terminal.text(), "dns@1")
    if columns == 120:
        assert worker_line(terminal.text(), "web@2")
        assert lines[-1] == "q quit  s sort: packets  every 0.2s"
    terminal.resize(80, 24)
    terminal.wait_for("web@2", "all of it again")
    assert terminal.lines()[-1] == "q quit  s sort: packets  every 0.2s"
    terminal.press("q")
    assert terminal.end() == 0
    assert terminal.is_restored()


def test_top_scrolls(daemon, top):
    terminal = top(80, 8)
    terminal.wait_for("up/down 1-5 of 11", "the first lines")
    assert terminal.lines()[2] == "● dns  1 active"
    terminal.press("\x1b[B")
    terminal.wait_for("up/down 2-6 of 11", "one line down")
    assert terminal.lines()[2].startswith("  udp://127.0.0.1")
    terminal.press("G")
    terminal.wait_for("up/down 7-11 of 11", "the end")
    assert worker_line(terminal.text(), "web@2")
    terminal.press("j\x1b[6~\x1b[A")
    terminal.wait_for("up/down 6-10 of 11", "never beyond the end, and one line up from there")
    terminal.press("\x1b[5~")
    terminal.wait_for("up/down 2-6 of 11", "a page up")
    terminal.press("g")
    terminal.wait_for("up/down 1-5 of 11", "the begin")


def test_top_sorts(daemon, top):
    terminal = top()
    with harness.udp_client(("127.0.0.1", PORT + 1)):
        terminal.wait_for("s sort: slot", "slots")
        for order in ("packets", "new", "queue", "slot"):
            terminal.press("s")
            terminal.wait_for(f"s sort: {order}", order)


def test_top_goes_on_when_the_daemon_does(daemon, top):
    terminal = top()
    terminal.wait_for("web@1", "the picture")
    harness.freeze(daemon.pid)
    terminal.wait_for(lambda text: "did not answer in time" in " ".join(text.split()),
                      "says that it hangs")
    assert worker_line(terminal.text(), "web@1"), "what was known stays"
    daemon.process.send_signal(signal.SIGCONT)
    terminal.wait_for(lambda text: "cannot show" not in text, "goes on")
    daemon.ctl("reexec")
    terminal.wait_for(lambda text: rates(text, "web@1") == [0, 0], "and after another program")
    terminal.press("q")
    assert terminal.end() == 0


def test_top_without_a_daemon(netns, tmp_path):
    terminal = Terminal([harness.REUSEPORTCTL, "--socket", tmp_path / "absent", "top"])
    try:
        terminal.wait_for(lambda text: "cannot connect to reuseportd" in " ".join(text.split()), "says so")
        terminal.press("q")
        assert terminal.end() == 3
        assert terminal.is_restored()
    finally:
        terminal.close()


def test_top_in_batch_mode(daemon, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    once = daemon.ctl("top", "--once", "--delay=0.2").stdout
    assert "\x1b" not in once
    lines = once.splitlines()
    assert lines[0].startswith("reuseportd ") and lines[2].endswith("dns  1 active")
    assert all(len(line) <= 60 for line in lines)
    assert rates(once, "web@1") == [0, 0]
    twice = daemon.ctl("top", "web", "-b", "-n", "2", "-d", "0.2").stdout
    assert twice.count("web@1") == 2 and "dns" not in twice
    for wrong in (["--delay=0"], ["--delay=x"], ["-n", "0"], ["--json=short"], ["a", "b"]):
        assert daemon.ctl("top", *wrong, check=False).returncode == 2
    assert daemon.ctl("top", "--once", "nothing-of-this-name", "-d", "0.2", check=False).returncode == 1


def test_top_has_ascii_and_no_colours_where_wanted(daemon, top):
    terminal = top(environment={"LC_ALL": "C", "NO_COLOR": "1"})
    with Load():
        terminal.wait_for(lambda text: "####" in text, "a bar")
    assert terminal.lines()[2] == "* dns  1 active"
    assert not re.search(rb"\x1b\[[0-9;]*m", terminal.history)
    assert terminal.history.isascii()
