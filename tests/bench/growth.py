# SPDX-License-Identifier: BSD-2-Clause
"""
What a packet costs as workers, listeners and connections become more: it should not change.
"""
from .packet import quic
from .place import Case, Group, Meter, Place, listener

MODES = {"plain": "quic-lb-plain", "encrypted": "quic-lb"}


def measure_cases(run, title, unit, cases):
    """cases: name -> (number, group or a function that makes a place, options of Case)."""
    opened, places, values = {}, [], {name: [] for name in cases}
    try:
        for name, (_, group, options) in cases.items():
            run.progress(f"growth: opening {name}")
            if callable(group):
                places.append(group())
                group = Group(place=places[-1])
            opened[name] = Case(run, group, **options)
        with Meter():
            for i in range(run.rounds + 1):
                run.progress(f"growth: {title}, round {i} of {run.rounds}")
                for name in list(opened)[::1 if i % 2 else -1]:
                    each = opened[name].send("alone", run.packets)[0]
                    if i:
                        values[name].append(each)
    finally:
        for each in [*opened.values(), *places]:
            each.close()
    base = {}
    for name, (number, _, _) in cases.items():
        mode = name.split("/")[0]
        figure = run.report.add("growth", name, f"{mode}, {number:,} {unit}", "ns", values[name],
                                versus=base.get(mode), **{unit: number})
        base.setdefault(mode, figure)


def with_listeners(run, mode, n):
    """A daemon with so many listeners; traffic goes to the first, of the service `bench`."""
    ports = [next(run.ports) for _ in range(n)]
    lines = ["ConnectionID=" + MODES[mode], "Flows=1024"]
    services = {"bench": [listener(ports[0], "ListenQUIC", *lines)]}
    for i in range(1, n):
        services.setdefault(f"other{(i - 1) // 50}", []).append(
            listener(ports[i], "ListenQUIC", *lines, name=f"l{i}"))
    return lambda: Place(run, services=services)


def measure(run):
    run.report.subject("growth", "Nanoseconds a packet with many of something (the first of each "
                       "kind is what the others are compared with)")
    own = {"options": ["--datagrams", "generated", "--number", 1024]}
    for unit, numbers, make in (
            ("workers", run.pick((1, 64, 1024, 4000), (1, 64, 1024), (1, 64)),
             lambda mode, n: (n, quic(MODES[mode]), {**own, "sockets": n})),
            ("listeners", run.pick((1, 100, 500), (1, 100), (1, 10)),
             lambda mode, n: (n, with_listeners(run, mode, n), own)),
            ("connections", run.pick((16, 1024, 16384, 65536, 262144), (16, 1024, 65536), (16, 1024)),
             lambda mode, n: (n, quic(MODES[mode]),
                              {"options": ["--datagrams", "generated", "--number", n]}))):
        measure_cases(run, unit, unit, {
            f"{mode}/{unit}/{n}": make(mode, n) for mode in MODES for n in numbers})
