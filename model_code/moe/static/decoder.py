"""A decoder step of fixed shapes: tokens, positions and caches in, logits and caches out.

It runs the modules of the eager decoder on a cache that is passed in and out, so there is one model
and not two. A graph is made for each bucket: one token of each slot, or so many of one prompt.

Shape letters: B sequences, S new tokens of each, C positions of the cache, K heads of a part, H
width of one, D model width, V vocabulary.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from model_code.common.batch import PREFILL_CHUNK
from model_code.common.cache import parts_of
from model_code.common.decoder import Decoder
from model_code.common.errors import SettingsError
from model_code.common.rotary import Rotary
from model_code.moe.layers import mixtures
from model_code.moe.model import Experts
from model_code.moe.static.experts import StaticExperts


@dataclass(frozen=True, order=True)
class Bucket:
    """The shapes of one graph.

    Args:
        slots: Sequences.
        tokens: New tokens of each, with padding.
        context: Positions of the cache of each.
    """

    slots: int
    tokens: int
    context: int

    @property
    def name(self) -> str:
        """What its files are called."""
        return f"s{self.slots}-t{self.tokens}-c{self.context}"


def buckets_for(slots: int, context: int) -> tuple[Bucket, ...]:
    """Return the graphs that a server needs: a token of each slot, and a chunk of one prompt."""
    return Bucket(slots, 1, context), Bucket(1, min(PREFILL_CHUNK, context), context)


class _Span:
    """As model_code/common/span.py, as far as attention asks, with shapes that are known."""

    def __init__(self, starts_B: Tensor, bucket: Bucket) -> None:
        device = starts_B.device
        steps_S = torch.arange(bucket.tokens, device=device)
        self.positions_BS = (starts_B[:, None] + steps_S).clamp(max=bucket.context - 1)
        places_C = torch.arange(bucket.context, device=device)
        self.mask_BSC = places_C <= self.positions_BS[..., None]


class _Cache:
    """One layer's part of the cache; `stores` are replaced, never written."""

    def __init__(self, stores: Sequence[Tensor]) -> None:
        self.stores = [*stores]

    def update(self, new_BSKH: Sequence[Tensor], span: _Span) -> tuple[list[Tensor], Tensor]:
        """See `LayerCache`: all positions are returned, the mask hides those that are not there."""
        for at, new in enumerate(new_BSKH):
            part_BKSH = new.transpose(1, 2)
            places = span.positions_BS[:, None, :, None].expand(part_BKSH.shape)
            self.stores[at] = self.stores[at].scatter(2, places, part_BKSH)
        return self.stores, span.mask_BSC


class _Rotary(nn.Module):
    """A `Rotary` whose tables move with the module to another device."""

    def __init__(self, rotary: Rotary) -> None:
        super().__init__()
        self._rotary = copy.copy(rotary)
        self.register_buffer("cos_TF", rotary.cos_TF)
        self.register_buffer("sin_TF", rotary.sin_TF)

    def forward(self, x_BSNH: Tensor, positions_BS: Tensor) -> Tensor:
        """See `Rotary`."""
        self._rotary.cos_TF, self._rotary.sin_TF = cast(Any, self.cos_TF), cast(Any, self.sin_TF)
        return self._rotary(x_BSNH, positions_BS)


class StaticDecoder(nn.Module):
    """One bucket's step.

    Raises:
        SettingsError: A layer has a window, or an expert is not there: their forms are not static.
    """

    def __init__(self, decoder: Decoder, bucket: Bucket) -> None:
        super().__init__()
        check(decoder, bucket)
        self.bucket = bucket
        # Modules of our own around parameters that are shared: experts differ from graph to graph.
        self.decoder = copy.deepcopy(decoder, {id(p): p for p in decoder.parameters()})
        for mixture in mixtures(self.decoder).values():
            assert isinstance(mixture.experts, Experts)  # noqa: S101  check() has looked
            mixture.experts = StaticExperts(mixture.experts, bucket.slots * bucket.tokens)
            mixture.watch = None
        self.rotaries = nn.ModuleList(_Rotary(each) for each in decoder.rotaries)

    def forward(
        self, tokens_BS: Tensor, starts_B: Tensor, counts_B: Tensor, *stores_BKCH: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the logits [B, V] after each sequence's last token, and the new caches.

        Args:
            tokens_BS: int64, padded on the right.
            starts_B: int64, the length of each sequence so far.
            counts_B: int64, the tokens of each without padding.
            stores_BKCH: Each layer's parts, as `empty_stores` makes them.
        """
        span, given = _Span(starts_B, self.bucket), iter(stores_BKCH)
        caches, decoder = [], self.decoder
        x_BSD = decoder.embed(tokens_BS)
        for block, rotary, layer in zip(
            decoder.layers, self.rotaries, decoder.architecture.layers, strict=True
        ):
            cache = _Cache([next(given) for _ in parts_of(layer.attention)])
            caches.append(cache)
            x_BSD = block(x_BSD, rotary, cache, span)
        last_B11 = (counts_B - 1)[:, None, None].expand(-1, 1, x_BSD.shape[-1])
        states_BD = decoder.norm(x_BSD.gather(1, last_B11)[:, 0])
        logits_BV = decoder.logits(states_BD)
        return logits_BV, *(store for cache in caches for store in cache.stores)

    def empty_stores(self) -> list[Tensor]:
        """Return a cache in which nothing is."""
        return [
            torch.zeros(self.bucket.slots, part.heads, self.bucket.context, part.width,
                        dtype=self.decoder.dtype)
            for layer in self.decoder.architecture.layers
            for part in parts_of(layer.attention)
        ]  # fmt: skip

    def example(self) -> tuple[Tensor, ...]:
        """Return inputs of the bucket's shapes."""
        slots, tokens = self.bucket.slots, self.bucket.tokens
        whole = torch.zeros(slots, tokens, dtype=torch.int64)
        lengths = torch.zeros(slots, dtype=torch.int64)
        return whole, lengths, lengths + tokens, *self.empty_stores()


def check(decoder: Decoder, bucket: Bucket) -> None:
    """Refuse what has no static form here."""
    name = decoder.architecture.name
    if any(layer.attention.window is not None for layer in decoder.architecture.layers):
        raise SettingsError(f"{name} has layers with a window, which have no static form here")
    if not all(isinstance(each.experts, Experts) for each in mixtures(decoder).values()):
        raise SettingsError(
            f"experts of {name} come out of a cache; load all of them to compile the model "
            f"(ISOMORPH_EXPERT_MIB left out)"
        )
    if not 0 < bucket.tokens <= bucket.context <= decoder.context or bucket.slots < 1:
        raise SettingsError(
            f"a graph for {bucket.slots} slots of {bucket.tokens} tokens in {bucket.context} does "
            f"not fit a decoder for {decoder.context}; tokens <= context <= that"
        )
