# SPDX-License-Identifier: BSD-2-Clause
"""
Clients send descriptors of files whose close waits for ever. Whoever waits, it is not the daemon:
it answers all others meanwhile, and ends when it is told to.
"""
import errno
import os
import pwd
import select
import signal
import socket
import time

import pytest

import harness
import worker_protocol as proto
from silent_files import SilentFiles

PORT = 8080
NOBODY = pwd.getpwnam("nobody").pw_uid
STUCK = 4  # processes of one user that may stand still
READY = proto.REGISTRATION_FORMAT.pack(1, 0)


@pytest.fixture
def silent():
    with SilentFiles() as files:
        yield files


@pytest.fixture
def daemon(start_daemon):
    return start_daemon("--adopt", "--listen", f"web=tcp://127.0.0.1:{PORT}")


def children(daemon):
    """How many the daemon has, its keeper left out."""
    with open(f"/proc/{daemon.pid}/task/{daemon.pid}/children") as file:
        pids = file.read().split()
    return len(set(pids) - {str(harness.keeper_pid(daemon.runtime))})


class Served:
    """A worker of another user, and its clients: each request gets its answer."""

    def __init__(self, daemon):
        self.daemon = daemon
        self.worker = daemon.worker(instance="served")
        self.n = 0

    def check(self):
        with harness.tcp_client(("127.0.0.1", PORT), b"request 0\n") as client:
            harness.answer_all(self.worker.socket, 1, b"served")
            harness.check_answers([client], b"served")
        self.n += 1
        status = self.daemon.status("web")
        assert [w["instance"] for w in status["workers"]] == ["served"]

    def check_until(self, condition):
        end = time.monotonic() + harness.DEADLINE
        while True:
            self.check()
            if condition():
                return
            assert time.monotonic() < end

    def adopts(self):
        """Other users' descriptors are taken as ever."""
        adopter = proto.Adopter(self.daemon.worker_socket, instance="adopter")
        with socket.socket() as server:
            adopter.adopt(proto.ADOPT_BIND, server.fileno())
            assert server.getsockname() == ("127.0.0.1", PORT)
        adopter.connection.request(proto.UNREGISTER, proto.REGISTRATION_FORMAT.pack(
            adopter.registration, 0))
        adopter.close()


def refused(path, fds):
    """errno of a message with these descriptors, and of the end of the connection, or None."""
    connection = proto.Connection(path)
    try:
        with pytest.raises(proto.Refused) as refusal:
            # Where the kernel can't tell whose the connection is (before 6.5), HELLO brings a pidfd.
            connection.hello()
            connection.request(proto.READY, READY, fds)
        if refusal.value.error == errno.EBUSY:
            with pytest.raises(proto.Ended) as end:
                connection.answer(0)
            return errno.EBUSY, end.value.error
        with pytest.raises(proto.Refused):
            connection.request(proto.READY, READY)  # it is heard as before
        return refusal.value.error, None
    finally:
        connection.close()


def send_five(daemon):
    def attack(client):
        fd = client.open_silent()
        return [refused(daemon.worker_socket, [fd]) for _ in range(STUCK + 1)]
    return attack


def test_four_wait_and_then_the_user_is_refused(daemon, silent):
    served = Served(daemon)
    served.check()
    silent.start(send_five(daemon), NOBODY)
    served.check_until(silent.has_result)
    assert silent.result() == [(errno.EBADF, None)] * STUCK + [(errno.EBUSY, errno.EBUSY)]
    assert children(daemon) == STUCK
    served.adopts()
    served.check()
    silent.abort()
    harness.poll_until(lambda: children(daemon) == 0, "the processes have ended")
    # The user is heard again.
    reader, writer = os.pipe()
    assert harness.in_child(lambda: refused(daemon.worker_socket, os.pipe()), uid=NOBODY) == \
        (errno.EBADF, None)
    os.close(reader)
    os.close(writer)
    served.check()


def test_daemon_ends_while_they_wait(daemon, silent):
    silent.start(send_five(daemon), NOBODY)
    assert len(silent.result()) == STUCK + 1
    assert children(daemon) == STUCK
    assert daemon.stop() == 0


def broken(daemon, send):
    """The connection ends at the first message, and the file is in the one behind it."""
    connection = proto.Connection(daemon.worker_socket)
    connection.hello()
    os.kill(daemon.pid, signal.SIGSTOP)
    connection.send_raw(b"x")
    send(connection.socket)


def taken(daemon, send):
    connection = proto.Connection(daemon.worker_socket)
    connection.hello()
    os.kill(daemon.pid, signal.SIGSTOP)
    send(connection.socket)


def left(daemon, send):
    """Nobody reads it: its sender has gone."""
    connection = proto.Connection(daemon.worker_socket)
    connection.hello()
    os.kill(daemon.pid, signal.SIGSTOP)
    send(connection.socket)
    connection.close()


def control(daemon, send):
    connection = daemon.control()
    os.kill(daemon.pid, signal.SIGSTOP)
    send(connection.socket)


@pytest.mark.parametrize("way", [taken, broken, left, control])
def test_last_reference_is_not_the_daemons(daemon, silent, way):
    """What is thrown away without having been received waits as well."""
    served = Served(daemon)
    message = proto.header(proto.READY, len(READY), 7, n_descriptors=1) + READY

    def attack(client):
        client.last_reference(lambda fd: way(
            daemon, lambda connection: socket.send_fds(connection, [message], [fd])))
        os.kill(daemon.pid, signal.SIGCONT)

    silent.start(attack, 0)
    assert silent.result() is None
    served.check_until(lambda: children(daemon) == 1)
    silent.abort()
    harness.poll_until(lambda: children(daemon) == 0, "the process has ended")
    served.check()


def test_daemon_ends_with_connections_that_nobody_can_close(daemon, silent):
    """All four processes of the user stand still, and more connections end."""
    def attack(client):
        fd = client.open_silent()
        outcomes = [refused(daemon.worker_socket, [fd]) for _ in range(STUCK + 3)]
        with daemon.control() as control_socket:
            socket.send_fds(control_socket.socket, [b"{"], [fd])
            ended = control_socket.socket.recv(1)
        return outcomes, ended

    before = daemon.n_descriptors_alone()
    silent.start(attack, NOBODY)
    assert silent.result() == (
        [(errno.EBADF, None)] * STUCK + [(errno.EBUSY, errno.EBUSY)] * 3, b"")
    harness.poll_until(lambda: daemon.n_descriptors() == before + 2 * STUCK + 3 + 1,
                       "four processes, and four connections")
    served = Served(daemon)
    served.check()
    served.worker.leave()
    silent.abort()
    harness.poll_until(lambda: daemon.n_descriptors() == before, "all have been closed")


def test_reexec_while_they_wait(daemon, silent):
    """The exec closes what a connection that can't be closed has in it, or one on control.sock."""
    message = proto.header(proto.READY, len(READY), 7, n_descriptors=1) + READY

    def attack(client):
        fd = client.open_silent()
        connection = proto.Connection(daemon.worker_socket)
        connection.hello()
        outcomes = [refused(daemon.worker_socket, [fd]) for _ in range(STUCK)]
        client.wait_for(STUCK)
        client.last_reference(
            lambda last: socket.send_fds(connection.socket, [message], [last]))
        with pytest.raises(proto.Refused) as refusal:
            connection.answer(7)
        outcomes.append(refusal.value.error)
        control_socket = daemon.control()
        os.kill(daemon.pid, signal.SIGSTOP)
        reexec = daemon.control()
        reexec.socket.send(b'{"method":"io.reuseport.Control.Reexec"}\0')
        client.last_reference(
            lambda last: socket.send_fds(control_socket.socket, [b"{"], [last]))
        os.kill(daemon.pid, signal.SIGCONT)
        return outcomes, reexec.socket.recv(64)

    served = Served(daemon)
    silent.start(attack, 0)
    served.check()
    assert silent.result() == (
        [(errno.EBADF, None)] * STUCK + [errno.EBUSY], b'{"parameters":{}}\0')
    served.check()
    assert children(daemon) == STUCK + 2
    silent.abort()
    harness.poll_until(lambda: children(daemon) == 0, "the processes have ended")


def foreign_descriptors():
    """(what it is, descriptor, error of a message that brings it)"""
    wanted, unwanted = errno.EOPNOTSUPP, errno.EBADF
    yield "TCP", socket.socket().detach(), wanted
    yield "UDP over IPv6", socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).detach(), wanted
    yield "pidfd", os.pidfd_open(os.getpid()), wanted
    yield "Unix socket", socket.socket(socket.AF_UNIX).detach(), unwanted
    yield "netlink", socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).detach(), unwanted
    yield "packet", socket.socket(socket.AF_PACKET, socket.SOCK_RAW).detach(), unwanted
    yield "pipe", os.pipe()[0], unwanted
    yield "memfd", os.memfd_create("socket:[1]"), unwanted
    yield "device", os.open("/dev/null", os.O_RDWR), unwanted
    yield "directory", os.open("/", os.O_RDONLY), unwanted
    yield "process directory", os.open(f"/proc/{os.getpid()}", os.O_RDONLY), unwanted
    yield "eventfd", os.eventfd(0), unwanted
    with select.epoll() as epoll:
        yield "epoll", os.dup(epoll.fileno()), unwanted
    try:
        yield "vsock", socket.socket(socket.AF_VSOCK).detach(), unwanted
    except OSError:
        pass  # the kernel has none
    yield "no access", os.open("/etc/passwd", os.O_PATH), unwanted


def test_only_sockets_and_pidfds_are_taken(daemon):
    """Whatever the message, here one of a type that nobody knows."""
    before = daemon.n_descriptors_alone()
    connection = proto.Connection(daemon.worker_socket)
    connection.hello()
    outcomes, expected = {}, {}

    def ask(fds):
        with pytest.raises(proto.Refused) as info:
            connection.request(99, b"", fds)
        return info.value.error

    good = socket.socket()
    for name, fd, error in foreign_descriptors():
        outcomes[name], expected[name] = [ask([fd]), ask([good.fileno(), fd])], [error] * 2
        os.close(fd)
    assert outcomes == expected
    good.close()
    connection.close()
    harness.poll_until(lambda: daemon.n_descriptors() == before, "nothing is left")


def test_many_at_once_and_none_is_left(daemon):
    """No more processes than a user may have, and each message its answer."""
    before = daemon.n_descriptors_alone()
    connections = [proto.Connection(daemon.worker_socket) for _ in range(30)]
    reader, writer = os.pipe()
    for connection in connections:
        connection.hello()
    os.kill(daemon.pid, signal.SIGSTOP)
    for connection in connections:
        connection.send(99, b"", [reader])
        connection.send(99, b"", [connection.socket.fileno(), writer])
    os.kill(daemon.pid, signal.SIGCONT)
    for connection in connections:
        for i in range(2):
            with pytest.raises(proto.Refused) as info:
                connection.answer(connection.sequence - 1 + i)
            assert info.value.error == errno.EBADF
    os.close(reader)
    os.close(writer)
    harness.close_all(c.socket for c in connections)
    harness.poll_until(lambda: daemon.n_descriptors() == before, "nothing is left")
    assert children(daemon) == 0
