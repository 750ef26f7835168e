# SPDX-License-Identifier: BSD-2-Clause
"""
What docs/sni-routing.md relies on: a datagram that was held back can be given to the kernel again,
as if it came from its client only now, by a process that has no privilege at all and a socket that
can reach nothing but this host.

The socket is raw and connected to the loopback address. Its route is then that of the loopback
interface, whatever the header of a packet says; the socket that gets it is found by the header.
"""
import errno
import os
import socket
import struct

import pytest

import harness
import quic_packets as quic
from quic_plane import PORT

ECT_1, ECT_0 = 1, 2  # RFC 3168 section 5
NOBODY = 65534
IP_PKTINFO = 8


def checksum(octets):
    octets += b"\0" * (len(octets) % 2)
    total = sum(struct.unpack(f"!{len(octets) // 2}H", octets))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff


def packet(source, destination, octets, ecn):
    """A whole IP packet; source and destination are (address, port)."""
    family = socket.AF_INET6 if ":" in source[0] else socket.AF_INET
    addresses = b"".join(socket.inet_pton(family, end[0]) for end in (source, destination))
    length = 8 + len(octets)
    header = struct.pack("!HHHH", source[1], destination[1], length, 0)
    pseudo = addresses + struct.pack("!II", length, socket.IPPROTO_UDP)
    udp = header[:6] + struct.pack("!H", checksum(pseudo + header + octets) or 0xffff) + octets
    if family == socket.AF_INET6:
        return struct.pack("!IHBB", 6 << 28 | ecn << 20, length, socket.IPPROTO_UDP, 64) + \
            addresses + udp
    return struct.pack("!BBHHHBBH", 0x45, ecn, 20 + length, 0, 0, 64, socket.IPPROTO_UDP, 0) + \
        addresses + udp


def redeliverer(address):
    """The raw socket for a family; who has it needs no capability to use it."""
    family, loopback = (socket.AF_INET6, "::1") if ":" in address else (socket.AF_INET, "127.0.0.1")
    raw = socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW)
    raw.connect((loopback, 0))
    return raw


def add_addresses():
    """Addresses on an interface that is not the loopback one, with the strict filter on sources."""
    harness.run("ip", "link", "add", "outside", "type", "veth", "peer", "name", "other")
    for name in ("outside", "other"):
        harness.run("ip", "link", "set", name, "up")
    harness.run("ip", "address", "add", "192.0.2.1/24", "dev", "outside")
    harness.run("ip", "-6", "address", "add", "2001:db8::1/64", "dev", "outside", "nodad")
    for name in ("all", "lo", "outside"):
        harness.sysctl(f"net/ipv4/conf/{name}/rp_filter", 1)


@pytest.mark.parametrize("own, client", [
    ("192.0.2.1", "198.51.100.7"),
    ("2001:db8::1", "2001:db8:1::7"),
])
def test_a_worker_gets_it_as_its_client_sent_it(netns, plane, own, client):
    add_addresses()
    p = plane(listen=(own, PORT))
    for number in range(4):
        p.worker(f"web@{number}")
    raw = redeliverer(own)
    octets = quic.initial(os.urandom(8))
    before = p.counters()
    for ecn in (ECT_0, ECT_1):
        raw.send(packet((client, 50000), (own, PORT), octets, ecn))
    rise = p.settle(before, 2)
    # The program decides it, and the second as a packet of the same handshake.
    assert (rise["new_connections"], rise["by_flow"]) == (1, 1)
    received = p.receive_now()
    assert [(data, sender) for _, data, sender in received] == [(octets, (client, 50000))] * 2
    assert received[0][0] is received[1][0]
    p.check_silence()
    raw.close()


@pytest.mark.parametrize("own, client, wildcard", [
    ("192.0.2.1", "198.51.100.7", "0.0.0.0"),
    ("2001:db8::1", "2001:db8:1::7", "::"),
    ("192.0.2.1", "198.51.100.7", "::"),
])
def test_addresses_and_ecn_are_those_of_the_packet(netns, own, client, wildcard):
    add_addresses()
    family = socket.AF_INET6 if wildcard == "::" else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as server, redeliverer(own) as raw:
        server.settimeout(harness.DEADLINE)
        server.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        server.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
        if family == socket.AF_INET6:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
        server.bind((wildcard, PORT))
        raw.send(packet((client, 50000), (own, PORT), b"held", ECT_0))
        data, ancillary, _, sender = server.recvmsg(100, 500)
        mapped = "::ffff:" if wildcard == "::" and "." in client else ""
        assert (data, sender[:2]) == (b"held", (mapped + client, 50000))
        items = {(level, kind): value for level, kind, value in ancillary}
        if ":" in own:
            assert items[socket.IPPROTO_IPV6, socket.IPV6_PKTINFO][:16] == \
                socket.inet_pton(socket.AF_INET6, own)
            assert items[socket.IPPROTO_IPV6, socket.IPV6_TCLASS][0] == ECT_0
        else:
            assert items[socket.IPPROTO_IP, IP_PKTINFO][8:12] == socket.inet_aton(own)
            assert items[socket.IPPROTO_IP, socket.IP_TOS][0] == ECT_0


@pytest.mark.parametrize("own, client, stranger", [
    ("192.0.2.1", "198.51.100.7", "192.0.2.99"),
    ("2001:db8::1", "2001:db8:1::7", "2001:db8::99"),
])
def test_without_privilege_and_to_this_host_alone(netns, own, client, stranger):
    """A packet for another host does not leave, not even as a question for its address."""
    add_addresses()
    family = socket.AF_INET6 if ":" in own else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as server, redeliverer(own) as raw, \
            socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as wire:
        server.settimeout(harness.DEADLINE)
        server.bind((own, PORT))
        wire.bind(("other", 0))
        descriptor = raw.fileno()

        def without_privilege():
            status = open("/proc/self/status", encoding="ascii").read()
            assert "CapEff:\t0000000000000000" in status
            os.write(descriptor, packet((client, 1), (stranger, PORT), b"stranger", 0))
            os.write(descriptor, packet((client, 1), (own, PORT), b"own", 0))
            try:
                socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)
            except OSError as error:
                return error.errno
            return 0

        assert run_as_nobody(without_privilege, descriptor) == errno.EPERM
        assert server.recvfrom(100)[0] == b"own"
        wire.setblocking(False)
        seen = []
        with pytest.raises(BlockingIOError):
            while True:
                seen.append(wire.recv(2000))
        target = socket.inet_pton(family, stranger)
        assert not [frame for frame in seen if target in frame or b"stranger" in frame]


def run_as_nobody(function, descriptor):
    """The integer that function returns; harness.in_child() would close the descriptor."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            harness.close_inherited({0, 1, 2, writer, descriptor})
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            os.write(writer, b"%d" % function())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        answer = stream.read()
    os.waitpid(pid, 0)
    assert answer, "the unprivileged process failed"
    return int(answer)
