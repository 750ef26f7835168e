# SPDX-License-Identifier: BSD-2-Clause
"""
The daemon and all that kept anything for it are killed: servers serve on by the program that there
is, the next daemon waits for them, and the switch to its program costs nobody anything.
"""
import errno
import os
import signal
import socket
import sys
import threading

import pytest

import debian_hosts
import harness
import worker_protocol as proto
from launched import Launched, PRELUDE
import quic_programs
from quic_programs import QuicClient, QuicServer, by_slot, check
from store import KeptDaemon
from takeover_server import Server

PORT = 8080
SO_COOKIE = 57
ADDRESS = ("127.0.0.1", PORT)
WEB = f"""[Service]
AllowUser=root
[Listener http]
ListenStream=127.0.0.1:{PORT}
[Listener dns]
ListenDatagram=127.0.0.1:{PORT}
"""


class Load:
    """Requests over TCP and datagrams, each answered before the next, until told to stop."""

    def __init__(self, address=ADDRESS, kinds=("tcp", "udp")):
        self.address = address
        self.running = True
        self.answers = {kind: [] for kind in kinds}
        self.errors = []
        namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        self.threads = [threading.Thread(target=self.run, args=(kind, namespace))
                        for kind in (*kinds, *kinds)]
        for thread in self.threads:
            thread.start()

    def run(self, kind, namespace):
        harness.check_libc(harness.libc.setns(namespace, harness.CLONE_NEWNET), "setns")
        try:
            while self.running:
                self.answers[kind].append(getattr(self, kind)())
        except BaseException as error:  # what failed is what the test is about
            self.errors.append(f"{kind} {error!r}")

    def tcp(self):
        with harness.tcp_client(self.address, b"request\n") as client:
            return harness.receive_line(client).split()[0].decode()

    def udp(self):
        with harness.udp_client(self.address) as client:
            client.send(b"request")
            return client.recv(100).split()[0].decode()

    def n(self):
        return {kind: len(answers) for kind, answers in self.answers.items()}

    def goes_on(self, more=50):
        """As many of each again."""
        before = self.n()
        harness.poll_until(lambda: self.errors or all(
            n >= before[kind] + more for kind, n in self.n().items()), "more is answered")
        assert self.errors == []

    def stop(self):
        self.running = False
        for thread in self.threads:
            thread.join()
        assert self.errors == []
        return self.answers


@pytest.fixture
def world(netns, configuration):
    """A daemon that may read UDP standbys again (--adopt: CAP_NET_RAW), and what is stopped at the end."""
    class World:
        def __init__(self):
            self.daemons, self.servers, self.loads = [], [], []

        def daemon(self, *arguments, grace="60s", text=WEB, **options):
            configuration.write("reuseportd.conf", f"[Daemon]\nResumeGraceSec={grace}\n")
            configuration.service("web", text)
            daemon = KeptDaemon(["--config", configuration.directory, "--adopt", *arguments],
                                **options)
            self.daemons.append(daemon)
            return daemon

        def server(self, daemon, name, **options):
            server = Server(daemon, name, **options)
            self.servers.append(server)
            return server

        def load(self, **options):
            self.loads.append(Load(**options))
            return self.loads[-1]

    world = World()
    yield world
    for load in world.loads:
        load.running = False
    for load in world.loads:
        for thread in load.threads:
            thread.join()
    for server in world.servers:
        server.kill()
    for daemon in world.daemons:
        try:
            if daemon.alive():
                assert daemon.stop() == 0
        finally:
            daemon.cleanup()


def kill_all(daemon):
    """The daemon, and the keeper before it has seen that."""
    keeper = harness.keeper_pid(daemon.runtime)
    if daemon.alive():
        harness.freeze(daemon.pid)
    if keeper:
        harness.end_keeper(daemon.runtime)
    daemon.die()
    assert harness.keeper_pid(daemon.runtime) is None


def workers(daemon):
    return {w["slot"]: (w["instance"], w["state"], w["connected"])
            for w in daemon.status("web")["workers"]}


def test_workers_come_back_under_load_and_nothing_is_lost(world):
    daemon = world.daemon()
    servers = [world.server(daemon, f"w{i}", take=i % 2) for i in range(4)]
    before = workers(daemon)
    assert sorted(before) == sorted(s.slots[0] for s in servers) and len(before) == 4
    load = world.load()
    load.goes_on()
    for turn in range(3):
        kill_all(daemon)
        load.goes_on()
        daemon.start()
        assert workers(daemon) == before
        for server in servers:
            line = f"resumed {server.slots[0]}"
            harness.poll_until(lambda: server.said().count(line) == turn + 1, f"{server.name}: {line}")
        load.goes_on()
    new = world.server(daemon, "new")
    assert new.slots[0] not in before
    assert workers(daemon) == {**before, new.slots[0]: ("new", "active", True)}
    load.goes_on(200)
    answers = load.stop()
    for kind in ("tcp", "udp"):
        assert set(answers[kind]) == {"w0", "w1", "w2", "w3", "new"}



def wait_for_workers(daemon):
    """A start that has come as far as to wait for them."""
    n = daemon.output().count("for them to come back")
    daemon.start(wait=False)
    harness.poll_until(lambda: daemon.output().count("for them to come back") > n or
                       not daemon.alive(), "the daemon waits for workers")
    assert daemon.alive()


def wait_ready(daemon, n):
    daemon.notification.wait_ready(n, daemon.child)


def test_one_that_does_not_come_back_is_waited_for_and_then_gets_nothing_new(world):
    daemon = world.daemon(grace="4s")
    servers = [world.server(daemon, f"w{i}", comes_back=i != 2) for i in range(3)]
    load = world.load()
    load.goes_on()
    kill_all(daemon)
    daemon.start()
    assert daemon.output().count("did not within ResumeGraceSec=") == 2
    back = {s.slots[0]: (s.name, "active", True) for s in servers[:2]}
    harness.poll_until(lambda: workers(daemon) == back, "the others are back")
    answers = load.stop()
    assert "w2" in answers["tcp"] and "w2" in answers["udp"]
    load = world.load()
    load.goes_on(100)
    answers = load.stop()
    assert set(answers["tcp"]) == set(answers["udp"]) == {"w0", "w1"}
    new = world.server(daemon, "new")
    assert new.slots[0] not in [s.slots[0] for s in servers[:2]]


def test_one_that_is_killed_meanwhile_is_not_waited_for(world):
    daemon = world.daemon()
    servers = [world.server(daemon, f"w{i}", comes_back=i != 2) for i in range(3)]
    load = world.load()
    load.goes_on()
    kill_all(daemon)
    load.goes_on()
    n = daemon.notification.n_ready
    wait_for_workers(daemon)
    for server in servers[:2]:
        server.wait_said("disconnected -104")
    load.goes_on()
    assert daemon.notification.n_ready == n
    load.stop()  # what it was answering when it died would be its own loss
    servers[2].kill()
    load = world.load()
    wait_ready(daemon, n + 1)
    assert workers(daemon) == {s.slots[0]: (s.name, "active", True) for s in servers[:2]}
    load.goes_on()
    load.stop()


def test_those_that_are_killed_all_leave_the_address_to_the_daemon(world):
    daemon = world.daemon()
    servers = [world.server(daemon, f"w{i}", comes_back=False) for i in range(2)]
    kill_all(daemon)
    n = daemon.notification.n_ready
    wait_for_workers(daemon)
    for server in servers:
        server.kill()
    wait_ready(daemon, n + 1)
    assert workers(daemon) == {}
    new = world.server(daemon, "new")
    load = world.load()
    load.goes_on()
    assert set(load.stop()["tcp"]) == {new.name}


def test_where_nobody_comes_back_the_daemon_ends_and_traffic_goes_on(world):
    daemon = world.daemon(grace="300ms")
    servers = [world.server(daemon, f"w{i}", comes_back=False) for i in range(2)]
    load = world.load()
    load.goes_on()
    kill_all(daemon)
    for _ in range(2):
        daemon.start(wait=False)
        assert daemon.child.wait() == 1
        assert "none has come back within ResumeGraceSec=" in daemon.output()
        assert "Address already in use" in daemon.output()
        load.goes_on()
    assert set(load.stop()["tcp"]) == {s.name for s in servers}


def test_a_daemon_that_is_killed_while_it_waits_changes_nothing(world):
    daemon = world.daemon()
    servers = [world.server(daemon, f"w{i}", comes_back=i != 2) for i in range(3)]
    before = workers(daemon)
    load = world.load()
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        kill_all(daemon)
        wait_for_workers(daemon)
        load.goes_on()
        daemon.die(number)
        load.goes_on()
    n = daemon.notification.n_ready
    wait_for_workers(daemon)
    load.goes_on()
    answers = load.stop()
    assert set(answers["tcp"]) == set(answers["udp"]) == {s.name for s in servers}
    servers[2].kill()
    wait_ready(daemon, n + 1)
    assert workers(daemon) == {slot: w for slot, w in before.items() if w[0] != "w2"}


def test_without_a_keeper_a_stop_and_a_start_take_over_as_well(world):
    daemon = world.daemon("--no-keeper")
    servers = [world.server(daemon, f"w{i}") for i in range(2)]
    before = workers(daemon)
    load = world.load()
    load.goes_on()
    assert daemon.die(signal.SIGTERM) == 0
    load.goes_on()
    daemon.start()
    assert workers(daemon) == before
    for server in servers:
        assert server.said() == ["disconnected 0", f"resumed {server.slots[0]}"]
    load.goes_on()
    load.stop()


def test_several_workers_of_a_process_come_back_to_their_slots(world):
    daemon = world.daemon()
    server = world.server(daemon, "many", workers=5, take=True)
    before = workers(daemon)
    assert sorted(before) == sorted(server.slots) and len(before) == 5
    load = world.load()
    kill_all(daemon)
    load.goes_on()
    daemon.start()
    assert workers(daemon) == before
    server.wait_said("resumed " + " ".join(map(str, server.slots)))
    load.goes_on()
    load.stop()


def test_who_registers_meanwhile_waits_and_gets_a_slot_of_its_own(world):
    daemon = world.daemon()
    late = world.server(daemon, "late", comes_back=False)
    servers = [world.server(daemon, f"w{i}") for i in range(2)]
    kill_all(daemon)
    n = daemon.notification.n_ready
    wait_for_workers(daemon)
    registered = []
    thread = threading.Thread(target=lambda: registered.append(
        daemon.worker(instance="meanwhile")))
    thread.start()
    load = world.load()
    load.goes_on()
    load.stop()
    assert registered == [] and daemon.notification.n_ready == n
    late.kill()
    wait_ready(daemon, n + 1)
    thread.join()
    assert len({registered[0].slot, *(s.slots[0] for s in servers)}) == 3
    assert {w[0] for w in workers(daemon).values()} == {"w0", "w1", "meanwhile"}


def test_another_users_socket_is_no_worker_to_be_waited_for(world, netns):
    daemon = world.daemon()
    daemon.die()
    harness.end_keeper(daemon.runtime)
    with socket.create_server(ADDRESS):
        daemon.start(wait=False)
        assert daemon.child.wait() == 1
    assert "another process has the address" in daemon.output()
    assert "to come back" not in daemon.output()


def test_a_drained_worker_comes_back_drained(world):
    daemon = world.daemon()
    servers = [world.server(daemon, f"w{i}") for i in range(2)]
    assert daemon.call("Drain", service="web", instance="w1") == {"drained": 1}
    servers[1].wait_said("drain")
    kill_all(daemon)
    load = world.load()
    load.goes_on()
    daemon.start()
    assert {slot: w[1] for slot, w in workers(daemon).items()} == {
        servers[0].slots[0]: "active", servers[1].slots[0]: "draining"}
    load.goes_on()
    answers = load.stop()
    assert set(answers["tcp"]) == set(answers["udp"]) == {"w0"}


def test_one_that_comes_back_late_is_taken_in_again(world):
    daemon = world.daemon(grace="4s")
    servers = [world.server(daemon, f"w{i}") for i in range(3)]
    before = workers(daemon)
    harness.freeze(servers[2].pid)
    kill_all(daemon)
    daemon.start()
    assert daemon.output().count("did not within ResumeGraceSec=") == 2
    assert servers[2].slots[0] not in workers(daemon)
    os.kill(servers[2].pid, signal.SIGCONT)
    load = world.load()
    servers[2].wait_said(f"resumed {servers[2].slots[0]}")
    harness.poll_until(lambda: workers(daemon) == before, "all are back")
    load.goes_on(200)
    answers = load.stop()
    assert {"w0", "w1", "w2"} == set(answers["tcp"]) == set(answers["udp"])


SERVER = PRELUDE + """
tcp, udp = (socket.socket(fileno=fd) for fd in (3, 4))
if "moves" in sys.argv[2:]:  # to other numbers, in a child
    child = os.fork()
    if child:
        tcp.close()
        udp.close()
        signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
        os.waitpid(child, 0)
        sys.exit(0)
    tcp, udp = tcp.dup(), udp.dup()  # 3 and 4 are closed with the objects
tell(serves=True)
threading.Thread(target=answer_datagrams, args=(udp, sys.argv[2]), daemon=True).start()
serve([tcp], sys.argv[2])
"""


def test_servers_behind_the_launcher_come_back(world, tmp_path):
    daemon = world.daemon()
    launched = [Launched(daemon, tmp_path, name, ["--instance", name], SERVER, [name, *more])
                for name, *more in (("plain",), ("child", "moves"))]
    try:
        for each in launched:
            assert each.told()["serves"]
        harness.poll_until(lambda: [w[1] for w in workers(daemon).values()] == ["active"] * 2,
                           "both are active")
        before = workers(daemon)
        load = world.load()
        load.goes_on()
        kill_all(daemon)
        load.goes_on()
        daemon.start()
        assert workers(daemon) == before
        harness.poll_until(lambda: all("reuseportd is back" in each.process.output()
                                       for each in launched), "the launchers say so")
        load.goes_on()
        answers = load.stop()
        assert set(answers["tcp"]) == set(answers["udp"]) == {"plain", "child"}
        # And they are drained by it when they end.
        for each in launched:
            assert each.process.stop() == 0
        harness.poll_until(lambda: workers(daemon) == {}, "they have gone")
    finally:
        for each in launched:
            each.process.stop()


def resume(connection, worker=0, n_workers=1, slot=0, service="web", instance="hostile", flags=1,
           sockets=(), entries=None):
    """Answer to RESUME; sockets: by name of the listener, of which there are as many as entries."""
    entries = entries or [("http", f"127.0.0.1:{PORT}", proto.TCP), ("dns", f"127.0.0.1:{PORT}", proto.UDP)]
    body = proto.RESUME_FORMAT.pack(service.encode(), instance.encode(), worker, n_workers, 0, flags,
                                    slot, len(entries), 0)
    descriptors = []
    for name, address, transport in entries:
        number = 0xffff
        if name in sockets:
            number = len(descriptors)
            descriptors.append(sockets[name].fileno())
        body += proto.RESUME_LISTENER_FORMAT.pack(name.encode(), address.encode(), transport, 0,
                                                  number, 0)
    return connection.request(proto.RESUME, body, descriptors)


def refused(*arguments, **options):
    with pytest.raises(proto.Refused) as refusal:
        resume(*arguments, **options)
    return refusal.value.error, str(refusal.value)


def connect(daemon):
    connection = proto.Connection(daemon.worker_socket)
    connection.hello()
    return connection


def test_what_is_not_a_workers_own_is_refused(world):
    """Each kind of lie, while a daemon waits and afterwards; nobody else notices."""
    daemon = world.daemon(text=WEB.replace("AllowUser=root", "AllowUser=root\nMaxWorkers=3"))
    server = world.server(daemon, "w0")
    mine = daemon.worker(instance="mine")  # does not come back: what it has is used to lie with
    kill_all(daemon)
    n = daemon.notification.n_ready
    wait_for_workers(daemon)
    server.wait_said("disconnected -104")
    with socket.socket() as unbound, socket.create_server(("127.0.0.1", PORT + 1)) as other, \
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram, socket.socketpair()[0] as pair, \
            open("/dev/null") as file:
        for wrong, why in (({"http": unbound}, "not bound to the listener's address"),
                           ({"http": other}, "not bound to the listener's address"),
                           ({"http": datagram}, "of another kind"),
                           ({"http": pair}, "only sockets of IPv4 and IPv6"),
                           ({"http": file}, "only sockets of IPv4 and IPv6"),
                           ({"dns": mine.sockets[0]["http"]}, "of another kind")):
            connection = connect(daemon)
            error, sentence = refused(connection, sockets=wrong, slot=mine.slot)
            assert error == errno.EBADF and why in sentence
            connection.close()
    connection = connect(daemon)
    assert refused(connection, service="nothing")[0] == errno.ENOENT
    assert refused(connection, worker=1, n_workers=2)[0] == errno.EINVAL
    assert refused(connection, n_workers=0)[0] == errno.EINVAL
    assert refused(connection, n_workers=4)[0] == errno.EDQUOT
    assert refused(connection, slot=4096)[0] == errno.EINVAL
    assert refused(connection, instance="a b")[0] == errno.EINVAL
    # In the middle it changes its mind: what it had brought is forgotten.
    resume(connection, n_workers=2, sockets=mine.sockets[0], slot=mine.slot)
    assert refused(connection, worker=1, n_workers=2, instance="other")[0] == errno.EINVAL
    # Its own socket twice.
    resume(connection, n_workers=2, sockets=mine.sockets[0], slot=mine.slot)
    error, sentence = refused(connection, worker=1, n_workers=2, sockets=mine.sockets[0], slot=9)
    assert error == errno.EEXIST and "brought it already" in sentence
    connection.close()

    def stranger():
        connection = connect(daemon)
        return refused(connection)[0]

    assert harness.in_child(stranger, 65534, 65534) == errno.EACCES
    assert daemon.notification.n_ready == n
    # The truth, at a slot that is another's: it gets another one.
    connection = connect(daemon)
    resume(connection, sockets=mine.sockets[0], slot=server.slots[0])
    wait_ready(daemon, n + 1)
    kind, sequence, body, descriptors = connection.receive()
    assert (kind, sequence, descriptors) == (proto.GRANT, 0, [])
    _, _, _, slot, _, instance = proto.GRANT_FORMAT.unpack_from(body)
    found = workers(daemon)
    assert found[slot][0] == proto.text(instance) == "hostile"
    assert {w[:2] for w in found.values()} == {("w0", "active"), ("hostile", "active")}
    assert refused(connection)[0] == errno.EALREADY
    mine.sockets[0]["http"].close()
    mine.sockets[0]["dns"].close()
    connection.close()


@pytest.mark.parametrize("mode", ["quic-lb", "quic-lb-plain"])
def test_quic_connections_stay_at_their_worker(world, tmp_path, mode):
    """They go to other addresses and connection IDs, before and after the next daemon has its group."""
    quic_programs.require_programs()
    certificate = quic_programs.Certificate(tmp_path)
    daemon = world.daemon(text="[Service]\nAllowUser=root\n[Listener quic]\n"
                          f"ListenQUIC=127.0.0.1:4433\nConnectionID={mode}\n")
    servers = [QuicServer(certificate, tmp_path / f"{i}.log", path=daemon.worker_socket,
                          instance=f"q{i}") for i in range(3)]
    run = QuicClient(("127.0.0.1", 4433), "--connections", 200, "--local-addresses",
                     "127.0.0.1,127.0.0.2", "--script",
                     "request,wait,migrate,request,wait,migrate,request:2,wait,rebind,request,wait")
    try:
        check(run.wait_ready(), connections=200, answered=200)
        before = workers(daemon)
        kill_all(daemon)
        run.go()
        check(run.wait_ready(), connections=200, answered=400, migrations_completed=200)
        daemon.start()
        assert workers(daemon) == before and len(before) == 3
        run.go()
        check(run.wait_ready(), connections=200, answered=800, migrations_completed=400)
        check(quic_programs.run_client(("127.0.0.1", 4433), "--connections", 50, "--script",
                                       "request"), connections=50, answered=50)
        run.go()
        check(run.wait_ready(), connections=200, answered=1000, rebindings=200)
        run.go()
        account = run.finish()
        check(account, connections=200, requests_sent=1000, answered=1000)
        assert sum(by_slot(account).values()) == 200 and set(by_slot(account)) == set(before)
    finally:
        run.cleanup()
        for server in servers:
            server.kill()


@pytest.mark.parametrize("mode", ["registered", "opaque"])
def test_what_is_known_of_connections_to_the_daemon_alone_is_not_taken_over(world, mode):
    daemon = world.daemon(text="[Service]\nAllowUser=root\n[Listener quic]\n"
                          f"ListenQUIC=127.0.0.1:4433\nConnectionID={mode}\n")
    server = world.server(daemon, "w0")
    kill_all(daemon)
    daemon.start(wait=False)
    assert daemon.child.wait() == 1
    assert "Address already in use" in daemon.output()
    assert "to come back" not in daemon.output()
    server.kill()
    daemon.start()


def test_who_lost_the_connection_alone_has_it_again(world):
    daemon = world.daemon()
    worker = daemon.worker(instance="hostile", n_workers=2)
    before = workers(daemon)
    worker.connection.close()
    harness.poll_until(lambda: not any(w[2] for w in workers(daemon).values()), "it is seen")
    # Not without a socket of its own.
    connection = connect(daemon)
    assert refused(connection, n_workers=2, slot=worker.slots[0], sockets=worker.sockets[1])[0] \
        == errno.EEXIST
    for _ in range(2):
        for i in range(2):
            resume(connection, worker=i, n_workers=2, slot=worker.slots[i], sockets=worker.sockets[i])
        for slot in worker.slots:
            kind, sequence, body, descriptors = connection.receive()
            assert (kind, sequence, descriptors) == (proto.GRANT, 0, [])
            granted = proto.GRANT_FORMAT.unpack_from(body)
            assert granted[0] == worker.registration and granted[3] == slot
        assert workers(daemon) == before
        assert refused(connection, worker=2, n_workers=2)[0] == errno.EALREADY
        connection.close()
        connection = connect(daemon)
    connection.close()


# Servers that bind for themselves

BINDS = PRELUDE + f"""
name, how = sys.argv[2], sys.argv[3:]
if "idle" in how:
    tell()
    wait_for_go()
sockets = [listen(("127.0.0.1", {PORT})) for _ in range(2 if "two" in how else 1)]
udp = bind(("127.0.0.1", {PORT}), kind=socket.SOCK_DGRAM)
if "moves" in how:  # to other numbers, in a child
    child = os.fork()
    if child:
        for s in sockets + [udp]:
            s.close()
        signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
        os.waitpid(child, 0)
        sys.exit(0)
    sockets, udp = [s.dup() for s in sockets], udp.dup()
if "closes" in how:
    listen(("127.0.0.1", {PORT})).close()
    bind(("127.0.0.1", {PORT}), kind=socket.SOCK_DGRAM).close()
if "idle" not in how:
    tell()
def datagrams():
    if "later" in how:  # until then it does not wait for any
        wait_for_go()
    answer_datagrams(udp, name)
threading.Thread(target=datagrams, daemon=True).start()
serve(sockets, name)
"""


@pytest.fixture
def adopted(tmp_path):
    """adopted(daemon, name, how...): a server under --adopt, stopped at the end."""
    running = []

    def start(daemon, name, *how, instance=None):
        running.append(Launched(
            daemon, tmp_path, name, ["--adopt", "--instance", instance or name, "--drain-delay", "1"],
            BINDS, [name, *how]))
        return running[-1]
    yield start
    for each in running:
        each.process.stop()
        print(f"--- {each.name} said:\n{each.process.output()}--- end")


def standing(daemon):
    """By slot: instance, state, and the listeners of which it has a socket."""
    return {w["slot"]: (w["instance"], w["state"], w["connected"], *sorted(
        s["listener"] for s in w["sockets"] if s["queue"] is not None))
        for w in daemon.status("web")["workers"]}


def wait_standing(daemon, *expected):
    """expected: of standing(), without the slots."""
    harness.poll_until(lambda: sorted(standing(daemon).values()) == sorted(expected),
                       f"{expected} stand, not {standing(daemon)}")
    return standing(daemon)


def wait_same(daemon, before):
    """Each queue is looked at anew, and seen a little later."""
    assert workers(daemon) == {slot: worker[:3] for slot, worker in before.items()}
    harness.poll_until(lambda: standing(daemon) == before, f"{before}, not {standing(daemon)}")


def stands(name, *listeners):
    return (name, "active", True, *listeners)


def wait_back(launchers, n=1):
    harness.poll_until(lambda: all(each.output().count("reuseportd is back") == n
                                   for each in launchers), "the launchers say that it is back")


def test_adopted_servers_come_back_under_load_and_are_replaced(world, adopted):
    daemon = world.daemon()
    servers = [adopted(daemon, "two", "two"), adopted(daemon, "child", "moves")]
    before = wait_standing(daemon, stands("two", "dns", "http"), stands("two", "http"),
                           stands("child", "dns", "http"))
    load = world.load()
    load.goes_on()
    for turn in range(3):
        kill_all(daemon)
        load.goes_on()
        daemon.start()
        wait_same(daemon, before)
        wait_back([each.process for each in servers], turn + 1)
        load.goes_on()
    daemon.die()  # what it has of them, the keeper keeps
    daemon.start()
    wait_same(daemon, before)
    load.goes_on()
    assert "did not within" not in daemon.output()
    answers = load.stop()
    assert set(answers["tcp"]) == set(answers["udp"]) == {"two", "child"}
    # What comes later finds a daemon that knows of them all. Of UDP, a client that has the port of
    # an earlier one stays with the server that ends, so only TCP can go on for ever.
    load = world.load(kinds=("tcp",))
    load.goes_on()
    new = adopted(daemon, "new", "two", instance="two")
    assert servers[0].process.wait() == 0
    after = wait_standing(daemon, stands("two", "dns", "http"), stands("two", "http"),
                          stands("child", "dns", "http"))
    assert len(set(before) & set(after)) == 1
    load.goes_on()
    assert set(load.stop()["tcp"]) == {"two", "child", "new"}
    load = world.load()
    load.goes_on()
    answers = load.stop()
    assert set(answers["tcp"]) == set(answers["udp"]) == {"child", "new"}
    assert new.process.stop() == 0 and servers[1].process.stop() == 0
    harness.poll_until(lambda: workers(daemon) == {}, "they have gone")


def asks(n):
    """So many requests over HTTP, one after the other."""
    for _ in range(n):
        with harness.tcp_client(ADDRESS, b"GET / HTTP/1.0\r\n\r\n") as client:
            answer = client.makefile("rb").read()
            assert answer.startswith(b"HTTP/1.1 200 OK") and answer.endswith(b"answered\n")


def test_nginx_comes_back_with_every_socket_that_it_bound(world, tmp_path):
    """Four workers' and, after the first takeover, those of two more; then another one replaces it."""
    daemon = world.daemon(text="[Service]\nAllowUser=root\n" + debian_hosts.LISTENERS["wrk"])
    host = debian_hosts.HOSTS["nginx"]
    running = []

    def start():
        running.append(harness.Process(
            [harness.REUSEPORT_RUN, "--socket", daemon.worker_socket, "--service", "web",
             "--instance", "nginx", "--drain-signal", "QUIT", "--adopt", "--",
             *host.prepare(tmp_path / f"{len(running)}")], tmp_path / f"{len(running)}.log"))
        return wait_standing(daemon, *[stands("nginx", "http")] * 4)

    load = None
    try:
        before = start()
        load = debian_hosts.make_client("wrk", tmp_path)
        for n in (4, 6):
            asks(20)
            kill_all(daemon)
            asks(20)
            daemon.start()
            wait_same(daemon, before)
            assert len(before) == n
            wait_back(running, n // 2 - 1)
            asks(20)
            if n == 4:
                configured = tmp_path / "0" / "nginx.conf"
                configured.write_text(configured.read_text().replace(
                    "worker_processes 4;", "worker_processes 6;"))
                running[0].send_signal(signal.SIGHUP)
                before = wait_standing(daemon, *[stands("nginx", "http")] * 6)
        assert not set(start()) & set(before)
        assert running[0].wait() == 0
        asks(20)
        done, failed = load.finish()
        assert failed == 0 and done > 100
    finally:
        if load:
            load.kill()
        for each in running:
            each.stop()
            print(f"--- {each.log.name} said:\n{each.output()}--- end")


def test_an_adopted_socket_that_nobody_waits_for_comes_back_as_it_was(world, adopted):
    daemon = world.daemon()
    other = adopted(daemon, "other")
    later = adopted(daemon, "later", "later")
    later.told()
    before = wait_standing(daemon, stands("other", "dns", "http"), stands("later", "http"))
    load = world.load()
    for turn in range(2):
        kill_all(daemon)
        load.goes_on()
        daemon.start()
        wait_back([other.process, later.process], turn + 1)
        load.goes_on()
        wait_same(daemon, before)
    assert "did not within" not in daemon.output()
    assert set(load.stop()["udp"]) == {"other"}
    load = world.load()
    later.go()
    wait_standing(daemon, stands("other", "dns", "http"), stands("later", "dns", "http"))
    assert set(standing(daemon)) == set(before)
    load.goes_on(100)
    assert set(load.stop()["udp"]) == {"other", "later"}


def test_adopted_sockets_that_were_closed_are_not_brought_back(world, adopted):
    daemon = world.daemon()
    server = adopted(daemon, "one", "closes")
    server.told()
    before = wait_standing(daemon, stands("one", "dns", "http"), ("one", "draining", True))
    kill_all(daemon)
    daemon.start()
    wait_back([server.process])
    assert "did not within" not in daemon.output()
    after = wait_standing(daemon, stands("one", "dns", "http"))
    assert set(after) < set(before)
    load = world.load()
    load.goes_on()
    load.stop()


def test_a_launcher_of_which_nothing_is_adopted_yet_comes_back(world, adopted):
    daemon = world.daemon()
    idle = adopted(daemon, "idle", "idle")
    other = adopted(daemon, "other")
    idle.told()
    wait_standing(daemon, stands("other", "dns", "http"))
    kill_all(daemon)
    daemon.start()
    wait_back([idle.process, other.process])
    idle.go()
    wait_standing(daemon, stands("other", "dns", "http"), stands("idle", "dns", "http"))
    load = world.load()
    load.goes_on(100)
    answers = load.stop()
    assert set(answers["tcp"]) == set(answers["udp"]) == {"other", "idle"}


def adopted_resume(connection, name, sock, bound=False, worker=0, n_workers=1, max_workers=2,
                   slot=0xffff, instance="hostile", n_listeners=2, process=()):
    """RESUME of one that adopts, with one socket or none."""
    entries = [("http", proto.TCP), ("dns", proto.UDP)][:n_listeners]
    body = proto.RESUME_FORMAT.pack(b"web", instance.encode(), worker, n_workers, 0, 1, slot,
                                    len(entries), max_workers)
    for entry, transport in entries:
        mine = sock is not None and entry == name
        body += proto.RESUME_LISTENER_FORMAT.pack(
            entry.encode(), f"127.0.0.1:{PORT}".encode(), transport, 0, 0 if mine else 0xffff,
            int(mine and bound))
    return connection.request(proto.RESUME, body, [sock.fileno()] if sock is not None else [])


def listening(adopter, kind=socket.SOCK_STREAM, name="http"):
    """A socket of ours at its slot."""
    made = socket.socket(socket.AF_INET, kind)
    adopter.adopt(proto.ADOPT_BIND, made.fileno(), adopter.index(name))
    adopter.adopt(proto.ADOPT_LISTEN, made.fileno(), adopter.index(name), 128)
    return made


def test_who_adopts_and_lost_the_connection_alone_has_it_again(world):
    daemon = world.daemon()
    adopter = proto.Adopter(daemon.worker_socket, instance="hostile", max_workers=2)
    with listening(adopter) as first, listening(adopter):
        before = wait_standing(daemon, stands("hostile", "http"), stands("hostile", "http"))
        assert sorted(adopter.slots) == sorted(before)
        adopter.close()
        harness.poll_until(lambda: not any(w[2] for w in workers(daemon).values()), "it is seen")
        connection = connect(daemon)
        for lie in ({"max_workers": 3}, {"instance": "other"}):  # then it is not known
            with pytest.raises(proto.Refused) as refusal:
                adopted_resume(connection, "http", first, slot=min(before), **lie)
            assert refusal.value.error == errno.EEXIST
        adopted_resume(connection, "http", first, slot=max(before))  # it need not know which
        kind, sequence, body, descriptors = connection.receive()
        assert (kind, sequence, descriptors) == (proto.GRANT, 0, [])
        assert proto.GRANT_FORMAT.unpack_from(body)[:3] == (adopter.registration, 0, 0)
        wait_same(daemon, before)
        connection.close()


def test_what_one_that_adopts_may_not_say_is_refused(world):
    """While a daemon waits: it is told, and another one comes back all the same."""
    daemon = world.daemon(text=WEB.replace("AllowUser=root", "AllowUser=root\nMaxWorkers=3"))
    server = world.server(daemon, "w0")
    adopter = proto.Adopter(daemon.worker_socket, instance="hostile", max_workers=2)
    with listening(adopter) as mine, listening(adopter, socket.SOCK_DGRAM, "dns") as datagrams:
        before = wait_standing(daemon, stands("w0", "dns", "http"), stands("hostile", "dns", "http"))
        slot, = set(adopter.slots)
        assert before[slot][0] == "hostile"
        kill_all(daemon)
        n = daemon.notification.n_ready
        wait_for_workers(daemon)
        connection = connect(daemon)

        def refused_with(error, *arguments, **options):
            with pytest.raises(proto.Refused) as refusal:
                adopted_resume(connection, *arguments, **options)
            assert refusal.value.error == error, refusal.value

        refused_with(errno.EINVAL, "http", mine, slot=slot, n_workers=3)
        refused_with(errno.EINVAL, "http", mine, slot=slot, max_workers=1025)
        refused_with(errno.EINVAL, "http", mine, slot=4096)
        refused_with(errno.EDQUOT, "http", mine, slot=slot, n_workers=4, max_workers=8)
        with socket.socket() as unbound:
            refused_with(errno.EBADF, "http", unbound, bound=True)
        # Another number of workers than it began with, and a socket twice.
        adopted_resume(connection, "http", mine, slot=slot, n_workers=2)
        refused_with(errno.EINVAL, "dns", datagrams, slot=slot, worker=1, n_workers=2, max_workers=3)
        adopted_resume(connection, "http", mine, slot=slot, n_workers=2)
        refused_with(errno.EEXIST, "http", mine, worker=1, n_workers=2, bound=True)
        assert daemon.notification.n_ready == n
        # The truth, at a slot that is another's; and a socket of which it says that it waits.
        adopted_resume(connection, "http", mine, slot=server.slots[0], n_workers=2)
        adopted_resume(connection, "dns", datagrams, bound=True, worker=1, n_workers=2)
        wait_ready(daemon, n + 1)
        wait_standing(daemon, stands("w0", "dns", "http"), stands("hostile", "http"))
        found, = (s for s, w in standing(daemon).items() if w[0] == "hostile")
        if found != server.slots[0]:  # that one came first
            kind, sequence, body, _ = connection.receive()
            _, listener, told, cookie = proto.ADOPTED_FORMAT.unpack(body)
            assert (kind, sequence, listener, told) == (proto.ADOPTED, 0, 0, found)
            assert cookie == int.from_bytes(mine.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), sys.byteorder)
        kind, sequence, body, descriptors = connection.receive()
        assert (kind, sequence, descriptors) == (proto.GRANT, 0, [])
        connection.close()
