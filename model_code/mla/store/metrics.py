"""What the server counts about reuse: for Prometheus, and for CloudWatch through `take`."""

import threading
from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_FIRST_TOKEN_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_MAX_VALUES = 150  # values that one PutMetricData datum may hold
# CloudWatch name -> unit, and the counter's name and help at /metrics.
_COUNTS: Mapping[str, tuple[str, str, str]] = {
    "LatentHits": ("Count", "hits", "Blocks of prompts that were not computed again"),
    "LatentMisses": ("Count", "misses", "Whole blocks of prompts that had to be computed"),
    "LatentBytesFetched": ("Bytes", "fetched_bytes", "Bytes of blocks that the store sent"),
    "LatentBytesStored": ("Bytes", "stored_bytes", "Bytes of blocks that the store took"),
    "LatentTokensReused": ("Count", "reused_tokens", "Tokens of prompts not computed again"),
    "LatentStoreErrors": ("Count", "store_errors", "Calls that failed, values that were wrong"),
}
_FIRST_TOKENS = ("TimeToFirstTokenHitMs", "TimeToFirstTokenMissMs")


class LatentMetrics:
    """Counts since the start in `registry`, and since the last `take` for CloudWatch."""

    units: Mapping[str, str] = {
        name: unit for name, (unit, _, _) in _COUNTS.items()
    } | dict.fromkeys(_FIRST_TOKENS, "Milliseconds")

    def __init__(self, registry: CollectorRegistry) -> None:
        self._lock = threading.Lock()
        self._window: dict[str, list[float]] = {}
        self._counters = {
            name: Counter(f"isomorph_latent_{metric}", text, registry=registry)
            for name, (_, metric, text) in _COUNTS.items()
        }
        self.fetch_seconds = Histogram(
            "isomorph_latent_fetch_seconds", "Time to bring the blocks of one prompt",
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.store_seconds = Histogram(
            "isomorph_latent_store_seconds", "Time of one pipeline of stores",
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._first_token = Histogram(
            "isomorph_latent_time_to_first_token_seconds",
            "Time from arrival to the first token, with and without reuse", ["reuse"],
            buckets=_FIRST_TOKEN_S, registry=registry,
        )  # fmt: skip
        self._breakers = Gauge(
            "isomorph_latent_store_left_alone", "1 while the store is not asked, as it failed",
            ["direction"], registry=registry,
        )  # fmt: skip

    def add(self, name: str, value: float) -> None:
        """Count `value` more of the metric that CloudWatch calls `name`; for any thread."""
        self._counters[name].inc(value)
        with self._lock:
            self._window[name] = [self._window.get(name, [0.0])[0] + value]

    def first_token(self, seconds: float, reused_tokens: int) -> None:
        """Note how long a client waited for the first token, by whether blocks were reused."""
        self._first_token.labels("hit" if reused_tokens else "miss").observe(seconds)
        with self._lock:
            values = self._window.setdefault(_FIRST_TOKENS[not reused_tokens], [])
            if len(values) < _MAX_VALUES:
                values.append(1e3 * seconds)

    def left_alone(self, direction: str, is_open: bool) -> None:
        """Note whether the store is not asked now."""
        self._breakers.labels(direction).set(is_open)

    def take(self) -> dict[str, list[float]]:
        """Return each metric's values since the last call; counts are there when zero, too."""
        with self._lock:
            window, self._window = self._window, {}
        return {name: [0.0] for name in _COUNTS} | window
