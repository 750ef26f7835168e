# SPDX-License-Identifier: BSD-2-Clause
"""
The example QUIC server and client (examples/) as the tests start them: the server under a daemon or
with a socket of its own, the client step by step, and the accounts that both give in JSON.
"""
import json
import os
import signal
import subprocess

import pytest

import harness

EXAMPLES = harness.BUILD / "examples"
QUIC_SERVER = EXAMPLES / "quic-server"
QUIC_CLIENT = EXAMPLES / "quic-client"


def require_programs():
    if not QUIC_SERVER.exists() or not QUIC_CLIENT.exists():
        pytest.skip("examples/quic-server and quic-client are not built (they need libngtcp2 0.12)")


class Certificate:
    """ECDSA P-256, for whoever believes it."""

    def __init__(self, directory):
        self.certificate = directory / "cert.pem"
        self.key = directory / "key.pem"
        harness.run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
                    "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj",
                    "/CN=localhost", "-keyout", self.key, "-out", self.certificate)
        directory.chmod(0o755)
        self.key.chmod(0o644)


class QuicServer:
    """
    A worker. path: the daemon's worker socket; or socket: a bound UDP socket that it inherits
    alone, without a daemon. It is ready when this returns, unless told not to wait.
    """

    def __init__(self, certificate, log, *arguments, path=None, socket=None, service="web",
                 instance=None, wait=True, user=None):
        command = [QUIC_SERVER, "--service", service, "--cert", certificate.certificate, "--key",
                   certificate.key, *arguments]
        if instance:
            command += ["--instance", instance]
        environment = {**os.environ, "REUSEPORT_SOCKET": str(path or log.parent / "absent")}
        options = {} if user is None else {"user": user, "group": user, "extra_groups": []}
        if socket:
            # What systemd does for a socket unit: descriptor 3, LISTEN_PID. bash, since sh takes
            # no descriptor of two digits.
            command = ["/bin/bash", "-c", f'exec 3<&{socket.fileno()}; LISTEN_PID=$$ exec "$@"', "bash",
                       *command]
            environment["LISTEN_FDS"] = "1"
            options["pass_fds"] = [socket.fileno()]
        self.process = harness.Process(command, log, env=environment, **options)
        self.pid = self.process.pid
        self.slot = None
        if wait:
            self.wait_ready()

    def wait_ready(self):
        self.slot = self.wait_event("ready")["slot"]

    def events(self, name):
        lines = self.process.output().split("\n")[:-1]
        events = [json.loads(line) for line in lines if line.startswith("{")]
        return [event for event in events if event["event"] == name]

    def wait_event(self, name, after=0):
        """The event of that name that comes after so many others of it."""
        def found():
            events = self.events(name)
            if len(events) > after:
                return events[after]
            assert self.process.returncode is None or name == "end", \
                f"quic-server ended with {self.process.returncode}:\n{self.process.output()}"
            return None
        return harness.poll_until(found, f"quic-server says {name}")

    def counters(self):
        """What it has counted so far, or in all when it has ended."""
        if self.process.returncode is not None:
            return self.events("end")[-1]
        before = len(self.events("counters"))
        self.process.send_signal(signal.SIGUSR1)
        return self.wait_event("counters", before)

    def stop(self):
        """Ends it and returns what it counted."""
        assert self.process.stop() == 0, self.process.output()
        return self.wait_event("end")

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


class QuicClient:
    """
    A run of the client. Its phases: wait_ready(), then go(). timeout: in seconds, on a machine of its
    own.
    """

    def __init__(self, address, *arguments, timeout=30):
        timeout *= harness.PATIENCE
        command = [QUIC_CLIENT, *address, "--timeout", timeout, *arguments]
        self.timeout = timeout
        self.process = subprocess.Popen([str(a) for a in command], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True)

    def read_event(self, name):
        line = self.process.stdout.readline()  # ends, as the client ends in time by itself
        assert line, f"quic-client ended with {self.process.wait(harness.DEADLINE)}"
        event = json.loads(line)
        assert event["event"] == name, event
        return event

    def wait_ready(self):
        """Every connection waits for go(); the account until now."""
        return self.read_event("ready")

    def go(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def finish(self):
        """The whole account, when the script is done."""
        account = self.read_event("end")
        assert self.process.wait(harness.DEADLINE) == 0
        return account

    def cleanup(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def run_client(address, *arguments, **options):
    """A run without phases."""
    client = QuicClient(address, *arguments, **options)
    try:
        return client.finish()
    finally:
        client.cleanup()


def check(account, **expected):
    """
    These figures, and 0 for each kind of failure that isn't named. handshakes_completed is that of
    connections unless given.
    """
    failures = ("handshakes_failed", "wrong_worker", "wrong_answers", "connections_lost",
                "stateless_resets", "refused", "migrations_failed", "early_data_rejected")
    expected = {**dict.fromkeys(failures, 0), **expected}
    if "connections" in expected:
        expected.setdefault("handshakes_completed", expected["connections"])
    found = {name: account[name] for name in expected}
    assert found == expected, account


def by_slot(account):
    """Slot → connections whose first answer came from there."""
    slots = {}
    for worker in account["workers"]:
        slots[worker["slot"]] = slots.get(worker["slot"], 0) + worker["connections"]
    return slots
