# SPDX-License-Identifier: BSD-2-Clause
"""
Keys of connection IDs: where they are kept, who can get at them, and that a rotation, a restart or a
new key file loses no packet.
"""
import errno
import json
import os
import pwd
import shutil
import signal
import stat
import time

import pytest

import harness
import quic_packets as quic
import quic_programs
import worker_protocol as proto
from control_client import ControlError

LISTEN = "web=tcp://127.0.0.1:8080"


def run_daemon(directory, *arguments):
    """A daemon that is expected to end by itself, with what it says."""
    return harness.run(harness.REUSEPORTD, "--listen", LISTEN, "--runtime-directory",
                       directory / "run", "--user", harness.USER, *arguments, check=False)


def test_state_directory_is_made_for_the_daemon_alone(start_daemon):
    daemon = start_daemon("--listen", LISTEN)
    status = daemon.state.stat()
    assert stat.S_IMODE(status.st_mode) == 0o700
    assert status.st_uid == pwd.getpwnam(harness.USER).pw_uid


def test_state_directory_of_the_configuration(start_daemon, configuration, tmp_path):
    tmp_path.chmod(0o755)
    named, option = tmp_path / "named", tmp_path / "option"
    configuration.write("reuseportd.conf", f"[Daemon]\nStateDirectory={named}\n")
    configuration.service("web", "[Service]\n[Listener http]\nListenStream=127.0.0.1:8080\n")
    # The option comes before the configuration.
    start_daemon("--config", configuration.directory, state=option).stop()
    assert option.is_dir() and not named.exists()


def test_directory_of_another_user_is_neither_used_nor_given_away(netns, tmp_path):
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    shutil.chown(state, 12345)
    result = run_daemon(tmp_path, "--state-directory", state)
    assert result.returncode == 1
    assert f"cannot become the owner of the state directory {state}: Operation not permitted " \
           f"(it has to belong to user {harness.USER})" in result.stderr
    assert state.stat().st_uid == 12345


def test_state_directory_that_cannot_be_made_is_told(netns, tmp_path):
    state = tmp_path / "absent" / "state"
    result = run_daemon(tmp_path, "--state-directory", state)
    assert result.returncode == 1
    assert f"cannot create the state directory {state}: No such file or directory" in result.stderr
    assert not os.path.exists(state.parent)


# Rotation. Packets go to ("127.0.0.1", QUIC_PORT) with IDs of a second codec (quic_packets.py).

QUIC_PORT = 4433
QUIC_ADDRESS = ("127.0.0.1", QUIC_PORT)
LISTEN_QUIC = f"web=quic://127.0.0.1:{QUIC_PORT}"
KEY_A, KEY_B, KEY_C = "8f95f09245765f80256934e50c66207f", "4d9d0fd25a25e7f321ef464e13f9fa3d", \
    "00112233445566778899aabbccddeeff"


def maker(worker):
    return quic.CidMaker(worker.listeners[0])


def deliver(workers, cids):
    """Sends a packet for each ID. How many each worker got, in the order of workers."""
    with harness.udp_client(QUIC_ADDRESS) as client:
        for i, cid in enumerate(cids):
            client.send(quic.short_packet(cid, b"%d" % i, size=60))
        received = harness.receive_datagrams(workers, len(cids))
    assert len({data for _, data, _ in received}) == len(cids)
    return [sum(1 for worker, _, _ in received if worker is each) for each in workers]


def decoded(daemon):
    """Packets whose ID named their worker, in all."""
    return daemon.status("web")["listeners"][0]["by_connection_id"]


def assert_decoded(daemon, workers, cids, counts):
    """Each of these goes where its ID says, none by chance."""
    before = decoded(daemon)
    assert deliver(workers, cids) == counts
    assert decoded(daemon) - before == len(cids)


def state_of(daemon, listener="quic"):
    return json.loads((daemon.state / f"web:{listener}.keys").read_text())


def rotations_of(daemon):
    return [entry["rotation"] for entry in state_of(daemon)["keys"]]


def keys_of(daemon):
    return daemon.status("web")["listeners"][0]["keys"]


def test_ids_of_before_and_after_a_rotation_reach_their_worker(start_daemon):
    daemon = start_daemon("--listen", LISTEN_QUIC)
    workers = [daemon.worker(instance=name) for name in "ab"]
    makers = [maker(worker) for worker in workers]
    old = [each.make() for each in makers for _ in range(50)]
    assert daemon.call("RotateKeys", service="web") == {"rotated": 1}
    fresh = []
    for worker, before in zip(workers, makers):
        event = worker.wait_keys_rotated()
        listener = worker.listeners[0]
        assert (event.worker, event.listener) == (0, 0)
        assert (listener.config_rotation, event.config_rotation) == (0, 1)
        assert (event.server_id_length, event.nonce_length) == (6, 10)
        assert event.server_id == listener.server_id
        assert event.key not in (listener.key, bytes(16))
        fresh += [quic.CidMaker(event).make() for _ in range(50)]
        # Whoever was not told, or is slow, goes on with the old key.
        old += [before.make() for _ in range(50)]
    assert_decoded(daemon, workers, old, [100, 100])
    assert_decoded(daemon, workers, fresh, [50, 50])
    # Nobody is told twice.
    for worker in workers:
        assert not harness.wait_readable([worker.connection.socket], 0)
        worker.leave()


def test_worker_that_comes_later_has_the_new_key_alone(start_daemon):
    daemon = start_daemon("--listen", LISTEN_QUIC)
    first = daemon.worker(instance="first")
    daemon.call("RotateKeys", service="web", listener="quic")
    event = first.wait_keys_rotated()
    second = daemon.worker(instance="second")
    assert second.listeners[0].key == event.key
    assert second.listeners[0].config_rotation == 1
    prefixes = {first.listeners[0].nonce_prefix, event.nonce_prefix,
                second.listeners[0].nonce_prefix}
    assert event.nonce_prefix != second.listeners[0].nonce_prefix and len(prefixes) >= 2
    assert_decoded(daemon, [first, second], [maker(second).make() for _ in range(20)], [0, 20])
    assert not harness.wait_readable([second.connection.socket], 0)
    first.leave()
    second.leave()


def test_seven_keys_live_at_once_and_no_more(start_daemon):
    daemon = start_daemon("--listen", LISTEN_QUIC)
    worker = daemon.worker(instance="old")
    makers = [maker(worker)]
    for rotation in range(1, 7):
        assert daemon.call("RotateKeys", service="web") == {"rotated": 1}
        event = worker.wait_keys_rotated()
        assert event.config_rotation == rotation
        makers.append(quic.CidMaker(event))
    assert len({each.configuration.key for each in makers}) == 7
    with pytest.raises(ControlError) as refused:
        daemon.call("RotateKeys", service="web")
    assert refused.value.name == "io.reuseport.Control.Failed"
    assert refused.value.parameters == {"errno": errno.EBUSY, "message":
        "all 7 rotations of listener 'quic' of service 'web' are in use, since workers live that "
        "had the oldest key; replace or drain them first"}
    assert not harness.wait_readable([worker.connection.socket], 0)
    assert_decoded(daemon, [worker], [each.make() for each in makers for _ in range(10)], [70])

    # With the last worker that had them the old keys are gone.
    later = daemon.worker(instance="later")
    assert later.listeners[0].config_rotation == 6
    worker.leave()
    assert daemon.call("RotateKeys", service="web") == {"rotated": 1}
    assert later.wait_keys_rotated().config_rotation == 0
    assert rotations_of(daemon) == [0, 6]
    assert keys_of(daemon) == {"rotation": 0, "rotations": [0, 6], "given": False}
    later.leave()


def test_old_key_is_forgotten_with_the_last_worker_that_had_it(start_daemon):
    daemon = start_daemon("--listen", LISTEN_QUIC)
    old = [daemon.worker(instance=name) for name in "ab"]
    before = maker(old[0])
    daemon.call("RotateKeys", service="web")
    new = daemon.worker(instance="new")
    old[0].leave()
    # b may still make IDs under the old key, so those are decoded; here they name the new one.
    assert_decoded(daemon, [old[1], new],
                   [before.make(slot=new.slot) for _ in range(20)], [0, 20])
    assert rotations_of(daemon) == [0, 1]
    old[1].leave()
    harness.poll_until(lambda: rotations_of(daemon) == [1], "the old key leaves the disk")
    assert before.configuration.key.hex() not in (daemon.state / "web:quic.keys").read_text()
    # IDs that nobody has had yet, and so are in no cache.
    count = decoded(daemon)
    assert deliver([new], [before.make(slot=new.slot) for _ in range(20)]) == [20]
    assert decoded(daemon) == count
    assert_decoded(daemon, [new], [maker(new).make() for _ in range(20)], [20])
    new.leave()


def test_restart_keeps_the_key_and_repeats_no_nonce_prefix(start_daemon):
    daemon = start_daemon("--listen", LISTEN_QUIC)
    state = daemon.state.with_name("state-kept")
    daemon.stop()
    first, prefixes, keys, secrets = None, [], set(), set()
    for i in range(6):
        daemon = start_daemon("--listen", LISTEN_QUIC, state=state)
        workers = [daemon.worker(instance=f"{i}-{k}") for k in range(3)]
        listeners = [worker.listeners[0] for worker in workers]
        prefixes += [listener.nonce_prefix for listener in listeners]
        keys |= {listener.key for listener in listeners}
        secrets |= {listener.token_secret for listener in listeners}
        first = first or maker(workers[0])
        cids = [first.make(slot=worker.slot) for worker in workers for _ in range(10)]
        assert_decoded(daemon, workers, cids, [10, 10, 10])
        if i % 2:
            assert daemon.stop() == 0
        else:
            daemon.killed = True
            daemon.process.process.kill()
            daemon.process.wait()
            harness.end_keeper(daemon.runtime)
            for worker in workers:
                worker.abandon()
    assert len(prefixes) == len(set(prefixes)) == 18
    assert (len(keys), len(secrets)) == (1, 1)


@pytest.fixture
def key_file(configuration):
    """write(text): the file, for the daemon's user."""
    path = configuration.directory / "cid-keys"

    def write(text):
        path.write_text(text)
        path.chmod(0o600)
        shutil.chown(path, harness.USER)
        return path

    return write


def quic_service(key_file=None):
    given = f"ConnectionIDKeyFile={key_file}\n" if key_file else ""
    return f"[Service]\nAllowUser=root\n[Listener quic]\nListenQUIC=127.0.0.1:{QUIC_PORT}\n{given}"


def test_keys_of_a_file_come_and_go_with_it(start_daemon, configuration, key_file):
    path = key_file(f"2 {KEY_A}\n1 {KEY_B}\n")
    configuration.service("web", quic_service(path))
    daemon = start_daemon("--config", configuration.directory)
    worker = daemon.worker()
    listener = worker.listeners[0]
    assert (listener.config_rotation, listener.key.hex()) == (2, KEY_A)
    assert keys_of(daemon) == {"rotation": 2, "rotations": [1, 2], "given": True}
    secret = listener.token_secret

    def make(rotation, key, count=10):
        listener.config_rotation, listener.key = rotation, bytes.fromhex(key)
        made = quic.CidMaker(listener)
        return [made.make() for _ in range(count)]

    assert_decoded(daemon, [worker], make(2, KEY_A) + make(1, KEY_B), [20])
    with pytest.raises(ControlError) as refused:
        daemon.call("RotateKeys", service="web")
    assert refused.value.parameters == {"errno": errno.EOPNOTSUPP, "message":
        f"the keys of listener 'quic' of service 'web' come from {path}: change them there and "
        "reload"}

    # A mistake changes nothing.
    key_file(f"3 {KEY_C}\n3 {KEY_A}\n")
    with pytest.raises(ControlError) as refused:
        daemon.call("Reload")
    assert f"{path}:2: config rotation 3 has a key on line 1 already" \
        in refused.value.parameters["message"]
    assert_decoded(daemon, [worker], make(2, KEY_A) + make(1, KEY_B), [20])

    # A new first key; one that is gone; one that is another under its rotation.
    key_file(f"3 {KEY_C}\n2 {KEY_A}\n")
    daemon.call("Reload")
    event = worker.wait_keys_rotated()
    assert (event.config_rotation, event.key.hex()) == (3, KEY_C)
    assert_decoded(daemon, [worker], make(3, KEY_C) + make(2, KEY_A), [20])
    count = decoded(daemon)
    assert deliver([worker], make(1, KEY_B)) == [10]
    assert decoded(daemon) == count
    key_file(f"3 {KEY_C}\n2 {KEY_B}\nsecret {KEY_A}{KEY_B}\n")
    daemon.call("Reload")
    assert_decoded(daemon, [worker], make(3, KEY_C) + make(2, KEY_B), [20])
    later = daemon.worker(instance="later")
    assert later.listeners[0].token_secret.hex() == KEY_A + KEY_B != secret.hex()
    # The first key is the same, so nobody has to be told anything.
    assert not harness.wait_readable([worker.connection.socket], 0)

    # Without the file the daemon makes its own.
    configuration.service("web", quic_service())
    daemon.call("Reload")
    events = [each.wait_keys_rotated() for each in (worker, later)]
    assert {event.config_rotation for event in events} == {0}
    assert {event.key.hex() for event in events} & {KEY_A, KEY_B, KEY_C} == set()
    assert_decoded(daemon, [worker, later],
                   [quic.CidMaker(event).make() for event in events for _ in range(10)], [10, 10])
    worker.leave()
    later.leave()


def test_two_hosts_with_one_key_file_read_each_others_ids(start_daemon, configuration, key_file):
    """As a router does: the ID of the other host decodes, and names the other host."""
    path = key_file(f"0 {KEY_A}\n")
    listeners = []
    for host in (1, 2):
        configuration.write("reuseportd.conf", f"[Daemon]\nHostID={host}\n")
        configuration.service("web", quic_service(path))
        daemon = start_daemon("--config", configuration.directory)
        listeners.append(daemon.worker().listeners[0])
        daemon.stop()
    assert len({listener.token_secret for listener in listeners}) == 1
    cids = [quic.CidMaker(listener).make() for listener in listeners]
    reader = quic.configuration_of(listeners[0])
    assert [reader.decode(cid)[0][:2] for cid in cids] == [b"\0\1", b"\0\2"]


def test_many_workers_of_a_client_that_does_not_read_are_told_when_it_does(start_daemon):
    daemon = start_daemon("--listen", LISTEN_QUIC)
    many = daemon.worker(instance="many", n_workers=1000)
    other = daemon.worker(instance="other")
    assert daemon.call("RotateKeys", service="web") == {"rotated": 1}
    assert other.wait_keys_rotated().config_rotation == 1
    # There is room for an answer all the while: one that finds none ends the connection.
    ready = many.connection.send(proto.READY, proto.REGISTRATION_FORMAT.pack(many.registration, 0))
    for _ in range(3):
        assert {worker["connected"] for worker in daemon.status("web")["workers"]} == {True}
    assert many.connection.answer(ready)[0] == proto.OK
    assert 0 < len(many.connection.events) < 250
    # What is left comes as it reads: by the clock alone, some 70 a second, it would take longer.
    end = time.monotonic() + 10
    events = [many.wait_keys_rotated() for _ in range(1000)]
    assert time.monotonic() < end
    assert sorted(event.worker for event in events) == list(range(1000))
    assert {event.config_rotation for event in events} == {1}
    assert len({event.nonce_prefix for event in events}) == 1000
    assert [event.server_id[:6] for event in sorted(events, key=lambda e: e.worker)] == \
        [quic.server_id(slot) for slot in many.slots]
    assert not harness.wait_readable([many.connection.socket], 0.2)
    many.leave()
    other.leave()


def test_rotation_between_two_grants_reaches_the_first_worker_as_well(start_daemon):
    """After the last ACK: before that the client would not know whose key it is."""
    daemon = start_daemon("--listen", LISTEN_QUIC)
    worker = daemon.worker(ready=False, register=False)
    connection = worker.connection
    kind, body, descriptors = connection.request(
        proto.REGISTER, proto.REGISTER_FORMAT.pack(b"web", b"two", 2, 0, 0))
    assert kind == proto.GRANT
    worker.granted(body, descriptors, 0, 2)
    assert worker.listeners[0].config_rotation == 0
    assert daemon.call("RotateKeys", service="web") == {"rotated": 1}
    kind, body, descriptors = connection.request(
        proto.ACK, proto.ACK_FORMAT.pack(worker.registration, 0, 0, 0))
    assert kind == proto.GRANT
    worker.granted(body, descriptors, 1, 2)
    assert worker.listeners[0].config_rotation == 1
    assert connection.events == []
    kind, _, _ = connection.request(
        proto.ACK, proto.ACK_FORMAT.pack(worker.registration, 1, 0, 0))
    assert kind == proto.OK
    event = worker.wait_keys_rotated()
    assert (event.worker, event.config_rotation) == (0, 1)
    assert not harness.wait_readable([connection.socket], 0.2)
    worker.leave()


@pytest.mark.parametrize("parameters, name, message", [
    ({"service": "absent"}, "NoSuchService", None),
    ({"service": "web", "listener": "absent"}, "Failed",
     "service 'web' has no listener 'absent'"),
    ({"service": "web", "listener": "tcp"}, "Failed",
     "listener 'tcp' of service 'web' has no key to rotate: it is not ConnectionID=quic-lb"),
    ({"service": "web"}, "Failed", "service 'web' has no listener with ConnectionID=quic-lb"),
])
def test_what_has_no_keys_is_told(start_daemon, parameters, name, message):
    daemon = start_daemon("--listen", LISTEN)
    assert keys_of(daemon) is None
    with pytest.raises(ControlError) as refused:
        daemon.call("RotateKeys", **parameters)
    assert refused.value.name == f"io.reuseport.Control.{name}"
    if message:
        assert refused.value.parameters["message"] == message


def test_only_admins_rotate(start_daemon):
    daemon = start_daemon("--listen", LISTEN_QUIC)
    nobody = pwd.getpwnam("nobody")

    def call():
        try:
            daemon.call("RotateKeys", service="web")
        except ControlError as error:
            return error.name
        return None

    assert harness.in_child(call, nobody.pw_uid, nobody.pw_gid) == \
        "io.reuseport.Control.PermissionDenied"
    assert rotations_of(daemon) == [0]


def test_ctl_rotates(start_daemon):
    daemon = start_daemon("--listen", LISTEN_QUIC, "--listen",
                          f"web=quic://127.0.0.1:{QUIC_PORT + 1}", "--listen", LISTEN)
    worker = daemon.worker()
    assert daemon.ctl("rotate-keys", "web").stdout == "rotate the keys of web: 2 listeners\n"
    assert sorted(worker.wait_keys_rotated().listener for _ in range(2)) == [0, 1]
    assert daemon.ctl("rotate-keys", "web", "quic-2").stdout == \
        "rotate the keys of web quic-2: 1 listener\n"
    event = worker.wait_keys_rotated()
    assert (worker.listeners[event.listener].name, event.config_rotation) == ("quic-2", 2)
    assert json.loads(daemon.ctl("rotate-keys", "web", "quic", "--json=short").stdout) == \
        {"rotated": 1}
    failed = daemon.ctl("rotate-keys", "web", "absent", check=False)
    assert failed.returncode == 1
    assert "service 'web' has no listener 'absent'" in failed.stderr
    for arguments in ((), ("a", "b", "c"), ("--service", "web", "web")):
        assert daemon.ctl("rotate-keys", *arguments, check=False).returncode == 2
    worker.leave()


SERVER = r"""
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include "reuseport.h"

/* Prints 50 IDs, and 50 more for each rotation; then every packet that it gets, by its text. */
static void make(struct reuseport *r, unsigned listener, void *data)
{
	for (int i = 0; i < 50; i++) {
		uint8_t cid[REUSEPORT_CID_OCTETS];
		int length = reuseport_cid_generate(r, 0, listener, cid, sizeof(cid));

		if (length < 0)
			exit(1);
		printf("cid ");
		for (int k = 0; k < length; k++)
			printf("%02x", cid[k]);
		printf("\n");
	}
	printf("made\n");
}

int main(int argc, char *argv[])
{
	struct reuseport_callbacks callbacks = { .keys_rotated = make };
	struct reuseport *r;

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (reuseport_open(&r, argv[1], 30000) != 0)
		return 1;
	reuseport_set_callbacks(r, &callbacks, NULL);
	if (reuseport_register(r, "web", argv[2], 1, 0, 30000) < 0 || reuseport_ready(r, 30000) < 0)
		return 1;
	make(r, 0, NULL);
	for (;;) {
		struct pollfd fds[2] = { { reuseport_socket(r, 0, 0), POLLIN, 0 },
			{ reuseport_get_fd(r), (short)reuseport_get_events(r), 0 } };
		char packet[2048];
		ssize_t n;

		poll(fds, 2, -1);
		if (fds[1].revents)
			reuseport_dispatch(r, 0);
		while ((n = recv(fds[0].fd, packet, sizeof(packet) - 1, MSG_DONTWAIT)) > 18) {
			packet[n] = 0;
			printf("packet %s\n", packet + 18);
		}
	}
}
"""


def test_library_makes_ids_under_the_new_key_at_once(start_daemon, tmp_path):
    source, link, program = (tmp_path / name for name in ("server.c", "libreuseport.so", "server"))
    source.write_text(SERVER)
    link.symlink_to(harness.LIBRARY)
    flags = ["-fsanitize=address,undefined"] \
        if "libasan" in harness.run("ldd", harness.LIBRARY).stdout else []
    harness.run("cc", "-std=gnu11", "-Wall", *flags, "-I", harness.ROOT / "client-lib", "-o",
                program, source, link, f"-Wl,-rpath,{harness.LIBRARY.parent}")
    daemon = start_daemon("--listen", LISTEN_QUIC)
    servers = [harness.Process([program, daemon.worker_socket, name], tmp_path / name)
               for name in ("one", "two")]

    def words(server, kind):
        lines = server.output().split("\n")[:-1]
        return [line.split(" ", 1)[1] for line in lines if line.startswith(kind + " ")]

    def wait_made(times):
        for server in servers:
            harness.poll_until(lambda s=server: s.output().count("made\n") == times,
                               f"IDs were made {times} times")

    try:
        wait_made(1)
        assert daemon.call("RotateKeys", service="web") == {"rotated": 1}
        wait_made(2)
        cids = [[bytes.fromhex(cid) for cid in words(server, "cid")] for server in servers]
        for each in cids:
            assert [cid[0] >> 5 for cid in each] == [0] * 50 + [1] * 50
        with harness.udp_client(QUIC_ADDRESS) as client:
            for name, each in zip(("one", "two"), cids):
                for i, cid in enumerate(each):
                    client.send(quic.short_packet(cid, b"%s-%d" % (name.encode(), i)))
        for name, server in zip(("one", "two"), servers):
            harness.poll_until(lambda s=server: len(words(s, "packet")) == 100, "100 packets")
            assert sorted(words(server, "packet")) == sorted(f"{name}-{i}" for i in range(100))
        assert decoded(daemon) == 200
    finally:
        for server in servers:
            server.stop(signal.SIGKILL)


@pytest.fixture
def start_quic_server(system, netns, tmp_path_factory):
    """Example servers that register with a daemon."""
    quic_programs.require_programs()
    directory = tmp_path_factory.mktemp("servers")
    certificate = quic_programs.Certificate(directory)
    servers = []

    def start(daemon, instance):
        server = quic_programs.QuicServer(certificate, directory / f"{len(servers)}.log",
                                          path=daemon.worker_socket, instance=instance)
        servers.append(server)
        return server

    yield start
    for server in servers:
        if server.process.returncode is None:
            server.kill()


def test_live_connections_outlast_rotations_and_replaced_servers(start_daemon, start_quic_server):
    """
    200 connections that migrate, to IDs from before a rotation and after it, and rebind, while the
    key changes under them and then their servers are replaced.
    """
    daemon = start_daemon("--listen", LISTEN_QUIC)
    old = [start_quic_server(daemon, f"quic@{i}") for i in range(4)]
    client = quic_programs.QuicClient(
        QUIC_ADDRESS, "--connections", 200, "--local-addresses", "127.0.0.1,127.0.0.2", "--script",
        "request,wait,migrate,request:2,wait,migrate,request:2,wait,rebind,request:2,wait,request")
    try:
        quic_programs.check(client.wait_ready(), connections=200, answered=200)
        for phase, migrated, rebound in ((1, 200, 0), (2, 400, 0), (3, 400, 200)):
            assert daemon.call("RotateKeys", service="web") == {"rotated": 1}
            client.go()
            quic_programs.check(client.wait_ready(), connections=200, answered=200 + 400 * phase,
                                migrations_completed=migrated, rebindings=rebound)
        assert rotations_of(daemon) == [0, 1, 2, 3]

        new = [start_quic_server(daemon, f"quic@{i}") for i in range(4)]
        for server in old:
            daemon.wait_state(server.slot, "draining")
        assert daemon.call("RotateKeys", service="web") == {"rotated": 1}
        fresh = quic_programs.run_client(QUIC_ADDRESS, "--connections", 100, "--script",
                                         "request,migrate,request:2")
        quic_programs.check(fresh, connections=100, answered=300, migrations_completed=100)
        assert set(quic_programs.by_slot(fresh)) == {server.slot for server in new}
        assert rotations_of(daemon) == [0, 1, 2, 3, 4]
        client.go()
        account = client.finish()
        quic_programs.check(account, connections=200, answered=1600, migrations_completed=400,
                            rebindings=200)
        assert set(quic_programs.by_slot(account)) == {server.slot for server in old}
    finally:
        client.cleanup()
    for server in old:
        server.process.wait()
        assert server.counters()["resets_sent"] == 0
    # The new ones had the key of the third rotation before they were told of the fourth.
    harness.poll_until(lambda: rotations_of(daemon) == [3, 4], "the keys of the old servers go")
    for server in new:
        assert server.stop()["resets_sent"] == 0
    harness.poll_until(lambda: rotations_of(daemon) == [4], "and then the last old one")
