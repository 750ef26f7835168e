# SPDX-License-Identifier: BSD-2-Clause
"""
The daemon and its classifier together: whose a new connection is, and what becomes of that when one
of the two ends, stands still or gets another configuration.
"""
import contextlib
import os
import pathlib
import shutil
import signal
import time

import pytest

import harness
import quic_initials
from share_plane import ADDRESS, SharePlane, maker, section, short

CLASSIFIER = harness.BUILD / "classify" / "reuseport-classify"
SERVICES = {"shop": "MatchServerName=shop.example *.shop.example", "api": "MatchServerName=api.example",
            "rest": "MatchDefault=yes"}
# Else a slow machine's classifier drops what it can't follow, as it should.
ALL_THAT_IT_TAKES = "ClassifierShare=100%\n"


@pytest.fixture
def share(start_daemon, configuration):
    """share(...): a daemon with three services on one port, and a worker of each."""
    made = []

    def make(classifier=CLASSIFIER, daemon=ALL_THAT_IT_TAKES, **options):
        plane = SharePlane(start_daemon, configuration, SERVICES, classifier=classifier, daemon=daemon,
                           **options)
        made.append(plane)
        plane.by_name = {name: plane.worker(name, f"{name}@1") for name in SERVICES}
        return plane

    yield make
    for each in made:
        each.close()


def classifiers(plane):
    """Pids, by the daemon's children; those that have ended are none."""
    pid = plane.daemon.pid
    children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return [int(child) for child in children if name_of(child) == CLASSIFIER.name[:15] and
            state_of(child) != "Z"]


def name_of(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/comm").read_text(encoding="ascii").strip()
    except (FileNotFoundError, ProcessLookupError):
        return None


def state_of(pid):
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return stat.rpartition(")")[2].split()[0]


def wait_classifier(plane, before=()):
    """The pid of the one that is there, and not one of those before."""
    def found():
        pids = [pid for pid in classifiers(plane) if pid not in before]
        return pids[0] if len(pids) == 1 and len(classifiers(plane)) == 1 else None
    return harness.poll_until(found, "there is one classifier", interval=0.02)


def send(plane, names, datagrams=2, tail_first=False):
    """
    New connections; the service whose worker got each, which got all of it. No more at once than the
    classifier's socket holds if it does not run meanwhile (net.core.rmem_max).
    """
    flights = [quic_initials.first_flight(name, datagrams=datagrams) for name in names]
    where = []
    at_once = 48 // datagrams
    for i in range(0, len(flights), at_once):
        packets = [datagram for flight in flights[i:i + at_once]
                   for datagram in (flight[::-1] if tail_first else flight)]
        where += plane.exchange(packets)[0]
    by_worker = {worker: name for name, worker in plane.by_name.items()}
    services = [by_worker[worker] for worker in where]
    assert all(len(set(services[i:i + datagrams])) == 1 for i in range(0, len(services), datagrams))
    return services[::datagrams]


NAMES = ["shop.example", "www.shop.example", "api.example", "other.example", ""]
RIGHT = ["shop", "shop", "api", "rest", "rest"]


@pytest.mark.parametrize("datagrams, tail_first", [(1, False), (2, False), (2, True), (3, True)])
def test_every_connection_is_its_own_services(share, datagrams, tail_first):
    p = share()
    wait_classifier(p)
    assert send(p, NAMES * 20, datagrams, tail_first) == RIGHT * 20
    for service in SERVICES:
        figures = p.counters(service)
        n = 20 * RIGHT.count(service)
        assert (figures["new_connections"], figures["packets"]) == (n, n * datagrams)
        # The choice is asked for once; the rest of the first flight comes by the flow.
        assert figures["by_flow"] == n * (datagrams - 1)
    share_status = p.share()
    read = share_status["classifier"]
    outcomes = {"by_name": 40, "by_suffix": 20, "no_match": 20, "no_name": 20}
    assert {name: read[name] for name in outcomes} == outcomes
    # What came to it went on; later datagrams of a connection may find the choice made already.
    assert 100 <= read["datagrams"] == read["resent"] == share_status["to_classifier"] <= 100 * datagrams
    assert (read["starts"], read["follows"]) == (1, True)
    others = set(read) - set(outcomes) - {"pid", "starts", "follows", "datagrams", "resent"}
    assert {name: read[name] for name in others} == dict.fromkeys(others, 0)
    # What is established is none of its business.
    before = [p.counters(service)["packets"] for service in SERVICES]
    ids = [maker(p.by_name[service]).make() for service in SERVICES for _ in range(10)]
    where, _ = p.exchange([short(cid) for cid in ids])
    assert where == [p.by_name[service] for service in SERVICES for _ in range(10)]
    assert [p.counters(service)["packets"] for service in SERVICES] == [n + 10 for n in before]


def test_it_is_confined(share):
    p = share()
    pid = wait_classifier(p)
    assert send(p, NAMES) == RIGHT
    with open(f"/proc/{pid}/status", encoding="ascii") as stream:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in stream if ":\t" in line)
    assert {status[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Amb")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    daemon = pathlib.Path(f"/proc/{p.daemon.pid}/status").read_text(encoding="ascii")
    assert f"Uid:\t{status['Uid']}" in daemon
    assert sorted(os.listdir(f"/proc/{pid}/fd"), key=int) == ["0", "1", "2", "3", "4", "5", "6"]
    # The daemon keeps the capability, and uses it for nothing else.
    effective = next(line for line in daemon.splitlines() if line.startswith("CapEff"))
    assert int(effective.split()[1], 16) >> 13 & 1 == 0  # CAP_NET_RAW


def test_one_that_ends_is_started_again(share):
    p = share()
    pids = [wait_classifier(p)]
    for _ in range(3):
        os.kill(pids[-1], signal.SIGKILL)
        pids.append(wait_classifier(p, pids))
        harness.poll_until(lambda: send(p, ["shop.example"]) == ["shop"], "it chooses", interval=0.05)
    output = p.daemon.process.output()
    assert output.count("was ended by signal 9") == 3
    assert output.count("classifier started") == 4
    # None of them is left, dead or alive.
    assert [state_of(pid) for pid in pids[:-1]] == [None] * 3


def test_without_one_everything_new_is_the_defaults(share, configuration):
    """It is tried again, with a pause; established connections notice nothing."""
    program = configuration.directory / "reuseport-classify"
    shutil.copy(CLASSIFIER, program)
    try:
        p = share(classifier=program)
        pid = wait_classifier(p)
        established = maker(p.by_name["shop"]).make()
        program.unlink()
        os.kill(pid, signal.SIGKILL)
        harness.poll_until(lambda: "cannot run it: No such file or directory" in p.daemon.process.output(),
                           "the daemon says that it can't")
        assert send(p, NAMES, 1) == ["rest"] * 5
        where, _ = p.exchange([short(established)])
        assert where == [p.by_name["shop"]]
        shutil.copy(CLASSIFIER, program)
        wait_classifier(p, [pid])
        harness.poll_until(lambda: send(p, NAMES) == RIGHT, "it chooses", interval=0.1)
        assert p.daemon.process.output().count("cannot run it") == 1
    finally:
        program.unlink(missing_ok=True)


def test_one_that_stands_still_is_replaced(share):
    p = share()
    pid = wait_classifier(p)
    harness.freeze(pid)
    other = wait_classifier(p, [pid])
    harness.poll_until(lambda: send(p, NAMES) == RIGHT, "it chooses", interval=0.1)
    assert other != pid and state_of(pid) is None
    assert "stands still, it is started again" in p.daemon.process.output()


def test_a_reload_changes_the_rules(share):
    """The same classifier, with what holds now; and a service that leaves."""
    p = share()
    pid = wait_classifier(p)
    assert send(p, NAMES) == RIGHT
    p.configure("api", "MatchServerName=api.example *.shop.example")
    p.configure("shop", "MatchServerName=shop.example")
    p.daemon.reload()
    harness.poll_until(lambda: send(p, NAMES) == ["shop", "api", "api", "rest", "rest"], "the new ones hold",
                       interval=0.05)
    p.configuration.remove("services.d/api.conf")
    p.daemon.reload()
    harness.poll_until(lambda: send(p, NAMES) == ["shop", "rest", "rest", "rest", "rest"],
                       "the new ones hold", interval=0.05)
    assert classifiers(p) == [pid]


def test_another_daemon_takes_its_place(share):
    """Reexec: the next process starts its own, and the one before ends. None is left as a zombie."""
    p = share()
    pids = [wait_classifier(p)]
    for _ in range(2):
        p.daemon.ctl("reexec")
        harness.poll_until(lambda: state_of(pids[-1]) is None, "the one before has ended")
        pids.append(wait_classifier(p, pids))
        assert send(p, NAMES) == RIGHT
    assert len(set(pids)) == 3


def test_it_goes_on_while_the_daemon_is_dead(share):
    p = share()
    pid = wait_classifier(p)
    assert send(p, NAMES) == RIGHT
    try:
        p.daemon.process.send_signal(signal.SIGKILL)
        p.daemon.process.wait()
        p.daemon.killed = True
        flight = quic_initials.first_flight("shop.example", datagrams=2)
        for datagram in flight:
            p.client.send(datagram)
        received = []
        harness.poll_until(lambda: received.extend(p.receive_now()) or len(received) >= 2, "both arrive")
        assert received == [(p.by_name["shop"], datagram) for datagram in flight]
    finally:
        os.kill(pid, signal.SIGTERM)
    harness.poll_until(lambda: state_of(pid) in (None, "Z"), "it ends")


def test_it_ends_with_the_daemon_that_has_no_workers(share):
    p = share()
    pid = wait_classifier(p)
    assert p.daemon.stop() == 0
    harness.poll_until(lambda: state_of(pid) is None, "it has ended")


def test_it_ends_with_its_share(share):
    p = share()
    pid = wait_classifier(p)
    for name in SERVICES:
        p.leave(p.by_name[name])
        p.configuration.remove(f"services.d/{name}.conf")
    p.configuration.service("other", section("MatchDefault=yes", address=("127.0.0.1", 4500)))
    p.daemon.reload()
    harness.poll_until(lambda: state_of(pid) is None, "it has ended")
    wait_classifier(p, [pid])


def test_a_flood_of_whole_client_hellos_moves_nobody(share):
    """
    Ten times as many connections as the flow and choice maps have room for. Handshakes that were there
    before stay where they are, though the rules are others now; so do established connections, and a
    new one still comes to its own service.
    """
    p = share(daemon="ClassifierShare=100%\n", options="Flows=256")
    wait_classifier(p)
    handshakes = [quic_initials.first_flight("shop.example")[0] for _ in range(20)]
    ids = [maker(p.by_name["api"]).make() for _ in range(20)]
    shop, api, rest = (p.by_name[name] for name in SERVICES)
    assert p.exchange(handshakes)[0] == [shop] * 20
    for _ in range(10):
        flood = [quic_initials.first_flight("other.example")[0] for _ in range(256)]
        assert p.exchange(flood)[0] == [rest] * 256
        assert p.exchange([*handshakes, *map(short, ids)])[0] == [shop] * 20 + [api] * 20
    read = p.share()["classifier"]
    assert {name: read[name] for name in ("by_name", "no_match", "looped", "too_many", "lost")} == {
        "by_name": 20, "no_match": 2560, "looped": 0, "too_many": 0, "lost": 0}
    for name, match in (("api", "MatchServerName=api.example shop.example"),
                        ("shop", "MatchServerName=www.shop.example")):
        p.configure(name, match, options="Flows=256")
    p.daemon.reload()
    harness.poll_until(lambda: send(p, ["shop.example"]) == ["api"], "the new rules hold", interval=0.05)
    assert p.exchange(handshakes)[0] == [shop] * 20


@contextlib.contextmanager
def flood_of_forged_initials():
    """From another process, as fast as it can, each with a connection ID of its own."""
    packet = quic_initials.forged(bytes(8))
    pid = os.fork()
    if pid == 0:
        client = harness.udp_client(ADDRESS)
        while os.getppid() != 1:
            ids = os.urandom(8 * 1000)
            for i in range(0, len(ids), 8):
                client.send(packet[:6] + ids[i:i + 8] + packet[14:])
        os._exit(0)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.mark.parametrize("overflow", ["default", "drop"])
def test_what_a_flood_does_to_new_connections(share, overflow):
    """
    Forged Initials, far more than 5 % of a core can read, and clients that send again after 0.3 and
    0.6 s. Where what can't be followed is given to the default service, each client comes to some
    server; where it is dropped, none comes to a wrong one, and many to none.
    """
    p = share(daemon=f"ClassifierShare=5%\nClassifierOverflow={overflow}\n")
    wait_classifier(p)
    sockets = {name: worker.socket for name, worker in p.by_name.items()}
    where = {"shop": 0, "rest": 0, None: 0}

    def arrived(flight):
        for name, each in sockets.items():
            for _ in range(1000):  # the default service has all the others
                try:
                    if each.recv(2048) == flight:
                        return name
                except BlockingIOError:
                    break
        return None

    with flood_of_forged_initials():
        time.sleep(0.3)
        for _ in range(20):
            flight = quic_initials.first_flight("shop.example")[0]
            got = None
            for pause in (0.3, 0.6, 1.2):
                p.client.send(flight)
                end = time.monotonic() + pause
                while got is None and time.monotonic() < end:
                    got = arrived(flight)
                if got:
                    break
            where[got] += 1
    print(f"ClassifierOverflow={overflow}: {where}")
    assert where["rest" if overflow == "drop" else None] == 0
    assert sum(where.values()) == 20
