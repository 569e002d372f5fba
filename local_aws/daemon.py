"""Starts and stops the embedded AWS as a process of its own, for the command line and for tests."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from local_aws.caches.server import kill_leftovers as kill_servers
from local_aws.clusters import spool
from local_aws.endpoints.container import kill_leftovers as kill_containers
from local_aws.errors import EmulatorError
from local_aws.machines.machine import AWS_CLI, kill_leftovers
from local_aws.processes import command, listener, port_is_free, started
from local_aws.settings import (
    ACCOUNT,
    ENDPOINTS,
    FUNCTIONS,
    MACHINES,
    NODES,
    PLUGIN,
    REGION,
    Settings,
)

_START_SECONDS = 90.0  # a second or two; a busy machine with a cold disk takes its time
_STOP_SECONDS = 15.0
_CHECKOUT = Path(__file__).parents[1]
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_LOOPBACK = "localhost,127.0.0.1"
_OURS = ("emulator.json", "emulator.log")


@dataclass(frozen=True)
class Running:
    """An embedded AWS that serves.

    Args:
        pid: Its process.
        port: Where it listens, on the loopback address.
        state_dir: Its folder.
        since: When the process was started, as the operating system tells it.
    """

    pid: int
    port: int
    state_dir: Path
    since: str

    @property
    def endpoint(self) -> str:
        """The URL for AWS_ENDPOINT_URL."""
        return Settings(port=self.port, state_dir=self.state_dir).endpoint

    @property
    def log_file(self) -> Path:
        """What the process prints."""
        return Settings(port=self.port, state_dir=self.state_dir).log_file

    def machines(self) -> list[dict[str, Any]]:
        """Return every machine, and the last failed ones with the reason."""
        with _DIRECT.open(f"{self.endpoint}{MACHINES}", timeout=10) as answer:
            found: list[dict[str, Any]] = json.load(answer)
            return found

    def containers(self) -> list[dict[str, Any]]:
        """Return every container of an endpoint."""
        with _DIRECT.open(f"{self.endpoint}{ENDPOINTS}", timeout=10) as answer:
            found: list[dict[str, Any]] = json.load(answer)
            return found

    def functions(self) -> list[dict[str, Any]]:
        """Return every execution environment of a function."""
        with _DIRECT.open(f"{self.endpoint}{FUNCTIONS}", timeout=10) as answer:
            found: list[dict[str, Any]] = json.load(answer)
            return found

    def nodes(self) -> list[dict[str, Any]]:
        """Return every node of a cluster."""
        with _DIRECT.open(f"{self.endpoint}{NODES}", timeout=10) as answer:
            found: list[dict[str, Any]] = json.load(answer)
            return found


def start(state_dir: Path, port: int) -> Running:
    """Start an embedded AWS, after cleaning up one that was killed, and wait until it answers.

    Args:
        state_dir: Folder for its state, made and later removed. Nothing else belongs in it.
        port: Where it listens, on the loopback address alone.
    """
    settings = Settings(port=port, state_dir=state_dir.resolve())
    running = status(state_dir)
    if running:
        raise EmulatorError(
            f"the embedded AWS runs already on port {running.port} (pid {running.pid}): "
            "stop it first"
        )
    _remove_state(settings)
    if not AWS_CLI.exists():
        raise EmulatorError(f"{AWS_CLI} is missing: install requirements.txt")
    if not port_is_free(port):
        raise EmulatorError(f"port {port} is in use by {_user_of(port)}: choose another port")
    settings.state_dir.mkdir(parents=True)
    command_line = [sys.executable, "-m", "local_aws", "serve"]
    command_line += ["--port", str(port), "--state-dir", str(settings.state_dir)]
    with settings.log_file.open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 - our own program
            command_line,
            cwd=_CHECKOUT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    running = Running(process.pid, port, settings.state_dir, started(process.pid) or "")
    note = {**asdict(running), "state_dir": str(settings.state_dir)}
    settings.pid_file.write_text(json.dumps(note))
    try:
        _wait_until_ready(running, process)
    except BaseException:  # Ctrl-C too: nothing half started is left
        _end(running)
        process.wait()
        raise
    return running


def stop(state_dir: Path) -> bool:
    """Stop an embedded AWS and its machines, remove its state, and return whether one ran."""
    running = status(state_dir)
    if running:
        _end(running)
    _remove_state(Settings(port=0, state_dir=state_dir.resolve()))
    return running is not None


def status(state_dir: Path) -> Running | None:
    """Return the embedded AWS that keeps its state there, if it runs."""
    settings = Settings(port=0, state_dir=state_dir.resolve())
    try:
        note = json.loads(settings.pid_file.read_text())
        running = Running(note["pid"], note["port"], Path(note["state_dir"]), note["since"])
    except (FileNotFoundError, ValueError, KeyError):
        return None
    return running if started(running.pid) == running.since else None


def environment(
    running: Running, *, account: str = ACCOUNT, region: str = REGION
) -> dict[str, str]:
    """Return the variables with which the CDK CLI, boto3 and the AWS CLI use an embedded AWS.

    Args:
        running: Which one.
        account: Whose resources are used. Every account of twelve digits exists.
        region: Which region is used.
    """
    return {
        "AWS_ENDPOINT_URL": running.endpoint,
        "AWS_ACCESS_KEY_ID": account,  # a key of twelve digits names its account
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_REGION": region,
        "AWS_DEFAULT_REGION": region,
        "AWS_SESSION_TOKEN": "",
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": _LOOPBACK,
        "no_proxy": _LOOPBACK,
        # Neither the user's profiles nor what the CLI remembers of accounts may reach it.
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "CDK_HOME": str(running.state_dir / "cdk"),
        "CDK_DISABLE_VERSION_CHECK": "1",
        "CDK_DISABLE_CLI_TELEMETRY": "true",  # a deployment to this machine concerns nobody else
        "CDK_VALIDATION": "false",
        "CDK_DISABLE_STACK_TRACE": "1",  # where each construct was made, which only reports show
        # The AWS CLI starts it for `ssm start-session`: the one that this embedded AWS understands.
        "PATH": os.pathsep.join([str(PLUGIN.parent), os.environ.get("PATH", os.defpath)]),
    }


def _wait_until_ready(running: Running, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise EmulatorError(f"the embedded AWS ended at once: {_last_line(running)}")
        try:
            running.machines()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise EmulatorError(f"the embedded AWS did not answer in time: {_last_line(running)}")


def _last_line(running: Running) -> str:
    lines = running.log_file.read_text(errors="replace").split("\n")
    said = [line for line in lines if line.strip()]
    return said[-1] if said else "it said nothing"


def _user_of(port: int) -> str:
    pid = listener(port)
    return f"pid {pid} ({command(pid)})" if pid else "another program"


def _end(running: Running) -> None:
    """End the process: politely, then not."""
    for number, patience in ((signal.SIGTERM, _STOP_SECONDS), (signal.SIGKILL, 5.0)):
        try:
            os.kill(running.pid, number)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            _reap(running.pid)
            if started(running.pid) != running.since:
                return
            time.sleep(0.05)


def _reap(pid: int) -> None:
    """Take note of the end of a process that this one started itself."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _remove_state(settings: Settings) -> None:
    folder = settings.state_dir
    if not folder.exists():
        return
    held = [entry.name for entry in folder.iterdir()]
    if held and not set(_OURS) & set(held):
        raise EmulatorError(f"{folder} holds other files than the embedded AWS's: choose another")
    for machines in (settings.instances_dir, *settings.clusters_dir.glob("*/")):
        kill_leftovers(machines)
        spool.remove(machines)
    kill_servers(settings.caches_dir)
    kill_containers(settings.endpoints_dir)
    shutil.rmtree(folder, ignore_errors=True)
