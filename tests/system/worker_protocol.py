# SPDX-License-Identifier: BSD-2-Clause
"""
The worker protocol of proto/protocol.h in plain Python, so that a test decides about every message
and every descriptor itself, also about those that a correct client would never send.
"""
import array
import errno
import mmap
import os
import socket
import struct

from patience import PATIENCE

MAGIC = 0x44505552
VERSION = 1

HELLO, REGISTER, ACK, READY, DRAIN, UNREGISTER = 1, 2, 3, 4, 5, 6
CID_ADD, CID_RETIRE, ADOPT, RESUME, LOAD = 7, 8, 9, 10, 11
WELCOME, GRANT, OK, ERROR, LOADS = 64, 65, 66, 67, 68
LOAD_OCTETS = 64  # of each worker in the memory that comes with LOADS
DRAIN_REQUESTED, KEYS_ROTATED, GOODBYE, STALLED, ADOPTED = 128, 129, 130, 131, 132

DRAIN_OPERATOR, DRAIN_REPLACED, DRAIN_RELOAD, DRAIN_SHUTDOWN = 1, 2, 3, 4
ACK_PROCESS = 1
REGISTER_ADOPT = 1
ADOPT_BIND, ADOPT_LISTEN = 1, 2
NO_DESCRIPTOR = 0xffff

SO_PEERPIDFD = 77  # Linux 6.5

HEADER_FORMAT = struct.Struct("<IHHIIHHI")
HELLO_FORMAT = struct.Struct("<HHI")
WELCOME_FORMAT = struct.Struct("<HHIIII32s")
REGISTER_FORMAT = struct.Struct("<64s64sIII")
GRANT_FORMAT = struct.Struct("<IIIHH64s")
GRANT_LISTENER_FORMAT = struct.Struct("<64s64sBBHBBBB16s16s4s32s")
ACK_FORMAT = struct.Struct("<IIII")
REGISTRATION_FORMAT = struct.Struct("<II")
ERROR_FORMAT = struct.Struct("<I512s")
DRAIN_REQUESTED_FORMAT = struct.Struct("<IIQ")
KEYS_ROTATED_FORMAT = struct.Struct("<IIHHBBBB16s16s4s")
LOADS_FORMAT = struct.Struct("<II")
STALLED_FORMAT = struct.Struct("<IIII")
CIDS_FORMAT = struct.Struct("<IIHH")
CID_FORMAT = struct.Struct("<B20s3x")
ADOPT_FORMAT = struct.Struct("<IHHII")
ADOPTED_FORMAT = struct.Struct("<IHHQ")
RESUME_FORMAT = struct.Struct("<64s64sIIIIHHI")
RESUME_LISTENER_FORMAT = struct.Struct("<64s64sBBHI")

TCP, UDP, QUIC = 1, 2, 3
CID_QUIC_LB, CID_QUIC_LB_PLAIN, CID_REGISTERED, CID_NGINX, CID_OPAQUE = 1, 2, 3, 4, 5

TIMEOUT = 30 * PATIENCE  # seconds for one answer; generous, the machine may be busy


def text(octets):
    return octets.split(b"\0", 1)[0].decode()


class Refused(Exception):
    """ERROR of the daemon."""

    def __init__(self, error, sentence):
        super().__init__(error, sentence)
        self.error = error
        self.sentence = sentence


class Ended(Exception):
    """The daemon closed the connection, after GOODBYE (error, sentence) or without (None)."""

    def __init__(self, error, sentence):
        super().__init__(error, sentence)
        self.error = error
        self.sentence = sentence


def header(kind, body_length, sequence=0, n_descriptors=0, magic=MAGIC, version=VERSION, reserved=0):
    return HEADER_FORMAT.pack(magic, version, kind, sequence, body_length, n_descriptors, reserved, 0)


class Connection:
    """One connection to worker.sock; nothing is sent that was not asked for."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        # Without a time-out, so that it waits while the daemon's queue is full instead of failing
        # with EAGAIN; the alarm of the test bounds it.
        self.socket.connect(path)
        self.socket.settimeout(TIMEOUT)
        self.sequence = 0
        self.events = []  # (type, body), oldest first

    def close(self):
        self.socket.close()

    def send_raw(self, octets, descriptors=(), identify=False):
        ancillary = []
        if descriptors:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
        if identify:
            credentials = struct.pack("iII", os.getpid(), os.geteuid(), os.getegid())
            ancillary.append((socket.SOL_SOCKET, socket.SCM_CREDENTIALS, credentials))
        self.socket.sendmsg([octets], ancillary, socket.MSG_NOSIGNAL)

    def send(self, kind, body=b"", descriptors=()):
        self.sequence += 1
        self.send_raw(
            header(kind, len(body), self.sequence, len(descriptors)) + body, descriptors,
            identify=kind == HELLO and bool(descriptors))
        return self.sequence

    def receive(self):
        """(type, sequence, body, descriptors) of the next message, whatever it is."""
        data, ancillary, flags, _ = self.socket.recvmsg(
            16384, socket.CMSG_SPACE(253 * 4), socket.MSG_CMSG_CLOEXEC)
        descriptors = []
        for level, kind, octets in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers = array.array("i")
                numbers.frombytes(octets[:len(octets) - len(octets) % numbers.itemsize])
                descriptors += numbers
        if not data:
            raise Ended(None, "")
        assert not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC), "message was truncated"
        magic, version, kind, sequence, length, n_descriptors, reserved, reserved2 = \
            HEADER_FORMAT.unpack_from(data)
        assert (magic, version, reserved, reserved2) == (MAGIC, VERSION, 0, 0)
        assert length == len(data) - HEADER_FORMAT.size
        assert n_descriptors == len(descriptors)
        return kind, sequence, data[HEADER_FORMAT.size:], descriptors

    def answer(self, sequence):
        """The answer to a request; events that come before it are kept in self.events."""
        while True:
            kind, answered, body, descriptors = self.receive()
            if kind == GOODBYE:
                error, sentence = ERROR_FORMAT.unpack(body)
                raise Ended(error, text(sentence))
            if kind >= 128:
                assert answered == 0
                self.events.append((kind, body))
                continue
            if answered == sequence - 1:
                continue  # a daemon that started again has answered once more
            assert answered == sequence, (kind, answered, sequence)
            if kind == ERROR:
                error, sentence = ERROR_FORMAT.unpack(body)
                raise Refused(error, text(sentence))
            return kind, body, descriptors

    def request(self, kind, body=b"", descriptors=()):
        return self.answer(self.send(kind, body, descriptors))

    def wait_event(self, seconds=TIMEOUT):
        """The next event, (type, body)."""
        if self.events:
            return self.events.pop(0)
        self.socket.settimeout(seconds)
        try:
            kind, sequence, body, _ = self.receive()
        finally:
            self.socket.settimeout(TIMEOUT)
        assert kind >= 128 and sequence == 0
        return kind, body

    def peer_has_pidfd(self):
        try:
            pidfd = self.socket.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
        except OSError as error:
            if error.errno == errno.ENOPROTOOPT:
                return False
            raise
        os.close(pidfd)
        return True

    def hello(self, version_min=VERSION, version_max=VERSION, pidfd=False):
        """pidfd: brings one of this process, as always where the kernel can't tell the daemon."""
        request = HELLO_FORMAT.pack(version_min, version_max, 0)
        if pidfd or not self.peer_has_pidfd():
            own = os.pidfd_open(os.getpid())
            try:
                kind, body, _ = self.request(HELLO, request, (own,))
            finally:
                os.close(own)
        else:
            kind, body, _ = self.request(HELLO, request)
        assert kind == WELCOME
        version, reserved, message_max, workers_max, answer_msec, flags, daemon_version = \
            WELCOME_FORMAT.unpack(body)
        assert (version, reserved, flags) == (VERSION, 0, 0)
        self.message_max = message_max
        self.workers_max = workers_max
        self.answer_msec = answer_msec
        self.daemon_version = text(daemon_version)


class Listener:
    """What a GRANT says of one listener."""

    def __init__(self, octets, offset):
        (name, address, self.transport, self.cid_mode, self.descriptor, self.config_rotation,
         self.server_id_length, self.nonce_length, reserved, self.server_id, self.key,
         self.nonce_prefix, self.token_secret) = GRANT_LISTENER_FORMAT.unpack_from(octets, offset)
        assert reserved == 0
        self.name = text(name)
        self.address = text(address)


class KeysRotated:
    """The event, with the names that Listener has for the same things."""

    def __init__(self, octets):
        (self.registration, self.worker, self.listener, reserved, self.config_rotation,
         self.server_id_length, self.nonce_length, reserved2, self.server_id, self.key,
         self.nonce_prefix) = KEYS_ROTATED_FORMAT.unpack(octets)
        assert (reserved, reserved2) == (0, 0)


class Worker:
    """
    A registration: from joining to gone. sockets[worker][listener name] are ours alone, the daemon
    has closed its copies once register() has returned.
    """

    def __init__(self, path, service="web", instance="", n_workers=1, weight=0, ready=True,
                 pidfd=False, register=True):
        self.connection = Connection(path)
        self.sockets = []
        self.listeners_of = []  # by worker: what its GRANT says; listeners: that of the last
        self.slots = []
        self.registration = None
        try:
            self.connection.hello(pidfd=pidfd)
            if register:
                self.register(service, instance, n_workers, weight)
            if ready:
                self.ready()
        except BaseException:
            self.abandon()
            raise

    def register(self, service, instance, n_workers, weight):
        kind, body, descriptors = self.connection.request(
            REGISTER, REGISTER_FORMAT.pack(
                service.encode(), instance.encode(), n_workers, weight, 0))
        for i in range(n_workers):
            assert kind == GRANT
            self.granted(body, descriptors, i, n_workers)
            kind, body, descriptors = self.connection.request(
                ACK, ACK_FORMAT.pack(self.registration, i, 0, 0))
        assert kind == OK

    def granted(self, body, descriptors, worker, n_workers):
        registration, index, n, slot, n_listeners, instance = GRANT_FORMAT.unpack_from(body)
        assert (index, n) == (worker, n_workers)
        assert worker == 0 or registration == self.registration
        self.registration = registration
        self.instance = text(instance)
        self.slots.append(slot)
        assert len(body) == GRANT_FORMAT.size + n_listeners * GRANT_LISTENER_FORMAT.size
        self.listeners = [
            Listener(body, GRANT_FORMAT.size + i * GRANT_LISTENER_FORMAT.size)
            for i in range(n_listeners)]
        self.listeners_of.append(self.listeners)
        assert len(descriptors) == n_listeners
        assert sorted(l.descriptor for l in self.listeners) == list(range(n_listeners))
        sockets = {}
        for listener in self.listeners:
            sockets[listener.name] = socket.socket(fileno=descriptors[listener.descriptor])
            sockets[listener.name].setblocking(False)
        self.sockets.append(sockets)

    @property
    def slot(self):
        return self.slots[0]

    @property
    def socket(self):
        """The socket of a registration with one worker and one listener."""
        assert len(self.sockets) == 1 and len(self.sockets[0]) == 1
        return next(iter(self.sockets[0].values()))

    def fileno(self):
        return self.socket.fileno()

    def about_registration(self, kind):
        answer, _, _ = self.connection.request(
            kind, REGISTRATION_FORMAT.pack(self.registration, 0))
        assert answer == OK

    def ready(self):
        self.about_registration(READY)

    def drain(self):
        self.about_registration(DRAIN)

    def unregister(self):
        self.about_registration(UNREGISTER)

    def add_cids(self, cids, worker=0, listener=0):
        """Connection IDs that mean this worker from now on, of a listener of that mode."""
        self.about_cids(CID_ADD, cids, worker, listener)

    def retire_cids(self, cids, worker=0, listener=0):
        self.about_cids(CID_RETIRE, cids, worker, listener)

    def about_cids(self, kind, cids, worker, listener):
        body = CIDS_FORMAT.pack(self.registration, worker, listener, len(cids))
        body += b"".join(CID_FORMAT.pack(len(cid), cid) for cid in cids)
        answer, _, _ = self.connection.request(kind, body)
        assert answer == OK

    def share_load(self):
        """Gets the memory in which set_load() writes."""
        answer, body, descriptors = self.connection.request(
            LOAD, REGISTRATION_FORMAT.pack(self.registration, 0))
        assert answer == LOADS
        assert LOADS_FORMAT.unpack(body) == (self.registration, len(self.slots))
        self.load_memory = mmap.mmap(descriptors[0], len(self.slots) * LOAD_OCTETS)
        return descriptors[0]

    def set_load(self, load, worker=0):
        """load: 0 to 1000; None: says nothing; beyond: what a server that means harm may write."""
        self.load_memory[worker * LOAD_OCTETS:worker * LOAD_OCTETS + 4] = struct.pack(
            "<I", 0 if load is None else load + 1)

    def wait_drain_requested(self, seconds=TIMEOUT):
        """Reason and deadline in microseconds of the next event, which must be DRAIN_REQUESTED."""
        kind, body = self.connection.wait_event(seconds)
        assert kind == DRAIN_REQUESTED
        registration, reason, deadline = DRAIN_REQUESTED_FORMAT.unpack(body)
        assert registration == self.registration
        return reason, deadline

    def wait_keys_rotated(self, seconds=TIMEOUT):
        """The next event, which must be KEYS_ROTATED."""
        kind, body = self.connection.wait_event(seconds)
        assert kind == KEYS_ROTATED
        event = KeysRotated(body)
        assert event.registration == self.registration
        return event

    def wait_stalled(self, seconds=TIMEOUT):
        """Worker and whether it is stalled of the next event, which must be STALLED."""
        kind, body = self.connection.wait_event(seconds)
        assert kind == STALLED
        registration, worker, stalled, reserved = STALLED_FORMAT.unpack(body)
        assert (registration, reserved) == (self.registration, 0)
        return worker, bool(stalled)

    def close_sockets(self):
        for sockets in self.sockets:
            for each in sockets.values():
                each.close()

    def abandon(self):
        """What happens to a process that dies: everything closes, nothing is said."""
        self.close_sockets()
        self.connection.close()

    def leave(self):
        """The orderly end: the slots are given back, then the sockets close."""
        self.unregister()
        self.abandon()


class Adopter:
    """A registration that brings its own sockets."""

    def __init__(self, path, service="web", instance="", max_workers=8, ready=True):
        self.connection = Connection(path)
        self.connection.hello()
        kind, body, descriptors = self.connection.request(REGISTER, REGISTER_FORMAT.pack(
            service.encode(), instance.encode(), max_workers, 0, REGISTER_ADOPT))
        assert (kind, descriptors) == (GRANT, [])
        self.registration, worker, n, slot, n_listeners, _ = GRANT_FORMAT.unpack_from(body)
        assert (worker, n, slot) == (0, 0, 0)
        self.slots = []  # that it was told, of each of its sockets
        self.listeners = [
            Listener(body, GRANT_FORMAT.size + i * GRANT_LISTENER_FORMAT.size)
            for i in range(n_listeners)]
        for each in self.listeners:
            assert each.descriptor == NO_DESCRIPTOR
            assert each.key + each.token_secret == bytes(48), "no secret goes to who needs none"
        kind, _, _ = self.connection.request(ACK, ACK_FORMAT.pack(self.registration, 0, 0, 0))
        assert kind == OK
        if ready:
            self.ready()

    def ready(self):
        kind, _, _ = self.connection.request(READY, REGISTRATION_FORMAT.pack(self.registration, 0))
        assert kind == OK

    def index(self, name):
        return [l.name for l in self.listeners].index(name)

    def adopt(self, step, fd, listener=0, backlog=0, registration=None, flags=0):
        kind, _, _ = self.connection.request(
            ADOPT, ADOPT_FORMAT.pack(registration or self.registration, listener, step, backlog,
                                     flags), [fd])
        assert kind == OK
        events = self.connection.events
        self.slots += [ADOPTED_FORMAT.unpack(body)[2] for kind, body in events if kind == ADOPTED]
        events[:] = [event for event in events if event[0] != ADOPTED]

    def close(self):
        self.connection.close()
