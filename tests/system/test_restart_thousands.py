# SPDX-License-Identifier: BSD-2-Clause
"""As many workers as a daemon can nearly have, and it is killed: docs/performance.md has what that costs."""
import pytest

import harness
from store import KeptDaemon, StoredDaemon, whole_status

ADDRESS = ("127.0.0.1", 8080)
REGISTRATIONS, EACH = 40, 100
WEB = f"""[Service]
AllowUser=root
MaxWorkers=4095
[Listener http]
ListenStream={ADDRESS[0]}:{ADDRESS[1]}
"""


@pytest.mark.parametrize("kind", [StoredDaemon, KeptDaemon], ids=["store", "keeper"])
def test_four_thousand_workers_come_back(stored, configuration, kind):
    configuration.write("reuseportd.conf", "[Daemon]\nMaxSlotsPerUser=4095\n")
    configuration.service("web", WEB)
    daemon = stored(kind=kind)
    workers = [daemon.worker(instance=f"w{i}", n_workers=EACH) for i in range(REGISTRATIONS)]
    before = whole_status(daemon, "web")
    assert len(before["workers"]) == REGISTRATIONS * EACH
    daemon.restart()
    assert whole_status(daemon, "web") == before
    assert {(w["state"], w["connected"]) for w in before["workers"]} == {("active", True)}

    workers.append(daemon.worker(instance="new"))
    workers.pop(0).leave()
    clients = [harness.tcp_client(ADDRESS) for _ in range(500)]
    accepted = [connection for worker in workers for sockets in worker.sockets
                for connection in harness.accept_now(sockets["http"])]
    assert len(accepted) == 500
    harness.close_all(clients + accepted)
    found = daemon.status("web")["workers"]
    assert sorted(w["slot"] for w in found if w["connected"]) == sorted(
        slot for worker in workers for slot in worker.slots)
