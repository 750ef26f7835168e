# SPDX-License-Identifier: BSD-2-Clause
"""The control socket seen by a program: Varlink, which is JSON that ends with NUL."""
import json
import socket

from patience import PATIENCE

INTERFACE = "io.reuseport.Control"
TIMEOUT = 30 * PATIENCE


class ControlError(Exception):
    def __init__(self, name, parameters):
        super().__init__(name, parameters)
        self.name = name
        self.parameters = parameters


class Control:
    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        # Without a time-out, so that it waits while the daemon's queue is full instead of failing
        # with EAGAIN; the alarm of the test bounds it.
        self.socket.connect(path)
        self.socket.settimeout(TIMEOUT)
        self.received = b""

    def close(self):
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def receive(self):
        while b"\0" not in self.received:
            octets = self.socket.recv(65536)
            if not octets:
                raise EOFError("the daemon closed the control connection")
            self.received += octets
        message, self.received = self.received.split(b"\0", 1)
        return json.loads(message)

    def send(self, method, parameters, **flags):
        """A method without a dot is one of io.reuseport.Control. flags: "more", "oneway", "upgrade"."""
        if "." not in method:
            method = INTERFACE + "." + method
        call = {"method": method, "parameters": parameters, **flags}
        self.socket.sendall(json.dumps(call).encode() + b"\0")

    def call(self, method, **parameters):
        """Parameters of the reply."""
        self.send(method, parameters)
        return self.reply()

    def reply(self):
        reply = self.receive()
        if "error" in reply:
            raise ControlError(reply["error"], reply.get("parameters", {}))
        return reply["parameters"]
