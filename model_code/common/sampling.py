"""Chooses the next token from logits."""

import torch
from torch import Tensor

_GREEDY_BELOW = (
    1e-4  # logits divided by less would overflow; the likeliest token is certain by then
)


class Sampler:
    """One sequence's way of choosing: greedy at temperature 0, else from the top-p nucleus."""

    def __init__(self, *, temperature: float, top_p: float, seed: int) -> None:
        self._temperature, self._top_p = temperature, top_p
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, logits_V: Tensor) -> int:
        """Return a token id."""
        if self._temperature < _GREEDY_BELOW:
            return int(logits_V.argmax())
        probabilities_V = (logits_V / self._temperature).softmax(-1)
        if self._top_p < 1:
            ordered_V, order_V = probabilities_V.sort(descending=True)
            before_V = ordered_V.cumsum(-1) - ordered_V  # the likeliest token always stays
            ordered_V[before_V >= self._top_p] = 0
            return int(order_V[self._draw(ordered_V)])
        return self._draw(probabilities_V)

    def _draw(self, weights_V: Tensor) -> int:
        return int(torch.multinomial(weights_V, 1, generator=self._generator))
