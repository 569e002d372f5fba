"""The blocks that this node has at hand, in memory that was set aside once."""

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager


class BlockArena:
    """Places for `count` values of `size` bytes; the one that is longest unused makes room.

    A place is reserved, filled, and then published under a digest or given back; while someone
    holds it, it is not reused. For any thread: no method waits for anything but the lock.
    """

    def __init__(self, *, count: int, size: int) -> None:
        self.count, self.size = count, size
        self._memory = memoryview(bytearray(count * size))
        self._lock = threading.Lock()
        self._free = list(range(count))
        self._places: OrderedDict[bytes, int] = OrderedDict()  # by digest, longest unused first
        self._holders: dict[int, int] = {}  # place -> how many read it now

    def __contains__(self, digest: bytes) -> bool:
        """Whether the block with this digest is here now."""
        with self._lock:
            return digest in self._places

    def reserve(self) -> int | None:
        """Return a place of one's own; None if all are held."""
        with self._lock:
            if self._free:
                return self._free.pop()
            for digest, place in self._places.items():
                if place not in self._holders:
                    del self._places[digest]
                    return place
            return None

    def view(self, place: int) -> memoryview:
        """Return the bytes of a place that one has reserved or holds."""
        return self._memory[place * self.size : (place + 1) * self.size]

    def publish(self, digest: bytes, place: int) -> None:
        """Let others find what is in a reserved place; a second copy of a block is dropped."""
        with self._lock:
            if digest in self._places:
                self._free.append(place)
            else:
                self._places[digest] = place

    def give_back(self, place: int) -> None:
        """Free a reserved place that came to nothing."""
        with self._lock:
            self._free.append(place)

    @contextmanager
    def held(self, digest: bytes) -> Iterator[memoryview | None]:
        """Hold the block with this digest; gives None if it is not here."""
        with self._lock:
            place = self._places.get(digest)
            if place is not None:
                self._places.move_to_end(digest)
                self._holders[place] = self._holders.get(place, 0) + 1
        if place is None:
            yield None
            return
        try:
            yield self.view(place)
        finally:
            with self._lock:
                self._holders[place] -= 1
                if not self._holders[place]:
                    del self._holders[place]
