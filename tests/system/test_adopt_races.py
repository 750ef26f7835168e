# SPDX-License-Identifier: BSD-2-Clause
"""
What changes between the question and the answer of reuseport-run --adopt: the server's memory and
descriptors, the server, the daemon, the address. The socket at a service's address is the
daemon's, or there is none; the server is told what the kernel would have told it.
"""
import os
import pathlib
import pwd
import signal

import pytest

import harness
from launched import PORT, adopt, ask, daemon, launch, states, system_call  # noqa: F401
from launched import Adopted, SYS_bind

DAEMON_UID = pwd.getpwnam(harness.USER).pw_uid if os.geteuid() == 0 else None

# libc.bind() by ctypes lets other threads run meanwhile.
RACE = """
    import ctypes, struct
    libc = ctypes.CDLL(None, use_errno=True)
    sys.setswitchinterval(1e-5)
    def address(port):
        return struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", port, bytes([127, 0, 0, 1]))
    def port_and_owner(s):
        return s.getsockname()[1], os.fstat(s.fileno()).st_uid
    ended = []
    def in_thread(function):
        def run():
            while not ended:
                function()
        thread = threading.Thread(target=run)
        thread.start()
        return thread
"""


def test_address_that_changes_in_memory(daemon, adopt):  # noqa: F811
    """Read once here, and once by the kernel: never is one checked and the other bound."""
    one = adopt("one", RACE + f"""
    import mmap
    memory = mmap.mmap(-1, 4096)
    where = (ctypes.c_char * 16).from_buffer(memory)
    memory[:16] = address(9999)
    both = address({PORT})[2:4], address(9999)[2:4]
    child = os.fork()
    while child == 0:
        memory[2:4] = both[0]
        memory[2:4] = both[1]
    seen = {{}}
    for i in range(50000):
        # Who runs when is the machine's to say.
        if i > 2000 and len(seen) > 2 and min(seen.values()) > 5:
            break
        s = socket.socket()
        good = libc.bind(s.fileno(), where, 16) == 0
        key = str((good, *port_and_owner(s)))
        seen[key] = seen.get(key, 0) + 1
        s.close()
    os.kill(child, signal.SIGKILL)
    s = listen(("127.0.0.1", {PORT}))
    tell(seen=seen)
    serve([s], "one")
    """)
    seen = one.told()["seen"]
    print(seen)
    bound, elsewhere = f"(True, {PORT}, {DAEMON_UID})", "(True, 9999, 0)"
    assert set(seen) <= {bound, elsewhere, "(False, 0, 0)"}
    assert seen[bound] > 0 and seen[elsewhere] > 0
    ask(b"one")


def test_descriptor_that_becomes_another_socket(daemon, adopt):  # noqa: F811
    """What was checked is what is bound: the socket, not its number."""
    one = adopt("one", RACE + f"""
    seen = {{}}
    pool = []
    def swap():
        for each in list(pool):
            libc.dup2(each, number)
    number = os.dup(0)
    thread = in_thread(swap)
    where = address({PORT})
    for _ in range(1000):
        with socket.socket() as tcp, socket.socket() as other, \\
                socket.socket(socket.AF_INET6) as ipv6, open("/dev/null") as null:
            pool[:] = [each.fileno() for each in (tcp, other, ipv6, null)]
            libc.bind(number, where, 16)
            pool.clear()
            for each in (tcp, other, ipv6):
                key = str((each is ipv6, *port_and_owner(each)))
                seen[key] = seen.get(key, 0) + 1
    ended.append(1)
    thread.join()
    s = listen(("127.0.0.1", {PORT}))
    tell(seen=seen, held=len(os.listdir("/proc/%d/fd" % os.getppid())))
    serve([s], "one")
    """)
    told = one.told()
    print(told["seen"])
    bound = f"(False, {PORT}, {DAEMON_UID})"
    assert set(told["seen"]) <= {bound, "(False, 0, 0)", "(True, 0, 0)"}
    assert told["seen"][bound] > 0
    assert told["held"] < 15, "descriptors of the launcher"
    ask(b"one")


ASKS = f"""
    s = listen(("127.0.0.1", {PORT}))
    tell()
    wait_for_go()
    try:
        second = listen(("127.0.0.1", {PORT + 1}))
    except OSError as error:
        tell(error=errno.errorcode[error.errno])
        second = listen(("127.0.0.1", 9999))
    else:
        tell(error=None)
    serve([s, second], "one")
    """


class Asking:
    """A server whose bind() waits for a daemon that is stopped."""

    def __init__(self, daemon, adopt):  # noqa: F811
        self.daemon = daemon
        self.server = adopt("one", ASKS)
        self.pid = self.server.told()["pid"]

    def __enter__(self):
        harness.freeze(self.daemon.pid)
        self.server.go()
        harness.poll_until(lambda: system_call(self.pid)[0] == SYS_bind, "it waits in bind()")
        return self.server

    def __exit__(self, *_):
        if self.daemon.alive():
            os.kill(self.daemon.pid, signal.SIGCONT)

    def error(self):
        harness.poll_until(lambda: "error" in self.server.told(), "bind() has returned")
        return self.server.told()["error"]


@pytest.fixture
def asking(daemon, adopt):  # noqa: F811
    if os.uname().machine != "x86_64":
        pytest.skip("knows system calls by their numbers on x86-64")
    return Asking(daemon, adopt)


def test_daemon_that_is_killed_meanwhile(daemon, asking):  # noqa: F811
    with asking as one:
        daemon.killed = True
        daemon.process.process.kill()
        daemon.process.wait()
        harness.end_keeper(daemon.runtime)
    assert asking.error() == "EADDRINUSE"
    assert f"bind() of process {asking.pid} fails: the connection to reuseportd ended" in \
        one.process.output()
    ask(b"one")


def test_daemon_that_makes_room_for_another_meanwhile(daemon, asking):  # noqa: F811
    """The question waits in the connection, which the next one has."""
    with asking:
        with daemon.control() as control:
            control.send("Reexec", {})
            os.kill(daemon.pid, signal.SIGCONT)
            assert asking.error() is None
    ask(b"one", PORT + 1)
    assert [state for _, state in states(daemon)] == ["active"]


def test_server_that_is_killed_meanwhile(daemon, asking):  # noqa: F811
    """Its socket comes to the daemon all the same, which finds that nobody has it."""
    with asking as one:
        os.kill(asking.pid, signal.SIGKILL)
    assert one.process.wait() == 128 + signal.SIGKILL
    harness.poll_until(lambda: states(daemon) == [], "no slot is left")
    assert daemon.alive()


def test_address_that_has_gone(start_daemon, configuration, launch):  # noqa: F811
    """The daemon's bind() says so, and so does the server's."""
    harness.run("ip", "address", "add", "192.0.2.1/32", "dev", "lo")
    configuration.service("web", f"[Service]\n[Listener http]\nListenStream=192.0.2.1:{PORT}\n")
    daemon = start_daemon("--adopt", "--config", configuration.directory)  # noqa: F811
    harness.run("ip", "address", "delete", "192.0.2.1/32", "dev", "lo")
    one = launch(Adopted, daemon, "one", f"""
        tell(error=fails(bind, ("192.0.2.1", {PORT})), kernels=fails(bind, ("192.0.2.1", 9999)))
        """)
    assert one.told()["error"] == one.told()["kernels"] == "EADDRNOTAVAIL"
    assert one.process.wait() == 0
    assert f"listener http (tcp://192.0.2.1:{PORT}): bind: Cannot assign" in one.process.output()
    assert pathlib.Path(f"/proc/{daemon.pid}").exists()
