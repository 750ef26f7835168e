# SPDX-License-Identifier: BSD-2-Clause
"""
The daemon is replaced, restarted or killed, and nobody notices: not the workers, whose connections
and sockets stay, not the clients, whose packets go where they went, not who reads the counters.
"""
import os
import shutil

import pytest

import harness
import quic_packets as quic
import worker_protocol as proto

PORT = 8080
ADDRESS = ("127.0.0.1", PORT)


def reexec(daemon):
    """In place; returns when the new program serves."""
    daemon.ctl("reexec")
    assert daemon.alive()


def test_reexec_keeps_workers_counters_and_connections(start_daemon):
    daemon = start_daemon("--listen", f"web=tcp://127.0.0.1:{PORT}")
    workers = [daemon.worker(instance=f"w{i}") for i in range(3)]
    clients = [harness.tcp_client(ADDRESS, b"request %d\n" % i) for i in range(50)]
    before = daemon.status("web")
    reexec(daemon)
    assert daemon.status("web") == before
    clients += [harness.tcp_client(ADDRESS, b"request %d\n" % i) for i in range(50, 100)]
    answered = 0
    for worker in workers:
        for connection in harness.accept_now(worker.socket):
            with connection:
                connection.sendall(b"w " + harness.receive_line(connection))
                answered += 1
    assert answered == 100
    harness.check_answers(clients, b"w")
    harness.close_all(clients)
    late = daemon.worker(instance="late")
    assert late.slot not in [worker.slot for worker in workers]
    for worker in workers:
        worker.drain()
        worker.leave()
    with harness.tcp_client(ADDRESS, b"request 0\n") as client:
        harness.answer_all(late.socket, 1, b"late")
        harness.check_answers([client], b"late")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_reexec_keeps_flows_and_the_standby(start_daemon, host):
    """Flows stay with their workers; what waits in the standby comes to the first new worker."""
    name = f"[{host}]" if ":" in host else host
    daemon = start_daemon("--listen", f"dns=udp://{name}:{PORT}")
    waiting = [harness.udp_client((host, PORT)) for _ in range(20)]
    for i, client in enumerate(waiting):
        client.send(b"waits %d" % i)
    reexec(daemon)
    first = daemon.worker(service="dns", instance="first", ready=False)
    reexec(daemon)
    received = harness.receive_datagrams([first], 20)
    assert sorted(data for _, data, _ in received) == sorted(b"waits %d" % i for i in range(20))
    first.ready()
    workers = [first] + [daemon.worker(service="dns", instance=f"w{i}") for i in range(3)]
    clients = [harness.udp_client((host, PORT)) for _ in range(200)]
    where = []
    for turn in range(3):
        for i, client in enumerate(clients):
            client.send(b"%d %d" % (turn, i))
        received = harness.receive_datagrams(workers, 200)
        where.append({data.split()[1]: worker for worker, data, _ in received})
        before = daemon.status("dns")
        reexec(daemon)
        assert daemon.status("dns") == before
        if turn == 0:  # a newcomer must not take flows that it has not begun
            workers.append(daemon.worker(service="dns", instance="newcomer"))
    assert where[0] == where[1] == where[2]
    harness.close_all(clients + waiting)


@pytest.mark.parametrize("mode", ["quic-lb", "quic-lb-plain", "registered", "nginx"])
def test_reexec_keeps_connection_ids(plane, mode):
    p = plane(mode)
    workers = [p.worker(f"w{i}") for i in range(3)]
    packets, expected = [], []
    for worker in workers:
        for cid in p.ids(worker, 20):
            packets.append(quic.short_packet(cid, size=60))
            expected.append(worker)
    initials = [quic.initial(dcid, size=100) for dcid in quic.unknown_ids(50)]
    handshakes = p.where(initials)
    assert p.where(packets) == expected
    before = p.daemon.status("web")
    reexec(p.daemon)
    assert p.daemon.status("web") == before
    newcomer = p.worker("newcomer")
    assert p.where(packets) == expected
    assert p.where(initials) == handshakes
    workers[0].drain()
    reexec(p.daemon)
    assert p.daemon.status_worker(workers[0].slot)["state"] == "draining"
    assert p.where(packets) == expected
    if mode == "registered":
        assert p.where([quic.short_packet(p.ids(newcomer, 1)[0], size=60)]) == [newcomer]


def test_reexec_between_the_keys_of_a_rotation(plane):
    """Old and new keys are decoded, who was told is not told again, prefixes don't come twice."""
    p = plane("quic-lb")
    workers = [p.worker(f"w{i}") for i in range(3)]
    old = [(worker, cid) for worker in workers for cid in p.ids(worker, 5)]
    p.daemon.ctl("rotate-keys", "web")
    prefixes = {worker.wait_keys_rotated().nonce_prefix for worker in workers}
    assert len(prefixes) == 3
    reexec(p.daemon)
    late = p.worker("late")
    assert late.listeners[0].nonce_prefix not in prefixes
    assert late.listeners[0].config_rotation == 1
    assert p.where([quic.short_packet(cid, size=60) for _, cid in old]) == [w for w, _ in old]
    # The old key goes with the last worker that had it, whichever daemon counts.
    for worker in workers:
        p.leave(worker)
    harness.poll_until(
        lambda: p.daemon.status("web")["listeners"][0]["keys"]["rotations"] == [1],
        "the old key is forgotten")
    with pytest.raises(TimeoutError):
        late.wait_keys_rotated(0.1)


def test_reexec_in_the_middle_of_a_registration(start_daemon):
    """A registration that has its first GRANT goes on with the new program; a client that has only
    said HELLO as well, and one that has said nothing."""
    daemon = start_daemon("--listen", f"web=tcp://127.0.0.1:{PORT}")
    silent = proto.Connection(daemon.worker_socket)
    greeted = proto.Connection(daemon.worker_socket)
    greeted.hello()
    half = daemon.worker(register=False, ready=False)
    kind, body, descriptors = half.connection.request(
        proto.REGISTER, proto.REGISTER_FORMAT.pack(b"web", b"half", 2, 0, 0))
    assert kind == proto.GRANT
    half.granted(body, descriptors, 0, 2)
    reexec(daemon)
    kind, body, descriptors = half.connection.request(
        proto.ACK, proto.ACK_FORMAT.pack(half.registration, 0, 0, 0))
    assert kind == proto.GRANT
    half.granted(body, descriptors, 1, 2)
    reexec(daemon)
    kind, _, _ = half.connection.request(
        proto.ACK, proto.ACK_FORMAT.pack(half.registration, 1, 0, 0))
    assert kind == proto.OK
    reexec(daemon)
    half.ready()
    assert sorted(w["state"] for w in daemon.status("web")["workers"]) == ["active", "active"]
    kind, body, descriptors = greeted.request(
        proto.REGISTER, proto.REGISTER_FORMAT.pack(b"web", b"greeted", 1, 0, 0))
    assert kind == proto.GRANT
    for descriptor in descriptors:
        os.close(descriptor)
    silent.hello()
    silent.close()
    greeted.close()


def test_reexec_keeps_removed_services_and_applies_the_configuration(start_daemon, configuration):
    for name, port in (("one", PORT), ("two", PORT + 1)):
        configuration.service(name, f"""[Service]
AllowUser=root
[Listener http]
ListenStream=127.0.0.1:{port}
""")
    daemon = start_daemon("--config", configuration.directory)
    one, two = daemon.worker(service="one"), daemon.worker(service="two")
    configuration.remove("services.d/one.conf")
    daemon.reload()
    assert one.wait_drain_requested()[0] == 3
    reexec(daemon)
    assert [(s["name"], s["removed"]) for s in daemon.status()["services"]] == \
        [("one", True), ("two", False)]
    # What is wrong in the files is said, and changes nothing.
    configuration.service("two", "[Service]\nNonsense=1\n")
    reexec(daemon)
    assert "what the earlier daemon served goes on" in daemon.process.output()
    with harness.tcp_client(("127.0.0.1", PORT + 1), b"request 0\n") as client:
        harness.answer_all(two.socket, 1, b"two")
        harness.check_answers([client], b"two")
    # What is right is applied.
    configuration.service("two", f"""[Service]
AllowUser=root
[Listener http]
ListenStream=127.0.0.1:{PORT + 1}
[Listener dns]
ListenDatagram=127.0.0.1:{PORT + 1}
""")
    reexec(daemon)
    assert [l["name"] for l in daemon.status("two")["listeners"]] == ["http", "dns"]
    assert daemon.status_worker(two.slot, "two")["state"] == "active"
    one.leave()
    harness.poll_until(lambda: [s["name"] for s in daemon.status()["services"]] == ["two"],
                       "the removed service is gone with its worker")


def test_reexec_that_fails_changes_nothing(start_daemon, tmp_path):
    """The program is not there any more: an error in words, and the daemon goes on."""
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if str(parent).startswith("/tmp/"):
            parent.chmod(0o755)
    program = tmp_path / "reuseportd"
    shutil.copy(harness.REUSEPORTD, program)
    daemon = start_daemon("--listen", f"web=tcp://127.0.0.1:{PORT}", program=program)
    worker = daemon.worker()
    program.rename(tmp_path / "elsewhere")
    result = daemon.ctl("reexec", check=False)
    assert result.returncode == 1 and "No such file" in result.stderr
    program.write_text("#!/nonexistent/interpreter\n")
    program.chmod(0o755)
    result = daemon.ctl("reexec", check=False)
    assert result.returncode == 1 and "No such file" in result.stderr
    with harness.tcp_client(ADDRESS, b"request 0\n") as client:
        harness.answer_all(worker.socket, 1, b"w")
        harness.check_answers([client], b"w")
    # And the one that is put there in the end is run.
    os.replace(tmp_path / "elsewhere", program)
    reexec(daemon)
    assert daemon.status_worker(worker.slot)["state"] == "active"


def test_reexec_needs_an_administrator(start_daemon):
    daemon = start_daemon("--listen", f"web=tcp://127.0.0.1:{PORT}")

    def as_nobody():
        try:
            daemon.call("Reexec")
        except Exception as error:
            return str(error)
        return None

    assert "PermissionDenied" in harness.in_child(as_nobody, 65534, 65534)


def test_time_in_the_standby_goes_on(start_daemon, configuration):
    """Were it to begin anew with each daemon, this client would wait for ever."""
    configuration.service("web", f"""[Service]
AllowUser=root
[Listener http]
ListenStream=127.0.0.1:{PORT}
StandbyTimeoutSec=4
""")
    daemon = start_daemon("--config", configuration.directory)
    with harness.tcp_client(ADDRESS, b"request 0\n") as client:
        restarts = 0
        while not harness.wait_readable([client], 1.5):  # a daemon looks once a second
            reexec(daemon)
            restarts += 1
            assert restarts < 20
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        assert restarts > 1
    assert daemon.status("web")["listeners"][0]["expired"] == 1
