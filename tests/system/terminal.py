# SPDX-License-Identifier: BSD-2-Clause
"""A program on a terminal of its own: pyte plays the terminal, so that a test sees what a person would."""
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time

import pyte

import harness


class Terminal:
    """
    Runs a program with a pseudo-terminal as its controlling one. screen is the picture; history has
    all octets that came.
    """

    def __init__(self, arguments, columns=80, rows=24, environment=None):
        self.master, slave = pty.openpty()
        self.screen = pyte.Screen(columns, rows)
        self.stream = pyte.ByteStream(self.screen)
        self.history = b""
        self.set_size(columns, rows)
        self.before = termios.tcgetattr(slave)
        self.slave = slave  # kept, so that its settings can be read after the program's end
        self.process = subprocess.Popen(
            [str(a) for a in arguments], stdin=slave, stdout=slave, stderr=slave,
            env={**os.environ, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8", **(environment or {})},
            start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))

    def set_size(self, columns, rows):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def resize(self, columns, rows):
        """As a terminal does: the kernel sends SIGWINCH to the foreground process group."""
        self.read(0)
        self.screen.resize(rows, columns)
        self.set_size(columns, rows)

    def read(self, seconds):
        """What comes within this time, onto the screen."""
        end = time.monotonic() + seconds
        while select.select([self.master], [], [], max(0, end - time.monotonic()))[0]:
            try:
                octets = os.read(self.master, 65536)
            except OSError:
                return  # EIO: nobody has the other end open
            if not octets:
                return
            self.history += octets
            self.stream.feed(octets)

    def lines(self):
        return [line.rstrip() for line in self.screen.display]

    def text(self):
        return "\n".join(self.lines())

    def wait_for(self, condition, what):
        """condition is of the screen's text, or a string that is in it."""
        def met():
            self.read(0.05)
            return condition in self.text() if isinstance(condition, str) else condition(self.text())
        try:
            harness.poll_until(met, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.text()}") from None

    def press(self, keys):
        os.write(self.master, keys.encode())

    def end(self):
        """Exit status, negative for a signal; the program must end by itself."""
        def ended():
            self.read(0.05)
            return self.process.poll() is not None
        harness.poll_until(ended, f"the program on the terminal ends\n{self.text()}")
        self.read(0.05)
        return self.process.returncode

    def is_restored(self):
        """The terminal's settings are as they were, its own screen is shown, and the cursor."""
        other = self.history.rfind(b"\x1b[?1049h")
        hidden = self.history.rfind(b"\x1b[?25l")
        return termios.tcgetattr(self.slave) == self.before \
            and self.history.rfind(b"\x1b[?1049l") >= other \
            and self.history.rfind(b"\x1b[?25h") >= hidden

    def close(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.send_signal(signal.SIGCONT)
            self.process.wait()
        os.close(self.master)
        os.close(self.slave)
