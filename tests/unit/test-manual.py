# SPDX-License-Identifier: BSD-2-Clause
"""
The manual pages against what they describe: they render without a warning; each option, command, key,
function and error has its place in them, and none is there that does not exist; and the tables of
reuseportd-protocol(7) are the structures of proto/protocol.h, as the C compiler has them.

    test-manual.py SOURCE CC reuseportd=PROGRAM reuseportctl=PROGRAM reuseport-run=PROGRAM

Prints TAP.
"""
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import traceback

SOURCE = pathlib.Path(sys.argv[1])
CC = sys.argv[2].split()
PROGRAMS = dict(argument.split("=", 1) for argument in sys.argv[3:])
MANUAL = SOURCE / "docs" / "man"
SECTIONS = {"reuseportd": 8, "reuseportctl": 1, "reuseport-run": 1}


class Skip(Exception):
    pass


def run(*arguments, **options):
    return subprocess.run([str(a) for a in arguments], capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, timeout=120, check=False, **options)


def pages():
    return sorted(MANUAL.iterdir())


def plain(name):
    """Text of a page's source without fonts and escapes; macros keep their lines."""
    text = (MANUAL / name).read_text()
    text = re.sub(r"\\f[BIRP]|\\c$", "", text, flags=re.MULTILINE)
    return text.replace("\\-", "-").replace("\\&", "").replace("\\(aq", "'").replace("\\ ", " ")


def page_of(program):
    return f"{program}.{SECTIONS[program]}"


def require(program):
    if not shutil.which(program):
        raise Skip(f"{program} is missing")


def pages_render_without_a_warning():
    require("man")
    require("groff")
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "MANWIDTH": "80"}
    environment.pop("MANROFFOPT", None)
    assert len(pages()) >= 6
    for page in pages():
        done = run("man", "--warnings", "--encoding=UTF-8", "--troff-device=utf8", "--ditroff", "-l", page,
                   env=environment)
        assert done.returncode == 0 and done.stderr == "", f"{page.name}: {done.stderr}"
        assert len(done.stdout) > 1000, page.name


def mandoc_has_nothing_to_say():
    require("mandoc")
    for page in pages():
        done = run("mandoc", "-T", "lint", "-W", "warning", page)
        assert done.stdout == "", done.stdout


def pages_are_those_that_are_installed_and_name_each_other():
    installed = re.findall(r"'([\w.-]+\.\d)'", (SOURCE / "docs" / "meson.build").read_text())
    assert sorted(installed) == [page.name for page in pages()]
    names = {(page.stem, page.suffix[1:]) for page in pages()}
    version = re.search(r"version: '([\d.]+)'", (SOURCE / "meson.build").read_text()).group(1)
    for page in pages():
        text = plain(page.name)
        heading = re.search(r'^\.TH (\S+) (\d) \d{4}-\d\d-\d\d "reuseportd ([\d.]+)"$', text, re.MULTILINE)
        assert heading, f"{page.name}: .TH is not NAME SECTION DATE \"reuseportd VERSION\""
        assert (heading.group(1).lower(), heading.group(2)) == (page.stem, page.suffix[1:]), page.name
        assert heading.group(3) == version, page.name
        for name, section in re.findall(r"(\S*reuseport\S*?) ?\((\d)\)", text):
            assert (name, section) in names, f"{page.name} refers to {name}({section})"


def options_of(program):
    done = run(PROGRAMS[program], "--help")
    assert done.returncode == 0, done.stderr
    return done.stdout, set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", done.stdout))


def each_option_is_in_the_page_and_in_the_help():
    for program in SECTIONS:
        _, options = options_of(program)
        assert len(options) > 6
        text = plain(page_of(program))
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))
        assert not options - named, f"{page_of(program)} lacks {sorted(options - named)}"
        # Those that have a paragraph of their own.
        described = set()
        for tag in re.findall(r"^\.T[PQ][^\n]*\n([^\n]+)", text, re.MULTILINE):
            described |= set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", tag))
        assert len(described) > 4, program
        unknown = described - options
        assert not unknown, f"{page_of(program)} describes {sorted(unknown)}, which --help lacks"


def each_command_is_in_the_page():
    said, _ = options_of("reuseportctl")
    commands = set(re.findall(r"^  ([a-z][a-z-]+)\b", said.split("\nOptions:")[0], re.MULTILINE))
    assert {"status", "drain", "explain", "make-cid"} <= commands
    text = plain("reuseportctl.1")
    described = set()
    for tag in re.findall(r"^\.TP[^\n]*\n([^\n]+)", text.split(".SH COMMANDS")[1].split(".SH OPTIONS")[0],
                          re.MULTILINE):
        word = re.match(r'\.\w+ "?([a-z][a-z-]+)', tag)
        if word:
            described.add(word.group(1))
    missing = commands - described
    assert not missing, f"reuseportctl(1) lacks {sorted(missing)}"


def each_key_is_in_its_section():
    source = (SOURCE / "daemon" / "config-keys.c").read_text()
    keys = re.findall(r'^\t\{SECTION_(\w+), "(\w+)"', source, re.MULTILINE)
    assert len(keys) > 30
    parts = re.split(r"^\.SH \"?\[?(\w+)[^\n]*\n", plain("reuseportd.conf.5"), flags=re.MULTILINE)
    described = {(section, key) for section, text in zip(parts[1::2], parts[2::2])
                 for tag in re.findall(r"^\.TP[^\n]*\n([^\n]+)", text, re.MULTILINE)
                 for key in re.findall(r"\b([A-Z]\w+)=", tag)}
    assert not set(keys) - described, f"reuseportd.conf(5) lacks {sorted(set(keys) - described)}"
    assert not described - set(keys), f"reuseportd.conf(5) has {sorted(described - set(keys))}"


def the_sample_configuration_has_the_defaults_of_the_page():
    text = plain("reuseportd.conf.5")
    sample = (SOURCE / "examples" / "config" / "reuseportd.conf").read_text()
    values = re.findall(r"^#(\w+)=(.+)$", sample, re.MULTILINE)
    assert len(values) > 5
    for key, value in values:
        described = re.search(rf"^\.B {key}=\n(.*?)(?=^\.TP|^\.SH)", text, re.MULTILINE | re.DOTALL)
        assert described, key
        assert re.search(rf"Default: [^.]*{re.escape(value)}\b", described.group(1).replace("\n", " ")), \
            f"{key}={value} is not the default that reuseportd.conf(5) has"


def each_function_error_and_callback_is_in_the_page():
    header = (SOURCE / "client-lib" / "reuseport.h").read_text()
    text = plain("libreuseport.3")
    functions = set(re.findall(r"^(?:\w+ )+\**(reuseport_\w+)\(", header, re.MULTILINE))
    exported = set(re.findall(r"^\t(reuseport_\w+);$",
                              (SOURCE / "client-lib" / "libreuseport.map").read_text(), re.MULTILINE))
    assert functions == exported
    synopsis, description = text.split(".SH DESCRIPTION")
    for function in sorted(functions):
        assert re.search(rf"\b{function}\(", synopsis), f"libreuseport(3): no prototype of {function}()"
        assert re.search(rf"\b{function} ?\(", description), f"libreuseport(3): nothing on {function}()"
    for callback in re.findall(r"^\tvoid \(\*(\w+)\)", header, re.MULTILINE):
        assert re.search(rf"^\.B {callback}$", description, re.MULTILINE), callback
    errors = set(re.findall(r"-(E[A-Z]{3,})\b", header))
    named = set(re.findall(r"\bE[A-Z]{3,}\b", description.split(".SH ERRORS")[1]))
    assert not errors - named, f"libreuseport(3) lacks {sorted(errors - named)}"


def tables(text):
    """(structure or None, [rows]) of each table: the structure that the text before it names."""
    structure = None
    result = []
    for match in re.finditer(r"struct (protocol_\w+)|^\.SS Header|^\.TS\n.*?\.\n(.*?)\n\.TE", text,
                             re.MULTILINE | re.DOTALL):
        if match.group(1):
            structure = match.group(1)
        elif match.group(2) is None:
            structure = "protocol_header"
        else:
            result.append((structure, [row.split("\t") for row in match.group(2).split("\n")]))
            structure = None
    return result


def protocol_tables_are_the_structures():
    header = (SOURCE / "proto" / "protocol.h").read_text()
    structures = set(re.findall(r"^struct (protocol_\w+) \{", header, re.MULTILINE))
    constants = dict(re.findall(r"^#define (PROTOCOL_\w+_MAX|PROTOCOL_VERSION|PROTOCOL_\w+_OCTETS) (\d+)",
                                header, re.MULTILINE))
    types = {}
    for name, number in re.findall(r"^\tPROTOCOL_(\w+) = (\d+),", header.split("enum protocol_transport")[0],
                                   re.MULTILINE):
        types[name] = number
    checks, seen = [], set()
    for structure, rows in tables(plain("reuseportd-protocol.7")):
        head, rows = rows[0], rows[1:]
        if head[:3] == ["offset", "size", "field"]:
            assert structure, rows
            seen.add(structure)
            end = 0
            for offset, size, field, *_ in rows:
                assert int(offset) == end, f"struct {structure}: gap before {field}"
                end += int(size)
                checks.append(f"_Static_assert(offsetof(struct {structure}, {field}) == {offset} && "
                              f"sizeof(((struct {structure} *)0)->{field}) == {size}, "
                              f"\"{structure}.{field}\");")
            checks.append(f"_Static_assert(sizeof(struct {structure}) == {end}, \"{structure}\");")
        elif head[0] == "type":
            assert {name: number for number, name, *_ in rows} == types
        elif head[:2] == ["name", "value"]:
            assert {name: value for name, value, _ in rows} == constants
        else:
            assert head[0] == "cid_mode", head
            modes = re.findall(r"^\tPROTOCOL_CID_\w+ = (\d)", header.split("enum protocol_cid_mode")[1],
                               re.MULTILINE)
            assert [row[0] for row in rows] == modes
    assert seen == structures, f"missing: {structures - seen}; unknown: {seen - structures}"
    assert len(checks) > 70
    checks.append("_Static_assert(PROTOCOL_MAGIC == 0x44505552, \"magic\");")
    for name in "ACK_PROCESS", "REGISTER_ADOPT":
        assert f"1: PROTOCOL_{name}" in plain("reuseportd-protocol.7")
        checks.append(f"_Static_assert(PROTOCOL_{name} == 1, \"{name}\");")
    with tempfile.TemporaryDirectory() as directory:
        source = pathlib.Path(directory) / "check.c"
        source.write_text("#include <stddef.h>\n#include \"proto/protocol.h\"\n" + "\n".join(checks) + "\n")
        done = run(*CC, "-std=gnu11", "-fsyntax-only", f"-I{SOURCE}", source)
        assert done.returncode == 0, done.stderr


TESTS = [
    pages_render_without_a_warning,
    mandoc_has_nothing_to_say,
    pages_are_those_that_are_installed_and_name_each_other,
    each_option_is_in_the_page_and_in_the_help,
    each_command_is_in_the_page,
    each_key_is_in_its_section,
    the_sample_configuration_has_the_defaults_of_the_page,
    each_function_error_and_callback_is_in_the_page,
    protocol_tables_are_the_structures,
]


def main():
    print(f"1..{len(TESTS)}")
    failed = 0
    for number, test in enumerate(TESTS, 1):
        name = test.__name__.replace("_", " ")
        try:
            test()
            print(f"ok {number} - {name}")
        except Skip as skip:
            print(f"ok {number} - {name} # SKIP {skip}")
        except AssertionError as error:
            failed += 1
            for line in (str(error) or traceback.format_exc()).splitlines():
                print(f"# {line}")
            print(f"not ok {number} - {name}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
