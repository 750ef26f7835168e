# SPDX-License-Identifier: BSD-2-Clause
"""
Servers of Debian's that bind for themselves, with the configuration that they would have anyway,
and clients that count what fails.
"""
import os
import re
import signal
import socket
import subprocess
import threading
import time

import harness

ADDRESS = "127.0.0.1"
PORT = 8080

NGINX = """
daemon off;
pid {directory}/pid;
error_log stderr notice;
worker_processes {workers};
events {{ worker_connections 1024; }}
http {{
    access_log off;
    keepalive_timeout {keepalive};
    keepalive_requests 1000000000;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen 127.0.0.1:{port}{listen};
        location / {{ return 200 "answered\\n"; }}
    }}
}}
"""

HAPROXY = """
global
    nbthread 2
defaults
    mode http
    timeout client 30s
    timeout connect 5s
    timeout server 30s
frontend web
    bind 127.0.0.1:{port}
    http-request return status 200 content-type text/plain string answered
"""

CADDY = """
{{
    admin off
    auto_https off
}}
http://127.0.0.1:{port} {{
    bind 127.0.0.1
    respond "answered"
}}
"""

NODE = """
const server = require('http').createServer((request, response) => response.end('answered'));
server.listen({port}, '127.0.0.1');
process.on('SIGTERM', () => server.close());
"""

DNSMASQ = """
keep-in-foreground
port={port}
listen-address=127.0.0.1
bind-interfaces
no-resolv
no-hosts
pid-file=
user=root
address=/name.test/192.0.2.7
"""


def nginx(directory, port=PORT, workers=1, listen="", keepalive=0):
    """Writes nginx.conf, and returns the command line. Its master's pid will be in the file pid."""
    (directory / "nginx.conf").write_text(NGINX.format(
        directory=directory, port=port, workers=workers, listen=listen, keepalive=keepalive))
    return ["nginx", "-e", "stderr", "-c", str(directory / "nginx.conf"), "-p", str(directory)]


UNBOUND = """
server:
    do-daemonize: no
    use-syslog: no
    username: ""
    chroot: ""
    directory: "{directory}"
    pidfile: ""
    interface: 127.0.0.1@{port}
    num-threads: 2
    so-reuseport: yes
    do-not-query-localhost: no
    module-config: "iterator"
    local-zone: "test." static
    local-data: "name.test. A 192.0.2.7"
remote-control:
    control-enable: no
"""


class Host:
    """One kind of server. command and files have {directory} and {port} in them."""

    def __init__(self, command, signal_name="TERM", delay=0, files=None, client="wrk", sockets=1):
        self.command = command  # or a function of the directory
        self.signal_name = signal_name  # ends it, once it has finished what it has, or at once:
        self.delay = delay  # seconds for what is under way, with servers that just stop
        self.files = files or {}
        self.client = client
        self.sockets = sockets  # on the address, so slots

    def prepare(self, directory):
        """Its command line; its files are in the directory then."""
        directory.mkdir(mode=0o755)
        if callable(self.command):
            return self.command(directory)
        for name, text in self.files.items():
            (directory / name).write_text(text.format(directory=directory, port=PORT))
        return [each.format(directory=directory, port=PORT) for each in self.command]


HOSTS = {
    "nginx": Host(lambda directory: nginx(directory, workers=4, listen=" reuseport"), "QUIT",
                  sockets=4),
    "haproxy": Host(["haproxy", "-db", "-f", "{directory}/haproxy.cfg"], "USR1",
                    files={"haproxy.cfg": HAPROXY}),
    "caddy": Host(["caddy", "run", "--adapter", "caddyfile", "--config", "{directory}/Caddyfile"],
                  files={"Caddyfile": CADDY}),
    "node": Host(["node", "{directory}/server.js"], files={"server.js": NODE}),
    "http.server": Host(["/usr/bin/python3", "-m", "http.server", "{port}", "--bind", "127.0.0.1",
                         "--directory", "{directory}"], delay=1, files={"index.html": "answered"}),
    "redis": Host(["redis-server", "--port", "{port}", "--bind", "127.0.0.1", "--save", "",
                   "--dir", "{directory}"], delay=1, client="redis"),
    "dnsmasq": Host(["dnsmasq", "--conf-file={directory}/dnsmasq.conf"], delay=1,
                    files={"dnsmasq.conf": DNSMASQ}, client="dns"),
    "unbound": Host(["unbound", "-d", "-c", "{directory}/unbound.conf"], delay=1,
                    files={"unbound.conf": UNBOUND}, client="dns", sockets=2),
}

LISTENERS = {
    "wrk": f"[Listener http]\nListenStream={ADDRESS}:{PORT}\n",
    "redis": f"[Listener redis]\nListenStream={ADDRESS}:{PORT}\n",
    "dns": f"[Listener udp]\nListenDatagram={ADDRESS}:{PORT}\n"
           f"[Listener tcp]\nListenStream={ADDRESS}:{PORT}\n",
}


class Wrk:
    """
    wrk, until finish(). A connection for each request where close says so: a server that closes an
    idle connection which is kept alive races with the client's next request in HTTP/1.1 itself.
    """

    def __init__(self, log, connections=16, port=PORT, close=True):
        self.process = harness.Process(
            ["wrk", "-t1", f"-c{connections}", "-d600", "--timeout", "60",
             *(["-H", "Connection: close"] if close else []), f"http://{ADDRESS}:{port}/"], log)
        # It connects once before it starts its threads, and ends if that fails.
        harness.poll_until(lambda: len(os.listdir(f"/proc/{self.process.pid}/task")) > 1,
                           "wrk is at work")

    def has_failures(self):
        return True  # it says so at the end alone

    def finish(self):
        """(answered, failed); what failed is in .errors and .not_good."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait() == 0, (self.process.returncode, self.process.output())
        output = self.process.output()
        self.requests = int(re.search(r"(\d+) requests in", output).group(1))
        errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)",
                           output)
        self.errors = dict(zip(("connect", "read", "write", "timeout"),
                               map(int, errors.groups()) if errors else (0, 0, 0, 0)))
        other = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
        self.not_good = int(other.group(1)) if other else 0
        return self.requests, sum(self.errors.values()) + self.not_good

    def kill(self):
        self.process.stop(signal.SIGKILL)


class Loop:
    """A command that is run again and again, and judged by its output; four at a time."""

    def __init__(self, arguments, right):
        self.arguments, self.right = arguments, right
        self.done = self.failed = 0
        self.lock = threading.Lock()
        self.ended = threading.Event()
        self.threads = [threading.Thread(target=self.run) for _ in range(4)]
        for each in self.threads:
            each.start()

    def ask(self):
        result = subprocess.run(self.arguments, stdin=subprocess.DEVNULL, capture_output=True,
                                text=True, timeout=60, check=False)
        return result.returncode == 0 and result.stdout.strip() == self.right

    def run(self):
        while not self.ended.is_set():
            good = self.ask()
            with self.lock:
                self.done += good
                self.failed += not good
            if not good:
                time.sleep(0.01)  # a real client does not come again at once, either

    def has_failures(self):
        return self.failed > 0

    def finish(self):
        self.kill()
        return self.done, self.failed

    def kill(self):
        self.ended.set()
        for each in self.threads:
            each.join()


def make_client(kind, directory):
    if kind == "wrk":
        return Wrk(directory / "wrk.log")
    if kind == "redis":
        return Loop(["redis-cli", "-h", ADDRESS, "-p", str(PORT), "PING"], "PONG")
    return Loop(["dig", f"@{ADDRESS}", "-p", str(PORT), "+tries=1", "+time=2", "+short",
                 "name.test"], "192.0.2.7")


def answers(kind):
    """Whether anybody does, for a start."""
    if kind != "dns":
        try:
            socket.create_connection((ADDRESS, PORT), 1).close()
            return True
        except OSError:
            return False
    return subprocess.run(["dig", f"@{ADDRESS}", "-p", str(PORT), "+tries=1", "+time=1", "+short",
                           "name.test"], capture_output=True, timeout=60,
                          check=False).stdout == b"192.0.2.7\n"
