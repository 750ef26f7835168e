# SPDX-License-Identifier: BSD-2-Clause
"""
The commands of a page of documentation, and how they are run.

A fenced block says by its info string what it is:

    sh       commands, run one after the other by one shell; each must succeed
    console  commands after "$ ", each followed by what it prints
    others   no commands (ini, c, text, ...)

A comment before a block, which nobody sees who reads the page, says what else the test needs:

    <!-- test: file PATH -->              the block is the content of that file
    <!-- test: program PATH -->           the block is a C program, to be there compiled and linked with the
                                          library
    <!-- test: background until COMMAND -->   the block runs on, and the page goes on when COMMAND succeeds
    <!-- test: fails STATUS -->           the block ends with that status
    <!-- test: exact -->                  numbers of the output are compared as well
    <!-- test: not run: REASON -->        programs and options are looked up, nothing is run
    <!-- test: setup
    COMMANDS
    -->                                   run at this place, by a shell

What a console block shows is compared with what was printed: blanks count as one, "..." stands for anything,
and a number is any other number but 0, which is 0. Outside of "exact" an instance, an address or a word has
to be as it is written.
"""
import pathlib
import re
import shlex
from dataclasses import dataclass

COMMANDS = ("sh", "console")
# What is no command, so that a block can't be left out by a slip of the pen.
OTHERS = ("text", "ini", "c", "json", "nginx", "caddyfile", "haproxy", "yaml", "promql", "python")
LOOKS_LIKE_A_COMMAND = re.compile(
    r"^\s*(\$ |# |sudo |\./scripts/|(reuseport(d|ctl|-run)|systemctl|journalctl|apt|varlinkctl|curl|meson|ss"
    r"|ip|cc|gcc|docker|kubectl) )")


@dataclass
class Block:
    page: pathlib.Path
    line: int           # of its fence
    info: str
    text: str
    directive: str = ""

    @property
    def place(self):
        return f"{self.page.name}:{self.line}"


def read(page):
    """Blocks of a page in their order; a set-up is one with the info string "setup"."""
    blocks, directive, lines = [], "", page.read_text().split("\n")
    i = 0
    while i < len(lines):
        line = lines[i]
        if line.startswith("<!-- test: "):
            start = i
            while not lines[i].endswith("-->"):
                i += 1
            comment = "\n".join(lines[start:i + 1])
            comment = comment.removeprefix("<!-- test: ").removesuffix("-->").strip()
            if comment.startswith("setup\n"):
                blocks.append(Block(page, start + 1, "setup", comment.removeprefix("setup\n")))
            else:
                assert not directive, f"{page.name}:{start + 1}: two comments for one block"
                directive = comment
        elif line.startswith("```"):
            start = i
            i += 1
            while lines[i] != "```":
                i += 1
            blocks.append(Block(page, start + 1, line[3:].strip(), "\n".join(lines[start + 1:i]) + "\n",
                                directive))
            directive = ""
        elif line.strip():
            assert not directive, f"{page.name}:{i + 1}: the comment before is for a block, and none follows"
        i += 1
    assert not directive, page.name
    return blocks


def check_kinds(blocks):
    """What is wrong with the info strings of these blocks, as sentences."""
    for block in blocks:
        if block.info not in (*COMMANDS, *OTHERS, "setup"):
            yield f"{block.place}: the block is '{block.info}', none of {', '.join(COMMANDS + OTHERS)}"
        elif block.info in OTHERS and not block.directive.startswith(("file ", "program ")):
            for line in block.text.splitlines():
                if block.info == "text" and LOOKS_LIKE_A_COMMAND.match(line):
                    yield f"{block.place}: '{line.strip()}' looks like a command: sh or console"


def without_sudo(command):
    """The tests are root, and the machine has no sudo."""
    return re.sub(r"(^|\n|[;&|(])(\s*)sudo ", r"\1\2", command)


def console(text):
    """(command, output) of a console block."""
    result, continues = [], False
    for line in text.splitlines():
        if continues:
            result[-1][0] += "\n" + line
        elif line.startswith("$ "):
            result.append([line[2:], ""])
        else:
            assert result, f"a console block begins with '{line}', not with '$ '"
            result[-1][1] += line + "\n"
            continue
        continues = line.endswith("\\")
    return [tuple(each) for each in result]


NUMBER = re.compile(r"(?<![\w.@:/-])\d[\d,]*(?:\.\d+)?(?![\w@:/])")


def words(text, exact):
    def number(match):
        return match.group() if exact or not re.search(r"[1-9]", match.group()) else "1"
    lines = [re.sub(r"[\s─]+", " ", NUMBER.sub(number, line)).strip() for line in text.splitlines()]
    return "\n".join(line for line in lines if line)


def is_shown(printed, shown, exact):
    """Whether the page shows what was printed."""
    pattern = re.escape(words(shown, exact)).replace(r"\.\.\.", ".*")
    # A line of "..." alone stands for any number of lines, also for none.
    pattern = re.sub(r"(^|\\\n)\.\*(?=\\\n|$)", r"(?:\1.*)?", pattern)
    return re.fullmatch(pattern, words(printed, exact), re.DOTALL) is not None


def programs(text):
    """(program, its sub-command if it has one, [long options]) of each simple command of a script."""
    for line in without_sudo(text).replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        commands = [[]]
        for word in lexer:
            if re.fullmatch(r"[;&|()]+", word):
                commands.append([])
            elif commands[-1] or not re.match(r"\w+=", word):
                commands[-1].append(word)
        for arguments in filter(None, commands):
            if "--" in arguments:
                # What comes then is another program, and not there where it isn't run.
                arguments = arguments[:arguments.index("--")]
            options = [a.split("=")[0] for a in arguments[1:] if a.startswith("--")]
            yield arguments[0], [a for a in arguments[1:2] if re.fullmatch(r"[a-z][a-z-]*", a)], options
