"""Keeps a server for each shard of every replication group, as the control plane describes them."""

import logging
import queue
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from local_aws.caches.authority import Authority
from local_aws.caches.server import Login, Server
from local_aws.caches.tls import Fronts

_PAUSE = 0.25
_SLOTS = 16384
_log = logging.getLogger(__name__)

Key = tuple[str, str, str]  # account, region and id of a replication group


@dataclass(frozen=True)
class Wanted:
    """A replication group as it shall be.

    Args:
        shards: How many servers.
        parameters: Of its parameter group.
        cluster: Whether it is in cluster mode.
        logins: Returns who is let in; asked again and again.
    """

    shards: int
    parameters: dict[str, str]
    cluster: bool
    logins: Callable[[], list[Login]]

    def keeps(self, before: "Wanted") -> bool:
        """Return whether servers that were started for `before` will do."""
        return (self.shards, self.cluster, self.parameters) == (
            before.shards,
            before.cluster,
            before.parameters,
        )


@dataclass
class _Played:
    wanted: Wanted
    servers: list[Server] = field(default_factory=list)


class Caches:
    """Starts, supervises and ends the servers, all from one thread.

    Args:
        folder: Where the servers' folders are made.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._authority = Authority(folder)
        self._fronts = Fronts(self._authority.context())
        self._groups: dict[Key, _Played] = {}
        self._work: queue.Queue[tuple[Callable[[], Any], Future[Any]] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name="caches", daemon=True)
        self._thread.start()

    @property
    def trusted(self) -> Path:
        """The certificates that a machine trusts: the system's, and those of the caches."""
        return self._authority.trusted

    def play(self, key: Key, wanted: Wanted) -> list[int]:
        """Start a group, or change one, and return the TLS port of each shard."""
        ports: list[int] = self._do(lambda: self._play(key, wanted))
        return ports

    def end(self, key: Key) -> None:
        """End a group, if there is one."""
        self._do(lambda: self._end(key))

    def servers(self) -> list[tuple[Key, Server]]:
        """Return every server."""
        return [(key, one) for key, group in list(self._groups.items()) for one in group.servers]

    def stop(self) -> None:
        """End every server."""
        self._work.put(None)
        self._thread.join(timeout=10)
        for _, server in self.servers():
            server.kill()
        self._fronts.stop()

    def _do(self, work: Callable[[], Any]) -> Any:
        done: Future[Any] = Future()
        self._work.put((work, done))
        return done.result(timeout=60)

    def _run(self) -> None:
        while True:
            try:
                task = self._work.get(timeout=_PAUSE)
            except queue.Empty:
                self._step()
                continue
            if task is None:
                return
            work, done = task
            try:
                done.set_result(work())
            except Exception as error:
                done.set_exception(error)

    def _play(self, key: Key, wanted: Wanted) -> list[int]:
        group = self._groups.get(key)
        if group is not None and not wanted.keeps(group.wanted):
            self._end(key)
            group = None
        if group is None:
            group = _Played(wanted)
            self._groups[key] = group
            try:
                self._start(key, group)
            except Exception:
                self._end(key)
                raise
        group.wanted = wanted
        self._let_in(group)
        return [server.front for server in group.servers]

    def _start(self, key: Key, group: _Played) -> None:
        wanted = group.wanted
        for shard in range(wanted.shards):
            server = Server(
                folder=self._folder / "_".join(key) / f"{shard + 1:04}",
                front=0,
                parameters=wanted.parameters,
                cluster=wanted.cluster,
            )
            server.front = self._fronts.open(server.port)
            group.servers.append(server)
            server.start()
        if wanted.cluster:
            _join(group.servers)

    def _end(self, key: Key) -> None:
        group = self._groups.pop(key, None)
        if group is None:
            return
        for server in group.servers:
            self._fronts.close(server.front)
            server.kill()
        shutil.rmtree(self._folder / "_".join(key), ignore_errors=True)

    def _step(self) -> None:
        for key, group in list(self._groups.items()):
            try:
                for server in group.servers:
                    if not server.running:
                        server.start()
                self._let_in(group)
            except Exception:  # say so, and try again
                _log.exception("cache %s", key[2])

    def _let_in(self, group: _Played) -> None:
        logins = group.wanted.logins()
        for server in group.servers:
            server.let_in(logins)


def _join(servers: list[Server]) -> None:
    """Make one cluster of fresh servers, each with its share of the key space."""
    first, count = servers[0], len(servers)
    for index, server in enumerate(servers):
        low, high = index * _SLOTS // count, (index + 1) * _SLOTS // count - 1
        server.ask("CLUSTER", "ADDSLOTSRANGE", str(low), str(high))
        server.ask("CLUSTER", "SET-CONFIG-EPOCH", str(index + 1))
    for server in servers[1:]:
        server.ask("CLUSTER", "MEET", "127.0.0.1", str(first.front), str(first.bus))
