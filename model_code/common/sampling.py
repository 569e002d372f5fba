"""Chooses the next token from logits."""

from collections.abc import Collection

import torch
from torch import Tensor

_GREEDY_BELOW = (
    1e-4  # logits divided by less would overflow; the likeliest token is certain by then
)


class Sampler:
    """One sequence's way of choosing: greedy at temperature 0, else by chance among the likeliest.

    In this order: repetition penalty, temperature, top-k, top-p, min-p, as transformers does.

    Args:
        top_p: Keeps the smallest set of tokens whose probability reaches it; 1 keeps all.
        top_k: Keeps so many tokens; 0 keeps all.
        min_p: Keeps tokens with at least this share of the likeliest one's probability.
        repetition_penalty: Divides positive logits of tokens that were there before, and
            multiplies negative ones (CTRL, arXiv 1909.05858, section 4.1); 1 leaves them.
    """

    def __init__(
        self, *, temperature: float, top_p: float, seed: int, top_k: int = 0, min_p: float = 0.0,
        repetition_penalty: float = 1.0,
    ) -> None:  # fmt: skip
        self._temperature, self._top_p = temperature, top_p
        self._top_k, self._min_p, self._penalty = top_k, min_p, repetition_penalty
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, logits_V: Tensor, before: Collection[int] = ()) -> int:
        """Return a token id; `before` are the sequence's tokens so far, with its prompt."""
        if self._penalty != 1 and before:
            logits_V = self._penalised(logits_V, before)
        if self._temperature < _GREEDY_BELOW:
            return int(logits_V.argmax())
        logits_V = logits_V / self._temperature
        if self._top_k == 0 and self._top_p == 1 and self._min_p == 0:
            return self._draw(logits_V.softmax(-1))
        ordered_V, order_V = logits_V.sort(descending=True)
        if self._top_k:
            ordered_V = ordered_V[: self._top_k]
        probabilities_V = ordered_V.softmax(-1)
        likeliest = probabilities_V[0].clone()
        if self._top_p < 1:
            before_V = probabilities_V.cumsum(-1) - probabilities_V  # the likeliest always stays
            probabilities_V[before_V >= self._top_p] = 0
        probabilities_V[probabilities_V < self._min_p * likeliest] = 0
        return int(order_V[self._draw(probabilities_V)])

    def _penalised(self, logits_V: Tensor, before: Collection[int]) -> Tensor:
        seen = torch.tensor(sorted(set(before)))
        values = logits_V[seen]
        penalised = torch.where(values > 0, values / self._penalty, values * self._penalty)
        return logits_V.index_copy(0, seen, penalised)

    def _draw(self, weights_V: Tensor) -> int:
        return int(torch.multinomial(weights_V, 1, generator=self._generator))
