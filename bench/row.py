"""One line of a measurement: what ours took, beside a peer or a limit, in the same run."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

# Threads of OpenMP and the like spin for milliseconds after their work, on a core of the next one.
PAUSE_S = 0.02


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
    return in_turn(
        {name: partial(seconds_of, run) for name, run in variants.items()},
        rounds=rounds, warmups=warmups,
    )  # fmt: skip


def seconds_of(run: Callable[[], object]) -> float:
    """Return how long a call of `run` takes: the mean of as many in a row as fill a moment.

    After a pause a short one alone would show how long Python takes to be back in the caches.
    """
    since, calls = time.perf_counter(), 0
    while True:
        run()
        calls += 1
        if (took := time.perf_counter() - since) >= PAUSE_S:
            return took / calls


def seconds_of_one(run: Callable[[], object]) -> float:
    """Return how long one call takes, where a second one would find what the first has left."""
    since = time.perf_counter()
    run()
    return time.perf_counter() - since


def in_turn(
    variants: Mapping[str, Callable[[], float]], *, rounds: int = 5, warmups: int = 1
) -> dict[str, float]:
    """Return the median of what each variant returns, taking turns: seconds by its own account.

    Each turn begins when the threads of the one before are asleep.
    """
    found: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(warmups + rounds):
        for name, run in variants.items():
            time.sleep(PAUSE_S)
            seconds = run()
            if turn >= warmups:
                found[name].append(seconds)
    return {name: statistics.median(each) for name, each in found.items()}


def beside(
    name: str, took: Mapping[str, float], ours: str, peer: str, called: str, target: float
) -> Row:
    """Return the row of two variants by their seconds, shown in milliseconds.

    Args:
        name: What was measured.
        took: Seconds of each variant.
        ours: Our variant.
        peer: The other one.
        called: What a reader shall see of it.
        target: The ratio to reach.
    """
    return Row(
        name=name, ours=f"{took[ours] * 1e3:.3g} ms", peer=f"{called}: {took[peer] * 1e3:.3g} ms",
        ratio=took[peer] / took[ours], target=target,
    )  # fmt: skip
