# SPDX-License-Identifier: BSD-2-Clause
"""
Completion of reuseportctl in real shells on a terminal: what they offer is what the program takes, and
what runs.
"""
import os
import re
import shlex
import shutil

import pytest

import harness
from terminal import Terminal

PORT = 8080
BASH = harness.ROOT / "shell-completion" / "bash" / "reuseportctl"
ZSH = harness.ROOT / "shell-completion" / "zsh"
BASH_COMPLETION = "/usr/share/bash-completion/bash_completion"

SERVICES = {"web", "dns"}
SLOTS_AND_INSTANCES = {"0", "1", "2", "web@1", "web@2", "dns:a"}


def commands():
    """{command: options} as the program says."""
    text = harness.run(harness.REUSEPORTCTL, "--help").stdout.split("\nWORKER")[0]
    names = set(re.findall(r"^  ([a-z][a-z-]+)\b", text, re.MULTILINE))
    assert len(names) == 17
    result = {}
    for name in names:
        text = harness.run(harness.REUSEPORTCTL, name, "--help").stdout.split("\nOptions:\n")[1]
        result[name] = set(re.findall(r"^  (?:(-\w), )?(--[\w-]+)", text, re.MULTILINE))
        result[name] = {word for pair in result[name] for word in pair if word} | {"-j"}
    return result


class Shell:
    """Inserts all completions of a text into the line, and reads the line."""

    def __init__(self, arguments, setup, keys, daemon, directory):
        environment = {"PATH": f"{harness.BUILD / 'tools'}:{os.environ['PATH']}", "PS1": "ready> ",
                       "REUSEPORT_CONTROL_SOCKET": daemon.control_socket, "HOME": str(directory)}
        self.keys = keys
        self.terminal = Terminal(arguments, 2000, 5, environment)
        self.terminal.wait_for("ready>", "the prompt")
        for line in setup:
            self.terminal.press(line + "\n")
        self.terminal.press("cd " + shlex.quote(str(directory)) + "; clear; echo set up\n")
        self.terminal.wait_for(lambda text: text.startswith("set up"), "everything is read")

    def complete(self, text):
        """The words that come in place of the last one, which may be empty."""
        *before, last = text.split(" ")
        prompt = "ready> " + "".join(word + " " for word in before)
        self.terminal.press("\x15" + text)
        self.terminal.wait_for(f"ready> {text}".rstrip(), "the text")
        self.terminal.press(self.keys)
        # The keys after it are answered when the completion is done.
        self.terminal.press("\x01:\x05.")
        self.terminal.wait_for(lambda text: re.search(r"^ready> :.*\.$", text, re.MULTILINE), "the answer")
        line = [each for each in self.terminal.lines() if each.startswith("ready> :")][-1]
        line = line.replace("ready> :", "ready> ", 1).removesuffix(".")
        assert line.startswith(prompt), line
        words = shlex.split(line[len(prompt):])
        return set() if words == [last] else set(words)


@pytest.fixture
def daemon(start_daemon):
    daemon = start_daemon("--listen", f"web=tcp://127.0.0.1:{PORT}",
                          "--listen", f"web=quic://127.0.0.1:{PORT}",
                          "--listen", f"dns=udp://127.0.0.1:{PORT + 1}")
    daemon.worker(instance="web@1")
    daemon.worker(instance="web@2")
    daemon.worker(service="dns", instance="dns:a")
    assert {str(w["slot"]) for s in daemon.status()["services"] for w in s["workers"]} | \
        {w["instance"] for s in daemon.status()["services"] for w in s["workers"]} == SLOTS_AND_INSTANCES
    return daemon


@pytest.fixture(params=["bash", "zsh"])
def shell(request, daemon, tmp_path):
    if not shutil.which(request.param):
        pytest.skip(f"needs {request.param}")
    if request.param == "bash":
        if not os.path.exists(BASH_COMPLETION):
            pytest.skip("needs the package bash-completion")
        made = Shell(["bash", "--norc", "--noprofile", "-i"],
                     ["PS1='ready> '", "bind 'set enable-bracketed-paste off'", f". {BASH_COMPLETION}",
                      f". {BASH}"],
                     "\x1b*", daemon, tmp_path)
    else:
        made = Shell(["zsh", "-f", "-i"],
                     ["PS1='ready> '; unset zle_bracketed_paste", f"fpath=({ZSH} $fpath)",
                      f"autoload -Uz compinit; compinit -D -d {tmp_path}/dump",
                      "setopt no_list_beep; bindkey -e; zstyle ':completion:*' insert-unambiguous no",
                      "zle -C all-matches complete-word _generic",
                      "zstyle ':completion:all-matches::::' completer _all_matches _complete",
                      "zstyle ':completion:all-matches:*' insert true",
                      "bindkey '^Xa' all-matches"],
                     "\x18a", daemon, tmp_path)
    yield made
    made.terminal.close()


def test_every_command_and_option_is_offered(shell):
    known = commands()
    assert shell.complete("reuseportctl ") == known.keys()
    for name, options in sorted(known.items()):
        long = {option for option in options if option.startswith("--")}
        offered = {word.rstrip("=") for word in shell.complete(f"reuseportctl {name} --")}
        assert offered == long, name
    assert shell.complete("reuseportctl top -") >= {"-d", "-n", "-b", "-1", "-j", "-h"}
    assert shell.complete("reuseportctl dr") == {"drain"}


def test_what_runs_is_offered(shell, daemon, tmp_path):
    for command in ("status", "list-workers", "top", "monitor", "check", "rotate-keys"):
        assert shell.complete(f"reuseportctl {command} ") == SERVICES, command
    for command in ("show", "drain", "undrain", "weight", "kick"):
        assert shell.complete(f"reuseportctl {command} ") == SLOTS_AND_INSTANCES, command
    assert shell.complete("reuseportctl drain web@") == {"web@1", "web@2"}
    assert shell.complete("reuseportctl drain --wait --timeout 5 dns:") == {"dns:a"}
    assert shell.complete("reuseportctl --json short drain --service web w") == {"web@1", "web@2"}
    assert shell.complete("reuseportctl rotate-keys web ") == {"tcp", "quic"}
    assert shell.complete("reuseportctl drain --instance ") == {"web@1", "web@2", "dns:a"}
    assert shell.complete("reuseportctl drain --service ") == SERVICES
    assert shell.complete("reuseportctl explain --listener ") == {"web/tcp", "web/quic", "dns/udp"}
    assert not shell.complete("reuseportctl status web ") & SERVICES  # zsh offers options then
    assert shell.complete("reuseportctl drain --timeout ") == set()


def test_values_of_options_are_offered(shell, tmp_path):
    (tmp_path / "file.prom").write_text("")
    (tmp_path / "directory").mkdir()
    assert shell.complete("reuseportctl --json ") == {"pretty", "short", "off"}
    assert {word.removeprefix("--json=") for word in shell.complete("reuseportctl status --json=p")} == {"pretty"}
    assert shell.complete("reuseportctl metrics --format ") == {"prometheus", "openmetrics"}
    assert shell.complete("reuseportctl metrics --output fi") == {"file.prom"}
    assert {word.rstrip("/") for word in shell.complete("reuseportctl check --config d")} == {"directory"}


def test_a_daemon_that_is_not_there_offers_nothing(shell, daemon, tmp_path):
    assert shell.complete(f"reuseportctl --socket {tmp_path}/absent drain ") == set()
    assert shell.complete(f"reuseportctl --socket {daemon.control_socket} drain web@") == {"web@1", "web@2"}
    assert "absent" not in shell.terminal.text().replace(f"{tmp_path}/absent", "")
