# SPDX-License-Identifier: BSD-2-Clause
"""
A user who may use one service, and means no good: whatever it does with worker.sock, control.sock
or the sockets that it was granted, another service's traffic goes on without a loss, others are
answered meanwhile, and when it has gone, nothing is left. docs/security.md lists what is tried here.
"""
import contextlib
import ctypes
import errno
import json
import os
import pathlib
import pickle
import pwd
import random
import resource
import select
import socket
import struct
import time

import pytest

import harness
import worker_protocol as proto
from control_client import Control, ControlError

HTTP, UDP, IDS, VICTIM = 8080, 8081, 4433, 9090
NOBODY = pwd.getpwnam("nobody")
OTHER = pwd.getpwnam("daemon")
ROUNDS = 3
RESIDENT_KIB = 1024  # growth of the daemon that is allowed over all rounds
LATENCY = 5  # seconds that a status may take meanwhile; it is 1 ms else, the machine may be busy


@pytest.fixture
def daemon(start_daemon, configuration):
    configuration.write("reuseportd.conf", """[Daemon]
MaxConnectionsPerUser=200
MaxSlotsPerUser=40
MaxConnectionIDsPerUser=300
AnswerTimeoutSec=2
""")
    configuration.service("web", f"""[Service]
AllowUser=nobody daemon
MaxWorkers=60
DrainTimeoutSec=2s
[Listener http]
ListenStream=127.0.0.1:{HTTP}
[Listener dns]
ListenDatagram=127.0.0.1:{UDP}
[Listener ids]
ListenQUIC=127.0.0.1:{IDS}
ConnectionID=registered
Flows=512
""")
    configuration.service("victim", f"""[Service]
AllowUser=daemon
[Listener tcp]
ListenStream=127.0.0.1:{VICTIM}
[Listener udp]
ListenDatagram=127.0.0.1:{VICTIM}
""")
    return start_daemon("--config", configuration.directory)


class Victim:
    """
    The worker of the other service, its clients, and somebody who wants to know the status, in a
    process of their own. Each request has its answer before the next one is sent.
    """

    def __init__(self, daemon):
        self.daemon = daemon
        self.stop_here, self.stop_there = os.pipe()
        self.result, writer = os.pipe()
        ready, tell_ready = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                harness.close_inherited({0, 1, 2, self.stop_here, writer, tell_ready})
                result = self.work(tell_ready)
            except BaseException as error:
                result = repr(error)
            with os.fdopen(writer, "wb") as stream:
                stream.write(pickle.dumps(result))
            os._exit(0)
        os.close(writer)
        os.close(tell_ready)
        with os.fdopen(ready, "rb") as stream:
            assert stream.read(1) == b"+", "the victim's worker could not register"

    def work(self, tell_ready):
        worker = proto.Worker(self.daemon.worker_socket, service="victim", instance="victim")
        tcp, udp = worker.sockets[0]["tcp"], worker.sockets[0]["udp"]
        tcp.setblocking(True)
        udp.setblocking(True)
        sent = received = 0
        worst = 0.0
        os.write(tell_ready, b"+")
        while True:
            with harness.tcp_client(("127.0.0.1", VICTIM), b"%d\n" % sent) as client:
                connection, _ = tcp.accept()
                with connection:
                    connection.sendall(connection.recv(100))
                received += client.recv(100) == b"%d\n" % sent
                sent += 1
            with harness.udp_client(("127.0.0.1", VICTIM)) as client:
                client.send(b"%d" % sent)
                octets, sender = udp.recvfrom(100)
                udp.sendto(octets, sender)
                received += client.recv(100) == b"%d" % sent
                sent += 1
            started = time.monotonic()
            with Control(self.daemon.control_socket) as control:
                workers = control.call("Status", service="victim")["services"][0]["workers"]
            worst = max(worst, time.monotonic() - started)
            assert [(w["slot"], w["state"]) for w in workers] == [(worker.slot, "active")], workers
            if select.select([self.stop_here], [], [], 0)[0] and sent >= 20:
                return sent, received, worst

    def end(self):
        """(sent, received, longest wait for a status)."""
        os.close(self.stop_there)
        with os.fdopen(self.result, "rb") as stream:
            result = pickle.loads(stream.read())
        os.waitpid(self.pid, 0)
        os.close(self.stop_here)
        assert isinstance(result, tuple), result
        return result


def entries(daemon):
    """How many entries each map has that holds some for workers or connection IDs."""
    counts = []
    for info in pathlib.Path(f"/proc/{daemon.pid}/fdinfo").iterdir():
        try:
            lines = info.read_text().splitlines()
        except FileNotFoundError:
            continue
        for number in (l.split()[1] for l in lines if l.startswith("map_id:")):
            shown = json.loads(harness.run("bpftool", "-j", "map", "show", "id", number).stdout)
            if shown["name"] in ("socket_map", "dcid_map"):
                dump = json.loads(harness.run("bpftool", "-j", "map", "dump", "id", number).stdout)
                counts.append((int(number), sum("error" not in str(e["value"]) for e in dump)))
    return sorted(counts)


@contextlib.contextmanager
def undisturbed(daemon):
    """
    Yields a function that runs the attack as the hostile user, in rounds; after the second half of
    them all must be as it was after the first.
    """
    victim = Victim(daemon)
    harness.poll_until(lambda: daemon.status("victim")["workers"], "the victim works")

    def settled():
        """Nothing of the hostile user is left: its slots and connections, and the memory of these."""
        status = daemon.status()
        clients = status["daemon"]
        return (not any(s["workers"] for s in status["services"] if s["name"] == "web") and
                clients["worker_clients"] == 1 and clients["control_clients"] <= 2)

    def attack(function, rounds=ROUNDS):
        def one_round():
            result = harness.in_child(function, NOBODY.pw_uid, NOBODY.pw_gid)
            harness.poll_until(settled, "the victim is the only client but this")
            return result, daemon.resident()

        # The allocator keeps what the most connections at a time have ever needed.
        most = max(one_round()[1] for _ in range(rounds))
        before = entries(daemon)
        for _ in range(rounds):
            result, kib = one_round()
        assert daemon.alive()
        assert entries(daemon) == before
        assert kib <= most + RESIDENT_KIB, "KiB"
        return result

    try:
        yield attack
    finally:
        sent, received, worst = victim.end()
        print(f"victim: {sent} sent, {received} received, a status took {worst:.3f} s at most")
    assert sent == received >= 20
    assert worst < LATENCY
    harness.poll_until(lambda: daemon.status("victim")["workers"] == [], "the victim has gone")
    daemon.n_descriptors_alone()


def register_body(instance=b"", n_workers=1, service=b"web"):
    return proto.REGISTER_FORMAT.pack(service, instance, n_workers, 0, 0)


def refusal(function, *arguments, **options):
    """errno and sentence of what is refused; None, None where it is not."""
    try:
        function(*arguments, **options)
    except (proto.Refused, proto.Ended) as refused:
        return refused.error, refused.sentence
    return None, None


def greeted(daemon):
    connection = proto.Connection(daemon.worker_socket)
    connection.hello()
    return connection


# Floods


def test_flood_of_messages(daemon):
    def attack():
        connections = [greeted(daemon) for _ in range(100)]
        for connection in connections:
            for _ in range(100):
                connection.send(99)
        answers = 0
        for connection in connections:
            for _ in range(100):
                kind, _, _, _ = connection.receive()
                answers += kind == proto.ERROR
        return answers

    with undisturbed(daemon) as run:
        assert run(attack) == 10000  # who waits loses nothing


def test_flood_of_registrations(daemon):
    """Each fills tables, makes sockets, and writes to the log."""
    def attack():
        for i in range(150):
            worker = proto.Worker(daemon.worker_socket, instance=f"i{i % 3}", n_workers=3)
            worker.leave()
        return True

    with undisturbed(daemon) as run:
        assert run(attack, rounds=2)


def test_user_who_sends_too_much_waits_and_the_log_says_so_once(start_daemon, configuration):
    """100 a second and 100 in advance: 300 calls take two seconds; nothing is refused."""
    configuration.write("reuseportd.conf", "[Daemon]\nMessagesPerSecondPerUser=100\n")
    configuration.service("web", f"""[Service]
AllowUser=nobody
[Listener a]
ListenStream=127.0.0.1:{HTTP}
""")
    daemon = start_daemon("--config", configuration.directory)

    def attack():
        started = time.monotonic()
        connections = [greeted(daemon) for _ in range(10)]
        for _ in range(15):
            for connection in connections:
                assert refusal(connection.request, 99)[0] == errno.EOPNOTSUPP
        with Control(daemon.control_socket) as control:
            for _ in range(150):
                control.call("org.varlink.service.GetInfo")
        return time.monotonic() - started

    before = time.monotonic()
    taken = harness.in_child(attack, NOBODY.pw_uid, NOBODY.pw_gid)
    assert taken >= 1.9, "seconds; 20 messages more than 300 were for the connections"
    assert time.monotonic() - before < harness.DEADLINE
    assert daemon.process.output().count("MessagesPerSecondPerUser=") == 1
    started = time.monotonic()
    for _ in range(300):  # root does not wait
        daemon.status("web")
    assert time.monotonic() - started < harness.DEADLINE


def test_flood_of_calls(daemon):
    call = json.dumps({"method": "io.reuseport.Control.Status"}).encode() + b"\0"

    def attack():
        connections = [Control(daemon.control_socket) for _ in range(50)]
        for connection in connections:
            connection.socket.sendall(call * 20)
        answers = 0
        for _ in range(20):
            for connection in connections:
                answers += "parameters" in connection.receive()
        return answers

    with undisturbed(daemon) as run:
        assert run(attack, rounds=2) == 1000


def test_connections_that_come_and_go(daemon):
    def attack():
        for i in range(3000):
            kind = socket.SOCK_SEQPACKET if i % 2 else socket.SOCK_STREAM
            with socket.socket(socket.AF_UNIX, kind) as connection:
                connection.connect(daemon.worker_socket if i % 2 else daemon.control_socket)
                if i % 3 == 0:
                    with contextlib.suppress(OSError):
                        connection.send(b"\0")
        return True

    with undisturbed(daemon) as run:
        assert run(attack)


# What one user may hold


def test_connections_beyond_the_limit_are_told_which_option(daemon):
    def attack():
        connections = [proto.Connection(daemon.worker_socket) for _ in range(250)]
        controls = [Control(daemon.control_socket) for _ in range(250)]
        sentences = []
        for connection in connections:
            try:
                connection.hello()
            except proto.Ended as ended:
                sentences.append(("worker", ended.error, ended.sentence))
            except (BrokenPipeError, ConnectionResetError):
                kind, _, body, _ = connection.receive()
                error, text = proto.ERROR_FORMAT.unpack(body)
                sentences.append(("worker", error, proto.text(text)))
        for control in controls:
            try:
                control.call("org.varlink.service.GetInfo")
                continue
            except ControlError as error:
                reply = error.parameters
            except (BrokenPipeError, ConnectionResetError):
                reply = control.receive()["parameters"]
            sentences.append(("control", reply["errno"], reply["message"]))
        return sentences

    with undisturbed(daemon) as run:
        sentences = run(attack)
    assert [kind for kind, _, _ in sentences] == ["worker"] * 50 + ["control"] * 50
    assert {error for _, error, _ in sentences} == {errno.EDQUOT}
    assert all("MaxConnectionsPerUser=" in sentence for _, _, sentence in sentences)


def test_memory_that_one_user_can_make_the_daemon_hold_is_bounded(daemon):
    """Half a call of almost a MiB on each of 150 connections: 32 MiB are held, and not for long."""
    before = daemon.resident()

    def attack():
        connections = [Control(daemon.control_socket) for _ in range(150)]
        for connection in connections:
            connection.socket.setblocking(False)
        left = {c.socket: 900000 for c in connections}
        end = time.monotonic() + harness.DEADLINE
        while left and time.monotonic() < end:
            _, writable, _ = select.select([], list(left), [], 1)
            for each in writable:
                try:
                    left[each] -= each.send(b" " * min(left[each], 65536))
                except (BrokenPipeError, ConnectionResetError):
                    left[each] = 0
                except BlockingIOError:
                    pass
                if not left[each]:
                    del left[each]
        peak = daemon.resident()
        ended = 0
        for connection in connections:  # AnswerTimeoutSec= ends the others
            connection.socket.settimeout(harness.DEADLINE)
            try:
                ended += connection.socket.recv(1) == b""
            except ConnectionResetError:
                ended += 1
        return ended, peak

    with undisturbed(daemon) as run:
        ended, peak = run(attack, rounds=1)
    assert ended == 150
    assert 20 * 1024 < peak - before < 60 * 1024, "KiB"


def test_slots_beyond_the_limits_are_refused_and_others_have_theirs(daemon):
    def attack():
        connection = greeted(daemon)
        too_many = refusal(connection.request, proto.REGISTER, register_body(n_workers=41))
        workers = [proto.Worker(daemon.worker_socket, n_workers=20) for _ in range(2)]
        one_more = refusal(connection.request, proto.REGISTER, register_body())
        return too_many, one_more, len(workers)

    def other():
        worker = proto.Worker(daemon.worker_socket, n_workers=20)
        connection = greeted(daemon)
        answer = refusal(connection.request, proto.REGISTER, register_body(n_workers=41))
        worker.leave()
        return answer

    with undisturbed(daemon) as run:
        too_many, one_more, n = run(attack)
        assert n == 2
        for error, sentence in (too_many, one_more):
            assert error == errno.EDQUOT and "MaxSlotsPerUser=" in sentence, sentence
        error, sentence = harness.in_child(other, OTHER.pw_uid, OTHER.pw_gid)
        assert error == errno.EDQUOT and "MaxWorkers=" in sentence, sentence


def test_connection_ids_beyond_the_limits_are_refused(daemon):
    """Half of the listener's for one worker, 300 for the user; they go with the worker."""
    def attack():
        first, second = (proto.Worker(daemon.worker_socket) for _ in range(2))

        def new(count):
            return [os.urandom(8) for _ in range(count)]

        first.add_cids(new(256), listener=2)
        half = refusal(first.add_cids, new(1), listener=2)
        second.add_cids(new(44), listener=2)
        quota = refusal(second.add_cids, new(1), listener=2)
        return half, quota

    with undisturbed(daemon) as run:
        half, quota = run(attack)
    assert half[0] == errno.EDQUOT and "Flows=" in half[1] and "half" in half[1]
    assert quota[0] == errno.EDQUOT and "MaxConnectionIDsPerUser=" in quota[1]


def test_silence_has_its_deadline(daemon):
    """No HELLO, no ACK, no end of a call: each is over after AnswerTimeoutSec=, with a word why."""
    def attack():
        silent = proto.Connection(daemon.worker_socket)
        unacknowledged = greeted(daemon)
        kind, _, descriptors = unacknowledged.request(proto.REGISTER, register_body(n_workers=30))
        assert kind == proto.GRANT
        half = Control(daemon.control_socket)
        half.socket.sendall(b"{\"method\":")
        sentences = []
        for connection in (silent, unacknowledged):
            kind, _, body, _ = connection.receive()
            assert kind == proto.GOODBYE
            sentences.append(proto.text(proto.ERROR_FORMAT.unpack(body)[1]))
        for fd in descriptors:
            os.close(fd)
        try:
            assert half.socket.recv(1) == b""
        except ConnectionResetError:
            pass
        return sentences

    with undisturbed(daemon) as run:
        no_hello, no_ack = run(attack, rounds=1)
    assert "HELLO" in no_hello and "AnswerTimeoutSec=" in no_hello
    assert "ACK" in no_ack and "AnswerTimeoutSec=" in no_ack


# What is somebody else's


def test_registrations_of_others_can_be_neither_touched_nor_guessed(daemon):
    """Every request with every registration that there is, of both services, by number."""
    def attack():
        mine = proto.Worker(daemon.worker_socket, instance="mine")
        connection = greeted(daemon)
        refused = 0
        for number in range(mine.registration + 20):
            for each in (mine.connection, connection):
                if each is mine.connection and number == mine.registration:
                    continue
                registration = proto.REGISTRATION_FORMAT.pack(number, 0)
                for kind in (proto.READY, proto.DRAIN, proto.UNREGISTER):
                    refused += refusal(each.request, kind, registration)[0] == errno.EINVAL
                cids = proto.CIDS_FORMAT.pack(number, 0, 0, 1) + proto.CID_FORMAT.pack(8, b"a" * 8)
                for kind in (proto.CID_ADD, proto.CID_RETIRE):
                    refused += refusal(each.request, kind, cids)[0] == errno.EINVAL
                for flags in (0, proto.ACK_PROCESS):
                    pidfd = os.pidfd_open(os.getpid())
                    error, _ = refusal(each.request, proto.ACK,
                                       proto.ACK_FORMAT.pack(number, 0, flags, 0),
                                       (pidfd,) if flags else ())
                    refused += error == errno.EINVAL
                    os.close(pidfd)
        return refused, 7 * (2 * (mine.registration + 20) - 1)

    with undisturbed(daemon) as run:
        refused, asked = run(attack, rounds=1)
    assert refused == asked > 250


def test_steps_out_of_order_are_refused(daemon):
    def attack():
        connection = greeted(daemon)
        kind, body, descriptors = connection.request(proto.REGISTER, register_body(n_workers=2))
        assert kind == proto.GRANT
        number = proto.GRANT_FORMAT.unpack_from(body)[0]
        registration = proto.REGISTRATION_FORMAT.pack(number, 0)
        cids = proto.CIDS_FORMAT.pack(number, 0, 2, 1) + proto.CID_FORMAT.pack(8, b"a" * 8)
        steps = [
            (proto.READY, registration), (proto.DRAIN, registration), (proto.CID_ADD, cids),
            (proto.CID_RETIRE, cids), (proto.REGISTER, register_body()),
            (proto.ACK, proto.ACK_FORMAT.pack(number, 1, 0, 0)),
            (proto.ACK, proto.ACK_FORMAT.pack(number, 0xffffffff, 0, 0)),
        ]
        errors = [refusal(connection.request, *step)[0] for step in steps]
        for worker in (0, 1):
            connection.request(proto.ACK, proto.ACK_FORMAT.pack(number, worker, 0, 0))
        again = refusal(connection.request, proto.ACK, proto.ACK_FORMAT.pack(number, 1, 0, 0))[0]
        drain = refusal(connection.request, proto.DRAIN, registration)[0]
        connection.request(proto.READY, registration)
        connection.request(proto.DRAIN, registration)
        ready = refusal(connection.request, proto.READY, registration)[0]
        for fd in descriptors:
            os.close(fd)
        return errors, again, drain, ready

    with undisturbed(daemon) as run:
        errors, again, drain, ready = run(attack)
    assert errors == [errno.EINVAL] * 4 + [errno.EALREADY] + [errno.EINVAL] * 2
    assert again == drain == ready == errno.EINVAL


def test_process_of_another_user_can_not_be_named(daemon):
    """Nor what is no process; what the ACK brought is closed, and the right one still counts."""
    def attack():
        connection = greeted(daemon)
        _, body, descriptors = connection.request(proto.REGISTER, register_body())
        number = proto.GRANT_FORMAT.unpack_from(body)[0]
        null = os.open("/dev/null", os.O_RDONLY)
        dead = os.fork()
        if dead == 0:
            os._exit(0)
        dead_fd = os.pidfd_open(dead)
        os.waitpid(dead, 0)
        errors = []
        for fd in (os.pidfd_open(1), connection.socket.fileno(), null, descriptors[0], dead_fd):
            errors.append(refusal(connection.request, proto.ACK, proto.ACK_FORMAT.pack(
                number, 0, proto.ACK_PROCESS, 0), (fd,))[0])
        own = os.pidfd_open(os.getpid())
        kind, _, _ = connection.request(proto.ACK, proto.ACK_FORMAT.pack(
            number, 0, proto.ACK_PROCESS, 0), (own,))
        return errors, kind

    with undisturbed(daemon) as run:
        errors, kind = run(attack)
    assert errors == [errno.EPERM, errno.EBADF, errno.EBADF, errno.EBADF, errno.ESRCH]
    assert kind == proto.OK


def test_service_that_a_user_may_not_use_stays_closed(daemon):
    """Also by another's connection: the user is who connected."""
    def attack():
        connection = greeted(daemon)
        by_name = refusal(connection.request, proto.REGISTER, register_body(service=b"victim"))
        changes = []
        with Control(daemon.control_socket) as control:
            for method, parameters in (("Drain", {"service": "victim"}), ("Undrain", {"worker": 0}),
                                       ("SetWeight", {"service": "victim", "weight": 1}),
                                       ("RotateKeys", {"service": "web"}), ("Reload", {})):
                try:
                    control.call(method, **parameters)
                    changes.append(None)
                except ControlError as error:
                    changes.append(error.name.rsplit(".", 1)[1])
        strangers = []
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            with socket.socket(socket.AF_INET, kind) as stranger:
                stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                try:
                    stranger.bind(("127.0.0.1", VICTIM))
                    strangers.append(0)
                except OSError as error:
                    strangers.append(error.errno)
        return by_name, changes, strangers

    with undisturbed(daemon) as run:
        by_name, changes, strangers = run(attack)
    assert by_name[0] == errno.EACCES and "AllowUser=" in by_name[1]
    assert changes == ["PermissionDenied"] * 5
    assert strangers == [errno.EADDRINUSE] * 2


def test_processes_that_die_at_any_step(daemon):
    """60 children end after each number of steps, without a word; every slot comes back."""
    def attack():
        for i in range(60):
            pid = os.fork()
            if pid == 0:
                connection = proto.Connection(daemon.worker_socket)
                steps = i % 6
                if steps > 0:
                    connection.hello()
                if steps > 1:
                    _, body, _ = connection.request(proto.REGISTER, register_body(n_workers=2))
                    number = proto.GRANT_FORMAT.unpack_from(body)[0]
                if steps > 2:
                    connection.request(proto.ACK, proto.ACK_FORMAT.pack(number, 0, 0, 0))
                if steps > 3:
                    connection.request(proto.ACK, proto.ACK_FORMAT.pack(number, 1, 0, 0))
                if steps > 4:
                    connection.request(proto.READY, proto.REGISTRATION_FORMAT.pack(number, 0))
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
        return True

    with undisturbed(daemon) as run:
        assert run(attack)


# The sockets that were granted


SO_DETACH_REUSEPORT_BPF, SO_ATTACH_REUSEPORT_CBPF, SO_ATTACH_FILTER, SO_LOCK_FILTER = 68, 51, 26, 44


def try_option(each, option, value, level=socket.SOL_SOCKET):
    try:
        each.setsockopt(level, option, value)
        return 0
    except OSError as error:
        return error.errno


def test_what_a_holder_does_to_granted_sockets_stays_in_its_service(daemon):
    """
    Programs and filters can't be attached. Detaching, clearing SO_REUSEPORT, connecting, shutting
    down and binding to a device can be done, and harm the own service alone.
    """
    program = struct.pack("HBBI", 0x06, 0, 0, 0)  # BPF_RET | BPF_K, 0

    def attack():
        worker = proto.Worker(daemon.worker_socket)
        buffer = bytearray(program)
        address = (ctypes.c_char * len(buffer)).from_buffer(buffer)
        filter_program = struct.pack("HxxxxxxP", 1, ctypes.addressof(address))
        denied = []
        for each in worker.sockets[0].values():
            denied.append(try_option(each, SO_ATTACH_REUSEPORT_CBPF, filter_program))
            denied.append(try_option(each, SO_ATTACH_FILTER, filter_program))
            denied.append(try_option(each, SO_LOCK_FILTER, struct.pack("i", 0)))
        for each in worker.sockets[0].values():
            try_option(each, SO_DETACH_REUSEPORT_BPF, struct.pack("i", 0))
            try_option(each, socket.SO_REUSEPORT, struct.pack("i", 0))
            try_option(each, socket.SO_BINDTODEVICE, b"lo\0")
            with contextlib.suppress(OSError):
                each.connect(("127.0.0.1", VICTIM))
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            with contextlib.suppress(OSError):
                each.listen(0)
        return denied

    with undisturbed(daemon) as run:
        denied = run(attack)
        assert denied == [errno.EPERM] * 9

        def works_again():
            worker = proto.Worker(daemon.worker_socket)
            with harness.tcp_client(("127.0.0.1", HTTP), b"request 0\n") as client:
                harness.answer_all(worker.sockets[0]["http"], 1, b"worker")
                harness.check_answers([client], b"worker")
            worker.leave()
            return True

        assert harness.in_child(works_again, OTHER.pw_uid, OTHER.pw_gid)
        harness.poll_until(lambda: daemon.status("web")["workers"] == [], "it has gone")


def test_any_option_on_granted_sockets_harms_nobody_else(daemon):
    """Every option of every level with some values: 10,000 and more a round."""
    levels = (socket.SOL_SOCKET, socket.IPPROTO_IP, socket.IPPROTO_IPV6, socket.IPPROTO_TCP,
              socket.IPPROTO_UDP)

    def attack():
        worker = proto.Worker(daemon.worker_socket)
        tried = 0
        for each in worker.sockets[0].values():
            for level in levels:
                for option in range(1, 140):
                    for value in (b"\0" * 4, b"\1\0\0\0", b"\xff" * 4, b"\xff" * 64, b"lo\0"):
                        try_option(each, option, value, level)
                        tried += 1
        return tried

    def works_again():
        worker = proto.Worker(daemon.worker_socket)
        with harness.tcp_client(("127.0.0.1", HTTP), b"request 0\n") as client:
            harness.answer_all(worker.sockets[0]["http"], 1, b"worker")
            harness.check_answers([client], b"worker")
        with harness.udp_client(("127.0.0.1", UDP)) as client:
            client.send(b"datagram")
            harness.poll_until(lambda: harness.wait_readable([worker.sockets[0]["dns"]], 1),
                               "the datagram comes")
            assert worker.sockets[0]["dns"].recv(100) == b"datagram"
        worker.leave()
        return True

    with undisturbed(daemon) as run:
        assert run(attack, rounds=1) == 3 * len(levels) * 139 * 5
        assert harness.in_child(works_again, OTHER.pw_uid, OTHER.pw_gid)
        harness.poll_until(lambda: daemon.status("web")["workers"] == [], "it has gone")


def test_sockets_that_outlive_their_process_have_their_time(daemon):
    """The process ends, a child of it keeps the sockets: draining, and after the time gone."""
    def attack():
        ready, tell_ready = os.pipe()
        stop, keep = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(keep)
            proto_worker = proto.Worker(daemon.worker_socket)
            if os.fork() == 0:
                proto_worker.connection.close()
                os.write(tell_ready, b"+")
                os.read(stop, 1)  # until the attack is over
                os._exit(0)
            os._exit(0)
        os.waitpid(pid, 0)
        assert os.read(ready, 1) == b"+"

        def state():
            return [(w["state"], w["exited"]) for w in daemon.status("web")["workers"]]

        harness.poll_until(lambda: state() == [("draining", True)], "it drains")
        harness.poll_until(lambda: state() == [], "its time is over")
        os.close(keep)
        return True

    with undisturbed(daemon) as run:
        assert run(attack, rounds=1)


def test_instance_of_another_user_of_the_service_can_be_replaced(daemon):
    """Workers of one service trust each other: that is what this looks like."""
    reader, writer = os.pipe()
    stop_here, stop_there = os.pipe()

    def owner():
        os.close(reader)
        os.close(stop_there)
        os.setgroups([])
        os.setresgid(OTHER.pw_gid, OTHER.pw_gid, OTHER.pw_gid)
        os.setresuid(OTHER.pw_uid, OTHER.pw_uid, OTHER.pw_uid)
        worker = proto.Worker(daemon.worker_socket, instance="web@1")
        os.write(writer, b"+")
        reason, _ = worker.wait_drain_requested()
        os.read(stop_here, 1)
        return reason

    def hostile():
        worker = proto.Worker(daemon.worker_socket, instance="web@1")
        state = [w["state"] for w in daemon.status("web")["workers"]]
        worker.leave()
        return state

    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if owner() == proto.DRAIN_REPLACED else 1)
        finally:
            os._exit(2)
    os.close(writer)
    assert os.read(reader, 1) == b"+"
    states = harness.in_child(hostile, NOBODY.pw_uid, NOBODY.pw_gid)
    os.close(stop_there)
    assert sorted(states) == ["active", "draining"]
    assert os.waitpid(pid, 0)[1] == 0
    os.close(reader)
    os.close(stop_here)


def test_noise_on_both_sockets(daemon):
    """1,000 random messages and calls a round, half of them with a valid frame."""
    def attack():
        rng = random.Random(7)
        for i in range(500):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as each, \
                    contextlib.suppress(OSError):
                each.connect(daemon.worker_socket)
                hello = proto.HELLO_FORMAT.pack(1, 1, 0)
                each.send(proto.header(proto.HELLO, len(hello), 1) + hello)
                octets = rng.randbytes(rng.randrange(1, 600))
                framed = proto.header(rng.randrange(12), len(octets), 2) + octets
                each.send(framed if i % 2 else octets)
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as each, \
                    contextlib.suppress(OSError):
                each.connect(daemon.control_socket)
                each.send(json.dumps({"method": "io.reuseport.Control." + rng.choice(
                    ["Status", "Explain", "Drain", "X"]), "parameters": {
                        "packet": octets.hex()[:-(i % 3) or None], "service": i % 2 and "web"}}
                                     ).encode() + b"\0" if i % 2 else octets + b"\0")
        return True

    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 1000
    with undisturbed(daemon) as run:
        assert run(attack)
