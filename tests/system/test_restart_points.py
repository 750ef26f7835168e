# SPDX-License-Identifier: BSD-2-Clause
"""
The daemon is made to die before and after every system call of what it does (die_at.c), and started
again with what it had stored. Whatever the moment: what was answered is true, who was not answered
is told by the end of the connection, and nothing in the kernel belongs to nobody.
"""
import pytest

import harness
import worker_protocol as proto
from crash_points import GONE, TCP, UDP, WEB, Scene, every_point, third


@pytest.fixture
def scene(stored, configuration):
    configuration.service("web", WEB)
    return Scene(stored())


@third("registration")
def test_registration(scene, die_at, first):
    """From HELLO to READY, two slots at once."""
    made = []

    def act():
        try:
            worker = proto.Worker(scene.daemon.worker_socket, instance="new", ready=False,
                                  n_workers=2)
            made.append((worker, False))
            worker.ready()
            made[-1] = (worker, True)
        except GONE:
            pass

    def after(died):
        for worker, ready in made:
            states = {scene.workers().get(slot, {}).get("state") for slot in worker.slots}
            assert states == {"active"} if ready else states in ({"active"}, {None})
            # Without a registration its sockets get nothing, though it holds them.
            scene.check([worker] if states == {"active"} else [])
            if ready:
                worker.leave()
            else:
                worker.abandon()
            scene.gone(worker.slots)
        scene.check()
        # One that was interrupted before it knew its slot has none either.
        assert sorted(scene.workers()) == sorted(w.slot for w in scene.stay)
        made.clear()

    assert every_point(die_at, scene.daemon, act, after, first, 3) > 100


@third("drain")
@pytest.mark.parametrize("who", ["worker", "operator"])
def test_drain(scene, die_at, first, who):
    """One that drains gets no new connection, keeps its connection, and is told once or twice."""
    current = [scene.daemon.worker(instance="new")]

    def act():
        try:
            if who == "worker":
                current[0].drain()
            else:
                scene.daemon.call("Drain", worker=current[0].slot)
        except GONE:
            assert who == "operator", "a worker's DRAIN is answered, whoever does it"

    def after(died):
        worker = current[0]
        state = scene.workers()[worker.slot]["state"]
        assert scene.workers()[worker.slot]["connected"]
        assert state == "draining" or (who == "operator" and died)
        scene.check([] if state == "draining" else [worker])
        if who == "operator" and state == "draining":
            assert worker.wait_drain_requested()[0] == 1
        worker.leave()
        scene.gone(worker.slots)
        current[0] = scene.daemon.worker(instance="new")

    assert every_point(die_at, scene.daemon, act, after, first, 3) > 20


@third("leave")
def test_unregistration(scene, die_at, first):
    """Its slot is free, whoever answers."""
    current = [scene.daemon.worker(instance="new")]

    def act():
        current[0].unregister()

    def after(died):
        worker = current[0]
        assert worker.slot not in scene.workers()
        scene.check()
        worker.abandon()
        current[0] = scene.daemon.worker(instance="new")

    assert every_point(die_at, scene.daemon, act, after, first, 3) > 20


@third("death")
def test_death_of_a_worker(scene, die_at, first):
    """The daemon dies of a worker's death: the next one sees that it is gone."""
    current = [scene.daemon.worker_process(instance="new")]

    def act():
        process = current[0]
        process.kill()
        scene.gone([process.slot])

    def act_bounded():
        try:
            act()
        except GONE:
            scene.gone([current[0].slot])

    def after(died):
        scene.check()
        current[0] = scene.daemon.worker_process(instance="new")

    assert every_point(die_at, scene.daemon, act_bounded, after, first, 3) > 20


@third("reload")
def test_reload(scene, die_at, configuration, first):
    """A listener comes or goes. What the files say holds, be it by the reload or by the start."""
    extra = "[Listener extra]\nListenStream=127.0.0.1:8081\n"
    wanted = [True]

    def act():
        configuration.service("web", WEB + (extra if wanted[0] else ""))
        try:
            scene.daemon.call("Reload")
        except GONE:
            pass

    def after(died):
        names = [l["name"] for l in scene.daemon.status("web")["listeners"]]
        assert names == ["http", "dns"] + ["extra"] * wanted[0]
        scene.check()
        wanted[0] = not wanted[0]

    every_point(die_at, scene.daemon, act, after, first, 3)


@third("standby")
def test_first_worker_gets_what_waits(stored, configuration, die_at, first):
    """Nothing that waits in a standby is lost, and nothing comes twice."""
    configuration.service("web", WEB)
    daemon = stored()
    made = []

    def act():
        made.clear()
        clients = [harness.tcp_client(TCP, b"x\n") for _ in range(5)]
        flows = [harness.udp_client(UDP) for _ in range(5)]
        for i, flow in enumerate(flows):
            flow.send(b"%d" % i)
        made.append(clients + flows)
        try:
            made.append(daemon.worker(instance="first"))
        except GONE:
            pass

    def after(died):
        if len(made) == 1:
            made.append(daemon.worker(instance="first"))
        worker = made[1]
        accepted = [harness.accept(worker.sockets[0]["http"]) for _ in range(5)]
        assert [harness.receive_line(each) for each in accepted] == [b"x\n"] * 5
        came = []
        while harness.wait_readable([worker.sockets[0]["dns"]], 0):
            came.append(worker.sockets[0]["dns"].recv(100))
        came.sort()
        assert came == [b"%d" % i for i in range(5)], f"died at stop {died}"
        harness.close_all(accepted + made[0])
        worker.leave()
        harness.poll_until(lambda: not daemon.status("web")["workers"], "nobody is there")

    assert every_point(die_at, daemon, act, after, first, 3) > 100
