# SPDX-License-Identifier: BSD-2-Clause
"""
Two real servers behind one UDP port: nginx 1.26, unmodified, with inherited sockets, of one user,
and the example server with its own connection IDs of another. Real clients ask for them by name.
"""
import base64
import hashlib
import pwd
import shutil
import subprocess
import threading

import pytest

import harness
import hosts
import quic_programs
from test_quic_registered import Servers

PORT = 8443
ADDRESS = ("127.0.0.1", PORT)
SHOP, API = "shop.example", "api.example"
SHOP_USER = pwd.getpwnam("www-data").pw_uid
API_USER = hosts.NOBODY
CLASSIFIER = harness.BUILD / "classify" / "reuseport-classify"
CHROMIUM = "chromium-headless-shell"
NGINX = """
daemon off;
pid {inside}/pid;
error_log stderr notice;
events {{ worker_connections 4096; }}
quic_bpf off;
http {{
""" + hosts.NGINX_QUIC_HTTP + """    default_type text/html;
    server {{
        listen 127.0.0.1:{port} quic;
        {server}
        location / {{ return 200 "answered\\n"; }}
    }}
}}
"""


def nginx_of_the_tree(place, server=""):
    """make_command of hosts.Instances: without chroot(8), so that any user can be the whole of it."""
    def make(name):
        inside = place.directory / name
        place.write(f"{name}/nginx.conf", NGINX.format(inside=inside, place=place.directory, port=PORT,
                                                       server=server))
        library = hosts.TREE / "usr/lib/x86_64-linux-gnu"
        return [library / "ld-linux-x86-64.so.2", "--library-path", library, hosts.TREE / "usr/sbin/nginx",
                "-e", "stderr", "-c", inside / "nginx.conf", "-p", inside]
    return make


class Shared:
    """The daemon, its two services, and their servers."""

    def __init__(self, start_daemon, configuration, place, directory):
        configuration.write("reuseportd.conf", f"[Daemon]\nClassifier={CLASSIFIER}\n")
        configuration.service("shop", f"""[Service]
AllowUser={SHOP_USER}
[Listener h3]
ListenQUIC=127.0.0.1:{PORT}
Share=edge
ConnectionID=nginx
MatchServerName={SHOP} *.{SHOP}
""")
        configuration.service("api", f"""[Service]
AllowUser={API_USER}
[Listener quic]
ListenQUIC=127.0.0.1:{PORT}
Share=edge
MatchServerName={API}
MatchDefault=yes
""")
        self.place = place
        self.directory = directory
        place.write("host.key", b"k" * 64)
        self.daemon = start_daemon("--config", configuration.directory)
        self.shop = self.shop_with()
        self.certificate = type("Certificate", (), {
            "certificate": place.directory / "cert.pem", "key": place.directory / "key.pem"})
        self.servers = {}
        self.count = 0

    def shop_with(self, server=""):
        return hosts.Instances(self.daemon, self.place, nginx_of_the_tree(self.place, server),
                               ["--pass", "nginx", "--drain-delay", "2"], "shop", SHOP_USER)

    def start_api(self, name, *arguments):
        """Starts a server as this instance; the one before, if any."""
        self.count += 1
        server = quic_programs.QuicServer(
            self.certificate, self.directory / f"api-{self.count}.log", *arguments,
            path=self.daemon.worker_socket, service="api", instance=name, user=API_USER)
        before = self.servers.get(name)
        self.servers[name] = server
        return before

    def figures(self, service):
        return self.daemon.status(service)["listeners"][0]

    def stop(self):
        self.shop.stop()
        for server in self.servers.values():
            if server.process.returncode is None:
                server.kill()


@pytest.fixture
def shared(start_daemon, configuration, place, tmp_path):
    quic_programs.require_programs()
    result = Shared(start_daemon, configuration, place, tmp_path)
    yield result
    result.stop()


def curl(*options, name=SHOP, user=hosts.NOBODY):
    return hosts.command("curl", "--silent", "--show-error", "--insecure", "--http3-only", "--max-time", 20,
                         "--resolve", f"{name}:{PORT}:127.0.0.1", *options, f"https://{name}:{PORT}/",
                         user=user)


def api_client(*arguments, name=API, **options):
    by_name = ["--server-name", name] if name else []
    return quic_programs.run_client(ADDRESS, *by_name, *arguments, **options)


def chromium_command(place, directory, name):
    """Believes the key of the test's certificate, which is that of no authority."""
    public = subprocess.run(["openssl", "x509", "-in", place.directory / "cert.pem", "-pubkey", "-noout"],
                            capture_output=True, check=True).stdout
    der = subprocess.run(["openssl", "pkey", "-pubin", "-outform", "DER"], input=public,
                         capture_output=True, check=True).stdout
    return [CHROMIUM, "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync", "--enable-quic",
            f"--origin-to-force-quic-on={name}:{PORT}", f"--host-resolver-rules=MAP {name} 127.0.0.1",
            "--ignore-certificate-errors-spki-list=" +
            base64.b64encode(hashlib.sha256(der).digest()).decode(),
            f"--user-data-dir={directory}", "--dump-dom", f"https://{name}:{PORT}/"]


def test_each_client_reaches_the_server_that_it_names(shared, tmp_path):
    """One datagram and two, in both orders; nobody else's server sees any of it."""
    shared.shop.start("shop@1")
    shared.start_api("api@1")
    for count, options in ((1, ["--curves", "X25519"]), (2, ["--curves", "X25519MLKEM768"])):
        for name in (SHOP, f"www.{SHOP}"):
            for _ in range(3):
                assert harness.run(*curl(*options, name=name)).stdout == "answered\n", count
    assert shared.figures("shop")["new_connections"] == 12
    assert shared.figures("api")["packets"] == 0
    # Chromium's has a post-quantum key, shuffled pieces, and takes two datagrams.
    if shutil.which(CHROMIUM):
        done = harness.run(*chromium_command(shared.place, tmp_path / "home", SHOP), timeout=120)
        assert "answered" in done.stdout, (done.stdout, done.stderr)
        assert shared.figures("shop")["new_connections"] >= 13
    before = shared.figures("shop")
    for options in ((), ("--split-initial",), ("--split-initial", "--delay-second", 200)):
        quic_programs.check(api_client("--connections", 20, *options), connections=20, answered=20)
        quic_programs.check(api_client("--connections", 5, *options, name=None), connections=5, answered=5)
        quic_programs.check(api_client("--connections", 5, *options, name="other.example"), connections=5,
                            answered=5)
    assert shared.figures("api")["new_connections"] == 90
    assert shared.figures("shop")["packets"] == before["packets"]


class ApiLoad(threading.Thread):
    """
    Again and again ten new connections, of which every second ten are resumed, with their requests
    as early data, all of them with Initials of two datagrams. What each counts must be right.
    """

    def __init__(self, directory):
        super().__init__()
        self.sessions = directory / "sessions"
        self.ending = threading.Event()
        self.counts = {"connections": 0, "answered": 0, "early": 0, "retries": 0}
        self.error = None
        self.start()

    def step(self):
        common = ("--connections", 10, "--split-initial", "--interval", 20)
        first = api_client(*common, "--script", "request:5", "--save-session", self.sessions)
        quic_programs.check(first, connections=10, answered=50, sessions_saved=10)
        second = api_client(*common, "--script", "request:5", "--resume", self.sessions, "--early-data")
        # A server takes no early data under a ticket from before it began (replays); the client then
        # sends it again.
        early, again = second["early_data_accepted"], second["early_data_rejected"]
        quic_programs.check(second, connections=10, answered=50, resumed=10, early_data_rejected=again)
        assert early + again == 10
        for account in (first, second):
            self.counts["connections"] += account["connections"]
            self.counts["answered"] += account["answered"]
            self.counts["retries"] += account["retries"]
        self.counts["early"] += second["early_data_accepted"]

    def run(self):
        try:
            while not self.ending.is_set():
                self.step()
        except BaseException as error:
            self.error = error

    def go_on(self, more):
        wanted = self.counts["answered"] + more

        def reached():
            self.check()
            return self.counts["answered"] >= wanted
        harness.poll_until(reached, "requests to the API go on", hosts.DEADLINE, interval=0.05)

    def finish(self):
        self.ending.set()
        self.join()
        self.check()
        return self.counts

    def check(self):
        if self.error:
            raise AssertionError("the load of the API") from self.error


def shop_clients(place):
    options = ["--server-name", SHOP, "--pause", 0.2]
    return {name: hosts.H3Client(place, name, PORT, 8, [*options, *own]) for name, *own in (
        ("steady",), ("rebind", "--move", "rebind"), ("migrate", "--move", "migrate"))}


def test_rolling_restarts_of_each_lose_nothing(shared, place, tmp_path):
    """
    Both servers are replaced three times in turn, under load: connections that stay and move, new
    ones all the time, 0-RTT, and Retry, which every second server of the API asks for.
    """
    shared.shop.start("shop@1")
    shared.start_api("api@1", "--retry")
    clients = shop_clients(place)
    new = hosts.curl(PORT, "/", 9, name=SHOP)
    api = ApiLoad(tmp_path)
    replaced = []
    try:
        for client in clients.values():
            client.wait_for("answered", 8, "requests have begun")
        for i in range(3):
            api.go_on(200)
            before = shared.start_api("api@1", *(["--retry"] if i % 2 else []))
            replaced.append(before.process)
            harness.poll_until(lambda: before.process.returncode is not None or
                               shared.daemon.status_worker(before.slot, "api") is None or
                               shared.daemon.status_worker(before.slot, "api")["state"] == "draining",
                               "the one before drains")
            clients["steady"].wait_for_more("answered", 30, "requests go on")
            for client in clients.values():
                client.hold()
            before = shared.shop.start("shop@1")
            harness.poll_until(lambda: "gracefully shutting down" in before.output(), "nginx was told")
            for client in clients.values():
                client.release()
            replaced.append(before)
            for client in clients.values():
                client.wait_for_more("answered", 20, "requests go on")
        api.go_on(200)
        for process in replaced:
            assert process.wait(hosts.DEADLINE) == 0, process.output()
        counts = {name: client.finish() for name, client in clients.items()}
        counts["curl"] = new.finish()
        counts["api"] = api.finish()
    finally:
        for client in clients.values():
            client.kill()
        new.kill()
        api.ending.set()
        api.join()
    said = sum((counts[name].pop("losses") for name in clients), new.lost)
    hosts.report("nginx and ngtcp2 behind one port, 3 replacements of each", counts, said)
    hosts.check_nothing_lost(counts, said)
    assert counts["api"]["retries"] > 0 and counts["api"]["early"] > 0
    assert counts["rebind"]["rebound"] > 10 and counts["migrate"]["migrated"] > 10


def test_retry_by_nginx(shared, place):
    """
    It asks every client to come again with a token, under a connection ID that nginx 1.26 makes up:
    the ClientHello is read twice, and the second time goes to the same service. (Of one datagram: of
    clients with two, nginx 1.26 with quic_retry leaves one in ten without an answer, alone as well.)
    """
    shared.shop = shared.shop_with("quic_retry on;")
    shared.shop.start("shop@1")
    shared.start_api("api@1")
    n = 0
    for _ in range(10):
        for name in (SHOP, f"www.{SHOP}"):
            assert harness.run(*curl("--curves", "X25519", name=name)).stdout == "answered\n"
        n += 2
    read = shared.daemon.status()["shares"][0]["classifier"]
    assert {name: read[name] for name in ("by_name", "by_suffix", "malformed", "too_slow", "too_many")} == {
        "by_name": n, "by_suffix": n, "malformed": 0, "too_slow": 0, "too_many": 0}
    assert shared.figures("shop")["new_connections"] == 2 * n
    assert shared.figures("api")["packets"] == 0
    # Under load, and while another one takes its place: its token is good there as well.
    client = hosts.H3Client(place, "steady", PORT, 4, ["--server-name", SHOP, "--pause", 0.1])
    new = hosts.curl(PORT, "/", 9, name=SHOP)
    try:
        client.wait_for("handshakes", 4, "it has begun")
        for _ in range(2):
            client.wait_for_more("answered", 10, "requests go on")
            before = shared.shop.start("shop@1")
            harness.poll_until(lambda: "gracefully shutting down" in before.output(), "nginx was told")
            client.wait_for_more("answered", 10, "requests go on")
            assert before.wait(hosts.DEADLINE) == 0, before.output()
        counts = {"steady": client.finish(), "curl": new.finish()}
    finally:
        client.kill()
        new.kill()
    said = counts["steady"].pop("losses") + new.lost
    hosts.report("nginx with quic_retry behind a shared port, 2 replacements", counts, said)
    hosts.check_nothing_lost(counts, said)
    assert counts["curl"]["answered"] > 0
    assert shared.figures("api")["packets"] == 0


def test_early_data_of_ngtcp2s_client(start_daemon, configuration, place, tmp_path):
    """
    Its 0-RTT packets, beside and behind the Initial, come to the server that it names, aioquic, which
    takes what they say; and the second server on the port sees none of it. (The client names localhost
    where it is given an address.)
    """
    configuration.write("reuseportd.conf", f"[Daemon]\nClassifier={CLASSIFIER}\n")
    for service, match in (("api", "MatchServerName=localhost"), ("rest", "MatchDefault=yes")):
        configuration.service(service, f"""[Service]
AllowUser={hosts.NOBODY}
[Listener quic]
ListenQUIC=127.0.0.1:{PORT}
Share=edge
ConnectionID=registered
{match}
""")
    daemon = start_daemon("--config", configuration.directory)
    servers = {service: Servers(daemon, place, service) for service in ("api", "rest")}
    try:
        for service, each in servers.items():
            each.start(f"{service}@1")
        for i in range(10):
            session = [f"--session-file={tmp_path}/session{i}", f"--tp-file={tmp_path}/parameters{i}"]
            for _ in range(2):
                done = harness.run(hosts.GTLSCLIENT, "--no-quic-dump", "--exit-on-all-streams-close", "--timeout=10s",
                                   *session, "127.0.0.1", PORT, f"https://localhost:{PORT}/")
                assert ":status: 200" in done.stdout + done.stderr, done.stderr
        said = servers["api"].running["api@1"].output().split("\n")
        assert [line.strip() for line in said if line] == ["ready"] + ["new", "resumed early"] * 10
        figures = {service: daemon.status(service)["listeners"][0] for service in servers}
        assert (figures["api"]["new_connections"], figures["rest"]["packets"]) == (20, 0)
        assert daemon.status()["shares"][0]["classifier"]["by_name"] == 20
    finally:
        for each in servers.values():
            each.kill()


def test_one_that_crashes_again_and_again_is_nothing_to_the_other(shared, place):
    """
    The API's server is killed twenty times, its clients try all the time; every figure of the shop is
    that of its own clients, of which none loses anything.
    """
    shared.shop.start("shop@1")
    shared.start_api("api@1")
    client = hosts.H3Client(place, "steady", PORT, 8, ["--server-name", SHOP, "--pause", 0.1])
    new = hosts.curl(PORT, "/", 9, name=SHOP)
    try:
        client.wait_for("handshakes", 8, "it has begun")
        for _ in range(20):
            attempt = quic_programs.QuicClient(ADDRESS, "--server-name", API, "--connections", 5, "--script",
                                               "request:*", timeout=3)
            shared.servers["api@1"].wait_event("ready")
            shared.servers["api@1"].kill()
            client.wait_for_more("answered", 10, "the shop goes on")
            attempt.cleanup()
            shared.start_api("api@1")
        counts = {"steady": client.finish(), "curl": new.finish()}
    finally:
        client.kill()
        new.kill()
    after = shared.figures("shop")
    said = counts["steady"].pop("losses") + new.lost
    hosts.report("nginx beside a server that crashed 20 times", counts, said)
    hosts.check_nothing_lost(counts, said)
    assert after["new_connections"] == 8 + counts["curl"]["answered"]
    for figure in ("fallback", "standby", "stray", "dropped", "invalid", "migrated"):
        assert after[figure] == 0, figure
    quic_programs.check(api_client("--connections", 10), connections=10, answered=10)
