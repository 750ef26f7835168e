# SPDX-License-Identifier: BSD-2-Clause
"""
nginx 1.26 with HTTP/3, unmodified: first alone, as it is without reuseportd, for the figures of
docs/quic-servers.md; then behind reuseportd with ConnectionID=nginx.

Counted is what real clients see: our h3_client.py (connections that stay, and go on requesting
while they change port or connection ID), curl and gtlsclient (a new connection for each request).
"""
import os
import pathlib
import signal

import pytest

import harness
import hosts

PORT = 8443
SLOW_OCTETS = 32768
CONFIGURATION = """
daemon off;
pid {inside}/pid;
error_log stderr {log_level};
worker_processes {workers};
{main}
events {{ worker_connections 4096; }}
http {{
""" + hosts.NGINX_QUIC_HTTP + """    default_type text/plain;
    server {{
        listen 127.0.0.1:{port} quic{listen};
        {server}
        location = / {{ return 200 "answered\\n"; }}
        location = /slow {{ root {place}; limit_rate 16k; }}
    }}
}}
"""


@pytest.fixture
def place(place):
    place.write("host.key", os.urandom(64))
    place.write("slow", b"x" * SLOW_OCTETS)
    return place


def configure(place, name, **values):
    directory = place.make(name)
    settings = dict(inside=place.inside(name), place=place.inside(), port=PORT, workers=1, main="",
                    listen="", server="", log_level="notice")
    settings.update(values)
    place.write(f"{name}/nginx.conf", CONFIGURATION.format(**settings))
    return directory


class Clients:
    """Every kind at once, so that a run says how each fares."""

    def __init__(self, place, *options):
        slow = ["--path", "/slow", "--octets", SLOW_OCTETS]
        self.ours = {}
        self.others = {}
        try:
            for name, connections, own in (
                    ("steady", 8, []),
                    ("rebind", 12, ["--move", "rebind"]),
                    ("migrate", 12, ["--move", "migrate"]),
                    ("download-rebind", 8, ["--move", "rebind", *slow]),
                    ("download-migrate", 8, ["--move", "migrate", *slow])):
                self.ours[name] = hosts.H3Client(place, name, PORT, connections,
                                                 ["--pause", 0.2, *options, *own])
            for name, client in self.ours.items():
                client.wait_for("answered" if "download" not in name else "handshakes", 8,
                                f"{name} has begun")
            self.others["curl"] = hosts.curl(PORT, "/", 9)
            self.others["gtlsclient rebind"] = hosts.gtlsclient(PORT, "/", True)
            self.others["gtlsclient migrate"] = hosts.gtlsclient(PORT, "/", False)
        except BaseException:
            self.kill()
            raise

    def ended(self):
        return {
            **{name: client.count("answered") + client.count("requests_lost")
               for name, client in self.ours.items()},
            **{name: client.answered + len(client.lost) for name, client in self.others.items()}}

    def go_on(self, at_most=None):
        """
        Back when every kind of client has made a good deal of requests: each of those with a new
        connection for each request at least one that began after this was called. at_most: or
        after so many seconds, where some may get no answer at all.
        """
        wanted = {name: count + (2 if name in self.others else 6 if "download" in name else 20)
                  for name, count in self.ended().items()}

        def more():
            ended = self.ended()
            return all(ended[name] >= count for name, count in wanted.items())
        try:
            harness.poll_until(more, "requests go on", at_most or hosts.DEADLINE, interval=0.05)
        except AssertionError:
            if not at_most:
                raise

    def hold(self):
        for client in self.ours.values():
            client.hold()

    def release(self):
        for client in self.ours.values():
            client.release()

    def finish(self):
        """{client: counts}, the losses in words apart."""
        counts = {}
        said = []
        for name, client in self.others.items():
            counts[name] = client.finish()
            said += [f"{name}: {loss}" for loss in client.lost]
        for name, client in self.ours.items():
            counts[name] = client.finish()
            said += [f"{name}: {loss}" for loss in counts[name].pop("losses")]
        self.kill()
        return counts, said

    def kill(self):
        for client in self.others.values():
            client.finish()
        for client in self.ours.values():
            client.kill()


def children(pid):
    return [int(c) for c in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("quic_bpf", ("off", "on"))
def test_nginx_alone_reloading_for_comparison(netns, place, quic_bpf):
    """
    What reuseportd is compared with: four workers of nginx, reloaded three times under load. How
    much is lost varies; that the clients count it, and that nginx answers at all, does not.
    """
    reloads = 3
    directory = configure(place, "nginx", workers=4, listen=" reuseport",
                          main=f"user nobody nogroup; quic_bpf {quic_bpf};")
    nginx = harness.Process(
        hosts.command("nginx", "-e", "stderr", "-c", place.inside("nginx/nginx.conf"), "-p",
                      place.inside("nginx"), user=0), directory / "log")
    clients = None
    try:
        harness.poll_until(lambda: len(children(nginx.pid)) == 4, "four workers")
        clients = Clients(place, "--patience", 5)
        for _ in range(reloads):
            clients.go_on(at_most=6)
            before = set(children(nginx.pid))
            nginx.send_signal(signal.SIGHUP)
            harness.poll_until(lambda: len(set(children(nginx.pid)) - before) == 4,
                               "four new workers")
        clients.go_on(at_most=6)
        counts, said = clients.finish()
        hosts.report(f"nginx alone, quic_bpf {quic_bpf}, {reloads} reloads", counts, said)
        assert counts["curl"]["answered"] > 0 and counts["steady"]["answered"] > 0
        hosts.check_accounts(counts)
    finally:
        if clients:
            clients.kill()
        nginx.stop(signal.SIGTERM)


def nginx_behind(place, **values):
    """make_command of hosts.Instances."""
    def make(name):
        configure(place, f"{name}/nginx", **values)
        return hosts.command("nginx", "-e", "stderr",
                             "-c", place.inside(f"{name}/nginx/nginx.conf"),
                             "-p", place.inside(f"{name}/nginx"))
    return make


@pytest.fixture
def web(configuration, start_daemon, place):
    """A daemon with HTTPS over TCP and QUIC on one port, and a way to start nginx on it."""
    configuration.service("web", f"""
[Service]
[Listener tcp]
ListenStream=127.0.0.1:{PORT}
[Listener quic]
ListenQUIC=127.0.0.1:{PORT}
ConnectionID=nginx
""")
    daemon = start_daemon("--config", configuration.directory)
    started = []

    def make(*options):
        instances = hosts.Instances(
            daemon, place, nginx_behind(place, main="quic_bpf off;",
                                        server=f"listen 127.0.0.1:{PORT} ssl;"),
            ["--pass", "nginx", *options])
        started.append(instances)
        return instances

    yield make
    for instances in started:
        instances.stop()


def quit_nginx(process, clients):
    """
    nginx closes its idle connections at that moment. A client whose port changes in the same
    millisecond does not get to know, and nginx forgets the connection: whatever steers, its next
    packet is of a connection that nobody has. So nobody moves at that moment; before and after
    they do.
    """
    clients.hold()
    process.send_signal(signal.SIGQUIT)  # reuseport-run sends it on
    harness.poll_until(lambda: "gracefully shutting down" in process.output(), "nginx was told")
    clients.release()


def test_replacing_two_nginx_in_turn_loses_nothing(web, place):
    """
    Unmodified nginx with inherited sockets, quic_bpf off. A draining instance goes on with the
    connections that it has, also when they move; told to quit, it closes those that are idle,
    finishes the downloads under way, which move meanwhile, and ends by itself with status 0.
    """
    replacements = 6
    names = ("web@1", "web@2")
    instances = web("--drain-delay", "3600")
    for name in names:
        instances.start(name)
    clients = Clients(place)
    try:
        replaced = []
        for i in range(replacements):
            clients.go_on()
            replaced.append(instances.start(names[i % 2]))
            clients.go_on()
            assert replaced[-1].returncode is None
            quit_nginx(replaced[-1], clients)
        clients.go_on()
        for process in replaced:
            assert process.wait(hosts.DEADLINE) == 0, process.output()
        counts, said = clients.finish()
    finally:
        clients.kill()
    hosts.report(f"two nginx behind reuseportd, {replacements} replacements", counts, said)
    hosts.check_nothing_lost(counts, said)
    assert all(each["answered"] > 0 for each in counts.values())
    assert all(counts[name]["rebound"] > replacements for name in ("rebind", "download-rebind"))
    assert all(counts[name]["migrated"] > replacements for name in ("migrate", "download-migrate"))


def test_drain_delay_lets_new_connections_make_their_requests(web, place):
    """
    The whole of it by reuseport-run alone, TCP and QUIC on one port: nginx is told to quit two
    seconds after new connections have begun to go elsewhere. Without the delay it refuses those
    that are just being made.
    """
    replacements = 8
    names = ("web@1", "web@2")
    instances = web("--drain-delay", "2")
    for name in names:
        instances.start(name)
    clients = {"curl": hosts.curl(PORT, "/", 9), "curl again": hosts.curl(PORT, "/", 9),
               "curl over TCP": hosts.curl(PORT, "/", 9, "--http1.1")}
    steady = hosts.H3Client(place, "steady", PORT, 16, ["--pause", 0.1])
    try:
        for i in range(replacements):
            before = instances.start(names[i % 2])
            steady.wait_for_more("answered", 50, "requests go on")
            assert before.wait(hosts.DEADLINE) == 0, before.output()
        counts = {name: client.finish() for name, client in clients.items()}
        counts["steady"] = steady.finish()
    finally:
        for client in clients.values():
            client.finish()
        steady.kill()
    said = sum((client.lost for client in clients.values()), counts["steady"].pop("losses"))
    hosts.report(f"two nginx, told to quit after 2 s, {replacements} replacements", counts, said)
    hosts.check_nothing_lost(counts, said)
    assert counts["steady"]["answered"] > 50 * replacements
