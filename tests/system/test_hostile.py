# SPDX-License-Identifier: BSD-2-Clause
"""No client can stop or starve the daemon, or reach a service that it may not."""
import array
import errno
import json
import os
import pwd
import random
import resource
import socket

import pytest

import harness
import worker_protocol as proto
from control_client import Control, ControlError

PORT = 8080
NOBODY = pwd.getpwnam("nobody")


@pytest.fixture
def daemon(start_daemon):
    return start_daemon("--listen", f"web=tcp://127.0.0.1:{PORT}")


@pytest.fixture
def descriptors_return(daemon):
    """The daemon's descriptor count returns to where it was, and it still does its work."""
    before = daemon.n_descriptors_alone()
    yield
    assert daemon.alive()
    harness.poll_until(lambda: daemon.n_descriptors() == before,
                       f"the daemon has its {before} descriptors again")
    worker = daemon.worker(instance="after")
    with harness.tcp_client(("127.0.0.1", PORT), b"request 0\n") as client:
        harness.answer_all(worker.socket, 1, b"worker")
        harness.check_answers([client], b"worker")
    worker.leave()


def test_foreign_user_cannot_join_the_group(start_daemon):
    daemon = start_daemon("--listen", f"web=tcp://127.0.0.1:{PORT}",
                          "--listen", f"web=udp://127.0.0.1:{PORT}")
    daemon.worker()

    def bind():
        errors = []
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            for address in ("127.0.0.1", "0.0.0.0"):
                with socket.socket(socket.AF_INET, kind) as stranger:
                    stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                    try:
                        stranger.bind((address, PORT))
                        errors.append(0)
                    except OSError as error:
                        errors.append(error.errno)
        return errors

    assert harness.in_child(bind, uid=NOBODY.pw_uid, gid=NOBODY.pw_gid) == [errno.EADDRINUSE] * 4
    assert bind() == [errno.EADDRINUSE] * 4  # root is another user, too


def test_only_allowed_users_register(start_daemon, configuration):
    configuration.service("web", f"""[Service]
AllowUser=daemon
[Listener http]
ListenStream=127.0.0.1:{PORT}
""")
    configuration.service("open", f"""[Service]
AllowGroup={harness.run("id", "-gn", "nobody").stdout.strip()}
[Listener http]
ListenStream=127.0.0.1:{PORT + 1}
""")
    daemon = start_daemon("--config", configuration.directory)

    def register(service):
        try:
            worker = proto.Worker(daemon.worker_socket, service=service)
        except proto.Refused as refused:
            return refused.error, refused.sentence
        worker.leave()
        return 0, ""

    error, sentence = harness.in_child(lambda: register("web"), NOBODY.pw_uid, NOBODY.pw_gid)
    assert error == errno.EACCES
    assert "web" in sentence and len(sentence) > 20, sentence
    assert harness.in_child(lambda: register("open"), NOBODY.pw_uid, NOBODY.pw_gid) == (0, "")
    allowed = pwd.getpwnam("daemon")
    assert harness.in_child(lambda: register("web"), allowed.pw_uid, allowed.pw_gid) == (0, "")
    assert harness.in_child(lambda: register("web")) == (0, "")
    error, sentence = harness.in_child(lambda: register("nothing"))
    assert error == errno.ENOENT
    assert "nothing" in sentence


def read_to_end(connection):
    """Types of all messages until the daemon closes the connection."""
    kinds = []
    try:
        while True:
            kind, _, _, descriptors = connection.receive()
            for fd in descriptors:
                os.close(fd)
            kinds.append(kind)
    except (proto.Ended, ConnectionResetError, BrokenPipeError):
        return kinds


def broken_messages():
    hello = proto.HELLO_FORMAT.pack(1, 1, 0)
    yield "one octet", b"R"
    yield "half a header", proto.header(proto.HELLO, len(hello), 1)[:12]
    yield "wrong magic", proto.header(proto.HELLO, len(hello), 1, magic=0x12345678) + hello
    yield "wrong version", proto.header(proto.READY, 8, 1, version=9) + bytes(8)
    yield "reserved field", proto.header(proto.HELLO, len(hello), 1, reserved=1) + hello
    yield "half a body", proto.header(proto.HELLO, len(hello), 1) + hello[:3]
    yield "length too short", proto.header(proto.HELLO, len(hello) - 1, 1) + hello
    yield "length of 4 GiB", proto.header(proto.HELLO, 0xffffffff, 1) + hello
    yield "descriptors promised", proto.header(proto.HELLO, len(hello), 1, n_descriptors=200) + hello
    yield "above the limit", proto.header(proto.REGISTER, 20000, 1) + bytes(20000)
    register = proto.REGISTER_FORMAT.pack(b"web", b"", 1, 0, 2)
    yield "unknown flag", proto.header(proto.REGISTER, len(register), 1) + register
    register = proto.REGISTER_FORMAT.pack(b"w" * 64, b"", 1, 0, 0)
    yield "name without an end", proto.header(proto.REGISTER, len(register), 1) + register
    yield "noise", random.Random(1).randbytes(500)


@pytest.mark.parametrize("octets", [pytest.param(m, id=n) for n, m in broken_messages()])
@pytest.mark.parametrize("greeted", [False, True], ids=["first", "later"])
def test_broken_framing_ends_the_connection_alone(daemon, descriptors_return, octets, greeted):
    other = daemon.worker(instance="other")
    connection = proto.Connection(daemon.worker_socket)
    if greeted:
        connection.hello()
    connection.send_raw(octets)
    assert read_to_end(connection) == [proto.ERROR, proto.GOODBYE]
    connection.close()
    other.ready()
    other.leave()


def refused(connection, kind, body=b"", descriptors=()):
    with pytest.raises(proto.Refused) as info:
        connection.request(kind, body, descriptors)
    assert info.value.sentence
    return info.value.error


def test_refused_requests_leave_the_connection(daemon, descriptors_return):
    connection = proto.Connection(daemon.worker_socket)
    register = proto.REGISTER_FORMAT.pack(b"web", b"", 1, 0, 0)
    refused(connection, proto.REGISTER, register)  # before HELLO
    with pytest.raises(proto.Refused) as info:
        connection.hello(2, 9)
    assert info.value.error == errno.EPROTONOSUPPORT
    connection.hello()
    refused(connection, 99, b"")
    refused(connection, proto.WELCOME, bytes(proto.WELCOME_FORMAT.size))
    refused(connection, proto.ADOPT, proto.ADOPT_FORMAT.pack(1, 0, 1, 0, 0),
            [connection.socket.fileno()])
    refused(connection, proto.READY, proto.REGISTRATION_FORMAT.pack(1, 0))
    refused(connection, proto.UNREGISTER, proto.REGISTRATION_FORMAT.pack(0xffffffff, 0))
    refused(connection, proto.ACK, proto.ACK_FORMAT.pack(1, 0, 0, 0))
    refused(connection, proto.REGISTER, proto.REGISTER_FORMAT.pack(b"web", b"", 0, 0, 0))
    refused(connection, proto.REGISTER, proto.REGISTER_FORMAT.pack(b"web", b"", 100000, 0, 0))
    refused(connection, proto.REGISTER, proto.REGISTER_FORMAT.pack(b"web", b"", 1, 1001, 0))
    refused(connection, proto.REGISTER, proto.REGISTER_FORMAT.pack(b"", b"", 1, 0, 0))
    refused(connection, proto.REGISTER, proto.REGISTER_FORMAT.pack(b"none", b"", 1, 0, 0))
    kind, body, descriptors = connection.request(proto.REGISTER, register)
    assert kind == proto.GRANT and len(descriptors) == 1
    registration = proto.GRANT_FORMAT.unpack_from(body)[0]
    refused(connection, proto.ACK, proto.ACK_FORMAT.pack(registration, 7, 0, 0))
    connection.close()
    os.close(descriptors[0])


def test_registration_of_another_cannot_be_touched(daemon):
    victim = daemon.worker(instance="victim")
    connection = proto.Connection(daemon.worker_socket)
    connection.hello()
    for kind in (proto.READY, proto.DRAIN, proto.UNREGISTER):
        refused(connection, kind, proto.REGISTRATION_FORMAT.pack(victim.registration, 0))
    connection.close()
    assert daemon.status_worker(victim.slot)["state"] == "active"


def test_descriptors_that_nobody_wants_are_closed(daemon, descriptors_return):
    mine = [os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC) for _ in range(253)]
    hello = proto.HELLO_FORMAT.pack(1, 1, 0)
    for count in (1, 2, 253):
        for told in (0, count):
            connection = proto.Connection(daemon.worker_socket)
            connection.send_raw(
                proto.header(proto.HELLO, len(hello), 1, n_descriptors=told) + hello, mine[:count])
            connection.socket.shutdown(socket.SHUT_WR)
            read_to_end(connection)
            connection.close()
    for count in (1, 253):
        connection = proto.Connection(daemon.worker_socket)
        connection.hello()
        for _ in range(20):
            try:
                connection.send(proto.READY, proto.REGISTRATION_FORMAT.pack(1, 0), mine[:count])
            except (BrokenPipeError, ConnectionResetError):
                break
        connection.close()
        with daemon.control() as control:
            control.socket.sendmsg(
                [b"{"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", mine[:count]))])
    for fd in mine:
        os.close(fd)


@pytest.mark.parametrize("which", ["worker", "control"])
def test_10000_connections_of_one_user_leave_room_for_others(daemon, descriptors_return, which):
    path = daemon.worker_socket if which == "worker" else daemon.control_socket
    kind = socket.SOCK_SEQPACKET if which == "worker" else socket.SOCK_STREAM
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if limit < 10200:
        pytest.skip(f"needs 10,200 descriptors in one process, the hard limit is {limit}")

    def other():
        worker = proto.Worker(daemon.worker_socket, instance="other")
        worker.leave()
        return daemon.status()["services"][0]["name"]

    def as_nobody():
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        # SO_PEERCRED has the effective user of connect(); root, below, is the other user.
        os.seteuid(NOBODY.pw_uid)
        try:
            connections = []
            for _ in range(10000):
                connection = socket.socket(socket.AF_UNIX, kind)
                connection.connect(path)  # blocks while the queue is full; the alarm bounds it
                connections.append(connection)
        finally:
            os.seteuid(0)
        name = other()
        harness.close_all(connections)
        return name

    assert harness.in_child(as_nobody) == "web"


def test_client_that_never_reads_is_left_behind(daemon, descriptors_return):
    connection = proto.Connection(daemon.worker_socket)
    connection.hello()
    connection.socket.setblocking(False)
    message = proto.header(99, 0, 7)
    for _ in range(20000):
        try:
            connection.socket.send(message)
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            break
    control = daemon.control()
    control.socket.setblocking(False)
    call = json.dumps({"method": "io.reuseport.Control.Status", "parameters": {}}).encode() + b"\0"
    for _ in range(20000):
        try:
            control.socket.send(call)
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            break
    worker = daemon.worker(instance="meanwhile")
    assert daemon.status_worker(worker.slot)["state"] == "active"
    worker.leave()
    control.close()
    connection.close()


def test_grant_without_acknowledgement_is_taken_back(start_daemon, configuration):
    configuration.write("reuseportd.conf", "[Daemon]\nAnswerTimeoutSec=1\n")
    configuration.service("web", f"[Service]\n[Listener http]\nListenStream=127.0.0.1:{PORT}\n")
    daemon = start_daemon("--config", configuration.directory)
    before = daemon.n_descriptors_alone()
    connection = proto.Connection(daemon.worker_socket)
    connection.hello()
    assert connection.answer_msec == 1000
    kind, _, descriptors = connection.request(
        proto.REGISTER, proto.REGISTER_FORMAT.pack(b"web", b"", 5, 0, 0))
    assert kind == proto.GRANT
    assert read_to_end(connection)[-1:] == [proto.GOODBYE]
    connection.close()
    for fd in descriptors:
        os.close(fd)
    harness.poll_until(lambda: daemon.status("web")["workers"] == [], "the slots are given back")
    harness.poll_until(lambda: daemon.n_descriptors() == before, "so are the descriptors")


@pytest.mark.parametrize("octets", [
    b"\0", b"{}\0", b"[]\0", b"null\0", b"\xff\xfe\0", b"{\"method\":1}\0",
    b"{\"method\":\"io.reuseport.Control.Status\",\"parameters\":[]}\0", b"[" * 100000 + b"\0",
    b"{\"method\":\"", b"a" * 3000000, b"not json\0" * 50,
], ids=["empty", "no-method", "array", "null", "not-utf8", "number", "parameters", "nested", "half",
        "endless", "words"])
def test_garbage_on_the_control_socket_harms_nobody(daemon, descriptors_return, octets):
    control = daemon.control()
    control.socket.settimeout(harness.DEADLINE)
    try:
        control.socket.sendall(octets)
        control.socket.shutdown(socket.SHUT_WR)
        while control.socket.recv(65536):
            pass
    except (BrokenPipeError, ConnectionResetError):
        pass
    control.close()
    assert daemon.status("web")["workers"] == []


def test_unknown_control_methods_have_their_errors(daemon):
    for method, error in [("Nothing", "org.varlink.service.MethodNotFound"),
                          ("org.example.Nothing", "org.varlink.service.InterfaceNotFound")]:
        with pytest.raises(ControlError) as info:
            daemon.call(method)
        assert info.value.name == error


def test_changing_needs_root(daemon):
    """Reading is for everyone by default; drain and reload are not."""
    def call(method):
        try:
            with Control(daemon.control_socket) as control:
                control.call(method)
            return None
        except ControlError as error:
            return error.name

    assert harness.in_child(lambda: call("Status"), NOBODY.pw_uid, NOBODY.pw_gid) is None
    assert harness.in_child(lambda: call("Reload"), NOBODY.pw_uid, NOBODY.pw_gid) \
        == "io.reuseport.Control.PermissionDenied"


@pytest.mark.parametrize("name", [b"line\nbreak", b"\xff\xfe", b"two words", b"\x1b[31m"])
def test_names_that_would_spoil_logs_and_json_are_refused(daemon, name):
    connection = proto.Connection(daemon.worker_socket)
    connection.hello()
    for service, error in ((b"web", errno.EINVAL), (name, errno.ENOENT)):
        assert refused(connection, proto.REGISTER,
                       proto.REGISTER_FORMAT.pack(service, name, 1, 0, 0)) == error
    connection.close()
    assert daemon.status()["services"][0]["workers"] == []
