"""A decoder built from an `Architecture`: norms before each part, gated feed-forward, RoPE.

Shape letters: B sequences, S new tokens, D model width, F inner width, V vocabulary; attention.py
has those of attention.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_code.common.architecture import Architecture, FeedForward, Layer
from model_code.common.attention import GroupedQueryAttention, KVCache, Rotary, Span
from model_code.common.errors import WeightsError
from model_code.common.linear import Linear, linear


class GatedFeedForward(nn.Module):
    """SwiGLU: one matrix makes gate and value, another brings their product back."""

    def __init__(self, hidden: int, part: FeedForward, dtype: torch.dtype) -> None:
        super().__init__()
        self.gate_up = Linear(hidden, 2 * part.width, bias=part.bias, dtype=dtype)
        self.down = Linear(part.width, hidden, bias=part.bias, dtype=dtype)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """[B, S, D] -> [B, S, D]."""
        gate_BSF, up_BSF = self.gate_up(x_BSD).chunk(2, dim=-1)
        return self.down(functional.silu(gate_BSF) * up_BSF)


class Block(nn.Module):
    """One layer: attention, then feed-forward, each added to what came in."""

    def __init__(self, hidden: int, layer: Layer, norm_eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(hidden, eps=norm_eps, dtype=dtype)
        self.attention = GroupedQueryAttention(hidden, layer.attention, dtype)
        self.feed_forward_norm = nn.RMSNorm(hidden, eps=norm_eps, dtype=dtype)
        self.feed_forward = GatedFeedForward(hidden, layer.feed_forward, dtype)

    def forward(self, x_BSD: Tensor, rotary: Rotary, cache_2BKTH: Tensor, span: Span) -> Tensor:
        """[B, S, D] -> [B, S, D]."""
        x_BSD = x_BSD + self.attention(self.attention_norm(x_BSD), rotary, cache_2BKTH, span)
        return x_BSD + self.feed_forward(self.feed_forward_norm(x_BSD))


class Decoder(nn.Module):
    """Embedding, layers, last norm and head. `context` bounds the positions."""

    def __init__(self, architecture: Architecture, *, context: int, dtype: torch.dtype) -> None:
        super().__init__()
        check_supported(architecture)
        self.architecture, self.dtype = architecture, dtype
        hidden, attention = architecture.hidden, architecture.layers[0].attention
        self.rotary = Rotary(attention.rope, attention.head_dim, context, dtype)
        self.embedding_VD = nn.Parameter(torch.empty(architecture.vocabulary, hidden, dtype=dtype))
        self.layers = nn.ModuleList(
            Block(hidden, layer, architecture.norm_eps, dtype) for layer in architecture.layers
        )
        self.norm = nn.RMSNorm(hidden, eps=architecture.norm_eps, dtype=dtype)
        self.head_VD = self.embedding_VD
        if not architecture.tied_embeddings:
            self.head_VD = nn.Parameter(torch.empty_like(self.embedding_VD))

    def forward(self, tokens_BS: Tensor, cache: KVCache, span: Span) -> Tensor:
        """Return the normed states [B, S, D] of new tokens, whose keys and values stay cached."""
        x_BSD = self.embedding_VD[tokens_BS]
        for block, cache_2BKTH in zip(self.layers, cache.layers_L2BKTH, strict=True):
            x_BSD = block(x_BSD, self.rotary, cache_2BKTH, span)
        return self.norm(x_BSD)

    def logits(self, states: Tensor) -> Tensor:
        """[..., D] -> [..., V] in float32."""
        return linear(states, self.head_VD).float()


def check_supported(architecture: Architecture) -> None:
    """Refuse by name what this decoder does not compute."""
    first = architecture.layers[0]
    attention, part = first.attention, first.feed_forward
    unsupported = {
        "layers that differ": any(layer != first for layer in architecture.layers),
        "latent attention": attention.kind == "mla",
        "a sliding window": attention.window is not None,
        "normalized queries and keys": attention.qk_norm != "none",
        "attention sinks": attention.sinks,
        "soft caps": attention.softcap is not None or architecture.logit_softcap is not None,
        f"{attention.rope.kind} RoPE": attention.rope.kind != "default",
        "partly rotated heads": attention.rope.fraction != 1.0,
        "a mixture of experts": part.experts > 0,
        f"the activation {part.activation}": part.activation not in ("silu", "swish"),
        f"{first.norms} norms": first.norms != "pre",
        "scaled embeddings or norms": (architecture.embedding_scale, architecture.norm_offset)
        != (1.0, 0.0),
    }
    found = [name for name, present in unsupported.items() if present]
    if found:
        raise WeightsError(
            f"{architecture.name}: the native decoder does not compute {', '.join(found)}; "
            f"set ISOMORPH_ENGINE=llama.cpp"
        )
