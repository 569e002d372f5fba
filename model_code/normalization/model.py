"""Norm placements around a part of a layer, and norms of queries and keys.

Shape letters: B sequences, S tokens, D model width, N query heads, K key/value heads, H head width.
"""

from collections.abc import Callable

from torch import Tensor, nn

from model_code.common.layers import NormPlacement, QkNorm
from model_code.common.norm import MakeNorm

Part = Callable[[Tensor], Tensor]


class Residual(nn.Module):
    """Adds what a part makes of its input to that input, with a norm at one or two places.

    ==========  =======================  ==================================================
    Placement   Computes                 Source
    ==========  =======================  ==================================================
    pre         x + part(norm(x))        Llama and most others
    post        norm(x + part(x))        Vaswani et al. 2017, arXiv 1706.03762, section 3.1
    reordered   x + norm(part(x))        OLMo 2, arXiv 2501.00656, section 3.2
    sandwich    x + norm(part(norm(x)))  Gemma 2, arXiv 2408.00118, section 2
    ==========  =======================  ==================================================
    """

    def __init__(self, placement: NormPlacement, hidden: int, norm: MakeNorm) -> None:
        super().__init__()
        self.placement = placement
        self.before = norm(hidden) if placement in ("pre", "sandwich") else None
        self.after = norm(hidden) if placement != "pre" else None

    def forward(self, x_BSD: Tensor, part: Part) -> Tensor:
        """[B, S, D] -> [B, S, D]."""
        made_BSD = part(x_BSD if self.before is None else self.before(x_BSD))
        if self.after is None:
            return x_BSD + made_BSD
        if self.placement == "post":
            return self.after(x_BSD + made_BSD)
        return x_BSD + self.after(made_BSD)


class QueryKeyNorm(nn.Module):
    """Norms queries and keys before they are rotated: each head by itself, or all as one vector."""

    def __init__(
        self, kind: QkNorm, *, heads: int, kv_heads: int, head_dim: int, norm: MakeNorm
    ) -> None:
        super().__init__()
        self.all_heads = kind == "all_heads"
        self.heads, self.kv_heads = heads, kv_heads
        self.query = norm(heads * head_dim if self.all_heads else head_dim)
        self.key = norm(kv_heads * head_dim if self.all_heads else head_dim)

    def forward(self, query_BSNH: Tensor, key_BSKH: Tensor) -> tuple[Tensor, Tensor]:
        """Return both, normalized, in their shapes."""
        if not self.all_heads:
            return self.query(query_BSNH), self.key(key_BSKH)
        query = self.query(query_BSNH.flatten(-2)).view(query_BSNH.shape)
        return query, self.key(key_BSKH.flatten(-2)).view(key_BSKH.shape)
