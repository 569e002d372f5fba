"""What happened since the last look, for CloudWatch. The standard library is enough."""

import time
from collections.abc import Callable

_MAX_FIRST_TOKENS = 150  # values that one PutMetricData datum may hold
UNITS = {
    "RequestsInFlight": "Count",
    "QueueDepth": "Count",
    "TokensPerSecond": "Count/Second",
    "TimeToFirstToken": "Seconds",
    "WindowOccupancy": "Percent",
    "MemoryHeadroom": "Megabytes",
}


class Window:
    """What happened since the last look. Levels are averaged over time, so no burst is missed."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = self._changed = clock()
        self._levels = [0.0, 0.0, 0.0]
        self._areas = [0.0, 0.0, 0.0]
        self.tokens = 0
        self.first_tokens: list[float] = []

    def level(self, in_flight: int, waiting: int) -> None:
        """Say how many requests are in flight, and how many of these wait, from now on."""
        self._pass_time()
        self._levels[:2] = in_flight, waiting

    def fill(self, share: float) -> None:
        """Say which share of the attention windows' places is filled, from now on."""
        self._pass_time()
        self._levels[2] = share

    def _pass_time(self) -> None:
        now = self._clock()
        for index, level in enumerate(self._levels):
            self._areas[index] += level * (now - self._changed)
        self._changed = now

    def take(self) -> dict[str, list[float]]:
        """Return each metric's values since the last call, and start anew."""
        self._pass_time()
        seconds = max(self._changed - self._since, 1e-9)
        values: dict[str, list[float]] = {
            "RequestsInFlight": [self._areas[0] / seconds],
            "QueueDepth": [self._areas[1] / seconds],
            "TokensPerSecond": [self.tokens / seconds],
            "WindowOccupancy": [100 * self._areas[2] / seconds],
        }
        if self.first_tokens:
            values["TimeToFirstToken"] = self.first_tokens[:_MAX_FIRST_TOKENS]
        self._since, self._areas = self._changed, [0.0, 0.0, 0.0]
        self.tokens, self.first_tokens = 0, []
        return values
