"""Runs Debian's slurmctld or slurmd on a node, and takes all that they start down with them.

Two processes: the one that the node's init started, and a warden in a session of its own, which
holds the daemons. When the first ends, however that is, the warden's input ends, and it kills every
process below it: Slurm's own have left the group that init would kill.
"""

import ctypes
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from .keeper import kill_all
from .store import root, spool

_PAUSE_S = 0.2
_SOCKET_S = 10.0
_PR_SET_CHILD_SUBREAPER = 36
_ROOT = "@ROOT@"  # stands for each node's own root folder in what the controller publishes

Process = subprocess.Popen[bytes]


def flat(path: Path) -> str:
    """Return a slurm.conf with its Includes inside, as nodes get it that ask the controller."""
    lines = []
    for line in path.read_text().splitlines():
        words = line.split(None, 1)
        if len(words) == 2 and words[0].lower() == "include":
            lines.append(flat(path.parent / words[1].strip()))
        else:
            lines.append(line)
    return "\n".join(lines)


class Held(Protocol):
    """What a warden holds."""

    def step(self) -> None:
        """Start what should run, and start it again where slurm.conf has changed."""

    def ended(self, pid: int) -> bool:
        """Tell whether a process has ended that must not."""

    def close(self) -> None:
        """Let end what has something to write down first; all else is killed after this."""


class Controller:
    """munged and slurmctld, and the slurm.conf that other nodes ask for."""

    def __init__(self) -> None:
        self._path = root() / "opt" / "slurm" / "etc" / "slurm.conf"
        self._text = ""
        self._munged: Process | None = None
        self._slurmctld: Process | None = None

    def step(self) -> None:
        """Publish a changed slurm.conf, and start slurmctld with it."""
        if self._munged is None:
            self._munged = _start_munged()
        text = flat(self._path)
        if text == self._text:
            return
        self._text = text
        published = spool() / "slurm.conf"
        new = published.with_suffix(".new")
        new.write_text(text.replace(str(root()), _ROOT))
        new.replace(published)
        if self._slurmctld is not None:  # nodes that come or go want another slurmctld
            _end(self._slurmctld)
        (root() / "var" / "spool" / "slurmctld").mkdir(parents=True, exist_ok=True)
        self._slurmctld = _start("slurmctld-wlm", "-D", "-f", str(self._path))

    def ended(self, pid: int) -> bool:
        """Tell whether one of the two daemons has ended."""
        return pid in [each.pid for each in (self._munged, self._slurmctld) if each]

    def close(self) -> None:
        """Let slurmctld write down the jobs: it does so every few seconds, and at its end."""
        if self._slurmctld is not None:
            _end(self._slurmctld, patience=3)


class Node:
    """slurmd, with a copy of the controller's slurm.conf, in which paths are this node's own."""

    def __init__(self) -> None:
        self._name = os.environ["SLURMD_NODENAME"]
        self._text = ""
        self._slurmd: Process | None = None

    def step(self) -> None:
        """Fetch a changed slurm.conf, and start slurmd with it where it names this node."""
        try:
            text = (spool() / "slurm.conf").read_text().replace(_ROOT, str(root()))
        except FileNotFoundError:
            return  # the controller has not been set up
        if text == self._text:
            return
        self._text = text
        fetched = root() / "run" / "slurm" / "conf" / "slurm.conf"
        fetched.parent.mkdir(parents=True, exist_ok=True)
        fetched.write_text(text)
        if self._slurmd is not None:
            _end(self._slurmd)  # jobs run on without it
            self._slurmd = None
        if re.search(rf"(?m)^NodeName={re.escape(self._name)} ", text):
            (spool() / self._name).mkdir(exist_ok=True)
            words = ("-D", "-f", str(fetched), "-N", self._name)
            self._slurmd = _start("slurmd-wlm", *words)

    def ended(self, pid: int) -> bool:
        """Tell whether slurmd has ended."""
        return self._slurmd is not None and pid == self._slurmd.pid

    def close(self) -> None:
        """What runs on a node dies with it."""


def _start(name: str, *words: str) -> Process:
    return subprocess.Popen([str(root() / "bin" / name), *words], stdin=subprocess.DEVNULL)  # noqa: S603


def _end(process: Process, patience: float = 10) -> None:
    process.terminate()
    try:
        process.wait(timeout=patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _start_munged() -> Process:
    """Start the cluster's munged, with a key that was made for this cluster alone."""
    folder = spool().resolve()  # a socket's path must be short
    key, listening = folder / "munge.key", folder / "munge.socket"
    if not key.exists():
        with open(key, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write(os.urandom(128))
    words = [f"--{name}={folder / f'munge.{suffix}'}" for name, suffix in (
        ("key-file", "key"), ("socket", "socket"), ("pid-file", "pid"), ("seed-file", "seed"),
        ("log-file", "log"))]  # fmt: skip
    # By force: it wants every folder on the way to its socket to be open to all, which folders for
    # temporary files often are not; here only daemons of the same user meet.
    started = _start("munged", "--foreground", "--force", *words)
    deadline = time.monotonic() + _SOCKET_S
    while not listening.exists() and started.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    return started


def warden(held: Held) -> int:
    """Hold daemons until one of them ends, or whoever started this."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    orders = selectors.DefaultSelector()
    orders.register(0, selectors.EVENT_READ)
    while True:
        held.step()
        if orders.select(timeout=_PAUSE_S) and not os.read(0, 4096):
            held.close()
            return 0
        while pid := _reaped():
            if held.ended(pid):
                return 1


def _reaped() -> int:
    """Take note of one process that has ended below this one, and return its number, or 0."""
    try:
        return os.waitpid(-1, os.WNOHANG)[0]
    except ChildProcessError:
        return 0


def run(name: str) -> None:
    """Run a daemon until this process is told to end, or the daemon ends."""
    inside = "import sys; sys.path.insert(0, sys.argv[1]); from slurm.real import main; main()"
    sbin = str(root() / "sbin")
    words = [sys.executable, "-EsSB", "-c", inside, sbin, name]
    kept = subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True)  # noqa: S603
    signal.signal(signal.SIGTERM, lambda *_: kept.stdin and kept.stdin.close())
    sys.exit(kept.wait())


def main() -> None:
    """Be the warden of the daemon that the command line names."""
    kinds: dict[str, Callable[[], Held]] = {"slurmctld": Controller, "slurmd": Node}
    code = 1
    try:
        code = warden(kinds[sys.argv[2]]())
    finally:
        kill_all()
    sys.exit(code)
