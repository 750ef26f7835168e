# SPDX-License-Identifier: BSD-2-Clause
"""
Workers that say how loaded they are: new connections go to the less loaded of two candidates, and
by the listener map alone as soon as nobody says anything.
"""
import errno
import fcntl
import os
import socket
import time

import pytest

import harness
import quic_initials
import quic_packets as quic
import worker_protocol as proto
from quic_plane import Plane
from share_plane import SharePlane
from store import KeptDaemon, StoredDaemon

PORT = 8080
ADDRESS = ("127.0.0.1", PORT)
F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW = 1, 2, 4


def counters(daemon, workers, service):
    status = {each["slot"]: each for each in daemon.status(service)["workers"]}
    return [(status[each.slot]["new_connections"], status[each.slot]["packets"]) for each in workers]


def send_new(daemon, workers, count, first_port, service="dns"):
    """
    One datagram of each of count new flows, all of which get somewhere; how many new ones the
    program gave to each worker. Now and then two flows have the same hash, and are one then.
    """
    before = counters(daemon, workers, service)
    for port in range(first_port, first_port + count):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.bind(("127.0.0.1", port))
            client.sendto(b"new", ADDRESS)
    after = counters(daemon, workers, service)
    new = [a[0] - b[0] for a, b in zip(after, before)]
    packets = [a[1] - b[1] for a, b in zip(after, before)]
    assert sum(packets) - sum(new) in range(4), (packets, new)
    return packets


def wait_loads(daemon, workers, expected, service="dns"):
    """The daemon has what they say, and has told the program: that is within 0.1 s of it."""
    def seen():
        return [daemon.status_worker(each.slot, service)["load"] for each in workers] == expected

    harness.poll_until(seen, f"loads {expected}")
    # Two rounds of the clock later, however slow the machine is: the daemon answers between them.
    for _ in range(5):
        time.sleep(0.1)
        assert seen()


def share(worker):
    os.close(worker.share_load())


def test_the_loaded_one_of_two_gets_a_quarter(start_daemon):
    """
    Of 10,000 new flows the worker that says 900 gets those for which both candidates are itself,
    1/4 (standard deviation 43, so 2,500 +- 260); when both are silent again, each a half.
    """
    daemon = start_daemon("--listen", f"dns=udp://127.0.0.1:{PORT}")
    harness.sysctl("net/ipv4/ip_local_port_range", "60000 60999")
    workers = [daemon.worker(service="dns", instance=f"w{i}") for i in range(2)]
    assert [daemon.status_worker(each.slot, "dns")["load"] for each in workers] == [None, None]
    for each in workers:
        share(each)
    workers[0].set_load(900)
    workers[1].set_load(100)
    wait_loads(daemon, workers, [900, 100])
    got = send_new(daemon, workers, 10000, 10000)
    assert sum(got) == 10000
    assert 2240 <= got[0] <= 2760, got

    workers[0].set_load(100)  # equal: the first candidate
    wait_loads(daemon, workers, [100, 100])
    got = send_new(daemon, workers, 10000, 20000)
    assert sum(got) == 10000
    assert 4700 <= got[0] <= 5300, got

    workers[0].set_load(0)
    workers[1].set_load(1000)
    wait_loads(daemon, workers, [0, 1000])
    got = send_new(daemon, workers, 10000, 30000)
    assert sum(got) == 10000
    assert 2240 <= got[1] <= 2760, got

    for each in workers:
        each.set_load(None)
    wait_loads(daemon, workers, [None, None])
    got = send_new(daemon, workers, 10000, 40000)
    assert sum(got) == 10000
    assert 4700 <= got[0] <= 5300, got


def test_who_says_nothing_counts_for_the_average(start_daemon):
    """Of three workers that say 0, 1000 and nothing, the silent one is at 500: 5/9, 1/9 and 3/9."""
    daemon = start_daemon("--listen", f"dns=udp://127.0.0.1:{PORT}")
    harness.sysctl("net/ipv4/ip_local_port_range", "60000 60999")
    workers = [daemon.worker(service="dns", instance=f"w{i}") for i in range(3)]
    share(workers[0])
    share(workers[1])
    workers[0].set_load(0)
    workers[1].set_load(1000)
    wait_loads(daemon, workers, [0, 1000, None])
    got = send_new(daemon, workers, 9000, 10000)
    assert sum(got) == 9000
    assert abs(got[0] - 5000) <= 285 and abs(got[1] - 1000) <= 180 and abs(got[2] - 3000) <= 270, got


def test_what_a_server_writes_there_is_bounded(start_daemon):
    """
    The memory can't be made smaller or larger. Numbers beyond the scale are its end, those of one
    worker do nothing to another's, and the daemon lives.
    """
    daemon = start_daemon("--listen", f"dns=udp://127.0.0.1:{PORT}")
    harness.sysctl("net/ipv4/ip_local_port_range", "60000 60999")
    hostile = daemon.worker(service="dns", instance="hostile", n_workers=3)
    other = daemon.worker(service="dns", instance="other")
    fd = hostile.share_load()
    assert fcntl.fcntl(fd, 1034) == F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW  # F_GET_SEALS
    for size in (0, 1, 1 << 20):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, size)
    assert os.fstat(fd).st_size == 3 * proto.LOAD_OCTETS
    share(other)
    other.set_load(500)
    hostile.load_memory[:] = b"\xff" * (3 * proto.LOAD_OCTETS)

    def loads():
        status = {each["slot"]: each["load"] for each in daemon.status("dns")["workers"]}
        return [status[slot] for slot in hostile.slots + other.slots]
    assert loads() == [1000, 1000, 1000, 500]
    time.sleep(0.3)
    got = send_new(daemon, [other], 4000, 10000)
    # Both candidates of the four are the hostile ones': 9/16.
    assert abs(got[0] - 4000 * 7 // 16) <= 190, got
    hostile.load_memory[:] = bytes(3 * proto.LOAD_OCTETS)
    assert loads() == [None, None, None, 500]
    # The same memory for who asks again, none for another registration's number.
    again = hostile.share_load()
    assert os.fstat(again).st_ino == os.fstat(fd).st_ino
    with pytest.raises(proto.Refused) as refused:
        other.connection.request(
            proto.LOAD, proto.REGISTRATION_FORMAT.pack(hostile.registration, 0))
    assert refused.value.error == errno.EINVAL
    assert daemon.alive()
    os.close(fd)
    os.close(again)


def test_loads_end_with_their_worker(start_daemon):
    """
    The idle one of two dies: the other gets all. Its slot's next worker, which says nothing, gets
    its half although the slot said 0 before; and descriptors are given back.
    """
    daemon = start_daemon("--listen", f"dns=udp://127.0.0.1:{PORT}")
    harness.sysctl("net/ipv4/ip_local_port_range", "60000 60999")
    busy = daemon.worker(service="dns", instance="busy")
    before = daemon.n_descriptors_alone()
    idle = daemon.worker(service="dns", instance="idle")
    share(idle)
    idle.set_load(0)
    wait_loads(daemon, [busy, idle], [None, 0])
    idle.leave()
    got = send_new(daemon, [busy], 1000, 10000)
    assert got == [1000]
    next_one = daemon.worker(service="dns", instance="next")
    wait_loads(daemon, [busy, next_one], [None, None])
    got = send_new(daemon, [busy, next_one], 10000, 20000)
    assert sum(got) == 10000
    assert 4700 <= got[0] <= 5300, got
    next_one.leave()
    harness.poll_until(lambda: daemon.n_descriptors_alone() == before, "descriptors")


def test_loads_outlive_the_daemon(start_daemon):
    """A daemon that is replaced in place goes on reading the same memory."""
    daemon = start_daemon("--listen", f"dns=udp://127.0.0.1:{PORT}")
    harness.sysctl("net/ipv4/ip_local_port_range", "60000 60999")
    workers = [daemon.worker(service="dns", instance=f"w{i}") for i in range(2)]
    for each in workers:
        share(each)
    workers[0].set_load(900)
    workers[1].set_load(100)
    wait_loads(daemon, workers, [900, 100])
    daemon.ctl("reexec")
    wait_loads(daemon, workers, [900, 100])
    workers[0].set_load(50)
    wait_loads(daemon, workers, [50, 100])
    got = send_new(daemon, workers, 10000, 10000)
    assert sum(got) == 10000
    assert 2240 <= got[1] <= 2760, got


def test_tcp_connections_follow_it_too(start_daemon):
    """Of 2,000 TCP connections the loaded one of two gets a quarter (500 +- 117)."""
    daemon = start_daemon("--listen", f"web=tcp://127.0.0.1:{PORT}")
    workers = [daemon.worker(service="web", instance=f"w{i}") for i in range(2)]
    for each in workers:
        share(each)
    workers[0].set_load(900)
    workers[1].set_load(100)
    wait_loads(daemon, workers, [900, 100], "web")
    got = [0, 0]
    for _ in range(20):
        clients = [harness.tcp_client(ADDRESS) for _ in range(100)]
        for _ in range(100):
            for listener in harness.wait_readable([each.socket for each in workers], 10)[:1]:
                connection, _ = listener.accept()
                connection.close()
                got[[each.socket for each in workers].index(listener)] += 1
        harness.close_all(clients)
    assert sum(got) == 2000
    assert 383 <= got[0] <= 617, got


QUARTER, HALF = (835, 1165), (1800, 2200)  # of 4,000, with six standard deviations


def among(where, workers):
    """How many of the 4,000 each of two got; nobody else got any."""
    got = [sum(each is worker for each in where) for worker in workers]
    assert sum(got) == len(where) == 4000
    return got


@pytest.mark.parametrize("mode", ["quic-lb", "quic-lb-plain", "registered", "nginx"])
def test_new_quic_connections_follow_it(plane, mode):
    """Those that exist stay where they are, whatever is said."""
    p = plane(mode)
    workers = [p.worker(f"w{i}") for i in range(2)]
    for each in workers:
        share(each)
    workers[0].set_load(900)
    workers[1].set_load(100)
    wait_loads(p.daemon, workers, [900, 100], "web")
    packets = [quic.initial(dcid) for dcid in quic.unknown_ids(4000)]
    before = p.where(packets)
    got = among(before, workers)
    assert QUARTER[0] <= got[0] <= QUARTER[1], got
    workers[0].set_load(0)
    workers[1].set_load(1000)
    wait_loads(p.daemon, workers, [0, 1000], "web")
    assert p.where(packets) == before
    got = among(p.where([quic.initial(dcid) for dcid in quic.unknown_ids(4000)]), workers)
    assert QUARTER[0] <= got[1] <= QUARTER[1], got
    # What has an ID goes to its worker, which is told to be full.
    assert p.where([quic.short_packet(cid) for cid in p.ids(workers[1], 50)]) == [workers[1]] * 50


@pytest.fixture
def stored_start(netns, request):
    daemons = []

    def start(*arguments):
        daemons.append(request.param(arguments))
        return daemons[-1]

    yield start
    for daemon in daemons:
        try:
            if daemon.alive():
                assert daemon.stop() == 0
        finally:
            daemon.cleanup()


both = pytest.mark.parametrize("stored_start", [StoredDaemon, KeptDaemon], indirect=True, ids=["systemd", "keeper"])


@both
def test_quic_connections_follow_it_when_the_daemon_was_killed(stored_start, configuration):
    """By what was said last while there is none, and by what is said then as soon as there is."""
    p = Plane(stored_start, configuration)
    try:
        workers = [p.worker(f"w{i}") for i in range(2)]
        for each in workers:
            share(each)
        workers[0].set_load(900)
        workers[1].set_load(100)
        wait_loads(p.daemon, workers, [900, 100], "web")
        p.daemon.die()
        workers[0].set_load(0)  # nobody reads that yet
        packets = [quic.initial(dcid) for dcid in quic.unknown_ids(4000)]
        received = []
        for octets in packets:
            p.client.send(octets)
        harness.poll_until(lambda: received.extend(p.receive_now()) or len(received) >= 4000, "all are received")
        where = {octets: worker for worker, octets, _ in received}
        got = among([where[octets] for octets in packets], workers)
        assert QUARTER[0] <= got[0] <= QUARTER[1], got
        p.daemon.start()
        wait_loads(p.daemon, workers, [0, 100], "web")
        assert p.where(packets) == [where[octets] for octets in packets]
        got = among(p.where([quic.initial(dcid) for dcid in quic.unknown_ids(4000)]), workers)
        assert QUARTER[0] <= got[1] <= QUARTER[1], got
        for each in workers:
            each.set_load(None)
        wait_loads(p.daemon, workers, [None, None], "web")
        got = among(p.where([quic.initial(dcid) for dcid in quic.unknown_ids(4000)]), workers)
        assert HALF[0] <= got[0] <= HALF[1], got
    finally:
        p.close()


@both
def test_loads_of_one_service_are_nothing_to_another_on_its_port(stored_start, configuration):
    """Each service's connections follow what its own workers say, also when the daemon was killed."""
    p = SharePlane(stored_start, configuration,
                   {"shop": "MatchServerName=shop.example", "api": "MatchDefault=yes"},
                   classifier=harness.BUILD / "classify" / "reuseport-classify", daemon="ClassifierShare=100%\n")
    try:
        shop, api = ([p.worker(name, f"{name}@{i}") for i in range(2)] for name in ("shop", "api"))

        def new(name):
            where = []
            for _ in range(20):  # no more at a time than the classifier follows
                flights = [quic_initials.first_flight(name)[0] for _ in range(200)]
                where += p.exchange(flights)[0]
            return where

        for each in api:
            share(each)
        api[0].set_load(900)
        api[1].set_load(100)
        wait_loads(p.daemon, api, [900, 100], "api")
        for _ in range(2):
            got = among(new("api.example"), api)
            assert QUARTER[0] <= got[0] <= QUARTER[1], got
            got = among(new("shop.example"), shop)
            assert HALF[0] <= got[0] <= HALF[1], got
            p.daemon.restart()
            wait_loads(p.daemon, api, [900, 100], "api")
    finally:
        p.close()
