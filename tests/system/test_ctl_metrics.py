# SPDX-License-Identifier: BSD-2-Clause
"""
Metrics of reuseportctl: right by the parsers of Prometheus and OpenMetrics, right in what they count, and
the same in code, documentation and dashboard.
"""
import json
import os
import re
import stat

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_prometheus

import harness
import hosts
from quic_plane import ADDRESS
from share_plane import SharePlane

PORT = 8080
DOCUMENTATION = harness.ROOT / "docs" / "metrics.md"
DASHBOARD = harness.ROOT / "docs" / "grafana-dashboard.json"
# What daemon and worker must have before there is a sample.
NOT_HERE = {"reuseportd_listener_cookies", "reuseportd_listener_cookies_limit",
            "reuseportd_listener_connection_ids", "reuseportd_listener_connection_ids_limit",
            "reuseportd_worker_load_ratio"}
OF_QUEUES = {"reuseportd_worker_accept_queue", "reuseportd_worker_accept_queue_limit",
             "reuseportd_worker_receive_queue_bytes", "reuseportd_worker_receive_queue_limit_bytes",
             "reuseportd_worker_drops_total"}
OF_SHARES = re.compile("reuseportd_(share|classifier)_")


@pytest.fixture
def daemon(start_daemon):
    daemon = start_daemon("--listen", f"web=tcp://127.0.0.1:{PORT}",
                          "--listen", f"web=quic://127.0.0.1:{PORT}",
                          "--listen", f"dns=udp://127.0.0.1:{PORT + 1}")
    daemon.worker(instance="web@1")
    daemon.worker(service="dns", instance="dns@1")
    return daemon


def listed():
    """{name: (type, help)} of every metric that the program knows."""
    return {each["name"]: (each["type"], each["help"]) for each in
            json.loads(harness.run(harness.REUSEPORTCTL, "metrics", "--list", "--json=short").stdout)}


def samples(families):
    """{(name, labels): value}; no two samples are alike."""
    result = {}
    for family in families:
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in result, key
            result[key] = sample.value
    return result


def value(found, name, **labels):
    values = [v for (n, l), v in found.items() if n == name and labels.items() <= dict(l).items()]
    assert len(values) == 1, (name, labels, values)
    return values[0]


def documented():
    """{name: (type, labels)} of the table in the documentation."""
    rows = re.findall(r"^\| `(reuseportd_\w+)` \| (\w+) \|([\w, ]*)\|", DOCUMENTATION.read_text(),
                      re.MULTILINE)
    result = {name: (kind, frozenset(labels.strip().split(", ")) - {""}) for name, kind, labels in rows}
    assert len(result) == len(rows)
    return result


def names_in(expression):
    return set(re.findall(r"\breuseportd_\w+", expression))


def test_both_formats_are_right_and_say_the_same(daemon):
    with harness.udp_client(("127.0.0.1", PORT + 1)) as client:
        client.send(b"one")
        client.send(b"two")
        harness.poll_until(lambda: daemon.status("dns")["listeners"][0]["packets"] == 2, "both are counted")
    prometheus = daemon.ctl("metrics").stdout
    openmetrics = daemon.ctl("metrics", "--format=openmetrics").stdout
    assert prometheus == daemon.ctl("metrics", "--format", "prometheus").stdout
    assert openmetrics.endswith("# EOF\n") and "# EOF" not in prometheus
    old = samples(parse_prometheus(prometheus))
    new = samples(parse_openmetrics(openmetrics))
    assert old == new
    assert value(new, "reuseportd_up") == 1
    verdicts = {v: value(new, "reuseportd_listener_packets_total", service="dns", verdict=v)
                for v in ("listener", "flow", "connection_id", "migrated", "fallback", "standby", "stray",
                          "dropped", "invalid")}
    assert verdicts == {"listener": 1, "flow": 1, **dict.fromkeys(
        ("connection_id", "migrated", "fallback", "standby", "stray", "dropped", "invalid"), 0)}
    assert len([k for k in new if k[0] == "reuseportd_listener_packets_total"]) == 3 * len(verdicts)
    assert value(new, "reuseportd_listener_new_connections_total", service="dns", listener="udp",
                 transport="udp") == 1
    assert value(new, "reuseportd_worker_packets_total", instance_name="dns@1") == 2
    assert value(new, "reuseportd_worker_new_connections_total", instance_name="dns@1") == 1
    assert value(new, "reuseportd_listener_active_workers", service="web", listener="quic") == 1
    assert value(new, "reuseportd_service_workers", service="web", state="active") == 1
    assert value(new, "reuseportd_worker_state", instance_name="web@1", state="active") == 1
    assert value(new, "reuseportd_worker_state", instance_name="web@1", state="draining") == 0
    assert value(new, "reuseportd_listener_keys", service="web", listener="quic") == 1
    started = daemon.status()["daemon"]["since"]
    assert value(new, "reuseportd_start_time_seconds") == pytest.approx(started / 1e6, abs=1e-3)


def test_every_family_is_announced_and_keeps_together(daemon):
    for form in ("prometheus", "openmetrics"):
        lines = daemon.ctl("metrics", "--format", form).stdout.splitlines()
        family, seen = None, []
        for line in lines:
            if line.startswith("# HELP "):
                family = line.split()[2]
                assert family not in seen
                seen.append(family)
            elif line.startswith("# TYPE "):
                assert line.split()[2] == family
            elif line != "# EOF":
                name = re.match(r"\w+", line).group()
                assert name in (family, family + "_total", family + "_info"), line
        assert len(seen) > 25


def test_promtool_has_nothing_to_say(daemon, tmp_path):
    why = hosts.missing("promtool")
    if why:
        pytest.skip(why)
    promtool = hosts.HOSTS / "promtool" / "usr" / "bin" / "promtool"
    checked = harness.run(promtool, "check", "metrics", input=daemon.ctl("metrics").stdout)
    assert checked.stdout + checked.stderr == ""
    rules = tmp_path / "rules.yml"
    rules.write_text(DOCUMENTATION.read_text().split("```yaml")[1].split("```")[0])
    assert "SUCCESS: 8 rules found" in harness.run(promtool, "check", "rules", rules).stdout


def test_names_follow_the_conventions(daemon):
    for name, (kind, help_text) in listed().items():
        assert re.fullmatch(r"reuseportd(_[a-z]+)+", name)
        assert name.endswith("_total") == (kind == "counter")
        assert name.endswith("_info") == (kind == "info")
        assert help_text.endswith(".") and "\n" not in help_text
        assert not re.search(r"_(ms|msec|usec|milliseconds|microseconds|percent|kb|kilobytes)\b", name)


def test_code_and_documentation_agree(daemon):
    code = listed()
    table = documented()
    assert {name: kind for name, (kind, _) in code.items()} == {name: kind for name, (kind, _) in table.items()}
    labels = {}
    for name, found in samples(parse_openmetrics(daemon.ctl("metrics", "--format=openmetrics").stdout)):
        labels.setdefault(name, set()).add(frozenset(dict(found)))
    assert labels.keys() <= code.keys()
    for name, sets in labels.items():
        assert sets == {table[name][1]}, name
    # Which ones have no sample is known, so that the test of their labels is not empty by mistake.
    queues = any(s["queue"] is not None for w in daemon.status("web")["workers"] for s in w["sockets"])
    expected = NOT_HERE if queues else NOT_HERE | OF_QUEUES
    # Of addresses that services share: the last test here.
    missing = {name for name in code.keys() - labels.keys() if not OF_SHARES.match(name)}
    assert missing == expected, missing ^ expected


def test_dashboard_and_rules_ask_for_what_there_is():
    code = listed().keys()
    dashboard = json.loads(DASHBOARD.read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    expressions += [v["definition"] for v in dashboard["templating"]["list"] if "definition" in v]
    used = set().union(*(names_in(expression) for expression in expressions))
    assert len(used) > 20 and used <= code, used - code
    rules = DOCUMENTATION.read_text().split("```yaml")[1].split("```")[0]
    assert names_in(rules) and names_in(rules) <= code, names_in(rules) - code
    # Everything that counts is on the dashboard.
    kinds = listed()
    assert {name for name in code if kinds[name][0] == "counter"} <= used
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))


def test_labels_are_escaped(start_daemon):
    daemon = start_daemon("--listen", f"web=tcp://127.0.0.1:{PORT}")
    strange = 'a"b\\nc'  # a backslash and an n, no line break
    daemon.worker(instance=strange)
    found = samples(parse_openmetrics(daemon.ctl("metrics", "--format=openmetrics").stdout))
    assert value(found, "reuseportd_worker_weight", instance_name=strange) == 100


def test_a_file_is_replaced_whole(daemon, tmp_path):
    output = tmp_path / "reuseportd.prom"
    output.write_text("old")
    before = output.stat().st_ino
    daemon.ctl("metrics", "--output", output)
    assert output.stat().st_ino != before
    assert stat.S_IMODE(output.stat().st_mode) == 0o644
    assert value(samples(parse_prometheus(output.read_text())), "reuseportd_up") == 1
    assert os.listdir(tmp_path) == ["reuseportd.prom"]
    unreachable = harness.run(harness.REUSEPORTCTL, "--socket", tmp_path / "absent", "metrics", "--output",
                              output, check=False)
    assert unreachable.returncode == 3
    assert samples(parse_prometheus(output.read_text())) == {("reuseportd_up", frozenset()): 0}
    failed = daemon.ctl("metrics", "--output", tmp_path / "absent" / "file", check=False)
    assert failed.returncode == 1 and "No such file or directory" in failed.stderr
    assert os.listdir(tmp_path) == ["reuseportd.prom"]


def test_wrong_usage(daemon):
    for wrong in (["--format=xml"], ["--json=short"], ["web"], ["--wait"]):
        assert daemon.ctl("metrics", *wrong, check=False).returncode == 2
    assert daemon.ctl("status", "--format=prometheus", check=False).returncode == 2


def test_shared_addresses_in_status_metrics_and_check(start_daemon, configuration):
    plane = SharePlane(start_daemon, configuration, {"shop": "MatchServerName=shop.example",
                                                     "api": "MatchDefault=yes"})
    daemon = plane.daemon
    try:
        plane.worker("api")
        plane.worker("shop")
        plane.client.send(b"\x40")
        plane.client.send(b"\xc3\0\0\0\1\x08unknown1\0" + bytes(1200))
        harness.poll_until(lambda: (plane.share()["invalid"], plane.share()["unread"]) == (1, 1), "both are counted")
        lines = [line.split() for line in daemon.ctl("status").stdout.splitlines()]
        assert lines[-2:] == [
            ["SHARE", "ADDRESS", "DEFAULT", "CLASSIFIER", "READ", "UNREAD", "INVALID", "LOST"],
            ["edge", f"quic://{ADDRESS[0]}:{ADDRESS[1]}", "api", "none", "0", "1", "1", "0"]]
        assert "edge" in daemon.ctl("status", "shop").stdout
        checked = daemon.ctl("check", check=False)
        assert (checked.returncode, checked.stdout.splitlines()[1:2]) == \
            (1, ["WARNING: share edge: no classifier runs, new connections are not read"])
        found = samples(parse_openmetrics(daemon.ctl("metrics", "--format=openmetrics").stdout))
        assert value(found, "reuseportd_share_unread_packets_total", share="edge") == 1
        assert value(found, "reuseportd_share_invalid_packets_total", share="edge") == 1
        assert value(found, "reuseportd_classifier_running", share="edge") == 0
        assert value(found, "reuseportd_classifier_connections_total", choice="no_name") == 0
        labels, table = {}, documented()
        for name, each in found:
            if OF_SHARES.match(name):
                labels.setdefault(name, set()).add(frozenset(dict(each)))
        assert labels.keys() == {name for name in table if OF_SHARES.match(name)}
        assert len(labels) == 14
        for name, sets in labels.items():
            assert sets == {table[name][1]}, name
        assert len([1 for name, _ in found if name == "reuseportd_classifier_connections_total"]) == 7
        assert value(found, "reuseportd_classifier_discarded_total", reason="malformed") == 0
    finally:
        plane.close()
