# SPDX-License-Identifier: BSD-2-Clause
"""
Where no service manager has the daemon's descriptors, a small process of its own does: what it is,
who may talk to it, when it ends, and that the daemon goes on from it. Restarts under load are in
test_restart_load.py.
"""
import os
import pathlib
import signal
import socket
import stat

import pytest

import harness
from store import KeptDaemon, StoredDaemon, started, whole_status

PORT = 8080
ADDRESS = ("127.0.0.1", PORT)
WEB = f"""[Service]
AllowUser=root
[Listener http]
ListenStream=127.0.0.1:{PORT}
[Listener dns]
ListenDatagram=127.0.0.1:{PORT}
"""
GRACE_SECONDS = 10


@pytest.fixture
def kept(netns, configuration):
    configuration.service("web", WEB)
    with started(configuration, KeptDaemon) as start:
        yield start


def keeper(daemon):
    """Its number; it has seen by then that it was only asked for that."""
    pid = harness.keeper_pid(daemon.runtime)
    assert pid
    path = str(daemon.runtime / "keeper.sock")
    harness.poll_until(lambda: sum(line.endswith(path) for line in pathlib.Path(
        "/proc/net/unix").read_text().splitlines()) <= 2, "one connection is left, and the door")
    return pid


def has_ended(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def wait_ended(pid, seconds=harness.DEADLINE):
    harness.poll_until(lambda: has_ended(pid), f"keeper {pid} has ended", seconds)


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def wait_descriptors(daemon, n):
    """Until it has as many: those that ask for its number are among them for a moment."""
    pid = keeper(daemon)
    harness.poll_until(lambda: descriptors(pid) == n, f"keeper {pid} has {n} descriptors")


def check_served(workers, n=50):
    """New connections and datagrams come to these workers, and none elsewhere."""
    clients = [harness.tcp_client(ADDRESS) for _ in range(n)]
    accepted = [c for worker in workers for c in harness.accept_now(worker.sockets[0]["http"])]
    assert len(accepted) == n
    harness.close_all(clients + accepted)


def check_all_there(daemon, workers):
    found = {w["slot"]: (w["state"], w["connected"]) for w in daemon.status("web")["workers"]}
    assert found == {worker.slot: ("active", True) for worker in workers}
    check_served(workers)


def test_it_is_a_process_of_its_own_that_can_do_nothing(kept):
    daemon = kept()
    pid = keeper(daemon)
    status = dict(line.split(":\t", 1) for line in
                  pathlib.Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
    assert status["Name"] == "reuseport-keep" and int(status["PPid"]) == daemon.pid
    assert status["Uid"].split() == [str(os.stat(daemon.runtime).st_uid)] * 4
    for kind in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(status[kind], 16) == 0, kind
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert os.getsid(pid) == pid != os.getsid(daemon.pid)
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in range(3)] == ["/dev/null"] * 3
    assert pathlib.Path(f"/proc/{pid}/cmdline").read_bytes() == b"reuseport-keep\0"
    assert pathlib.Path(f"/proc/{pid}/environ").read_bytes() == b""
    assert stat.S_IMODE(os.stat(daemon.runtime / "keeper.sock").st_mode) == 0o600


def test_nobody_else_can_talk_to_it(kept):
    daemon = kept()
    workers = [daemon.worker(instance=f"w{i}") for i in range(2)]
    pid, path = keeper(daemon), str(daemon.runtime / "keeper.sock")
    before = descriptors(pid)

    def ask():
        """What a foreign user gets for asking for everything."""
        request = (0x504b5052).to_bytes(4, "little") + b"\1\0\3\0" + bytes(4)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            try:
                connection.connect(path)
                connection.send(request)
                data, ancillary, _, _ = connection.recvmsg(65536, 4096)
                return len(data), len(ancillary)
            except OSError as error:
                return type(error).__name__

    assert harness.in_child(ask, 65534, 65534) == "PermissionError"
    # And not by the mode of the file alone.
    os.chmod(path, 0o666)
    assert harness.in_child(ask, 65534, 65534) in ((0, 0), "BrokenPipeError", "ConnectionResetError")
    # Root could take it by other means; while a daemon is there, it is told to go away.
    assert harness.in_child(ask) in ((12, 0), "BrokenPipeError", "ConnectionResetError")
    assert keeper(daemon) == pid and descriptors(pid) == before
    daemon.restart()
    assert keeper(daemon) == pid
    check_all_there(daemon, workers)


def test_garbage_from_its_own_user_ends_the_connection_and_nothing_else(kept):
    daemon = kept()
    workers = [daemon.worker()]
    pid = keeper(daemon)
    daemon.die()
    uid = os.stat(daemon.runtime).st_uid

    def garbage():
        header = (0x504b5052).to_bytes(4, "little")
        for octets in (b"x", b"", header + b"\1\0\1\0\1\0\0\0", header + b"\2\0\3\0\0\0\0\0",
                       header + b"\1\0\1\0" + b"\xff" * 4, b"\0" * 4000):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
                connection.settimeout(harness.DEADLINE)
                connection.connect(str(daemon.runtime / "keeper.sock"))
                connection.send(octets)
                if octets:
                    assert connection.recv(100) == b""

    harness.in_child(garbage, uid, uid)
    assert not has_ended(pid)
    daemon.start()
    check_all_there(daemon, workers)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_another_one_takes_its_place_and_has_everything(kept, number):
    daemon = kept()
    workers = [daemon.worker(instance=f"w{i}") for i in range(3)]
    for _ in range(3):
        pid = keeper(daemon)
        before = descriptors(pid)
        os.kill(pid, number)
        if number == signal.SIGSTOP:  # seen once its buffer is full: some 250 messages
            harness.poll_until(lambda: daemon.worker(instance="comes").leave() or has_ended(pid),
                               "the daemon has replaced it", interval=0)
        wait_ended(pid)
        harness.poll_until(lambda: harness.keeper_pid(daemon.runtime) not in (None, pid),
                           "another one is there")
        harness.poll_until(lambda: len(daemon.status("web")["workers"]) == 3, "only those that stay")
        wait_descriptors(daemon, before)
        daemon.restart()
        check_all_there(daemon, workers)
        late = daemon.worker(instance="late")
        late.leave()


def test_three_hundred_registrations_come_back(kept, configuration):
    """Many times what one message has room for."""
    configuration.write("reuseportd.conf", "[Daemon]\nMaxConnectionsPerUser=2000\n"
                        "MaxSlotsPerUser=2000\n")
    configuration.service("web", WEB.replace("AllowUser=root", "AllowUser=root\nMaxWorkers=2000"))
    daemon = kept()
    workers = [daemon.worker(instance=f"w{i}") for i in range(300)]
    before = whole_status(daemon, "web")
    n = descriptors(keeper(daemon))
    assert n > 600
    daemon.restart()
    assert whole_status(daemon, "web") == before and len(before["workers"]) == 300
    wait_descriptors(daemon, n)
    for worker in workers:
        worker.leave()
    harness.poll_until(lambda: descriptors(keeper(daemon)) <= n - 600, "it has let go of all")


def test_stopped_with_workers_the_next_one_goes_on(kept):
    """And meanwhile nobody waits at a door behind which there is nobody."""
    daemon = kept()
    workers = [daemon.worker(instance=f"w{i}") for i in range(2)]
    pid = keeper(daemon)
    assert daemon.die(signal.SIGTERM) == 0
    check_served(workers)
    with pytest.raises(ConnectionRefusedError):
        daemon.status()
    daemon.start()
    assert keeper(daemon) == pid
    check_all_there(daemon, workers)
    assert daemon.output().count("web: listener http: open") == 1


def test_ends_with_the_last_worker_when_there_is_no_daemon(kept):
    daemon = kept()
    processes = [daemon.worker_process(instance=f"w{i}") for i in range(3)]
    pid = keeper(daemon)
    daemon.die(signal.SIGTERM)
    for process in processes:
        assert not has_ended(pid)
        process.kill()
    wait_ended(pid)
    # Nothing is left: the address is free for anybody.
    with socket.create_server(ADDRESS):
        pass


def test_ends_with_a_daemon_that_stops_and_has_no_worker(kept):
    daemon = kept()
    for manner in ("none", "left", "closed"):
        worker = daemon.worker() if manner != "none" else None
        pid = keeper(daemon)
        if manner == "left":
            worker.leave()
        elif manner == "closed":
            worker.abandon()
        assert daemon.die(signal.SIGTERM) == 0
        wait_ended(pid, GRACE_SECONDS / 2)
        daemon.start()
        assert keeper(daemon) != pid and daemon.status("web")["workers"] == []


def test_killed_without_workers_what_waits_in_the_standby_waits_for_the_next_daemon(kept):
    daemon = kept()
    clients = [harness.tcp_client(ADDRESS, b"request %d\n" % i) for i in range(5)]
    pid = keeper(daemon)
    daemon.restart()
    assert keeper(daemon) == pid
    worker = daemon.worker()
    harness.answer_all(worker.sockets[0]["http"], 5, b"w")
    harness.check_answers(clients, b"w")
    harness.close_all(clients)
    worker.leave()
    daemon.die()
    assert not has_ended(pid)
    wait_ended(pid)


def test_a_second_daemon_does_not_take_over_from_one_that_lives(kept, configuration):
    daemon = kept()
    workers = [daemon.worker()]
    second = harness.run(harness.REUSEPORTD, "--config", configuration.directory, "--runtime-directory",
                         daemon.runtime, "--state-directory", daemon.state, check=False)
    assert second.returncode == 1
    assert "another reuseportd is at work there" in second.stderr
    check_all_there(daemon, workers)


def test_what_somebody_else_put_there_is_not_trusted(kept, configuration):
    daemon = kept()
    daemon.die()
    harness.end_keeper(daemon.runtime)
    path = str(daemon.runtime / "keeper.sock")
    os.unlink(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
        other.bind(path)
        os.chmod(path, 0o666)
        os.seteuid(65534)
        try:
            other.listen()
        finally:
            os.seteuid(0)
        daemon.start(wait=False)
        assert daemon.child.wait() == 1
    assert "cannot take over from" in daemon.output() and "another user's" in daemon.output()
    os.unlink(path)
    daemon.start()


def test_switched_off_there_is_none_and_an_old_one_gives_all_it_has(kept):
    daemon = kept()
    workers = [daemon.worker(instance=f"w{i}") for i in range(2)]
    pid = keeper(daemon)
    daemon.arguments.append("--no-keeper")
    daemon.restart()
    check_all_there(daemon, workers)
    wait_ended(pid)
    assert harness.keeper_pid(daemon.runtime) is None
    daemon.ctl("reexec")
    check_all_there(daemon, workers)
    assert harness.keeper_pid(daemon.runtime) is None


def test_reexec_goes_on_with_the_same_one(kept):
    daemon = kept()
    workers = [daemon.worker(instance=f"w{i}") for i in range(2)]
    pid = keeper(daemon)
    before = descriptors(pid)
    for _ in range(3):
        daemon.ctl("reexec")
        assert keeper(daemon) == pid
    daemon.restart()
    assert keeper(daemon) == pid
    check_all_there(daemon, workers)
    os.kill(pid, signal.SIGKILL)
    wait_ended(pid)
    harness.poll_until(lambda: harness.keeper_pid(daemon.runtime), "another one is there")
    wait_descriptors(daemon, before)
    daemon.restart()
    check_all_there(daemon, workers)


def test_systemds_store_takes_over_from_it(kept):
    daemon = kept()
    workers = [daemon.worker(instance=f"w{i}") for i in range(2)]
    pid = keeper(daemon)
    daemon.stores = True
    for _ in range(2):
        daemon.restart()
        check_all_there(daemon, workers)
        wait_ended(pid)
        assert harness.keeper_pid(daemon.runtime) is None


def test_under_systemd_none_is_started(kept):
    daemon = kept(kind=StoredDaemon)
    assert not (daemon.runtime / "keeper.sock").exists()
    children = pathlib.Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text()
    assert children == ""


def test_wrong_configuration_at_the_start_costs_nothing(kept, configuration):
    """Root starts it, and who it is to become is in the state."""
    daemon = kept()
    workers = [daemon.worker()]
    configuration.service("web", "[Service]\nNonsense=1\n")
    daemon.restart()
    assert "what the earlier daemon served goes on" in daemon.output()
    assert os.stat(f"/proc/{daemon.pid}").st_uid == os.stat(daemon.runtime).st_uid != 0
    check_all_there(daemon, workers)
    configuration.service("web", WEB)
    daemon.reload()
