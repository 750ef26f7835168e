# SPDX-License-Identifier: BSD-2-Clause
"""
The benchmark as far as it is certain: everything is measured, and what it counts is right. No times.
"""
import json
import subprocess

import pytest

import harness

BENCH = harness.ROOT / "scripts" / "bench"
TOOLS = harness.BUILD / "tests" / "bench"

OWN = {f"{program}/{traffic}" for program in ("empty", "floor")
       for traffic in ("short", "large", "fresh", "initial", "known", "many")}
PACKET = {"plain", "encrypted", "encrypted-large", "encrypted-new", "initial", "initial-known",
          "shared", "shared-initial", "stray", "registered", "cookie", "opaque", "udp", "sockhash", "sockhash-cookie", "aes",
          "lru", "modulo", "encrypted/aes", "plain/modulo", "floor/syn", "syn", "migration"} | OWN
SIZE = PACKET - OWN - {"encrypted/aes", "plain/modulo", "floor/syn", "migration"}
GROWTH = {f"{mode}/{what}" for mode in ("plain", "encrypted") for what in (
    "workers/1", "workers/64", "listeners/1", "listeners/10", "connections/16",
    "connections/1024")}
PATH = {f"{name}/{n}" for name in ("kernel", "udp", "plain", "encrypted") for n in (1, 8)} | {
    "shared", "kernel/train", "udp/train", "encrypted/train"}
LATENCY = {f"{name}/{share}" for name in ("kernel", "shared", "udp", "encrypted")
           for share in ("p50", "p99", "p99.9")}
TCP = {"shared", "kernel/1", "kernel/8", "group/1", "group/8"}
HANDOVER = {"ready", "first", "drain", "drain-last", "exit", "exit-last", "exit-lost", "kill",
            "kill-last", "kill-lost"}
REGISTRATION = {f"{step}{tail}/1" for step in ("open", "register", "ready", "unregister", "all")
                for tail in ("", "-p99")} | {
    "rate/1", "all/64", "all-p99/64", "rate/64"}
TABLE = {"ready/100", "all/100"}
IDLE = {"workers/1", "listeners/10", "events"}
SCALE = {f"{kind}/{what}" for kind in ("resident", "kernel") for what in (
    "workers/1", "workers/10", "workers/100", "listeners/1", "listeners/10",
    "registered IDs/100", "registered IDs/1000")}
CIDS = {"made/quic-lb", "made/quic-lb-plain", "direct", "registered"}
ADOPT = {f"{name}/{how}" for name in ("getppid", "epoll", "send", "receive")
         for how in ("alone", "filter", "adopted")} | {
    "bind/alone", "bind/passed", "bind/adopted", "nginx/alone", "nginx/adopted", "rate/alone",
    "rate/adopted"}
SUBJECTS = {
    "packet": {"packet": PACKET, "size": SIZE},
    "growth": {"growth": GROWTH},
    "path": {"path": PATH, "latency": LATENCY, "tcp": TCP},
    "handover": {"handover": HANDOVER, "registration": REGISTRATION},
    "scale": {"scale": SCALE, "idle": IDLE, "table": TABLE},
    "cids": {"cids": CIDS},
    "classify": {"classify": {"one", "two", "forged", "coalesced", "pieces", "large"}},
    "adopt": {"adopt": ADOPT},
    "queueing": {"queueing": {f"{way}/{what}" for way in ("hash", "load")
                              for what in ("p50", "p99", "slow")}},
}


def bench(*arguments):
    return harness.run(BENCH, "--build", harness.BUILD, "--check", *arguments, check=False,
                       timeout=140)


@pytest.mark.parametrize("subject", SUBJECTS)
def test_everything_is_measured_and_counted(system, tmp_path, subject):
    result = bench("--subject", subject, "--json", tmp_path / "json", "--markdown", "-")
    assert result.returncode == 0, result.stderr
    found = {}
    for figure in json.loads((tmp_path / "json").read_text())["figures"]:
        names = found.setdefault(figure["subject"], set())
        assert figure["name"] not in names
        names.add(figure["name"])
        # READY with many workers is asked five times, everything else once.
        assert len(figure["values"]) == (5 if figure["subject"] == "table" else 1)
    assert found == SUBJECTS[subject]
    rows = [line for line in result.stdout.splitlines() if line.startswith("| ")]
    assert len(rows) == sum(len(names) for names in found.values()) + 2 * len(found)


def test_a_payload_from_a_file_is_measured(system, tmp_path):
    payload = tmp_path / "payload"
    payload.write_text("".join(f"40{i:040x}\n" for i in range(100)))
    result = bench("--payload", payload, "--listener", "ListenDatagram", "--json", "-")
    assert result.returncode == 0, result.stderr
    figures = {f["name"]: f for f in json.loads(result.stdout)["figures"]
               if f["subject"] == "packet"}
    assert set(figures) == {"empty/short", "floor/short", "payload"}
    assert len(figures["payload"]["values"]) == 1
    assert figures["payload"]["versus"] == "floor/short"


def run_case(tool, commands, *options):
    """What a measuring program answers, the first line ("ready") apart."""
    process = subprocess.run(
        [TOOLS / tool, *options], input="".join(c + "\n" for c in commands), capture_output=True,
        text=True, timeout=60, check=True)
    lines = process.stdout.splitlines()
    assert lines[0].startswith("ready ")
    return [[int(word) for word in line.split()[:3]] for line in lines[1:]
            if not line.startswith("latencies")]


def counts(program, datagrams, *options):
    """[sent, received, misdelivered] against a program of the benchmark's own, in every mode."""
    runs = run_case("bench-case", ["alone 4096", "pair 4096", "latency 4096"],
                    "--object", TOOLS / "floor.bpf.o", "--program", program,
                    "--datagrams", datagrams, "--number", "1024", *options)
    assert len(runs) == 3 and runs[0] == runs[1] == runs[2]
    return runs[0]


def test_a_datagram_at_the_wrong_socket_is_noticed(netns):
    # Four sockets own a quarter of the IDs each, and the floor program gives all to the first.
    assert counts("bench_floor", "cookie") == [4096, 4096, 3072]


def test_a_datagram_at_the_right_socket_is_not_complained_of(netns):
    assert counts("bench_floor", "short") == [4096, 4096, 0]


def test_each_datagram_of_a_train_is_counted(netns):
    runs = run_case("bench-case", ["alone 4096", "pair 4096"], "--object",
                    TOOLS / "floor.bpf.o", "--program", "bench_floor", "--datagrams", "cookie",
                    "--number", "1024", "--octets", "1200", "--train", "16")
    assert runs == [[4096, 4096, 3072]] * 2


def test_connections_of_a_socket_that_closes_are_missed_without_migration(netns):
    # The floor program selects the first socket, which is the one that closes.
    queued, run = run_case("bench-tcp", ["queue 64", "close"], "--object", TOOLS / "floor.bpf.o",
                           "--program", "bench_floor")
    assert queued == [64]
    assert run == [64, 0, 0]
