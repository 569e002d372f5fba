"""Routed experts without shapes that depend on the data, in two forms of equal results.

Shape letters: T tokens, A experts that a token visits, E experts, D model width, F inner width.
"""

import torch
from torch import Tensor, nn

from model_code.common.feed_forward import gated
from model_code.common.layers import FeedForward
from model_code.moe.model import Experts


class StaticExperts(nn.Module):
    """The same weights as `Experts`, none of them copied.

    Few tokens gather the weights of the experts that they visit: T x A of them are read, some
    perhaps twice. Many tokens go through every expert, and what they did not visit is multiplied by
    zero: E / A times the arithmetic, but each weight is read once and nothing is dropped, which
    experts of a fixed capacity below T would do to tokens that crowd at one of them.
    """

    def __init__(self, experts: Experts, tokens: int) -> None:
        super().__init__()
        self.part = experts.part
        self.gathers = gathers(experts.part, tokens)
        self.gate_up, self.down = experts.gate_up, experts.down
        self.gate_up_bias, self.down_bias = experts.gate_up_bias, experts.down_bias

    def forward(self, x_TD: Tensor, experts_TA: Tensor, weights_TA: Tensor) -> Tensor:
        """Return the weighted sum [T, D] of what each token's experts make of it."""
        weights_TA = weights_TA.to(x_TD.dtype)
        if self.gathers:
            return self._gathered(x_TD, experts_TA, weights_TA)
        return self._masked(x_TD, experts_TA, weights_TA)

    def _gathered(self, x_TD: Tensor, experts_TA: Tensor, weights_TA: Tensor) -> Tensor:
        T, A = experts_TA.shape
        rows_VD1 = x_TD[:, None].expand(-1, A, -1).reshape(T * A, -1, 1)
        chosen_V = experts_TA.reshape(-1)
        both_VI = torch.bmm(self.gate_up[chosen_V], rows_VD1)[..., 0]
        if self.gate_up_bias is not None:
            both_VI = both_VI + self.gate_up_bias[chosen_V]
        out_VD = torch.bmm(self.down[chosen_V], gated(both_VI, self.part)[..., None])[..., 0]
        if self.down_bias is not None:
            out_VD = out_VD + self.down_bias[chosen_V]
        return (out_VD.view(T, A, -1) * weights_TA[..., None]).sum(1)

    def _masked(self, x_TD: Tensor, experts_TA: Tensor, weights_TA: Tensor) -> Tensor:
        E = self.part.experts
        weights_TE = x_TD.new_zeros(len(x_TD), E).scatter(1, experts_TA, weights_TA)
        both_ETI = torch.matmul(x_TD[None], self.gate_up.mT)
        if self.gate_up_bias is not None:
            both_ETI = both_ETI + self.gate_up_bias[:, None]
        out_ETD = torch.bmm(gated(both_ETI, self.part), self.down.mT)
        if self.down_bias is not None:
            out_ETD = out_ETD + self.down_bias[:, None]
        return (out_ETD * weights_TE.t()[..., None]).sum(0)


def gathers(part: FeedForward, tokens: int) -> bool:
    """Whether visited experts are gathered: while that reads no more than all experts are."""
    return tokens * part.active <= part.experts
