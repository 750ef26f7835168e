# SPDX-License-Identifier: BSD-2-Clause
"""
Builds and tests; called by scripts/test, which installs what is missing first.

A case is what its own runner counts: a line of TAP for unit tests, a test for pytest. A build, the
check of the format, an installation and a fuzz target are one case each. The unit tests run twice,
plain and under the sanitizers, and count twice.
"""
import collections
import concurrent.futures
import importlib.util
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree

ROOT = pathlib.Path(__file__).resolve().parents[1]
DIRECTORIES = ("bpf", "classify", "client-lib", "common", "daemon", "examples", "proto", "tests", "tools")
FUZZ_SECONDS = 10
LEAK_TESTS = ("restart", "keeper")

BUILDS = {
    "gcc": ("gcc", ["-Dwerror=true"]),
    "clang": ("clang", ["-Dwerror=true"]),
    "sanitize": ("gcc", ["-Dwerror=true", "-Db_sanitize=address,undefined"]),
    "fuzz": ("clang", ["-Dwerror=true", "-Dfuzz=true"]),
}

INSTALLED = (
    "usr/sbin/reuseportd",
    "usr/libexec/reuseportd/reuseport-keep",
    "usr/bin/reuseportctl",
    "usr/bin/reuseport-run",
    "usr/libexec/reuseportd/reuseport-classify",
    "usr/include/reuseport.h",
    "usr/lib/sysusers.d/reuseportd.conf",
    "usr/lib/systemd/catalog/reuseportd.catalog",
    "usr/share/doc/reuseportd/examples/reuseport-example@.service",
    "usr/share/man/man8/reuseportd.8",
    "usr/share/man/man5/reuseportd.conf.5",
    "usr/share/man/man7/reuseportd-protocol.7",
    "usr/share/man/man1/reuseportctl.1",
    "usr/share/bash-completion/completions/reuseportctl",
    "usr/share/doc/reuseportd/README.md",
    "usr/share/doc/reuseportd/metrics.md",
    "usr/share/doc/reuseportd/grafana-dashboard.json",
)


class Results:
    def __init__(self):
        self.counts = collections.Counter(passed=0, failed=0, skipped=0)
        self.failures = []  # texts

    def add(self, name, passed=0, failed=0, skipped=0, failures=()):
        """failures: what there is to say of those that failed."""
        self.counts.update(passed=passed, failed=failed, skipped=skipped)
        print(f"-- {name}: {passed} passed, {failed} failed, {skipped} skipped", flush=True)
        if failed:
            self.failures.append(f"-- {name}: {failed} failed")
            self.failures.extend(failures)

    def print_failures(self):
        """Once more, at the end of a long output."""
        if self.failures:
            print("== failures", *self.failures, sep="\n", flush=True)

    def one(self, name, good):
        self.add(name, passed=int(good), failed=int(not good))
        return good


def run(arguments, timeout, environment=None, quiet=True):
    """Returns the exit status; prints what a quiet command said when it failed."""
    arguments = [str(a) for a in arguments]
    env = dict(os.environ, LC_ALL="C.UTF-8", **(environment or {}))
    output = subprocess.PIPE if quiet else None
    try:
        result = subprocess.run(arguments, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output,
                                stderr=subprocess.STDOUT, timeout=timeout, env=env, check=False)
    except FileNotFoundError as error:
        print(f"cannot run {arguments[0]}: {error}", flush=True)
        return 127
    except subprocess.TimeoutExpired as error:
        if error.stdout:
            sys.stdout.write(error.stdout.decode(errors="replace"))
        print(f"not within {timeout} s: {' '.join(arguments)}", flush=True)
        return 124
    if quiet and result.returncode:
        sys.stdout.write(result.stdout.decode(errors="replace"))
        print(f"status {result.returncode}: {' '.join(arguments)}", flush=True)
    return result.returncode


def last_lines(text):
    return "\n".join("    " + line for line in text.rstrip().splitlines()[-15:])


def describe(case, problem):
    """
    A test that failed, from pytest's report: what was raised, where in the test, where in what it
    called, and the last that each program said.
    """
    trace = problem.text or ""
    raised = re.findall(r"^E +(.*)$", trace, re.MULTILINE) or [problem.get("message") or "no message"]
    frames = re.findall(r"^(tests/system/\w+\.py:\d+): ", trace, re.MULTILINE)
    places = [frame for frame in frames if "/test_" in frame][-1:] + frames[-1:]
    output = "".join(each.text or "" for each in case.iter("system-out"))
    output = re.sub(r"^-+ Captured Out -+$", "", output, flags=re.MULTILINE).strip()
    said = re.findall(r"^--- (\S.* said:)\n(.*?)--- end$", output, re.MULTILINE | re.DOTALL)
    lines = [f"{case.get('classname')}::{case.get('name')} ({problem.tag})",
             *(f"    {line}" for line in raised[:6]),
             "    at " + ", ".join(dict.fromkeys(places or ["an unknown place"]))]
    for who, text in said or [("output:", output)] * bool(output):
        lines += [f"  {who}", last_lines(text)]
    return "\n".join(lines)


def fuzz(directory, name):
    """Whether a fuzz target of that build finds nothing."""
    program = directory / "tests" / "fuzz" / name
    seeds = ROOT / "tests" / "fuzz" / "corpus" / name.removeprefix("fuzz-")
    if not program.exists():
        print(f"{name} was not built")
        return False
    if not seeds.is_dir():
        print(f"{name} has no seeds in {seeds.relative_to(ROOT)}")
        return False
    with tempfile.TemporaryDirectory() as temporary:
        return run([program, f"-max_total_time={FUZZ_SECONDS}", "-timeout=60",
                    f"-artifact_prefix={temporary}/", "-print_final_stats=0", temporary, seeds], 300) == 0


class Tests:
    def __init__(self):
        self.results = Results()
        self.built = {}

    def build(self, name):
        """Builds once; the directory or None."""
        if name in self.built:
            return self.built[name]
        compiler, options = BUILDS[name]
        directory = ROOT / f"build-{name}"
        good = False
        # A directory that an earlier version of the tree left may not be usable: once more without.
        for _ in range(2):
            good = True
            if not (directory / "build.ninja").exists():
                shutil.rmtree(directory, ignore_errors=True)
                good = run(["meson", "setup", directory, "--prefix=/usr", *options], 600,
                           {"CC": compiler}) == 0
                fresh = True
            else:
                fresh = False
            good = good and run(["meson", "compile", "-C", directory], 1800) == 0
            if good or fresh:
                break
            shutil.rmtree(directory, ignore_errors=True)
        self.results.one(f"build with {compiler} ({name})", good)
        self.built[name] = directory if good else None
        return self.built[name]

    def run_builds(self):
        self.build("gcc")
        self.build("clang")

    def run_format(self):
        files = [path for directory in DIRECTORIES for path in sorted((ROOT / directory).rglob("*.[ch]"))
                 if path.is_file()]
        version = subprocess.run(["clang-format", "--version"], capture_output=True, text=True,
                                 check=False).stdout if shutil.which("clang-format") else ""
        if not re.search(r"version 14\.", version):
            print(f"clang-format 14 decides (Debian 12); here is: {version.strip() or 'none'}")
            self.results.add("format", skipped=1)
            return
        bad = [path for path in files
               if subprocess.run(["clang-format", "--dry-run", "-Werror", str(path)], cwd=ROOT,
                                 capture_output=True, check=False).returncode]
        for path in bad:
            print(f"not as clang-format has it: {path.relative_to(ROOT)}")
        self.results.one("format", bool(files) and not bad)

    def unit(self, build, title):
        directory = self.build(build)
        if not directory:
            self.results.add(title, failed=1)
            return
        log = directory / "meson-logs" / "testlog.json"
        log.unlink(missing_ok=True)
        status = run(["meson", "test", "-C", directory, "--no-rebuild", "--print-errorlogs",
                      "--suite", "unit", "--timeout-multiplier", "4"], 3600,
                     {"ASAN_OPTIONS": "detect_leaks=1", "UBSAN_OPTIONS":
                      "halt_on_error=1:print_stacktrace=1"})
        passed = failed = skipped = 0
        failures = []
        lines = log.read_text().splitlines() if log.exists() else []
        for line in lines:
            program = json.loads(line)
            cases = re.findall(r"^(ok|not ok) \d+(.*# *SKIP)?", program.get("stdout") or "",
                               re.MULTILINE | re.IGNORECASE)
            skipped += sum(1 for verdict, skip in cases if verdict == "ok" and skip)
            passed += sum(1 for verdict, skip in cases if verdict == "ok" and not skip)
            bad = sum(1 for verdict, _ in cases if verdict != "ok")
            # A program that crashed, was killed or said nothing failed, whatever it had counted.
            if not bad and (program["result"] not in ("OK", "SKIP") or not cases):
                print(f"{program['name']}: {program['result']}, {len(cases)} cases seen")
                bad = 1
            failed += bad
            if bad:
                said = (program.get("stdout") or "") + (program.get("stderr") or "")
                failures.append(f"{program['name']} ({program['result']})\n{last_lines(said)}")
        if not failed and (status or not lines):
            failed = 1
        self.results.add(title, passed, failed, skipped, failures)

    def run_unit(self):
        self.unit("gcc", "unit tests")

    def run_sanitize(self):
        self.unit("sanitize", "unit tests under AddressSanitizer and UndefinedBehaviorSanitizer")
        directory = self.build("sanitize")
        if not directory:
            return
        # Daemon, keeper and tools from start to end; each leak is a report, whoever looks at its status.
        title = "system tests of restarts under the same"
        with tempfile.TemporaryDirectory() as reports:
            os.chmod(reports, 0o1777)
            log = f"log_path={reports}/report"
            self.system(title, directory, [f"tests/system/test_{name}.py" for name in LEAK_TESTS],
                        {"ASAN_OPTIONS": f"detect_leaks=1:{log}",
                         "UBSAN_OPTIONS": f"halt_on_error=1:print_stacktrace=1:{log}"})
            found = sorted(pathlib.Path(reports).iterdir())
            for path in found:
                print(path.read_text(errors="replace"))
            self.results.one(f"{title}: no report", not found)

    @staticmethod
    def together():
        """
        Arguments for two files at a time: most tests wait most of the time, and each has namespaces
        and directories of its own.
        """
        return ["-n2", "--dist=loadfile"] if importlib.util.find_spec("xdist") else []

    def system(self, title, directory, tests, environment=None):
        with tempfile.TemporaryDirectory() as temporary:
            report = pathlib.Path(temporary) / "report.xml"
            status = run(["/usr/bin/python3", "-B", "-m", "pytest", "-p", "no:cacheprovider", "-q", "-rsfE",
                          *self.together(), "--durations=20", f"--junitxml={report}",
                          "-o", "junit_logging=system-out", *tests], 5400,
                         {"REUSEPORT_BUILD": str(directory), **(environment or {})}, quiet=False)
            if not report.exists():
                self.results.add(title, failed=1)
                return
            suites = list(xml.etree.ElementTree.parse(report).getroot().iter("testsuite"))
        total, failures, errors, skipped = (sum(int(suite.get(key, 0)) for suite in suites)
                                            for key in ("tests", "failures", "errors", "skipped"))
        failed = failures + errors
        # Status 5: no test was collected.
        if not failed and status:
            failed = 1
        problems = [describe(case, problem) for suite in suites for case in suite.iter("testcase")
                    for problem in case if problem.tag in ("failure", "error")]
        self.results.add(title, max(total - failures - errors - skipped, 0), failed, skipped,
                         problems)

    def run_system(self):
        if not list((ROOT / "tests" / "system").glob("test_*.py")):
            self.results.add("system tests", failed=1)
            return
        directory = self.build("gcc")
        if not directory:
            self.results.add("system tests", failed=1)
            return
        # Says itself what is wrong; the tests that need its tree are then skipped, and say why.
        if os.geteuid() == 0:
            for tree in ("trixie", "systemd-bookworm", "systemd-trixie", "debian-bookworm", "promtool"):
                run([ROOT / "scripts" / "test-host", tree], 900, quiet=False)
        self.system("system tests", directory, ["tests/system"])

    def run_fuzz(self):
        sources = sorted((ROOT / "tests" / "fuzz").glob("fuzz-*.c"))
        directory = self.build("fuzz")
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            good = pool.map(lambda source: directory and fuzz(directory, source.stem), sources)
            for source, result in zip(sources, good):
                self.results.one(f"{source.stem} for {FUZZ_SECONDS} s", bool(result))

    def run_install(self):
        directory = self.build("gcc")
        if not directory:
            self.results.add("installation", failed=1)
            return
        with tempfile.TemporaryDirectory() as destination:
            good = run(["meson", "install", "-C", directory, "--no-rebuild", "--destdir", destination],
                       300) == 0
            for path in INSTALLED:
                if not (pathlib.Path(destination) / path).exists():
                    print(f"not installed: /{path}")
                    good = False
            for unit in ("reuseportd.service", "reuseportd-worker.socket", "reuseportd-control.socket",
                         "reuseportd-metrics.service", "reuseportd-metrics.timer", "_reuseportctl"):
                if not list(pathlib.Path(destination).rglob(unit)):
                    print(f"not installed: {unit}")
                    good = False
        self.results.one("installation", good)


def main():
    steps = {
        "format": Tests.run_format,
        "build": Tests.run_builds,
        "unit": Tests.run_unit,
        "install": Tests.run_install,
        "sanitize": Tests.run_sanitize,
        "fuzz": Tests.run_fuzz,
        "system": Tests.run_system,
    }
    wanted = sys.argv[1:] or ["all"]
    unknown = [name for name in wanted if name != "all" and name not in steps]
    if unknown:
        print(f"usage: scripts/test [all | {' | '.join(steps)}]...; unknown: {' '.join(unknown)}",
              file=sys.stderr)
        return 2
    tests = Tests()
    for name, step in steps.items():
        if "all" in wanted or name in wanted:
            print(f"== {name}", flush=True)
            step(tests)
    tests.results.print_failures()
    counts = tests.results.counts
    print(f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped", flush=True)
    return 1 if counts["failed"] or not counts["passed"] else 0


if __name__ == "__main__":
    sys.exit(main())
