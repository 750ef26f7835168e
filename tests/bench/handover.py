# SPDX-License-Identifier: BSD-2-Clause
"""
What happens when workers come and go: how soon traffic follows, what is lost, how long a
registration takes and how many a second there may be.
"""
from .place import Place, Tool, listener
from .report import percentile

STEPS = {"open": "connect and HELLO", "register": "REGISTER to its last OK", "ready": "READY",
         "unregister": "UNREGISTER", "all": "connect to active, all of it"}


def measure_workers_that_come_and_go(run):
    """Datagrams of new flows at 50,000 a second while a second worker comes and goes."""
    values = {}

    def add(name, title, nanoseconds):
        values.setdefault((name, title), []).append(max(nanoseconds, 0) / 1000)

    place = Place(run, listener(next(run.ports), "ListenDatagram"))
    tool = None
    try:
        tool = Tool(run, "bench-handover", "--daemon", place.socket, "--service", "bench")
        tool.answer("ready")
        for i in range(run.pick(20, 5, 1)):
            run.progress(f"handover: round {i}")
            answered, first, sent, lost = tool.ask("join")
            check(tool, lost == 0, f"{lost} of {sent} datagrams lost when a worker came")
            add("ready", "READY to its answer", answered)
            add("first", "READY to the first datagram received", first)
            answered, last, sent, lost, after = tool.ask("drain")
            check(tool, lost == 0, f"{lost} of {sent} datagrams lost when a worker drained")
            check(tool, after == 0, f"{after} datagrams came to a worker that drained")
            add("drain", "DRAIN to its answer", answered)
            add("drain-last", "DRAIN to the last new flow that came", last)
            for how in ("exit", "kill"):
                dying, last, sent, lost, after = tool.ask(how)
                check(tool, after == 0,
                      f"{after} of {sent} datagrams lost that were sent after {how}")
                name = "_exit()" if how == "exit" else "SIGKILL"
                add(how, f"{name} to the end of the process", dying)
                add(f"{how}-last", f"{name} to the last datagram that was lost", last)
                values.setdefault(
                    (f"{how}-lost", f"datagrams in its queue at {name}: lost with it"),
                    []).append(lost)
    finally:
        if tool:
            tool.close()
        place.close()
    for (name, title), each in values.items():
        run.report.add("handover", name, title, "datagrams" if name.endswith("-lost") else "us",
                       each)
    run.report.remark("handover", "Lost when a worker came, when it drained, and of those sent "
                      "after its process had ended: 0, every one counted.")


def check(tool, good, sentence):
    tool.process.poll()
    if not good:
        raise SystemExit(f"bench: {tool.name}: {sentence}")


def measure_registrations(run, n_clients, limit=None):
    """Connect, register, READY, unregister, again and again, by one client or many at once."""
    count = run.pick(2048, 512, 64)
    rounds = run.pick(5, 3, 1)
    medians, tails = {s: [] for s in STEPS}, {s: [] for s in STEPS}
    rates = []
    place = Place(run, listener(next(run.ports), "ListenDatagram"))
    tool = None
    try:
        tool = Tool(run, "bench-workers", "--daemon", place.socket)
        tool.answer("ready")
        for i in range(rounds + 1):
            run.progress(f"handover: registrations, round {i} of {rounds}")
            tool.say(f"register {count} {n_clients}")
            samples = {s: sorted(tool.answer(f"{s} ")) for s in STEPS}
            wall = tool.answer("wall ")[0]
            check(tool, all(len(s) == count for s in samples.values()), "registrations are missing")
            if i:
                rates.append(count * 1e9 / wall)
                for step, each in samples.items():
                    medians[step].append(percentile(each, 0.5) / 1000)
                    tails[step].append(percentile(each, 0.99) / 1000)
    finally:
        if tool:
            tool.close()
        place.close()
    who = "1 client" if n_clients == 1 else f"{n_clients} clients"
    for step, title in STEPS.items():
        if n_clients > 1 and step != "all":
            continue
        run.report.add("registration", f"{step}/{n_clients}", f"{title}, {who}, median", "us",
                       medians[step], limit=limit if step == "all" else None)
        run.report.add("registration", f"{step}-p99/{n_clients}", f"{title}, {who}, p99", "us",
                       tails[step])
    run.report.add("registration", f"rate/{n_clients}", f"registrations a second, {who}", "1/s",
                   rates)


def measure(run):
    run.report.subject("handover", "Hand-over: one worker stays, another comes and goes, a datagram "
                       "of a new flow every 20 us")
    measure_workers_that_come_and_go(run)
    run.report.subject("registration", "Registrations of one worker with one socket (UDP)")
    measure_registrations(run, 1, limit=150)
    measure_registrations(run, 64)
