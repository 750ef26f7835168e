# SPDX-License-Identifier: BSD-2-Clause
"""
reuseport-run --adopt with servers of our own, which bind for themselves and know nothing: exact
counts. Servers of Debian's are in test_adopt_hosts.py.
"""
import contextlib
import ctypes
import errno
import json
import os
import pathlib
import pwd
import signal
import socket
import statistics
import struct
import textwrap
import time

import pytest

import harness
import worker_protocol as proto

PORT = 8080
ADDRESS = ("127.0.0.1", PORT)

# What a server says of itself is in a file as JSON; it goes on by the lines of its standard input.
PRELUDE = r"""
import errno, json, os, select, signal, socket, sys, threading
path = sys.argv[1]
def tell(**what):
    with open(path + ".new", "w") as stream:
        json.dump(dict(what, pid=os.getpid()), stream)
    os.rename(path + ".new", path)
def bind(address, kind=socket.SOCK_STREAM, family=socket.AF_INET):
    s = socket.socket(family, kind)
    s.bind(address)
    return s
def listen(address, **options):
    s = bind(address, **options)
    s.listen(128)
    return s
def serve(listeners, name):
    ended = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(1))
    poll = select.epoll()
    for each in listeners:
        each.setblocking(False)
        poll.register(each, select.EPOLLIN)
    by_fd = {each.fileno(): each for each in listeners}
    while not ended:
        for fd, _ in poll.poll(0.02):
            try:
                connection, _ = by_fd[fd].accept()
            except BlockingIOError:
                continue
            connection.setblocking(True)
            connection.sendall(name.encode() + b" " + connection.recv(4096))
            connection.close()
"""


class Adopted:
    """A server under reuseport-run --adopt. code: Python, after PRELUDE."""

    def __init__(self, daemon, directory, name, code, options=(), **popen):
        self.path = directory / f"{name}.json"
        program = directory / f"{name}.py"
        program.write_text(PRELUDE + textwrap.dedent(code))
        self.process = harness.Process(
            [harness.REUSEPORT_RUN, "--socket", daemon.worker_socket, "--service", "web",
             "--adopt", *options, "--", "/usr/bin/python3", "-I", program, self.path],
            directory / f"{name}.log", **popen)

    def go(self):
        """It goes on: what waits for a file beside the one in which it tells."""
        self.told()
        self.path.with_name(self.path.name + ".go").touch()

    def told(self):
        def there():
            assert self.process.returncode is None or self.path.exists(), self.process.output()
            return self.path.exists()
        harness.poll_until(there, "the server has told something")
        return json.loads(self.path.read_text())


@pytest.fixture
def daemon(start_daemon, configuration):
    configuration.service("web", f"""[Service]
[Listener http]
ListenStream=127.0.0.1:{PORT}
[Listener admin]
ListenStream=127.0.0.1:{PORT + 1}
[Listener dns]
ListenDatagram=127.0.0.1:{PORT}
""")
    return start_daemon("--adopt", "--config", configuration.directory)


@pytest.fixture
def adopt(daemon, tmp_path):
    running = []

    def start(name, code, *options, **more):
        running.append(Adopted(daemon, tmp_path, name, code, options, **more))
        return running[-1]
    yield start
    for each in running:
        each.process.stop()
        print(f"--- {each.path.stem} said:\n{each.process.output()}---")


def ask(name, port=PORT, count=20):
    clients = [harness.tcp_client(("127.0.0.1", port), b"request %d\n" % i) for i in range(count)]
    harness.check_answers(clients, name)
    harness.close_all(clients)


def states(daemon):
    return sorted((w["instance"], w["state"]) for w in daemon.status("web")["workers"])


def test_bind_of_the_services_address_is_adopted(daemon, adopt):
    """Same descriptor, same cookie, same options, and a slot as soon as listen() has returned."""
    one = adopt("one", f"""
        s = socket.socket()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 50000)
        poll = select.epoll()
        poll.register(s, select.EPOLLIN)
        COOKIE = 57
        before = s.fileno(), s.getsockopt(socket.SOL_SOCKET, COOKIE, 8).hex(), s.get_inheritable()
        s.bind(("127.0.0.1", {PORT}))
        bound = s.getsockname()
        s.listen(7)
        after = s.fileno(), s.getsockopt(socket.SOL_SOCKET, COOKIE, 8).hex(), s.get_inheritable()
        tell(same=before == after, name=bound, blocking=s.getblocking(),
             keepalive=s.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
             buffer=s.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF))
        ready = poll.poll(30)
        assert ready == [(s.fileno(), select.EPOLLIN)], ready
        serve([s], "one")
        """, "--instance", "one")
    told = one.told()
    assert told["same"] and told["blocking"] and told["keepalive"] == 1
    assert told["buffer"] == 100000
    assert told["name"] == list(ADDRESS)
    assert states(daemon) == [("one", "active")], "when listen() has returned"
    assert daemon.status("web")["workers"][0]["pid"] == told["pid"]
    ask(b"one")
    one.process.send_signal(signal.SIGTERM)
    assert one.process.wait() == 0
    harness.poll_until(lambda: states(daemon) == [], "the slot is given back")


NEVER_ACCEPTS = f"""
    s = listen(("127.0.0.1", {PORT}))
    tell()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.pause()
    """
ACCEPTS = f"""
    s = listen(("127.0.0.1", {PORT}))
    tell()
    serve([s], %r)
    """


def test_accept_queue_survives_replacement(daemon, adopt):
    """What waits in the old server's queue is answered by the new one, every connection of it."""
    old = adopt("old", NEVER_ACCEPTS, "--instance", "x")
    old.told()
    clients = [harness.tcp_client(ADDRESS, b"request %d\n" % i) for i in range(100)]
    adopt("new", ACCEPTS % "new", "--instance", "x").told()
    assert old.process.wait() == 0
    harness.check_answers(clients, b"new")
    harness.close_all(clients)
    assert states(daemon) == [("x", "active")]


def test_accept_queue_survives_a_kill(daemon, adopt):
    old = adopt("old", NEVER_ACCEPTS)
    old.told()
    clients = [harness.tcp_client(ADDRESS, b"request %d\n" % i) for i in range(100)]
    os.kill(old.told()["pid"], signal.SIGKILL)
    assert old.process.wait() == 128 + signal.SIGKILL
    adopt("new", ACCEPTS % "new").told()
    harness.check_answers(clients, b"new")
    harness.close_all(clients)


def test_every_socket_of_every_process_and_thread_gets_a_slot(daemon, adopt):
    """Those of a thread, of a child, and of its child; the k-th of each listener share one."""
    one = adopt("one", f"""
        held = []
        def in_thread():
            held.append(listen(("127.0.0.1", {PORT})))
        t = threading.Thread(target=in_thread)
        t.start()
        t.join()
        held.append(listen(("127.0.0.1", {PORT + 1})))
        reader, writer = os.pipe()
        for depth in range(2):
            if os.fork():
                break
            held.append(listen(("127.0.0.1", {PORT})))
            os.write(writer, b"x")
        else:
            serve(held, "grandchild")
            os._exit(0)
        if depth == 0:
            got = b""
            while len(got) < 2:
                got += os.read(reader, 2)
            tell()
        serve(held, "one")
        if depth == 0:
            os.killpg(0, signal.SIGTERM)
        """, start_new_session=True)
    one.told()
    workers = daemon.status("web")["workers"]
    assert len(workers) == 3 and {w["state"] for w in workers} == {"active"}
    clients = [harness.tcp_client(ADDRESS, b"request\n") for _ in range(60)]
    clients.append(harness.tcp_client(("127.0.0.1", PORT + 1), b"request\n"))
    # A child has what its parent had, so which of the processes answers is open.
    answers = [harness.receive_line(c) for c in clients]
    harness.close_all(clients)
    assert len(answers) == 61
    assert set(answers) <= {b"one request\n", b"grandchild request\n"}


def test_other_addresses_pass_untouched(daemon, adopt, tmp_path):
    one = adopt("one", f"""
        import stat
        adopted = listen(("127.0.0.1", {PORT + 1}))
        others = [listen(("127.0.0.1", 9999)), listen(("127.0.0.2", {PORT})),
                  listen(("::1", {PORT}), family=socket.AF_INET6),
                  bind(("127.0.0.1", {PORT + 1}), kind=socket.SOCK_DGRAM),
                  listen({str(tmp_path / "socket")!r}, family=socket.AF_UNIX),
                  listen(("127.0.0.1", 0))]
        tell(uids=[os.fstat(s.fileno()).st_uid for s in others])
        serve(others[:3], "one")
        """)
    assert one.told()["uids"] == [0] * 6
    ask(b"one", 9999)
    assert len(daemon.status("web")["workers"]) == 1, "that of the one that is the service's"


FAILS = """
    def fails(function, *arguments):
        try:
            function(*arguments)
        except OSError as error:
            return errno.errorcode[error.errno]
        return None
    """


def test_errors_are_those_of_the_kernel_and_the_log_says_why(daemon, adopt):
    one = adopt("one", FAILS + f"""
    s = bind(("127.0.0.1", {PORT}))
    told = {{
        "twice": fails(s.bind, ("127.0.0.1", {PORT})),
        "overlaps": fails(bind, ("0.0.0.0", {PORT})),
        "both": fails(lambda: listen(("::", {PORT}), family=socket.AF_INET6)),
        "mptcp": fails(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
                       .bind(("127.0.0.1", {PORT}))),
    }}
    tell(**told)
    """)
    told = one.told()
    assert told["twice"] == "EINVAL"
    assert told["overlaps"] == told["both"] == "EADDRINUSE"
    assert told["mptcp"] in ("EADDRINUSE", "EPROTONOSUPPORT", "ENOPROTOOPT")
    assert one.process.wait() == 0
    said = one.process.output()
    assert said.count(f"overlaps with listener http (127.0.0.1:{PORT})") == 2, said
    if told["mptcp"] == "EADDRINUSE":
        assert "is MPTCP" in said


def test_without_cap_chown_the_error_says_what_to_do(start_daemon, tmp_path):
    daemon = start_daemon("--listen", f"web=tcp://127.0.0.1:{PORT}")
    one = Adopted(daemon, tmp_path, "one", FAILS + f"""
    tell(error=fails(bind, ("127.0.0.1", {PORT})))
    """)
    assert one.told()["error"] == "EADDRINUSE"
    assert one.process.wait() == 0
    said = one.process.output()
    assert "needs CAP_CHOWN" in said and "--adopt" in said


def test_cap_chown_is_in_effect_while_a_socket_changes_hands_only(daemon, adopt):
    def capabilities():
        text = pathlib.Path(f"/proc/{daemon.pid}/status").read_text()
        return {line.split(":")[0]: int(line.split()[1], 16) & 1 for line in text.splitlines()
                if line.startswith(("CapEff", "CapPrm"))}  # CAP_CHOWN is number 0
    assert capabilities() == {"CapPrm": 1, "CapEff": 0}
    adopt("one", ACCEPTS % "one").told()
    ask(b"one")
    assert capabilities() == {"CapPrm": 1, "CapEff": 0}


def test_without_a_daemon_bind_fails_and_the_server_goes_on(daemon, adopt, tmp_path):
    one = adopt("one", FAILS + f"""
    s = listen(("127.0.0.1", {PORT}))
    tell()
    while not os.path.exists({str(tmp_path / "gone")!r}):
        select.select([], [], [], 0.01)
    tell(error=fails(bind, ("127.0.0.1", {PORT + 1})), other=fails(bind, ("127.0.0.1", 9999)),
         again=fails(s.listen, 5))
    serve([s], "one")
    """)
    one.told()
    daemon.killed = True
    daemon.process.process.kill()
    daemon.process.wait()
    (tmp_path / "gone").touch()
    harness.poll_until(lambda: one.told().get("error"), "the server has tried")
    assert one.told() == {"pid": one.told()["pid"], "error": "EADDRINUSE", "other": None,
                           "again": None}
    ask(b"one")
    assert "connection to reuseportd ended" in one.process.output()


DATAGRAMS = f"""
        import time
        s = bind(("127.0.0.1", {PORT}), kind=socket.SOCK_DGRAM)
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        def go():
            tell()
            while not os.path.exists(path + ".go"):
                time.sleep(0.01)
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


def exchange(name, count=50):
    clients = [harness.udp_client(ADDRESS) for _ in range(count)]
    for i, client in enumerate(clients):
        client.send(b"%d" % i)
    assert [c.recv(100) for c in clients] == [name + b" %d" % i for i in range(count)]
    harness.close_all(clients)


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
        import time
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


def test_ipv6_takes_ipv4_as_the_listener_does(start_daemon, configuration, tmp_path):
    """Three sockets, so that the first and the newest member of the group are each one of them."""
    configuration.service("web", f"[Service]\n[Listener http]\nListenStream={PORT}\n")
    daemon = start_daemon("--adopt", "--config", configuration.directory)
    one = Adopted(daemon, tmp_path, "one", f"""
        def make():
            s = socket.socket(socket.AF_INET6)
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            s.bind(("::", {PORT}))
            s.listen(128)
            return s
        held = [make() for _ in range(3)]
        tell(only=[s.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) for s in held])
        serve(held, "one")
        """)
    try:
        assert one.told()["only"] == [0, 0, 0], "as the listener's BindIPv6Only= has it"
        assert len(daemon.status("web")["workers"]) == 3
        ask(b"one")
        clients = [harness.tcp_client(("::1", PORT), b"request %d\n" % i) for i in range(20)]
        harness.check_answers(clients, b"one")
        harness.close_all(clients)
    finally:
        one.process.stop()


def test_listener_that_a_reload_closed_is_the_kernels_again(start_daemon, configuration, tmp_path):
    text = "[Service]\n[Listener http]\nListenStream=127.0.0.1:{}\n" \
           "[Listener admin]\nListenStream=127.0.0.1:{}\n"
    configuration.service("web", text.format(PORT, PORT + 1))
    daemon = start_daemon("--adopt", "--config", configuration.directory)
    go = tmp_path / "go"
    one = Adopted(daemon, tmp_path, "one", f"""
        first = listen(("127.0.0.1", {PORT}))
        tell()
        while not os.path.exists({str(go)!r}):
            select.select([], [], [], 0.01)
        second = listen(("127.0.0.1", {PORT + 1}))
        serve([first, second], "one")
        """)
    try:
        one.told()
        configuration.service("web", text.format(PORT, PORT + 2))
        daemon.reload()
        go.touch()
        harness.poll_until(lambda: accepts(PORT + 1),
                           "the server has the address")
        ask(b"one", PORT + 1)
        assert len(daemon.status("web")["workers"]) == 1
    finally:
        one.process.stop()


def accepts(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def test_closed_and_revived_sockets(daemon, adopt):
    """A socket that is shut down and listens again has its slot again; closed ones leave theirs."""
    one = adopt("one", f"""
        for _ in range(50):
            listen(("127.0.0.1", {PORT})).close()
        s = listen(("127.0.0.1", {PORT}))
        s.listen(5)
        s.shutdown(socket.SHUT_RD)
        s.listen(128)
        tell()
        serve([s], "one")
        """)
    one.told()
    assert len(daemon.status("web")["workers"]) == 1
    ask(b"one")


def test_predecessor_goes_when_all_that_it_has_is_there(daemon, adopt, tmp_path):
    old = adopt("old", f"""
        both = [listen(("127.0.0.1", {PORT})), listen(("127.0.0.1", {PORT + 1}))]
        tell()
        serve(both, "old")
        """, "--instance", "x")
    old.told()
    go = tmp_path / "go"
    new = adopt("new", f"""
        first = listen(("127.0.0.1", {PORT}))
        tell()
        while not os.path.exists({str(go)!r}):
            select.select([], [], [], 0.01)
        serve([first, listen(("127.0.0.1", {PORT + 1}))], "new")
        """, "--instance", "x")
    new.told()
    assert states(daemon) == [("x", "active"), ("x", "active")]
    ask(b"old", PORT + 1)
    go.touch()
    assert old.process.wait() == 0
    ask(b"new", PORT + 1)
    ask(b"new")


def test_predecessor_goes_after_a_while_when_the_new_one_has_less(daemon, adopt):
    old = adopt("old", f"""
        both = [listen(("127.0.0.1", {PORT})), listen(("127.0.0.1", {PORT + 1}))]
        tell()
        serve(both, "old")
        """, "--instance", "x")
    old.told()
    adopt("new", ACCEPTS % "new", "--instance", "x").told()
    assert old.process.wait() == 0
    ask(b"new")


def test_ready_waits_for_the_server_where_it_says_so(daemon, adopt, tmp_path):
    go = tmp_path / "go"
    one = adopt("one", f"""
        s = listen(("127.0.0.1", {PORT}))
        tell()
        while not os.path.exists({str(go)!r}):
            select.select([], [], [], 0.01)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as n:
            n.sendto(b"READY=1", "\\0" + os.environ["NOTIFY_SOCKET"][1:])
        serve([s], "one")
        """, "--instance", "one", "--ready", "notify")
    one.told()
    assert states(daemon) == [("one", "joining")]
    clients = [harness.tcp_client(ADDRESS, b"request %d\n" % i) for i in range(20)]
    go.touch()
    harness.check_answers(clients, b"one")
    harness.close_all(clients)


def test_plain_user_below_port_1024(start_daemon, configuration, tmp_path):
    """The launcher has no privilege, so the server gets none by setuid programs."""
    nobody = pwd.getpwnam("nobody")
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents:
        if str(parent).startswith("/tmp/"):
            parent.chmod(0o755)
    configuration.service("web", "[Service]\nAllowUser=nobody\n[Listener http]\n"
                                 "ListenStream=127.0.0.1:81\n")
    daemon = start_daemon("--adopt", "--config", configuration.directory)
    one = Adopted(daemon, tmp_path, "one", """
        s = listen(("127.0.0.1", 81))
        with open("/proc/self/status") as stream:
            lines = [line.rstrip("\\n") for line in stream if ":\\t" in line]
            tell(status=dict(line.split(":\\t", 1) for line in lines))
        serve([s], "one")
        """, user=nobody.pw_uid, group=nobody.pw_gid, extra_groups=[])
    try:
        status = one.told()["status"]
        assert status["NoNewPrivs"] == "1" and status["Seccomp"] == "2"
        assert status["Uid"].split()[0] == str(nobody.pw_uid)
        ask(b"one", 81)
    finally:
        one.process.stop()


def test_calls_that_the_kernel_refuses_are_refused_by_it(daemon, adopt):
    """Addresses that can't be read, lengths and descriptors that are none: as ever."""
    one = adopt("one", FAILS + f"""
    import ctypes, struct
    libc = ctypes.CDLL(None, use_errno=True)
    def call(function, *arguments):
        good = getattr(libc, function)(*arguments) == 0
        return 0 if good else errno.errorcode[ctypes.get_errno()]
    good = struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", {PORT}, bytes([127, 0, 0, 1]))
    adopted = listen(("127.0.0.1", {PORT}))
    with open("/dev/null") as null, socket.socket() as s, socket.socket(socket.AF_UNIX) as u:
        told = [call("bind", s.fileno(), None, 16),
                call("bind", s.fileno(), ctypes.c_void_p(1), 16),
                call("bind", s.fileno(), good, 0), call("bind", s.fileno(), good, 15),
                call("bind", s.fileno(), good, -1), call("bind", s.fileno(), good, 129),
                call("bind", -1, good, 16), call("bind", null.fileno(), good, 16),
                call("bind", u.fileno(), good, 16), call("bind", 99, good, 16),
                call("listen", -1, 1), call("listen", null.fileno(), 1),
                call("listen", u.fileno(), 1),
                call("listen", 99, 1)]
    tell(told=told)
    serve([adopted], "one")
    """)
    assert one.told()["told"] == [
        "EFAULT", "EFAULT", "EINVAL", "EINVAL", "EINVAL", "EINVAL",
        "EBADF", "ENOTSOCK", "EINVAL", "EBADF",
        "EBADF", "ENOTSOCK", "EINVAL", "EBADF"]
    ask(b"one")


def test_thread_with_descriptors_of_its_own(daemon, adopt):
    version = tuple(map(int, os.uname().release.split(".")[:2]))
    if version < (6, 9):
        pytest.skip("needs Linux 6.9: a pidfd of a thread")
    one = adopt("one", f"""
        import ctypes
        def in_thread():
            assert ctypes.CDLL(None).unshare(0x400) == 0  # CLONE_FILES
            s = listen(("127.0.0.1", {PORT}))
            tell()
            while True:
                connection, _ = s.accept()
                connection.sendall(b"thread " + connection.recv(4096))
                connection.close()
        threading.Thread(target=in_thread, daemon=True).start()
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        signal.pause()
        """)
    one.told()
    ask(b"thread")


def test_killed_launcher_leaves_the_server_at_work(daemon, adopt, tmp_path):
    one = adopt("one", FAILS + f"""
    s = listen(("127.0.0.1", {PORT}))
    tell()
    while not os.path.exists({str(tmp_path / "go")!r}):
        select.select([], [], [], 0.01)
    tell(error=fails(bind, ("127.0.0.1", 9999)))
    serve([s], "one")
    """)
    pid = one.told()["pid"]
    try:
        one.process.send_signal(signal.SIGKILL)
        one.process.wait()
        (tmp_path / "go").touch()
        harness.poll_until(lambda: one.told().get("error"), "the server has tried")
        assert one.told()["error"] == "ENOSYS"
        ask(b"one")
    finally:
        os.kill(pid, signal.SIGKILL)
    harness.poll_until(lambda: states(daemon) == [], "the slot is given back")


def test_one_within_another_says_why_not(daemon, adopt):
    inner = [str(harness.REUSEPORT_RUN), "--socket", daemon.worker_socket, "--service", "web",
             "--adopt", "--", "/bin/true"]
    one = adopt("one", f"""
        import subprocess
        done = subprocess.run({inner!r}, capture_output=True, text=True)
        tell(status=done.returncode, said=done.stderr)
        """)
    told = one.told()
    assert told["status"] == 126
    assert "another seccomp filter here is listened to already" in told["said"]


def test_datagrams_before_the_server_hold_no_client_back(daemon, adopt):
    """A client that sent before there was a server is answered when it sends again."""
    with harness.udp_client(ADDRESS) as client:
        client.send(b"early")
        harness.poll_until(lambda: [l["standby"] for l in daemon.status("web")["listeners"]
                                    if l["name"] == "dns"] == [1], "it waits")
        adopt("one", f"""
            s = bind(("127.0.0.1", {PORT}), kind=socket.SOCK_DGRAM)
            tell()
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
            while True:
                data, sender = s.recvfrom(2000)
                s.sendto(b"one " + data, sender)
            """).told()
        client.send(b"again")
        assert client.recv(100) == b"one again"


def test_server_that_dies_while_it_binds(daemon, adopt):
    """Children killed in the middle of it: no slot stays, the next one is served as ever."""
    one = adopt("one", f"""
        import time, random
        for i in range(201):
            pid = os.fork()
            if pid == 0:
                while True:
                    listen(("127.0.0.1", {PORT})).close()
            time.sleep(random.random() * 0.003)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            if i == 0:
                held = len(os.listdir("/proc/%d/fd" % os.getppid()))
        s = listen(("127.0.0.1", {PORT}))
        tell(held=[held, len(os.listdir("/proc/%d/fd" % os.getppid()))])
        serve([s], "one")
        """)
    before, after = one.told()["held"]
    # Before, it may still have had the one by which it starts its server.
    assert after in (before, before - 1), "descriptors of the launcher"
    assert len(daemon.status("web")["workers"]) == 1
    ask(b"one")
    assert "cannot answer" not in one.process.output()


def test_signals_do_not_disturb_bind(daemon, adopt):
    one = adopt("one", f"""
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.siginterrupt(signal.SIGALRM, False)  # SA_RESTART
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        for _ in range(300):
            listen(("127.0.0.1", {PORT})).close()
        signal.setitimer(signal.ITIMER_REAL, 0)
        s = listen(("127.0.0.1", {PORT}))
        tell()
        serve([s], "one")
        """)
    one.told()
    assert len(daemon.status("web")["workers"]) == 1
    ask(b"one")


def test_other_system_calls_cost_the_same(daemon, tmp_path):
    """
    In the process's own processor time, median of turns with and without. The cheapest system call
    there is shows that a filter is there at all; for what a server does it must not matter.
    """
    program = tmp_path / "cost"
    harness.run("cc", "-O2", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE", "-o", program,
                harness.ROOT / "tests" / "system" / "adopt_cost.c")
    launcher = [harness.REUSEPORT_RUN, "--socket", daemon.worker_socket, "--service", "web",
                "--adopt", "--"]
    costs = {True: [], False: []}
    for _ in range(5):
        for adopted, before in ((True, launcher), (False, [])):
            said = harness.run(*before, program).stdout.split()
            costs[adopted].append([float(x) for x in said])
    cheap, datagram = ([statistics.median(turn[i] for turn in costs[adopted])
                        for adopted in (True, False)] for i in (0, 1))
    print(f"FIGURES getppid {cheap[0]} ns adopted, {cheap[1]} ns alone; sending or receiving a "
          f"datagram {datagram[0]} ns, {datagram[1]} ns: {datagram[0] / datagram[1]:.3f} times")
    assert datagram[0] < 1.25 * datagram[1]
    assert cheap[0] < cheap[1] + 300


def test_another_daemon_in_its_place_goes_on_adopting(daemon, adopt, tmp_path):
    """reuseportctl reexec: what was adopted stays, what comes is adopted, the predecessor goes."""
    code = f"""
        held = [listen(("127.0.0.1", {PORT}))]
        tell(n=1)
        while not os.path.exists({str(tmp_path / "go")!r}):
            select.select([], [], [], 0.01)
        held += [listen(("127.0.0.1", {PORT + 1})), listen(("127.0.0.1", {PORT}))]
        tell(n=3)
        serve(held, %r)
        """
    old = adopt("old", code % "old", "--instance", "x")
    old.told()
    ask_all = [harness.tcp_client(ADDRESS, b"request %d\n" % i) for i in range(20)]
    daemon.ctl("reexec")
    (tmp_path / "go").touch()
    harness.poll_until(lambda: old.told()["n"] == 3, "it has bound the rest")
    harness.check_answers(ask_all, b"old")
    harness.close_all(ask_all)
    ask(b"old", PORT + 1)
    assert states(daemon) == [("x", "active"), ("x", "active")]
    new = adopt("new", code % "new", "--instance", "x")
    harness.poll_until(lambda: new.told()["n"] == 3, "it has bound everything")
    assert old.process.wait() == 0
    ask(b"new")
    ask(b"new", PORT + 1)
    daemon.ctl("reexec")
    ask(b"new")
    assert states(daemon) == [("x", "active"), ("x", "active")]


# Clients that bring what is not theirs to bring.


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
        for fd in (reader, writer, pair[0].fileno(), make(socket.AF_INET6).fileno(),
                   make(socket.AF_INET, socket.SOCK_RAW, 6).fileno(), udp.fileno(),
                   os.pidfd_open(os.getpid())):
            assert refused(adopter, proto.ADOPT_BIND, fd, listener=http) == "ENOTSUP"
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
    assert daemon.n_descriptors() == before
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
    assert daemon.n_descriptors() == before
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
