# SPDX-License-Identifier: BSD-2-Clause
"""
What every system test stands on: a network namespace of its own, a daemon in it, and ways to wait
for a condition instead of for time to pass.
"""
import contextlib
import ctypes
import os
import pathlib
import pickle
import select
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
import traceback

from control_client import Control
from patience import PATIENCE
from worker_protocol import Worker

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("REUSEPORT_BUILD", ROOT / "build")).resolve()
REUSEPORTD = BUILD / "daemon" / "reuseportd"
REUSEPORTCTL = BUILD / "tools" / "reuseportctl"
REUSEPORT_RUN = BUILD / "tools" / "reuseport-run"
LIBRARY = BUILD / "client-lib" / "libreuseport.so.0"

USER = "reuseport"
KERNEL = tuple(map(int, os.uname().release.split(".")[:2]))
DEADLINE = 30 * PATIENCE  # seconds; a limit for what hangs, never a measure of speed

CLONE_NEWNET = 0x40000000
PR_SET_CHILD_SUBREAPER = 36
libc = ctypes.CDLL(None, use_errno=True)


def poll_until(condition, what, seconds=DEADLINE, interval=0.01):
    """Returns the first true value of condition()."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(interval)


def wait_readable(objects, seconds):
    """Those of these sockets and workers that can be read from; none when the time is over."""
    poll = select.poll()  # select() ends at descriptor 1023
    by_fd = {}
    for each in objects:
        by_fd[each.fileno()] = each
        poll.register(each, select.POLLIN)
    return [by_fd[fd] for fd, _ in poll.poll(seconds * 1000)]


def run(*arguments, check=True, **options):
    options.setdefault("timeout", 60 * PATIENCE)
    options.setdefault("capture_output", True)
    options.setdefault("text", True)
    result = subprocess.run([str(a) for a in arguments], **options)
    if check:
        assert result.returncode == 0, \
            f"{arguments}: {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result


def check_libc(result, what):
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


class NetworkNamespace:
    """
    A new namespace for the calling thread, so for all sockets and processes it makes. It goes when
    the last of them has gone, there is nothing to delete.
    """

    def __enter__(self):
        self.before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        check_libc(libc.unshare(CLONE_NEWNET), "unshare network")
        run("ip", "link", "set", "lo", "up")
        sysctl("net/ipv4/tcp_migrate_req", 0)
        return self

    def __exit__(self, *_):
        check_libc(libc.setns(self.before, CLONE_NEWNET), "setns")
        os.close(self.before)


def sysctl(name, value):
    pathlib.Path("/proc/sys", name).write_text(f"{value}\n")


def in_child(function, uid=None, gid=None):
    """
    Runs function in a forked process, as another user where given, and returns what it returned.
    The child closes what the tests hold: a worker's socket must not live on in a copy.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            close_inherited({0, 1, 2, writer})
            if gid is not None:
                os.setgroups([])
                os.setresgid(gid, gid, gid)
            if uid is not None:
                os.setresuid(uid, uid, uid)
            result = (True, function())
        except BaseException as error:
            result = (False, f"{error!r}\n{traceback.format_exc()}")
        try:
            with os.fdopen(writer, "wb") as stream:
                stream.write(pickle.dumps(result))
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        octets = stream.read()
    os.waitpid(pid, 0)
    good, value = pickle.loads(octets)
    assert good, value
    return value


def freeze(pid):
    """SIGSTOP, and back when the process does nothing any more: a signal is on its way for a while."""
    def stands_still():
        states = [stat.read_text().rpartition(")")[2].split()[0]
                  for stat in pathlib.Path(f"/proc/{pid}/task").glob("*/stat")]
        return set(states) == {"T"}

    os.kill(pid, signal.SIGSTOP)
    poll_until(stands_still, f"{pid} stands still", interval=0.001)


def close_inherited(keep):
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in keep:
            try:
                os.close(int(name))
            except OSError:
                pass


class WorkerProcess:
    """A worker in a process of its own that holds the only copy of its sockets and does nothing."""

    def __init__(self, path, **options):
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                close_inherited({0, 1, 2, writer})
                worker = Worker(path, **options)
                os.write(writer, b"%d" % worker.slot)
                os.close(writer)
                while True:
                    signal.pause()
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        os.close(writer)
        with os.fdopen(reader, "rb") as stream:
            slot = stream.read()
        assert slot, "the worker's process could not register"
        self.slot = int(slot)

    def kill(self):
        if self.pid is not None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = None


class Process:
    """A program with its output in a file, stopped by its pid at the end."""

    def __init__(self, arguments, log, **options):
        self.log = pathlib.Path(log)
        with open(self.log, "ab") as output:
            self.process = subprocess.Popen(
                [str(a) for a in arguments], stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, **options)
        self.pid = self.process.pid

    @property
    def returncode(self):
        return self.process.poll()

    def output(self):
        return self.log.read_text(errors="replace")

    def send_signal(self, number):
        self.process.send_signal(number)

    def wait(self, seconds=DEADLINE):
        return self.process.wait(seconds)

    def stop(self, number=signal.SIGTERM):
        """Exit status; a process that does not end within the deadline is killed."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait(DEADLINE)


class Notify:
    """The other end of sd_notify(3)."""

    def __init__(self, path):
        self.path = str(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self.socket.bind(self.path)
        os.chmod(self.path, 0o666)

    def wait(self, line, process, seconds=DEADLINE):
        end = time.monotonic() + seconds
        while True:
            assert time.monotonic() < end, f"{line} did not come within {seconds} s"
            readable = wait_readable([self.socket], 0.05)
            if readable:
                if line in self.socket.recv(65536).decode(errors="replace").split("\n"):
                    return
            else:
                assert process.returncode is None, \
                    f"ended with {process.returncode} before {line}:\n{process.output()}"

    def close(self):
        self.socket.close()


class Daemon:
    """
    reuseportd in the namespace of the calling thread. arguments: those that say what to serve;
    state: the state directory of an earlier one.
    """

    def __init__(self, arguments, user=USER, state=None, program=REUSEPORTD):
        self.set_up(user, state)
        self.notify = Notify(self.directory / "notify")
        self.process = Process(
            [program, *arguments, "--runtime-directory", self.runtime,
             "--state-directory", self.state, "--user", user],
            self.directory / "log", env={**os.environ, "NOTIFY_SOCKET": self.notify.path},
            cwd="/")
        try:
            self.notify.wait("READY=1", self.process)
            # It says so after the notification is out and its socket closed: nothing of the start
            # is left to change the count of its descriptors.
            poll_until(lambda: "is ready in" in self.process.output(), "the daemon says so too")
        except BaseException:
            self.cleanup()
            raise

    def set_up(self, user, state=None):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="reuseportd-"))
        self.directory.chmod(0o755)
        self.runtime = self.directory / "run"
        self.runtime.mkdir(mode=0o755)
        shutil.chown(self.runtime, user, user)
        self.state = pathlib.Path(state or self.directory / "state")  # the daemon makes it
        self.worker_socket = str(self.runtime / "worker.sock")
        self.control_socket = str(self.runtime / "control.sock")
        self.workers = []
        self.processes = []

    def leave_all(self):
        for worker in self.workers:
            worker.abandon()
        for process in self.processes:
            process.kill()

    @property
    def pid(self):
        return self.process.pid

    def resident(self):
        """KiB of its memory."""
        status = pathlib.Path(f"/proc/{self.pid}/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")))

    def worker(self, **options):
        worker = Worker(self.worker_socket, **options)
        self.workers.append(worker)
        return worker

    def worker_process(self, **options):
        process = WorkerProcess(self.worker_socket, **options)
        self.processes.append(process)
        return process

    def control(self):
        return Control(self.control_socket)

    def call(self, method, **parameters):
        with self.control() as control:
            return control.call(method, **parameters)

    def status(self, service=None):
        """The reply to Status, or its part about one service."""
        reply = self.call("Status")
        if service is None:
            return reply
        found = [s for s in reply["services"] if s["name"] == service]
        assert len(found) == 1, reply
        return found[0]

    def status_worker(self, slot, service="web"):
        """The worker of a slot, None when it has gone."""
        found = [w for w in self.status(service)["workers"] if w["slot"] == slot]
        assert len(found) <= 1
        return found[0] if found else None

    def wait_state(self, slot, state, service="web"):
        """state None: until the slot is given back."""
        def reached():
            worker = self.status_worker(slot, service)
            return (worker["state"] if worker else None) == state
        poll_until(reached, f"slot {slot} is {state or 'gone'}")

    def ctl(self, *arguments, check=True, **options):
        environment = {**os.environ, "REUSEPORT_CONTROL_SOCKET": self.control_socket}
        return run(REUSEPORTCTL, "--socket", self.control_socket, *arguments, check=check,
                   env=environment, **options)

    def n_descriptors(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def n_descriptors_alone(self):
        """
        How many it has without any client, told from how many a client more costs. Measured again
        when it was letting earlier clients go meanwhile.
        """
        def measure():
            with self.control() as first:
                first.call("Status")
                one = self.n_descriptors()
                with self.control() as second:
                    second.call("Status")
                    two = self.n_descriptors()
            alone = one - (two - one)
            end = time.monotonic() + 2
            while self.n_descriptors() != alone:
                if time.monotonic() > end:
                    return None
                time.sleep(0.01)
            return alone

        return poll_until(measure, "the same descriptors without a client as told from two")

    def alive(self):
        return self.process.returncode is None

    def reload(self):
        """SIGHUP, and back when the daemon says that it is done with it, well or not."""
        self.process.send_signal(signal.SIGHUP)
        self.notify.wait("RELOADING=1", self.process)
        self.notify.wait("READY=1", self.process)

    def stop(self):
        """Exit status after SIGTERM."""
        self.leave_all()
        return self.process.stop()

    def cleanup(self):
        print(f"\n--- reuseportd {self.pid} said:\n{self.process.output()}--- end")
        self.leave_all()
        if self.process.returncode is None:
            self.process.process.kill()
            self.process.wait()
        self.notify.close()
        end_keeper(self.runtime)
        reap_keepers()
        shutil.rmtree(self.directory, ignore_errors=True)


def keeper_pid(runtime):
    """Of the process that keeps descriptors for the next daemon in that directory; None without."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        try:
            connection.connect(str(pathlib.Path(runtime) / "keeper.sock"))
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return struct.unpack("=iII", credentials)[0]


def end_keeper(runtime):
    """It stays as long as workers do, and these are often the tests themselves."""
    pid = keeper_pid(runtime)
    if pid:
        process = os.pidfd_open(pid)  # readable when all that it had is closed
        os.kill(pid, signal.SIGKILL)
        wait_readable([os.fdopen(process)], DEADLINE)


def adopt_orphans():
    """A daemon that dies leaves its keeper to this process, which can reap it."""
    check_libc(libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "become a subreaper")


def reap_keepers():
    """Not every machine's first process does."""
    children = []
    for task in pathlib.Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that ended
            children += map(int, (task / "children").read_text().split())
    for pid in children:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, ChildProcessError):
            if pathlib.Path(f"/proc/{pid}/comm").read_text() in ("reuseport-keep\n", "die_at\n"):
                os.waitpid(pid, os.WNOHANG)


# Clients and what a worker does with them


def tcp_client(address, request=b"", source=None):
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    client = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    client.settimeout(DEADLINE)
    if source:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.bind(source)
    client.connect(address)
    if request:
        client.sendall(request)
    return client


def close_all(sockets):
    for each in sockets:
        each.close()


def accept(listener, seconds=DEADLINE):
    """The next connection of a listener that does not block."""
    readable = wait_readable([listener], seconds)
    assert readable, f"no connection within {seconds} s"
    connection, _ = listener.accept()
    connection.settimeout(DEADLINE)
    return connection


def accept_now(listener):
    """Every connection that waits in the accept queue at this moment."""
    connections = []
    while True:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return connections
        connection.settimeout(DEADLINE)
        connections.append(connection)


def receive_line(connection):
    octets = b""
    while not octets.endswith(b"\n"):
        more = connection.recv(4096)
        assert more, f"connection ended after {octets!r}"
        octets += more
    return octets


def answer_all(listener, count, name):
    """Accepts count connections and answers the request of each with the name before it."""
    for _ in range(count):
        with accept(listener) as connection:
            connection.sendall(name + b" " + receive_line(connection))


def check_answers(clients, name):
    """Every client i, which sent b"request i", has the answer of this worker and nobody else's."""
    for i, client in enumerate(clients):
        assert receive_line(client) == name + b" request %d\n" % i


def udp_client(address, source=None):
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    client = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    client.settimeout(DEADLINE)
    if source:
        client.bind(source)
    client.connect(address)
    return client


def receive_datagrams(workers, count, seconds=DEADLINE):
    """
    Reads until count datagrams are there. List of (worker, data, sender); workers are objects with
    fileno() and a non-blocking .socket.
    """
    received = []
    end = time.monotonic() + seconds
    while len(received) < count:
        left = end - time.monotonic()
        assert left > 0, f"{len(received)} of {count} datagrams within {seconds} s"
        readable = wait_readable(workers, left)
        for worker in readable:
            received += receive_now(worker)
    assert len(received) == count
    return received


def receive_now(worker):
    received = []
    while True:
        try:
            data, sender = worker.socket.recvfrom(2048)
        except BlockingIOError:
            return received
        received.append((worker, data, sender))
