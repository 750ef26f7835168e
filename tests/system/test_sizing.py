# SPDX-License-Identifier: BSD-2-Clause
"""What docs/sizing.md says of memory and descriptors is what a daemon has here."""
import os
import pathlib
import re

import pytest

import harness

TEXT = (harness.ROOT / "docs" / "sizing.md").read_text()
LISTENERS = {
    "TCP": "ListenStream=127.0.0.1:80",
    "UDP": "ListenDatagram=127.0.0.1:53",
    **{mode: f"ListenQUIC=127.0.0.1:443\nConnectionID={mode}"
       for mode in ("quic-lb", "quic-lb-plain", "opaque", "nginx", "registered")},
}


def rows():
    """{listener: MiB} of the table."""
    result = {}
    for names, size in re.findall(r"^\| (TCP|UDP|QUIC, [^|]*) \| ([\d.]+) MiB \|", TEXT, re.MULTILINE):
        for name in re.findall(r"`([\w-]+)`", names) or [names]:
            result[name] = float(size)
    return result


def kernel_memory(pid):
    """MiB of maps and programs, as the kernel charges them; each once."""
    sizes = {}
    for path in pathlib.Path(f"/proc/{pid}/fdinfo").iterdir():
        try:
            text = path.read_text()
        except FileNotFoundError:
            continue  # closed meanwhile
        fields = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
        for kind in "map_id", "prog_id":
            if kind in fields:
                sizes[kind, fields[kind]] = int(fields["memlock"])
    return sum(sizes.values()) / 2 ** 20


def test_table_has_every_kind_of_listener():
    assert sorted(rows()) == sorted(LISTENERS)


@pytest.mark.parametrize("name", LISTENERS)
def test_kernel_memory_of_a_listener_is_that_of_the_table(start_daemon, configuration, name):
    if not os.path.exists("/proc/self/fdinfo/0"):
        pytest.skip("no fdinfo here")
    alone = start_daemon("--config", configuration.directory)
    before = kernel_memory(alone.pid)
    alone.stop()
    configuration.service("web", f"[Service]\n[Listener a]\n{LISTENERS[name]}\n")
    daemon = start_daemon("--config", configuration.directory)
    assert abs(kernel_memory(daemon.pid) - before - rows()[name]) < 0.1


def test_descriptors_of_listeners_and_registrations(start_daemon, configuration):
    alone, quic, each = map(int, re.search(
        r"^\| descriptors \| (\d+), as many more for each TCP or UDP listener, (\d+) for a QUIC listener, "
        r"(\d+) for each registration \|", TEXT, re.MULTILINE).groups())
    counts = []
    for text in "", "ListenStream=127.0.0.1:80", "ListenDatagram=127.0.0.1:53", "ListenQUIC=127.0.0.1:443":
        if text:
            configuration.service("web", f"[Service]\n[Listener a]\n{text}\n")
        daemon = start_daemon("--config", configuration.directory)
        counts.append(daemon.n_descriptors())
        if text.startswith("ListenStream"):
            for i in range(10):
                daemon.worker(service="web", instance=f"web@{i}").ready()
            assert daemon.n_descriptors() == counts[-1] + 10 * each
        daemon.stop()
    wanted = [alone, 2 * alone, 2 * alone, alone + quic]
    assert all(abs(count - want) <= 2 for count, want in zip(counts, wanted)), (counts, wanted)
