# SPDX-License-Identifier: BSD-2-Clause
"""
Two hosts behind a router that knows nothing but the configuration of the connection IDs
(draft-ietf-quic-load-balancers-21): the IDs suffice for each packet to reach its host and there its
process.
"""
import contextlib
import os
import pathlib
import shutil
import tempfile
import zlib

import pytest

import conftest
import harness
import quic_packets as quic
import quic_plane

KEYS = {0: bytes(range(16)), 3: bytes(range(16, 32))}  # by config rotation; new IDs: the first
HOSTS = (1, 2)
ROUTER = ("10.9.0.1", 443)


@contextlib.contextmanager
def host_namespace(number):
    """A namespace behind a link of its own: .1 on the router's side, .2 is the host."""
    with harness.NetworkNamespace() as namespace:
        own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        harness.check_libc(harness.libc.setns(namespace.before, harness.CLONE_NEWNET), "setns")
        try:
            harness.run("ip", "link", "add", f"host{number}", "type", "veth", "peer", "name",
                        "router", "netns", f"/proc/self/fd/{own}", pass_fds=(own,))
            harness.run("ip", "address", "add", f"10.9.{number}.1/24", "dev", f"host{number}")
            harness.run("ip", "link", "set", f"host{number}", "up")
        finally:
            harness.check_libc(harness.libc.setns(own, harness.CLONE_NEWNET), "setns")
            os.close(own)
        harness.run("ip", "address", "add", f"10.9.{number}.2/24", "dev", "router")
        harness.run("ip", "link", "set", "router", "up")
        yield


class Router:
    """Reads the server ID, sends to that host; to any host, by a hash, where there is none."""

    def __init__(self, configurations):
        self.configurations = configurations
        self.front = harness.socket.socket(harness.socket.AF_INET, harness.socket.SOCK_DGRAM)
        self.front.bind(ROUTER)
        self.front.setblocking(False)
        self.to_hosts = {}  # (client's address, host): socket

    def host_of(self, packet):
        if packet[0] & 0x80:
            cid = packet[6:6 + packet[5]]
        else:
            cid = packet[1:18]
        for configuration in self.configurations:
            decoded = configuration.decode(cid)
            if decoded and decoded[0][2:4] == b"\0\0":
                host = int.from_bytes(decoded[0][:2], "big")
                if host in HOSTS:
                    return host
        return HOSTS[zlib.crc32(cid) % len(HOSTS)]

    def forward(self):
        """Sends on what waits, both ways."""
        while True:
            try:
                packet, client = self.front.recvfrom(2048)
            except BlockingIOError:
                break
            host = self.host_of(packet)
            if (client, host) not in self.to_hosts:
                self.to_hosts[client, host] = harness.udp_client((f"10.9.{host}.2", 443))
                self.to_hosts[client, host].setblocking(False)
            self.to_hosts[client, host].send(packet)
        for (client, _), back in self.to_hosts.items():
            with contextlib.suppress(BlockingIOError):
                while True:
                    self.front.sendto(back.recv(2048), client)

    def close(self):
        self.front.close()
        harness.close_all(self.to_hosts.values())


class Host(quic_plane.Plane):
    """Answers each Initial with two IDs of the worker that got it."""

    def __init__(self, number, start_daemon, configuration, mode, options):
        super().__init__(start_daemon, configuration, mode, host=number,
                         listen=(f"10.9.{number}.2", 443), options=options)
        self.number = number
        self.makers = {}

    def add_worker(self, instance):
        worker = self.worker(instance)
        self.makers[worker] = quic.CidMaker(worker.listeners[0])
        return worker

    def serve(self):
        """[(worker, packet)] of what waits; Initials are answered at once."""
        served = []
        for worker, packet, sender in self.receive_now():
            served.append((worker, packet))
            if packet[0] & 0x80:
                ids = self.makers[worker].make(), self.makers[worker].make()
                answer = quic.long_packet(quic.INITIAL, b"client", ids[1], scid=ids[0])
                worker.socket.sendto(answer, sender)
        return served


@pytest.fixture
def key_file():
    """Readable for the daemon's user alone, as a secret should be."""
    directory = pathlib.Path(tempfile.mkdtemp(prefix="reuseportd-keys-"))
    directory.chmod(0o755)
    path = directory / "quic.keys"
    path.write_text("# shared by both hosts\n" + "".join(
        f"{rotation} {key.hex()}\n" for rotation, key in KEYS.items()))
    path.chmod(0o400)
    shutil.chown(path, harness.USER, harness.USER)
    yield path
    shutil.rmtree(directory)


def issued_ids(answer):
    """The two IDs in an answer of Host.serve()."""
    scid_at = 6 + answer[5]
    scid_end = scid_at + 1 + answer[scid_at]
    return answer[scid_at + 1:scid_end], answer[scid_end:scid_end + 17]


class Network:
    def __init__(self, router, hosts):
        self.router = router
        self.hosts = hosts

    def send(self, packets):
        """[(client, packet)], no two packets alike: {packet: (host, worker)}, each exactly once."""
        for start in range(0, len(packets), 50):
            for client, packet in packets[start:start + 50]:
                client.send(packet)
            self.router.forward()
        arrived = {}

        def all_arrived():
            self.router.forward()
            for host in self.hosts:
                for worker, packet in host.serve():
                    assert packet not in arrived
                    arrived[packet] = (host, worker)
            return len(arrived) >= len(packets)

        harness.poll_until(all_arrived, f"{len(packets)} packets arrive")
        assert sorted(arrived) == sorted(packet for _, packet in packets)
        return arrived

    def connect(self, clients):
        """Handshakes: [(host, worker, first ID, second ID)] by client."""
        packets = [(client, quic.initial(os.urandom(12), size=300)) for client in clients]
        arrived = self.send(packets)
        connections = []
        for client, packet in packets:
            client.setblocking(False)
            answer = harness.poll_until(lambda: self.answer(client), "the server answers")
            connections.append((*arrived[packet], *issued_ids(answer)))
            client.setblocking(True)
        return connections

    def answer(self, client):
        self.router.forward()
        try:
            return client.recv(2048)
        except BlockingIOError:
            return None


@pytest.mark.parametrize("mode", ["quic-lb", "quic-lb-plain"])
def test_each_packet_reaches_its_host_and_process(start_daemon, key_file, mode):
    """
    100 connections: Handshake, rebinding to a new port, a new connection ID from a new port, and the
    same again while workers come and go on both hosts. Every packet is where its connection is.
    """
    keyed = mode == "quic-lb"
    options = f"ConnectionIDKeyFile={key_file}\n" if keyed else ""
    harness.run("ip", "address", "add", f"{ROUTER[0]}/32", "dev", "lo")
    with contextlib.ExitStack() as stack:
        hosts = []
        for number in HOSTS:
            configuration = conftest.Configuration()
            stack.callback(shutil.rmtree, configuration.directory)
            with host_namespace(number):
                hosts.append(Host(number, start_daemon, configuration, mode, options))
            stack.callback(hosts[-1].close)
        for host in hosts:
            for i in range(2):
                host.add_worker(f"w{i}")
            assert host.workers[0].listeners[0].config_rotation == 0
        assert hosts[0].workers[0].slot == hosts[1].workers[0].slot, "the host ID alone differs"
        rotations = KEYS if keyed else {0: None}
        router = Router([quic.QuicLb(rotation, 6, 10, key) for rotation, key in rotations.items()])
        stack.callback(router.close)
        network = Network(router, hosts)

        def new_clients():
            clients = [harness.udp_client(ROUTER) for _ in range(100)]
            stack.callback(harness.close_all, clients)
            return clients

        clients = new_clients()
        connections = network.connect(clients)
        assert {host for host, *_ in connections} == set(hosts)
        assert len({worker for _, worker, *_ in connections}) == 4

        def check(clients, packet_of):
            packets = [packet_of(first, second) for _, _, first, second in connections]
            arrived = network.send(list(zip(clients, packets)))
            for packet, (host, worker, *_) in zip(packets, connections):
                assert arrived[packet] == (host, worker)

        def old_id(first, _):
            return quic.short_packet(first, size=60)

        def new_id(_, second):
            return quic.short_packet(second, size=60)

        check(clients, lambda first, _: quic.long_packet(quic.HANDSHAKE, first, size=60))
        for _ in range(2):
            check(clients, old_id)
            check(new_clients(), old_id)
            check(new_clients(), new_id)
            # Once more, with others active than those that have the connections.
            for host in hosts:
                host.add_worker(f"new{len(host.workers)}")
                host.workers[0].drain()
                host.daemon.wait_state(host.workers[0].slot, "draining")
