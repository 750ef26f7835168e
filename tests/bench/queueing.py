# SPDX-License-Identifier: BSD-2-Clause
"""
How long a new request waits when one of four workers is slow: spread by hash alone, and to the less
loaded of two candidates by the loads that the workers publish.
"""
import array
import ctypes
import mmap
import os
import random
import socket
import struct
import sys
import time
import traceback

import harness
from worker_protocol import Worker

from .place import Place, listener, stop

WORKERS = 4
QUICK, SLOW = 0.001, 0.008  # seconds of work that a request makes
RATE = 400                  # requests a second in all, at random moments
FULL = 0.05                 # seconds for a request, on average, that a worker calls a load of 1000
STAMP = struct.Struct("<d")


class Shared:
    """Memory of all processes: what each worker has done, and how long each request waited."""

    def __init__(self, requests):
        self.requests = requests
        self.memory = mmap.mmap(-1, 8 * WORKERS * (1 + requests))
        self.done = (ctypes.c_uint64 * WORKERS).from_buffer(self.memory)
        self.waits = (ctypes.c_double * (WORKERS * requests)).from_buffer(self.memory, 8 * WORKERS)

    def note(self, worker, wait):
        self.waits[worker * self.requests + self.done[worker]] = wait
        self.done[worker] += 1

    def sorted(self):
        waits = array.array("d")
        for worker in range(WORKERS):
            begin = worker * self.requests
            waits.extend(self.waits[begin:begin + self.done[worker]])
        return sorted(waits)


def serve(worker, number, shared, publish):
    """Takes requests one after the other until it is killed."""
    average = 0
    if publish:
        worker.share_load()
        worker.set_load(0)
    while True:
        try:
            octets = worker.socket.recv(64)
        except BlockingIOError:
            harness.wait_readable([worker], 1)
            continue
        sent = STAMP.unpack(octets)[0]
        shared.note(number, time.monotonic() - sent)
        time.sleep(SLOW if number == 0 else QUICK)
        average += (time.monotonic() - sent - average) / 8
        if publish:
            worker.set_load(min(1000, int(1000 * average / FULL)))


class Server:
    def __init__(self, place, number, shared, publish):
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                harness.close_inherited({0, 1, 2, writer})
                worker = Worker(place.socket, service="bench")
                os.close(writer)
                serve(worker, number, shared, publish)
            except BaseException:
                traceback.print_exc(file=sys.stderr)
            finally:
                os._exit(1)
        os.close(writer)
        with os.fdopen(reader, "rb") as stream:
            stream.read()

    def end(self):
        os.kill(self.pid, 9)
        os.waitpid(self.pid, 0)


def send(port, requests, chance):
    """Each request is a new flow. Those that are late are sent at once: the rate stays."""
    at = time.monotonic()
    for _ in range(requests):
        at += chance.expovariate(RATE)
        time.sleep(max(0, at - time.monotonic()))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(STAMP.pack(time.monotonic()), ("127.0.0.1", port))


def measure_once(place, port, requests, publish, chance):
    """Seconds that each request waited, the least first; and how many the slow worker got."""
    shared = Shared(requests)
    servers = [Server(place, i, shared, publish) for i in range(WORKERS)]
    try:
        send(port, requests, chance)
        end = time.monotonic() + 60
        while sum(shared.done) < requests and time.monotonic() < end:
            time.sleep(0.01)
        if sum(shared.done) != requests:
            stop(f"queueing: {sum(shared.done)} of {requests} requests were answered")
        return shared.sorted(), shared.done[0]
    finally:
        for server in servers:
            server.end()


def measure(run):
    run.report.subject(
        "queueing", f"Time that a request waits: {RATE} a second, each a new flow, at four workers "
        f"that need {QUICK * 1000:.0f} ms for one, but one of them {SLOW * 1000:.0f} ms",
        "Each worker says how long its last requests took: a moving average, the last one by 1/8.")
    requests = run.pick(4000, 1200, 100)
    port = next(run.ports)
    place = Place(run, listener(port, "ListenDatagram"))
    values = {}
    try:
        for i in range(run.pick(5, 3, 1)):
            for way in ("hash", "load"):
                run.progress(f"queueing: {way}, round {i + 1}")
                # The same moments for both.
                waits, slow = measure_once(place, port, requests, way == "load", random.Random(i))
                for name, share in (("p50", 0.5), ("p99", 0.99)):
                    values.setdefault(f"{way}/{name}", []).append(
                        waits[int(share * (len(waits) - 1))] * 1000)
                values.setdefault(f"{way}/slow", []).append(100 * slow / requests)
    finally:
        place.close()
    titles = {"p50": "p50", "p99": "p99", "slow": "requests that the slow one got"}
    for name, title in titles.items():
        unit = "%" if name == "slow" else "ms"
        plain = run.report.add("queueing", f"hash/{name}", f"{title}, by hash alone", unit,
                               values[f"hash/{name}"])
        run.report.add("queueing", f"load/{name}", f"{title}, by published load", unit,
                       values[f"load/{name}"], versus=plain)
