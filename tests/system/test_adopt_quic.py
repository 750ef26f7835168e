# SPDX-License-Identifier: BSD-2-Clause
"""
QUIC servers that bind for themselves (reuseport-run --adopt): Debian 12's Caddy 2.6, whose
connection IDs say nothing to anybody else (ConnectionID=opaque), and nginx 1.26, whose IDs do
(ConnectionID=nginx). TCP and QUIC are on one port.
"""
import signal
import socket
import time

import pytest

import harness
import hosts
from test_quic_nginx import nginx_behind, place  # noqa: F401 (a fixture)
from test_quic_opaque import clients_of, finish

PORT = 8443
CADDYFILE = """
{{
	admin off
	auto_https off
}}
https://localhost:{port}, https://127.0.0.1:{port} {{
	bind 127.0.0.1
	tls {place}/cert.pem {place}/key.pem
	respond "answered
"
}}
"""


@pytest.fixture
def adopting(configuration, start_daemon, place):  # noqa: F811
    """adopting(mode, make_command, *options): hosts.Instances of such servers."""
    started = []

    def make(mode, make_command, *options):
        configuration.service("web", f"""
[Service]
[Listener tcp]
ListenStream=127.0.0.1:{PORT}
[Listener quic]
ListenQUIC=127.0.0.1:{PORT}
ConnectionID={mode}
""")
        daemon = start_daemon("--adopt", "--config", configuration.directory)
        started.append(hosts.Instances(daemon, place, make_command, ["--adopt", *options]))
        return started[-1]

    yield make
    for each in started:
        each.stop()


def caddy_command(place):  # noqa: F811
    def command(name):
        return ["env", f"HOME={place.directory / name}", "caddy", "run", "--adapter", "caddyfile",
                "--config", place.directory / "Caddyfile"]
    return command


def answers_tcp():
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", PORT)) == 0


def test_caddy_answers_every_request_through_scaling_and_replacement(adopting, place):  # noqa: F811
    """
    1 to 3 to 2 instances, one of them replaced twice. The quic-go of this Caddy does not follow a
    change of port, and forgets its connections without a word when it ends, both also where it is
    alone; so those that stay belong to the instance that stays, and nobody moves.
    """
    place.write("Caddyfile", CADDYFILE.format(port=PORT, place=place.directory))

    caddy = adopting("opaque", caddy_command(place), "--drain-delay", "2")
    caddy.start("web@1")
    clients = clients_of(place, ("steady", 16))

    def go_on():
        clients["steady"].wait_for_more("answered", 60, "requests go on")
    try:
        clients["curl"] = hosts.curl(PORT, "/", 9)
        clients["curl again"] = hosts.curl(PORT, "/", 9)
        clients["curl over TCP"] = hosts.curl(PORT, "/", 9, "--http1.1")
        caddy.start("web@2")
        caddy.start("web@3")
        go_on()
        for _ in range(2):
            before = caddy.start("web@2")
            go_on()
            assert before.wait() == 0, before.output()
        retired = caddy.retire("web@3")
        assert retired.wait() == 0, retired.output()
        go_on()
        counts, said = finish(clients)
    finally:
        for client in clients.values():
            client.kill()
    hosts.report("Caddy 2.6, adopted, opaque, 1 to 3 to 2 instances", counts, said)
    hosts.check_nothing_lost(counts, said)
    assert counts["curl"]["answered"] > 0 and counts["steady"]["connections"] == 16


def test_nginx_keeps_its_connections_through_replacement(adopting, place):  # noqa: F811
    """The cookie of the socket is what it was before it was adopted, so nginx's IDs name it."""
    replacements = 4
    names = ("web@1", "web@2")
    nginx = adopting(
        "nginx", nginx_behind(place, main="quic_bpf off;", server=f"listen 127.0.0.1:{PORT} ssl;"),
        "--drain-signal", "QUIT", "--drain-delay", "2")
    for name in names:
        nginx.start(name)
    clients = clients_of(place, ("steady", 16))
    try:
        clients["curl"] = hosts.curl(PORT, "/", 9)
        clients["curl over TCP"] = hosts.curl(PORT, "/", 9, "--http1.1")
        for i in range(replacements):
            before = nginx.start(names[i % 2])
            clients["steady"].wait_for_more("answered", 50, "requests go on")
            assert before.wait() == 0, before.output()
        counts, said = finish(clients)
    finally:
        for client in clients.values():
            client.kill()
    hosts.report(f"two nginx, adopted, {replacements} replacements", counts, said)
    hosts.check_nothing_lost(counts, said)
    assert counts["steady"]["answered"] > 50 * replacements


def test_nginx_with_a_socket_for_each_of_four_workers(adopting, place):  # noqa: F811
    """
    "listen ... quic reuseport" with four workers, which without quic_bpf (root, CAP_BPF) loses the
    connections that move: each of its sockets is a slot of its own, and none is lost; nor is one when
    another nginx of the kind replaces it. (Nobody moves in the millisecond in which nginx closes its
    idle connections: it would tell the port that it knew.)
    """
    nginx = adopting("nginx", nginx_behind(
        place, workers=4, main="quic_bpf off;", listen=" reuseport",
        server=f"listen 127.0.0.1:{PORT} ssl;"), "--drain-signal", "QUIT", "--drain-delay", "2")
    nginx.n_active = 4
    nginx.start("web@1")
    clients = clients_of(
        place, ("steady", 8), ("rebind", 12, "--move", "rebind", "--patience", 5),
        ("migrate", 12, "--move", "migrate", "--patience", 5))
    moving = [clients["rebind"], clients["migrate"]]

    def go_on(times):
        clients["rebind"].wait_for("rebound", 36 * times, "ports have changed")
        clients["migrate"].wait_for("migrated", 36 * times, "IDs and ports have changed")
        for client in clients.values():
            client.wait_for_more("answered", 40, "requests go on")
    try:
        go_on(1)
        for client in moving:
            client.hold()
        before = nginx.start("web@1")
        harness.poll_until(lambda: "gracefully shutting down" in before.output(), "nginx was told")
        for client in moving:
            client.release()
        go_on(2)
        assert before.wait() == 0, before.output()
        counts, said = finish(clients)
    finally:
        for client in clients.values():
            client.kill()
    hosts.report("nginx, adopted, four workers, quic_bpf off, replaced once", counts, said)
    hosts.check_nothing_lost(counts, said)


def test_what_caddy_loses_alone(netns, place):  # noqa: F811
    """
    The limits above are its own: a connection does not survive a change of port, and when Caddy ends
    nobody is told. docs/adopt.md has the figures.
    """
    place.write("Caddyfile", CADDYFILE.format(port=PORT, place=place.directory))
    place.make("alone")
    caddy = harness.Process(caddy_command(place)("alone"), place.directory / "alone" / "log")
    clients = {}
    try:
        harness.poll_until(lambda: answers_tcp(), "it answers")
        clients = clients_of(
            place, ("steady", 8, "--patience", 5),
            ("rebind", 8, "--move", "rebind", "--every", 2, "--moves", 1, "--patience", 5))
        clients["rebind"].wait_for("rebound", 8, "each port has changed")
        clients["steady"].wait_for_more("answered", 100, "requests go on")
        counts, said = finish({"rebind": clients["rebind"]})
        caddy.send_signal(signal.SIGTERM)
        assert caddy.wait() == 0, caddy.output()
        time.sleep(8)
        ended, _ = finish({"steady": clients["steady"]})
        counts.update(ended)
    finally:
        for client in clients.values():
            client.kill()
        caddy.stop()
    hosts.report("Caddy 2.6 alone: each port changes once, then Caddy ends", counts, said)
    hosts.check_accounts(counts)
    assert counts["rebind"]["connections_lost"] == 8 and counts["rebind"]["resets"] == 0
    assert counts["steady"]["connections_lost"] == 8
    assert counts["steady"]["resets"] == counts["steady"]["closed"] == 0
