"""A decoder built from an `Architecture`: every attention, feed-forward part and norm placement.

Parts that only some models have live in the folder of their innovation and are imported when a
layer asks for them, so that a machine may lack the folders that its model does not need.

Shape letters: B sequences, S new tokens, D model width, V vocabulary; attention.py has those of
attention, feed_forward.py those of the feed-forward part.
"""

from functools import partial

import torch
from torch import Tensor, nn

from model_code.common.architecture import Architecture, Attention, FeedForward, Layer, Rope
from model_code.common.attention import GroupedQueryAttention
from model_code.common.cache import KVCache, LayerCache
from model_code.common.errors import WeightsError
from model_code.common.feed_forward import GatedFeedForward
from model_code.common.kernels import step
from model_code.common.linear import linear
from model_code.common.norm import MakeNorm, PreNorm, RMSNorm
from model_code.common.quantize import Int8Weight
from model_code.common.rotary import Rotary
from model_code.common.span import Span


class Block(nn.Module):
    """One layer: attention, then feed-forward, each with its norms around it."""

    def __init__(self, hidden: int, layer: Layer, norm: MakeNorm, dtype: torch.dtype) -> None:
        super().__init__()
        self.attention = _attention(hidden, layer.attention, dtype, norm)
        self.attention_norms = _residual(layer, hidden, norm)
        self.feed_forward = _feed_forward(hidden, layer.feed_forward, dtype)
        self.feed_forward_norms = _residual(layer, hidden, norm)

    def forward(self, x_BSD: Tensor, rotary: Rotary, cache: LayerCache, span: Span) -> Tensor:
        """[B, S, D] -> [B, S, D]."""
        attend = partial(self.attention, rotary=rotary, cache=cache, span=span)
        return self.feed_forward_norms(self.attention_norms(x_BSD, attend), self.feed_forward)


class Decoder(nn.Module):
    """Embedding, layers, last norm and head. `context` bounds the positions."""

    def __init__(self, architecture: Architecture, *, context: int, dtype: torch.dtype) -> None:
        super().__init__()
        check_supported(architecture, context)
        self.architecture, self.dtype, self.context = architecture, dtype, context
        hidden = architecture.hidden
        norm = partial(
            RMSNorm, eps=architecture.norm_eps, dtype=dtype, offset=architecture.norm_offset
        )
        self.rotaries = self._rotaries()
        self.embedding_VD = nn.Parameter(torch.empty(architecture.vocabulary, hidden, dtype=dtype))
        self.layers = nn.ModuleList(
            Block(hidden, layer, norm, dtype) for layer in architecture.layers
        )
        self.norm = norm(hidden)
        self.head_VD = self.embedding_VD
        if not architecture.tied_embeddings:
            self.head_VD = nn.Parameter(torch.empty(self.embedding_VD.shape, dtype=dtype))
        self.packed_head: Int8Weight | None = None

    def quantize(self, name: str, quantization: str) -> None:
        """Keep the head in int8, in int4 too: its loss is what a head's reader sees first."""
        tied = self.architecture.tied_embeddings
        if name == ("embedding_VD" if tied else "head_VD"):
            self.packed_head = Int8Weight(self.head_VD)
            del self.head_VD
            if tied:
                del self.embedding_VD

    def forward(self, tokens_BS: Tensor, cache: KVCache, span: Span) -> Tensor:
        """Return the normed states [B, S, D] of new tokens, whose keys and values stay cached."""
        cache.reserve(span)
        x_BSD = self.embed(tokens_BS)
        states_BSD = step.run(self, x_BSD, cache, span)
        return self.through_modules(x_BSD, cache, span) if states_BSD is None else states_BSD

    def through_modules(self, x_BSD: Tensor, cache: KVCache, span: Span) -> Tensor:
        """Make states of embeddings, layer by layer: what `step.run` does not do in one call."""
        for block, rotary, layer in zip(self.layers, self.rotaries, cache.layers, strict=True):
            x_BSD = block(x_BSD, rotary, layer, span)
        return self.norm(x_BSD)

    def logits(self, states: Tensor) -> Tensor:
        """[..., D] -> [..., V] in float32."""
        if self.packed_head is None:
            logits = linear(states, self.head_VD).float()
        else:
            rows_RV = self.packed_head(states.reshape(-1, states.shape[-1]))
            logits = rows_RV.float().view(*states.shape[:-1], -1)
        cap = self.architecture.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def embed(self, tokens_BS: Tensor) -> Tensor:
        """[B, S] -> [B, S, D]."""
        x_BSD = self._rows(tokens_BS)
        if (scale := self.architecture.embedding_scale) != 1:
            x_BSD = x_BSD * torch.tensor(scale, dtype=self.dtype)  # Gemma rounds the factor, too
        return x_BSD

    def _rows(self, tokens_BS: Tensor) -> Tensor:
        if self.packed_head is not None and self.architecture.tied_embeddings:
            return self.packed_head.embed(tokens_BS).to(self.dtype)
        return self.embedding_VD[tokens_BS]

    def _rotaries(self) -> list[Rotary]:
        """Return each layer's rotary embedding; layers with the same rules share one."""
        made: dict[tuple[Rope, int], Rotary] = {}
        for attention in (layer.attention for layer in self.architecture.layers):
            width = attention.rope_dim or attention.head_dim
            made[attention.rope, width] = made.get((attention.rope, width)) or Rotary(
                attention.rope, width, context=self.context,
                trained=self.architecture.context, dtype=self.dtype,
            )  # fmt: skip
        layers = (layer.attention for layer in self.architecture.layers)
        return [made[each.rope, each.rope_dim or each.head_dim] for each in layers]


def _attention(hidden: int, attention: Attention, dtype: torch.dtype, norm: MakeNorm) -> nn.Module:
    if attention.kind == "mla":
        from model_code.mla.model import LatentAttention

        return LatentAttention(hidden, attention, dtype)
    return GroupedQueryAttention(hidden, attention, dtype, norm)


def _feed_forward(hidden: int, part: FeedForward, dtype: torch.dtype) -> nn.Module:
    if part.experts:
        from model_code.moe.model import MixtureOfExperts

        return MixtureOfExperts(hidden, part, dtype)
    return GatedFeedForward(hidden, part, dtype)


def _residual(layer: Layer, hidden: int, norm: MakeNorm) -> nn.Module:
    if layer.norms == "pre":
        return PreNorm(hidden, norm)
    from model_code.normalization.model import Residual

    return Residual(layer.norms, hidden, norm)


def check_supported(architecture: Architecture, context: int) -> None:
    """Refuse by name what this decoder does not compute."""
    kinds = {layer.attention.rope.kind for layer in architecture.layers}
    if "dynamic" in kinds and context > architecture.context:
        raise WeightsError(
            f"{architecture.name}: a context of {context} needs dynamic RoPE, which the native "
            f"decoder does not compute; allowed are up to {architecture.context}"
        )
