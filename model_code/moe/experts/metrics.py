"""What the server counts about experts: for Prometheus, and for CloudWatch through `take`."""

import threading
from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge

# CloudWatch name -> unit, and the counter's name and help at /metrics.
_COUNTS: Mapping[str, tuple[str, str, str]] = {
    "ExpertHits": ("Count", "hits", "Experts that were in memory when a layer asked for them"),
    "ExpertMisses": ("Count", "misses", "Experts that were not"),
    "ExpertPrefetchHits": ("Count", "prefetch_hits", "Prefetched experts that were asked for"),
    "ExpertBytesLoaded": ("Bytes", "loaded_bytes", "Bytes of experts that were loaded"),
    "ExpertStallMs": ("Milliseconds", "stall_milliseconds", "Time that layers waited for experts"),
    "ExpertErrors": ("Count", "errors", "Loads of experts that failed"),
    "PoolStrays": ("Count", "pool_strays", "Requests that named another pool"),
}


class ExpertMetrics:
    """Counts since the start in `registry`, and since the last `take` for CloudWatch."""

    units: Mapping[str, str] = {name: unit for name, (unit, _, _) in _COUNTS.items()} | {
        "ExpertImbalance": "None"
    }

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        registry = registry or CollectorRegistry()
        self._lock = threading.Lock()
        self._window: dict[str, float] = {}
        self._visits: dict[int, Any] = {}
        self._counters = {
            name: Counter(f"isomorph_expert_{metric}", text, registry=registry)
            for name, (_, metric, text) in _COUNTS.items()
        }
        self.budget = Gauge(
            "isomorph_expert_budget_bytes", "Bytes of memory that experts may take",
            registry=registry,
        )  # fmt: skip

    def add(self, name: str, value: float) -> None:
        """Count `value` more of the metric that CloudWatch calls `name`; for any thread."""
        if value:
            self._counters[name].inc(value)
            with self._lock:
                self._window[name] = self._window.get(name, 0.0) + value

    def visited(self, layer: int, counts_E: Any) -> None:
        """Note how many tokens visited each expert of a layer, as numpy's integers."""
        with self._lock:
            self._visits[layer] = self._visits.get(layer, 0) + counts_E

    def total(self, name: str) -> float:
        """Return the count since the start."""
        found: float = self._counters[name]._value.get()
        return found

    def first_token(self, seconds: float, reused_tokens: int) -> None:
        """See `MoreMetrics`: nothing is reused here."""

    def take(self) -> dict[str, list[float]]:
        """Return each metric's value since the last call; counts are there when zero, too."""
        with self._lock:
            window, self._window = self._window, {}
            visits, self._visits = self._visits, {}
        found = {name: [window.get(name, 0.0)] for name in _COUNTS}
        worst = [float(counts.max() / counts.mean()) for counts in visits.values() if counts.any()]
        return found | ({"ExpertImbalance": [max(worst)]} if worst else {})
