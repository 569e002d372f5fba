"""Who may run now, who waits, and who is sent away."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress


class QueueFullError(Exception):
    """The queue has no place left."""


class DrainingError(Exception):
    """The server takes no new work."""


class Admission:
    """Lets `slots` requests run and `queue` wait, first come, first served.

    Args:
        queue: How many may wait; 0 sends away whoever finds no free slot.
        changed: Called whenever a request comes, starts or goes.
    """

    def __init__(
        self, *, slots: int, queue: int, changed: Callable[["Admission"], None] = lambda _: None
    ) -> None:
        self.slots, self.queue = slots, queue
        self.running = 0
        self.draining = False
        self._changed = changed
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        """How many wait for a slot."""
        return len(self._waiting)

    @property
    def in_flight(self) -> int:
        """How many run or wait."""
        return self.running + self.waiting

    @asynccontextmanager
    async def slot(self) -> AsyncGenerator[float, None]:
        """Hold a slot; gives the seconds that were spent waiting for it.

        Raises:
            DrainingError: At once, if the server drains.
            QueueFullError: At once, if as many wait as may.
        """
        if self.draining:
            raise DrainingError
        since = time.monotonic()
        if self.running < self.slots and not self._waiting:
            self.running += 1
            self._changed(self)
        elif len(self._waiting) < self.queue:
            await self._turn()
        else:
            raise QueueFullError
        try:
            yield time.monotonic() - since
        finally:
            self._release()

    def drain(self) -> None:
        """Take no new work from now on."""
        self.draining = True

    async def _turn(self) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._changed(self)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                with suppress(ValueError):  # _release() may have passed over it already
                    self._waiting.remove(turn)
                self._changed(self)
            else:  # the slot came as we were leaving
                self._release()
            raise

    def _release(self) -> None:
        """Give the slot to whoever waits longest, or free it."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                break
        else:
            self.running -= 1
        self._changed(self)
