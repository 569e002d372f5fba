"""One line of a measurement: what ours took, beside a peer or a limit, in the same run."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Row:
    """A measured ratio, and the ratio to reach.

    Args:
        ours: What ours took or gave, with its unit.
        peer: Which peer or limit it ran beside, and what that took or gave.
        ratio: How many times better than the peer ours is.
    """

    name: str
    ours: str
    peer: str
    ratio: float
    target: float
    reached: bool = field(init=False)

    def __post_init__(self) -> None:
        """Compare the ratio with the target."""
        object.__setattr__(self, "reached", self.ratio >= self.target)


def interleaved(
    variants: Mapping[str, Callable[[], object]], *, rounds: int, warmups: int = 1
) -> dict[str, float]:
    """Return each variant's median seconds. They take turns, so a slow moment hits all of them."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(warmups + rounds):
        for name, run in variants.items():
            since = time.perf_counter()
            run()
            if turn >= warmups:
                times[name].append(time.perf_counter() - since)
    return {name: statistics.median(found) for name, found in times.items()}
