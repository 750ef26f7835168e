# SPDX-License-Identifier: BSD-2-Clause
"""
What reuseport-run --adopt costs a server: its other system calls, its bind() and listen(), and what
nginx takes for a request, each with and without.
"""
import pathlib
import re

import debian_hosts
import harness

from .place import Place, listener

CALLS = {"getppid": "getppid(), the cheapest there is", "epoll": "epoll_wait(), one event",
         "send": "send(), 100 octets, UDP", "receive": "recv(), 100 octets, UDP"}
HOW = {"alone": "", "filter": ", a filter of one instruction", "adopted": ", --adopt"}


def launcher(run, place):
    return [run.build / "tools" / "reuseport-run", "--socket", place.socket, "--service", "bench",
            "--adopt", "--"]


def measure_calls(run, place, port, other_port):
    tool = run.tools / "bench-calls"
    commands = {"alone": [tool, other_port], "filter": [tool, "--filter", other_port],
                "passed": [*launcher(run, place), tool, other_port],
                "adopted": [*launcher(run, place), tool, port]}
    values, binds = {}, {}
    for i in range(run.rounds + 1):
        for how, command in commands.items():
            run.progress(f"adopt: calls, round {i} of {run.rounds}")
            numbers = [int(word) for word in harness.run(*command).stdout.split()]
            if not i:
                continue
            binds.setdefault(how, []).append(numbers.pop() / 1000)
            if how in HOW:
                for name, picoseconds in zip(CALLS, numbers):
                    values.setdefault((name, how), []).append(picoseconds / 1000)
    for name, title in CALLS.items():
        alone = None
        for how, suffix in HOW.items():
            figure = run.report.add("adopt", f"{name}/{how}", title + suffix, "ns",
                                    values[name, how], versus=alone)
            alone = alone or figure
    alone = run.report.add("adopt", "bind/alone", "bind() and listen()", "us", binds["alone"])
    run.report.add("adopt", "bind/passed", "the same, --adopt, an address of nobody's", "us",
                   binds["passed"], versus=alone)
    run.report.add("adopt", "bind/adopted", "the same, --adopt, the service's address", "us",
                   binds["adopted"], versus=alone)


class Nginx:
    """With one worker process."""

    def __init__(self, directory, port, before=()):
        directory.mkdir(mode=0o755)
        self.port = port
        self.process = harness.Process(
            [*before, *debian_hosts.nginx(directory, port, keepalive=60)], directory / "log")
        self.master = harness.poll_until(lambda: read(directory / "pid"), "nginx has begun")
        self.worker = harness.poll_until(
            lambda: read(f"/proc/{self.master}/task/{self.master}/children"),
            "nginx has its worker process")

    def processor_time(self):
        """Nanoseconds that the worker process has run, by the scheduler's count."""
        return int(pathlib.Path(f"/proc/{self.worker}/schedstat").read_text().split()[0])

    def load(self, seconds):
        """(microseconds of processor time for a request, requests a second)"""
        before = self.processor_time()
        said = harness.run("wrk", "-t1", "-c16", f"-d{seconds}",
                           f"http://127.0.0.1:{self.port}/").stdout
        time = self.processor_time() - before
        assert not re.search(r"Socket errors|Non-2xx", said), said
        requests = int(re.search(r"(\d+) requests in", said).group(1))
        return time / 1000 / requests, float(re.search(r"Requests/sec: *([\d.]+)", said).group(1))


def read(path):
    """The number in a file, 0: there is none yet."""
    try:
        words = pathlib.Path(path).read_text().split()
    except FileNotFoundError:
        return 0
    return int(words[0]) if words else 0


def measure_nginx(run, place, port, other_port):
    values = {"alone": [], "adopted": []}
    servers = {}
    try:
        servers["alone"] = Nginx(place.directory / "alone", other_port)
        servers["adopted"] = Nginx(place.directory / "adopted", port, launcher(run, place))
        for i in range(run.rounds + 1):
            # Whoever is second finds the machine as the first has left it.
            for how in sorted(servers, reverse=bool(i % 2)):
                run.progress(f"adopt: nginx, round {i} of {run.rounds}")
                value = servers[how].load(run.pick(3, 2, 1))
                if i:
                    values[how].append(value)
    finally:
        for server in servers.values():
            server.process.stop()
    for k, (name, title, unit) in enumerate([
            ("nginx", "nginx, processor time for a request", "us"),
            ("rate", "nginx, requests a second", "1/s")]):
        alone = run.report.add("adopt", f"{name}/alone", title, unit,
                               [v[k] for v in values["alone"]])
        run.report.add("adopt", f"{name}/adopted", f"{title}, --adopt", unit,
                       [v[k] for v in values["adopted"]], versus=alone)


def measure(run):
    run.report.subject("adopt", "A server under reuseport-run --adopt (calls: its own processor "
                       "time; bind() and listen(): elapsed time)")
    port, other_port = next(run.ports), next(run.ports)
    place = Place(run, listener(port, "ListenStream"), options=["--adopt"])
    try:
        measure_calls(run, place, port, other_port)
        measure_nginx(run, place, port, other_port)
    finally:
        place.close()
