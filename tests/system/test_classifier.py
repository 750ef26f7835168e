# SPDX-License-Identifier: BSD-2-Clause
"""
reuseport-classify by itself, with the test in the daemon's place: real datagrams from another
network namespace in, the choice and the same datagrams out, every one accounted for.
"""
import itertools
import json
import os
import pathlib
import time

import pytest

import harness
import quic_initials
import quic_packets as quic
from classifier_process import CLIENT, DEFAULT, OWN, client_socket, dcid_of, rules

VECTORS = json.loads(pathlib.Path(__file__).parents[1].joinpath(
    "vectors/quic-initial-vectors.json").read_text(encoding="utf-8"))["synthetic"]["flows"]
ECT_0 = 2  # RFC 3168 section 5


def datagrams_of(vector):
    return [bytes.fromhex(each["hex"]) for each in vector["datagrams"]]


# Without the one of which no server can have seen the first datagram, and the forged one.
FLOWS = [v for v in VECTORS if v.get("sni") and v["id"] != "syn-dcid-switch"]


def orders(flows=FLOWS):
    return [(vector["id"], order) for vector in flows
            for order in itertools.permutations(datagrams_of(vector))]


@pytest.mark.parametrize("family, address", [(4, OWN[4]), (6, OWN[6]), (4, "::"), (6, "::")])
def test_every_flow_in_every_order(side, classifier, family, address):
    """All its datagrams come again, in the order in which they came, as their client sent them."""
    each = classifier(address=address)
    every = orders()
    assert len(every) == 3 + 5 * 2 + 6
    n = 0
    for number, (_, datagrams) in enumerate(every):
        # A client of its own, since many of these have the same connection ID.
        with client_socket(side, family, ECT_0 if number % 2 else 0) as client:
            for datagram in datagrams:
                client.send(datagram)
            n += len(datagrams)
            received = each.received(len(datagrams))
            sender = (CLIENT[family], client.getsockname()[1])
            assert received == [(datagram, sender, OWN[family], ECT_0 if number % 2 else 0)
                                for datagram in datagrams]
        assert each.choice(dcid_of(datagrams[0])) == 3
    each.expect({"datagrams": n, "by_name": len(every), "resent": n})
    assert each.n_choices() == 2  # of all vectors together: with and without a Retry


def test_each_connection_has_its_own_choice(side, classifier):
    each = classifier()
    flights = [(quic_initials.first_flight(name, datagrams=1 + number % 3,
                                           version=(quic.VERSION_1, quic.VERSION_2)[number % 2],
                                           protocols=protocols), service)
               for number, (name, protocols, service) in enumerate([
                   ("shop.example", ["h3"], 1), ("shop.example", ["hq"], 2), ("a.b.example", ["h3"], 2),
                   ("steering.example.org", ["doq"], 3), ("other.test", ["doq"], 4),
                   ("other.test", ["h3"], DEFAULT), ("", ["h3"], DEFAULT), ("", [], DEFAULT),
                   ("SHOP.example.", ["hq", "h3"], 1)])]
    with client_socket(side) as client:
        # All at the same time, the last pieces first.
        every = [datagram for step in (2, 1, 0) for flight, _ in flights for datagram in flight[step:step + 1]]
        for datagram in every:
            client.send(datagram)
        received = each.received(len(every))
    assert sorted(octets for octets, *_ in received) == sorted(every)
    for flight, service in flights:
        assert each.choice(dcid_of(flight[0])) == service
        mine = [octets for octets, *_ in received if dcid_of(octets) == dcid_of(flight[0])]
        assert mine == flight[::-1]
    each.expect({
        "datagrams": len(every), "by_name": 3, "by_suffix": 2, "by_protocol": 1, "no_match": 1, "no_name": 2,
        "resent": len(every)})


def test_0rtt_before_its_initial(side, classifier):
    each = classifier()
    dcid = os.urandom(8)
    early = [quic_initials.zero_rtt(dcid) for _ in range(2)]
    flight = quic_initials.first_flight("shop.example", dcid, datagrams=2)
    with client_socket(side) as client:
        for datagram in [early[0], flight[1], early[1], flight[0]]:
            client.send(datagram)
        received = [octets for octets, *_ in each.received(4)]
    assert received == [early[0], flight[1], early[1], flight[0]]
    assert each.choice(dcid) == 1
    each.expect({"datagrams": 4, "by_name": 1, "resent": 4})


def test_0rtt_alone_chooses_nothing(side, classifier):
    """It waits two seconds. Then it is lost, and its connection is chosen as if it had not been."""
    each = classifier()
    dcid = os.urandom(8)
    with client_socket(side) as client:
        client.send(quic_initials.zero_rtt(dcid))
        each.expect({"datagrams": 1, "lost": 1})
        assert each.n_choices() == 0
        flight = quic_initials.first_flight("shop.example", dcid)
        client.send(flight[0])
        assert [octets for octets, *_ in each.received(1)] == flight
    assert each.choice(dcid) == 1


def test_coalesced_with_0rtt(side, classifier):
    each = classifier()
    initial = quic_initials.first_flight("shop.example", size=600)[0]
    datagram = initial + quic_initials.zero_rtt(dcid_of(initial), size=600)
    other = quic_initials.first_flight("shop.example", size=600)[0]
    reversed_datagram = quic_initials.zero_rtt(dcid_of(other), size=600) + other
    with client_socket(side) as client:
        client.send(datagram)
        client.send(reversed_datagram)
        assert [octets for octets, *_ in each.received(2)] == [datagram, reversed_datagram]
    each.expect({"datagrams": 2, "by_name": 2, "resent": 2})


def test_what_comes_later_is_the_programs_matter(side, classifier):
    """What is not found in the choice map, once it is chosen, comes again as often as it may."""
    each = classifier()
    flight = quic_initials.first_flight("shop.example", datagrams=2)
    with client_socket(side) as client:
        for datagram in flight:
            client.send(datagram)
        each.received(2)
        # The program here knows no choice, as if its set were full: each of the two once more.
        each.choices[:] = bytes(len(each.choices))
        for datagram in flight:
            client.send(datagram)
        assert [octets for octets, *_ in each.received(2)] == flight
        assert each.choice(dcid_of(flight[0])) == 1
        for datagram in flight * 3:
            client.send(datagram)
        each.expect({"datagrams": 10, "by_name": 1, "resent": 4, "looped": 6})
    assert each.received(0) == []


def test_a_connection_of_a_second_ago_is_read_again(side, classifier):
    """Whatever was chosen before: the rules may have changed."""
    each = classifier()
    flight = quic_initials.first_flight("shop.example")
    with client_socket(side) as client:
        for service in (1, 0):
            client.send(flight[0])
            each.received(1)
            assert each.choice(dcid_of(flight[0])) == service
            each.send_rules(rules([("shop.example", None, 0)]))
            time.sleep(1.6)
    each.expect({"datagrams": 2, "by_name": 2, "resent": 2})


@pytest.mark.parametrize("datagrams", [1, 2, 5])
def test_there_is_no_loop(side, classifier, datagrams):
    """Without any program what is given back comes to the classifier again."""
    each = classifier(worker=False)
    with client_socket(side) as client:
        for datagram in quic_initials.first_flight("shop.example", datagrams=datagrams):
            client.send(datagram)
        # Each is given back once, and once more as many as there were.
        expected = {"datagrams": 3 * datagrams, "by_name": 1, "resent": 2 * datagrams, "looped": datagrams}
        each.expect(expected)
        time.sleep(0.2)
        each.expect(expected)


# Bounds: what is held of a connection, how long, and of how many


def test_a_forged_tag_goes_nowhere(side, classifier):
    """One bit in each of many Initials, none of which takes a place or is held."""
    each = classifier()
    vector = next(v for v in VECTORS if v["id"] == "syn-forged-tag")
    flight = quic_initials.first_flight("shop.example")[0]
    forged = datagrams_of(vector)
    for octet in range(0, 1200, 6):
        damaged = bytearray(flight)
        damaged[octet] ^= 0x02
        forged.append(bytes(damaged))
    with client_socket(side) as client:
        for datagram in forged:
            client.send(datagram)
        harness.poll_until(lambda: each.counters().get("datagrams") == len(forged), "all are read")
        client.send(flight)
        assert [octets for octets, *_ in each.received(1)] == [flight]
    counters = each.counters()
    # Where the bit was one of a length, the datagram has no Initial that is whole.
    assert counters.pop("no_initial", 0) + counters.pop("unauthenticated") == len(forged)
    assert counters == {"datagrams": len(forged) + 1, "by_name": 1, "resent": 1}
    assert each.n_choices() == 1


def test_an_initial_that_is_too_short(side, classifier):
    each = classifier()
    with client_socket(side) as client:
        for size in (600, 1199, 1200):
            client.send(quic_initials.first_flight("shop.example", size=size)[0])
        short = quic_initials.first_flight("shop.example", size=600)[0]
        client.send(short + quic_initials.zero_rtt(dcid_of(short), size=599))
        assert [len(octets) for octets, *_ in each.received(1)] == [1200]
    each.expect({"datagrams": 4, "too_short": 3, "by_name": 1, "resent": 1})
    assert each.n_choices() == 1


def test_what_begins_no_connection(side, classifier):
    """The program sends none of it; whoever does wins nothing by it."""
    each = classifier()
    dcid = os.urandom(8)
    with client_socket(side) as client:
        others = [b"", b"\0", os.urandom(40), quic.short_packet(dcid, size=1200),
                  quic.long_packet(quic.HANDSHAKE, dcid, size=1200),
                  quic.long_packet(quic.RETRY, dcid, size=1200),
                  quic.long_packet(quic.INITIAL, dcid, size=1200, version=0),
                  quic_initials.first_flight("shop.example")[0][:20]]
        others[2] = b"\x40" + others[2]
        for datagram in others:
            client.send(datagram)
        each.expect({"datagrams": len(others), "no_initial": len(others)})
    assert each.n_choices() == 0


@pytest.mark.parametrize("version", [quic.VERSION_UNKNOWN, 0xff00001d])
def test_a_version_that_cannot_be_read(side, classifier, version):
    """To the default service, which answers with Version Negotiation."""
    each = classifier()
    dcid = os.urandom(18)
    datagram = quic.long_packet(quic.INITIAL, dcid, size=1200, version=version)
    with client_socket(side) as client:
        client.send(datagram)
        assert each.received(1)[0][0] == datagram
    assert each.choice(dcid) == DEFAULT
    each.expect({"datagrams": 1, "no_name": 1, "resent": 1})


PIECES = b"".join(quic_initials.crypto_frame(2 * n + 1, b"a") for n in range(64))
MALFORMED = {
    "no ClientHello": quic_initials.crypto_frame(0, b"\2" + bytes(200)),
    "a length that TLS does not allow": quic_initials.crypto_frame(0, b"\1\0\0\x50" + b"\3" * 34 + b"\x21"),
    "no such frame": b"\x1f",
    "a frame of 1-RTT": b"\x08\0a",
    "cut off": bytes(1160) + b"\x06\0\x44\0",
    "a contradiction": quic_initials.crypto_frame(0, b"\1") + quic_initials.crypto_frame(0, b"\2"),
    "beyond any offset": b"\x06" + b"\xff" * 8 + b"\1a",
    "the client has closed it": b"\x1c\0\0\0",
    "beyond a bound, and malformed": quic_initials.crypto_frame(16384, b"a") + b"\x1f"}
TOO_MUCH = {
    "beyond 16 KiB": quic_initials.crypto_frame(16384 - 10, bytes(11)),
    "more than 64 pieces": PIECES + quic_initials.crypto_frame(200, b"a"),
    "a longer ClientHello": quic_initials.crypto_frame(0, b"\1\0\x40\0")}


def test_malformed_connections_reach_nobody(side, classifier):
    """Authentic, and against the rules of QUIC or TLS: each is one more in a counter, no answer."""
    each = classifier()
    flights = [quic_initials.initial(os.urandom(8), frames) for frames in MALFORMED.values()]
    with client_socket(side) as client:
        for datagram in flights:
            client.send(datagram)
        each.expect({"datagrams": len(flights), "malformed": len(flights)})
        # Nor does what belongs to one, for a second: before it, behind it, or as its client repeats it.
        dcid = os.urandom(8)
        flight = quic_initials.first_flight("shop.example", dcid, datagrams=3)
        bad = quic_initials.initial(dcid, MALFORMED["no such frame"], 3)
        early = quic_initials.zero_rtt(dcid)
        for datagram in (early, flight[1], bad, flight[0], flight[2], early, bad):
            client.send(datagram)
        each.expect({"datagrams": len(flights) + 7, "malformed": len(flights) + 7})
        # Somebody else's is none of it.
        good = quic_initials.first_flight("shop.example")
        client.send(good[0])
        assert [octets for octets, *_ in each.received(1)] == good
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.recv(2048)
    assert each.n_choices() == 1


def test_malformed_connections_of_a_second_ago_are_read_again(side, classifier):
    """That its client sends the same again with everything in order is possible, and costs nothing."""
    each = classifier()
    dcid = os.urandom(8)
    with client_socket(side) as client:
        client.send(quic_initials.initial(dcid, MALFORMED["no such frame"]))
        each.expect({"datagrams": 1, "malformed": 1})
        time.sleep(1.6)
        flight = quic_initials.first_flight("shop.example", dcid)
        client.send(flight[0])
        assert [octets for octets, *_ in each.received(1)] == flight
    each.expect({"datagrams": 2, "malformed": 1, "by_name": 1, "resent": 1})


def test_more_than_is_kept_goes_to_the_default(side, classifier):
    """A server may have room where the classifier has none."""
    each = classifier()
    flights = [quic_initials.initial(os.urandom(8), frames) for frames in TOO_MUCH.values()]
    with client_socket(side) as client:
        for datagram in flights:
            client.send(datagram)
        assert [octets for octets, *_ in each.received(len(flights))] == flights
    assert [each.choice(dcid_of(datagram)) for datagram in flights] == [DEFAULT] * len(flights)
    each.expect({"datagrams": 3, "too_many": 3, "resent": 3})


def test_64_initials_without_a_client_hello(side, classifier):
    """Eight datagrams of eight Initials; the last one decides."""
    each = classifier()
    dcid = os.urandom(8)
    keys = quic_initials.client_keys(quic.VERSION_1, dcid)
    datagrams = [b"".join(quic_initials.initial(dcid, b"\1", 8 * n + i, size=150, keys=keys)
                          for i in range(8)) for n in range(8)]
    with client_socket(side) as client:
        for datagram in datagrams:
            client.send(datagram)
        assert [octets for octets, *_ in each.received(8)] == datagrams
    assert each.choice(dcid) == DEFAULT
    each.expect({"datagrams": 8, "too_many": 1, "resent": 8})


@pytest.mark.parametrize("size, n", [(1200, 9), (1500, 9), (4000, 4)])
def test_more_than_is_held_of_a_connection(side, classifier, size, n):
    """Eight datagrams, 12,288 octets; with one more all of them go to the default, in order."""
    each = classifier()
    with side:
        harness.run("ip", "link", "set", "client", "mtu", "9000")
    harness.run("ip", "link", "set", "outside", "mtu", "9000")
    dcid = os.urandom(8)
    keys = quic_initials.client_keys(quic.VERSION_1, dcid)
    hello = quic_initials.client_hello("shop.example")
    datagrams = [quic_initials.initial(dcid, quic_initials.crypto_frame(i, hello[i:i + 1]), i, size=size,
                                       keys=keys) for i in range(n)]
    with client_socket(side) as client:
        for datagram in datagrams[:-1]:
            client.send(datagram)
        each.expect({"datagrams": n - 1})
        client.send(datagrams[-1])
        assert [octets for octets, *_ in each.received(n)] == datagrams
    assert each.choice(dcid) == DEFAULT
    each.expect({"datagrams": n, "too_many": 1, "resent": n})


def test_the_last_piece_may_be_one_more_than_is_held(side, classifier):
    each = classifier()
    flight = quic_initials.first_flight("shop.example", datagrams=9)
    with client_socket(side) as client:
        for datagram in flight:
            client.send(datagram)
        assert [octets for octets, *_ in each.received(9)] == flight
    assert each.choice(dcid_of(flight[0])) == 1
    each.expect({"datagrams": 9, "by_name": 1, "resent": 9})


def test_a_datagram_that_is_larger_than_any(side, classifier):
    each = classifier()
    for end in (side, None):
        if end:
            with end:
                harness.run("ip", "link", "set", "client", "mtu", "12000")
        else:
            harness.run("ip", "link", "set", "outside", "mtu", "12000")
    with client_socket(side) as client:
        for size in (9216, 9217):
            client.send(quic_initials.first_flight("shop.example", size=size)[0])
        assert [len(octets) for octets, *_ in each.received(1)] == [9216]
        each.expect({"datagrams": 2, "by_name": 1, "resent": 1, "lost": 1})


def test_a_connection_is_held_for_two_seconds(side, classifier):
    """What never becomes complete goes to the default service."""
    each = classifier()
    flight = quic_initials.first_flight("shop.example", datagrams=2)
    begin = time.monotonic()
    with client_socket(side) as client:
        client.send(flight[1])
        assert [octets for octets, *_ in each.received(1)] == [flight[1]]
    assert time.monotonic() - begin >= 1.99
    assert each.choice(dcid_of(flight[0])) == DEFAULT
    each.expect({"datagrams": 1, "too_slow": 1, "resent": 1})


def test_what_the_network_lost_may_come_again_after_a_second(side, classifier):
    """The first repetition of a client that knows nothing of its path, RFC 9002 section 6.2."""
    each = classifier()
    flight = quic_initials.first_flight("shop.example", datagrams=2)
    with client_socket(side) as client:
        client.send(flight[1])
        time.sleep(1.05)
        for datagram in flight:
            client.send(datagram)
        assert [octets for octets, *_ in each.received(3)] == [flight[1], *flight]
    assert each.choice(dcid_of(flight[0])) == 1


def pieces(count, name="shop.example"):
    """Half a ClientHello of so many connections, and what is missing of each."""
    flights = [quic_initials.first_flight(name, datagrams=2) for _ in range(count)]
    return [flight[0] for flight in flights], [flight[1] for flight in flights]


class Hurry:
    """
    For what must be done before anything has been held for its time: again, until it was. Counts
    what the counters rose by since the last begin().
    """

    def __init__(self, each):
        self.each = each

    def attempts(self):
        for _ in range(5):
            self.before = self.each.counters()
            self.begin = time.monotonic()
            yield self
            if self.late():
                time.sleep(2.5)
                self.each.receive([])
            else:
                return
        pytest.skip("this machine takes longer for some thousand datagrams than they are held")

    def late(self):
        return time.monotonic() - self.begin > 1.8

    def rise(self):
        after = self.each.counters()
        return {name: after[name] - self.before.get(name, 0) for name in after
                if after[name] != self.before.get(name, 0)}

    def expect(self, counters):
        """False: they are not reached, and it is late."""
        harness.poll_until(lambda: self.rise() == counters or self.late(), f"{counters}")
        return not self.late()


def test_the_oldest_of_1025_connections_is_given_up(side, classifier):
    each = classifier(choice_mask=0x3fff)  # no set gets full
    with client_socket(side) as client:
        for hurry in Hurry(each).attempts():
            first, second = pieces(1024 + 7)
            hurry.begin = time.monotonic()
            for datagram in first:
                client.send(datagram)
            if not hurry.expect({"datagrams": 1031, "too_many": 7, "resent": 7}):
                continue
            for datagram in second[7:]:
                client.send(datagram)
            hurry.expect({"datagrams": 1031 + 1024, "too_many": 7, "by_name": 1024, "resent": 1031 + 1024})
        received = [octets for octets, *_ in each.received(1031 + 1024)]
    assert received[:7] == first[:7]
    assert sorted(received) == sorted(first + second[7:])
    assert [each.choice(dcid_of(octets)) for octets in first[:7]] == [DEFAULT] * 7


def test_0rtt_alone_pushes_out_nobody(side, classifier):
    """Everybody can make such packets: 128 of them wait at most, and not in the place of others."""
    each = classifier()
    early = [quic_initials.zero_rtt(os.urandom(8)) for _ in range(300)]
    with client_socket(side) as client:
        for hurry in Hurry(each).attempts():
            first, second = pieces(1024)
            hurry.begin = time.monotonic()
            for datagram in early[:150] + first[:1000] + early[150:] + first[1000:]:
                client.send(datagram)
            if not hurry.expect({"datagrams": 1324, "lost": 300}):
                continue
            for datagram in second:
                client.send(datagram)
            hurry.expect({"datagrams": 1324 + 1024, "by_name": 1024, "resent": 2048, "lost": 300})
        received = [octets for octets, *_ in each.received(2 * 1024)]
    assert sorted(received) == sorted(first + second)


def test_what_is_decided_at_once_takes_nobodys_place(side, classifier):
    """All places are taken; connections that are whole, malformed or forged push out nobody."""
    each = classifier(choice_mask=0x3fff)
    malformed = [quic_initials.initial(os.urandom(8), MALFORMED["no such frame"]) for _ in range(100)]
    forged = [quic_initials.forged(os.urandom(8)) for _ in range(100)]
    with client_socket(side) as client:
        for hurry in Hurry(each).attempts():
            first, second = pieces(1024)
            whole = [quic_initials.first_flight("shop.example")[0] for _ in range(100)]
            hurry.begin = time.monotonic()
            for datagram in first + forged + malformed + whole:
                client.send(datagram)
            expected = {"malformed": 100, "unauthenticated": 100}
            if not hurry.expect({**expected, "datagrams": 1324, "by_name": 100, "resent": 100}):
                continue
            for datagram in second:
                client.send(datagram)
            hurry.expect({**expected, "datagrams": 1324 + 1024, "by_name": 1124, "resent": 100 + 2048})
        received = [octets for octets, *_ in each.received(100 + 2048)]
    assert received[:100] == whole
    assert sorted(received[100:]) == sorted(first + second)
