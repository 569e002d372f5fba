"""Stops asking a store that fails, and tries it again after a while."""

import threading
import time
from collections.abc import Callable

FAILURES = 3
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0


class CircuitBreaker:
    """Opens after so many failures in a row; then one trial at a time, after pauses that double.

    So a dead store costs a few deadlines, and one that came back is used again by itself.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._pause = FIRST_PAUSE_S
        self._next_trial = 0.0  # when the next trial may be made

    @property
    def open(self) -> bool:
        """Whether the store is left alone."""
        return self._failures >= FAILURES

    def allows(self) -> bool:
        """Return whether to ask the store now; whoever asks reports how it went."""
        with self._lock:
            if not self.open:
                return True
            now = self._clock()
            if now < self._next_trial:
                return False
            self._next_trial = now + self._pause  # others wait for this trial
            return True

    def succeeded(self) -> None:
        """Close: the store answers."""
        with self._lock:
            self._failures, self._pause = 0, FIRST_PAUSE_S

    def failed(self) -> None:
        """Count a failure; each one of a trial doubles the pause before the next."""
        with self._lock:
            if self.open:
                self._pause = min(2 * self._pause, LONGEST_PAUSE_S)
            self._failures += 1
            if self.open:
                self._next_trial = self._clock() + self._pause
