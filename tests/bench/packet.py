# SPDX-License-Identifier: BSD-2-Clause
"""
What a packet costs: each of our programs at each of its verdicts, the floor under them, and the
ways of others, for the same traffic.
"""
import collections

from .place import Case, Group, Meter

# What is sent. Floor and empty program are measured with each kind of traffic by themselves: other
# packets leave the caches in another state. number None: as many as are sent in a round.
Traffic = collections.namedtuple("Traffic", "datagrams number octets title")
TRAFFIC = {
    "short": Traffic("short", 1024, 64, "short headers, 1,024 connections"),
    "fresh": Traffic("short-fresh", None, 64, "short headers, each of a new connection"),
    "initial": Traffic("initial", None, 1200, "Initials of 1,200 octets, each new"),
    "known": Traffic("initial-known", 1024, 1200, "Initials of 1,200 octets, the same again"),
    "large": Traffic("short", 1024, 1200, "short headers, 1,200 octets"),
    "many": Traffic("short", 65536, 64, "short headers, 65,536 connections"),
}

# versus: the cases that it is compared with and the ratio that is aimed at; "floor" is that of the
# same traffic. The last one is what the table shows.
Measured = collections.namedtuple(
    "Measured", "title traffic datagrams group versus limit", defaults=(None,) * 2)


def quic(mode):
    return Group(listener=("ListenQUIC", f"ConnectionID={mode}"))


SHARED = Group(listener=("ListenQUIC", "Share=bench", "MatchDefault=yes"))
UDP = Group(listener=("ListenDatagram",))

CASES = {
    "plain": Measured("own ID, plain", "short", "generated", quic("quic-lb-plain"), "floor", 1.10),
    "encrypted": Measured("own ID, encrypted, cached", "short", "generated", quic("quic-lb"),
                          "floor", 1.3),
    "encrypted-large": Measured("own ID, encrypted, cached, 1,200 octets", "large", "generated",
                                quic("quic-lb"), "floor", 1.3),
    "encrypted-new": Measured("own ID, encrypted, not cached", "fresh", "generated-fresh",
                              quic("quic-lb"), "floor"),
    "initial": Measured("Initial, new", "initial", "initial", quic("quic-lb"), "floor", 1.5),
    "initial-known": Measured("Initial, known", "known", "initial-known", quic("quic-lb"),
                              "floor", 1.5),
    "shared": Measured("own ID, encrypted, cached, shared listener", "short", "generated", SHARED,
                       "encrypted", 1.1),
    "shared-initial": Measured("Initial, new, shared listener without a classifier", "initial",
                               "initial", SHARED, "initial"),
    "stray": Measured("short header of nobody", "short", "short", quic("quic-lb-plain"), "floor"),
    "registered": Measured("registered ID, 65,536", "many", "registered",
                           Group(listener=("ListenQUIC", "ConnectionID=registered",
                                           "Flows=65536")), "sockhash", 0.6),
    "cookie": Measured("cookie in the ID (nginx)", "short", "cookie", quic("nginx"),
                       "sockhash-cookie", 0.6),
    "opaque": Measured("opaque, known flow", "short", "introduced", quic("opaque"), "floor"),
    "udp": Measured("UDP, known flow", "short", "introduced", UDP, "lru", 0.6),
    "sockhash": Measured("other way: IDs in a SOCKHASH, 65,536", "many", "registered",
                         Group(program=("sockhash", "bench_sockhash")), "floor"),
    "sockhash-cookie": Measured("other way: cookies in a SOCKHASH", "short", "cookie",
                                Group(program=("sockhash-cookie", "bench_sockhash_cookie")),
                                "floor"),
    "aes": Measured("other way: AES for each packet", "short", "generated",
                    Group(program=("aes", "bench_aes")), "floor"),
    "lru": Measured("other way: flow of 4-tuple in an LRU hash", "short", "introduced",
                    Group(program=("lru", "bench_lru")), "floor"),
    "modulo": Measured("other way: word of the ID, modulo", "short", "short",
                       Group(program=("floor", "bench_modulo")), "floor"),
}
# Compared with more than one.
ALSO = [("encrypted", "aes", 0.6), ("plain", "modulo", 0.6)]
OWN = {"empty": "bench_empty", "floor": "bench_floor"}


def choose(run):
    """Name -> what is measured, all that it is compared with included."""
    names = [n for n in CASES if run.wanted(n)]
    names += [CASES[n].versus for n in names if CASES[n].versus in CASES]
    names += [versus for name, versus, _ in ALSO if name in names]
    chosen = {}
    for traffic in dict.fromkeys(CASES[n].traffic for n in names):
        for own, program in OWN.items():
            chosen[f"{own}/{traffic}"] = Measured(
                f"{own}: {TRAFFIC[traffic].title}", traffic, TRAFFIC[traffic].datagrams,
                Group(program=("floor", program)))
    for name, measured in CASES.items():
        if name not in names:
            continue
        chosen[name] = measured
        for i, build in enumerate(run.other_builds, 2):
            if measured.group.listener:
                chosen[f"{name}@{i}"] = measured._replace(
                    group=measured.group._replace(build=build), title=f"{measured.title} ({i})")
    return chosen


def add_payload(path, lines):
    """A case of one's own: the datagrams of a file, and the lines of its listener."""
    CASES["payload"] = Measured(f"datagrams of {path.name}", "short", f"file:{path}",
                                Group(listener=tuple(lines.split(";"))), "floor")


def case_options(run, measured):
    traffic = TRAFFIC[measured.traffic]
    number = traffic.number or run.packets
    if run.effort == "check":
        number = min(number, run.packets)
    return ["--datagrams", measured.datagrams, "--octets", traffic.octets, "--number", number]


def measure_cases(run, chosen, subject):
    """Opens all, measures them in interleaved rounds (the first one warms up), adds figures."""
    cases, nanoseconds, instructions = {}, {n: [] for n in chosen}, {n: [] for n in chosen}
    try:
        for name, measured in chosen.items():
            run.progress(f"{subject}: opening {name}")
            cases[name] = Case(run, measured.group, options=case_options(run, measured))
        with Meter():
            for i in range(run.rounds + 1):
                run.progress(f"{subject}: round {i} of {run.rounds}")
                for name in list(cases)[::1 if i % 2 else -1]:
                    each, _, executed = cases[name].send("alone", run.packets)
                    if i:
                        nanoseconds[name].append(each)
                        instructions[name].append(executed)
        sizes = {name: case.sizes() for name, case in cases.items()}
    finally:
        for case in cases.values():
            case.close()
    add_figures(run, chosen, nanoseconds, instructions, sizes)


def add_figures(run, chosen, nanoseconds, instructions, sizes):
    figures = {}
    for name, measured in chosen.items():
        versus = measured.versus
        if versus == "floor":
            versus = f"floor/{measured.traffic}"
        jited, translated = sizes[name]
        more = {"jited_octets": jited, "instructions_translated": translated}
        empty = instructions[f"empty/{measured.traffic}"]
        if None not in instructions[name] and None not in empty:
            more["instructions_retired"] = [
                a - b for a, b in zip(instructions[name], empty)]
        figures[name] = (measured, versus, more)
    done = {}

    def add(name):
        """What a figure is compared with must be there before it."""
        if name in done:
            return done[name]
        measured, versus, more = figures[name]
        done[name] = run.report.add(
            "packet", name, measured.title, "ns", nanoseconds[name],
            versus=add(versus) if versus else None, limit=measured.limit, **more)
        return done[name]

    for name in figures:
        add(name)
    for name, versus, limit in ALSO:
        if name in done and versus in done:
            run.report.add("packet", f"{name}/{versus}", f"{done[name].title}, again", "ns",
                           nanoseconds[name], versus=done[versus], limit=limit)


def add_sizes(run):
    for figure in run.report.of("packet"):
        if "jited_octets" in figure.more and not figure.name.startswith(("empty/", "floor/")):
            run.report.add("size", figure.name, f"{figure.title}", "octets",
                           [figure.more["jited_octets"]])


def measure_tcp(run):
    """A SYN each, and each connection that waits in a listening socket that closes."""
    count = run.pick(8192, 2048, 512)
    waiting = run.pick(512, 256, 64)
    syn, moved, floor = [], [], []
    group = Group(listener=("ListenStream",))
    own = Group(program=("floor", "bench_floor"))
    case = Case(run, group, sockets=run.rounds + 2, tcp=True)
    base = Case(run, own, tcp=True)
    try:
        with Meter():
            for i in range(run.rounds + 1):
                run.progress(f"packet: TCP, round {i} of {run.rounds}")
                each = case.send("accepts", count)[0]
                floor_each = base.send("accepts", count)[0]
                queued = case.ask(f"queue {waiting}")[0]
                before = case.meter()
                case.say("close")
                expected, accepted = case.answer()[:2]
                case.check(expected == accepted == waiting,
                           f"of {expected} connections in queues {accepted} were accepted")
                moved_each = case.metered(before, queued)
                if i:
                    syn.append(each)
                    floor.append(floor_each)
                    if moved_each:
                        moved.append(moved_each)
        sizes = case.sizes()
    finally:
        base.close()
        case.close()
    floor = run.report.add("packet", "floor/syn", "floor: SYN", "ns", floor)
    run.report.add("packet", "syn", "TCP SYN", "ns", syn, versus=floor, jited_octets=sizes[0],
                   instructions_translated=sizes[1])
    run.report.add("packet", "migration", "TCP connection that moves", "ns", moved, versus=floor)


def measure(run):
    run.report.subject(
        "packet", "Nanoseconds a packet (the kernel's meter, its own cost included)",
        "empty: a program that selects nothing, so what the meter costs; floor: selects a constant "
        "slot.")
    measure_cases(run, choose(run), "packet")
    if run.wanted("tcp"):
        measure_tcp(run)
    if not any("instructions_retired" in f.more for f in run.report.of("packet")):
        run.report.remark("packet", "Instructions retired: no counter on this machine.")
    run.report.subject("size", "Machine code of the program (octets, all its functions)")
    add_sizes(run)
