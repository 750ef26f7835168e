# SPDX-License-Identifier: BSD-2-Clause
"""
The whole path, from the sender's system call to the receiver's: datagrams and accepts a second, with
trains, and how long a datagram takes, through the group, as the kernel chooses, and by one socket.
"""
from .place import Case, Group
from .report import percentile

KERNEL = Group()
SHARED = Group(shared=True)
UDP = Group(listener=("ListenDatagram",))
TCP = Group(listener=("ListenStream",))
PLAIN = Group(listener=("ListenQUIC", "ConnectionID=quic-lb-plain"))
ENCRYPTED = Group(listener=("ListenQUIC", "ConnectionID=quic-lb"))

AT_LEAST = 0.98  # of the kernel's own selection
SLICES = 4  # of a round: each so much shorter, that some have both processors for themselves
TRAIN = 16


def measure_rates(run, subject, title, unit, cases, count, train=1, how="pair", tcp=False):
    """
    cases: name -> (title, group, sockets, options, name of what it is compared with). Interleaved;
    runs a second of each, without the meter.
    """
    opened, values = {}, {name: [] for name in cases}
    rounds = run.rounds * (1 if run.effort == "check" else SLICES)
    try:
        for name, (_, group, sockets, options, _) in cases.items():
            run.progress(f"{subject}: opening {name}")
            opened[name] = Case(run, group, sockets=sockets, options=options, tcp=tcp)
        for i in range(rounds + 1):
            run.progress(f"{subject}: {title}, round {i} of {rounds}")
            for name in list(opened)[::1 if i % 2 else -1]:
                rate = opened[name].send(how, count, train)[1]
                if i:
                    values[name].append(rate)
    finally:
        for case in opened.values():
            case.close()
    done = {}
    for name, (what, _, _, _, versus) in cases.items():
        done[name] = run.report.add(
            subject, name, what, unit, values[name], versus=done.get(versus),
            limit=AT_LEAST if versus and versus.startswith("kernel") else None, at_least=True)


def datagrams_of(group):
    return "introduced" if group in (UDP, KERNEL, SHARED) else "generated"


def measure_datagrams(run):
    count = run.packets // SLICES if run.effort != "check" else run.packets
    for n in run.pick((1, 2, 8, 64, 1024, 4000), (1, 8, 1024), (1, 8)):
        cases = {f"kernel/{n}": (f"the kernel's hash, {n:,} sockets", KERNEL, n,
                                 ["--datagrams", "introduced"], None)}
        for name, group in (("udp", UDP), ("plain", PLAIN), ("encrypted", ENCRYPTED)):
            cases[f"{name}/{n}"] = (f"{name}, {n:,} workers", group, n,
                                    ["--datagrams", datagrams_of(group)], f"kernel/{n}")
        if n == 1:
            cases["shared"] = ("one socket for all, no group", SHARED, 1,
                               ["--datagrams", "introduced"], None)
        measure_rates(run, "path", f"{n} workers", "1/s", cases, count)


def measure_trains(run):
    options = ["--train", TRAIN, "--octets", 1200]
    count = run.packets * 2 if run.effort != "check" else run.packets
    cases = {"kernel/train": (f"the kernel's hash, trains of {TRAIN}, 1,200 octets", KERNEL, 8,
                              [*options, "--datagrams", "introduced"], None)}
    for name, group in (("udp", UDP), ("encrypted", ENCRYPTED)):
        cases[f"{name}/train"] = (f"{name}, trains of {TRAIN}, 1,200 octets", group, 8,
                                  [*options, "--datagrams", datagrams_of(group)], "kernel/train")
    measure_rates(run, "path", "trains", "1/s", cases, count - count % TRAIN, train=TRAIN)


def measure_accepts(run):
    count = run.pick(4096, 1024, 256)
    run.report.subject("tcp", "TCP connections accepted a second (one thread connects and accepts)")
    cases = {"shared": ("one socket for all, no group", SHARED, 1, [], None)}
    for n in run.pick((1, 2, 8, 64, 1024, 4000), (1, 8, 1024), (1, 8)):
        cases[f"kernel/{n}"] = (f"the kernel's hash, {n:,} sockets", KERNEL, n, [], None)
        cases[f"group/{n}"] = (f"the group, {n:,} workers", TCP, n, [], f"kernel/{n}")
    measure_rates(run, "tcp", "accepts", "1/s", cases, count, how="accepts", tcp=True)


def measure_latency(run):
    run.report.subject(
        "latency", "Time from sendmsg() to the return of recvmsg(), one datagram at a time, the "
        "receiver sleeps until it comes (microseconds)")
    count = run.pick(20000, 4000, 200)
    groups = {"kernel": ("the kernel's hash", KERNEL), "shared": ("one socket", SHARED),
              "udp": ("udp", UDP), "encrypted": ("encrypted", ENCRYPTED)}
    shares = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
    opened = {}
    values = {(name, share): [] for name in groups for share in shares}
    try:
        for name, (_, group) in groups.items():
            opened[name] = Case(run, group, options=["--datagrams", datagrams_of(group)])
        for i in range(run.rounds + 1):
            run.progress(f"latency: round {i} of {run.rounds}")
            for name, case in list(opened.items())[::1 if i % 2 else -1]:
                case.send("latency", count)
                samples = sorted(case.answer("latencies "))
                case.check(len(samples) == count, f"{len(samples)} latencies of {count}")
                for share, part in shares.items():
                    if i:
                        values[name, share].append(percentile(samples, part) / 1000)
    finally:
        for case in opened.values():
            case.close()
    for share in shares:
        kernel = None
        for name, (title, _) in groups.items():
            figure = run.report.add("latency", f"{name}/{share}", f"{share} {title}", "us",
                                    values[name, share], versus=kernel)
            kernel = kernel or figure


def measure(run):
    run.report.subject(
        "path", "Datagrams a second over the whole path, 64 octets unless said (1,024 connections; "
        "one thread sends, one receives, both spin)")
    measure_datagrams(run)
    measure_trains(run)
    measure_latency(run)
    measure_accepts(run)
