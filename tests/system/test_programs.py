# SPDX-License-Identifier: BSD-2-Clause
"""
That this kernel's verifier takes every program that a daemon may load, with no more capabilities than it
has by default: with CAP_PERFMON it would take more. What is refused ends the start, with the verifier's
words in its log.
"""
import pathlib
import re

import pytest

import harness
from share_plane import section
from test_guard import cgroup2_is_mounted

CAP_NET_BIND_SERVICE, CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF = 10, 12, 13, 39
KINDS = {"tcp": "ListenStream=127.0.0.1:4433", "udp": "ListenDatagram=127.0.0.1:4433"} | {
    mode: f"ListenQUIC=127.0.0.1:4433\nConnectionID={mode}"
    for mode in ("quic-lb", "quic-lb-plain", "registered", "nginx", "opaque")}


def permitted(daemon):
    status = pathlib.Path(f"/proc/{daemon.pid}/status").read_text(encoding="ascii")
    mask = int(re.search(r"^CapPrm:\t(\w+)$", status, re.MULTILINE)[1], 16)
    return {bit for bit in range(64) if mask >> bit & 1}


@pytest.mark.parametrize("kind", KINDS)
def test_loads_with_cap_bpf_alone(start_daemon, configuration, kind):
    configuration.service("web", f"[Service]\nAllowUser=root\n[Listener main]\n{KINDS[kind]}\n")
    daemon = start_daemon("--config", configuration.directory)
    assert permitted(daemon) == {CAP_BPF, CAP_NET_BIND_SERVICE}
    daemon.worker(instance="w")
    assert harness.run("uname", "-r").stdout.strip() == daemon.status()["daemon"]["kernel"]


def test_loads_what_shares_without_cap_perfmon(start_daemon, configuration):
    configuration.write("reuseportd.conf", "[Daemon]\nClassifier=/nonexistent\n")
    configuration.service("web", section("MatchDefault=yes"))
    daemon = start_daemon("--config", configuration.directory)
    assert permitted(daemon) == {CAP_BPF, CAP_NET_BIND_SERVICE, CAP_NET_RAW}  # for the classifier
    daemon.worker(instance="w")


@pytest.mark.skipif(not cgroup2_is_mounted(), reason="needs a cgroup2 file system")
def test_loads_the_guard_with_cap_net_admin(start_daemon):
    daemon = start_daemon("--net-admin", "--listen", "web=tcp://127.0.0.1:4433")
    assert permitted(daemon) == {CAP_BPF, CAP_NET_BIND_SERVICE, CAP_NET_ADMIN}
    assert "not guarded" not in daemon.process.output()
