"""Grouped-query attention over a preallocated cache. MHA and MQA are its two ends.

Shape letters: B sequences, S new tokens, T cached positions, D model width, N query heads,
K key/value heads, X rows that one key/value head answers (S x N / K), H head width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_code.common.architecture import Architecture, Attention, Rope
from model_code.common.linear import Linear


class KVCache:
    """Keys and values of all layers, for `slots` sequences of up to `context` tokens each.

    Positions at and after a sequence's length are garbage that the mask hides, so starting a new
    sequence in a slot costs nothing.
    """

    def __init__(
        self, architecture: Architecture, *, slots: int, context: int, dtype: torch.dtype
    ) -> None:
        attention = architecture.layers[0].attention
        shape = (
            len(architecture.layers), 2, slots, attention.kv_heads, context, attention.head_dim,
        )  # fmt: skip
        # Zeros, not empty: hidden positions get a weight of 0, and 0 times a stray NaN is NaN.
        self.layers_L2BKTH = torch.zeros(shape, dtype=dtype)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one slot to another."""
        cache = self.layers_L2BKTH
        cache[:, :, target, :, :length] = cache[:, :, source, :, :length]


class Span:
    """Where the new tokens of a batch go in the cache, and what each of them may see.

    The sequences are in neighbouring slots from `first_slot` on; starts_B are their lengths so far.
    """

    def __init__(self, first_slot: int, starts_B: Tensor, tokens: int) -> None:
        self.slots = slice(first_slot, first_slot + len(starts_B))
        self.rows_B1 = torch.arange(len(starts_B))[:, None]
        self.positions_BS = starts_B[:, None] + torch.arange(tokens)
        self.visible = int(starts_B.max()) + tokens
        self.mask_BST = torch.arange(self.visible) <= self.positions_BS[..., None]


class Rotary:
    """Turns each head's halves by an angle that grows with the position."""

    def __init__(self, rope: Rope, head_dim: int, context: int, dtype: torch.dtype) -> None:
        steps = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim
        positions = torch.arange(context, dtype=torch.float32, device="cpu")
        angles_TH = torch.outer(positions, rope.theta**-steps)
        self.cos_TH, self.sin_TH = angles_TH.cos().to(dtype), angles_TH.sin().to(dtype)

    def __call__(self, x_BSNH: Tensor, positions_BS: Tensor) -> Tensor:
        """Rotate all heads of each token by the token's position."""
        cos, sin = self.cos_TH[positions_BS, None], self.sin_TH[positions_BS, None]
        left, right = x_BSNH.chunk(2, dim=-1)
        return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)


class GroupedQueryAttention(nn.Module):
    """Attention in which G query heads read the same keys and values, which are never repeated."""

    def __init__(self, hidden: int, attention: Attention, dtype: torch.dtype) -> None:
        super().__init__()
        self.heads, self.kv_heads = attention.heads, attention.kv_heads
        self.head_dim, self.scale = attention.head_dim, attention.scale
        queries, cached = self.heads * self.head_dim, attention.cached_values
        self.qkv = Linear(hidden, queries + cached, bias=attention.bias_qkv, dtype=dtype)
        self.output = Linear(queries, hidden, bias=attention.bias_output, dtype=dtype)

    def forward(self, x_BSD: Tensor, rotary: Rotary, cache_2BKTH: Tensor, span: Span) -> Tensor:
        """[B, S, D] -> [B, S, D]; the new keys and values stay in the cache."""
        heads_BSXH = self.qkv(x_BSD).unflatten(-1, (-1, self.head_dim))
        turned_BSXH = rotary(heads_BSXH[..., : -self.kv_heads, :], span.positions_BS)
        query_BSNH, key_BSKH = turned_BSXH.split([self.heads, self.kv_heads], dim=2)
        keys_BKTH, values_BKTH = cache_2BKTH[:, span.slots].unbind()
        keys_BKTH[span.rows_B1, :, span.positions_BS] = key_BSKH
        values_BKTH[span.rows_B1, :, span.positions_BS] = heads_BSXH[..., -self.kv_heads :, :]
        seen = slice(None, span.visible)
        out_BSNH = grouped_attention(
            query_BSNH, keys_BKTH[:, :, seen], values_BKTH[:, :, seen], span.mask_BST, self.scale
        )
        return self.output(out_BSNH.flatten(2))


def grouped_attention(
    query_BSNH: Tensor, keys_BKTH: Tensor, values_BKTH: Tensor, mask_BST: Tensor, scale: float
) -> Tensor:
    """Attend with the G query heads of a key/value head as rows of one matrix.

    So its keys and values are read once. torch's enable_gqa goes through them for each query head;
    two plain products with a softmax between them are slower than this fused kernel too.
    """
    B, S, N, H = query_BSNH.shape
    K = keys_BKTH.shape[1]
    rows_BKXH = query_BSNH.view(B, S, K, N // K, H).permute(0, 2, 3, 1, 4).reshape(B, K, -1, H)
    mask_B1XT = mask_BST.repeat(1, N // K, 1)[:, None]
    out_BKXH = functional.scaled_dot_product_attention(
        rows_BKXH, keys_BKTH, values_BKTH, attn_mask=mask_B1XT, scale=scale
    )
    return out_BKXH.view(B, K, N // K, S, H).permute(0, 3, 1, 2, 4).reshape(B, S, N, H)
