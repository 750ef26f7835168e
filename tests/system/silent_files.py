# SPDX-License-Identifier: BSD-2-Clause
"""
Files whose close waits for ever: of a FUSE file system, served here in its raw protocol
(linux/fuse.h), whose server answers all but what a close asks. Not even SIGKILL ends that wait at
the end of a process, so whatever happens, the connection is aborted in the end (fusectl).
"""
import ctypes
import os
import socket
import struct
import tempfile
import threading

import pytest

import harness

LOOKUP, FORGET, GETATTR, SETATTR, OPEN, WRITE = 1, 2, 3, 4, 14, 16
RELEASE, FLUSH, INIT, BATCH_FORGET = 18, 25, 26, 42
WRITEBACK_CACHE = 1 << 16
ENOSYS = 38
MS_REC_PRIVATE = 0x44000

libc = ctypes.CDLL(None, use_errno=True)


def mount(source, target, kind, flags=0, options=""):
    harness.check_libc(libc.mount(source.encode(), str(target).encode(), kind.encode(), flags,
                                  options.encode()), f"mount {kind}")


def attributes(inode, mode):
    return struct.pack("<QQQQQQIIIIIIIIII", inode, 4096, 8, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0,
                       4096, 0)


class Server:
    """Answers all but what is in self.silent."""

    def __init__(self, device):
        self.device = device
        self.silent = ()
        self.waiting = 0  # requests that were not answered
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self):
        while True:
            try:
                request = os.read(self.device, 1 << 20)
            except OSError:
                return  # aborted
            _, kind, unique, node = struct.unpack_from("<IIQQ", request)
            if kind in (FORGET, BATCH_FORGET):
                continue
            if kind in self.silent:
                self.waiting += 1
                continue
            error, body = self.answer(kind, node, request[40:])
            try:
                os.write(self.device,
                         struct.pack("<IiQ", 16 + len(body), -error, unique) + body)
            except FileNotFoundError:
                pass  # who asked was interrupted

    @staticmethod
    def answer(kind, node, request):
        if kind == INIT:
            return 0, struct.pack("<IIIIHHIIHHI28x", 7, 31, 65536, WRITEBACK_CACHE, 12, 9, 65536,
                                  1, 0, 0, 0)
        if kind == LOOKUP:
            node = 2 + int(request.rstrip(b"\0"))
            return 0, struct.pack("<QQQQII", node, 0, 3600, 3600, 0, 0) + attributes(node, 0o100666)
        if kind in (GETATTR, SETATTR):
            return 0, struct.pack("<QII", 3600, 0, 0) + attributes(
                node, 0o40777 if node == 1 else 0o100666)
        if kind == OPEN:
            return 0, struct.pack("<QII", 1, 0, 0)
        if kind == WRITE:
            return 0, struct.pack("<II", struct.unpack_from("<QQI", request)[2], 0)
        if kind in (FLUSH, RELEASE):
            return 0, b""
        return ENOSYS, b""


class Client:
    """In the process of a hostile user, which has mounted the file system."""

    def __init__(self, directory, server):
        self.directory = directory
        self.server = server
        self.n = 0

    def open(self):
        """Two descriptors of a file that nobody has opened yet."""
        path = os.path.join(self.directory, str(self.n))
        self.n += 1
        return os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)

    def open_silent(self):
        """To close any copy of it waits."""
        fd, _ = self.open()
        self.server.silent = (FLUSH,)
        return fd

    def wait_for(self, n):
        """So many that closed a file wait for it."""
        harness.poll_until(lambda: self.server.waiting >= n, f"{n} wait")

    def last_reference(self, send):
        """
        send(fd) sends a file, which is nowhere else then, and to let go of it waits, though nobody
        has closed it: there are pages to be written (fuse_release). Others that are to wait do so
        already (wait_for), since all is answered for a moment.
        """
        self.server.silent = ()
        fd, other = self.open()
        send(fd)
        os.close(fd)
        self.server.silent = (FLUSH, WRITE)
        os.write(other, b"x" * 4096)


class SilentFiles:
    """with SilentFiles() as files: files.start(function) has function(Client) run in a process."""

    def __init__(self):
        try:
            self.device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            pytest.skip(f"needs FUSE: /dev/fuse: {error.strerror}")
        self.abort_file = None
        self.pid = None
        self.directory = tempfile.TemporaryDirectory(prefix="reuseportd-fuse-")
        os.chmod(self.directory.name, 0o755)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.abort()
        if self.pid:
            os.kill(self.pid, 9)
            os.waitpid(self.pid, 0)
        os.close(self.device)  # which would end it as well
        self.directory.cleanup()

    def abort(self):
        """All that waits is told ENOTCONN, and all that comes."""
        if self.abort_file is not None:
            os.write(self.abort_file, b"1")
            os.close(self.abort_file)
            self.abort_file = None

    def start(self, function, uid):
        """function(Client), with uid as the effective user, says what it has to say by JSON."""
        here, there = socket.socketpair()
        results, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                libc.prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
                harness.close_inherited({0, 1, 2, self.device, there.fileno(), writer})
                client = self.mount(there)
                os.seteuid(uid)
                line = repr(function(client))
            except BaseException as error:
                line = f"Exception({f'{type(error).__name__}: {error}'!r})"
            os.write(writer, line.encode() + b"\n")
            threading.Event().wait()  # what it has stays open
        os.close(writer)
        there.close()
        _, descriptors, _, _ = socket.recv_fds(here, 1, 1)
        here.close()
        self.abort_file, = descriptors
        self.results = os.fdopen(results)

    def mount(self, there):
        libc.unshare(0x20000)  # CLONE_NEWNS
        mount("none", "/", "none", MS_REC_PRIVATE)
        files, control = (os.path.join(self.directory.name, name) for name in ("files", "control"))
        os.mkdir(files)
        os.mkdir(control)
        mount("silent", files, "fuse", 0,
              f"fd={self.device},rootmode=40000,user_id=0,group_id=0,allow_other")
        mount("none", control, "fusectl")
        server = Server(self.device)
        number = os.minor(os.stat(files).st_dev)
        fd = os.open(os.path.join(control, str(number), "abort"), os.O_WRONLY)
        socket.send_fds(there, [b"."], [fd])
        os.close(fd)
        return Client(files, server)

    def has_result(self):
        return bool(harness.wait_readable([self.results], 0))

    def result(self):
        """What function returned."""
        harness.wait_readable([self.results], harness.DEADLINE)
        value = eval(self.results.readline())  # pylint: disable=eval-used
        if isinstance(value, Exception):
            raise value
        return value
