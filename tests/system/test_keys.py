# SPDX-License-Identifier: BSD-2-Clause
"""Keys of connection IDs: where they are kept, and who can get at them."""
import os
import pwd
import shutil
import stat

import harness

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
