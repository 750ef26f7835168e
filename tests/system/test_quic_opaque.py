# SPDX-License-Identifier: BSD-2-Clause
"""
Caddy 2.11 with ConnectionID=opaque: a server whose connection IDs (quic-go: 4 octets) say nothing
to anybody else. What can be learned of them keeps its connections; docs/quic-servers.md says what
can't.

Caddy's quic-go follows three changes of address in one connection and no more, also where it is
alone, so each connection makes at most three here.
"""
import signal

import pytest

import hosts

PORT = 8443
CADDYFILE = """
{{
	admin off
	persist_config off
	auto_https off
	default_bind fdgram/{{$SOCKET}} {{
		protocols h3
	}}
}}
https://localhost:{port}, https://127.0.0.1:{port} {{
	tls {place}/cert.pem {place}/key.pem
	respond "answered
"
}}
"""


@pytest.fixture
def caddy(configuration, start_daemon, place):
    """Starts Caddy as an instance of a service with one opaque QUIC listener."""
    if not (hosts.TREE / "usr" / "bin" / "caddy").exists():
        pytest.skip("no Caddy in the tree: scripts/test-host found none in Debian sid")
    place.write("Caddyfile", CADDYFILE.format(port=PORT, place=place.inside()))
    configuration.service("web", f"""
[Service]
[Listener quic]
ListenQUIC=127.0.0.1:{PORT}
ConnectionID=opaque
""")

    def make(name):
        return ["env", "SOCKET={fd:quic}", f"HOME={place.inside(name)}",
                *hosts.command("caddy", "run", "--adapter", "caddyfile", "--config",
                               place.inside("Caddyfile"))]

    daemon = start_daemon("--config", configuration.directory)
    instances = hosts.Instances(daemon, place, make, ["--pass", "args", "--drain-delay", "2"])
    yield instances
    instances.stop(signal.SIGQUIT)  # at once; it waits for clients otherwise


def clients_of(place, *kinds):
    """{name: client}; each kind: name, connections, options."""
    clients = {}
    for name, connections, *options in kinds:
        clients[name] = hosts.H3Client(place, name, PORT, connections, ["--pause", 0.2, *options])
    for name, client in clients.items():
        client.wait_for("answered", client.connections, f"{name} has begun")
    return clients


def finish(clients):
    counts = {name: client.finish() for name, client in clients.items()}
    said = []
    for name, each in counts.items():
        said += each.pop("losses", []) if "requests" in each else clients[name].lost
    return counts, said


def test_caddy_keeps_its_connections_through_scaling_and_rebinding(caddy, place):
    """
    1 to 3 to 2 instances, one of the first replaced as well. Ports change in every phase, and IDs
    change where they can be learned: on a path that is known.
    """
    caddy.start("web@1")
    clients = clients_of(
        place, ("steady", 8),
        ("rebind", 12, "--move", "rebind", "--every", 2, "--moves", 3),
        ("rotate", 12, "--move", "rotate", "--every", 1, "--moves", 6))
    rebind, rotate = clients["rebind"], clients["rotate"]

    def moved(times):
        rebind.wait_for("rebound", 12 * times, f"each port has changed {times} times")
        rotate.wait_for("rebound", 12 * times, f"each ID and port has changed {times} times")
        for name in ("steady", "rebind", "rotate"):
            clients[name].wait_for_more("answered", 40, "requests go on")
    try:
        clients["gtlsclient"] = hosts.gtlsclient(PORT, "/", True)
        moved(1)
        caddy.start("web@2")
        caddy.start("web@3")
        moved(2)
        retired = [caddy.retire("web@2"), caddy.start("web@1")]
        moved(3)
        for process in retired:
            assert process.wait(hosts.DEADLINE) == 0, process.output()
        # Those of the new instances move as well.
        rebind.wait_for_more("answered", 40, "requests go on")
        counts, said = finish(clients)
    finally:
        for client in clients.values():
            client.kill()
    hosts.report("Caddy, opaque, 1 to 3 to 2 instances", counts, said)
    hosts.check_nothing_lost(counts, said)
    assert counts["rebind"]["rebound"] >= 36 and counts["rotate"]["rotated"] >= 36


def test_new_id_on_a_new_path_is_what_opaque_cannot_follow(caddy, place):
    """
    A deliberate migration: the server has told the client the ID in an encrypted frame, and the
    client first uses it from an address that nobody knows. Its packets go to any of the instances;
    the clients that do not migrate notice nothing of it.
    """
    for name in ("web@1", "web@2", "web@3"):
        caddy.start(name)
    clients = clients_of(
        place, ("steady", 8), ("migrate", 24, "--move", "migrate", "--every", 3, "--moves", 1,
                                 "--patience", 10))
    try:
        clients["migrate"].wait_for("migrated", 24, "each has migrated")
        clients["steady"].wait_for_more("answered", 60, "each has made a request since")
        counts, said = finish(clients)
    finally:
        for client in clients.values():
            client.kill()
    hosts.report("Caddy, opaque, 3 instances: a new ID on a new path", counts, said)
    hosts.check_accounts(counts)
    assert counts["migrate"]["connections"] == counts["migrate"]["migrated"] == 24
    hosts.check_nothing_lost({"steady": counts["steady"]}, said)
    assert counts["migrate"]["failed"] == 0, said
