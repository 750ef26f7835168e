# SPDX-License-Identifier: BSD-2-Clause
"""
Real QUIC servers and clients that Debian 12 does not have: programs of the tree that
scripts/test-host makes, run by chroot(8) in the namespace of the calling thread. Nothing is
mounted, so this works wherever root may call chroot(), in a plain chroot as well.
"""
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import threading

import harness

HOSTS = pathlib.Path(os.environ.get("REUSEPORT_TEST_HOSTS", "/var/cache/reuseportd-tests"))
TREE = HOSTS / "trixie"
SYSTEM_TESTS = pathlib.Path(__file__).resolve().parent
NOBODY = 65534
GTLSCLIENT = "gtlsclient"
DEADLINE = 90 * harness.PATIENCE  # seconds; of dozens of programs that share the machine's processors

# Of an nginx that serves HTTP/3, within http {}: {inside} is its own directory, {place} the test's.
NGINX_QUIC_HTTP = """    access_log off;
    keepalive_timeout 60;
    keepalive_requests 1000000;
    client_body_temp_path {inside}/body;
    proxy_temp_path {inside}/proxy;
    fastcgi_temp_path {inside}/fastcgi;
    uwsgi_temp_path {inside}/uwsgi;
    scgi_temp_path {inside}/scgi;
    ssl_certificate {place}/cert.pem;
    ssl_certificate_key {place}/key.pem;
    quic_host_key {place}/host.key;
    quic_active_connection_id_limit 8;
"""


def missing(name="trixie"):
    """Why the tree can't be used, or None; makes it first when it is not there."""
    made = subprocess.run([str(harness.ROOT / "scripts" / "test-host"), name], capture_output=True,
                          text=True, stdin=subprocess.DEVNULL, timeout=900, check=False)
    if made.returncode:
        return f"no tree {name}: {made.stderr.strip()[-400:]}"
    return None


class Place:
    """A directory that the tree's programs see, for the files of one test."""

    def __init__(self):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="test-", dir=TREE / "srv"))
        self.directory.chmod(0o755)

    def inside(self, path=""):
        """A path below the directory as the tree's programs name it."""
        return "/" + str((self.directory / path).relative_to(TREE))

    def make(self, name, owner=NOBODY):
        path = self.directory / name
        path.mkdir()
        shutil.chown(path, owner, owner)
        return path

    def write(self, name, text, mode=0o644):
        path = self.directory / name
        if isinstance(text, bytes):
            path.write_bytes(text)
        else:
            path.write_text(text)
        path.chmod(mode)
        return path

    def certificate(self):
        """Writes cert.pem and key.pem for localhost."""
        harness.run(*command("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
                             "ec_paramgen_curve:P-256", "-nodes", "-days", "30",
                             "-subj", "/CN=localhost", "-addext",
                             "subjectAltName=DNS:localhost,IP:127.0.0.1",
                             "-keyout", self.inside("key.pem"), "-out", self.inside("cert.pem"),
                             user=0))
        (self.directory / "key.pem").chmod(0o644)

    def remove(self):
        shutil.rmtree(self.directory, ignore_errors=True)


def command(*arguments, user=NOBODY):
    """Argument vector that runs a program of the tree."""
    return ["chroot", f"--userspec={user}:{user}", "--groups=", str(TREE), *map(str, arguments)]


class H3Client:
    """h3_client.py, running; what it counted so far is in counts()."""

    def __init__(self, place, name, port, connections, options=()):
        self.program = place.directory / "h3_client.py"
        if not self.program.exists():
            shutil.copy(SYSTEM_TESTS / "h3_client.py", self.program)
            self.program.chmod(0o644)
        self.connections = connections
        directory = place.make(name)
        self.report = directory / "report"
        self.process = harness.Process(
            command("python3", "-B", place.inside("h3_client.py"), "--port", port,
                    "--connections", connections, "--report", place.inside(f"{name}/report"),
                    *options), directory / "log")

    def counts(self):
        """The report of at most a quarter of a second ago; empty before the first."""
        try:
            return json.loads(self.report.read_text())
        except FileNotFoundError:
            assert self.process.returncode is None, self.process.output()
            return {}

    def count(self, key):
        return self.counts().get(key, 0)

    def wait_for(self, key, value, what):
        def reached():
            assert self.process.returncode is None, self.process.output()
            return self.count(key) >= value
        harness.poll_until(reached, what, DEADLINE, interval=0.05)

    def wait_for_more(self, key, more, what):
        self.wait_for(key, self.count(key) + more, what)

    def hold(self):
        """No client moves any more from here to release()."""
        self.report.with_suffix(".hold").touch()
        harness.poll_until(lambda: self.counts().get("held"), "nobody moves", interval=0.05)

    def release(self):
        """Waits until what has arrived was read."""
        self.wait_for_more("reports", 2, "reports")
        self.report.with_suffix(".hold").unlink()

    def finish(self):
        """What it counted, once the requests under way have ended."""
        self.process.send_signal(2)
        assert self.process.wait(DEADLINE) == 0, self.process.output()
        counts = self.counts()
        for key in ("open", "reports", "held"):
            counts.pop(key)
        return counts

    def kill(self):
        self.process.stop(9)


class Repeated(threading.Thread):
    """
    A client program that makes one connection, run again and again, until finish().
    judge(completed process) says whether its request was answered.
    """

    def __init__(self, arguments, judge):
        super().__init__()
        self.arguments = [str(a) for a in arguments]
        self.judge = judge
        self.ending = threading.Event()
        self.answered = 0
        self.lost = []  # what the program said each time
        self.start()

    def run(self):
        while not self.ending.is_set():
            try:
                done = subprocess.run(self.arguments, stdin=subprocess.DEVNULL, capture_output=True,
                                      text=True, errors="replace", timeout=60, check=False)
            except subprocess.TimeoutExpired:
                self.lost.append("not within 60 s")
                continue
            if self.judge(done):
                self.answered += 1
            else:
                self.lost.append(f"status {done.returncode}\n{done.stdout[-1500:]}\n"
                                 f"{done.stderr[-1500:]}")

    def kill(self):
        self.finish()

    def finish(self):
        self.ending.set()
        self.join()
        return {"answered": self.answered, "lost": len(self.lost)}


def curl(port, path, octets, http="--http3-only", name=None):
    """
    curl, by default over HTTP/3 alone, a new connection each time; answered: status 200, all of
    the body. name: asked for, instead of the address. With its own first choice of key exchange, which takes two Initial datagrams, 2 of
    1000 requests to nginx 1.26 alone are never answered, with this one none.
    """
    by_name = ["--resolve", f"{name}:{port}:127.0.0.1"] if name else []
    return Repeated(
        command("curl", *by_name, "--silent", "--show-error", "--insecure", http, "--max-time", 8,
                "--curves", "X25519",
                "--output", "/dev/null", "--write-out", "%{http_code} %{size_download}",
                f"https://{name or '127.0.0.1'}:{port}{path}"),
        lambda done: done.returncode == 0 and done.stdout == f"200 {octets}")


def gtlsclient(port, path, nat_rebinding, move_msec=200, delay_msec=600):
    """
    ngtcp2's client, which changes its port in the middle of the connection: with nat_rebinding
    unawares, as behind a NAT, and without by a migration to a new connection ID. It makes one
    request after that, and ends with status 0 even when that is not answered.
    """
    arguments = [GTLSCLIENT, "--no-quic-dump", "--no-http-dump", "--exit-on-all-streams-close",
                 f"--change-local-addr={move_msec}ms", f"--delay-stream={delay_msec}ms",
                 "--timeout=5s"]
    if nat_rebinding:
        arguments.append("--nat-rebinding")
    arguments += ["127.0.0.1", port, f"https://localhost:{port}{path}"]
    return Repeated(arguments, lambda done: re.search(r":status: 200\b", done.stdout + done.stderr))


def report(title, counts, said):
    """What a person is to read in the log; counts: {client: counts}."""
    print(f"\n=== {title}")
    for name, each in counts.items():
        print(f"{name:20}", json.dumps(each))
    keys = ("connections", "connections_lost", "resets", "failed", "retried", "rebound", "migrated",
            "rotated")
    print("total", json.dumps({
        "answered": sum(c["answered"] for c in counts.values()),
        "requests_lost": sum(c.get("requests_lost", c.get("lost", 0)) for c in counts.values()),
        **{key: sum(c.get(key, 0) for c in counts.values()) for key in keys}}))
    for loss in said[:60]:
        print("  ", loss)


def check_accounts(counts):
    """Each request and connection of h3_client.py has come to one end that is known."""
    for name, each in counts.items():
        if "requests" in each:
            assert each["requests"] == each["answered"] + each["requests_lost"], name
            assert each["connections"] == \
                each["closed"] + each["connections_lost"] + each["failed"], name


def check_nothing_lost(counts, said):
    check_accounts(counts)
    for name, each in counts.items():
        lost = {key: each[key] for key in ("lost", "requests_lost", "connections_lost", "resets",
                                           "failed") if key in each}
        assert lost == dict.fromkeys(lost, 0), (name, said)


class Instances:
    """Servers behind a service of a daemon, by reuseport-run, each replaced by its name."""

    def __init__(self, daemon, place, make_command, options, service="web", user=None):
        self.service = service
        self.user = user  # whose processes these are; None: root's
        self.daemon = daemon
        self.place = place
        self.make_command = make_command  # directory's name in the place -> arguments
        self.options = options            # of reuseport-run
        self.n_active = 1                 # slots that each of them has
        self.count = 0
        self.running = {}
        self.processes = []

    def start(self, name):
        """Starts a server as this instance; the instance's process before, if any."""
        self.count += 1
        directory = f"server-{self.count}"
        self.place.make(directory, self.user or NOBODY)
        process = harness.Process(
            [harness.REUSEPORT_RUN, "--socket", self.daemon.worker_socket, "--service", self.service,
             "--instance", name, *self.options, "--", *self.make_command(directory)],
            self.place.directory / directory / "log", user=self.user, group=self.user,
            extra_groups=None if self.user is None else [])
        before = self.running.get(name)
        self.running[name] = process
        self.processes.append(process)

        def active():
            assert process.returncode is None, process.output()
            old = self.daemon.status_worker(before.slot, self.service) if before else None
            return self.states(name).count("active") == self.n_active and \
                (old is None or old["state"] == "draining")
        harness.poll_until(active, f"{name} is active")
        process.slot = next(w["slot"] for w in self.daemon.status(self.service)["workers"]
                            if w["instance"] == name and w["state"] == "active")
        return before

    def states(self, name):
        return [w["state"] for w in self.daemon.status(self.service)["workers"]
                if w["instance"] == name]

    def retire(self, name):
        """Drains the instance without another in its place."""
        process = self.running.pop(name)
        self.daemon.call("Drain", service=self.service, instance=name)
        return process

    def stop(self, number=signal.SIGTERM):
        for process in self.processes:
            process.stop(number)
