"""Starting, finding and stopping the embedded AWS, also after it was killed."""

import http.client
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import BotoCoreError

from local_aws import clients, daemon
from local_aws.clusters.slurm.keeper import descendants
from local_aws.errors import EmulatorError
from local_aws.machines.image.aws import FOLDER
from local_aws.processes import command
from tests.local_aws import fleet
from tests.local_aws.conftest import Emulator, alive, free_port, until
from tests.local_aws.samples_functions import FUNCTIONS

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "state"
    daemon.stop(tmp_path / "state")


def with_a_machine(folder: Path, port: int) -> tuple[Emulator, dict[str, Any]]:
    emulator = Emulator(daemon.start(folder, port))
    assert emulator.create("web", fleet.template(fleet.boot())) == "CREATE_COMPLETE"
    found = until(lambda: [one for one in emulator.running.machines() if one["ready"]], "a machine")
    return emulator, found[0]


def test_what_was_killed_is_cleaned_up_and_started_again(folder: Path) -> None:
    port = free_port()
    emulator, machine = with_a_machine(folder, port)
    root = Path(machine["console"]).parent
    called = {"ISOMORPH_ROOT": str(root), FOLDER: str(folder / "cli"), "PATH": "/usr/bin:/bin"}
    subprocess.run([root / "bin/aws", "--version"], env=called, check=True)
    pids = descendants(emulator.running.pid)
    lines = [command(pid) or "" for pid in pids]
    for name in ("/cli_server.py", "image.init", "/server.py"):
        assert any(name in line for line in lines), name
    os.kill(emulator.running.pid, signal.SIGKILL)
    until(lambda: not any(map(alive, pids)), "the end of all processes")
    assert daemon.status(folder) is None

    again = daemon.start(folder, port)
    assert again.pid != emulator.running.pid
    assert again.machines() == []
    assert not Path(machine["console"]).exists()


def test_stopping_leaves_no_process_and_no_file(folder: Path) -> None:
    emulator, machine = with_a_machine(folder, free_port())
    assert daemon.status(folder) == emulator.running
    assert any((folder / "ministack").iterdir())  # and not in /tmp
    assert daemon.stop(folder)
    assert not alive(emulator.running.pid)
    assert not alive(machine["pid"])
    assert not folder.exists()
    assert daemon.status(folder) is None
    assert not daemon.stop(folder)


def test_what_waits_for_an_answer_does_not_keep_it_from_stopping(folder: Path) -> None:
    emulator = Emulator(daemon.start(folder, free_port()))
    slow = {
        **FUNCTIONS["Function"],
        "Properties": FUNCTIONS["Function"]["Properties"] | {"Timeout": 60},
    }
    created = emulator.create("slow", {"Resources": FUNCTIONS | {"Function": slow}})
    assert created == "CREATE_COMPLETE", emulator.failure("slow")
    once = clients.client("lambda", emulator.running.endpoint, emulator.account, emulator.region)
    event = {"FunctionName": emulator.resources("slow")["Function"].physical_id,
             "Payload": json.dumps({"sleep": 60})}  # fmt: skip
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(once.invoke, **event)
        until(emulator.running.functions, "the invocation")
        begun = time.monotonic()
        assert daemon.stop(folder)
        assert time.monotonic() - begun < 10
        with pytest.raises(BotoCoreError):
            waiting.result()


def test_fails_when_the_port_is_in_use_and_names_who_uses_it(folder: Path) -> None:
    other = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    port = other.server_port
    with pytest.raises(EmulatorError) as error:
        daemon.start(folder, port)
    other.server_close()
    told = str(error.value)
    assert told.startswith(f"port {port} is in use by ")
    assert told.endswith(": choose another port")
    assert "\n" not in told
    if sys.platform == "linux":
        assert f"pid {os.getpid()} (" in told


def test_fails_when_it_runs_already(folder: Path) -> None:
    port = free_port()
    running = daemon.start(folder, port)
    with pytest.raises(EmulatorError, match=rf"runs already on port {port} \(pid {running.pid}\)"):
        daemon.start(folder, free_port())


def test_fails_when_the_folder_holds_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(EmulatorError, match="holds other files"):
        daemon.start(tmp_path, free_port())
    with pytest.raises(EmulatorError, match="holds other files"):
        daemon.stop(tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_fails_when_the_aws_cli_is_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "AWS_CLI", folder / "aws")
    with pytest.raises(EmulatorError, match=r"aws is missing: install requirements\.txt"):
        daemon.start(folder, free_port())


def test_fails_when_the_process_ends_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder.parent / "local_aws.py").write_text("raise SystemExit('no luck today')")
    monkeypatch.setattr(daemon, "_CHECKOUT", folder.parent)
    with pytest.raises(EmulatorError, match="ended at once: no luck today"):
        daemon.start(folder, free_port())


def test_a_number_that_another_process_has_now_is_no_embedded_aws(folder: Path) -> None:
    running = daemon.start(folder, free_port())
    note = folder / "emulator.json"
    note.write_text(note.read_text().replace(str(running.pid), str(os.getpid())))
    assert daemon.status(folder) is None
    os.kill(running.pid, signal.SIGTERM)
    os.waitpid(running.pid, 0)


def test_the_variables_lead_to_it_and_nowhere_else(folder: Path) -> None:
    running = daemon.Running(pid=1, port=4570, state_dir=folder, since="")
    given = daemon.environment(running, account="111111111111", region="eu-west-1")
    assert given["AWS_ENDPOINT_URL"] == "http://localhost:4570"
    assert given["AWS_ACCESS_KEY_ID"] == "111111111111"
    assert given["AWS_REGION"] == given["AWS_DEFAULT_REGION"] == "eu-west-1"
    assert given["CDK_HOME"].startswith(str(folder))
    assert given["AWS_CONFIG_FILE"] == given["AWS_SHARED_CREDENTIALS_FILE"] == os.devnull


def test_ctrl_c_ends_what_runs_in_the_foreground(tmp_path: Path) -> None:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "local_aws", "serve", "--port", str(port), "--state-dir", tmp_path],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    running = daemon.Running(process.pid, port, tmp_path, "")

    def answers() -> bool:
        try:
            return running.machines() == []
        except OSError:
            return False

    until(answers, "an answer")
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=10)
    assert process.returncode == 0
    assert "Traceback" not in told


def test_the_foreground_says_in_one_line_that_the_port_is_taken(tmp_path: Path) -> None:
    other = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    given = ["--port", str(other.server_port), "--state-dir", str(tmp_path)]
    ended = subprocess.run(
        [sys.executable, "-m", "local_aws", "serve", *given],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=20,
    )
    other.server_close()
    assert ended.returncode == 1
    assert f"isomorph: cannot listen on port {other.server_port}" in ended.stderr


def test_an_interrupt_while_it_starts_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []

    def interrupted(running: daemon.Running, process: subprocess.Popen[bytes]) -> None:
        started.append(process.pid)
        raise KeyboardInterrupt

    monkeypatch.setattr(daemon, "_wait_until_ready", interrupted)
    with pytest.raises(KeyboardInterrupt):
        daemon.start(folder, free_port())
    assert not alive(started[0])


def test_two_hundred_requests_at_once_reach_a_machine(folder: Path) -> None:
    emulator, machine = with_a_machine(folder, free_port())
    outputs = emulator.client("cloudformation").describe_stacks(StackName="web")["Stacks"][0]
    host = outputs["Outputs"][0]["OutputValue"]
    answers: list[int] = []

    def ask() -> None:
        connection = http.client.HTTPConnection("localhost", emulator.running.port, timeout=20)
        connection.request("GET", "/v1/models", headers={"Host": host})
        answers.append(connection.getresponse().status)
        connection.close()

    threads = [threading.Thread(target=ask) for _ in range(200)]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 200
    assert time.monotonic() - begun < 20
    assert machine["ready"]
