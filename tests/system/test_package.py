# SPDX-License-Identifier: BSD-2-Clause
"""
The Debian packages on a Debian 12 as anybody would install it, under its own systemd: built by
scripts/package as a person would, installed by apt without a network, upgraded under load, removed and
purged.
"""
import json
import os
import re
import shutil
import signal
import subprocess

import pytest

import harness
import systemd_host
from systemd_host import EXAMPLES, UNITS

BUILD_SECONDS = 900 * harness.PATIENCE
MACHINE_SECONDS = 300 * harness.PATIENCE
SERVICE = "reuseportd.service"
SOCKETS = ("reuseportd-control.socket", "reuseportd-worker.socket")
PACKAGES = ("libreuseport-dev", "libreuseport0", "reuseportd")
WEB = "[Service]\nAllowUser=www-data\n[Listener http]\nListenStream=0.0.0.0:80\n"


def version():
    return re.search(r"version: '([\d.]+)'", (harness.ROOT / "meson.build").read_text()).group(1)


@pytest.fixture(scope="module")
def built(system, tmp_path_factory):
    """The directory that scripts/package has put the packages into."""
    if not shutil.which("apt-get"):
        pytest.skip("packages are for Debian, and there is no apt-get here")
    directory = tmp_path_factory.mktemp("packages")
    # What meson test and the tests of this directory are told is not for the tests of the build.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("REUSEPORT_", "DEB_"))}
    done = subprocess.run([str(harness.ROOT / "scripts" / "package"), str(directory)], env=environment,
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=BUILD_SECONDS,
                          check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return directory


def package(directory, name):
    return directory / f"{name}_{version()}_{harness.run('dpkg', '--print-architecture').stdout.strip()}.deb"


def contents(path):
    """Files and links of a package."""
    lines = harness.run("dpkg-deb", "--contents", path).stdout.splitlines()
    return [line.split(None, 5)[5].removeprefix("./").split(" -> ")[0] for line in lines
            if not line.startswith("d")]


def test_version_of_packages_is_that_of_the_build():
    changelog = (harness.ROOT / "debian" / "changelog").read_text()
    assert changelog.startswith(f"reuseportd ({version()}) ")


def test_symbols_are_those_of_the_version_map():
    exported = re.findall(r"^\t(reuseport_\w+);$",
                          (harness.ROOT / "client-lib" / "libreuseport.map").read_text(), re.MULTILINE)
    symbols = re.findall(r"^ (reuseport_\w+)@LIBREUSEPORT_0 ",
                         (harness.ROOT / "debian" / "libreuseport0.symbols").read_text(), re.MULTILINE)
    assert len(exported) > 25
    assert sorted(exported) == sorted(symbols)


def test_build_ran_the_unit_tests_and_lintian_has_nothing_to_say(built):
    log = (built / "build.log").read_text()
    programs = re.findall(r"^ *\d+/\d+ \S+ +OK ", log, re.MULTILINE)
    unit_tests = len(list((harness.ROOT / "tests" / "unit").glob("test-*.c")))
    assert len(programs) >= unit_tests
    assert re.findall(r"^Fail: +(\d+)", log, re.MULTILINE) == ["0"]
    # scripts/package fails for errors and warnings. Overrides would hide them.
    assert not list((harness.ROOT / "debian").glob("*lintian-overrides"))


def test_nocheck_builds_no_tests():
    rules = harness.ROOT / "debian" / "rules"
    for options, wanted in ("nocheck parallel=1", "-Dtests=false"), ("parallel=1", "-Dtests=true"):
        said = harness.run("make", "--dry-run", "--file", rules, "override_dh_auto_configure",
                           cwd=harness.ROOT, env={**os.environ, "DEB_BUILD_OPTIONS": options}).stdout
        assert re.findall(r"-Dtests=\w+", said) == [wanted]


def test_packages_have_their_parts_and_nothing_else(built):
    daemon, library, development = (contents(package(built, name)) for name in
                                    ("reuseportd", "libreuseport0", "libreuseport-dev"))
    for path in ("usr/sbin/reuseportd", "usr/bin/reuseportctl", "usr/bin/reuseport-run",
                 "etc/reuseportd/reuseportd.conf", "usr/lib/sysusers.d/reuseportd.conf",
                 "usr/lib/systemd/catalog/reuseportd.catalog",
                 "usr/share/varlink/io.reuseport.Control.varlink",
                 "usr/libexec/reuseportd/reuseport-classify",
                 "usr/share/bash-completion/completions/reuseportctl"):
        assert daemon.count(path) == 1, path
    for unit in (SERVICE, *SOCKETS):
        assert len([path for path in daemon if path.endswith(f"lib/systemd/system/{unit}")]) == 1
    manual = [path.removesuffix(".gz") for path in daemon + development if path.startswith("usr/share/man/")]
    assert sorted(os.path.basename(path) for path in manual) == \
        sorted(path.name for path in (harness.ROOT / "docs" / "man").iterdir())
    assert sorted(re.sub(r"usr/lib/[^/]+/", "", path) for path in library
                  if not path.startswith("usr/share/doc/")) == \
        ["libreuseport.so.0", f"libreuseport.so.{version()}"]
    assert "usr/include/reuseport.h" in development
    # What an unprivileged user could take over by writing is nobody's but root's.
    owners = harness.run("dpkg-deb", "--contents", package(built, "reuseportd")).stdout
    assert set(re.findall(r"^\S+ (\S+)", owners, re.MULTILINE)) == {"root/root"}


class PackageMachine(systemd_host.Machine):
    """A fresh Debian 12 with the packages in /root/packages, and the same as a later version."""

    TREE = "debian-{}"

    def __init__(self, suite, built):
        self.built = built
        super().__init__(suite)

    def install(self):
        self.destination = self.directory / "destination"
        place = self.destination / "root" / "packages"
        place.mkdir(parents=True)
        (self.destination / "root").chmod(0o700)
        for name in PACKAGES:
            shutil.copy(package(self.built, name), place / f"{name}.deb")
        for name in "reuseportd", "libreuseport0":
            tree = self.directory / name
            harness.run("dpkg-deb", "--raw-extract", package(self.built, name), tree)
            control = tree / "DEBIAN" / "control"
            control.write_text(re.sub(r"^(Version: .*)$", r"\1+later", control.read_text(),
                                      flags=re.MULTILINE))
            harness.run("dpkg-deb", "--root-owner-group", "--build", tree, place / f"{name}-later.deb")
            shutil.rmtree(tree)

    def apt(self, *arguments):
        return self.run("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "--quiet", "--yes",
                        "--no-install-recommends", *arguments, timeout=harness.DEADLINE * 6).stdout

    def installed(self, name):
        """Version, None when it is not installed."""
        said = self.run("dpkg-query", "--show", "--showformat=${Version} ${db:Status-Status}", name,
                        check=False).stdout.split()
        return said[0] if said[1:] == ["installed"] else None


@pytest.fixture
def fresh(built):
    signal.alarm(MACHINE_SECONDS)
    try:
        machine = PackageMachine("bookworm", built)
    except systemd_host.CannotBoot as error:
        pytest.skip(f"no systemd as PID 1 here: {error}")
    yield machine
    machine.stop()


def status(machine):
    return json.loads(machine.output("reuseportctl", "status", "--json=short"))


def workers(machine):
    return [(w["instance"], w["pid"], w["state"], w["connected"])
            for w in status(machine)["services"][0]["workers"]]


def install(machine):
    machine.apt("install", *(f"/root/packages/{name}.deb" for name in ("reuseportd", "libreuseport0")))


def files(machine):
    """Everything outside of what the kernel, dpkg, apt and the journal keep."""
    return set(machine.output(
        "find", "/", "-xdev", "(", "-path", "/proc", "-o", "-path", "/sys", "-o", "-path", "/dev", "-o",
        "-path", "/tmp", "-o", "-path", "/var/lib/dpkg", "-o", "-path", "/var/lib/apt", "-o",
        "-path", "/var/cache", "-o", "-path", "/var/log", "-o", "-path", "/run/systemd", "-o",
        "-path", "/run/credentials", "-o", "-path", "/var/tmp", "-o",
        "-path", "/var/lib/systemd/catalog", ")", "-prune", "-o", "-print").splitlines()) | set(
        machine.output("find", "/run", "-path", "/run/systemd", "-prune", "-o", "-print").splitlines())


def test_installed_on_a_fresh_debian_it_serves_is_upgraded_and_purged(fresh, tmp_path):
    before = files(fresh)
    install(fresh)
    assert fresh.installed("reuseportd") == version()

    # It runs, as its user, answers, and does nothing to anybody: no service, no port.
    for unit in (SERVICE, *SOCKETS):
        assert fresh.show(unit, "ActiveState") == "active", unit
        assert fresh.output("systemctl", "is-enabled", unit) == "enabled"
    assert fresh.show("reuseportd-metrics.timer", "ActiveState") == "inactive"
    assert fresh.show(SERVICE, "StatusText") == "Running"
    assert status(fresh)["services"] == []
    assert fresh.output("ss", "-Hltun") == ""
    assert fresh.output("stat", "--format=%U", f"/proc/{fresh.show(SERVICE, 'MainPID')}") == "reuseport"
    assert fresh.run("reuseportd", "--check", check=False).returncode == 0
    assert fresh.run("dpkg", "--verify", "reuseportd", "libreuseport0").stdout == ""

    # A service and two servers behind it, as the README says.
    fresh.write("/etc/reuseportd/services.d/web.conf", WEB)
    fresh.run("systemctl", "reload", SERVICE)
    fresh.run("cp", f"{EXAMPLES}/reuseport-example@.service", f"{UNITS}/")
    fresh.run("cp", f"{EXAMPLES}/reuseport-example.conf", "/etc/nginx/")
    fresh.write("/var/www/html/index.html", "a page\n")
    fresh.run("systemctl", "daemon-reload")
    fresh.run("systemctl", "start", "reuseport-example@1", "reuseport-example@2")
    running = workers(fresh)
    assert [(w[0], w[2:]) for w in running] == [("web@1", ("active", True)), ("web@2", ("active", True))]

    # Upgraded under load: the daemon is another process, its workers and sockets are not.
    daemon = fresh.show(SERVICE, "MainPID")
    sockets = [fresh.output("stat", "--format=%i", f"/run/reuseportd/{name}.sock")
               for name in ("worker", "control")]
    load = harness.Process(
        fresh.command("wrk", "--threads=1", "--connections=10", "--duration=60s", "--timeout=20s",
                      "--header=Connection: close", "http://127.0.0.1:80/"), tmp_path / "wrk")
    harness.poll_until(lambda: fresh.output("ss", "-Htn", "sport", "=", ":80"), "connections")
    fresh.apt("install", "/root/packages/reuseportd-later.deb", "/root/packages/libreuseport0-later.deb")
    assert fresh.installed("reuseportd") == version() + "+later"
    assert fresh.show(SERVICE, "ActiveState") == "active" and fresh.show(SERVICE, "MainPID") != daemon
    assert workers(fresh) == running
    assert [fresh.output("stat", "--format=%i", f"/run/reuseportd/{name}.sock")
            for name in ("worker", "control")] == sockets
    fresh.run("pkill", "-INT", "-x", "wrk")
    assert load.wait() == 0
    said = load.output()
    assert int(re.search(r"(\d+) requests in", said).group(1)) > 100
    assert "Socket errors" not in said and "Non-2xx" not in said, said

    # Removed: the servers go on, nothing else of it runs, and what was configured is still there.
    fresh.apt("remove", "reuseportd")
    assert fresh.run("curl", "--silent", "--fail", "--output", "/dev/null", "http://127.0.0.1/").returncode \
        == 0
    assert fresh.run("pgrep", "-x", "reuseportd", check=False).returncode == 1
    fresh.run("systemctl", "stop", "reuseport-example@1", "reuseport-example@2")
    assert "web.conf" in fresh.output("ls", "/etc/reuseportd/services.d")

    # Purged: nothing is left but what others brought, and the user (debian/reuseportd.postrm says why).
    fresh.apt("purge", "--autoremove", "reuseportd", "libreuseport0")
    fresh.remove("/etc/reuseportd/services.d/web.conf", f"{UNITS}/reuseport-example@.service",
                 "/etc/nginx/reuseport-example.conf", "/run/reuseport-example")
    fresh.run("rmdir", "--ignore-fail-on-non-empty", "/etc/reuseportd/services.d", "/etc/reuseportd",
              check=False)
    left = {path for path in files(fresh) - before if "reuseport" in path}
    assert left == set()
    assert fresh.output("getent", "passwd", "reuseport").endswith(":/nonexistent:/usr/sbin/nologin")


def test_installing_again_after_a_purge_and_with_a_mistake_in_the_configuration(fresh):
    install(fresh)
    fresh.apt("purge", "reuseportd")
    install(fresh)
    assert status(fresh)["services"] == []

    # A mistake does not keep the package from being upgraded, nor a daemon that runs from running.
    fresh.write("/etc/reuseportd/services.d/web.conf", WEB)
    fresh.run("systemctl", "reload", SERVICE)
    fresh.write("/etc/reuseportd/services.d/web.conf", WEB + "Unknown=1\n")
    fresh.apt("install", "/root/packages/reuseportd-later.deb", "/root/packages/libreuseport0-later.deb")
    assert fresh.installed("reuseportd") == version() + "+later"
    assert fresh.show(SERVICE, "ActiveState") == "active"
    assert [s["name"] for s in status(fresh)["services"]] == ["web"]
    assert fresh.show(SERVICE, "StatusText") == "Running; the configuration was refused"
