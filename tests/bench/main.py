# SPDX-License-Identifier: BSD-2-Clause
"""Arguments, building, the order of the subjects, and what is printed at the end."""
import argparse
import contextlib
import io
import json
import os
import pathlib
import platform
import pwd
import subprocess
import sys
import time

import harness

from . import adopt, cids, classify, growth, handover, packet, path, queueing, scale
from .place import Run, stop
from .report import Report

ROOT = harness.ROOT
SUBJECTS = {
    "packet": packet, "growth": growth, "path": path, "handover": handover, "scale": scale,
    "cids": cids, "classify": classify, "queueing": queueing, "adopt": adopt,
}


def parse_arguments():
    parser = argparse.ArgumentParser(
        prog="scripts/bench", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measures everything that docs/performance.md speaks of, side by side.",
        epilog="Subjects:\n" + "\n".join(
            f"  {name:10} {' '.join(module.__doc__.split())}"
            for name, module in SUBJECTS.items()) + "\nCases of packet:\n" + "\n".join(
            f"  {name:16} {case.title}" for name, case in packet.CASES.items()) +
        "\n  tcp              TCP SYN, and connections that move")
    effort = parser.add_mutually_exclusive_group()
    effort.add_argument("--quick", dest="effort", action="store_const", const="quick",
                        help="within two minutes, with wider spread")
    effort.add_argument("--check", dest="effort", action="store_const", const="check",
                        help="everything once and as small as can be, to see that it works")
    parser.add_argument("--subject", action="append", choices=sorted(SUBJECTS), metavar="NAME",
                        help="this one alone; may be repeated")
    parser.add_argument("--case", action="append", choices=[*packet.CASES, "tcp"], metavar="NAME",
                        help="this case of packet alone, and what it is compared with; may be "
                        "repeated")
    parser.add_argument("--rounds", type=int, help="of each case")
    parser.add_argument("--packets", type=int, help="in each round")
    parser.add_argument("--json", metavar="FILE", help="all figures of all rounds; - is stdout")
    parser.add_argument("--markdown", metavar="FILE", help="the table for a document; - is stdout")
    parser.add_argument("--build", metavar="DIR", action="append", default=[],
                        help="build directory (default: build, which is built first). Given twice "
                        "or more: the programs of all of them side by side, in packet")
    parser.add_argument("--payload", metavar="FILE",
                        help="measure these datagrams (one in hexadecimal a line, 64 octets at "
                        "most) instead, with the listener of --listener")
    parser.add_argument("--listener", metavar="LINES", default="ListenQUIC;ConnectionID=quic-lb",
                        help="for --payload: lines of its [Listener], separated by semicolons, "
                        "the first one ListenDatagram or ListenQUIC (default %(default)s)")
    parser.add_argument("--realtime", action="store_true",
                        help="SCHED_FIFO: others on the machine wait while a case runs")
    parser.set_defaults(effort="full")
    return parser.parse_args()


def prepare(arguments):
    """Installs, builds; the build directories."""
    if os.geteuid() != 0:
        stop("needs root (network namespace, BPF): sudo ./scripts/bench")
    if arguments.build:
        return [pathlib.Path(b).resolve() for b in arguments.build]
    subprocess.run([ROOT / "scripts" / "install-deps", "build", "bench"], check=False,
                   stdin=subprocess.DEVNULL, stdout=sys.stderr)
    build = ROOT / "build"
    steps = [["meson", "compile", "-C", build]]
    if not (build / "build.ninja").exists():
        steps.insert(0, ["meson", "setup", build])
    for step in steps:
        result = subprocess.run(step, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, text=True, check=False)
        if result.returncode:
            sys.stderr.write(result.stdout)
            stop("cannot build")
    return [build]


def add_user():
    try:
        pwd.getpwnam(harness.USER)
    except KeyError:
        harness.run("useradd", "--system", "--no-create-home", "--home-dir", "/nonexistent",
                    "--shell", "/usr/sbin/nologin", harness.USER)


def about(effort):
    cpu = "unknown processor"
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith(("model name", "Model")):
                cpu = line.partition(":")[2].strip()
                break
    commit = harness.run("git", "-C", ROOT, "describe", "--always", "--dirty",
                         check=False).stdout.strip()
    jit = pathlib.Path("/proc/sys/net/core/bpf_jit_enable").read_text(encoding="ascii").strip()
    return {"kernel": platform.release(), "architecture": platform.machine(), "cpu": cpu,
            "cpus": os.cpu_count(), "load": os.getloadavg()[0], "bpf_jit_enable": int(jit),
            "commit": commit, "effort": effort}


def measure(run, subjects):
    """In a network namespace of its own. What daemons say is shown only when something fails."""
    said = io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(harness.NetworkNamespace())
        harness.sysctl("net/core/somaxconn", 4096)
        stack.enter_context(contextlib.redirect_stdout(said))
        try:
            for name in subjects:
                begin = time.monotonic()
                SUBJECTS[name].measure(run)
                run.seconds[name] = time.monotonic() - begin
        except BaseException:
            sys.stderr.write(said.getvalue())
            raise
        finally:
            run.progress("")


def write(path, print_it):
    """print_it() prints; to the file, or where it is printed to."""
    if path == "-":
        print_it()
        return
    with open(path, "w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        print_it()


def main():
    arguments = parse_arguments()
    if (arguments.rounds or 1) < 1 or (arguments.packets or 1024) < 1024:
        stop("needs at least 1 round and 1024 packets")
    if arguments.payload:
        packet.add_payload(pathlib.Path(arguments.payload).resolve(), arguments.listener)
        arguments.case = ["payload"]
    builds = prepare(arguments)
    add_user()
    facts = about(arguments.effort)
    if arguments.realtime:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    report = Report()
    run = Run(arguments.effort, builds, report, rounds=arguments.rounds,
              packets=arguments.packets, cases=arguments.case)
    subjects = arguments.subject or (["packet"] if arguments.case else list(SUBJECTS))
    begin = time.monotonic()
    measure(run, subjects)
    facts["seconds"] = time.monotonic() - begin
    facts["seconds_of"] = run.seconds
    if arguments.json:
        write(arguments.json, lambda: print(json.dumps(report.to_json(facts), indent=1)))
    if arguments.markdown:
        write(arguments.markdown, lambda: report.print_markdown(facts))
    if "-" not in (arguments.json, arguments.markdown):
        report.print_text(facts)
