# SPDX-License-Identifier: BSD-2-Clause
"""
systemd in small, as far as it restarts a daemon: a notification socket that keeps descriptors
(FDSTORE=1, FDNAME=, FDSTOREREMOVE=1, FDPOLL=), and a start that hands them over as LISTEN_FDS.
"""
import array
import contextlib
import fcntl
import os
import select
import shutil
import signal
import socket
import threading

import harness

ROOM = 8192  # FileDescriptorStoreMax=


class Notification:
    """The notification socket, read by a thread of its own: a daemon never waits for it."""

    def __init__(self, path):
        self.path = str(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self.socket.bind(self.path)
        os.chmod(self.path, 0o666)
        self.stored = []  # (name, descriptor, polled), in order
        self.n_ready = 0
        self.changed = threading.Condition()
        self.reading = threading.Lock()  # messages are handled in their order
        self.wake, self.woken = socket.socketpair()
        self.thread = threading.Thread(target=self.read_all, daemon=True)
        self.thread.start()

    def read_all(self):
        while True:
            readable, _, _ = select.select([self.socket, self.woken], [], [])
            if self.woken in readable:
                return
            try:
                self.read_one()
            except BlockingIOError:
                pass  # take() was faster

    def read_one(self):
        with self.reading:
            self.handle_one()

    def handle_one(self):
        data, ancillary, flags, _ = self.socket.recvmsg(
            65536, socket.CMSG_SPACE(253 * 4), socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT)
        assert not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)
        descriptors = array.array("i")
        for level, kind, octets in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(octets)
        fields = dict(line.split("=", 1) for line in data.decode().split("\n") if "=" in line)
        with self.changed:
            if fields.get("FDSTORE") == "1":
                self.store(fields, descriptors)
            elif fields.get("FDSTOREREMOVE") == "1":
                for entry in [e for e in self.stored if e[0] == fields["FDNAME"]]:
                    self.stored.remove(entry)
                    os.close(entry[1])
            else:
                for descriptor in descriptors:
                    os.close(descriptor)
            if fields.get("READY") == "1":
                self.n_ready += 1
            self.changed.notify_all()

    def store(self, fields, descriptors):
        name = fields["FDNAME"]
        # What systemd asks of a name (fdname_is_valid()); another one is dropped in silence.
        assert 0 < len(name) <= 255 and name.isascii() and name.isprintable() and ":" not in name
        for descriptor in descriptors:
            if len(self.stored) < ROOM:
                self.stored.append((name, descriptor, fields.get("FDPOLL") != "0"))
            else:
                os.close(descriptor)

    def take(self):
        """
        What the next start gets. What has hung up is dropped, as systemd does when it sees that.
        Messages that are under way are read first.
        """
        while True:
            try:
                self.read_one()
            except BlockingIOError:
                break
        kept = []
        with self.changed:
            for name, descriptor, polled in self.stored:
                poll = select.poll()
                poll.register(descriptor, 0)
                if polled and poll.poll(0):
                    os.close(descriptor)
                else:
                    kept.append((name, descriptor, polled))
            self.stored = kept
            return list(kept)

    def forget(self):
        """All that is stored, as at a stop."""
        self.take()
        with self.changed:
            for _, descriptor, _ in self.stored:
                os.close(descriptor)
            self.stored = []

    def names(self):
        with self.changed:
            return [name for name, _, _ in self.stored]

    def wait_ready(self, n, process, seconds=harness.DEADLINE):
        def told():
            with self.changed:
                if self.n_ready >= n:
                    return True
            assert process.poll() is None, f"ended with {process.poll()} before READY=1"
            return False
        harness.poll_until(told, "READY=1", seconds, interval=0.001)

    def close(self):
        self.wake.close()
        self.thread.join(harness.DEADLINE)
        self.woken.close()
        self.socket.close()
        for _, descriptor, _ in self.stored:
            os.close(descriptor)
        self.stored = []


class Child:
    """What harness.Daemon wants of a process."""

    def __init__(self, pid):
        self.pid = pid
        self.status = None

    def poll(self, flags=os.WNOHANG):
        if self.status is None:
            pid, status = os.waitpid(self.pid, flags)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status

    def wait(self, seconds=harness.DEADLINE):
        return harness.poll_until(lambda: self.poll() is not None and (self.status,),
                                  "the process has ended", seconds, interval=0.001)[0]

    def signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)


class StoredDaemon(harness.Daemon):
    """A daemon that is started again with what it had put into the store. wrapper: a program before
    it."""

    stores = True

    def __init__(self, arguments, user=harness.USER, program=harness.REUSEPORTD):
        self.program = program
        self.set_up(user)
        self.arguments = [*arguments, "--runtime-directory", self.runtime, "--state-directory",
                          self.state, "--user", user]
        self.notification = Notification(self.directory / "notify")
        self.log = self.directory / "log"
        self.child = None
        try:
            self.start()
        except BaseException:
            self.cleanup()
            raise

    def start(self, program=None, wrapper=(), wait=True):
        """wrapper: arguments before the program's own, for instance of a tracer."""
        self.program = program or self.program
        arguments = [str(a) for a in (*wrapper, self.program, *self.arguments)]
        stored = self.notification.take()
        n_ready = self.notification.n_ready
        pid = os.fork()
        if pid == 0:
            try:
                self.run(arguments, stored)
            finally:
                os._exit(127)
        self.child = Child(pid)
        if wait:
            self.notification.wait_ready(n_ready + 1, self.child)

    def run(self, arguments, stored):
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        above = 3 + len(stored) + 1
        # First out of the way, then down to where LISTEN_FDS has them.
        copies = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, above)
                  for _, descriptor, _ in stored]
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        for i, copy in enumerate(copies):
            os.dup2(copy, 3 + i)
        harness.close_inherited(set(range(3 + len(stored))))
        signal.alarm(0)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        environment = {**os.environ, "NOTIFY_SOCKET": self.notification.path}
        if self.stores:
            environment["FDSTORE"] = str(ROOM)
        if stored:
            environment.update(LISTEN_FDS=str(len(stored)), LISTEN_PID=str(os.getpid()),
                               LISTEN_FDNAMES=":".join(name for name, _, _ in stored))
        os.chdir("/")
        os.execve(arguments[0], arguments, environment)

    @property
    def pid(self):
        return self.child.pid

    def output(self):
        return self.log.read_text(errors="replace")

    def alive(self):
        return self.child.poll() is None

    def die(self, number=signal.SIGKILL):
        self.child.signal(number)
        return self.child.wait()

    def restart(self, number=signal.SIGKILL, **options):
        self.die(number)
        self.start(**options)

    def reload(self):
        n = self.notification.n_ready
        self.child.signal(signal.SIGHUP)
        self.notification.wait_ready(n + 1, self.child)

    def stop(self):
        self.leave_all()
        self.child.signal(signal.SIGTERM)
        return self.child.wait()

    def cleanup(self):
        if self.child:
            print(f"\n--- reuseportd {self.pid} said:\n{self.output()}--- end")
        self.leave_all()
        if self.child:
            self.die()
        self.notification.close()
        harness.end_keeper(self.runtime)
        harness.reap_keepers()
        shutil.rmtree(self.directory, ignore_errors=True)


class KeptDaemon(StoredDaemon):
    """The same where nobody stores for it: it has its own keeper. Nothing is handed to a start."""

    stores = False


def whole_status(daemon, service):
    """
    Status, once the queue of each socket is in it. The kernel dumps many sockets in parts, and passes
    some over when one goes meanwhile: the keeper or systemd closes its copy of a sink a moment later.
    """
    def whole():
        found = daemon.status(service)
        queues = [socket["queue"] for worker in found["workers"] for socket in worker["sockets"]]
        return found if None not in queues else None
    return harness.poll_until(whole, "a status with the queue of every socket", interval=0.1)


@contextlib.contextmanager
def started(configuration, kind=StoredDaemon):
    """A function that starts daemons; at the end those that live still are stopped in order."""
    daemons = []

    def start(*arguments, kind=kind, **options):
        daemon = kind(["--config", configuration.directory, *arguments], **options)
        daemons.append(daemon)
        return daemon

    yield start
    for daemon in daemons:
        try:
            if daemon.alive():
                assert daemon.stop() == 0
        finally:
            daemon.cleanup()
