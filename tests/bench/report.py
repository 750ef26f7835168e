# SPDX-License-Identifier: BSD-2-Clause
"""The figures of a run, and the one way to print them: as text, as Markdown, as JSON."""
import statistics

TITLE_WIDTH = 50


class Figure:
    """
    One thing that was measured, with the values of all repetitions. versus: the figure that it is
    compared with, repetition by repetition, so that what slows the machine down slows both sides.
    limit: what is aimed at, for the ratio where there is one, else for the median; a figure with
    at_least wants to be above it. Times and sizes want to be below.
    """

    def __init__(self, subject, name, title, unit, values, versus=None, limit=None,
                 at_least=False, **more):
        self.subject = subject
        self.name = name
        self.title = title
        self.unit = unit
        self.values = [float(v) for v in values]
        self.versus = versus
        self.limit = limit
        self.at_least = at_least
        self.more = more  # for the JSON alone

    @property
    def median(self):
        return statistics.median(self.values)

    @property
    def ratio(self):
        if not self.versus:
            return None
        mine, other = self.values, self.versus.values
        if len(mine) != len(other):
            return self.median / max(self.versus.median, 1e-9)
        return statistics.median(a / max(b, 1e-9) for a, b in zip(mine, other))

    @property
    def met(self):
        """Whether it is what it is meant to be; None: nothing is aimed at."""
        if self.limit is None:
            return None
        value = self.ratio if self.versus else self.median
        return value >= self.limit if self.at_least else value <= self.limit

    def to_json(self):
        result = {"subject": self.subject, "name": self.name, "title": self.title,
                  "unit": self.unit, "values": self.values, "median": self.median,
                  "min": min(self.values), "max": max(self.values), **self.more}
        if self.versus:
            result["versus"] = self.versus.name
            result["ratio"] = self.ratio
        if self.limit is not None:
            result["limit"] = self.limit
            result["at_least"] = self.at_least
            result["met"] = self.met
        return result

    def cells(self):
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}"
        aim = ""
        if self.limit is not None:
            aim = f"{'>=' if self.at_least else '<='} {short(self.limit)}"
            aim += " yes" if self.met else " NO"
        versus = self.versus.name if self.versus else ""
        return [self.title, short(self.median), short(min(self.values)), short(max(self.values)),
                self.unit, ratio, aim, versus]


HEADINGS = ["", "median", "least", "most", "unit", "ratio", "aim", "compared with"]


def short(value):
    """Three digits and a bit: what is behind them is noise."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) >= 100:
        return f"{value:.0f}" if value == int(value) else f"{value:.1f}"
    return f"{value:.0f}" if value == int(value) else f"{value:.2f}"


class Report:
    def __init__(self):
        self.figures = []
        self.titles = {}  # of subjects, in the order of the run
        self.remarks = {}

    def subject(self, name, title, *remarks):
        """What follows is about this; remarks stand below its table."""
        self.titles[name] = title
        self.remarks[name] = list(remarks)

    def remark(self, subject, text):
        self.remarks[subject].append(text)

    def add(self, subject, name, title, unit, values, **options):
        assert values, f"{subject}/{name} was not measured"
        figure = Figure(subject, name, title, unit, values, **options)
        self.figures.append(figure)
        return figure

    def of(self, subject):
        return [f for f in self.figures if f.subject == subject]

    def to_json(self, facts):
        return {**facts, "remarks": self.remarks, "figures": [f.to_json() for f in self.figures]}

    def print_text(self, facts):
        print(facts_line(facts))
        for subject, title in self.titles.items():
            figures = self.of(subject)
            if not figures:
                continue
            print(f"\n{title}")
            print_row(HEADINGS)
            for figure in figures:
                print_row(figure.cells())
            for remark in self.remarks[subject]:
                print(f"  {remark}")

    def print_markdown(self, facts):
        print(facts_line(facts))
        for subject, title in self.titles.items():
            figures = self.of(subject)
            if not figures:
                continue
            print(f"\n### {title}\n")
            print("| " + " | ".join(h or "what" for h in HEADINGS) + " |")
            print("| --- | ---: | ---: | ---: | --- | ---: | --- | --- |")
            for figure in figures:
                print("| " + " | ".join(figure.cells()) + " |")
            for remark in self.remarks[subject]:
                print(f"\n{remark}")


def facts_line(facts):
    return (f"Linux {facts['kernel']} {facts['architecture']}, {facts['cpu']} ({facts['cpus']} "
            f"CPUs), JIT {'on' if facts['bpf_jit_enable'] else 'OFF'}, commit "
            f"{facts['commit'] or 'unknown'}, load before {facts['load']:.1f}, "
            f"{facts['effort']} run of {facts['seconds']:.0f} s")


def print_row(cells):
    title, median, least, most, unit, ratio, aim, versus = cells
    print(f"{title:{TITLE_WIDTH}.{TITLE_WIDTH}} {median:>11} {least:>11} {most:>11} {unit:10} "
          f"{ratio:>6} {aim:12} {versus}".rstrip())


def percentile(samples, share):
    """The value that this share of the samples is at most; samples are sorted."""
    return samples[min(len(samples) - 1, int(len(samples) * share))]
