# SPDX-License-Identifier: BSD-2-Clause
"""
reuseport-classify as a process: what it has, when it ends, new rules while it runs, and what a
flood can cost.
"""
import os
import pwd
import signal
import socket
import time

import pytest

import harness
import quic_initials
from classifier_process import (FOLLOW, FOLLOW_DEFAULT, FOLLOW_DROP, OWN, SEALS, client_socket,
                                dcid_of, rules, sealed)

SEAL_WRITE = 0x8


def choose(side, each, name="shop.example", family=4):
    """The service of a new connection, as seen by its datagram and by the choice."""
    flight = quic_initials.first_flight(name)
    with client_socket(side, family) as client:
        client.send(flight[0])
        assert [octets for octets, *_ in each.received(1)] == flight
    return each.choice(dcid_of(flight[0]))


@pytest.mark.parametrize("user", ["root", harness.USER])
def test_what_the_process_has(side, classifier, user):
    """No capability, no file, nothing but its descriptors."""
    each = classifier(user=pwd.getpwnam(user).pw_uid, address=OWN[4])
    assert choose(side, each) == 1
    with open(f"/proc/{each.process.pid}/status", encoding="ascii") as stream:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in stream if ":\t" in line)
    assert {status[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Amb")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"], status["Threads"]) == ("1", "2", "1")
    # Not dumpable: its files in /proc belong to root, whoever it is.
    assert os.stat(f"/proc/{each.process.pid}/status").st_uid == 0
    # The three at first, control, the group's socket and the raw ones: what else there was, it closed.
    names = sorted(os.listdir(f"/proc/{each.process.pid}/fd"), key=int)
    assert names == ["0", "1", "2", "3", "4", "5", "6"]
    links = [os.readlink(f"/proc/{each.process.pid}/fd/{name}") for name in names[3:]]
    assert all(link.startswith("socket:") for link in links)


def test_without_ipv6(side, classifier):
    """A descriptor that is not open is one that is not used."""
    each = classifier(address=OWN[4], close=(6,))
    assert choose(side, each) == 1
    each.expect({"datagrams": 1, "by_name": 1, "resent": 1})


def test_addresses_of_a_link_cannot_come_again(side, classifier):
    """The choice is written; the datagram is lost, and the client's next one finds the choice."""
    each = classifier()
    flight = quic_initials.first_flight("shop.example")
    output = harness.run("ip", "-6", "-o", "address", "show", "dev", "outside", "scope", "link").stdout
    address = output.split(" inet6 ")[1].split("/")[0]
    with side:
        with open("/proc/thread-self/net/if_inet6", encoding="ascii") as stream:
            device = next(int(line.split()[1], 16) for line in stream if line.split()[5] == "client")
        client = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)

    def sent():
        try:
            client.sendto(flight[0], (address, 4433, 0, device))
            return True
        except OSError:
            return False  # its own address is tentative for a second

    harness.poll_until(sent, "the client has an address")
    client.close()
    each.expect({"datagrams": 1, "by_name": 1, "lost": 1})
    assert each.choice(dcid_of(flight[0])) == 1


def test_new_rules(side, classifier):
    each = classifier()
    assert choose(side, each) == 1
    each.send_rules(rules([("shop.example", None, 0)], default=2))
    assert [choose(side, each), choose(side, each, "other.test")] == [0, 2]
    # As often as one likes: nothing is left of those before.
    before = len(os.listdir(f"/proc/{each.process.pid}/fd"))
    with open(f"/proc/{each.process.pid}/maps", encoding="ascii") as stream:
        mapped = sum("rules" in line for line in stream)
    assert mapped == 1
    for service in list(range(6)) * 20:
        each.send_rules(rules([("shop.example", None, service)]))
    harness.poll_until(lambda: choose(side, each) == 5, "the last ones are in use")
    assert len(os.listdir(f"/proc/{each.process.pid}/fd")) == before
    with open(f"/proc/{each.process.pid}/maps", encoding="ascii") as stream:
        assert sum("rules" in line for line in stream) == 1


def test_rules_that_cannot_be_used(side, classifier):
    """Those before stay, and it says what is wrong."""
    each = classifier()
    good = rules([("shop.example", None, 0)])
    for given in (good[:-1], b"\0" * 100, sealed(good, SEALS & ~SEAL_WRITE), sealed(b""),
                  sealed(b"\0" * ((1 << 20) + 1)), os.open("/dev/null", os.O_RDONLY)):
        each.send_rules(given)
    each.control.send(b"\0")
    assert choose(side, each) == 1
    lines = each.process.output().splitlines()
    assert len(lines) == 7
    assert all(line.startswith("reuseport-classify edge: cannot use the new rules: ") and
               line.endswith("; those before stay") for line in lines)


@pytest.mark.parametrize("broken", [b"", b"\0" * 100])
def test_it_does_not_start_without_rules(classifier, broken):
    each = classifier(broken)
    assert each.wait_end() == 1
    assert each.process.output().startswith("reuseport-classify edge: cannot map the rules: ")


def test_alone_it_says_what_starts_it():
    done = harness.run("/bin/bash", "-c", 'exec 3<&- 4<&- 5<&- 6<&- 7<&- 8<&- 9<&-; exec "$0"',
                       harness.BUILD / "classify" / "reuseport-classify", check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "reuseport-classify : cannot map the page: Bad file descriptor " \
        "(it is started by reuseportd alone)\n"


def test_it_shows_that_it_lives(classifier):
    each = classifier()
    harness.poll_until(lambda: each.alive >= 2, "it counts up once a second", seconds=5 * harness.PATIENCE)


def test_it_goes_on_without_the_daemon(side, classifier):
    """And ends when another one has taken its place."""
    each = classifier()
    each.control.close()
    alive = each.alive
    harness.poll_until(lambda: each.alive >= alive + 2, "it counts on")
    assert choose(side, each) == 1
    # Half a ClientHello is not the default service's: the other half may be with the next one.
    half = quic_initials.first_flight("shop.example", datagrams=2)[1]
    whole = quic_initials.first_flight("shop.example", datagrams=1)[0]
    with client_socket(side) as client:
        client.send(half)
        harness.poll_until(lambda: each.counters()["datagrams"] == 2, "it holds that")
        # What waits for it, since it is its own, is read to the end.
        each.process.send_signal(signal.SIGSTOP)
        client.send(whole)
        each.set_owner(2)
        each.process.send_signal(signal.SIGCONT)
        assert each.wait_end() == 0
        assert [octets for octets, *_ in each.received(1)] == [whole]
    assert each.choice(dcid_of(half)) is None and each.choice(dcid_of(whole)) == 1
    assert each.counters() == {"datagrams": 3, "by_name": 2, "resent": 2}
    assert each.process.output() == ""


def test_a_number_of_an_earlier_one_ends_it_not(side, classifier):
    """A daemon that died before it could say that this one has the place."""
    each = classifier()
    each.set_owner(0)
    each.control.close()
    alive = each.alive
    harness.poll_until(lambda: each.alive >= alive + 2, "it counts on")
    assert choose(side, each) == 1


def test_another_owner_is_nothing_to_it_while_the_daemon_lives(side, classifier):
    each = classifier()
    each.set_owner(2)
    alive = each.alive
    harness.poll_until(lambda: each.alive >= alive + 2, "it counts on")
    assert choose(side, each) == 1


# Floods


def forged(count):
    return [quic_initials.forged(os.urandom(8)) for _ in range(count)]


def never_complete(count):
    return [quic_initials.first_flight("shop.example", datagrams=2)[1] for _ in range(count)]


def complete(count):
    return [quic_initials.first_flight("shop.example")[0] for _ in range(count)]


def early(count):
    return [quic_initials.zero_rtt(os.urandom(8)) for _ in range(count)]


def forged_in_one(count):
    return [quic_initials.forged_in_one(os.urandom(8)) for _ in range(count)]


def in_pieces(count):
    return [quic_initials.in_pieces(os.urandom(8)) for _ in range(count)]


@pytest.mark.parametrize("overflow", [FOLLOW_DEFAULT, FOLLOW_DROP])
@pytest.mark.parametrize("make, different", [(forged, 2000), (never_complete, 3000), (complete, 3000),
                                             (early, 2000), (forged_in_one, 2000), (in_pieces, 2000)])
def test_a_flood_costs_a_bounded_share(side, classifier, make, different, overflow):
    """5 % of a core; meanwhile it says that it can't follow, and afterwards that it can."""
    each = classifier(cpu_percent=5, overflow=overflow)
    packets = make(different)
    with client_socket(side) as client:
        # What it costs to start is not the flood's.
        client.send(packets[0])
        harness.poll_until(lambda: each.counters().get("datagrams") == 1, "it reads")
        n, seen = 1, {each.follow}
        begin, before = time.monotonic(), each.cpu_seconds()
        # Longer than that where the sender hardly runs.
        while time.monotonic() < begin + 1.5 or len(seen) < 2 or each.counters().get("overloads", 0) < 2:
            for packet in packets[n % different:][:100]:
                client.send(packet)
                n += 1
            seen.add(each.follow)
        used, passed = each.cpu_seconds() - before, time.monotonic() - begin
        print(f"{n} datagrams in {passed:.2f} s, {used * 1e3:.1f} ms used; {each.counters()}")
        # The bucket's 5 ms may be used in advance, and a batch be on its way.
        assert used < 1.5 * (0.05 * passed + 0.005) + 0.01
        assert seen == {FOLLOW, overflow}
        # What waits is still taken, at that pace, and then it follows again.
        harness.poll_until(lambda: each.n_queued() == 0, "nothing waits any more")
        harness.poll_until(lambda: each.follow == FOLLOW, "it can follow")
        harness.poll_until(lambda: each.counters()["datagrams"] + each.n_dropped() == n,
                           f"each of {n} was read or dropped")
        each.worker.close()
        each.worker = None
    counters = each.counters()
    if make in (forged, forged_in_one):
        assert counters["unauthenticated"] == counters["datagrams"] * (1 if make is forged else 8)
        assert "resent" not in counters and each.n_choices() == 0


def test_a_second_without_a_flood_is_enough(side, classifier):
    each = classifier(cpu_percent=5)
    packets = forged(1000)
    with client_socket(side) as client:
        def over():
            for packet in packets:
                client.send(packet)
            return each.follow == FOLLOW_DEFAULT
        harness.poll_until(over, "it can't follow", interval=0)
    harness.poll_until(lambda: each.follow == FOLLOW, "it can follow")
    assert choose(side, each) == 1
    assert each.follow == FOLLOW


def test_what_is_held_costs_no_more_than_its_bound(side, classifier):
    """1,024 connections: 34 MiB, whoever they are."""
    each = classifier()
    packets = never_complete(3000)
    with client_socket(side) as client:
        for packet in packets:
            client.send(packet)
        harness.poll_until(lambda: each.counters().get("datagrams") == 3000, "all are read")
    with open(f"/proc/{each.process.pid}/status", encoding="ascii") as stream:
        memory = next(int(line.split()[1]) for line in stream if line.startswith("RssAnon:"))
    assert memory < 40 << 10
    each.expect({"datagrams": 3000, "resent": 3000, "too_many": 3000 - 1024, "too_slow": 1024})
