"""Multi-head latent attention, on the latents themselves (DeepSeek-V2, arXiv 2405.04434, 2.1).

A token leaves one latent and one rotated key, for all heads together. With a cache, keys and values
of heads are never formed: the matrix that would make a head's keys of the latents is multiplied
into its query, and the one that would make its values, into what comes out. In training they are.

Shape letters: B sequences, S new tokens, T cached positions, D model width, N heads, P width of a
head's key without position, E of its rotated part, V of its values, R width of the latent,
Q width of the queries' latent.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_code.common.attention import grouped_attention
from model_code.common.cache import LayerCache
from model_code.common.kernels import one_token
from model_code.common.layers import Attention
from model_code.common.linear import Linear
from model_code.common.norm import RMSNorm
from model_code.common.rotary import Rotary
from model_code.common.span import Span
from model_code.common.uncached import Uncached

_LATENT_EPS = 1e-6  # of the norms on latents, whatever the config says of the others


class LatentAttention(nn.Module):
    """MLA: to the cache it is attention with one key/value head, R + E wide."""

    def __init__(self, hidden: int, attention: Attention, dtype: torch.dtype) -> None:
        super().__init__()
        assert attention.latent_rank is not None  # noqa: S101
        self.heads, self.scale = attention.heads, attention.scale
        self.rank, self.turned = attention.latent_rank, attention.rope_dim
        self.plain = attention.head_dim - attention.rope_dim
        bias, queries = attention.bias_qkv, attention.heads * attention.head_dim
        self.query_down: Linear | None = None
        self.query_norm: RMSNorm | None = None
        if (rank := attention.query_rank) is not None:
            self.query_down = Linear(hidden, rank, bias=bias, dtype=dtype)
            self.query_norm = RMSNorm(rank, eps=_LATENT_EPS, dtype=dtype)
        self.query = Linear(rank or hidden, queries, bias=False, dtype=dtype)
        self.latent = Linear(hidden, self.rank + self.turned, bias=bias, dtype=dtype)
        self.latent_norm = RMSNorm(self.rank, eps=_LATENT_EPS, dtype=dtype)
        # A head's keys and values from the latent, in rows P then V.
        width = self.plain + attention.value_dim
        self.expand_NXR = nn.Parameter(torch.empty(self.heads, width, self.rank, dtype=dtype))
        out = attention.heads * attention.value_dim
        self.output = Linear(out, hidden, bias=attention.bias_output, dtype=dtype)

    def forward(self, x_BSD: Tensor, rotary: Rotary, cache: LayerCache, span: Span) -> Tensor:
        """[B, S, D] -> [B, S, D]; the new latents and rotated keys stay in the cache."""
        plain_BSNP, turned_BSNE = self._query(x_BSD, rotary, span)
        latent_BSR, key_BSE = self.latent(x_BSD).split([self.rank, self.turned], dim=-1)
        key_BS1E = rotary(key_BSE[:, :, None], span.positions_BS)
        latent_BSR = self.latent_norm(latent_BSR)
        if isinstance(cache, Uncached):
            query_BSNH = torch.cat([plain_BSNP, turned_BSNE], dim=-1)
            return self.output(self._expanded(query_BSNH, latent_BSR, key_BS1E).flatten(2))
        absorbed_BSNR = _per_head(plain_BSNP, self.expand_NXR[:, : self.plain])
        query_BSNW = torch.cat([absorbed_BSNR, turned_BSNE], dim=-1)
        kept_BS1W = torch.cat([latent_BSR[:, :, None], key_BS1E], dim=-1)
        (seen_B1TW,), mask_BST = cache.update([kept_BS1W], span)
        # The latents are keys and values at once: they are read as one matrix, and for torch's
        # fused kernel, which wants one width, the rotated part that comes out is cut off.
        one = x_BSD.shape[1] == 1 and one_token.fit(seen_B1TW, seen_B1TW)
        values_B1TR = seen_B1TW[..., : self.rank] if one else seen_B1TW
        out_BSNR = grouped_attention(query_BSNW, seen_B1TW, values_B1TR, mask_BST, self.scale)
        out_BSNR = out_BSNR[..., : self.rank]
        values_NVR = self.expand_NXR[:, self.plain :]
        return self.output(_per_head(out_BSNR, values_NVR.mT).flatten(2))

    def _query(self, x_BSD: Tensor, rotary: Rotary, span: Span) -> tuple[Tensor, Tensor]:
        """Return queries without position [B, S, N, P], and their rotated part [B, S, N, E]."""
        if self.query_down is not None and self.query_norm is not None:
            x_BSD = self.query_norm(self.query_down(x_BSD))
        query_BSNH = self.query(x_BSD).unflatten(-1, (self.heads, -1))
        plain_BSNP, turned_BSNE = query_BSNH.split([self.plain, self.turned], dim=-1)
        return plain_BSNP, rotary(turned_BSNE, span.positions_BS)

    def _expanded(self, query_BSNH: Tensor, latent_BSR: Tensor, key_BS1E: Tensor) -> Tensor:
        """Return what whole sequences see of themselves [B, S, N, V], by keys and values of heads.

        For training, where no cache has to stay small: scores on latents of DeepSeek-V3 take 3.4
        times the multiplications of scores on its heads' keys and values.
        """
        made_BSNX = functional.linear(latent_BSR, self.expand_NXR.flatten(0, 1)).unflatten(
            -1, (self.heads, -1)
        )
        plain_BSNP, value_BSNV = made_BSNX.tensor_split([self.plain], dim=-1)
        keys_BSNH = torch.cat([plain_BSNP, key_BS1E.expand(-1, -1, self.heads, -1)], dim=-1)
        # As wide as the keys: torch's fused kernels want one width, and others keep all scores.
        width, wide = value_BSNV.shape[-1], max(keys_BSNH.shape[-1], value_BSNV.shape[-1])

        def padded(x_BSNH: Tensor) -> Tensor:
            return functional.pad(x_BSNH, (0, wide - x_BSNH.shape[-1])).transpose(1, 2)

        out_BNSH = functional.scaled_dot_product_attention(
            padded(query_BSNH), padded(keys_BSNH), padded(value_BSNV), is_causal=True,
            scale=self.scale,
        )  # fmt: skip
        return out_BNSH.transpose(1, 2)[..., :width]


def _per_head(x_BSNI: Tensor, weight_NIO: Tensor) -> Tensor:
    """Multiply each head with its own matrix: [B, S, N, I] -> [B, S, N, O]."""
    B, S, N, _ = x_BSNI.shape
    return (x_BSNI.flatten(0, 1).transpose(0, 1) @ weight_NIO).transpose(0, 1).view(B, S, N, -1)
