"""Grouped-query attention over a preallocated cache. MHA and MQA are its two ends.

Shape letters: B sequences, S new tokens, T cached positions, D model width, N query heads,
K key/value heads, X rows that one key/value head answers (S x N / K), H head width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_code.common.cache import KVCache, LayerCache
from model_code.common.kernels import one_token
from model_code.common.layers import Attention
from model_code.common.linear import Linear
from model_code.common.norm import MakeNorm
from model_code.common.rotary import Rotary
from model_code.common.span import Span

__all__ = ["GroupedQueryAttention", "KVCache", "Rotary", "Span", "attend", "grouped_attention"]


class GroupedQueryAttention(nn.Module):
    """Attention in which G query heads read the same keys and values, which are never repeated."""

    def __init__(
        self, hidden: int, attention: Attention, dtype: torch.dtype, norm: MakeNorm
    ) -> None:
        super().__init__()
        self.rules = attention
        self.heads, self.kv_heads = attention.heads, attention.kv_heads
        self.head_dim = attention.head_dim
        queries, cached = self.heads * self.head_dim, attention.cached_values
        self.qkv = Linear(hidden, queries + cached, bias=attention.bias_qkv, dtype=dtype)
        self.output = Linear(queries, hidden, bias=attention.bias_output, dtype=dtype)
        self.sinks_N = (
            nn.Parameter(torch.empty(self.heads, dtype=dtype)) if attention.sinks else None
        )
        self.qk_norm: nn.Module | None = None
        if attention.qk_norm != "none":
            from model_code.normalization.model import QueryKeyNorm

            self.qk_norm = QueryKeyNorm(
                attention.qk_norm, heads=self.heads, kv_heads=self.kv_heads,
                head_dim=self.head_dim, norm=norm,
            )  # fmt: skip

    def forward(self, x_BSD: Tensor, rotary: Rotary, cache: LayerCache, span: Span) -> Tensor:
        """[B, S, D] -> [B, S, D]; the new keys and values stay in the cache."""
        heads_BSXH = self.qkv(x_BSD).unflatten(-1, (-1, self.head_dim))
        turned_BSXH, value_BSKH = heads_BSXH.tensor_split([-self.kv_heads], dim=2)
        if self.qk_norm is not None:
            parts = self.qk_norm(*turned_BSXH.split([self.heads, self.kv_heads], dim=2))
            turned_BSXH = torch.cat(parts, dim=2)
        turned_BSXH = rotary(turned_BSXH, span.positions_BS)
        query_BSNH, key_BSKH = turned_BSXH.split([self.heads, self.kv_heads], dim=2)
        (keys, values), mask_BST = cache.update([key_BSKH, value_BSKH], span)
        out_BSNH = attend(query_BSNH, keys, values, mask_BST, self.rules, self.sinks_N)
        return self.output(out_BSNH.flatten(2))


def attend(
    query_BSNH: Tensor, keys_BKTH: Tensor, values_BKTH: Tensor, mask_BST: Tensor | None,
    rules: Attention, sinks_N: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Attend by a layer's rules: torch's fused kernel, unless scores are capped or have sinks."""
    if rules.softcap is None and sinks_N is None:
        return grouped_attention(query_BSNH, keys_BKTH, values_BKTH, mask_BST, rules.scale)
    B, S, N, H = query_BSNH.shape
    K = keys_BKTH.shape[1]
    rows_BKXH = query_BSNH.view(B, S, K, N // K, H).permute(0, 2, 3, 1, 4).reshape(B, K, -1, H)
    scores_BKXT = (rows_BKXH @ keys_BKTH.mT).float() * rules.scale
    if rules.softcap is not None:  # Gemma 2, arXiv 2408.00118, section 2
        scores_BKXT = rules.softcap * torch.tanh(scores_BKXT / rules.softcap)
    if mask_BST is not None:
        hidden_B1XT = ~mask_BST.repeat(1, N // K, 1)[:, None]
        scores_BKXT = scores_BKXT.masked_fill(hidden_B1XT, -torch.inf)
    if sinks_N is not None:  # a place that takes weight and gives nothing
        sinks_BKX1 = sinks_N.float().view(1, K, -1, 1).repeat_interleave(S, 2).expand(B, -1, -1, 1)
        scores_BKXT = torch.cat([scores_BKXT, sinks_BKX1], dim=-1)
    weights_BKXT = scores_BKXT.softmax(-1)[..., : keys_BKTH.shape[2]].to(values_BKTH.dtype)
    out_BKXH = weights_BKXT @ values_BKTH
    return out_BKXH.view(B, K, N // K, S, H).permute(0, 3, 1, 2, 4).reshape(B, S, N, H)


def grouped_attention(
    query_BSNH: Tensor, keys_BKTH: Tensor, values_BKTH: Tensor, mask_BST: Tensor | None,
    scale: float,
) -> Tensor:  # fmt: skip
    """Attend with the G query heads of a key/value head as rows of one matrix; no mask hides none.

    So its keys and values are read once. torch's enable_gqa goes through them for each query head;
    two plain products with a softmax between them are slower than its fused kernel too. One token
    is for our own kernel, where that is loaded.
    """
    B, S, N, H = query_BSNH.shape
    if S == 1 and one_token.fit(keys_BKTH, values_BKTH):
        mask_BT = None if mask_BST is None else mask_BST[:, 0]
        out_BNH = one_token.attend(query_BSNH[:, 0], keys_BKTH, values_BKTH, mask_BT, scale=scale)
        return out_BNH[:, None].to(values_BKTH.dtype)
    K = keys_BKTH.shape[1]
    rows_BKXH = query_BSNH.view(B, S, K, N // K, H).permute(0, 2, 3, 1, 4).reshape(B, K, -1, H)
    mask_B1XT = None if mask_BST is None else mask_BST.repeat(1, N // K, 1)[:, None]
    out_BKXH = functional.scaled_dot_product_attention(
        rows_BKXH, keys_BKTH, values_BKTH, attn_mask=mask_B1XT, scale=scale
    )
    return out_BKXH.view(B, K, N // K, S, H).permute(0, 3, 1, 2, 4).reshape(B, S, N, H)
