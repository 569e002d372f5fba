"""What a service tells of its work, and who counts it for CloudWatch alone, without Prometheus."""

from collections.abc import Mapping
from typing import Protocol

from model_code.common.engine import Engine
from model_code.common.server.admission import Admission
from model_code.common.server.window import UNITS, Window


class MoreMetrics(Protocol):
    """What a target counts on top.

    Args:
        units: CloudWatch's unit of each metric that `take` may return.
    """

    units: Mapping[str, str]

    def first_token(self, seconds: float, reused_tokens: int) -> None:
        """Note how long a client waited for the first token."""
        ...

    def take(self) -> dict[str, list[float]]:
        """Return each metric's values since the last call."""
        ...


class ServiceMetrics(Protocol):
    """What a service tells: see `Metrics` in metrics.py for each."""

    def loaded(self, engine: Engine, model: str) -> None: ...  # noqa: D102
    def level(self, admission: Admission) -> None: ...  # noqa: D102
    def queued(self, seconds: float) -> None: ...  # noqa: D102
    def read(self, tokens: int) -> None: ...  # noqa: D102
    def hold(self, before: int, now: int) -> None: ...  # noqa: D102
    def answered(self, code: int) -> None: ...  # noqa: D102
    def wrote(self, tokens: int) -> None: ...  # noqa: D102
    def wrote_first_token(  # noqa: D102
        self, seconds: float, reused_tokens: int | None = None
    ) -> None: ...
    def text(self) -> bytes: ...  # noqa: D102


class PlainMetrics:
    """Counts what CloudWatch is told."""

    def __init__(self) -> None:
        self.more: MoreMetrics | None = None
        self.window = Window()

    @property
    def units(self) -> Mapping[str, str]:
        """CloudWatch's unit of each metric that `take` may return."""
        return {**UNITS, **(self.more.units if self.more else {})}

    def take(self) -> dict[str, list[float]]:
        """Return each metric's values since the last call, by CloudWatch's name."""
        values = self.window.take() | (self.more.take() if self.more else {})
        del values["WindowOccupancy"]  # no engine that this counts for has windows
        return values

    def level(self, admission: Admission) -> None:
        """Note how many requests run and wait now."""
        self.window.level(admission.in_flight, admission.waiting)

    def wrote(self, tokens: int) -> None:
        """Note more tokens written."""
        self.window.tokens += tokens

    def wrote_first_token(self, seconds: float, reused_tokens: int | None = None) -> None:
        """Note how long a client waited for the first token."""
        self.window.first_tokens.append(seconds)

    def loaded(self, engine: Engine, model: str) -> None:
        """CloudWatch is not told."""

    def queued(self, seconds: float) -> None:
        """CloudWatch is not told."""

    def read(self, tokens: int) -> None:
        """CloudWatch is not told."""

    def hold(self, before: int, now: int) -> None:
        """CloudWatch is not told."""

    def answered(self, code: int) -> None:
        """CloudWatch is not told."""

    def text(self) -> bytes:
        """Return nothing: there is no Prometheus."""
        return b""
