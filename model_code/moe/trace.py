"""Which experts work: for each sequence that asks, and in sum for the server's metrics.

Shape letters: T tokens, A experts that a token visits, E experts.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy
from torch import Tensor

from model_code.common.batch import Sequence
from model_code.common.decoder import Decoder
from model_code.moe.layers import mixtures

Counts = Any  # of each expert [E]; numpy's int64


class ExpertTrace:
    """Counts visits: an `Observer` of a batch, and what its mixtures tell their choices.

    Attributes:
        count: Is told each pass's visits, layer by layer; None where nobody counts.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.count: Callable[[int, Counts], None] | None = None
        self._sequences: list[Sequence] = []
        self._asking = False
        for layer, mixture in mixtures(decoder).items():
            mixture.watch = partial(self._note, layer, len(mixture.router.weight))

    def reading(self, sequences: list[Sequence]) -> None:
        """See `Observer`."""
        self._sequences = sequences
        self._asking = any(sequence.experts is not None for sequence in sequences)

    def _note(self, layer: int, experts: int, experts_TA: Tensor) -> None:
        if not self._asking and self.count is None:
            return
        visits = experts_TA.numpy()
        if self.count is not None:
            self.count(layer, numpy.bincount(visits.ravel(), minlength=experts))
        if self._asking:
            rows = numpy.split(visits, len(self._sequences))
            for sequence, own in zip(self._sequences, rows, strict=True):
                if sequence.experts is not None:
                    counts = numpy.bincount(own.ravel(), minlength=experts)
                    sequence.experts[layer] = sequence.experts.get(layer, 0) + counts
