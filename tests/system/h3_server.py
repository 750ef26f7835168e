# SPDX-License-Identifier: BSD-2-Clause
"""
An HTTP/3 server for ConnectionID=registered: aioquic, whose connection IDs are 8 random octets, on
the socket of a worker of its own; each ID is told to the daemon before the first packet with it
leaves.

It runs in the tree of scripts/test-host. Its working directory is the daemon's runtime directory,
which is outside of the tree: worker.sock is found there by its name alone.
"""
import argparse
import select
import sys
import time

from aioquic.buffer import Buffer, encode_uint_var
from aioquic.h3.connection import FrameType, H3Connection, encode_frame
from aioquic.h3.events import HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import (ConnectionIdIssued, ConnectionIdRetired, ConnectionTerminated,
                                 HandshakeCompleted, ProtocolNegotiated)
from aioquic.quic.packet import QuicPacketType, pull_quic_header

import worker_protocol

CID_LENGTH = 8
BODY = b"answered\n"
GOAWAY_SECONDS = 2  # after the request to drain: until then a draining worker serves what it has


class Connection:
    def __init__(self, server, original_cid):
        self.server = server
        self.quic = QuicConnection(configuration=server.configuration,
                                   original_destination_connection_id=original_cid,
                                   session_ticket_fetcher=server.tickets.get,
                                   session_ticket_handler=server.keep_ticket)
        self.http = None
        self.next_stream = 0
        self.goaway_sent = False
        self.original_cid = original_cid  # the client's own, which it uses until it knows ours
        self.cids = set()                 # ours, told to the daemon
        server.by_cid[original_cid] = self
        server.connections.add(self)
        self.add([self.quic.host_cid])

    def add(self, cids):
        if cids:
            self.server.worker.add_cids(cids)
            self.cids.update(cids)
            self.server.by_cid.update(dict.fromkeys(cids, self))

    def retire(self, cids):
        if cids:
            self.server.worker.retire_cids(cids)
            self.cids.difference_update(cids)
            for cid in cids:
                self.server.by_cid.pop(cid, None)

    def handle_events(self):
        issued, retired = [], []
        event = self.quic.next_event()
        while event is not None:
            if isinstance(event, ConnectionIdIssued):
                issued.append(event.connection_id)
            elif isinstance(event, ConnectionIdRetired):
                retired.append(event.connection_id)
            elif isinstance(event, ProtocolNegotiated):
                self.http = H3Connection(self.quic)
            elif isinstance(event, HandshakeCompleted):
                print("resumed" if event.session_resumed else "new",
                      "early" if event.early_data_accepted else "", flush=True)
            elif isinstance(event, ConnectionTerminated):
                self.ended()
                return
            if self.http:
                for request in self.http.handle_event(event):
                    self.answer(request)
            event = self.quic.next_event()
        self.add(issued)
        self.retire(retired)

    def answer(self, request):
        if not isinstance(request, HeadersReceived):
            return
        self.next_stream = max(self.next_stream, request.stream_id + 4)
        self.http.send_headers(request.stream_id, [(b":status", b"200")])
        self.http.send_data(request.stream_id, BODY, end_stream=True)

    def send_goaway(self):
        if self.http and not self.goaway_sent:
            self.goaway_sent = True
            self.quic.send_stream_data(self.http._local_control_stream_id, encode_frame(
                FrameType.GOAWAY, encode_uint_var(self.next_stream)))

    def flush(self):
        """IDs are issued as packets are written: they are told before these are sent."""
        self.handle_events()
        datagrams = self.quic.datagrams_to_send(now=time.monotonic())
        self.handle_events()
        for octets, address in datagrams:
            try:
                self.server.socket.sendto(octets, address)
            except BlockingIOError:
                pass

    def ended(self):
        self.retire(list(self.cids))
        self.server.by_cid.pop(self.original_cid, None)
        self.server.connections.discard(self)


class Server:
    def __init__(self, arguments):
        self.worker = worker_protocol.Worker("worker.sock", service=arguments.service,
                                             instance=arguments.instance)
        self.socket = self.worker.socket
        self.configuration = QuicConfiguration(is_client=False, alpn_protocols=["h3"],
                                               connection_id_length=CID_LENGTH, idle_timeout=20)
        self.configuration.load_cert_chain(arguments.certificate, arguments.key)
        self.by_cid = {}
        self.connections = set()
        self.goaway_at = None
        self.tickets = {}

    def keep_ticket(self, ticket):
        self.tickets[ticket.ticket] = ticket

    def receive(self):
        while True:
            try:
                octets, address = self.socket.recvfrom(65536)
            except BlockingIOError:
                return
            try:
                header = pull_quic_header(Buffer(data=octets), host_cid_length=CID_LENGTH)
            except ValueError:
                continue
            connection = self.by_cid.get(header.destination_cid)
            if connection is None and header.packet_type == QuicPacketType.INITIAL and \
                    len(octets) >= 1200:
                connection = Connection(self, header.destination_cid)
            if connection is None:
                print(f"nobody's: {header.destination_cid.hex()}", flush=True)
                continue
            connection.quic.receive_datagram(octets, address, now=time.monotonic())
            connection.flush()

    def drain_requested(self):
        connection = self.worker.connection
        while connection.events or select.select([connection.socket], [], [], 0)[0]:
            kind, _ = connection.wait_event()
            if kind == worker_protocol.DRAIN_REQUESTED:
                self.goaway_at = time.monotonic() + GOAWAY_SECONDS
                print("draining", flush=True)

    def run(self):
        """Until it was asked to drain and the last connection has ended."""
        print("ready", flush=True)
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        poll.register(self.worker.connection.socket, select.POLLIN)
        while True:
            poll.poll(5)
            self.receive()
            self.drain_requested()
            now = time.monotonic()
            going = self.goaway_at is not None and now >= self.goaway_at
            for connection in list(self.connections):
                timer = connection.quic.get_timer()
                if timer is not None and timer <= now:
                    connection.quic.handle_timer(now=now)
                if going:
                    connection.send_goaway()
                connection.flush()
            if going and not self.connections:
                self.worker.leave()
                return


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--service", default="web")
    parser.add_argument("--instance", required=True)
    parser.add_argument("--certificate", required=True)
    parser.add_argument("--key", required=True)
    Server(parser.parse_args()).run()


if __name__ == "__main__":
    sys.exit(main())
