"""A ring of the last tokens: the cache of a layer whose queries see no farther than a window.

Its bytes are bounded by the window, however long the sequence grows. The attention itself is the
common one: only what it is given to see differs.

Shape letters: B sequences, S new tokens, W positions that the ring keeps, T positions seen, K heads
of a part, H width of one.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from model_code.common import huge_pages
from model_code.common.span import Span


class _Plan(NamedTuple):
    """How one span meets rings of one length: worked out once for all layers."""

    places_BS: Tensor
    kept_BS: Tensor | None  # new tokens that stay in the ring; None is all
    held: int  # places of the ring that are read beside the new tokens
    mask_BST: Tensor | None  # None is all of them


class RingLayer:
    """Keeps the last tokens of each slot: position p at place p modulo the ring's length."""

    def __init__(
        self, parts: Sequence[tuple[int, int]], *, window: int, slots: int, context: int,
        dtype: torch.dtype,
    ) -> None:  # fmt: skip
        self.length = min(window, context)
        shapes = [(slots, heads, self.length, width) for heads, width in parts]
        self.stores = [huge_pages.zeros(shape, dtype) for shape in shapes]

    def update(self, new_BSKH: Sequence[Tensor], span: Span) -> tuple[list[Tensor], Tensor | None]:
        """See `LayerCache`. One new token overwrites the one that leaves the window, in place."""
        plan = span.plans.get(self.length) or self._plan(span)
        single = span.tokens == 1
        seen = []
        for store, new in zip(self.stores, new_BSKH, strict=True):
            ring = store[span.slots]
            if single:  # in place first: what leaves the window is not seen any more
                span.write_some(ring, plan.places_BS, new, plan.kept_BS)
                seen.append(ring[:, :, : plan.held])
                continue
            # A longer run overwrites what its own first tokens still see, so both are read before.
            seen.append(torch.cat([ring[:, :, : plan.held], new.transpose(1, 2)], dim=2))
            span.write_some(ring, plan.places_BS, new, plan.kept_BS)
        return seen, plan.mask_BST

    def _plan(self, span: Span) -> _Plan:
        places_BS = span.positions_BS % self.length
        if span.tokens == 1:
            held = min(span.visible, self.length)
            mask = None
            if not span.sees_all:
                mask = torch.arange(held) <= span.positions_BS[..., None]
            plan = _Plan(places_BS, span.real_BS, held, mask)
        else:
            held = min(int(span.starts_B.max()), self.length)
            kept_BS = span.positions_BS >= span.ends_B[:, None] - self.length
            kept_BS = kept_BS if span.real_BS is None else kept_BS & span.real_BS
            plan = _Plan(places_BS, kept_BS, held, self._mask(span, held))
        span.plans[self.length] = plan
        return plan

    def _mask(self, span: Span, held: int) -> Tensor:
        """Return what each new token sees of the ring as it was, and of the new tokens."""
        last_B1 = span.starts_B[:, None] - 1
        ring_BW = last_B1 - (last_B1 - torch.arange(held)) % self.length
        positions_BT = torch.cat([ring_BW, span.positions_BS], dim=1)[:, None]
        queries_BS1 = span.positions_BS[..., None]
        mask_BST = (positions_BT <= queries_BS1) & (positions_BT > queries_BS1 - self.length)
        mask_BST &= positions_BT >= 0  # a ring that is not full yet
        if span.real_BS is not None:
            mask_BST[:, :, held:] &= span.real_BS[:, None]
        return mask_BST

    def move(self, source: int, target: int, length: int) -> None:
        """See `LayerCache`."""
        for store in self.stores:
            kept = min(length, self.length)
            store[target, :, :kept] = store[source, :, :kept]

    def read(self, slot: int, start: int, stop: int) -> list[Tensor]:
        """See `LayerCache`. Only while the ring has not gone round: places are positions then."""
        self._check(stop)
        return [store[slot, :, start:stop] for store in self.stores]

    def place(self, slot: int, start: int, parts_KTH: Sequence[Tensor]) -> None:
        """See `LayerCache`; bounded like `read`."""
        self._check(start + parts_KTH[0].shape[1])
        for store, part in zip(self.stores, parts_KTH, strict=True):
            store[slot, :, start : start + part.shape[1]] = part

    def _check(self, stop: int) -> None:
        if stop > self.length:
            raise ValueError(
                f"tokens up to {stop} cannot be taken out or put back: a layer keeps the last "
                f"{self.length} only; allowed are the first {self.length}"
            )
