"""What is counted about experts, for CloudWatch; serve/prometheus.py shows it at /metrics."""

import threading
from collections.abc import Mapping
from typing import Any

# CloudWatch name -> unit, and the counter's name and help at /metrics.
COUNTS: Mapping[str, tuple[str, str, str]] = {
    "ExpertHits": ("Count", "hits", "Experts that were in memory when a layer asked for them"),
    "ExpertMisses": ("Count", "misses", "Experts that were not"),
    "ExpertPrefetchHits": ("Count", "prefetch_hits", "Prefetched experts that were asked for"),
    "ExpertBytesLoaded": ("Bytes", "loaded_bytes", "Bytes of experts that were loaded"),
    "ExpertStallMs": ("Milliseconds", "stall_milliseconds", "Time that layers waited for experts"),
    "ExpertErrors": ("Count", "errors", "Loads of experts that failed"),
    "PoolStrays": ("Count", "pool_strays", "Requests that named another pool"),
}


class ExpertMetrics:
    """Counts since the start, and since the last `take` for CloudWatch.

    Attributes:
        budget_bytes: Memory that experts may take; 0 where there is no cache.
    """

    units: Mapping[str, str] = {name: unit for name, (unit, _, _) in COUNTS.items()} | {
        "ExpertImbalance": "None"
    }

    def __init__(self) -> None:
        self.budget_bytes = 0
        self._lock = threading.Lock()
        self._totals = dict.fromkeys(COUNTS, 0.0)
        self._window: dict[str, float] = {}
        self._visits: dict[int, Any] = {}

    def add(self, name: str, value: float) -> None:
        """Count `value` more of the metric that CloudWatch calls `name`; for any thread."""
        if value:
            with self._lock:
                self._totals[name] += value
                self._window[name] = self._window.get(name, 0.0) + value

    def visited(self, layer: int, counts_E: Any) -> None:
        """Note how many tokens visited each expert of a layer, as numpy's integers."""
        with self._lock:
            self._visits[layer] = self._visits.get(layer, 0) + counts_E

    def total(self, name: str) -> float:
        """Return the count since the start."""
        return self._totals[name]

    def first_token(self, seconds: float, reused_tokens: int) -> None:
        """See `MoreMetrics`: nothing is reused here."""

    def take(self) -> dict[str, list[float]]:
        """Return each metric's value since the last call; counts are there when zero, too."""
        with self._lock:
            window, self._window = self._window, {}
            visits, self._visits = self._visits, {}
        found = {name: [window.get(name, 0.0)] for name in COUNTS}
        worst = [float(counts.max() / counts.mean()) for counts in visits.values() if counts.any()]
        return found | ({"ExpertImbalance": [max(worst)]} if worst else {})
