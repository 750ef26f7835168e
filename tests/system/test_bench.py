# SPDX-License-Identifier: BSD-2-Clause
"""The benchmark as far as it is certain: every case runs, and what it counts is right. No times."""
import json
import subprocess

import harness

PACKETS = 4096
BENCH = harness.ROOT / "scripts" / "bench"
TOOLS = harness.BUILD / "tests" / "bench"


def bench(*arguments):
    return harness.run(BENCH, "--build", harness.BUILD, "--rounds", "1", "--packets", PACKETS,
                       *arguments, check=False, timeout=140)


def test_every_case_is_measured_and_counted(system, tmp_path):
    result = bench("--json", tmp_path / "json")
    assert result.returncode == 0, result.stderr
    results = json.loads((tmp_path / "json").read_text())["results"]
    metered = {r["case"] for r in results if len(r.get("ns", [])) == 1}
    assert metered == {
        "udp", "plain", "quic-lb", "quic-lb-large", "quic-lb-new", "initial", "sockhash",
        "registered", "nginx", "opaque"} | {
            f"{program}/{traffic}" for program in ("empty", "floor")
            for traffic in ("short", "large", "fresh", "initial", "many")}
    rated = {r["case"] for r in results if len(r.get("rates", [])) == 4}
    assert rated == {"udp", "plain", "quic-lb", "quic-lb-large", "nginx", "opaque",
                     "kernel/short", "kernel/large"}
    assert all(r["packets"] == PACKETS for r in results if not r["case"].startswith("kernel"))


def test_a_payload_from_a_file_is_measured(system, tmp_path):
    payload = tmp_path / "payload"
    payload.write_text("".join(f"40{i:040x}\n" for i in range(100)))
    result = bench("--payload", payload, "--listener", "ListenDatagram", "--json", "-")
    assert result.returncode == 0, result.stderr
    by_case = {r["case"]: r for r in json.loads(result.stdout)["results"]}
    assert by_case["payload"]["packets"] == PACKETS
    assert len(by_case["payload"]["ns"]) == 1


def count(netns, program, datagrams):
    """(sent, received, misdelivered) of one run against a program of the benchmark's own."""
    process = subprocess.run(
        [TOOLS / "bench-case", "--object", TOOLS / "floor.bpf.o", "--program", program,
         "--datagrams", datagrams, "--number", "1024"],
        input="alone 4096\npair 4096\n", capture_output=True, text=True, timeout=60, check=True)
    lines = process.stdout.splitlines()
    assert len(lines) == 3 and lines[0].startswith("ready ")
    assert lines[1].split()[:3] == lines[2].split()[:3]
    return tuple(int(word) for word in lines[1].split()[:3])


def test_a_datagram_at_the_wrong_socket_is_noticed(netns):
    # Four sockets own a quarter of the IDs each, and the floor program gives all to the first.
    assert count(netns, "bench_floor", "cookie") == (4096, 4096, 3072)


def test_a_datagram_at_the_right_socket_is_not_complained_of(netns):
    assert count(netns, "bench_floor", "short") == (4096, 4096, 0)
