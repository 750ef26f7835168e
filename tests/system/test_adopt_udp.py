# SPDX-License-Identifier: BSD-2-Clause
"""
UDP under reuseport-run --adopt: a socket has its slot when its server waits for it, and what came
before there was any is delivered then.
"""
import os
import signal
import socket
import textwrap
import time

import pytest

import harness
from launched import (ADDRESS, PORT, Adopted, adopt, daemon, exchange, launch,  # noqa: F401
                      states, wait_active)
from test_quic_hosts import host_namespace


DATAGRAMS = f"""
        s = bind(("127.0.0.1", {PORT}), kind=socket.SOCK_DGRAM)
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        def go():
            tell()
            wait_for_go()
        def answer(name):
            data, sender = s.recvfrom(2000)
            s.sendto(name + b" " + data, sender)
"""


WAITS = {
    "recvfrom": """
        go()
        while True:
            answer(NAME)
        """,
    "recvmsg in a thread": """
        def run():
            go()
            while True:
                data, _, _, sender = s.recvmsg(2000)
                s.sendto(NAME + b" " + data, sender)
        threading.Thread(target=run).start()
        """,
    "poll": """
        go()
        poll = select.poll()
        poll.register(s, select.POLLIN)
        while poll.poll():
            answer(NAME)
        """,
    "select": """
        go()
        while select.select([s], [], []):
            answer(NAME)
        """,
    "epoll": """
        other, _ = os.pipe()
        poll = select.epoll()
        poll.register(other, select.EPOLLIN)
        poll.register(s, select.EPOLLIN)
        go()
        while poll.poll():
            answer(NAME)
        """,
    "a child's descriptor of another number": """
        go()
        if os.fork():
            signal.pause()
        s = socket.socket(fileno=os.dup(s.detach()))
        while True:
            answer(NAME)
        """,
}


def waiting_server(name, how):
    return DATAGRAMS + textwrap.indent(textwrap.dedent(WAITS[how]), " " * 8).replace(
        "NAME", repr(name.encode()))


@pytest.mark.parametrize("how", WAITS)
def test_udp_socket_has_its_slot_when_the_server_waits_for_it(daemon, adopt, how):
    """Bound is not enough: until somebody waits there, the one before gets everything."""
    old = adopt("old", waiting_server("old", "recvfrom"), "--instance", "x", start_new_session=True)
    old.go()
    harness.poll_until(lambda: states(daemon) == [("x", "active")], "the first one is active")
    new = adopt("new", waiting_server("new", how), "--instance", "x", start_new_session=True)
    new.told()
    for _ in range(20):  # longer than the first looks take
        exchange(b"old", 5)
        time.sleep(0.02)
    assert states(daemon) == [("x", "active")]
    new.go()
    assert old.process.wait() == 0
    assert states(daemon) == [("x", "active")]
    exchange(b"new")
    os.killpg(new.process.pid, signal.SIGTERM)


def test_udp_server_that_never_waits_replaces_nobody(daemon, adopt):
    """Its configuration is wrong, say: it ends, and the one before has not missed a datagram."""
    old = adopt("old", waiting_server("old", "recvfrom"), "--instance", "x")
    old.go()
    harness.poll_until(lambda: states(daemon) == [("x", "active")], "the first one is active")
    new = adopt("new", DATAGRAMS + """
        go()
        sys.exit(3)
        """, "--instance", "x")
    new.told()
    exchange(b"old")
    new.go()
    assert new.process.wait() == 3
    exchange(b"old")
    assert states(daemon) == [("x", "active")] and old.process.returncode is None


def test_udp_socket_has_its_slot_when_the_server_says_ready(daemon, adopt):
    """It never sleeps in a call that names the socket, and is not asked to."""
    one = adopt("one", DATAGRAMS + """
        s.setblocking(False)
        go()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as n:
            n.sendto(b"READY=1", "\\0" + os.environ["NOTIFY_SOCKET"][1:])
        while True:
            try:
                answer(b"one")
            except BlockingIOError:
                time.sleep(0.001)
        """, "--ready", "notify")
    one.told()
    assert states(daemon) == []
    one.go()
    harness.poll_until(lambda: [state for _, state in states(daemon)] == ["active"], "it is active")
    exchange(b"one")


def test_udp_socket_of_a_server_that_is_never_seen_waiting(daemon, adopt):
    """It asks again and again without sleeping there: after 30 seconds it is believed."""
    one = adopt("one", DATAGRAMS + """
        s.setblocking(False)
        tell()
        while True:
            try:
                answer(b"one")
            except BlockingIOError:
                time.sleep(0.001)
        """)
    one.told()
    assert states(daemon) == []
    harness.poll_until(lambda: [state for _, state in states(daemon)] == ["active"], "it is active",
                       harness.DEADLINE + 30)
    exchange(b"one")


def test_many_udp_sockets_get_their_slots_as_they_are_waited_for(daemon, adopt):
    """Four children with a socket each, all bound by their parent, as nginx does."""
    one = adopt("one", """
        socks = []
        for _ in range(4):
            s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            s.bind(("127.0.0.1", %d))
            socks.append(s)
        for i, s in enumerate(socks):
            if os.fork() == 0:
                while not os.path.exists(path + ".go%%d" %% i):
                    time.sleep(0.01)
                while True:
                    data, sender = s.recvfrom(2000)
                    s.sendto(b"%%d" %% i, sender)
        tell()
        signal.pause()
        """ % PORT, start_new_session=True)
    one.told()
    for n in range(4):
        assert len(states(daemon)) == n
        (one.path.parent / f"{one.path.name}.go{n}").touch()
        harness.poll_until(lambda: len(states(daemon)) == n + 1, "one more")
    clients = [harness.udp_client(ADDRESS) for _ in range(100)]
    for client in clients:
        client.send(b"x")
    assert {c.recv(10) for c in clients} == {b"0", b"1", b"2", b"3"}
    harness.close_all(clients)
    os.killpg(one.process.pid, signal.SIGTERM)


# What came before there was a worker.

ANSWERS = """
    s = bind((ADDRESS, %d), kind=socket.SOCK_DGRAM, family=FAMILY)
    tell()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    answer_datagrams(s, "one")
    """ % PORT


def answering_server(address):
    family = "socket.AF_INET6" if ":" in address else "socket.AF_INET"
    return ANSWERS.replace("ADDRESS", repr(address)).replace("FAMILY", family)


@pytest.fixture
def service(start_daemon, configuration):
    """service(address, lines...): a daemon that adopts, with a UDP listener there."""
    def make(address, *lines, **options):
        name = f"[{address}]" if ":" in address else address
        configuration.service("web", "[Service]\n[Listener dns]\n" + "\n".join(
            [f"ListenDatagram={name}:{PORT}", *lines]) + "\n")
        return start_daemon("--adopt", "--config", configuration.directory, **options)
    return make


def figures(daemon):
    listener, = daemon.status("web")["listeners"]
    return listener["standby"], listener["expired"]


@pytest.mark.parametrize("address, targets", [
    ("127.0.0.1", ["127.0.0.1"]),
    ("0.0.0.0", ["127.0.0.1"]),
    ("::1", ["::1"]),
    ("::", ["::1", "127.0.0.1"]),
])
def test_datagrams_before_the_server_are_answered(service, launch, address, targets):
    """Each of them, once, without being sent again."""
    daemon = service(address)
    clients = [harness.udp_client((target, PORT)) for target in targets for _ in range(40)]
    for i, client in enumerate(clients):
        client.send(b"%d" % i)
    assert figures(daemon) == (len(clients), 0)
    launch(Adopted, daemon, "one", answering_server(address))
    assert [c.recv(100) for c in clients] == [b"one %d" % i for i in range(len(clients))]
    for client in clients:  # what was answered twice would come before this
        client.send(b"more")
        assert client.recv(100) == b"one more"
    assert figures(daemon) == (len(clients), 0)
    harness.close_all(clients)


def test_datagrams_keep_their_length_and_their_ecn(service, launch):
    daemon = service("0.0.0.0")
    lengths = [0, 1, 1199, 1200, 9000, 65507]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(harness.DEADLINE)
        client.bind(("127.0.0.3", 0))
        for i, length in enumerate(lengths):
            client.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 4 * i + i % 3)
            client.sendto(b"x" * length, ("127.0.0.2", PORT))
        one = launch(Adopted, daemon, "one", f"""
            s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            s.setsockopt(socket.IPPROTO_IP, 8, 1)  # IP_PKTINFO
            s.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
            s.bind(("0.0.0.0", {PORT}))
            seen = []
            while len(seen) < {len(lengths)}:
                data, control, _, sender = s.recvmsg(70000, 500)
                items = {{kind: value for _, kind, value in control}}
                seen.append([len(data), data == b"x" * len(data), items[socket.IP_TOS][0],
                             socket.inet_ntoa(items[8][8:12]), list(sender)])
            tell(seen=seen)
            """)
        assert one.told()["seen"] == [
            [length, True, 4 * i + i % 3, "127.0.0.2", list(client.getsockname())]
            for i, length in enumerate(lengths)]


def test_datagrams_of_clients_elsewhere(service, launch):
    """By a link, past the strict filter on sources; the answers go back by it."""
    daemon = service("0.0.0.0")
    with host_namespace(1):
        clients = [harness.udp_client(("10.9.1.1", PORT)) for _ in range(40)]
        for i, client in enumerate(clients):
            client.send(b"%d" % i)
    for name in ("all", "lo", "host1"):
        harness.sysctl(f"net/ipv4/conf/{name}/rp_filter", 1)
    harness.poll_until(lambda: figures(daemon) == (40, 0), "all of them wait")
    launch(Adopted, daemon, "one", answering_server("0.0.0.0"))
    assert [c.recv(100) for c in clients] == [b"one %d" % i for i in range(40)]
    harness.close_all(clients)


def test_datagrams_between_two_servers(service, launch):
    """Every time that none is left, what comes waits for the next."""
    daemon = service("127.0.0.1")
    for turn in range(3):
        clients = [harness.udp_client(ADDRESS) for _ in range(20)]
        for i, client in enumerate(clients):
            client.send(b"%d" % i)
        one = launch(Adopted, daemon, f"one{turn}", answering_server("127.0.0.1"))
        assert [c.recv(100) for c in clients] == [b"one %d" % i for i in range(20)]
        harness.close_all(clients)
        one.process.stop()
        harness.poll_until(lambda: states(daemon) == [], "the slot is given back")
    assert figures(daemon) == (60, 0)


def test_without_cap_net_raw_the_log_says_what_to_do(service, launch, tmp_path):
    program = tmp_path / "reuseportd"
    program.write_text("#!/bin/sh\n"
                       f"exec setpriv --bounding-set=-net_raw -- {harness.REUSEPORTD} \"$@\"\n")
    program.chmod(0o755)
    daemon = service("127.0.0.1", program=program)
    with harness.udp_client(ADDRESS) as early, harness.udp_client(ADDRESS) as late:
        early.send(b"early")
        launch(Adopted, daemon, "one", answering_server("127.0.0.1"))
        wait_active(daemon)
        late.send(b"late")
        assert late.recv(100) == b"one late"
        harness.poll_until(lambda: "needs CAP_NET_RAW" in daemon.process.output(), "it says so")
        early.setblocking(False)
        with pytest.raises(BlockingIOError):
            early.recv(100)
    assert daemon.process.output().count("can't be delivered again") == 1
