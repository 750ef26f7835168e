# SPDX-License-Identifier: BSD-2-Clause
"""
What is measured: daemons of their own with some listeners, and the processes that send, receive and
register (the C programs beside this file). One way to make each.
"""
import collections
import contextlib
import ctypes
import itertools
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import harness

SK_REUSEPORT = 21  # BPF_PROG_TYPE_SK_REUSEPORT
FIRST_PORT = 4400
CLOCK_TICK = os.sysconf("SC_CLK_TCK")

# No limit of the daemon's is what is measured.
DAEMON = """[Daemon]
MaxConnectionsPerUser=65535
MaxSlotsPerUser=4096
MaxConnectionIDsPerUser=4194304
MessagesPerSecondPerUser=1000000
"""
NO_CLASSIFIER = "Classifier=/nonexistent\n"  # what is nobody's goes to the default service


def stop(sentence):
    sys.exit(f"bench: {sentence}")


class Run:
    """What all subjects share: how much is to be done, with what, and where the figures go."""

    def __init__(self, effort, builds, report, rounds=None, packets=None, cases=None):
        self.effort = effort  # "full", "quick" or "check"
        self.build = builds[0]
        self.other_builds = builds[1:]  # whose programs are measured beside
        self.tools = self.build / "tests" / "bench"
        self.report = report
        self.rounds = rounds or self.pick(7, 3, 1)
        self.packets = packets or self.pick(102400, 20480, 2048)
        self.cases = cases
        self.seconds = {}  # that each subject took
        self.ports = itertools.count(FIRST_PORT)
        cpus = sorted(os.sched_getaffinity(0))
        self.send_cpu, self.receive_cpu = cpus[0], cpus[-1]

    def pick(self, full, quick, check):
        return {"full": full, "quick": quick, "check": check}[self.effort]

    def wanted(self, name):
        return not self.cases or name in self.cases

    def progress(self, text):
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\033[K{text}")
            sys.stderr.flush()


def listener(port, kind, *lines, name="bench"):
    """Lines of a [Listener] section; kind is ListenStream, ListenDatagram or ListenQUIC."""
    return "\n".join([f"[Listener {name}]", f"{kind}=127.0.0.1:{port}", *lines, ""])


class Place:
    """
    A daemon with one service, `bench`, of these listeners (up to 64), or several services; daemon:
    more lines of its own section.
    """

    def __init__(self, run, *listeners, services=None, build=None, options=(),
                 daemon=NO_CLASSIFIER):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="reuseportd-bench-"))
        try:
            self.directory.chmod(0o755)
            (self.directory / "services.d").mkdir(mode=0o755)
            (self.directory / "reuseportd.conf").write_text(DAEMON + daemon, encoding="ascii")
            for name, sections in (services or {"bench": listeners}).items():
                (self.directory / "services.d" / f"{name}.conf").write_text(
                    "[Service]\nMaxWorkers=4096\n" + "".join(sections), encoding="ascii")
            self.daemon = harness.Daemon(
                ["--config", self.directory, *options],
                program=(build or run.build) / "daemon" / "reuseportd")
        except BaseException:
            shutil.rmtree(self.directory, ignore_errors=True)
            raise
        self.pid = self.daemon.pid
        self.socket = self.daemon.worker_socket

    def close(self):
        self.daemon.stop()
        self.daemon.cleanup()
        shutil.rmtree(self.directory, ignore_errors=True)

    def resident(self):
        """Octets that the daemon has in memory: its own, without what files and others share."""
        fields = read_fields(f"/proc/{self.pid}/status")
        return int(fields["VmRSS"].split()[0]) * 1024

    def processor_time(self):
        """Seconds of processor time; the scheduler's own count, in nanoseconds."""
        text = pathlib.Path(f"/proc/{self.pid}/schedstat").read_text(encoding="ascii")
        return int(text.split()[0]) / 1e9

    def kernel_memory(self):
        """Octets of the maps and programs that the daemon holds, by what the kernel says."""
        seen = {}
        for path in pathlib.Path(f"/proc/{self.pid}/fdinfo").iterdir():
            fields = read_fields(path)
            for kind in ("map_id", "prog_id"):
                # A descriptor of a map says only map_id, one of a program only prog_id.
                if kind in fields and "memlock" in fields:
                    seen[kind, fields[kind]] = int(fields["memlock"])
        return sum(seen.values())


def read_fields(path):
    """Lines "name: value"; empty when what it was about has gone."""
    fields = {}
    with contextlib.suppress(FileNotFoundError), open(path, encoding="ascii") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            fields[name] = value.strip()
    return fields


class Tool:
    """One of the measuring programs: a line goes in, a line of numbers comes out."""

    def __init__(self, run, program, *options):
        self.name = program
        self.process = subprocess.Popen(
            [str(a) for a in (run.tools / program, *options)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True)

    def say(self, line):
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def answer(self, prefix=""):
        line = self.process.stdout.readline()
        if not line.startswith(prefix) or not line.strip():
            stop(f"{self.name} ended with {self.process.wait()} or said: {line.strip()}")
        return [int(word) for word in line[len(prefix):].split()]

    def ask(self, line, prefix=""):
        self.say(line)
        return self.answer(prefix)

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


# Who chooses among the sockets of a group. listener: kind and lines, for a daemon of its own; build:
# the directory of that daemon, if not the run's; place: a daemon that is there already; program:
# (object, name), of the benchmark's own; none of them: the kernel, by its own hash; shared: there
# is one socket, without SO_REUSEPORT.
Group = collections.namedtuple(
    "Group", "listener program place shared build", defaults=((), None, None, False, None))


class Case(Tool):
    """A group and its traffic."""

    def __init__(self, run, group, sockets=4, options=(), tcp=False):
        self.program = []  # fdinfo of each
        self.place = group.place
        port = next(run.ports)
        if group.listener:
            self.place = Place(run, listener(port, *group.listener), build=group.build)
        self.own_place = self.place if group.listener else None
        arguments = ["--cpu", run.send_cpu] if tcp else [
            "--send-cpu", run.send_cpu, "--receive-cpu", run.receive_cpu]
        arguments += ["--sockets", 1 if group.shared else sockets]
        if self.place:
            arguments += ["--daemon", self.place.socket]
        else:
            arguments += ["--port", port]
        if group.program:
            arguments += ["--object", run.tools / f"{group.program[0]}.bpf.o",
                          "--program", group.program[1]]
        if group.shared:
            arguments += ["--shared"]
        super().__init__(run, "bench-tcp" if tcp else "bench-case", *arguments, *options)
        try:
            fd = self.answer("ready ")[0]
        except BaseException:
            self.close()
            raise
        if self.place:
            self.program = find_programs(self.place.pid)
        elif fd >= 0:
            self.program = [pathlib.Path(f"/proc/{self.process.pid}/fdinfo/{fd}")]

    def close(self):
        super().close()
        if self.own_place:
            self.own_place.close()

    def meter(self):
        """Nanoseconds and runs of the program so far."""
        fields = [read_fields(path) for path in self.program]
        return (sum(int(f["run_time_ns"]) for f in fields),
                sum(int(f["run_cnt"]) for f in fields))

    def sizes(self):
        """Octets of machine code, and instructions of BPF, of all functions of the program."""
        return program_sizes(int(read_fields(self.program[0])["prog_id"]))

    def send(self, how, count, train=1):
        """
        One run. Every count must be right. Nanoseconds of the program a run of it (None: it has
        none, or the meter is off), runs a second, instructions of the kernel (None: no counter).
        """
        before = self.meter() if self.program else None
        sent, received, misdelivered, nanoseconds, instructions = self.ask(f"{how} {count}")
        self.check(sent == count and received == count and misdelivered == 0,
                   f"of {count} {sent} were sent, {received} received, {misdelivered} of them by "
                   "a socket that does not own them")
        each = None
        if before:
            each = self.metered(before, count // train)
        return each, count * 1e9 / nanoseconds, instructions / count if instructions >= 0 else None

    def metered(self, before, expected):
        """The program ran so often since then, exactly; nanoseconds a run, None: not metered."""
        after = self.meter()
        runs = after[1] - before[1]
        self.check(runs in (0, expected), f"the program ran {runs} times for {expected}")
        return (after[0] - before[0]) / runs if runs else None

    def check(self, good, sentence):
        if not good:
            stop(f"{self.name}: {sentence}")


def find_programs(pid):
    """fdinfo of the sk_reuseport programs that the process holds, each once."""
    found = {}
    for path in pathlib.Path(f"/proc/{pid}/fdinfo").iterdir():
        fields = read_fields(path)
        if fields.get("prog_type") == str(SK_REUSEPORT):
            found[fields["prog_id"]] = path
    if not found:
        stop(f"process {pid} has no program of type sk_reuseport")
    return list(found.values())


libbpf = ctypes.CDLL("libbpf.so.1", use_errno=True)


def program_sizes(program):
    """bpf_prog_info.jited_prog_len, and xlated_prog_len in instructions of 8 octets."""
    fd = libbpf.bpf_prog_get_fd_by_id(program)
    if fd < 0:
        stop(f"cannot open program {program}: {os.strerror(-fd)}")
    information = (ctypes.c_uint32 * 64)()
    length = ctypes.c_uint32(ctypes.sizeof(information))
    error = libbpf.bpf_obj_get_info_by_fd(fd, information, ctypes.byref(length))
    os.close(fd)
    if error:
        stop(f"cannot ask about program {program}: {os.strerror(-error)}")
    # type, id, tag (8 octets), jited_prog_len, xlated_prog_len
    return information[4], information[5] // 8


class Meter:
    """The kernel counts and times programs while a descriptor of it is open (BPF_ENABLE_STATS)."""

    def __enter__(self):
        self.fd = libbpf.bpf_enable_stats(0)  # BPF_STATS_RUN_TIME
        if self.fd < 0:
            stop(f"cannot switch the kernel's meter on: {os.strerror(-self.fd)}")
        return self

    def __exit__(self, *_):
        os.close(self.fd)
