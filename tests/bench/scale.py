# SPDX-License-Identifier: BSD-2-Clause
"""
Memory and processor time of the daemon, and kernel memory of its maps and programs, as workers,
listeners and registered connection IDs become more.
"""
import math
import time

from .place import Place, Tool, listener

MIB = 1 << 20


def exponent(points):
    """
    k where what is added to the first point grows as n^k: by the last two points. None: it does not
    grow.
    """
    (n0, first), (n1, y1), (n2, y2) = points[0], points[-2], points[-1]
    if len(points) < 3 or y1 - first <= 0 or y2 - first <= 0 or n1 == n0:
        return None
    return math.log((y2 - first) / (y1 - first)) / math.log((n2 - n0) / (n1 - n0))


def add_growth(run, what, values, limits=None):
    """values: number -> {"resident" and "kernel": octets}."""
    for kind, title in (("resident", "resident memory"), ("kernel", "kernel memory")):
        points = [(n, v[kind]) for n, v in sorted(values.items())]
        for n, octets in points:
            run.report.add("scale", f"{kind}/{what}/{n}", f"{title}, {n:,} {what}", "MiB",
                           [octets / MIB], limit=(limits or {}).get((kind, n)))
        power = exponent(points)
        text = "does not grow" if power is None else f"grows as n^{power:.2f}"
        run.report.remark("scale", f"{title} {text} with n {what}")


def sample(place):
    return {"resident": place.resident(), "kernel": place.kernel_memory()}


def measure_table(run, place, n):
    """READY of one more worker, where there are so many already."""
    steps = ("open", "register", "ready", "unregister", "all")
    tool = Tool(run, "bench-workers", "--daemon", place.socket)
    try:
        tool.answer("ready")
        tool.say(f"register {run.pick(50, 20, 5)} 1")
        samples = {s: tool.answer(f"{s} ") for s in steps}
        tool.answer("wall ")
    finally:
        tool.close()
    run.report.add("table", f"ready/{n}", f"READY with {n:,} workers: a new table", "us",
                   [s / 1000 for s in samples["ready"]], limit=5000)
    run.report.add("table", f"all/{n}", f"connect to active with {n:,} workers", "us",
                   [s / 1000 for s in samples["all"]])


def measure_workers(run):
    values = {}
    place = Place(run, listener(next(run.ports), "ListenQUIC", "ConnectionID=quic-lb"))
    tool = None
    try:
        tool = Tool(run, "bench-workers", "--daemon", place.socket)
        tool.answer("ready")
        for n in run.pick((1, 100, 1000, 4000), (1, 100, 1000), (1, 10, 100)):
            run.progress(f"scale: {n} workers")
            begin = time.monotonic()
            tool.ask(f"workers {n}", "workers ")
            values[n] = {**sample(place), "seconds": time.monotonic() - begin}
            if n in (1, 1000):
                measure_idle(run, place, f"{n:,} workers", f"workers/{n}")
        measure_table(run, place, max(values))
    finally:
        if tool:
            tool.close()
        place.close()
    add_growth(run, "workers", values, {("resident", 1000): 8, ("kernel", 1): 1})


def measure_idle(run, place, title, name):
    seconds = run.pick(5, 3, 1)
    before = place.processor_time()
    time.sleep(seconds)
    used = place.processor_time() - before
    run.report.add("idle", name, f"idle, {title}", "% of a core", [100 * used / seconds])


def measure_listeners(run):
    values = {}
    for n in run.pick((1, 100, 500), (1, 100), (1, 10)):
        run.progress(f"scale: {n} listeners")
        services = {}
        for i in range(n):
            services.setdefault(f"s{i // 50}", []).append(
                listener(next(run.ports), "ListenDatagram", name=f"l{i}"))
        place = Place(run, services=services)
        try:
            values[n] = sample(place)
            if n > 1:
                measure_idle(run, place, f"{n:,} listeners", f"listeners/{n}")
        finally:
            place.close()
    add_growth(run, "listeners", values)


def measure_ids(run):
    values = {}
    sizes = run.pick((10**3, 10**4, 10**5, 10**6), (10**3, 10**5), (10**2, 10**3))
    for n in sizes:
        run.progress(f"scale: {n} registered IDs")
        place = Place(run, listener(next(run.ports), "ListenQUIC", "ConnectionID=registered",
                               f"Flows={max(1 << (n - 1).bit_length(), 256)}"))
        tool = None
        try:
            tool = Tool(run, "bench-workers", "--daemon", place.socket)
            tool.answer("ready")
            tool.ask("workers 4", "workers ")
            tool.ask(f"ids {n}", "ids ")
            values[n] = sample(place)
        finally:
            if tool:
                tool.close()
            place.close()
    add_growth(run, "registered IDs", values)


def measure_events(run):
    rate, seconds = 1000, run.pick(5, 2, 1)
    place = Place(run, listener(next(run.ports), "ListenQUIC", "ConnectionID=registered"))
    tool = None
    try:
        tool = Tool(run, "bench-workers", "--daemon", place.socket)
        tool.answer("ready")
        tool.ask("workers 1", "workers ")
        before = place.processor_time()
        tool.ask(f"events {rate * seconds} {rate}", "late ")
        used = place.processor_time() - before
    finally:
        if tool:
            tool.close()
        place.close()
    run.report.add("idle", "events", f"{rate:,} IDs added or retired a second", "% of a core",
                   [100 * used / seconds])


def measure(run):
    run.report.subject("idle", "Processor time of the daemon")
    run.report.subject("table", "Registrations where there are many workers")
    run.report.subject("scale", "Memory: resident memory of the daemon, shared libraries included; "
                       "kernel memory of all its maps and programs")
    measure_workers(run)
    measure_listeners(run)
    measure_ids(run)
    measure_events(run)
