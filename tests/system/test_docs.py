# SPDX-License-Identifier: BSD-2-Clause
"""
The commands that README.md and docs/ show, run as they stand: each page on a Debian 12 of its own, under
systemd, with the daemon and the servers that it speaks of. docs_page.py says how a page marks them.
"""
import os
import pathlib
import shutil
import signal
import subprocess

import pytest

import docs_page
import harness
import systemd_host

PAGES = [harness.ROOT / "README.md", *sorted((harness.ROOT / "docs").glob("*.md")),
         *sorted((harness.ROOT / "docs").glob("howto/*.md"))]
PAGE_SECONDS = 300 * harness.PATIENCE
LIBRARIES = ("libbpf1", "libinih1", "libjansson4", "libmnl0", "libcap2", "libssl3", "libseccomp2",
             "libsystemd0")


def blocks_of(page):
    return docs_page.read(page)


def is_command(block):
    return block.info in docs_page.COMMANDS


def is_run(block):
    return is_command(block) and not block.directive.startswith("not run:")


def name(page):
    return str(page.relative_to(harness.ROOT))


def test_each_block_says_what_it_is():
    wrong = [sentence for page in PAGES for sentence in docs_page.check_kinds(blocks_of(page))]
    assert wrong == []


@pytest.mark.parametrize("printed, shown, exact, wanted", [
    ("a  1\nb 2\n", "a 7\nb 3\n", False, True),
    ("a 1\n", "a 0\n", False, False),
    ("a 0\n", "a 3\n", False, False),
    ("a 1\n", "a 7\n", True, False),
    ("a 1\nb\nc\n", "a 1\n...\nc\n", True, True),
    ("a 1\nc\n", "a 1\n...\nc\n", True, True),
    ("a 1\nb\n", "a 1\n", True, False),
    ("web@1 up\n", "web@2 up\n", False, False),
    ("pid 12 of x\n", "pid ... of x\n", True, True),
    ("127.0.0.1:80\n", "127.0.0.1:81\n", False, False),
])
def test_what_is_shown_is_what_was_printed(printed, shown, exact, wanted):
    assert docs_page.is_shown(printed, shown, exact) is wanted


class DocumentationMachine(systemd_host.Machine):
    """Debian 12 with what is built here installed, and the servers of the documentation."""

    TREE = "debian-{}"

    def __init__(self):
        self.running = []
        super().__init__("bookworm")
        self.run("apt-get", "--quiet", "--yes", "--no-install-recommends", "install", *LIBRARIES, timeout=120)
        self.run("systemd-sysusers")
        self.write("/var/www/html/index.html", "a page\n")

    def install(self):
        super().install()
        # Where pages of the documentation refer to the tree, and what meson builds but does not install.
        examples = harness.BUILD / "examples"
        place = self.destination / "usr" / "bin"
        for program in ("quic-server", "quic-client"):
            if (examples / program).exists():
                shutil.copy(examples / program, place)

    def shell(self, script, status=0):
        """What a script prints, both outputs together."""
        command = self.command("sh", "-c", "set -e; cd /root; exec 2>&1\n" + docs_page.without_sudo(script))
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
                              errors="replace", timeout=120 * harness.PATIENCE, check=False)
        assert done.returncode == status, f"status {done.returncode}, not {status}:\n{script}\n{done.stdout}"
        return done.stdout

    def start(self, script):
        log = self.directory / f"background-{len(self.running)}"
        process = harness.Process(
            self.command("sh", "-c", "cd /root; " + docs_page.without_sudo(script)), log)
        self.running.append(process)
        return process

    def compile(self, source, path):
        """A C program with the library, as the README says; on the machine that runs the tests."""
        text = self.directory / "program.c"
        text.write_text(source)
        program = self.directory / "program"
        harness.run("cc", "-Wall", "-Wextra", "-Wno-unused-parameter", "-D_GNU_SOURCE",
                    f"-I{harness.ROOT / 'client-lib'}", "-o", program, text,
                    f"-L{harness.BUILD / 'client-lib'}", "-lreuseport")
        self.run("dd", "status=none", f"of={path}", input=program.read_bytes(), text=False)
        self.run("chmod", "755", path)

    def stop(self):
        for process in self.running:
            print(f"--- in the background:\n{process.output()}")
        super().stop()
        for process in self.running:
            process.stop()


@pytest.fixture
def machine(system):
    signal.alarm(PAGE_SECONDS)
    try:
        made = DocumentationMachine()
    except systemd_host.CannotBoot as error:
        pytest.skip(f"no systemd as PID 1 here: {error}")
    yield made
    made.stop()


def run_block(machine, block):
    kind, _, argument = block.directive.partition(" ")
    if block.info == "setup":
        machine.shell(block.text)
    elif kind == "file":
        machine.write(argument, block.text)
    elif kind == "program":
        machine.compile(block.text, argument)
    elif kind == "background":
        process = machine.start(block.text)

        def up():
            assert process.returncode is None, f"it ended with {process.returncode}:\n{process.output()}"
            return machine.run("sh", "-c", argument.removeprefix("until "), check=False).returncode == 0
        harness.poll_until(up, argument, interval=0.1)
    elif block.info == "sh":
        machine.shell(block.text, int(argument) if kind == "fails" else 0)
    elif block.info == "console":
        for command, shown in docs_page.console(block.text):
            printed = machine.shell(command, int(argument) if kind == "fails" else 0)
            assert docs_page.is_shown(printed, shown, kind == "exact"), \
                f"$ {command}\n{printed}--- but the page shows:\n{shown}"
    else:
        return False
    return True


@pytest.mark.parametrize("page", [page for page in PAGES if any(map(is_run, blocks_of(page)))],
                         ids=name)
def test_commands_of_the_page(page, machine):
    count = 0
    for block in blocks_of(page):
        if block.directive.startswith("not run:"):
            continue
        try:
            count += run_block(machine, block) and is_command(block)
        except (AssertionError, subprocess.SubprocessError) as error:
            raise AssertionError(f"{block.place}: {error}\n\njournal:\n" + machine.run(
                "journalctl", "--no-pager", "--lines=40", check=False).stdout) from error
    assert count == len(list(filter(is_run, blocks_of(page)))) > 0
    print(f"{name(page)}: {count} blocks of commands were run")


NOT_RUN = [block for page in PAGES for block in blocks_of(page)
           if is_command(block) and block.directive.startswith("not run:")]


@pytest.mark.parametrize("block", NOT_RUN, ids=lambda block: f"{block.place} {block.directive}")
def test_commands_that_are_not_run_exist_with_their_options(block):
    """In sight: the name of each of these tests has the reason."""
    text = block.text if block.info == "sh" else \
        "\n".join(command for command, _ in docs_page.console(block.text))
    programs = list(docs_page.programs(text))
    assert programs
    for program, sub_command, options in programs:
        if program in ("cd", "exec", "export", "set", "trap"):
            continue
        built = {path.name: path for path in (harness.REUSEPORTD, harness.REUSEPORTCTL,
                                              harness.REUSEPORT_RUN)}.get(program)
        path = built or (harness.ROOT / program if program.startswith("./") else shutil.which(program))
        assert path and os.access(path, os.X_OK), f"{block.place}: there is no program {program}"
        if not options:
            continue
        if pathlib.Path(path).is_relative_to(harness.ROOT / "scripts"):
            said = "".join(p.read_text() for p in (harness.ROOT / "scripts").iterdir() if p.is_file()) + \
                "".join(p.read_text() for p in (harness.ROOT / "tests" / "bench").glob("*.py"))
        else:
            done = subprocess.run([str(path), *sub_command, "--help"], stdin=subprocess.DEVNULL,
                                  capture_output=True, text=True, timeout=60, check=False)
            said = done.stdout + done.stderr
        for option in options:
            assert option in said, f"{block.place}: {program} has no {option}"
