"""Brings blocks from the store and takes them there, in threads of its own.

Nothing here raises to its caller and nothing waits longer than its deadline: what the store cannot
give in time is computed, and what it cannot take is dropped.
"""

import asyncio
import logging
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field

from model_code.mla.store.arena import BlockArena
from model_code.mla.store.blocks import HEADER_BYTES, BlockLayout, key_of
from model_code.mla.store.breaker import CircuitBreaker
from model_code.mla.store.client import Client, Get, Put
from model_code.mla.store.errors import StoreError
from model_code.mla.store.metrics import LatentMetrics

_LOG = logging.getLogger(__name__)
_READERS = 2  # connections; a slow prompt must not keep all others waiting
_PIPELINE_BYTES = 32 << 20
_MOST_FLIGHTS, _MOST_PUTS = 64, 1024  # what waits in the queues
_PUT_S = 5.0
_REMEMBERED = 1 << 16  # digests that the store is known to have
_JOIN_S = 2.0


@dataclass(eq=False)
class _Flight:
    """Blocks on their way here."""

    digests: Sequence[bytes]
    deadline: float
    landed: Future[None] = field(default_factory=Future)


class LatentStore:
    """Blocks of one layout, in this node's arena and in the store that all nodes share.

    Args:
        connect: Makes a client; each thread has its own.
        ttl_s: How long the store keeps a block.
        deadline_s: How long a request may wait for its blocks; what came until then is used.
    """

    def __init__(
        self, layout: BlockLayout, connect: Callable[[], Client], metrics: LatentMetrics, *,
        arena_blocks: int, ttl_s: int, deadline_s: float = 0.5,
    ) -> None:  # fmt: skip
        self.layout, self._metrics = layout, metrics
        self._ttl_s, self._deadline_s = ttl_s, deadline_s
        self._arena = BlockArena(count=arena_blocks, size=layout.value_bytes)
        self._pipeline = max(1, min(arena_blocks, _PIPELINE_BYTES // layout.value_bytes))
        self._flights: dict[bytes, _Flight] = {}  # by their first digest
        self._remote: OrderedDict[bytes, float] = OrderedDict()  # digest -> when it was there
        self._lock = threading.Lock()
        self._gets: queue.Queue[_Flight | None] = queue.Queue(_MOST_FLIGHTS)
        self._puts: queue.Queue[bytes | None] = queue.Queue(_MOST_PUTS)
        self._reading, self._writing = CircuitBreaker(), CircuitBreaker()
        self._closing = False
        work = [(self._read, "latents-read")] * _READERS + [(self._write, "latents-write")]
        self._threads = [
            threading.Thread(target=target, args=(connect(),), name=name, daemon=True)
            for target, name in work
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop the threads; what is still queued is dropped."""
        self._closing = True
        _drain(self._gets)
        _drain(self._puts)
        for _ in range(_READERS):
            self._gets.put(None)
        self._puts.put(None)
        for thread in self._threads:
            thread.join(_JOIN_S)

    async def fetch(self, digests: Sequence[bytes]) -> None:
        """Bring as many blocks as are in the store, from the first on, until the deadline."""
        deadline = time.monotonic() + self._deadline_s
        first: bytes | None = None
        while wanted := self._missing(digests):
            if wanted[0] == first:  # the last flight did not have it
                return
            first = wanted[0]
            flight = self._board(wanted, deadline)
            if flight is None:
                return
            await asyncio.wait(
                {asyncio.wrap_future(flight.landed)}, timeout=deadline - time.monotonic()
            )
            if not flight.landed.done() or flight.digests is wanted:
                return

    def load(self, digest: bytes, read: Callable[[memoryview], None]) -> bool:
        """Let `read` copy a block's payload if it is at hand; never asks the store."""
        with self._arena.held(digest) as value:
            if value is None:
                return False
            read(value[HEADER_BYTES:])
        return True

    def save(self, digest: bytes, write: Callable[[memoryview], None]) -> None:
        """Let `write` fill in a block's payload, keep it at hand, and store it later."""
        if digest in self._arena or (place := self._arena.reserve()) is None:
            return
        value = self._arena.view(place)
        write(value[HEADER_BYTES:])
        value[:HEADER_BYTES] = self.layout.header(digest, value[HEADER_BYTES:])
        self._arena.publish(digest, place)
        if self._is_remote(digest):
            return
        try:
            self._puts.put_nowait(digest)
        except queue.Full:
            self._metrics.add("LatentStoreErrors", 1)

    def _missing(self, digests: Sequence[bytes]) -> Sequence[bytes]:
        """Return the digests from the first on that is not at hand."""
        for index, digest in enumerate(digests):
            if digest not in self._arena:
                return digests[index:]
        return ()

    def _board(self, wanted: Sequence[bytes], deadline: float) -> _Flight | None:
        """Join the flight that brings the first block already, or start one."""
        with self._lock:
            flight = self._flights.get(wanted[0])
            if flight or not self._reading.allows():
                return flight
            flight = self._flights[wanted[0]] = _Flight(wanted, deadline)
        try:
            self._gets.put_nowait(flight)
        except queue.Full:
            self._land(flight)
            return None
        return flight

    def _land(self, flight: _Flight) -> None:
        with self._lock:
            self._flights.pop(flight.digests[0], None)
        flight.landed.set_result(None)

    def _read(self, client: Client) -> None:
        while (flight := self._gets.get()) and not self._closing:
            since = time.monotonic()
            try:
                self._fetch(client, flight)
                self._reading.succeeded()
            except Exception as error:
                self._failed(self._reading, "cannot be read", error)
            finally:
                self._land(flight)
            self._metrics.left_alone("read", self._reading.open)
            self._metrics.fetch_seconds.observe(time.monotonic() - since)
        client.close()

    def _fetch(self, client: Client, flight: _Flight) -> None:
        """Fetch a flight's blocks, some at a time, up to the first that is not in the store."""
        wanted, came = flight.digests, 0
        while came < len(wanted):
            some = wanted[came : came + self._pipeline]
            found = self._fetch_some(client, some, flight.deadline)
            came += found
            if found < len(some):
                return

    def _fetch_some(self, client: Client, digests: Sequence[bytes], deadline: float) -> int:
        """Fetch blocks in one pipeline; returns how many of them, from the first on, came."""
        places: dict[bytes, tuple[bytes, int]] = {}
        for digest in digests:
            if (place := self._arena.reserve()) is None:
                break
            places[key_of(digest)] = (digest, place)
        here: set[bytes] = set()

        def received(get: Get, found: bool) -> None:
            digest, place = places.pop(get.key)
            if self._accept(digest, place, found):
                here.add(digest)

        try:
            gets = [Get(key, self._arena.view(place)) for key, (_, place) in places.items()]
            client.get(gets, deadline, received)
        finally:
            for _, place in places.values():
                self._arena.give_back(place)
        return next((i for i, digest in enumerate(digests) if digest not in here), len(digests))

    def _accept(self, digest: bytes, place: int, found: bool) -> bool:
        """Publish a value if it is what it should be; returns whether it is."""
        value = self._arena.view(place)
        if found and self.layout.holds(digest, value):
            self._arena.publish(digest, place)
            self._remember(digest)
            self._metrics.add("LatentBytesFetched", len(value))
            return True
        self._arena.give_back(place)
        with self._lock:
            self._remote.pop(digest, None)  # store it again
        if found:
            _LOG.warning("the store has a damaged block; it is computed again")
            self._metrics.add("LatentStoreErrors", 1)
        return False

    def _write(self, client: Client) -> None:
        while (digest := self._puts.get()) and not self._closing:
            digests = [digest, *_more(self._puts, self._pipeline - 1)]
            if not self._writing.allows():
                continue
            since = time.monotonic()
            try:
                self._store_some(client, digests)
                self._writing.succeeded()
            except Exception as error:
                self._failed(self._writing, "takes no blocks", error)
            self._metrics.left_alone("write", self._writing.open)
            self._metrics.store_seconds.observe(time.monotonic() - since)
        client.close()

    def _store_some(self, client: Client, digests: Sequence[bytes]) -> None:
        with ExitStack() as held:
            values = {digest: held.enter_context(self._arena.held(digest)) for digest in digests}
            puts = [Put(key_of(digest), [value]) for digest, value in values.items() if value]
            client.put(puts, self._ttl_s, time.monotonic() + _PUT_S)
            for digest, value in values.items():
                if value:
                    self._remember(digest)
                    self._metrics.add("LatentBytesStored", len(value))

    def _failed(self, breaker: CircuitBreaker, what: str, error: Exception) -> None:
        was_open = breaker.open
        breaker.failed()
        self._metrics.add("LatentStoreErrors", 1)
        if not isinstance(error, StoreError):
            _LOG.exception("the store of latents %s", what)
        elif breaker.open and not was_open:
            _LOG.warning("the store of latents %s, answers come without it: %s", what, error)

    def _remember(self, digest: bytes) -> None:
        with self._lock:
            self._remote[digest] = time.monotonic()
            self._remote.move_to_end(digest)
            if len(self._remote) > _REMEMBERED:
                self._remote.popitem(last=False)

    def _is_remote(self, digest: bytes) -> bool:
        with self._lock:
            return time.monotonic() - self._remote.get(digest, -1e9) < self._ttl_s / 2


def _more(waiting: "queue.Queue[bytes | None]", count: int) -> list[bytes]:
    """Return up to `count` of what waits already."""
    found: list[bytes] = []
    while len(found) < count and not waiting.empty():
        item = waiting.get_nowait()
        if item is None:  # the end: leave it for the loop
            waiting.put_nowait(None)
            break
        found.append(item)
    return found


def _drain(waiting: "queue.Queue") -> None:
    while not waiting.empty():
        waiting.get_nowait()
