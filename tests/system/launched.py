# SPDX-License-Identifier: BSD-2-Clause
"""
Servers of our own under reuseport-run, for exact counts: Python programs that say of themselves in
a file what the test wants to know. Those that bind for themselves (--adopt) begin with PRELUDE.
"""
import json
import pathlib
import textwrap

import pytest

import harness

PORT = 8080
ADDRESS = ("127.0.0.1", PORT)

PRELUDE = r"""
import errno, json, os, select, signal, socket, sys, threading, time
path = sys.argv[1]
def tell(**what):
    with open(path + ".new", "w") as stream:
        json.dump(dict(what, pid=os.getpid()), stream)
    os.rename(path + ".new", path)
def wait_for_go():
    while not os.path.exists(path + ".go"):
        time.sleep(0.01)
def bind(address, kind=socket.SOCK_STREAM, family=socket.AF_INET):
    s = socket.socket(family, kind)
    s.bind(address)
    return s
def listen(address, **options):
    s = bind(address, **options)
    s.listen(128)
    return s
def fails(function, *arguments):
    try:
        function(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
    return None
def serve(listeners, name):
    ended = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(1))
    poll = select.epoll()
    for each in listeners:
        each.setblocking(False)
        poll.register(each, select.EPOLLIN)
    by_fd = {each.fileno(): each for each in listeners}
    while not ended:
        for fd, _ in poll.poll(0.02):
            try:
                connection, _ = by_fd[fd].accept()
            except BlockingIOError:
                continue
            connection.setblocking(True)
            connection.sendall(name.encode() + b" " + connection.recv(4096))
            connection.close()
def answer_datagrams(s, name):
    while True:
        data, sender = s.recvfrom(2000)
        s.sendto(name.encode() + b" " + data, sender)
"""


class Launched:
    """code: the server's program; its first argument is the file in which it tells."""

    def __init__(self, daemon, directory, name, options, code, arguments=(), **popen):
        self.path = directory / f"{name}.json"
        self.name = name
        program = directory / f"{name}.py"
        program.write_text(code)
        self.process = harness.Process(
            [harness.REUSEPORT_RUN, "--socket", daemon.worker_socket, "--service", "web", *options,
             "--", "/usr/bin/python3", "-I", program, self.path, *arguments],
            directory / f"{name}.log", **popen)

    def told(self):
        """The last that it has told."""
        def there():
            assert self.process.returncode is None or self.path.exists(), self.process.output()
            return self.path.exists()
        harness.poll_until(there, "the server has told something")
        return json.loads(self.path.read_text())

    def go(self):
        """Ends its wait_for_go(), once it has told something."""
        self.told()
        self.path.with_name(self.path.name + ".go").touch()


class Adopted(Launched):
    """Under --adopt. code: what follows PRELUDE."""

    def __init__(self, daemon, directory, name, code, *options, **popen):
        super().__init__(daemon, directory, name, ("--adopt", *options),
                         PRELUDE + textwrap.dedent(code), **popen)


@pytest.fixture
def launch(tmp_path):
    """launch(class, daemon, name, ...): stopped at the end, and what it said is in the log."""
    running = []

    def start(kind, daemon, *arguments, **more):
        running.append(kind(daemon, tmp_path, *arguments, **more))
        return running[-1]
    yield start
    for each in running:
        each.process.stop()
        print(f"--- {each.name} said:\n{each.process.output()}--- end")


@pytest.fixture
def daemon(start_daemon, configuration):
    configuration.service("web", f"""[Service]
[Listener http]
ListenStream=127.0.0.1:{PORT}
[Listener admin]
ListenStream=127.0.0.1:{PORT + 1}
[Listener dns]
ListenDatagram=127.0.0.1:{PORT}
""")
    return start_daemon("--adopt", "--config", configuration.directory)


@pytest.fixture
def adopt(daemon, launch):
    """adopt(name, code, options of reuseport-run...): behind daemon."""
    def start(name, code, *options, **more):
        return launch(Adopted, daemon, name, code, *options, **more)
    return start


SYS_bind, SYS_poll = "49", "7"  # x86-64


def system_call(pid):
    """Number and arguments, as words, of the system call in which the process waits."""
    return pathlib.Path(f"/proc/{pid}/syscall").read_text().split()


def ask(name, port=PORT, count=20):
    clients = [harness.tcp_client(("127.0.0.1", port), b"request %d\n" % i) for i in range(count)]
    harness.check_answers(clients, name)
    harness.close_all(clients)


def exchange(name, count=50, address=ADDRESS):
    """Datagrams, each with an address of its own, and their answers."""
    clients = [harness.udp_client(address) for _ in range(count)]
    for i, client in enumerate(clients):
        client.send(b"%d" % i)
    assert [c.recv(100) for c in clients] == [name + b" %d" % i for i in range(count)]
    harness.close_all(clients)


def states(daemon):
    return sorted((w["instance"], w["state"]) for w in daemon.status("web")["workers"])


def wait_active(daemon, count=1):
    harness.poll_until(lambda: [state for _, state in states(daemon)].count("active") == count,
                       f"{count} active workers")
