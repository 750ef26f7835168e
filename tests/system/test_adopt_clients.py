# SPDX-License-Identifier: BSD-2-Clause
"""ADOPT from clients that bring what is not theirs to bring, and whatever else they may try."""
import contextlib
import ctypes
import errno
import os
import socket
import struct

import pytest

import harness
import worker_protocol as proto
from launched import ADDRESS, PORT, daemon  # noqa: F401


@pytest.fixture
def adopter(daemon):
    result = proto.Adopter(daemon.worker_socket)
    yield result
    result.close()


def refused(adopter, step, fd, **options):
    with pytest.raises(proto.Refused) as info:
        adopter.adopt(step, fd, **options)
    assert info.value.sentence
    return errno.errorcode[info.value.error]


def test_what_is_not_a_socket_of_the_listeners_kind_is_refused(daemon, adopter):
    before = daemon.n_descriptors()
    http, dns = adopter.index("http"), adopter.index("dns")
    reader, writer = os.pipe()
    pair = socket.socketpair()
    with contextlib.ExitStack() as stack:
        def make(*arguments):
            return stack.enter_context(socket.socket(*arguments))
        tcp, udp = make(), make(socket.AF_INET, socket.SOCK_DGRAM)
        for fd in (make(socket.AF_INET6).fileno(), make(socket.AF_INET, socket.SOCK_RAW, 6).fileno(),
                   udp.fileno(), os.pidfd_open(os.getpid())):
            assert refused(adopter, proto.ADOPT_BIND, fd, listener=http) == "ENOTSUP"
        for fd in (reader, writer, pair[0].fileno()):
            assert refused(adopter, proto.ADOPT_BIND, fd, listener=http) == "EBADF"
        assert refused(adopter, proto.ADOPT_BIND, tcp.fileno(), listener=dns) == "ENOTSUP"
        assert refused(adopter, proto.ADOPT_LISTEN, udp.fileno(), listener=dns) == "ENOENT"
        assert refused(adopter, proto.ADOPT_LISTEN, tcp.fileno(), listener=http) == "ENOENT"
        assert refused(adopter, proto.ADOPT_BIND, tcp.fileno(), listener=3) == "EINVAL"
        assert refused(adopter, proto.ADOPT_BIND, tcp.fileno(), registration=999) == "EINVAL"
        device = make()
        device.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
        assert refused(adopter, proto.ADOPT_BIND, device.fileno(), listener=http) == "ENOTSUP"
        bound = make()
        bound.bind(("127.0.0.1", 0))
        assert refused(adopter, proto.ADOPT_BIND, bound.fileno(), listener=http) == "EINVAL"
        bound.listen()
        assert refused(adopter, proto.ADOPT_BIND, bound.fileno(), listener=http) == "EINVAL"
        assert refused(adopter, proto.ADOPT_LISTEN, bound.fileno(), listener=http) == "ENOENT"
        connected = make()
        connected.connect(bound.getsockname())
        assert refused(adopter, proto.ADOPT_BIND, connected.fileno(), listener=http) == "EINVAL"
        udp.connect(("127.0.0.1", 9))
        assert refused(adopter, proto.ADOPT_BIND, udp.fileno(), listener=dns) == "EINVAL"
        for each in (tcp, bound, udp):
            assert os.fstat(each.fileno()).st_uid == 0, "it has its owner still"
    os.close(reader)
    os.close(writer)
    for each in pair:
        each.close()
    harness.poll_until(lambda: daemon.n_descriptors() == before, "nothing is left")
    assert daemon.status("web")["workers"] == []


def test_socket_of_another_network_namespace_is_refused(daemon, adopter):
    with harness.NetworkNamespace(), socket.socket() as other:
        assert refused(adopter, proto.ADOPT_BIND, other.fileno()) == "EXDEV"
        assert os.fstat(other.fileno()).st_uid == 0


def test_ordinary_registrations_do_not_adopt(daemon):
    worker = daemon.worker()
    with socket.socket() as each, pytest.raises(proto.Refused) as info:
        worker.connection.request(proto.ADOPT, proto.ADOPT_FORMAT.pack(
            worker.registration, 0, proto.ADOPT_BIND, 0, 0), [each.fileno()])
    assert info.value.error == errno.EINVAL


def test_no_more_workers_than_asked_for(daemon):
    adopter = proto.Adopter(daemon.worker_socket, max_workers=2)
    http, admin = adopter.index("http"), adopter.index("admin")
    sockets = []
    for listener in (http, http, admin, admin, http):
        sockets.append(socket.socket())
        adopter.adopt(proto.ADOPT_BIND, sockets[-1].fileno(), listener=listener)
        if len(sockets) < 5:
            adopter.adopt(proto.ADOPT_LISTEN, sockets[-1].fileno(), listener=listener, backlog=5)
    assert refused(adopter, proto.ADOPT_LISTEN, sockets[-1].fileno(), listener=http,
                   backlog=5) == "EDQUOT"
    assert len(daemon.status("web")["workers"]) == 2
    sockets[0].close()
    adopter.adopt(proto.ADOPT_LISTEN, sockets[-1].fileno(), listener=http, backlog=5)
    assert len(daemon.status("web")["workers"]) == 2
    adopter.adopt(proto.ADOPT_LISTEN, sockets[-1].fileno(), listener=http, backlog=9)
    datagrams = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(3)]
    dns = adopter.index("dns")
    for each in datagrams[:2]:
        for step in (proto.ADOPT_BIND, proto.ADOPT_LISTEN):
            adopter.adopt(step, each.fileno(), listener=dns)
    assert refused(adopter, proto.ADOPT_BIND, datagrams[2].fileno(), listener=dns) == "EDQUOT"
    assert datagrams[2].getsockname() == ("0.0.0.0", 0), "it was not bound"
    harness.close_all(datagrams)
    harness.close_all(sockets)
    adopter.close()


def test_copy_of_a_socket_is_not_kept(daemon, adopter):
    """The slot is empty at the very moment in which the server closes its socket."""
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    before = daemon.n_descriptors()
    for step in (proto.ADOPT_BIND, proto.ADOPT_LISTEN):
        adopter.adopt(step, udp.fileno(), listener=adopter.index("dns"))
    harness.poll_until(lambda: daemon.n_descriptors() == before, "all is as it was")
    with harness.udp_client(ADDRESS) as client:
        client.send(b"x")
        assert udp.recv(10) == b"x"
        udp.close()
        again = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        for step in (proto.ADOPT_BIND, proto.ADOPT_LISTEN):
            adopter.adopt(step, again.fileno(), listener=adopter.index("dns"))
        client.send(b"y")
        again.settimeout(harness.DEADLINE)
        assert again.recv(10) == b"y"
        again.close()
    assert len(daemon.status("web")["workers"]) == 1


def test_no_socket_is_adopted_where_ids_need_a_key(start_daemon):
    """Its server would not know how IDs are made, and is told no key, now or when it changes."""
    daemon = start_daemon("--adopt", "--listen", f"web=quic://127.0.0.1:{PORT}",
                          "--listen", f"web=tcp://127.0.0.1:{PORT}")
    adopter = proto.Adopter(daemon.worker_socket)
    quic = [l.transport for l in adopter.listeners].index(proto.QUIC)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, socket.socket() as tcp:
        assert refused(adopter, proto.ADOPT_BIND, udp.fileno(), listener=quic) == "ENOTSUP"
        for step in (proto.ADOPT_BIND, proto.ADOPT_LISTEN):
            adopter.adopt(step, tcp.fileno(), listener=1 - quic)
        daemon.call("RotateKeys", service="web")
        adopter.ready()
    assert adopter.connection.events == []
    adopter.close()


def test_draining_registration_adopts_nothing(daemon, adopter):
    with socket.socket() as first, socket.socket() as second:
        for step in (proto.ADOPT_BIND, proto.ADOPT_LISTEN):
            adopter.adopt(step, first.fileno())
        kind, _, _ = adopter.connection.request(
            proto.DRAIN, proto.REGISTRATION_FORMAT.pack(adopter.registration, 0))
        assert kind == proto.OK
        assert refused(adopter, proto.ADOPT_BIND, second.fileno()) == "ESHUTDOWN"
        assert os.fstat(second.fileno()).st_uid == 0


def test_follower_is_not_drained_by_the_one_before(daemon):
    """However late that one's sockets come: who registered later is to take its place."""
    with contextlib.ExitStack() as stack:
        before, after = (proto.Adopter(daemon.worker_socket, instance="web-1") for _ in range(2))
        for adopter in (before, after):
            stack.callback(adopter.close)
            server = stack.enter_context(socket.socket())
            adopter.adopt(proto.ADOPT_BIND, server.fileno(), listener=adopter.index("http"))
            server.listen()
            adopter.adopt(proto.ADOPT_LISTEN, server.fileno(), listener=adopter.index("http"))
            if adopter is before:
                assert [w["state"] for w in daemon.status("web")["workers"]] == ["active"]
        harness.poll_until(lambda: sorted(w["state"] for w in daemon.status("web")["workers"]) ==
                           ["active", "draining"], "the second has the first one's place")
        assert before.connection.wait_event()[0] == proto.DRAIN_REQUESTED
        with pytest.raises(TimeoutError):
            after.connection.wait_event(0.2)


def test_race_for_the_address_gives_nothing(start_daemon, tmp_path):
    """
    While the daemon owns the socket and has not bound it, its holder binds it into the group of
    another service. It gets in there, but gets nothing, and the other service loses nothing.
    """
    library = tmp_path / "race.so"
    harness.run("cc", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", library,
                harness.ROOT / "tests" / "system" / "adopt_race.c")
    race = ctypes.CDLL(str(library)).race
    target = struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", PORT + 1,
                                                             socket.inet_aton("127.0.0.1"))
    daemon = start_daemon("--adopt", "--listen", f"web=udp://127.0.0.1:{PORT}",
                          "--listen", f"other=udp://127.0.0.1:{PORT + 1}")
    other = daemon.worker(service="other")
    adopter = proto.Adopter(daemon.worker_socket)
    won = None
    for tried in range(1, 20001):
        each = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sequence = adopter.connection.send(proto.ADOPT, proto.ADOPT_FORMAT.pack(
            adopter.registration, 0, proto.ADOPT_BIND, 0, 0), [each.fileno()])
        if race(each.fileno(), target, len(target)) == 1:
            with pytest.raises(proto.Refused) as info:
                adopter.connection.answer(sequence)
            assert info.value.error == errno.EINVAL
            won = each
            break
        adopter.connection.answer(sequence)
        each.close()
    print(f"the race was won at try {tried}")
    assert won
    assert "bound a socket elsewhere while it was adopted" in daemon.process.output()
    daemon.worker(service="other", ready=False).leave()  # the group grows all the same
    won.setblocking(False)
    won.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)
    clients = [harness.udp_client(("127.0.0.1", PORT + 1)) for _ in range(50)]
    for client in clients:
        client.send(b"x")
    received = harness.receive_datagrams([other], 50, 3)
    assert len(received) == 50
    with pytest.raises(BlockingIOError):
        won.recv(10)
    harness.close_all([*clients, won])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as each:
        assert refused(adopter, proto.ADOPT_BIND, each.fileno()) == "EPERM"
    adopter.close()
