# SPDX-License-Identifier: BSD-2-Clause
"""reuseport-run --adopt: what becomes of the server, and of its children, when the launcher has ended."""
import os
import pathlib
import signal

import pytest

import harness
from launched import PORT, SYS_bind, SYS_poll, adopt, ask, daemon, launch, states  # noqa: F401
from launched import system_call


def children(pid):
    """{pid: name} of a process's children."""
    found = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {int(pid): pathlib.Path(f"/proc/{pid}/comm").read_text().strip() for pid in found}


def successor_of(one):
    """The process that is to answer when the launcher has gone."""
    return next(pid for pid, name in children(one.process.pid).items() if name == "reuseport-after")


def exists(pid):
    """And has not ended: not every init(8) takes notice of the end of its foster children."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_killed_launcher_leaves_the_server_at_work(daemon, adopt):
    """Nothing is adopted any more, the rest is as it was, and nothing is left behind."""
    one = adopt("one", f"""
        s = listen(("127.0.0.1", {PORT}))
        tell()
        wait_for_go()
        tell(other=fails(listen, ("127.0.0.1", 9999)), again=fails(s.listen, 5),
             services=fails(bind, ("127.0.0.1", {PORT + 1})))
        serve([s], "one")
        """)
    pid = one.told()["pid"]
    successor = successor_of(one)
    try:
        one.process.send_signal(signal.SIGKILL)
        one.process.wait()
        one.go()
        harness.poll_until(lambda: len(one.told()) > 1, "the server has tried")
        assert one.told() == {"pid": pid, "other": None, "again": None, "services": "EADDRINUSE"}
        ask(b"one")
        assert exists(successor)
    finally:
        os.kill(pid, signal.SIGKILL)
    harness.poll_until(lambda: states(daemon) == [], "the slot is given back")
    harness.poll_until(lambda: not exists(successor), "nobody could ask any more")


def test_launcher_killed_while_it_answers(daemon, adopt):
    """Whose bind() waits for it gets an answer all the same: the kernel's."""
    if os.uname().machine != "x86_64":
        pytest.skip("knows system calls by their numbers on x86-64")
    one = adopt("one", f"""
        s = listen(("127.0.0.1", {PORT}))
        tell()
        wait_for_go()
        tell(error=fails(bind, ("127.0.0.1", {PORT + 1})))
        serve([s], "one")
        """)
    pid = one.told()["pid"]
    harness.freeze(daemon.pid)
    try:
        one.go()
        harness.poll_until(lambda: system_call(pid)[0] == SYS_bind, "it waits in bind()")
        # One descriptor, the daemon's: else it polls all that it has.
        harness.poll_until(lambda: (system_call(one.process.pid) + [0] * 3)[:3:2] ==
                           [SYS_poll, "0x1"], "the launcher waits for the daemon")
        one.process.send_signal(signal.SIGKILL)
        one.process.wait()
        harness.poll_until(lambda: "error" in one.told(), "bind() has returned")
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    try:
        assert one.told()["error"] == "EADDRINUSE"
        ask(b"one")
    finally:
        os.kill(pid, signal.SIGKILL)


def test_children_that_outlive_server_and_launcher(daemon, adopt):
    one = adopt("one", f"""
        s = listen(("127.0.0.1", {PORT}))
        tell()
        if os.fork() == 0:
            wait_for_go()
            other = listen(("127.0.0.1", 9999))
            tell(bound=True)
            serve([other], "child")
            os._exit(0)
        """)
    assert one.process.wait() == 0
    one.go()
    harness.poll_until(lambda: "bound" in one.told(), "the child has bound")
    try:
        ask(b"child", 9999)
    finally:
        os.kill(one.told()["pid"], signal.SIGTERM)
