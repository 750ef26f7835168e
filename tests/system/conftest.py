# SPDX-License-Identifier: BSD-2-Clause
"""Fixtures of the system tests: see harness.py for what they are made of."""
import contextlib
import fcntl
import os
import pathlib
import pwd
import resource
import shutil
import signal
import subprocess
import tempfile

import pytest

import harness
import hosts
import store
from classifier_process import Classifier, ClientSide
from quic_plane import Plane

TEST_SECONDS = 150 * harness.PATIENCE


@pytest.fixture(autouse=True, scope="session")
def many_descriptors():
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if os.geteuid() == 0:
        resource.setrlimit(resource.RLIMIT_NOFILE, (20000, max(hard, 20000)))


@pytest.fixture(autouse=True, scope="session")
def orphans():
    harness.adopt_orphans()
    yield
    harness.reap_keepers()


@pytest.fixture(autouse=True)
def time_limit():
    """A test that hangs fails, by itself, and the others still run."""
    def expired(*_):
        raise TimeoutError(f"the test did not end within {TEST_SECONDS} s")

    before = signal.signal(signal.SIGALRM, expired)
    signal.alarm(TEST_SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session")
def system():
    """Root, the built daemon, and its user; without them nothing here can run."""
    if os.geteuid() != 0:
        pytest.skip("needs root: network namespaces, BPF, users")
    if not harness.REUSEPORTD.exists():
        pytest.skip(f"{harness.REUSEPORTD} is not built (REUSEPORT_BUILD names the build directory)")
    with open(__file__, encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # with those that run the tests of other files
        try:
            pwd.getpwnam(harness.USER)
        except KeyError:
            harness.run("useradd", "--system", "--no-create-home", "--home-dir", "/nonexistent",
                        "--shell", "/usr/sbin/nologin", harness.USER)


@pytest.fixture
def netns(system):
    with harness.NetworkNamespace() as namespace:
        yield namespace


@pytest.fixture
def start_daemon(netns):
    """
    Starts a daemon with these arguments. Each must still run when the test ends and then stop
    with status 0, unless the test stopped it itself.
    """
    daemons = []

    def start(*arguments, **options):
        daemon = harness.Daemon(arguments, **options)
        daemons.append(daemon)
        return daemon

    yield start
    try:
        for daemon in daemons:
            if daemon.process.returncode is None:
                status = daemon.stop()
                assert status == 0, f"reuseportd ended with {status}"
            else:
                assert daemon.process.returncode == 0 or getattr(daemon, "killed", False), \
                    f"reuseportd ended with {daemon.process.returncode} during the test"
    finally:
        for daemon in daemons:
            daemon.cleanup()


class Configuration:
    """A configuration directory that the daemon's user may read."""

    def __init__(self):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="reuseportd-config-"))
        self.directory.chmod(0o755)
        self.write("reuseportd.conf", "[Daemon]\n")
        (self.directory / "services.d").mkdir(mode=0o755)

    def write(self, name, text):
        path = self.directory / name
        path.write_text(text)
        path.chmod(0o644)
        return path

    def service(self, name, text):
        return self.write(f"services.d/{name}.conf", text)

    def remove(self, name):
        (self.directory / name).unlink()


@pytest.fixture
def configuration():
    result = Configuration()
    yield result
    shutil.rmtree(result.directory)


@pytest.fixture(scope="session")
def tree(system):
    """Real QUIC servers and clients; see hosts.py."""
    why = hosts.missing()
    if why:
        pytest.skip(why)
    if not shutil.which(hosts.GTLSCLIENT):
        pytest.skip("needs gtlsclient (Debian 12: ngtcp2-client)")


@pytest.fixture
def place(tree):
    """A directory in the tree, with a certificate, for a test that takes its time."""
    signal.alarm(3 * TEST_SECONDS)
    result = hosts.Place()
    result.certificate()
    yield result
    result.remove()


@pytest.fixture(scope="session")
def die_at(tmp_path_factory):
    program = tmp_path_factory.mktemp("die") / "die_at"
    harness.run("cc", "-O2", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE", "-o", program,
                pathlib.Path(__file__).with_name("die_at.c"))
    return program


@pytest.fixture
def stored(netns, configuration):
    with store.started(configuration) as start:
        yield start


@pytest.fixture(scope="session")
def flood(tmp_path_factory):
    """flood(source, port, n): a context in which that many connections are open; see flood.c."""
    program = tmp_path_factory.mktemp("flood") / "flood"
    source = pathlib.Path(__file__).with_name("flood.c")
    harness.run("cc", "-O2", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE", "-o", program, source)

    @contextlib.contextmanager
    def connections(address, port, n):
        process = subprocess.Popen([str(program), address, str(port), str(n)],
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            assert process.stdout.readline() == b"open\n"
            yield
            process.stdin.close()
            assert process.wait(harness.DEADLINE) == 0
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            process.stdin.close()
            process.stdout.close()

    return connections


@pytest.fixture
def plane(start_daemon, configuration):
    """plane(mode): a daemon with a listener of that mode; see quic_plane.py."""
    planes = []

    def make(mode="quic-lb", **options):
        made = Plane(start_daemon, configuration, mode, **options)
        planes.append(made)
        return made

    yield make
    for made in planes:
        made.close()


@pytest.fixture(scope="session")
def quic_reader(tmp_path_factory):
    """quic_reader(packets, configuration): what quic_reader.c says of each, as (kind, DCID, server ID)."""
    program = tmp_path_factory.mktemp("quic") / "quic_reader"
    harness.run("cc", "-O2", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE", f"-I{harness.ROOT}",
                "-o", program, harness.ROOT / "tests" / "system" / "quic_reader.c")

    def octets(text):
        return None if text == "-" else b"" if text == "." else bytes.fromhex(text)

    def read(packets, configuration, short_length=None):
        if short_length is None:
            short_length = configuration.cid_length
        result = subprocess.run(
            [str(program), str(short_length), str(configuration.rotation),
             str(configuration.server_id_length), str(configuration.nonce_length),
             configuration.key.hex() if configuration.key else "-"],
            input=b"".join(len(p).to_bytes(2, "big") + p for p in packets),
            stdout=subprocess.PIPE, check=True, timeout=60)
        lines = [line.split() for line in result.stdout.decode().splitlines()]
        assert len(lines) == len(packets)
        return [(kind, octets(dcid), octets(server_id)) for kind, dcid, server_id in lines]

    return read


@pytest.fixture
def side(netns):
    """A network namespace for clients, and a link to it: classifier_process.py."""
    side = ClientSide()
    yield side
    side.close()


@pytest.fixture
def classifier(side, tmp_path):
    """
    Starts reuseport-classify, with the test in the daemon's place. It must end with 0 on SIGTERM,
    unless the test has seen it end.
    """
    started = []

    def start(*arguments, **options):
        started.append(Classifier(tmp_path / f"log-{len(started)}", *arguments, **options))
        return started[-1]

    yield start
    try:
        for each in started:
            if not each.ended:
                each.stop()
    finally:
        for each in started:
            each.cleanup()
