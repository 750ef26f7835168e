# SPDX-License-Identifier: BSD-2-Clause
"""
A server on libreuseport, in a process of its own: answers each request, over TCP and UDP, with its
name before it, says what the library tells it, and comes back to another daemon by itself.
"""
import ctypes
import os
import select
import signal
import socket
import sys
import traceback

import harness

DRAIN = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint64, ctypes.c_void_p)
KEYS = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p)
DISCONNECTED = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
STALLED = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p)
RESUMED = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
FIND = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p)
FIND_ADOPTED = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p)


class Callbacks(ctypes.Structure):
    _fields_ = [("drain", DRAIN), ("keys_rotated", KEYS), ("disconnected", DISCONNECTED),
                ("stalled", STALLED), ("resumed", RESUMED), ("find_socket", FIND),
                ("find_adopted", FIND_ADOPTED)]


class Server:
    """
    take: the sockets are taken out of the context and moved to other numbers. comes_back: whether
    it looks at what the library has to do. workers: of the one registration.
    """

    def __init__(self, daemon, name, take=False, comes_back=True, workers=1, service="web"):
        self.name = name
        self.path = daemon.directory / f"server-{name}"
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                harness.close_inherited({0, 1, 2, writer})
                signal.alarm(0)
                self.out = open(self.path, "w", buffering=1)
                self.serve(daemon.worker_socket, writer, take, comes_back, workers, service)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(1)
        os.close(writer)
        with os.fdopen(reader) as stream:
            line = stream.read()
        assert line, f"{name} could not register"
        self.slots = [int(word) for word in line.split()]

    def serve(self, path, writer, take, comes_back, workers, service):
        library = ctypes.CDLL(str(harness.LIBRARY))
        library.reuseport_error.restype = ctypes.c_char_p
        r = ctypes.c_void_p()

        def check(result):
            assert result >= 0, (result, library.reuseport_error(r))
            return result

        check(library.reuseport_open(ctypes.byref(r), path.encode(), 30000))
        self.callbacks = Callbacks(
            drain=DRAIN(lambda *_: self.say("drain")),
            disconnected=DISCONNECTED(lambda _, error, text, __: self.say(f"disconnected {error}")),
            resumed=RESUMED(lambda *_: self.say("resumed " + " ".join(
                str(library.reuseport_slot(r, w)) for w in range(workers)))))
        library.reuseport_set_callbacks(r, ctypes.byref(self.callbacks), None)
        check(library.reuseport_register(r, service.encode(), self.name.encode(), workers, 0, 30000))
        sockets = []
        for w in range(workers):
            for i in range(library.reuseport_n_listeners(r)):
                if take:
                    fd = check(library.reuseport_take_socket(r, w, i))
                    moved = os.dup(fd)
                    os.close(fd)
                else:
                    moved = os.dup(check(library.reuseport_socket(r, w, i)))
                sockets.append(socket.socket(fileno=moved))
        check(library.reuseport_ready(r, 30000))
        os.write(writer, b" ".join(b"%d" % library.reuseport_slot(r, w) for w in range(workers)))
        os.close(writer)
        fd = library.reuseport_get_fd(r)
        poll = select.poll()
        for each in sockets:
            each.setblocking(False)
            poll.register(each, select.POLLIN)
        if comes_back:
            poll.register(fd, select.POLLIN)
        by_fd = {each.fileno(): each for each in sockets}
        while True:
            for ready, _ in poll.poll():
                if ready == fd:
                    library.reuseport_dispatch(r, 0)
                else:
                    self.answer(by_fd[ready])

    def answer(self, listener):
        try:
            if listener.type == socket.SOCK_DGRAM:
                data, sender = listener.recvfrom(2048)
                listener.sendto(self.name.encode() + b" " + data, sender)
                return
            connection, _ = listener.accept()
        except BlockingIOError:
            return
        with connection:
            connection.settimeout(harness.DEADLINE)
            connection.sendall(self.name.encode() + b" " + harness.receive_line(connection))

    def say(self, line):
        self.out.write(line + "\n")

    def said(self):
        return self.path.read_text().splitlines()

    def wait_said(self, line):
        harness.poll_until(lambda: line in self.said(), f"{self.name} says {line}: {self.said()}")

    def kill(self):
        if self.pid is not None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = None
