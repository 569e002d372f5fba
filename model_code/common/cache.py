"""What tokens leave behind for later ones: keys and values, or latents; all allocated at the start.

A layer's cache is one of three: whole (here), paged (paged_cache.py), or a ring that keeps a window
(model_code/sliding_window). A token leaves the same parts in each: keys and values of its heads, or
one latent with the rotated key that all heads share (MLA).

Shape letters: B sequences, S new tokens, T cached positions, K heads of a part, H width of one.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from model_code.common import huge_pages
from model_code.common.architecture import Architecture
from model_code.common.layers import Attention
from model_code.common.paged_cache import PagedLayer, PageTable
from model_code.common.span import Span


class Part(NamedTuple):
    """One of the things that a token leaves in a layer."""

    heads: int
    width: int


class LayerCache(Protocol):
    """The cache of one layer."""

    stores: list[Tensor]

    def update(self, new_BSKH: Sequence[Tensor], span: Span) -> tuple[list[Tensor], Tensor | None]:
        """Take the new tokens' parts in; return what they see [B, K, T, H], and the mask [B, S, T].

        The mask is None where each of them sees all of it.
        What is returned may be views of the cache: it is to be read before the next update.
        """
        ...

    def move(self, source: int, target: int, length: int) -> None:
        """Make slot `target` hold the `length` tokens of slot `source`."""
        ...

    def read(self, slot: int, start: int, stop: int) -> list[Tensor]:
        """Return the parts [K, tokens, H] of the tokens from start to stop - 1; views or copies."""
        ...

    def place(self, slot: int, start: int, parts_KTH: Sequence[Tensor]) -> None:
        """Put tokens back that `read` returned, here or elsewhere."""
        ...


def parts_of(attention: Attention) -> list[Part]:
    """Return what a token leaves in a layer with this attention."""
    if attention.latent_rank is not None:
        return [Part(1, attention.latent_rank + attention.rope_dim)]
    heads = attention.kv_heads
    return [Part(heads, attention.head_dim), Part(heads, attention.value_dim)]


class WholeLayer:
    """Keeps every position of each slot, one behind the other: what is read is a view."""

    def __init__(
        self, parts: Sequence[Part], *, slots: int, context: int, dtype: torch.dtype
    ) -> None:
        # Zeros, not empty: hidden positions get a weight of 0, and 0 times a stray NaN is NaN.
        self.stores = [
            huge_pages.zeros((slots, heads, context, width), dtype) for heads, width in parts
        ]

    def update(self, new_BSKH: Sequence[Tensor], span: Span) -> tuple[list[Tensor], Tensor | None]:
        """See `LayerCache`."""
        for store, new in zip(self.stores, new_BSKH, strict=True):
            span.write(store[span.slots], span.positions_BS, new)
        return [store[span.slots, :, : span.visible] for store in self.stores], span.mask_BST

    def move(self, source: int, target: int, length: int) -> None:
        """See `LayerCache`."""
        for store in self.stores:
            store[target, :, :length] = store[source, :, :length]

    def read(self, slot: int, start: int, stop: int) -> list[Tensor]:
        """See `LayerCache`."""
        return [store[slot, :, start:stop] for store in self.stores]

    def place(self, slot: int, start: int, parts_KTH: Sequence[Tensor]) -> None:
        """See `LayerCache`."""
        for store, part in zip(self.stores, parts_KTH, strict=True):
            store[slot, :, start : start + part.shape[1]] = part


class KVCache:
    """The caches of all layers, for `slots` sequences of up to `context` tokens each.

    Positions at and after a sequence's length are garbage that the mask hides, so starting a new
    sequence in a slot costs nothing.

    Args:
        page_tokens: Positions of a page, in layers without a window; None keeps slots whole.
        pages: Pages that all slots share; None is enough for every slot to be full.
    """

    def __init__(
        self, architecture: Architecture, *, slots: int, context: int, dtype: torch.dtype,
        page_tokens: int | None = None, pages: int | None = None,
    ) -> None:  # fmt: skip
        self.slots, self.context, self.dtype = slots, context, dtype
        self.table = PageTable(slots, context, page_tokens, pages) if page_tokens else None
        self.layers: list[LayerCache] = []
        for attention in (layer.attention for layer in architecture.layers):
            self.layers.append(self._layer(attention))

    def _layer(self, attention: Attention) -> LayerCache:
        parts, size = parts_of(attention), {"slots": self.slots, "context": self.context}
        if attention.window is not None:
            from model_code.sliding_window.model import RingLayer

            return RingLayer(parts, window=attention.window, **size, dtype=self.dtype)
        if self.table:
            return PagedLayer(parts, self.table, dtype=self.dtype)
        return WholeLayer(parts, **size, dtype=self.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of all layers."""
        return sum(store.nbytes for layer in self.layers for store in layer.stores)

    def reserve(self, span: Span) -> None:
        """Have a place for each new token; a decoder calls it before the first layer."""
        if self.table:
            self.table.reserve(span)

    def move(self, source: int, target: int, length: int) -> None:
        """Let slot `target` have the first `length` tokens of slot `source`, which is free then."""
        for layer in self.layers:
            layer.move(source, target, length)
        if self.table:
            self.table.move(source, target)

    def release(self, slot: int) -> None:
        """Give back what a slot holds beyond its fixed place: its pages."""
        if self.table:
            self.table.release(slot)

    def export_tokens(self, slot: int, start: int, stop: int) -> Tensor:
        """Return what the tokens from start to stop - 1 left in all layers, in one flat tensor.

        Layer by layer, part by part, head by head, token by token. Its bytes are those that
        `Architecture.kv_bytes_per_token` counts, times the tokens. The tokens must be in the cache.

        Raises:
            ValueError: A layer's window has passed over some of them.
        """
        blocks = (layer.read(slot, start, stop) for layer in self.layers)
        return torch.cat([part.reshape(-1) for parts in blocks for part in parts])

    def import_tokens(self, slot: int, start: int, data: Tensor) -> int:
        """Put exported tokens into a slot from position `start` on; return how many they are.

        The sequence in that slot is as if it had read them itself, if those before are there.

        Raises:
            ValueError: Another dtype, or not a whole number of tokens, or more than there is room.
        """
        sizes = [store.shape[1] * store.shape[3] for layer in self.layers for store in layer.stores]
        tokens, rest = divmod(data.numel(), sum(sizes))
        if data.dtype != self.dtype or rest:
            raise ValueError(
                f"{data.numel()} numbers of {data.dtype} are no whole tokens of this cache; it has "
                f"{sum(sizes)} of {self.dtype} for each"
            )
        if start + tokens > self.context:
            raise ValueError(f"{tokens} tokens from {start} on exceed the context, {self.context}")
        if self.table:
            self.table.grow(slot, start + tokens)
        flat = iter(data.split([size * tokens for size in sizes]))
        for layer in self.layers:
            heads = [store.shape[1] for store in layer.stores]
            layer.place(slot, start, [next(flat).view(K, tokens, -1) for K in heads])
        return tokens
