# SPDX-License-Identifier: BSD-2-Clause
"""
A machine with its own systemd as PID 1: a tree of scripts/test-host with what "meson install" puts into
it, booted by systemd-nspawn with a network of its own. Everything it writes is in memory and goes with
it: the mounts are in a mount namespace that ends with PID 1.
"""
import json
import os
import pathlib
import shutil
import tempfile

import harness
import hosts

UNITS = "/etc/systemd/system"
EXAMPLES = "/usr/share/doc/reuseportd/examples"
BOOT_SECONDS = 60

# A pure cgroup2 where the machine has the old hierarchies: systemd 257 wants nothing else.
BOOT = """
set -e
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=$2:$3,upperdir=$1/upper,workdir=$1/work" "$1/root"
SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 exec systemd-nspawn --quiet --register=no --keep-unit --boot \\
	--directory="$1/root" --console=pipe --private-network --capability=all \\
	--system-call-filter="bpf pidfd_getfd" \\
	-- --unit=basic.target
"""


class CannotBoot(Exception):
    pass


class Machine:
    """The tree "bookworm" (systemd 252) or "trixie" (257), running when this returns."""

    TREE = "systemd-{}"  # of scripts/test-host

    def __init__(self, suite):
        self.name = self.TREE.format(suite)
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix=f"reuseportd-{suite}-"))
        self.process = None
        self.pid = None
        try:
            self.make_tree()
            self.install()
            self.boot()
        except BaseException:
            self.stop()
            raise

    def make_tree(self):
        why = hosts.missing(self.name)
        if why:
            raise CannotBoot(why)
        if not shutil.which("systemd-nspawn"):
            raise CannotBoot("systemd-nspawn is missing (package systemd-container)")

    def install(self):
        """What a build with --prefix=/usr installs, where both suites look for it."""
        build = harness.BUILD
        prefix = [option["value"] for option in json.loads(harness.run(
            "meson", "introspect", "--buildoptions", build).stdout) if option["name"] == "prefix"]
        if prefix != ["/usr"]:
            build = self.directory / "build"
            harness.run("meson", "setup", build, harness.ROOT, "--prefix=/usr", timeout=300)
            harness.run("meson", "compile", "-C", build, timeout=900)
        self.destination = self.directory / "destination"
        harness.run("meson", "install", "-C", build, "--no-rebuild", "--destdir", self.destination,
                    timeout=300)
        # A directory here would hide the link /lib.
        library = self.destination / "lib"
        if library.is_dir():
            shutil.copytree(library, self.destination / "usr" / "lib", dirs_exist_ok=True)
            shutil.rmtree(library)

    def boot(self):
        mounts = self.directory / "machine"
        mounts.mkdir()
        self.log = self.directory / "console"
        self.process = harness.Process(
            ["unshare", "--mount", "sh", "-c", BOOT, "boot", mounts, self.destination,
             hosts.HOSTS / self.name], self.log)
        try:
            self.pid = harness.poll_until(self.find_init, "PID 1", BOOT_SECONDS, 0.05)
            harness.poll_until(self.is_up, "systemd is up", BOOT_SECONDS, 0.1)
        except AssertionError as error:
            raise CannotBoot(f"{error}; {self.process.output().strip()[-400:]}") from error

    def find_init(self):
        """systemd-nspawn's child, once it is systemd."""
        assert self.process.returncode is None, f"systemd-nspawn ended with {self.process.returncode}"
        try:
            children = pathlib.Path(
                f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
            for child in children:
                if pathlib.Path(f"/proc/{child}/comm").read_text() == "systemd\n":
                    return int(child)
        except FileNotFoundError:
            pass
        return None

    def is_up(self):
        assert self.process.returncode is None, f"systemd-nspawn ended with {self.process.returncode}"
        state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
        return state in ("running", "degraded")

    def command(self, *arguments):
        """Argument vector of a program inside, as root."""
        return ["nsenter", f"--target={self.pid}", "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup",
                "--root", "--wd", "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8",
                "SYSTEMD_PAGER=", "SYSTEMD_COLORS=0", *map(str, arguments)]

    def run(self, *arguments, **options):
        return harness.run(*self.command(*arguments), **options)

    def output(self, *arguments):
        return self.run(*arguments).stdout.strip()

    def write(self, path, text):
        self.run("mkdir", "-p", pathlib.PurePath(path).parent)
        self.run("dd", "status=none", f"of={path}", input=text)

    def remove(self, *paths):
        self.run("rm", "-rf", *paths)

    def show(self, unit, name):
        return self.output("systemctl", "show", "--value", f"--property={name}", unit)

    def journal(self, *arguments):
        """Entries as objects, oldest first."""
        self.run("journalctl", "--sync")
        lines = self.run("journalctl", "--output=json", "--all", "--no-pager", "--quiet", *arguments).stdout
        return [json.loads(line) for line in lines.splitlines()]

    def stop(self):
        if self.process:
            if self.pid and self.process.returncode is None:
                # Without its PID 1 there is nothing left of a PID namespace (pid_namespaces(7)).
                os.kill(self.pid, 9)
            self.process.stop()
        shutil.rmtree(self.directory, ignore_errors=True)
