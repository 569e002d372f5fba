"""Containers of pods as local processes: signals, grace, restarts, and logs with times."""

import contextlib
import datetime
import json
import os
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Container:
    """One container of a pod; its first process is a process group here.

    Files of a container's own (/tmp) and its mounts are folders: their paths are replaced in the
    command and in the variables. That is all that differs from a container.
    """

    def __init__(self, spec: dict[str, Any], roots: dict[str, str], extra: dict[str, str]) -> None:
        def placed(text: str) -> str:
            for path, folder in roots.items():
                text = text.replace(path, folder)
            return text

        own = {each["name"]: placed(each["value"]) for each in spec.get("env", [])}
        self._command = [placed(word) for word in spec["command"]]
        self._mark = f"ISOMORPH_PLAYED_CONTAINER={uuid.uuid4().hex}"
        self._environment = {**own, **extra, **dict([self._mark.split("=")])}
        self.previous: list[bytes] = []
        self.lines: list[bytes] = []
        self.restarts = -1
        self.start()

    def start(self) -> None:
        self.previous, self.lines = self.lines, []
        self.restarts += 1
        self.process = subprocess.Popen(
            self._command, env=self._environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._killed_at = 0.0

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            now = datetime.datetime.now(datetime.UTC)
            nanoseconds = f"{now.microsecond:06}{len(self.lines) % 1000:03}".rstrip("0")
            when = now.strftime("%Y-%m-%dT%H:%M:%S") + (f".{nanoseconds}" if nanoseconds else "")
            self.lines.append(f"{when}Z ".encode() + line)

    @property
    def exit_code(self) -> int | None:
        code = self.process.poll()
        if code is not None:
            self._sweep()
            self._reader.join(timeout=5)
        return code

    def terminate(self, grace: float) -> None:
        """Tell the first process to end, as the kubelet does; kill all when the grace is over."""
        if not self._killed_at:
            self._killed_at = time.monotonic() + grace
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGTERM)
        elif time.monotonic() > self._killed_at:
            self.kill()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=10)
        self._sweep()

    def _sweep(self) -> None:
        """Kill what the first process has left, as its end does in a container.

        torchrun starts ranks in sessions of their own: they are in no group that could be killed.
        """
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if self._mark.encode() in path.read_bytes().split(b"\0"):
                    os.kill(int(path.parent.name), signal.SIGKILL)


def read_log(container: Container | None, asked: str, follow: bool) -> Iterator[bytes]:
    """Yield a container's lines, as many as there are or until it ends."""
    if container is None:
        return
    query = json.loads(asked)
    lines = container.previous if query["previous"] else container.lines
    process, sent = container.process, 0
    while True:
        ended = process.poll() is not None or container.lines is not lines
        if ended and container.process is process:
            container.exit_code  # noqa: B018 - waits for the last lines
        while sent < len(lines):
            line, sent = lines[sent], sent + 1
            if line[:19].decode() >= query["sinceTime"].rstrip("Z"):
                yield line
        if ended or not follow or query["previous"]:
            return
        time.sleep(0.02)


def environment(folder: Path, python: Path) -> dict[str, str]:
    """Return what an image brings: its programs."""
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    link = programs / "python3"
    if not link.exists():
        link.write_text(f'#!/bin/sh\nexec "{python}" "$@"\n')
        link.chmod(0o755)
    return {"PATH": f"{programs}:/usr/bin:/bin", "HOME": str(folder), "OMP_NUM_THREADS": "1"}
