# SPDX-License-Identifier: BSD-2-Clause
"""
An HTTP/3 client that counts what becomes of its requests and connections: many connections that
each go on requesting, while the client changes its port (as a NAT does, which neither end of the
connection is told of) or migrates to a new connection ID and address (RFC 9000 section 9).

It runs in the tree of scripts/test-host, whose python3 has aioquic, and knows nothing of
reuseportd. aioquic's protocol engine has no sockets of its own, which is what makes changing them
easy.

Counted, in the report (JSON, renewed four times a second and at the end):
  connections     opened, each with a handshake
  handshakes      completed
  failed          handshakes that did not complete
  closed          connections that ended in order (H3_NO_ERROR), by the server or by us
  connections_lost  any other end: reset, error, or silence: no answer within --patience
  resets          of these, the ones ended by a stateless reset
  requests        made; each is in the end either answered or lost, whatever it took
  answered        with status 200 and a body of --octets
  retried         requests that a server refused unprocessed as it went (GOAWAY, RFC 9114
                  section 5.2) and that were made again on a new connection; one in requests
  requests_lost   not answered, and not refused in that way
  rebound, migrated, rotated
                  changes of port alone; of connection ID, port and address; of connection ID
                  alone, which --move rotate does in turn with changes of port
  losses          the first of them in words
While there is a file REPORT.hold nobody moves, and "held" in the report says that this is so.
"""
import argparse
import json
import os
import select
import signal
import socket
import ssl
import sys
import time

from aioquic.buffer import Buffer
from aioquic.h3.connection import ErrorCode, FrameType, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import (ConnectionTerminated, HandshakeCompleted, StopSendingReceived,
                                 StreamReset)

SERVER = "127.0.0.1"
REPORT_SECONDS = 0.25


class Quic(QuicConnection):
    def _handle_stop_sending_frame(self, context, frame_type, buf):
        """aioquic 1.2 fails when it comes twice, as any frame may that is sent again."""
        try:
            super()._handle_stop_sending_frame(context, frame_type, buf)
        except AssertionError:
            pass  # the frame is read, and the stream has been reset


class Http(H3Connection):
    """Keeps the identifier of a GOAWAY, which aioquic 1.2 reads over."""
    goaway = None

    def _handle_control_frame(self, frame_type, frame_data):
        if frame_type == FrameType.GOAWAY:
            self.goaway = Buffer(data=frame_data).pull_uint_var()
        else:
            super()._handle_control_frame(frame_type, frame_data)


class Request:
    def __init__(self):
        self.status = None
        self.octets = 0
        self.stream = None
        self.progress = time.monotonic()


class Client:
    """One connection with at most one request under way."""

    def __init__(self, load, number, request=None):
        self.load = load
        self.number = number
        self.request = request  # to be made, or under way when it has a stream
        self.next_request = time.monotonic()
        self.started = self.next_request
        self.next_move = None
        self.moves = 0
        self.completed = False
        self.replaced = False  # another connection does our requests from now on
        self.ended = False
        self.tokens = set()
        self.socket = None
        load.count("connections")
        self.quic = Quic(configuration=load.configuration)
        self.http = Http(self.quic)
        self.open_socket()
        self.quic.connect((SERVER, load.arguments.port), now=self.started)
        self.flush()

    def open_socket(self, address=SERVER):
        if self.socket:
            self.load.forget(self)
            self.socket.close()
        self.heard = False  # from the server, on this socket
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.bind((address, 0))
        self.socket.connect((SERVER, self.load.arguments.port))
        self.load.watch(self)

    def flush(self):
        for octets, _ in self.quic.datagrams_to_send(now=time.monotonic()):
            try:
                self.socket.send(octets)
            except (BlockingIOError, ConnectionRefusedError):
                pass  # lost, as datagrams may be

    def is_reset(self, octets):
        """aioquic 1.2 does not look for stateless resets (RFC 9000 section 10.3.1)."""
        return len(octets) >= 21 and not octets[0] & 0x80 and octets[-16:] in self.tokens

    def note_tokens(self):
        for cid in (self.quic._peer_cid, *self.quic._peer_cid_available):
            if cid.stateless_reset_token:
                self.tokens.add(cid.stateless_reset_token)

    def receive(self):
        self.read()
        if not self.ended:
            self.work()

    def read(self):
        """All datagrams that have arrived."""
        while not self.ended:
            try:
                octets = self.socket.recv(65536)
            except BlockingIOError:
                break
            except ConnectionRefusedError:
                continue  # no socket there at this moment: patience decides
            if self.is_reset(octets):
                self.load.count("resets")
                self.end("stateless reset")
                return
            self.heard = True
            self.quic.receive_datagram(octets, (SERVER, self.load.arguments.port),
                                       now=time.monotonic())
            # One after the other: behind a GOAWAY and a close, a reset is of no account.
            self.handle_events()

    def due(self, now):
        """Whether there is something to do that no datagram has to come for."""
        if not self.completed:
            limit = self.started
        elif self.request is None:
            if self.next_request <= now and not self.replaced and not self.load.ending:
                return True
            limit = now
        else:
            limit = self.request.progress
        timer = self.quic.get_timer()
        return (timer is not None and timer <= now) or self.due_to_move(now) or \
            now > limit + self.load.arguments.patience or \
            (self.request is not None and self.request.stream is None and not self.replaced)

    def work(self):
        """Whatever can be done now."""
        self.handle_events()
        if self.ended:
            return
        now = time.monotonic()
        timer = self.quic.get_timer()
        if timer is not None and timer <= now:
            self.quic.handle_timer(now=now)
            self.handle_events()
            if self.ended:
                return
        self.note_tokens()
        self.check_patience(now)
        if self.ended:
            return
        if self.due_to_move(now):
            # A NAT that gives another port loses nothing of what has arrived already.
            self.read()
            self.handle_events()
            if self.due_to_move(now):
                self.move(now)
        if self.ended:
            return
        if self.completed and not self.replaced:
            self.make_request(now)
        if self.replaced and self.request is None:
            self.close()  # RFC 9114 section 5.2; some servers wait for it
            return
        self.flush()

    def due_to_move(self, now):
        """
        Only where something has come back: on a busy machine, moving on before the answer could
        arrive would go on for ever.
        """
        return not self.ended and not self.load.held and self.heard and \
            self.next_move is not None and self.next_move <= now and \
            (not self.replaced or self.request is not None)

    def check_patience(self, now):
        patience = self.load.arguments.patience
        if not self.completed:
            if now > self.started + patience:
                self.end("handshake not completed in time")
        elif self.request and self.request.stream is not None and \
                now > self.request.progress + patience:
            self.end("no answer in time")

    def move(self, now):
        arguments = self.load.arguments
        self.next_move = now + arguments.every
        self.moves += 1
        if self.moves == arguments.moves:
            self.next_move = None
        if arguments.move == "rebind" or (arguments.move == "rotate" and self.moves % 2 == 0):
            self.open_socket()
            # A client that only receives would never notice that its port is another one.
            self.quic.send_ping(self.load.count("rebound"))
        elif self.quic._peer_cid_available:
            self.quic.change_connection_id()
            if arguments.move == "rotate":
                self.load.count("rotated")
                self.quic.send_ping(-self.moves)
            else:
                moves = self.load.count("migrated")
                self.open_socket(f"127.0.0.{2 + moves % 200}")

    def make_request(self, now):
        if self.request is None:
            if now < self.next_request or self.load.ending:
                return
            self.request = Request()
            self.load.count("requests")
        if self.request.stream is not None:
            return
        request = self.request
        request.progress = now
        request.stream = self.quic.get_next_available_stream_id()
        self.http.send_headers(request.stream, [
            (b":method", b"GET"), (b":scheme", b"https"), (b":authority", self.load.arguments.server_name.encode()),
            (b":path", self.load.arguments.path.encode())], end_stream=True)

    def handle_events(self):
        event = self.quic.next_event()
        while event is not None and not self.ended:
            if isinstance(event, HandshakeCompleted):
                self.load.count("handshakes")
                self.completed = True
                self.next_move = self.load.first_move(self.number)
            elif isinstance(event, ConnectionTerminated):
                self.terminated(event)
                return
            elif isinstance(event, (StreamReset, StopSendingReceived)):
                self.stream_refused(event)
            for answer in self.http.handle_event(event):
                self.handle_answer(answer)
            if self.http.goaway is not None and not self.replaced:
                self.go_elsewhere()
            event = self.quic.next_event()
        # aioquic itself tells this at the end of the draining period only.
        if not self.ended and self.quic._close_event is not None:
            self.terminated(self.quic._close_event)

    def handle_answer(self, event):
        request = self.request
        if request is None or not isinstance(event, (HeadersReceived, DataReceived)) or \
                event.stream_id != request.stream:
            return
        request.progress = time.monotonic()
        if isinstance(event, HeadersReceived):
            request.status = dict(event.headers).get(b":status")
        else:
            request.octets += len(event.data)
        if not event.stream_ended:
            return
        good = request.status == b"200" and request.octets == self.load.arguments.octets
        if good:
            self.load.count("answered")
        else:
            self.load.lost_request(f"status {request.status}, {request.octets} octets")
        self.request = None
        self.next_request = time.monotonic() + self.load.arguments.pause

    def stream_refused(self, event):
        """The server ended our request's stream; only "not processed" is no loss."""
        if self.request is None or event.stream_id != self.request.stream:
            return
        if event.error_code == ErrorCode.H3_REQUEST_REJECTED:
            if not self.replaced:
                self.go_elsewhere(rejected=True)
        elif event.error_code != ErrorCode.H3_NO_ERROR:
            self.load.lost_request(f"stream ended with {event.error_code:#x}")
            self.request = None

    def go_elsewhere(self, rejected=False):
        """A new connection takes over; the request under way moves if the server didn't take it."""
        self.replaced = True
        request = None
        if self.request and self.request.stream is not None and \
                (rejected or self.request.stream >= self.http.goaway):
            self.load.count("retried")
            self.request = None
            request = Request()
        elif self.request and self.request.stream is None:
            request, self.request = self.request, None
        if request or not self.load.ending:
            self.load.add(Client(self.load, self.number, request))

    def terminated(self, event):
        if event.error_code == ErrorCode.H3_NO_ERROR and event.frame_type is None:
            self.end(None)
        else:
            self.end(f"closed with {event.error_code:#x} {event.reason_phrase!r}")

    def end(self, loss):
        """loss: why the connection is lost, None when it was closed in order."""
        if self.ended:
            return
        self.ended = True
        if not self.completed:
            self.load.count("failed")
            self.load.say(f"handshake: {loss or 'closed by the server'}")
        elif loss:
            self.load.count("connections_lost")
            self.load.say(f"connection {self.quic.host_cid.hex()}: {loss}")
        else:
            self.load.count("closed")
        request = None
        if self.request and self.request.stream is None:
            request = self.request  # not made yet, so not lost
        elif self.request:
            self.load.lost_request(f"its connection ended: {loss or 'closed by the server'}")
        self.load.forget(self)
        self.socket.close()
        self.load.clients.discard(self)
        if not self.replaced and (request or not self.load.ending):
            self.load.again(self.number, request)

    def close(self):
        self.quic.close(error_code=ErrorCode.H3_NO_ERROR)
        self.flush()
        self.end(None)


class Load:
    KEYS = ("connections", "handshakes", "failed", "closed", "connections_lost", "resets",
            "requests", "answered", "retried", "requests_lost", "rebound", "migrated", "rotated")

    def __init__(self, arguments):
        self.arguments = arguments
        self.configuration = QuicConfiguration(
            is_client=True, alpn_protocols=["h3"], server_name=arguments.server_name,
            verify_mode=ssl.CERT_NONE, idle_timeout=60)
        self.counts = dict.fromkeys(self.KEYS, 0)
        self.losses = []
        self.clients = set()
        self.by_fd = {}
        self.waiting = []  # (when, number, request): connections to open
        self.poll = select.epoll()
        self.ending = False
        self.next_report = 0
        self.reports = 0
        self.held = False

    def count(self, key):
        self.counts[key] += 1
        return self.counts[key]

    def say(self, text):
        if len(self.losses) < 40:
            self.losses.append(f"{time.monotonic():.3f} {text}")

    def lost_request(self, text):
        self.count("requests_lost")
        self.say(f"request: {text}")

    def first_move(self, number):
        """Spread over the interval, so that not all move at the same moment."""
        if not self.arguments.move:
            return None
        share = number % self.arguments.connections / self.arguments.connections
        return time.monotonic() + self.arguments.every * (0.2 + 0.8 * share)

    def watch(self, client):
        self.by_fd[client.socket.fileno()] = client
        self.poll.register(client.socket, select.EPOLLIN)

    def forget(self, client):
        if self.by_fd.pop(client.socket.fileno(), None):
            self.poll.unregister(client.socket)

    def add(self, client):
        self.clients.add(client)

    def again(self, number, request):
        """A new connection in place of one that was lost; not at once, in case all are refused."""
        self.waiting.append((time.monotonic() + 0.1, number, request))

    def report(self, now):
        if now < self.next_report:
            return
        self.next_report = now + REPORT_SECONDS
        self.reports += 1
        temporary = self.arguments.report + ".new"
        with open(temporary, "w", encoding="utf-8") as stream:
            json.dump({**self.counts, "open": sum(c.completed for c in self.clients),
                       "reports": self.reports, "held": self.held, "losses": self.losses}, stream)
        os.rename(temporary, self.arguments.report)

    def step(self):
        now = time.monotonic()
        self.held = os.path.exists(self.arguments.report + ".hold")
        for entry in [w for w in self.waiting if w[0] <= now]:
            self.waiting.remove(entry)
            if entry[2] or not self.ending:
                self.add(Client(self, entry[1], entry[2]))
        for fd, _ in self.poll.poll(0.005):
            if fd in self.by_fd:
                self.by_fd[fd].receive()
        now = time.monotonic()
        for client in [c for c in self.clients if c.due(now)]:
            client.work()
        self.report(now)

    def busy(self):
        return any(c.request or not c.completed for c in self.clients) or \
            any(request for _, _, request in self.waiting)

    def run(self):
        def end(*_):
            self.ending = True

        signal.signal(signal.SIGINT, end)
        signal.signal(signal.SIGTERM, end)
        numbers = list(range(self.arguments.connections))
        while not self.ending:
            # A few handshakes at a time: they are what costs.
            while numbers and sum(not c.completed for c in self.clients) < 8:
                self.add(Client(self, numbers.pop(0)))
            self.step()
        while self.busy():
            self.step()
        for client in list(self.clients):
            client.close()
        self.next_report = 0
        self.report(time.monotonic())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--report", required=True, help="file")
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--server-name", default="localhost")
    parser.add_argument("--path", default="/")
    parser.add_argument("--octets", type=int, default=9, help="of the body expected")
    parser.add_argument("--pause", type=float, default=0.1,
                        help="seconds from answer to next request")
    parser.add_argument("--move", choices=("rebind", "migrate", "rotate"))
    parser.add_argument("--every", type=float, default=1, help="seconds between moves")
    parser.add_argument("--moves", type=int, help="of each connection at most")
    parser.add_argument("--patience", type=float, default=20, help="seconds without any answer")
    Load(parser.parse_args()).run()


if __name__ == "__main__":
    sys.exit(main())
