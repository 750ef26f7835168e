# SPDX-License-Identifier: BSD-2-Clause
"""
reuseport-classify as the daemon starts it, but with a test in the daemon's place: sockets, maps
(here: memfds, it only maps them) and rules, all laid out from bpf/share_layout.h,
classify/share-rules.h and classify/classifier.h once more, in Python.

Clients are in a network namespace of their own, behind a veth pair. The group's program is four
instructions: what comes by the loopback interface, where only the classifier sends, goes to the
worker's socket, everything else to the classifier's.
"""
import ctypes
import fcntl
import mmap
import os
import socket
import struct

import harness

PROGRAM = harness.BUILD / "classify" / "reuseport-classify"
PORT = 4433
OWN = {4: "192.0.2.1", 6: "2001:db8::1"}
CLIENT = {4: "192.0.2.7", 6: "2001:db8::7"}

SO_ATTACH_REUSEPORT_CBPF = 51
SO_MEMINFO = 55
SO_RCVBUFFORCE = 33
IP_PKTINFO = 8
SHARE_MAX = 6
FLOW_WAYS = 8
TICK_SHIFT = 28
CHOICE_MASK = 0xff
FOLLOW, FOLLOW_DEFAULT, FOLLOW_DROP = range(3)
COUNTERS = ("datagrams", "no_initial", "too_short", "by_name", "by_suffix", "by_protocol", "no_name",
            "no_match", "malformed", "too_slow", "too_many", "unauthenticated", "resent", "lost", "looped",
            "overloads")
PAGE = "=6IIIIIII32Q"  # struct share_page
HASH_KEY = tuple(0x9d3f0000 + 0x1357 * n for n in range(6))
F_ADD_SEALS, SEALS = 1033, 0x1 | 0x2 | 0x4 | 0x8


def rules(given, default=0, n_services=SHARE_MAX):
    """given: (name, "*.suffix" or None, protocol or None, service)."""
    def key(rule):
        kind = 2 if rule[0] is None else 1 if rule[0].startswith("*") else 0
        text = (rule[0] or "").lstrip("*")
        return kind, len(text), text

    ordered = sorted(given, key=lambda rule: (key(rule), rule[1] is None))
    names = sorted({key(rule) for rule in ordered})
    begin = 24 + 20 * len(names) + 12 * len(ordered)
    text = name_table = choice_table = b""
    first = 0
    for kind, length, name in names:
        own = [rule for rule in ordered if key(rule) == (kind, length, name)]
        name_table += struct.pack("=5I", kind, begin + len(text), length, first, len(own))
        text += name.encode()
        first += len(own)
    for _, protocol, service in ordered:
        octets = (protocol or "").encode()
        choice_table += struct.pack("=3I", service, begin + len(text), len(octets))
        text += octets
    return struct.pack("=6I", 0x53525052, begin + len(text), len(names), len(ordered), default,
                       n_services) + name_table + choice_table + text


def sealed(octets, seals=SEALS):
    fd = os.memfd_create("rules", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, octets)
    fcntl.fcntl(fd, F_ADD_SEALS, seals)
    return fd


def cid_hash(cid):
    """quic_cid_hash() of bpf/quic_layout.h."""
    words = struct.unpack("<3Q", cid[:20].ljust(24, b"\0"))
    words = (*words[:2], words[2] | len(cid) << 48)
    total = 0
    for n, word in enumerate(words):
        low = (word & 0xffffffff) + HASH_KEY[2 * n] & 0xffffffff
        high = (word >> 32) + HASH_KEY[2 * n + 1] & 0xffffffff
        total += low * high
    total &= (1 << 64) - 1
    total ^= total >> 32
    total = total * 0x9e3779b97f4a7c15 & (1 << 64) - 1
    return total ^ total >> 29


# What most tests use, and whom the rest is for.
DEFAULT = 5
RULES = rules([("steering.example.org", None, 3), ("shop.example", "h3", 1), ("*.example", None, 2),
               (None, "doq", 4)], default=DEFAULT)


class ClientSide:
    """Another network namespace, and a link from it to that of the calling thread."""

    def __init__(self):
        own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        harness.check_libc(harness.libc.unshare(harness.CLONE_NEWNET), "unshare network")
        self.own, self.namespace = own, os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        harness.check_libc(harness.libc.setns(own, harness.CLONE_NEWNET), "setns")
        harness.run("ip", "link", "add", "outside", "type", "veth", "peer", "name", "client")
        harness.run("ip", "link", "set", "client", "netns", f"/proc/self/fd/{self.namespace}",
                    pass_fds=[self.namespace])
        self.add("outside", OWN)
        with self:
            self.add("client", CLIENT)

    def __enter__(self):
        harness.check_libc(harness.libc.setns(self.namespace, harness.CLONE_NEWNET), "setns")

    def __exit__(self, *_):
        harness.check_libc(harness.libc.setns(self.own, harness.CLONE_NEWNET), "setns")

    @staticmethod
    def add(device, addresses):
        harness.run("ip", "link", "set", device, "up")
        harness.run("ip", "address", "add", f"{addresses[4]}/24", "dev", device)
        harness.run("ip", "-6", "address", "add", f"{addresses[6]}/64", "dev", device, "nodad")

    def close(self):
        os.close(self.namespace)
        os.close(self.own)


def reuseport_socket(address):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    endpoint = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if family == socket.AF_INET6:
        endpoint.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    endpoint.bind((address, PORT))
    return endpoint


def steer_by_interface(member):
    """Classic BPF: index 1 of the group for the loopback interface (1 in every namespace), else 0."""
    code = b"".join(struct.pack("=HBBI", *each) for each in (
        (0x20, 0, 0, 0xfffff000 + 8),  # ld [SKF_AD_OFF + SKF_AD_IFINDEX]
        (0x15, 0, 1, 1),               # jeq #1
        (0x06, 0, 0, 1),               # ret #1
        (0x06, 0, 0, 0)))              # ret #0
    memory = ctypes.create_string_buffer(code)
    member.setsockopt(socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF,
                      struct.pack("HxxxxxxP", 4, ctypes.addressof(memory)))


def raw_sockets():
    result = []
    for family, loopback in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        raw = socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW)
        raw.connect((loopback, 0))
        result.append(raw)
    return result


class Classifier:
    """The process, and the other ends of its descriptors."""

    def __init__(self, log, given=RULES, address="::", cpu_percent=0, overflow=FOLLOW_DEFAULT, worker=True,
                 choice_mask=CHOICE_MASK, receive_octets=4 << 20, user=None, **options):
        self.choice_mask = choice_mask
        self.ended = False  # the test has seen its end
        self.socket = reuseport_socket(address)
        self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, receive_octets)
        self.worker = reuseport_socket(address) if worker else None
        if worker:
            self.set_up_worker()
        self.page_fd = os.memfd_create("page", os.MFD_CLOEXEC)
        os.ftruncate(self.page_fd, 4096)
        self.page = mmap.mmap(self.page_fd, 4096)
        self.page[:40] = struct.pack("=10I", *HASH_KEY, choice_mask, cpu_percent, overflow, 1)
        self.choice_fd = os.memfd_create("choices", os.MFD_CLOEXEC)
        os.ftruncate(self.choice_fd, 64 * (choice_mask + 1))
        self.choices = mmap.mmap(self.choice_fd, 64 * (choice_mask + 1))
        self.control, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        raw = raw_sockets()
        rules_fd = given if isinstance(given, int) else sealed(given)
        descriptors = [control.fileno(), self.socket.fileno(), raw[0].fileno(), raw[1].fileno(),
                       self.choice_fd, self.page_fd, rules_fd]
        self.log = log
        self.process = self.start(descriptors, log, user, **options)
        os.close(rules_fd)
        harness.close_all([control, *raw])

    @staticmethod
    def start(descriptors, log, user, close=()):
        """
        Those from 3 on; bash takes descriptors of two digits. It has them a second time, at the
        numbers that they have here.
        """
        moves = "".join(f" {50 + n}<&{fd}" for n, fd in enumerate(descriptors))
        places = "".join(f" {3 + n}<&{50 + n} {50 + n}<&-" for n in range(len(descriptors)))
        places += "".join(f" {fd}<&-" for fd in close)
        command = ["/bin/bash", "-c", f'exec{moves}; exec{places}; exec "$@"', "bash"]
        if user is not None:
            command += ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
        return harness.Process([*command, PROGRAM, "edge", "1"], log, pass_fds=descriptors)

    def set_up_worker(self):
        self.worker.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        self.worker.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        self.worker.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
        if self.worker.family == socket.AF_INET6:
            self.worker.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            self.worker.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
        self.worker.setblocking(False)
        steer_by_interface(self.socket)

    @property
    def values(self):
        return struct.unpack_from(PAGE, self.page)

    @property
    def follow(self):
        return self.values[10]

    @property
    def alive(self):
        return self.values[11]

    def counters(self):
        """Those that are not 0."""
        # alive stands before the counters, which begin at a multiple of eight.
        numbers = struct.unpack_from(f"={len(COUNTERS)}Q", self.page, 48)
        return {name: number for name, number in zip(COUNTERS, numbers) if number}

    def set_owner(self, number):
        self.page[36:40] = struct.pack("=I", number)

    def expect(self, counters, seconds=harness.DEADLINE):
        """Waits until the counters are these, those that are left out being 0."""
        def reached():
            self.check_running()
            return self.counters() == counters
        try:
            harness.poll_until(reached, f"the counters are {counters}", seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}; they are {self.counters()}") from None

    def check_running(self):
        assert self.process.returncode is None, \
            f"ended with {self.process.returncode}: {self.process.output()}"

    def send_rules(self, given):
        """given: octets, or a descriptor."""
        fd = given if isinstance(given, int) else sealed(given)
        socket.send_fds(self.control, [b"\0"], [fd])
        os.close(fd)

    def choice(self, cid):
        """The service that is written for a connection ID; None: nothing."""
        hashed = cid_hash(cid)
        tag = hashed >> 32 | 1
        offset = 64 * (hashed & self.choice_mask)
        found = [word for word in struct.unpack_from(f"={FLOW_WAYS}Q", self.choices, offset)
                 if word >> 32 == tag]
        assert len(found) <= 1
        return found[0] >> 16 & 0xffff if found else None

    def n_choices(self):
        words = struct.unpack(f"={FLOW_WAYS * (self.choice_mask + 1)}Q", self.choices[:])
        return sum(word != 0 for word in words)

    def received(self, count):
        """(octets, client, own address, traffic class) of so many datagrams at the worker."""
        result = []
        harness.poll_until(lambda: self.receive(result) or len(result) >= count,
                           f"{count} datagrams come again")
        assert len(result) == count
        return result

    def receive(self, result):
        while True:
            try:
                octets, items, _, sender = self.worker.recvmsg(65536, 500)
            except BlockingIOError:
                return
            own = traffic_class = None
            for level, kind, value in items:
                if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
                    own = socket.inet_ntop(socket.AF_INET6, value[:16])
                elif (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO):
                    own = socket.inet_ntoa(value[8:12])
                elif kind in (socket.IP_TOS, socket.IPV6_TCLASS):
                    traffic_class = value[0]
            strip = lambda address: address.replace("::ffff:", "") if "." in address else address
            result.append((octets, (strip(sender[0]), sender[1]), strip(own), traffic_class))

    def stop(self):
        self.check_running()
        assert self.process.stop() == 0

    def wait_end(self):
        """The exit status."""
        self.ended = True
        return self.process.wait()

    def cpu_seconds(self):
        """Processor time that it has had, from the kernel's scheduler."""
        with open(f"/proc/{self.process.pid}/schedstat", encoding="ascii") as stream:
            return int(stream.read().split()[0]) / 1e9

    def memory(self):
        return struct.unpack("=9I", self.socket.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36))

    def n_queued(self):
        """Octets of memory that what waits in the receive buffer takes."""
        return self.memory()[0]

    def n_dropped(self):
        """Datagrams that did not fit into the receive buffer."""
        return self.memory()[8]

    def cleanup(self):
        if self.process.returncode is None:
            self.process.process.kill()
            self.process.wait()
        print(f"--- reuseport-classify: follow {self.follow}, {self.n_queued()} octets wait, "
              f"{self.n_dropped()} datagrams dropped, {self.counters()}")
        print(f"--- reuseport-classify said:\n{self.process.output()}--- end")
        harness.close_all([self.socket, self.control] + ([self.worker] if self.worker else []))
        for fd in (self.page_fd, self.choice_fd):
            os.close(fd)


def dcid_of(datagram):
    return datagram[6:6 + datagram[5]]


def client_socket(side, family=4, traffic_class=0):
    """A client that is connected to the port, in the namespace of the clients."""
    with side:
        client = harness.udp_client((OWN[family], PORT))
    if family == 4:
        client.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, traffic_class)
    else:
        client.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, traffic_class)
    return client
