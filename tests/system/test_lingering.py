# SPDX-License-Identifier: BSD-2-Clause
"""
A client sends sockets whose last close waits (SO_LINGER, and data that nobody reads) and closes its
own copies, so that the daemon's close, or the kernel's on its behalf, is the last one. The daemon
does not wait.
"""
import os
import signal
import socket
import struct
import time

import pytest

import harness
import worker_protocol as proto

LINGER_SECONDS = 100
N = 5


@pytest.fixture
def lingering(netns):
    """lingering(): N sockets whose last close takes LINGER_SECONDS."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2000)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        made = []

        def make():
            for _ in range(N):
                made.append(socket.create_connection(listener.getsockname()))
                made[-1].setblocking(False)
                with pytest.raises(BlockingIOError):
                    while True:
                        made[-1].send(b"x" * 65536)
                made[-1].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                                    struct.pack("ii", 1, LINGER_SECONDS))
            return made[-N:]
        yield make
        for each in made:  # as the daemon does not see it, it would be ours to wait
            if each.fileno() >= 0:
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
                each.close()


class Stopped:
    """The daemon does nothing meanwhile, so that the client's copies are closed before its own."""

    def __init__(self, daemon):
        self.daemon = daemon

    def __enter__(self):
        harness.freeze(self.daemon.pid)

    def __exit__(self, *_):
        os.kill(self.daemon.pid, signal.SIGCONT)


def send_and_close(connection, octets, sockets):
    """One message for each, and no copy is left here."""
    for each in sockets:
        socket.send_fds(connection, [octets], [each.fileno()])
        each.close()


def check_that_it_answers(daemon):
    start = time.monotonic()
    for _ in range(3):  # the first may come before those sockets
        assert daemon.status("web")["name"] == "web"
        time.sleep(0.1)
    assert time.monotonic() - start < LINGER_SECONDS / 2



def test_sockets_that_are_refused(start_daemon, lingering):
    daemon = start_daemon("--adopt", "--listen", "web=tcp://127.0.0.1:8080")
    adopter = proto.Adopter(daemon.worker_socket)
    sockets = lingering()
    with Stopped(daemon):
        for each in sockets:
            adopter.connection.send(proto.ADOPT, proto.ADOPT_FORMAT.pack(
                adopter.registration, 0, proto.ADOPT_BIND, 0, 0), [each.fileno()])
            each.close()
    check_that_it_answers(daemon)
    adopter.close()


@pytest.mark.parametrize("door, kind", [("worker_socket", socket.SOCK_SEQPACKET),
                                        ("control_socket", socket.SOCK_STREAM)])
def test_sockets_that_nobody_asked_for(start_daemon, lingering, door, kind):
    """With a message that means nothing, and left unread when the client goes."""
    daemon = start_daemon("--listen", "web=tcp://127.0.0.1:8080")
    sockets = lingering()
    with Stopped(daemon), socket.socket(socket.AF_UNIX, kind) as client:
        client.connect(getattr(daemon, door))
        send_and_close(client, b"x", sockets)
    check_that_it_answers(daemon)
    assert daemon.alive()
