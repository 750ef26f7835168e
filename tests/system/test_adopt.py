# SPDX-License-Identifier: BSD-2-Clause
"""
reuseport-run --adopt with servers of our own, which bind for themselves and know nothing: exact
counts. UDP is in test_adopt_udp.py, what clients of the daemon may try in test_adopt_clients.py,
servers of Debian's in test_adopt_hosts.py.
"""
import os
import pathlib
import pwd
import signal
import socket

import pytest

import harness
from launched import ADDRESS, PORT, Adopted, adopt, ask, daemon, launch, states  # noqa: F401


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


def test_errors_are_those_of_the_kernel_and_the_log_says_why(daemon, adopt):
    one = adopt("one", f"""
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


def test_without_cap_chown_the_error_says_what_to_do(start_daemon, launch):
    daemon = start_daemon("--listen", f"web=tcp://127.0.0.1:{PORT}")
    one = launch(Adopted, daemon, "one", f"""
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
    one = adopt("one", f"""
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
    harness.end_keeper(daemon.runtime)
    (tmp_path / "gone").touch()
    harness.poll_until(lambda: one.told().get("error"), "the server has tried")
    assert one.told() == {"pid": one.told()["pid"], "error": "EADDRINUSE", "other": None,
                           "again": None}
    ask(b"one")
    assert "connection to reuseportd ended" in one.process.output()


def test_ipv6_takes_ipv4_as_the_listener_does(start_daemon, configuration, launch):
    """Three sockets, so that the first and the newest member of the group are each one of them."""
    configuration.service("web", f"[Service]\n[Listener http]\nListenStream={PORT}\n")
    daemon = start_daemon("--adopt", "--config", configuration.directory)
    one = launch(Adopted, daemon, "one", f"""
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
    assert one.told()["only"] == [0, 0, 0], "as the listener's BindIPv6Only= has it"
    assert len(daemon.status("web")["workers"]) == 3
    ask(b"one")
    clients = [harness.tcp_client(("::1", PORT), b"request %d\n" % i) for i in range(20)]
    harness.check_answers(clients, b"one")
    harness.close_all(clients)


def test_listener_that_a_reload_closed_is_the_kernels_again(start_daemon, configuration, launch, tmp_path):
    text = "[Service]\n[Listener http]\nListenStream=127.0.0.1:{}\n" \
           "[Listener admin]\nListenStream=127.0.0.1:{}\n"
    configuration.service("web", text.format(PORT, PORT + 1))
    daemon = start_daemon("--adopt", "--config", configuration.directory)
    go = tmp_path / "go"
    one = launch(Adopted, daemon, "one", f"""
        first = listen(("127.0.0.1", {PORT}))
        tell()
        while not os.path.exists({str(go)!r}):
            select.select([], [], [], 0.01)
        end = time.monotonic() + {harness.DEADLINE}
        second = None
        while not second:  # the keeper closes its copies of the sink and the standby a moment later
            try:
                second = listen(("127.0.0.1", {PORT + 1}))
            except OSError:
                assert time.monotonic() < end
        serve([first, second], "one")
        """)
    one.told()
    configuration.service("web", text.format(PORT, PORT + 2))
    daemon.reload()
    go.touch()
    harness.poll_until(lambda: accepts(PORT + 1),
                       "the server has the address")
    ask(b"one", PORT + 1)
    assert len(daemon.status("web")["workers"]) == 1


def test_listener_that_a_reload_adds_is_known_at_once(start_daemon, configuration, launch):
    """Also one that was closed and is there again, and after another daemon has taken over."""
    text = "[Service]\n" + "[Listener http]\nListenStream=127.0.0.1:{}\n"
    more = "[Listener {}]\nListenStream=127.0.0.1:{}\n"
    configuration.service("web", text.format(PORT))
    daemon = start_daemon("--adopt", "--config", configuration.directory)
    one = launch(Adopted, daemon, "one", f"""
        held = [listen(("127.0.0.1", {PORT}))]
        tell(n=1)
        for n in range(2, 5):
            while not os.path.exists(path + str(n)):
                time.sleep(0.01)
            held.append(listen(("127.0.0.1", {PORT} + (0, 0, 1, 2, 1)[n])))
            if n == 3:
                held.pop(1).close()
            tell(n=n)
        serve(held, "one")
        """)

    def bind_next(n):
        one.path.with_name(one.path.name + str(n)).touch()
        harness.poll_until(lambda: one.told()["n"] == n, f"{n} are bound")

    def check(*names):
        worker, = daemon.status("web")["workers"]
        assert sorted(each["listener"] for each in worker["sockets"]) == sorted(names)

    one.told()
    configuration.service("web", text.format(PORT) + more.format("admin", PORT + 1))
    daemon.ctl("reload")
    bind_next(2)
    check("http", "admin")
    configuration.service("web", text.format(PORT) + more.format("other", PORT + 2))
    daemon.ctl("reload")
    bind_next(3)
    check("http", "other")
    daemon.ctl("reexec")
    configuration.service("web", text.format(PORT) + more.format("other", PORT + 2) +
                          more.format("admin", PORT + 1))
    daemon.ctl("reload")
    bind_next(4)
    check("http", "other", "admin")
    for port in range(PORT, PORT + 3):
        ask(b"one", port)


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


def test_plain_user_below_port_1024(start_daemon, configuration, launch, tmp_path):
    """The launcher has no privilege, so the server gets none by setuid programs."""
    nobody = pwd.getpwnam("nobody")
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents:
        if str(parent).startswith("/tmp/"):
            parent.chmod(0o755)
    configuration.service("web", "[Service]\nAllowUser=nobody\n[Listener http]\n"
                                 "ListenStream=127.0.0.1:81\n")
    daemon = start_daemon("--adopt", "--config", configuration.directory)
    one = launch(Adopted, daemon, "one", """
        s = listen(("127.0.0.1", 81))
        with open("/proc/self/status") as stream:
            lines = [line.rstrip("\\n") for line in stream if ":\\t" in line]
            tell(status=dict(line.split(":\\t", 1) for line in lines))
        serve([s], "one")
        """, user=nobody.pw_uid, group=nobody.pw_gid, extra_groups=[])
    status = one.told()["status"]
    assert status["NoNewPrivs"] == "1" and status["Seccomp"] == "2"
    assert status["Uid"].split()[0] == str(nobody.pw_uid)
    ask(b"one", 81)


def test_calls_that_the_kernel_refuses_are_refused_by_it(daemon, adopt):
    """Addresses that can't be read, lengths and descriptors that are none: as ever."""
    one = adopt("one", f"""
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
    if harness.KERNEL < (6, 9):
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
