# SPDX-License-Identifier: BSD-2-Clause
"""reuseportd-metrics.timer and its service under a real systemd: what node-exporter finds, and when."""
import re

from prometheus_client.parser import text_string_to_metric_families as parse

import harness
from test_systemd import SERVICE, SOCKETS, booted, machine  # noqa: F401 pylint: disable=unused-import

UNIT = "reuseportd-metrics.service"
TIMER = "reuseportd-metrics.timer"
DIRECTORY = "/var/lib/prometheus/node-exporter"
FILE = f"{DIRECTORY}/reuseportd.prom"


def values(text):
    return {(sample.name, sample.labels.get("service")): sample.value
            for family in parse(text) for sample in family.samples}


def test_metrics_for_node_exporter(machine):  # noqa: F811
    try:
        # Nobody collects anything: nothing is written, and nothing fails.
        machine.run("systemctl", "start", UNIT)
        assert machine.show(UNIT, "ConditionResult") == "no"
        assert machine.show(UNIT, "Result") == "success"

        # As Debian's prometheus-node-exporter has it.
        machine.run("mkdir", "-p", DIRECTORY)
        machine.run("systemctl", "start", SERVICE)
        machine.run("systemctl", "start", UNIT)
        assert machine.show(UNIT, "Result") == "success"
        found = values(machine.output("cat", FILE) + "\n")
        assert found["reuseportd_up", None] == 1
        assert found["reuseportd_listener_active_workers", "web"] == 0
        assert machine.output("stat", "-c", "%U %a", FILE) == "root 644"
        assert machine.output("ls", DIRECTORY) == "reuseportd.prom"

        # Without a daemon the file says so, and the unit has done what it is for.
        machine.run("systemctl", "stop", *SOCKETS, SERVICE)
        machine.run("systemctl", "start", UNIT)
        assert machine.show(UNIT, "Result") == "success"
        assert values(machine.output("cat", FILE) + "\n") == {("reuseportd_up", None): 0}

        # The timer runs it at once.
        machine.remove(FILE)
        machine.run("systemctl", "start", SERVICE)
        machine.run("systemctl", "enable", "--now", TIMER)
        harness.poll_until(lambda: machine.run("test", "-s", FILE, check=False).returncode == 0,
                           "the timer's first file")
        assert values(machine.output("cat", FILE) + "\n")["reuseportd_up", None] == 1
        assert machine.show(TIMER, "TimersMonotonic").count("OnUnitActiveUSec=15s") == 1
    finally:
        machine.run("systemctl", "disable", "--now", TIMER, check=False)
        machine.run("systemctl", "stop", UNIT, check=False)
        machine.remove("/var/lib/prometheus")


def test_the_unit_may_write_there_and_nothing_else(machine):  # noqa: F811
    exposure = machine.run("systemd-analyze", "security", "--no-pager", UNIT, check=False).stdout
    level = re.search(r"Overall exposure level for \S+: ([\d.]+)", exposure)
    assert level and float(level.group(1)) <= 1.5, exposure
    verified = machine.run("systemd-analyze", "verify", "--man=no", f"/usr/lib/systemd/system/{UNIT}",
                           f"/usr/lib/systemd/system/{TIMER}", check=False)
    assert verified.returncode == 0 and verified.stderr == "", verified.stderr
    # The same restrictions, and another program: what it could do.
    machine.run("mkdir", "-p", DIRECTORY)
    machine.write("/run/systemd/system/reuseportd-metrics.service.d/try.conf",
                  "[Service]\nExecStart=\nExecStart=/bin/sh -c '"
                  f"echo x >{DIRECTORY}/here; "
                  "for p in /etc/x /usr/x /var/lib/x /run/reuseportd/x; do echo x >$p && echo wrote $p; done; "
                  "cat /proc/self/status'\nStandardOutput=file:/run/tried\nProcSubset=all\n")
    try:
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "start", UNIT)
        tried = machine.output("cat", "/run/tried")
        assert "wrote" not in tried
        assert machine.output("cat", f"{DIRECTORY}/here") == "x"
        assert set(re.findall(r"^Cap(?:Eff|Prm|Bnd|Amb):\s*(\w+)", tried, re.MULTILINE)) == {"0" * 16}
    finally:
        machine.remove("/run/systemd/system/reuseportd-metrics.service.d", "/run/tried", "/var/lib/prometheus")
        machine.run("systemctl", "daemon-reload")
