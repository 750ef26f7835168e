# SPDX-License-Identifier: BSD-2-Clause
"""
What the holder of a worker's socket can't do to the others of its group: the daemon guards the
sockets that it makes by programs on its own cgroup.
"""
import ctypes
import errno
import os
import socket

import pytest

import harness
from share_plane import SharePlane, new_connections

PORT = 4433
SO_DETACH_REUSEPORT_BPF = 68
SO_ATTACH_REUSEPORT_CBPF = 51
NOBODY = 65534
AF_UNSPEC = 0


def cgroup2_is_mounted():
    with open("/proc/self/mountinfo", encoding="ascii") as mounts:
        return any(" - cgroup2 " in line for line in mounts)


pytestmark = pytest.mark.skipif(not cgroup2_is_mounted(), reason="needs a cgroup2 file system")


def result_of(call, *arguments):
    try:
        call(*arguments)
    except OSError as error:
        return error.errno
    return 0


def set_option(each, option, value):
    return result_of(each.setsockopt, socket.SOL_SOCKET, option, value)


def attempts(each, host):
    """What a holder would have to do to harm the others: name to what the kernel answers."""
    return {"detach": set_option(each, SO_DETACH_REUSEPORT_BPF, 0),
            "leave": set_option(each, socket.SO_REUSEPORT, 0),
            "connect": result_of(each.connect, (host, 9))}


REFUSED = {"detach": errno.EPERM, "leave": errno.EPERM, "connect": errno.EPERM}


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("transport", ["udp", "quic", "tcp"])
def test_a_holder_harms_nobody(start_daemon, host, transport):
    name = f"[{host}]" if ":" in host else host
    daemon = start_daemon("--net-admin", "--listen", f"web={transport}://{name}:{PORT}")
    worker = daemon.worker(instance="w")
    expected = dict(REFUSED)
    if transport == "tcp":
        expected["connect"] = errno.EISCONN  # it listens
    for uid in (0, NOBODY):
        assert as_user(uid, worker.socket, host) == expected
    # What a server does with its socket it may do.
    assert set_option(worker.socket, socket.SO_REUSEPORT, 1) == 0
    assert set_option(worker.socket, socket.SO_RCVBUF, 1 << 16) == 0
    # So it may with its own ones, though this process is in the daemon's cgroup.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as own:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        own.bind((host, 0))
        assert set_option(own, socket.SO_REUSEPORT, 0) == 0
        assert result_of(own.connect, (host, PORT)) == 0
    assert set_option(worker.socket, SO_DETACH_REUSEPORT_BPF, 0) == errno.EPERM


def as_user(uid, each, host):
    """attempts() in a process of that user that has the socket."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            os.write(writer, repr(attempts(each, host)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        text = stream.read()
    os.waitpid(pid, 0)
    return eval(text)  # of our own child: numbers by name


@pytest.mark.parametrize("listen, to, stays", [
    ("127.0.0.1", "127.0.0.1", True), ("0.0.0.0", "127.0.0.1", False), ("[::]", "127.0.0.1", False),
    ("[::]", "::1", False)])
def test_a_holder_that_dissolves_captures_nothing(start_daemon, listen, to, stays):
    """
    connect() with AF_UNSPEC asks no cgroup. On a wildcard address it takes the socket out of the
    group (udp_disconnect() hashes it anew, Linux 6.18): the holder gets nothing any more, and
    nobody else loses anything.
    """
    daemon = start_daemon("--net-admin", "--listen", f"web=quic://{listen}:{PORT}")
    workers = [daemon.worker(instance=f"w{i}") for i in range(3)]
    address = ctypes.create_string_buffer(16)
    assert harness.libc.connect(workers[0].socket.fileno(), address, 16) == 0
    with harness.udp_client((to, PORT)) as client:
        packets = new_connections(60)
        for octets in packets:
            client.send(octets)
        received = harness.receive_datagrams(workers, 60)
    assert sorted(each[1] for each in received) == sorted(packets)
    assert any(worker is workers[0] for worker, *_ in received) == stays
    assert daemon.status("web")["listeners"][0]["new_connections"] == 60


def test_a_service_can_not_harm_the_other(start_daemon, configuration):
    p = SharePlane(start_daemon, configuration, {
        "shop": "MatchServerName=shop.example", "api": "MatchDefault=yes"}, users={"shop": "nobody"})
    shop, api = p.worker("shop", uid=NOBODY), p.worker("api")
    for _ in range(3):
        assert as_user(NOBODY, shop.socket, "127.0.0.1") == REFUSED
        where, _ = p.exchange(new_connections(50))
        assert where == [api] * 50
    p.daemon.ctl("reexec")
    assert as_user(NOBODY, shop.socket, "127.0.0.1") == REFUSED
    late = p.worker("shop", uid=NOBODY)
    assert as_user(NOBODY, late.socket, "127.0.0.1") == REFUSED
    p.close()


def test_without_the_capability_only_one_users_services_share(start_daemon, configuration):
    p = SharePlane(start_daemon, configuration, {
        "shop": "MatchServerName=shop.example", "api": "MatchDefault=yes"})
    shop, api = p.worker("shop"), p.worker("api")
    p.users = {"shop": "nobody"}
    p.configure("shop", "MatchServerName=shop.example")
    error = p.daemon.ctl("reload", check=False)
    assert error.returncode != 0
    assert "shop.conf:5: services of different users have the share edge: their sockets would " \
        "have to be guarded from each other, and that takes CAP_NET_ADMIN from the start on" \
        in error.stderr
    assert p.exchange(new_connections(20))[0] == [api] * 20
    # Nobody asked for it, so there is no guard: a holder may.
    assert set_option(shop.socket, SO_DETACH_REUSEPORT_BPF, 0) == 0
    p.close()
