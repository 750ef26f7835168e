# SPDX-License-Identifier: BSD-2-Clause
"""
What real clients send first: captured on a socket that never answers, and read by
`reuseportctl explain --offline --initial`. No server and no daemon: so each Initial is one that a
client made by itself.
"""
import itertools
import json
import shutil
import socket
import time

import pytest

import harness
import hosts

NAME = "shop.example"
PORT = 8443
URL = f"https://{NAME}:{PORT}/"
DATAGRAM_OCTETS = 65535
CHROMIUM = "chromium-headless-shell"
AIOQUIC = """
import socket, sys
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

name, port, version = sys.argv[1], int(sys.argv[2]), int(sys.argv[3], 16)
connection = QuicConnection(configuration=QuicConfiguration(
    alpn_protocols=["h3"], server_name=name, original_version=version, supported_versions=[version],
    quantum_readiness_test=True))
address = ("127.0.0.1", port)
endpoint = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
connection.connect(address, now=0)
for datagram, _ in connection.datagrams_to_send(now=0):
    endpoint.sendto(datagram, address)
"""


def explain(datagrams):
    arguments = [argument for datagram in datagrams for argument in ("--initial", datagram.hex())]
    return json.loads(harness.run(harness.REUSEPORTCTL, "explain", "--offline", *arguments).stdout)


@pytest.fixture
def capture(netns, tmp_path):
    """
    capture(arguments): runs a client until the ClientHello of one of its connections is complete,
    and gives that connection's datagrams so far.
    """
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", PORT))
    server.settimeout(1)
    clients = []

    def run(arguments, **options):
        client = harness.Process(arguments, tmp_path / f"client-{len(clients)}", **options)
        clients.append(client)
        connections = {}
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                datagram, source = server.recvfrom(DATAGRAM_OCTETS)
            except socket.timeout:
                assert client.returncode is None, client.output()
                continue
            datagrams = connections.setdefault(source, [])
            datagrams.append(datagram)
            if explain(datagrams)["complete"]:
                client.stop()
                return datagrams
        raise AssertionError(f"no ClientHello is complete after 60 s; {client.output()}")

    yield run
    for client in clients:
        client.stop()
    server.close()


def check(datagrams, n_datagrams, protocols, name=NAME, version="0x00000001"):
    """
    The ClientHello takes n_datagrams, none of them can be done without, and every order of them
    gives the answer. Returns it.
    """
    assert len(datagrams) == n_datagrams
    assert all(len(datagram) >= 1200 for datagram in datagrams)
    answers = [explain(order) for order in itertools.permutations(datagrams)]
    assert all(answer == answers[0] for answer in answers)
    answer = answers[0]
    assert answer["complete"] and answer["authenticated"]
    assert answer["version"] == version
    assert answer["sni"] == name
    assert answer["alpn"] == protocols
    assert answer["packets"] >= n_datagrams
    assert "discarded" not in answer
    for missing in range(n_datagrams):
        rest = datagrams[:missing] + datagrams[missing + 1:]
        if rest:
            part = explain(rest)
            assert not part["complete"] and part["sni"] is None
            assert part["missing"].startswith("octets ") or "Initial" in part["missing"]
    return answer


def damaged(datagrams):
    """The same datagrams with one bit of the first Initial's payload changed."""
    first = bytearray(datagrams[0])
    first[1100] ^= 1
    return [bytes(first)] + datagrams[1:]


def curl(*options):
    return hosts.command("curl", "--silent", "--insecure", "--http3-only", "--max-time", 60,
                         "--resolve", f"{NAME}:{PORT}:127.0.0.1", *options, URL)


def test_curl_with_its_own_choice_of_key_exchange(tree, capture):
    """Post-quantum: the ClientHello takes two datagrams."""
    datagrams = capture(curl())
    check(datagrams, 2, ["h3"])
    assert not explain(damaged(datagrams))["complete"]


def test_curl_with_a_small_client_hello(tree, capture):
    datagrams = capture(curl("--curves", "X25519"))
    check(datagrams, 1, ["h3"])
    answer = explain(damaged(datagrams))
    assert not answer["complete"] and not answer["authenticated"] and answer["packets"] == 0


def gtlsclient(*options):
    """Says "localhost" to whatever has a numeric address, whatever --sni is (0.12.1)."""
    return [hosts.GTLSCLIENT, "--no-quic-dump", "--no-http-dump", *options, "127.0.0.1", str(PORT),
            f"https://localhost:{PORT}/"]


def test_gtlsclient(tree, capture):
    answer = check(capture(gtlsclient()), 1, ["h3"], "localhost")
    assert answer["packets"] == 1


def aioquic(version):
    """The first flight of aioquic; Debian 12's gtlsclient has no final version 2."""
    return hosts.command("python3", "-B", "-c", AIOQUIC, NAME, PORT, version)


@pytest.mark.parametrize("version", ["0x00000001", "0x6b3343cf"])
def test_aioquic_with_both_versions(tree, capture, version):
    """With a ClientHello made too long on purpose, and with zeros behind the last packet."""
    check(capture(aioquic(version)), 2, ["h3"], version=version)


def test_chromium(capture, tmp_path):
    """Post-quantum, CRYPTO frames shuffled on purpose, PING and PADDING between, ECH as GREASE."""
    if not shutil.which(CHROMIUM):
        pytest.skip(f"needs {CHROMIUM} (Debian 12: the package of that name)")
    home = tmp_path / "home"
    home.mkdir()
    datagrams = capture([
        CHROMIUM, "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--enable-quic",
        f"--origin-to-force-quic-on={NAME}:{PORT}", f"--host-resolver-rules=MAP {NAME} 127.0.0.1",
        f"--user-data-dir={home}", "--dump-dom", URL])
    answer = check(datagrams, 2, ["h3"])
    assert answer["ech"]
