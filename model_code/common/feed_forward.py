"""The dense feed-forward part of a layer. Experts: model_code/moe.

Shape letters: B sequences, S tokens, D model width, F inner width.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_code.common.layers import FeedForward
from model_code.common.linear import Linear

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "swish": functional.silu,
    "gelu": functional.gelu,
    "gelu_pytorch_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
}


class GatedFeedForward(nn.Module):
    """SwiGLU and its kin: one matrix makes gate and value, another brings their product back.

    Args:
        width: Inner width, where it is not the part's own: that of shared experts.
    """

    def __init__(
        self, hidden: int, part: FeedForward, dtype: torch.dtype, *, width: int | None = None
    ) -> None:
        super().__init__()
        self.part, width = part, width or part.width
        self.gate_up = Linear(hidden, 2 * width, bias=part.bias, dtype=dtype)
        self.down = Linear(width, hidden, bias=part.bias, dtype=dtype)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """[B, S, D] -> [B, S, D]."""
        return self.down(gated(self.gate_up(x_BSD), self.part))


def gated(gate_up: Tensor, part: FeedForward) -> Tensor:
    """Return the value, weighed by its gate: [..., 2 F] -> [..., F]."""
    gate, up = gate_up.chunk(2, dim=-1)
    if part.clamp is None:
        return ACTIVATIONS[part.activation](gate) * up
    gate, up = gate.clamp(max=part.clamp), up.clamp(-part.clamp, part.clamp)
    return (up + 1) * gate * torch.sigmoid(gate * part.slope)
