"""A machine: a folder, and the process `init` that runs in it what an instance would run."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from local_aws.machines.cli import AWS
from local_aws.processes import command
from local_aws.settings import HOST

IMAGE = Path(__file__).parent / "image"
AWS_CLI = Path(sys.executable).with_name("aws")
_REASON = "isomorph:"
_SYSTEMCTL = """#!/bin/sh
cd "$ISOMORPH_ROOT/sbin" && exec "$ISOMORPH_ROOT/bin/python3" -EsSB -m image.systemctl "$@"
"""


def free_port() -> int:
    """Return a port of the loopback address on which nothing listens."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@dataclass
class Unit:
    """What init last told of one service."""

    name: str
    state: str = "inactive"
    pid: int | None = None
    restarts: int = 0


@dataclass
class Machine:
    """One machine.

    Args:
        instance_id: Such as `i-0123456789abcdef0`; also the name of its folder.
        folder: The root folder of the machine.
        port: Where its server is told to listen, since all machines share one address.
        user_data: What it runs at boot, as the launch template has it.
        environment: The variables that its processes get besides those of every machine.
        programs: Further commands of its image: name -> script.
        packages: Folders with the Python modules that those commands run, besides the image's own.
    """

    instance_id: str
    folder: Path
    port: int
    user_data: str
    environment: Mapping[str, str]
    programs: Mapping[str, str] = field(default_factory=dict)
    packages: Sequence[Path] = ()
    since: float = field(default_factory=time.time)
    units: dict[str, Unit] = field(default_factory=dict)
    boot_code: int | None = None
    _init: subprocess.Popen[bytes] | None = None

    def boot(self) -> None:
        """Lay out the folder and start init."""
        self._lay_out()
        self._init = subprocess.Popen(  # noqa: S603 - our own program
            [str(self.folder / "bin" / "python3"), "-EsSB", "-m", "image.init"],
            cwd=self.folder / "sbin",
            env=self.variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(self.folder / "console.log").open("ab"),
            start_new_session=True,
        )
        (self.folder / "run" / "init.pid").write_text(str(self._init.pid))
        threading.Thread(target=self._listen, args=(self._init,), daemon=True).start()

    @property
    def variables(self) -> dict[str, str]:
        """The environment of all its processes."""
        return {
            "PATH": f"{self.folder / 'bin'}:/usr/bin:/bin",
            "HOME": str(self.folder),
            "LANG": "C.UTF-8",
            "ISOMORPH_ROOT": str(self.folder),
            "ISOMORPH_PORT_OVERRIDE": str(self.port),
            **self.environment,
        }

    def _lay_out(self) -> None:
        for name in ("bin", "sbin", "run", "etc", "opt", "var"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        for package in (IMAGE, *self.packages):
            shutil.copytree(
                package,
                self.folder / "sbin" / package.name,
                ignore=shutil.ignore_patterns("__pycache__"),
            )
        programs = self.folder / "bin"
        # The real file of this Python, not the link in a venv: a machine has a plain system Python.
        python = Path(sys.executable).resolve()
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        for name in ("python3", version):
            (programs / name).symlink_to(python)
        for name, script in {"aws": AWS, "systemctl": _SYSTEMCTL, **self.programs}.items():
            (programs / name).write_text(script)
            (programs / name).chmod(0o755)
        (self.folder / "user-data").write_text(self.user_data)

    def _listen(self, init: subprocess.Popen[bytes]) -> None:
        """Note what init tells, until it ends."""
        for line in init.stdout or ():
            event = json.loads(line)
            if event["event"] == "unit":
                self.units[event["name"]] = Unit(
                    event["name"], event["state"], event["pid"], event["restarts"]
                )
            elif event["event"] == "booted":
                self.boot_code = event["code"]

    @property
    def running(self) -> bool:
        """Whether init is alive."""
        return self._init is not None and self._init.poll() is None

    def power_off(self) -> None:
        """Let the services end as at the shutdown of an operating system."""
        if self._init is not None and self._init.stdin is not None:
            try:
                self._init.stdin.write(b"poweroff\n")
                self._init.stdin.flush()
            except OSError:
                pass  # it is off already

    def cut_power(self) -> None:
        """Kill every process of the machine, and wait until they are gone."""
        if self._init is None:
            return
        if self._init.stdin is not None:
            self._init.stdin.close()  # init kills the rest and ends itself
        try:
            self._init.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._init.kill()
            self._init.wait()

    def remove(self, *, keep_console: bool) -> None:
        """Delete the folder, but for the console of a machine whose end has to be explained.

        Raises:
            FileNotFoundError: There is none.
        """
        entries = list(self.folder.iterdir())
        # A name of its own each time: the next node with this address may go while this one does.
        gone = Path(tempfile.mkdtemp(prefix=f"{self.folder.name}.gone.", dir=self.folder.parent))
        for entry in entries:
            if entry.is_dir() and not entry.is_symlink():
                entry.rename(gone / entry.name)
            elif not (keep_console and entry.name == "console.log"):
                entry.unlink(missing_ok=True)
        if not keep_console:
            shutil.rmtree(self.folder, ignore_errors=True)
        # A venv is thousands of files, for which nobody has to wait.
        threading.Thread(target=shutil.rmtree, args=(gone, True), daemon=True).start()

    def reason(self) -> str | None:
        """Return the last line of the console that a program of ours left for a person."""
        try:
            lines = (self.folder / "console.log").read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return None
        told = [line for line in lines if line.startswith(_REASON)]
        return told[-1] if told else None


def kill_leftovers(instances: Path) -> None:
    """Kill the machines that an embedded AWS left which was killed itself, should any live on."""
    for file in instances.glob("*/run/init.pid"):
        pid, folder = int(file.read_text()), str(file.parents[1])
        for _ in range(20):  # they notice by themselves that it is gone
            if folder not in (command(pid) or ""):  # it may be another process by now
                break
            time.sleep(0.1)
        else:
            os.kill(pid, signal.SIGKILL)
