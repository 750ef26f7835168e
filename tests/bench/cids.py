# SPDX-License-Identifier: BSD-2-Clause
"""
Connection IDs: made by the library, and registered with the daemon in batches, against one bpf(2)
call each.
"""
from .place import Place, Tool, listener


def measure(run):
    run.report.subject("cids", "Connection IDs a second (made: of one core's time; registered: one "
                       "client, elapsed time)")
    generated = run.pick(500000, 100000, 1000)
    registered = run.pick(65536, 16384, 1024)
    values = {}
    for mode in ("quic-lb", "quic-lb-plain", "registered"):
        place = Place(run, listener(next(run.ports), "ListenQUIC", f"ConnectionID={mode}",
                                    "Flows=262144"))
        tool = None
        commands = {f"made/{mode}": f"generate {generated}"}
        if mode == "registered":
            commands = {"direct": f"direct {registered}", "registered": f"register {registered}"}
        try:
            tool = Tool(run, "bench-cids", "--daemon", place.socket)
            tool.answer("ready")
            for i in range(run.rounds + 1):
                run.progress(f"cids: {mode}, round {i} of {run.rounds}")
                for name, command in commands.items():
                    n, nanoseconds = tool.ask(command)
                    if i:
                        values.setdefault(name, []).append(n * 1e9 / nanoseconds)
        finally:
            if tool:
                tool.close()
            place.close()
    for mode in ("quic-lb", "quic-lb-plain"):
        run.report.add("cids", f"made/{mode}", f"made, {mode}", "1/s", values[f"made/{mode}"])
    direct = run.report.add("cids", "direct", "put into a hash map, one bpf(2) call each", "1/s",
                            values["direct"])
    run.report.add("cids", "registered", "registered with the daemon, in batches", "1/s",
                   values["registered"], versus=direct)
