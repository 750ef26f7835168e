# SPDX-License-Identifier: BSD-2-Clause
"""
The part of scripts/test-kernels that knows tests: runs the files in the guest, notes each test's outcome at
once, and makes the table of what was noted.

A file of tests has a file of notes, NAME.jsonl, in the kernel's directory; each line is what a test did.
A machine that ends at any moment, by a limit or a panic, so loses nothing, and the next one goes on
with the tests that have no outcome.
"""
import collections
import json
import pathlib
import re
import subprocess
import sys
import time

FILE_SECONDS = 600  # for one file of tests: others are to have their turn
TRIES = 2  # of a test during which the machine ended


def read_notes(path):
    """Of each test that was collected its last note; those of another state of the sources count as well."""
    tests = {}
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return tests
    for line in lines:
        try:
            note = json.loads(line)
        except ValueError:
            continue  # the machine ended while it was written
        test = tests.setdefault(note["test"], {"outcome": None, "starts": 0, "why": "", "seconds": 0})
        if note["outcome"] == "starts":
            test["starts"] += 1
        elif note["outcome"] != "collected":
            test.update(outcome=note["outcome"], why=note["why"], seconds=note["seconds"])
    return tests


class Plugin:
    """What pytest tells, noted."""

    def __init__(self, path):
        self.path = path

    def note(self, test, outcome, why="", seconds=0):
        line = {"test": test, "outcome": outcome, "why": why, "seconds": round(seconds, 1)}
        with open(self.path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    def pytest_collection_modifyitems(self, config, items):
        known = read_notes(self.path)
        rest = []
        for item in items:
            test = known.get(item.nodeid)
            if not test:
                self.note(item.nodeid, "collected")
            elif test["outcome"]:
                continue
            elif test["starts"] >= TRIES:
                self.note(item.nodeid, "failed", f"the machine ended during it, {TRIES} times")
                continue
            rest.append(item)
        config.hook.pytest_deselected(items=[item for item in items if item not in rest])
        items[:] = rest

    def pytest_runtest_logstart(self, nodeid):
        self.note(nodeid, "starts")
        self.ended = {"outcome": "passed", "why": "", "seconds": 0}

    def pytest_runtest_logreport(self, report):
        self.ended["seconds"] += report.duration
        if report.outcome == "passed" or self.ended["outcome"] == "failed":
            return
        why = report.longrepr
        if report.outcome == "skipped" and isinstance(why, tuple):
            why = why[2].removeprefix("Skipped: ")
        else:
            crash = getattr(why, "reprcrash", None)
            why = crash.message.split("\n")[0] if crash else str(why).strip().split("\n")[-1]
        self.ended.update(outcome=report.outcome, why=why)

    def pytest_runtest_logfinish(self, nodeid):
        self.note(nodeid, **self.ended)


def run_file(notes, name):
    """In a process of its own; pytest's status. Nothing in the environment says so, as tests pass that on."""
    import pytest
    return pytest.main(["-p", "no:cacheprovider", "-q", "-rfE", "--tb=short", "--color=no",
                        f"tests/system/test_{name}.py"], plugins=[Plugin(notes / f"{name}.jsonl")])


def run(notes, names):
    """In the guest: one pytest for each file."""
    for name in names:
        path = notes / f"{name}.jsonl"
        known = read_notes(path)
        if known and all(test["outcome"] for test in known.values()):
            continue
        begin = time.monotonic()
        print(f"-- test_{name}", flush=True)
        try:
            status = subprocess.run(
                [sys.executable, "-B", __file__, "file", notes, name], timeout=FILE_SECONDS,
                stdin=subprocess.DEVNULL, check=False).returncode
            if not read_notes(path) or status not in (0, 1, 5):
                Plugin(path).note(f"tests/system/test_{name}.py", "failed", f"pytest ended with {status}")
        except subprocess.TimeoutExpired:
            print(f"test_{name}: not within {FILE_SECONDS} s, the next", flush=True)
        print(f"-- test_{name}: {time.monotonic() - begin:.0f} s", flush=True)
    (notes / ".ended").touch()


def short(why):
    return re.sub(r"\s+", " ", why)[:200]


def table(directory, kernels, names):
    """On the host. Status 1 when a test failed, or none passed."""
    total = collections.Counter()
    kernels_notes = {kernel: {name: read_notes(directory / kernel / f"{name}.jsonl") for name in names}
                     for kernel in kernels}

    def count(tests):
        counts = collections.Counter(test["outcome"] or "not run" for test in tests.values())
        return counts if tests else collections.Counter({"file not run": 1})

    print(f"\n{'passed/failed/skipped/not run':34}" + "".join(f"{kernel:>18}" for kernel in kernels))
    for name in names:
        row = f"test_{name:29}"
        for kernel in kernels:
            counts = count(kernels_notes[kernel][name])
            row += f"{'not run':>18}" if counts["file not run"] else "{:>18}".format(
                "/".join(str(counts[key]) for key in ("passed", "failed", "skipped", "not run")))
        print(row)
    for kernel in kernels:
        notes = kernels_notes[kernel]
        reasons = collections.Counter()
        for name, tests in notes.items():
            for test, what in tests.items():
                if what["outcome"] == "failed":
                    print(f"{kernel}: failed: {test.removeprefix('tests/system/')}: {short(what['why'])}")
                elif what["outcome"] == "skipped":
                    reasons[f"test_{name}: {short(what['why'])}"] += 1
        for reason, times in reasons.items():
            print(f"{kernel}: skipped: {times} of {reason}")
        late = [f"test_{name}" for name, tests in notes.items() if not tests or count(tests)["not run"]]
        if late:
            print(f"{kernel}: no time was left for all of {', '.join(late)}; --resume goes on with them")
        counts = sum((count(tests) for tests in notes.values()), collections.Counter())
        total.update(counts)
        print(f"Linux {kernel}: {in_words(counts)}")
    print(in_words(total))
    return 1 if total["failed"] or not total["passed"] else 0


def in_words(counts):
    text = ", ".join(f"{counts[key]} {key}" for key in ("passed", "failed", "skipped"))
    if counts["not run"] or counts["file not run"]:
        text += f" ({counts['not run']} tests and {counts['file not run']} files not run)"
    return text


def main():
    command, directory, *rest = sys.argv[1:]
    if command == "run":
        return run(pathlib.Path(directory), rest)
    if command == "file":
        return run_file(pathlib.Path(directory), rest[0])
    return table(pathlib.Path(directory), rest[0].split(), rest[1].split())


if __name__ == "__main__":
    sys.exit(main())
