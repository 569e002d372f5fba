"""RMSNorm. Where in a layer it may stand besides before each part: model_code/normalization.

Shape letter: D width of what is normalized.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


class RMSNorm(nn.Module):
    """Root mean square norm (Zhang and Sennrich 2019, arXiv 1910.07467).

    Args:
        offset: Added to the weights. Gemma stores them less one, and multiplies in float32.
    """

    def __init__(self, width: int, *, eps: float, dtype: torch.dtype, offset: float = 0.0) -> None:
        super().__init__()
        self.eps, self.offset = eps, offset
        self.weight = nn.Parameter(torch.empty(width, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        if not self.offset:
            return functional.rms_norm(x, self.weight.shape, self.weight, self.eps)
        scale_D = self.weight.float() + self.offset
        return functional.rms_norm(x.float(), scale_D.shape, scale_D, self.eps).to(x.dtype)


MakeNorm = Callable[[int], RMSNorm]


class PreNorm(nn.Module):
    """Adds what a part makes of its normed input to that input, as Llama and most others do."""

    def __init__(self, hidden: int, norm: MakeNorm) -> None:
        super().__init__()
        self.before = norm(hidden)

    def forward(self, x_BSD: Tensor, part: Callable[[Tensor], Tensor]) -> Tensor:
        """[B, S, D] -> [B, S, D]."""
        return x_BSD + part(self.before(x_BSD))
