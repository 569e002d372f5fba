"""What the server counts: for Prometheus at /metrics, and for CloudWatch."""

import time
from collections.abc import Mapping
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from model_code.common.engine import Engine
from model_code.common.server.admission import Admission
from model_code.common.server.plain_metrics import MoreMetrics
from model_code.common.server.window import UNITS, Window

__all__ = ["Metrics", "MoreMetrics", "Window"]

disable_created_metrics()  # a second series for each counter, which nobody reads
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_RATE_WINDOW_S = 10.0
_MEMINFO = Path("/proc/meminfo")


class Metrics:
    """The server's figures. Call `level` whenever a request comes, starts or goes."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.more: MoreMetrics | None = None
        self.window = Window()
        self._rate = Window()
        self._rate_value = 0.0
        self._rate_at = time.monotonic()
        self._kv_bytes_per_token = self._window_held = self._window_places = 0
        self._attention_window: int | None = None
        registry = self.registry
        self.requests = Counter(
            "isomorph_requests",
            "Requests by status; 499 if the client went away",
            ["code"],
            registry=registry,
        )
        self.running = Gauge(
            "isomorph_requests_in_flight", "Requests that run or wait", registry=registry
        )
        self.waiting = Gauge("isomorph_queue_depth", "Requests that wait", registry=registry)
        self.queue_wait = Histogram(
            "isomorph_queue_wait_seconds", "Time from arrival to a slot",
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.first_token = Histogram(
            "isomorph_time_to_first_token_seconds", "Time from arrival to the first token",
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.tokens = Counter(
            "isomorph_tokens", "Tokens read and written", ["direction"], registry=registry
        )
        rate = Gauge(
            "isomorph_tokens_per_second",
            "Tokens written a second since the last look",
            registry=registry,
        )
        rate.set_function(self._tokens_per_second)
        self.kv_used = Gauge(
            "isomorph_kv_bytes_used", "Bytes of keys and values of running requests",
            registry=registry,
        )  # fmt: skip
        self._kv_capacity = Gauge(
            "isomorph_kv_bytes_capacity", "Bytes of keys and values that fit", registry=registry
        )
        self._engine = Gauge(
            "isomorph_engine_info", "Which engine serves which model", ["engine", "model"],
            registry=registry,
        )  # fmt: skip

    def loaded(self, engine: Engine, model: str) -> None:
        """Note which engine serves, and how much it can hold."""
        self._engine.labels(engine.name, model).set(1)
        self._kv_capacity.set(engine.kv_bytes_per_token * engine.context * engine.slots)
        self._kv_bytes_per_token, self._attention_window = engine.kv_bytes_per_token, engine.window
        self._window_places = engine.slots * (engine.window or 0)

    def level(self, admission: Admission) -> None:
        """Note how many requests run and wait now."""
        self.running.set(admission.in_flight)
        self.waiting.set(admission.waiting)
        self.window.level(admission.in_flight, admission.waiting)

    def hold(self, before: int, now: int) -> None:
        """Note that a request has `now` tokens in the cache where it had `before`."""
        self.kv_used.inc((now - before) * self._kv_bytes_per_token)
        if window := self._attention_window:
            self._window_held += min(now, window) - min(before, window)
            self.window.fill(self._window_held / self._window_places)

    def wrote_first_token(self, seconds: float, reused_tokens: int | None = None) -> None:
        """Note how long a client waited for the first token."""
        if self.more and reused_tokens is not None:
            self.more.first_token(seconds, reused_tokens)
        self.first_token.observe(seconds)
        self.window.first_tokens.append(seconds)

    def queued(self, seconds: float) -> None:
        """Note how long a request waited for a slot."""
        self.queue_wait.observe(seconds)

    def read(self, tokens: int) -> None:
        """Note the tokens of a prompt."""
        self.tokens.labels("in").inc(tokens)

    def answered(self, code: int) -> None:
        """Note how a request ended."""
        self.requests.labels(str(code)).inc()

    def wrote(self, tokens: int) -> None:
        """Note more tokens written."""
        self.tokens.labels("out").inc(tokens)
        self.window.tokens += tokens
        self._rate.tokens += tokens

    @property
    def units(self) -> Mapping[str, str]:
        """CloudWatch's unit of each metric that `take` may return."""
        return {**UNITS, **(self.more.units if self.more else {})}

    def take(self) -> dict[str, list[float]]:
        """Return each metric's values since the last call, by CloudWatch's name."""
        values = self.window.take() | (self.more.take() if self.more else {})
        if self._attention_window is None:
            del values["WindowOccupancy"]
        headroom = memory_headroom_mib()
        return values if headroom is None else {**values, "MemoryHeadroom": [headroom]}

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry)

    def _tokens_per_second(self) -> float:
        now = time.monotonic()
        if now - self._rate_at >= _RATE_WINDOW_S:
            [self._rate_value] = self._rate.take()["TokensPerSecond"]
            self._rate_at = now
        return self._rate_value


def memory_headroom_mib(meminfo: Path = _MEMINFO) -> float | None:
    """Return what the node has left for all programs, in MiB; None where its kernel does not say.

    Pages of mapped weights count as left: the kernel can give them up, and reads them again.
    """
    try:
        lines = meminfo.read_text().splitlines()
    except OSError:
        return None
    found = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return next((int(kib) / 1024 for kib in found), None)
