"""What a step of training says of itself, and who is told."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step, of all ranks together.

    Args:
        step: Counted from 1.
        loss: Of the next token, in nats, without the balance term.
        tokens_per_second: Of the whole job.
        mfu: FLOPs that the model needs over those that the devices have, 0 to 1; None when no peak
            was given.
        expert_load: Tokens of the fullest expert over the mean, in the worst layer; 1 is even.
        dropped_tokens: Visits of experts that were left out; always 0, as no expert has a limit.
        grad_norm: Of all gradients, before they were clipped.
        checkpoint_age_s: Since the last whole checkpoint, or since the start.
    """

    step: int
    loss: float
    tokens_per_second: float
    mfu: float | None
    expert_load: float
    dropped_tokens: int
    grad_norm: float
    checkpoint_age_s: float


class Sink(Protocol):
    """Takes the records of a run, on the first rank only. It neither blocks nor raises."""

    def record(self, step: Step) -> None:
        """Take one step."""
        ...

    def close(self) -> None:
        """Send what is left."""
        ...
