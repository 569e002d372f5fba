"""Pages of a few positions that all slots share (vLLM's, arXiv 2309.06180, section 4.1).

Memory follows what sequences are, not what they may become.

Shape letters: B sequences, S new tokens, C pages, P positions of a page, T cached positions,
K heads of a part, H width of one.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from model_code.common import huge_pages
from model_code.common.span import Span


class OutOfPagesError(Exception):
    """All pages are taken. Whoever fills the cache has to count them before."""


class PageTable:
    """Which pages each slot has, in the order of its positions. One table serves all layers."""

    def __init__(self, slots: int, context: int, page_tokens: int, pages: int | None) -> None:
        self.page_tokens = page_tokens
        self.of_a_slot = -(-context // page_tokens)
        self.pages = slots * self.of_a_slot if pages is None else pages
        self.places = torch.zeros(slots, self.of_a_slot, dtype=torch.long)
        self._held = [0] * slots
        self._free = list(range(self.pages))[::-1]

    @property
    def free(self) -> int:
        """Pages that no slot has."""
        return len(self._free)

    def needed(self, tokens: int) -> int:
        """Return the pages of a sequence of so many tokens."""
        return -(-tokens // self.page_tokens)

    def reserve(self, span: Span) -> None:
        """Give each slot of the span the pages that its new tokens need."""
        for slot, end in enumerate(span.ends_B.tolist(), start=span.slots.start):
            self.grow(slot, end)

    def grow(self, slot: int, tokens: int) -> None:
        """Give a slot enough pages for so many tokens.

        Raises:
            OutOfPagesError: There are not enough; none is taken then.
        """
        missing = self.needed(tokens) - self._held[slot]
        if missing > len(self._free):
            raise OutOfPagesError(
                f"{tokens} tokens need {missing} more pages of {self.page_tokens}; "
                f"{len(self._free)} of {self.pages} are free"
            )
        for _ in range(missing):
            self.places[slot, self._held[slot]] = self._free.pop()
            self._held[slot] += 1

    def move(self, source: int, target: int) -> None:
        """Hand the pages of one slot to another, which gives its own back."""
        self.release(target)
        self.places[target] = self.places[source]
        self._held[target], self._held[source] = self._held[source], 0

    def release(self, slot: int) -> None:
        """Free the pages of a slot."""
        self._free += self.places[slot, : self._held[slot]].tolist()[::-1]
        self._held[slot] = 0


class PagedLayer:
    """A layer whose positions lie in pages. Attending gathers a sequence's pages, which is a copy.

    So a step takes longer than on slots that are whole; it is for more sequences than fit whole.
    """

    def __init__(
        self, parts: Sequence[tuple[int, int]], table: PageTable, *, dtype: torch.dtype
    ) -> None:
        self.table = table
        shapes = [(table.pages, heads, table.page_tokens, width) for heads, width in parts]
        self.stores = [huge_pages.zeros(shape, dtype) for shape in shapes]

    def update(self, new_BSKH: Sequence[Tensor], span: Span) -> tuple[list[Tensor], Tensor | None]:
        """See `LayerCache`."""
        size = self.table.page_tokens
        places_BC = self.table.places[span.slots]
        pages_BS = places_BC[span.rows_B1, span.positions_BS // size]
        offsets_BS = span.positions_BS % size
        for store, new in zip(self.stores, new_BSKH, strict=True):
            if span.real_BS is None:
                store[pages_BS, :, offsets_BS] = new
            else:
                real = span.real_BS
                store[pages_BS[real], :, offsets_BS[real]] = new[real]
        seen_BC = places_BC[:, : self.table.needed(span.visible)]
        return [_joined(store[seen_BC])[:, :, : span.visible] for store in self.stores], (
            span.mask_BST
        )

    def move(self, source: int, target: int, length: int) -> None:
        """Nothing: the table hands the pages over."""

    def read(self, slot: int, start: int, stop: int) -> list[Tensor]:
        """See `LayerCache`."""
        places = self.table.places[slot, : self.table.needed(stop)]
        return [_joined(store[places][None])[0, :, start:stop] for store in self.stores]

    def place(self, slot: int, start: int, parts_KTH: Sequence[Tensor]) -> None:
        """See `LayerCache`."""
        positions = torch.arange(start, start + parts_KTH[0].shape[1])
        pages = self.table.places[slot, positions // self.table.page_tokens]
        for store, part in zip(self.stores, parts_KTH, strict=True):
            store[pages, :, positions % self.table.page_tokens] = part.transpose(0, 1)


def _joined(pages_BCKPH: Tensor) -> Tensor:
    """[B, C, K, P, H] -> [B, K, C P, H]."""
    return pages_BCKPH.transpose(1, 2).flatten(2, 3)
