# SPDX-License-Identifier: BSD-2-Clause
"""
A daemon that dies before or after a certain system call (die_at.c), in the middle of what is done with
it, and is started again with what it had stored.
"""
import os
import pathlib
import re
import signal
import subprocess
import threading

import pytest

import harness
import worker_protocol as proto

TCP, UDP = ("127.0.0.1", 8080), ("127.0.0.1", 5300)
WEB = f"""[Service]
AllowUser=root
[Listener http]
ListenStream={TCP[0]}:{TCP[1]}
[Listener dns]
ListenDatagram={UDP[0]}:{UDP[1]}
"""
GONE = (proto.Ended, ConnectionError, EOFError)


class Point:
    """
    The daemon dies at stop n, unless what is done within the context needs fewer, and is started
    again at once: clients that wait at its door or on their connections must not wait for ever.
    """

    def __init__(self, program, daemon, n):
        self.daemon = daemon
        self.died = False
        self.failures = []
        self.process = subprocess.Popen([str(program), str(daemon.pid), str(n)],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "attached\n"
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()

    def watch(self):
        try:
            line = self.process.stdout.readline().split()
            if line[0] == "killed":
                self.died = True
                assert self.daemon.die() == -signal.SIGKILL
                self.daemon.start()
        except BaseException as error:
            self.failures.append(error)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.thread.join(harness.DEADLINE)
        assert not self.thread.is_alive() and self.failures == []
        assert self.process.wait(harness.DEADLINE) == 0
        self.process.stdout.close()


class Scene:
    """A daemon with two workers that stay, and what must hold of them after every start."""

    def __init__(self, daemon):
        self.daemon = daemon
        self.stay = [daemon.worker(instance=f"stay{i}") for i in range(2)]

    def workers(self):
        return {w["slot"]: w for w in self.daemon.status("web")["workers"]}

    def check(self, others=()):
        """Those that stay are active and connected, and get all traffic but what others get."""
        found = self.workers()
        for worker in self.stay:
            assert found[worker.slot]["state"] == "active"
            assert found[worker.slot]["connected"] and not found[worker.slot]["exited"]
            assert not harness.wait_readable([worker.connection.socket], 0)
        self.check_traffic([*self.stay, *others])

    def check_traffic(self, workers):
        n = 30
        sockets = [each for worker in workers for each in worker.sockets]
        clients = [harness.tcp_client(TCP) for _ in range(n)]
        accepted = []
        for each in sockets:
            accepted += harness.accept_now(each["http"])
        assert len(accepted) == n
        harness.close_all(clients + accepted)
        clients = [harness.udp_client(UDP) for _ in range(n)]
        for client in clients:
            client.send(b"x")
        came = []
        for each in sockets:
            while harness.wait_readable([each["dns"]], 0):
                came.append(each["dns"].recv(100))
        assert len(came) == n
        harness.close_all(clients)

    def gone(self, slots):
        """The slots are nobody's within the time of a look."""
        harness.poll_until(lambda: not set(slots) & set(self.workers()), f"slots {slots} are free")


def every_point(die_at, daemon, act, after, first=1, step=1):
    """act() at every point until one run of it needs no more; after(died) each time."""
    n = first
    while True:
        with Point(die_at, daemon, n) as point:
            act()
        after(n if point.died else 0)
        if not point.died:
            return n
        n += step


def third(name):
    """Every third point, from each of the first three: so that one test does not take too long."""
    return pytest.mark.parametrize("first", [1, 2, 3], ids=[f"{name} {i}/3" for i in (1, 2, 3)])


def start_and_die(die_at, daemon, n):
    """Whether the daemon died at its n-th stop; else it is ready, and nobody traces it."""
    n_ready = daemon.notification.n_ready
    daemon.start(wrapper=[die_at, "run", n], wait=False)
    harness.poll_until(lambda: daemon.child.poll() is not None or
                       daemon.notification.n_ready > n_ready, "it is ready or dead", interval=0.001)
    if daemon.child.poll() is None:
        end_tracer(daemon.pid)
        # Ready, but its stop may have come before the end of its tracer.
        if not answers(daemon):
            daemon.child.wait()
    status = daemon.child.poll()
    assert status in (None, -signal.SIGKILL), f"stop {n}: ended with {status}\n{daemon.output()}"
    return status is not None


def end_tracer(pid):
    tracer = traced_by(pid)
    if tracer:
        os.kill(tracer, signal.SIGKILL)
        harness.poll_until(lambda: traced_by(pid) == 0, "nobody traces it", interval=0.001)


def answers(daemon):
    """
    False: it is dead, or about to be. Its sockets are no sign of life, since they may be stored: who
    connects to them waits for the next daemon.
    """
    try:
        with daemon.control() as control:
            control.send("Status", {})
            while not harness.wait_readable([control.socket], 0.01):
                if daemon.child.poll() is not None:
                    return False
            control.reply()
            return True
    except GONE:
        return False


def traced_by(pid):
    """0: nobody, or there is no process."""
    try:
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return 0
    return int(re.search(r"^TracerPid:\t(\d+)$", status, re.MULTILINE).group(1))
