"""What a person interrupts, kills or blocks, and what the next `isomorph up` makes of it."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from local_aws import daemon
from tests.e2e.conftest import ROOT, free_port

pytestmark = pytest.mark.e2e


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder of this test's own."""
    monkeypatch.setenv("ISOMORPH_STATE", str(tmp_path / "local"))
    return tmp_path / "local"


def start_up(port: int) -> "subprocess.Popen[str]":
    """Start `isomorph up` as a shell would, so that Ctrl-C can be sent to it."""
    return subprocess.Popen(
        [sys.executable, "-m", "isomorph", "up", "--port", str(port)],
        cwd=ROOT,
        env={**os.environ, "NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell that put the tests into the background lets them ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for_the_embedded_aws(state: Path) -> daemon.Running:
    """Wait until `up` has started it."""
    deadline = time.monotonic() + 60
    while (running := daemon.status(state)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return running


def test_ctrl_c_in_the_middle_leaves_nothing_behind(state: Path) -> None:
    process = start_up(free_port())
    wait_for_the_embedded_aws(state)
    time.sleep(3)  # into bootstrap and synthesis
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "stopped"
    assert "Traceback" not in errors
    assert not state.exists()
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert str(state) not in listed.stdout


def test_a_port_in_use_is_named_with_who_uses_it(state: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = start_up(port)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert f"error: port {port} is in use by " in errors.splitlines()[-1]
    assert "Traceback" not in errors


def test_an_embedded_aws_that_was_killed_does_not_stand_in_the_way(state: Path) -> None:
    port = free_port()
    killed = daemon.start(state, port)
    os.kill(killed.pid, signal.SIGKILL)
    while daemon.status(state) is not None:
        time.sleep(0.1)
    process = start_up(port)
    try:
        assert wait_for_the_embedded_aws(state).pid != killed.pid
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=60)
        daemon.stop(state)
